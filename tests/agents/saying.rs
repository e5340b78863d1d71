//! What a run says about itself is known on every host, and who plays there is asked of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::cluster::{Cluster, NAMES};
use crate::host::{Host, expect, until};

/// Says twice a second what time it is and who plays, and writes down whom it finds.
const TELLER: &str = r#"
import json, os, socket, sys, time
link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
link.connect(os.environ["BIGBROTHER_SOCKET"])
link.settimeout(0.2)
found = sys.argv[1] + "/" + os.environ["BIGBROTHER_INSTANCE"] + ".found"
def say(method, params, **more):
    link.sendall(json.dumps(dict(jsonrpc="2.0", method=method, params=params, **more)).encode() + b"\n")
say("hello", dict(state="ready"))
players = [dict(name="ann", id="a-1", score=-3, ping_ms=40), dict(name="bob\u0007")]
rest = b""
while True:
    say("heartbeat", {})
    at = dict(at=int(time.time() * 1000), host=os.environ["BIGBROTHER_HOST"])
    say("status", dict(players=2, fps=59.5, ping_ms=40.5, labels=at, player_list=players))
    say("find", dict(process="teller"), id=1)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        try:
            got = link.recv(65536)
        except TimeoutError:
            continue
        if not got:
            sys.exit(1)
        *lines, rest = (rest + got).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "result" in said and said["result"] and "listings" in said["result"]:
                with open(found + ".new", "w") as out:
                    json.dump(said["result"]["listings"], out)
                os.rename(found + ".new", found)
"#;

fn tellers(host: &Host) -> String {
    let script = host.root.join("teller");
    fs::write(&script, TELLER).unwrap();
    format!(
        "[process.teller]\ncommand = [\"/usr/bin/python3\", \"-u\", {script:?}, {:?}]\ncount = 4\n\
         ready = {{ mode = \"native\" }}\nheartbeat = {{ mode = \"native\", interval = \"500ms\", timeout = \"20s\" }}\n\
         labels = {{ role = \"teller\" }}\n",
        host.root
    )
}

const TELLERS: [&str; 4] = ["teller.0", "teller.1", "teller.2", "teller.3"];

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

fn metric(cluster: &Cluster, host: usize, name: &str) -> f64 {
    cluster.hosts[host].metric(&format!("bigbrother_{name}"), "").unwrap()
}

/// The runs as a host shows them, once all of them say something.
fn said(cluster: &Cluster, host: usize) -> Vec<Value> {
    until(&format!("all say something, as {} sees it", NAMES[host]), || {
        let all = cluster.hosts[host].get("/v1/directory?status=true&process=teller")?;
        let all = all.as_array().cloned().unwrap_or_default();
        let known = all.iter().filter(|run| run["status"]["players"] == 2);
        expect(known.count() == TELLERS.len(), &all)?;
        Ok(all)
    })
}

#[test]
fn what_a_run_says_is_known_on_every_host_soon() {
    let cluster = Cluster::of(4, tellers);
    cluster.ready(0, &TELLERS);
    // Delta, the last one, is no peer.
    for host in 0..4 {
        let all = said(&cluster, host);
        let mut hosts: Vec<&str> = all.iter().map(|run| run["host"].as_str().unwrap()).collect();
        hosts.sort_unstable();
        assert_eq!(hosts, ["alpha", "beta", "delta", "gamma"], "one on each");
        for run in &all {
            let status = &run["status"];
            assert_eq!(status["labels"]["host"], run["host"], "{run}");
            assert_eq!((&status["fps"], &status["ping_ms"]), (&59.5.into(), &40.5.into()), "{run}");
        }
        // How old it is, is what it says: by the clock of this machine, which all of them have.
        let lag = |run: &Value| now_ms().saturating_sub(run["status"]["labels"]["at"].as_u64().unwrap());
        let young = until("what is shown is young", || {
            let all = said(&cluster, host);
            let oldest = all.iter().map(lag).max().unwrap();
            expect(oldest < 3_000, &all)?;
            Ok(all)
        });
        for run in young {
            let (age, lag) = (run["status"]["age_ms"].as_u64().unwrap(), lag(&run));
            assert!(age <= lag + 50, "said {lag} ms ago, not {age}: {run}");
        }
        let label = cluster.hosts[host].get("/v1/directory?label=host=beta&fields=host").unwrap();
        assert_eq!(label, serde_json::json!([{ "host": "beta" }]));
    }
    // A game finds what the others say, whichever host it is on.
    for instance in TELLERS {
        let file = cluster.hosts[0].root.join(format!("{instance}.found"));
        until("the game finds what all say", || {
            let found: Vec<Value> = serde_json::from_slice(&fs::read(&file).unwrap_or_default())
                .map_err(|error| error.to_string())?;
            let told = found.iter().filter(|run| run["status"]["players"] == 2);
            expect(told.count() == 4 && found.iter().all(|run| run["status_age_ms"].is_u64()), &found)
        });
    }
    // Who plays, from another host, and of nobody but the one who is asked.
    let run = &said(&cluster, 0)[0];
    let id = run["instance"].as_str().unwrap();
    for host in 0..4 {
        let told = cluster.hosts[host].get(&format!("/v1/instances/{id}/players")).unwrap();
        let list = serde_json::json!([
            { "name": "ann", "id": "a-1", "score": -3, "ping_ms": 40 }, { "name": "bob" },
        ]);
        assert_eq!((&told["host"], &told["player_list"]), (&run["host"], &list), "{told}");
        assert_eq!((&told["players"], &told["truncated"]), (&2.into(), &false.into()), "{told}");
    }
    let view = cluster.view(1, id).unwrap();
    assert!(view.status.contains_key("players") && !view.status.contains_key("player_list"), "{view:?}");
    assert!(metric(&cluster, 3, "status_taken_total") > 0.0 && metric(&cluster, 3, "status_runs") == 4.0);
    assert!(metric(&cluster, 0, "status_sent_total") > 0.0);
}

#[test]
fn a_watcher_on_a_host_that_is_no_peer_is_told_what_runs_elsewhere_say() {
    let cluster = Cluster::of(4, |host| {
        // They find nothing, so that nobody reads by itself.
        let quiet = TELLER.replace("    say(\"find\"", "    0 and say(\"find\"");
        let processes = tellers(host);
        fs::write(host.root.join("teller"), quiet).unwrap();
        processes
    });
    cluster.ready(0, &TELLERS);
    assert_eq!(metric(&cluster, 3, "status_taken_total"), 0.0, "nobody reads here");
    let mut watch = UnixStream::connect(cluster.hosts[3].runtime.join("api.sock")).unwrap();
    watch.set_read_timeout(Some(crate::PATIENCE)).unwrap();
    // The old version ends an answer by closing it, and has no chunks.
    watch.write_all(b"GET /v1/directory/watch?status=true HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut lines = BufReader::new(watch).lines();
    let mut times = BTreeMap::<String, Vec<u64>>::new();
    let mut kind = String::new();
    while times.len() < 4 || times.values().any(|times| times.len() < 3) {
        let line = lines.next().and_then(Result::ok).unwrap_or_else(|| panic!("no event; so far {times:?}"));
        if let Some(new) = line.strip_prefix("event: ") {
            kind = new.to_owned();
        }
        let Some(data) = line.strip_prefix("data: ").filter(|_| kind == "status") else { continue };
        for run in serde_json::from_str::<Vec<Value>>(data).unwrap() {
            let at = run["status"]["labels"]["at"].as_u64().unwrap();
            let before = times.entry(run["instance"].as_str().unwrap().to_owned()).or_default();
            assert!(before.last().is_none_or(|last| at > *last), "{run} after {before:?}");
            before.push(at);
        }
    }
    drop(lines);
    assert!(metric(&cluster, 3, "status_taken_total") > 0.0);
    // Some seconds after the last reader has gone nothing comes any more.
    until("nothing more comes", || {
        let before = metric(&cluster, 3, "status_taken_total");
        std::thread::sleep(Duration::from_secs(2));
        let after = metric(&cluster, 3, "status_taken_total");
        expect(before == after, (before, after))
    });
    assert_eq!(metric(&cluster, 3, "status_runs"), 1.0, "its own");
}
