//! Instances on demand: launched by an operator and by a game process, gone when done.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::agent::{Host, pid, until};
use crate::{python, zone};

/// A dungeon writes down its map, and ends with 0 when a file says so.
const DUNGEON: &str = r#"
[process.dungeon]
command = ["/bin/sh", "-c", "printf %s '{arg.map}' > map; until test -e done; do sleep 0.05; done"]
on_demand = { max = 2 }
ready = { mode = "spawned", after = "50ms" }
heartbeat = { mode = "none" }
"#;

fn launched(host: &Host, map: &str, key: &str) -> String {
    let map = format!("map={map}");
    let args = ["launch", "dungeon", "--arg", &map, "--key", key, "--json"];
    host.ok(&args).json()["instance"].as_str().expect("a name").to_owned()
}

fn map_of(host: &Host, dungeon: &str) -> String {
    until(&format!("{dungeon} has its argument"), || {
        match fs::read_to_string(host.data(dungeon).join("map")) {
            Ok(map) if !map.is_empty() => Ok(map),
            other => Err(format!("{other:?}")),
        }
    })
}

#[test]
fn a_launched_dungeon_has_its_arguments_and_is_gone_when_it_is_done() {
    let host = Host::start(DUNGEON);
    assert_eq!(host.ps(), [Value::Null; 0], "nothing runs unasked");
    let cave = launched(&host, "cave", "party-1");
    host.ready(&cave);
    assert_eq!(map_of(&host, &cave), "cave");
    // Tried again, it is the same; another key is another.
    assert_eq!(launched(&host, "cave", "party-1"), cave);
    let other = host.run(&["launch", "dungeon", "--arg", "map=pit", "--key", "party-1"]);
    assert_eq!(other.code, Some(4), "other arguments under a used key: {other:?}");
    assert!(other.err.contains(&cave) && other.err.contains("other arguments"), "{other:?}");
    let tower = launched(&host, "tower", "party-2");
    assert_ne!(tower, cave);
    assert_eq!(map_of(&host, &tower), "tower");
    let refused = host.run(&["launch", "dungeon", "--arg", "map=pit", "--key", "party-3"]);
    assert_eq!(refused.code, Some(4), "a third beside max = 2: {refused:?}");
    let missing = host.run(&["launch", "dungeon", "--key", "party-4"]);
    assert_eq!(missing.code, Some(4), "without an argument: {missing:?}");

    fs::write(host.data(&cave).join("done"), "").expect("a file");
    until("the cave is gone", || {
        let names: Vec<Value> = host.ps().iter().map(|i| i["instance"].clone()).collect();
        if names == [json!(tower)] { Ok(()) } else { Err(format!("{names:?}")) }
    });
    let events = host.events(&cave);
    let exited: Vec<&Value> = events.iter().filter(|e| e["kind"] == "exited").collect();
    assert_eq!(exited.len(), 1, "{events:#?}");
    assert_eq!(exited[0]["cause"], "exit", "{events:#?}");
    // There is room again, numbers are not used twice, and the key of a finished one is free.
    let next = launched(&host, "cave", "party-1");
    assert!(next != cave && next != tower, "{next}");
    host.ready(&next);
}

#[test]
fn a_dungeon_that_crashes_comes_back_as_itself() {
    let host = Host::start(DUNGEON);
    let cave = launched(&host, "cave", "party-1");
    let old = host.ready(&cave);
    crate::agent::signal(pid(&old), nix::sys::signal::Signal::SIGKILL);
    let new = host.ready_again(&old);
    assert_eq!(new["last_exit"]["cause"], "signal", "{new}");
}

/// A lobby that launches over its own process socket and writes down each answer.
const LOBBY: &str = r#"
import json, os, socket
agent = socket.socket(socket.AF_UNIX)
agent.connect(os.environ["BIGBROTHER_SOCKET"])
lines = agent.makefile("r")
def ask(id, method, **params):
    message = {"jsonrpc": "2.0", "id": id, "method": method, "params": params}
    agent.sendall(json.dumps(message).encode() + b"\n")
    for line in lines:
        answer = json.loads(line)
        if answer.get("id") == id: return answer
ask(0, "hello", client="lobby", version="1", state="ready")
def launch(id, process, key): return ask(id, "launch", process=process, args={"map": "sewers"}, key=key)
answers = [launch(1, "dungeon", "a"), launch(2, "dungeon", "a"), launch(3, "dungeon", "b"),
    launch(4, "dungeon", "c"), launch(5, "raid", "d")]
with open("answers.new", "w") as file: json.dump(answers, file)
os.rename("answers.new", "answers")
for line in lines:
    if json.loads(line).get("method") == "shutdown": break
"#;

#[test]
fn a_game_process_launches_over_its_socket() {
    let host = Host::start(&format!(
        "{DUNGEON}\n[process.raid]\n{}on_demand = {{ max = 1 }}\n\n[process.lobby]\n{}launch = [\"dungeon\"]\n\
         ready = {{ mode = \"native\" }}\nheartbeat = {{ mode = \"none\" }}\n",
        zone(&[]),
        python(LOBBY)
    ));
    let answers: Value = until("the lobby has its answers", || {
        let text = fs::read(host.data("lobby.0").join("answers")).map_err(|e| e.to_string())?;
        serde_json::from_slice(&text).map_err(|e| e.to_string())
    });
    let first = answers[0]["result"]["instance"].as_str().unwrap_or_else(|| panic!("{answers:#}"));
    assert_eq!(answers[1]["result"]["instance"], first, "the same key: {answers:#}");
    let second = answers[2]["result"]["instance"].as_str().unwrap_or_else(|| panic!("{answers:#}"));
    assert_ne!(second, first);
    assert_eq!(answers[3]["error"]["code"], -32003, "over max: {answers:#}");
    assert_eq!(answers[4]["error"]["code"], -32001, "not allowed to: {answers:#}");
    for dungeon in [first, second] {
        host.ready(dungeon);
        assert_eq!(map_of(&host, dungeon), "sewers");
    }
    // Who has launched what is in the audit trail, as what operators do is; what was refused soon after.
    let trail: Vec<Value> = until("the last of it is in the audit trail", || {
        let trail = host.ok(&["audit", "--json"]).out;
        let entries = trail.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        if trail.contains("raid") { Ok(entries) } else { Err(trail) }
    });
    let asked = |entry: &Value| {
        let (process, key) = (&entry["request"]["process"], &entry["request"]["key"]);
        (entry["status"].as_u64(), process.as_str().map(str::to_owned), key.as_str().map(str::to_owned))
    };
    let by_lobby =
        trail.iter().filter(|entry| entry["who"] == "instance lobby.0" && entry["what"] == "launch");
    let line =
        |status, process: &str, key: &str| (Some(status), Some(process.to_owned()), Some(key.to_owned()));
    assert_eq!(
        by_lobby.map(asked).collect::<Vec<_>>(),
        [
            line(201, "dungeon", "a"),
            line(201, "dungeon", "a"),
            line(201, "dungeon", "b"),
            line(409, "dungeon", "c"),
            line(403, "raid", "d")
        ],
        "{trail:#?}"
    );
    // The lobby ends when it is asked to; what it launched is not its child.
    host.ok(&["stop", "lobby"]);
    assert_eq!(host.instance("lobby.0")["last_exit"]["code"], 0);
    host.ready(first);
}

/// Asks for nothing but what it may not launch, and writes down what it was told.
const ROGUE: &str = r#"
import json, os, socket
agent = socket.socket(socket.AF_UNIX)
agent.connect(os.environ["BIGBROTHER_SOCKET"])
lines = agent.makefile("r")
agent.sendall(b'{"jsonrpc":"2.0","method":"ready"}\n')
codes = []
for _ in range(20):
    # No more than are heard at once.
    agent.sendall(b'{"jsonrpc":"2.0","id":1,"method":"launch","params":{"process":"raid"}}\n' * 15)
    open("asked", "w").close()
    codes += [json.loads(next(lines))["error"]["code"] for _ in range(15)]
with open("codes.new", "w") as file: json.dump(codes, file)
os.rename("codes.new", "codes")
for line in lines: pass
"#;

/// Launches what it may once the rogue asks, and writes down what came of it and how long that took.
const LATE_LOBBY: &str = r#"
import json, os, socket, time
agent = socket.socket(socket.AF_UNIX)
agent.connect(os.environ["BIGBROTHER_SOCKET"])
agent.sendall(b'{"jsonrpc":"2.0","method":"ready"}\n')
while not os.path.exists("../rogue.0/asked"): time.sleep(0.02)
begun = time.monotonic()
launch = {"process": "dungeon", "args": {"map": "sewers"}, "key": "a"}
agent.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "launch", "params": launch}).encode() + b"\n")
for line in agent.makefile("r"):
    answer = json.loads(line)
    if answer.get("id") == 1:
        answer["seconds"] = time.monotonic() - begun
        with open("answer.new", "w") as file: json.dump(answer, file)
        os.rename("answer.new", "answer")
"#;

/// What a rogue holds up is held up for as long as it goes on, which is for ever; all else takes no longer than this on
/// the busiest machine.
const SOON: Duration = Duration::from_secs(30);

fn soon(answer: &Value) -> bool {
    answer["seconds"].as_f64().is_some_and(|seconds| seconds < SOON.as_secs_f64())
}

/// What the lobby heard beside rogues of this kind, with these other processes, once `prepared` has seen to its host.
fn beside((rogue, count): (&str, u32), others: &str, prepared: impl FnOnce(&Host)) -> (Host, Value) {
    let game = |name: &str, script: &str, more: &str| {
        let ready = "ready = { mode = \"native\" }\nheartbeat = { mode = \"none\" }\n";
        format!("\n[process.{name}]\n{}{more}{ready}", python(script))
    };
    let raid = format!("\n[process.raid]\n{}on_demand = {{ max = 1 }}\n", zone(&[]));
    let lobby = game("lobby", LATE_LOBBY, "launch = [\"dungeon\"]\n");
    let rogue = game("rogue", rogue, &format!("count = {count}\n"));
    let mut host = Host::prepare(&format!("{DUNGEON}{raid}{rogue}{lobby}{others}"));
    prepared(&host);
    host.start_agent();
    let answer: Value = until("the lobby has its answer", || {
        let text = fs::read(host.data("lobby.0").join("answer")).map_err(|e| e.to_string())?;
        serde_json::from_slice(&text).map_err(|e| e.to_string())
    });
    assert!(answer["result"]["instance"].is_string(), "{answer}");
    (host, answer)
}

/// Asks more and more on as many connections as there may be, and never reads an answer.
const FLOOD: &str = r#"
import os, socket
def connect():
    agent = socket.socket(socket.AF_UNIX)
    agent.connect(os.environ["BIGBROTHER_SOCKET"])
    agent.setblocking(False)
    return agent
all = [connect() for _ in range(8)]
all[0].send(b'{"jsonrpc":"2.0","method":"ready"}\n')
many = b'{"jsonrpc":"2.0","id":1,"method":"find","params":{"process":"raid"}}\n' * 200
while True:
    for n in range(8):
        try: all[n].send(many)
        except BlockingIOError: pass
        except OSError:
            try: all[n] = connect()
            except OSError: pass
    open("asked", "w").close()
"#;

#[test]
fn a_flood_of_questions_holds_up_no_launch_no_start_and_no_probe() {
    let judged = "\n[process.judged]\ncommand = [\"/bin/sleep\", \"inf\"]\nafter = [\"rogue\"]\n\
                  heartbeat = { mode = \"exec\", command = [\"/bin/true\"] }\n";
    let (host, answer) = beside((FLOOD, 4), judged, |_| {});
    assert!(soon(&answer), "{answer}");
    let since = Instant::now();
    host.ready(answer["result"]["instance"].as_str().expect("a name"));
    host.ready("judged.0");
    // The keeper is heard as soon as ever, so both are started and judged.
    assert!(since.elapsed() < SOON, "after {:?}: {}", since.elapsed(), host.story());
}

#[test]
fn what_one_may_not_launch_holds_up_no_launch_of_others_whatever_the_disk_does() {
    let (host, answer) = beside((ROGUE, 1), "", |host| {
        // A disk on which the audit trail hangs: nobody reads at the other end.
        let folder = host.data("lobby.0");
        fs::create_dir_all(&folder).expect("a folder");
        let data = folder.join("../..").canonicalize().expect("the data folder");
        nix::unistd::mkfifo(&data.join("audit.jsonl"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    });
    // Its own entry is waited for, and no other.
    assert!(soon(&answer), "{answer}");
    let codes: Vec<i64> = until("the rogue has its answers", || {
        let text = fs::read(host.data("rogue.0").join("codes")).map_err(|e| e.to_string())?;
        serde_json::from_slice(&text).map_err(|e| e.to_string())
    });
    assert_eq!(codes, [-32001; 300]);
}

#[test]
fn the_example_client_in_python_is_a_good_citizen() {
    crate::agent::require("/usr/bin/python3", "python3");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/client.py");
    let host = Host::start(&format!(
        "[process.game]\ncommand = [\"/usr/bin/python3\", \"-u\", {script:?}]\n\
         heartbeat = {{ mode = \"native\", interval = \"200ms\", timeout = \"5s\" }}\n"
    ));
    let old = host.wait("game.0", "ready, beating and telling its status", |i| {
        i["state"] == "ready" && i["heartbeat"]["age_ms"].is_u64() && i["status"]["capacity"] == 8
    });
    crate::agent::signal(pid(&old), nix::sys::signal::Signal::SIGSTOP);
    let new = host.ready_again(&old);
    assert_eq!(new["last_exit"]["cause"], "hang", "{new}");
    host.ok(&["stop", "game"]);
    let stopped = host.instance("game.0");
    assert_eq!((&stopped["last_exit"]["cause"], &stopped["last_exit"]["code"]), (&"stop".into(), &0.into()));
}
