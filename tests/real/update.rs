//! Changes of the desired set while it runs: rolling updates, bad ones, live ones, drift, draining.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::agent::{Host, alive, pid, signal, until};
use crate::{python, zone};

/// Zones that say themselves when they are ready, or those with the heartbeat that `keys` has.
fn zones(count: u32, more: &[&str], keys: &str) -> String {
    let native = if keys.contains("heartbeat") { "" } else { "heartbeat = { mode = \"native\" }" };
    format!("[process.zone]\n{}count = {count}\n{native}\n{keys}\n", zone(more))
}

fn ready_all(host: &Host, count: usize) -> Vec<Value> {
    (0..count).map(|n| host.ready(&format!("zone.{n}"))).collect()
}

/// The most instances that were out of service at once, by the events after `seq`.
fn most_down(events: &[Value], seq: u64) -> usize {
    let mut down = BTreeSet::new();
    let mut most = 0;
    for event in events.iter().filter(|e| e["seq"].as_u64() > Some(seq)) {
        let name = event["instance"].as_str().expect("a name");
        match event["kind"].as_str().expect("a kind") {
            "draining" | "stopping" | "exited" | "hang" => drop(down.insert(name)),
            "ready" => drop(down.remove(name)),
            _ => {}
        }
        most = most.max(down.len());
    }
    most
}

fn last_seq(host: &Host) -> u64 {
    host.events("").last().and_then(|e| e["seq"].as_u64()).expect("an event")
}

fn roll(max_unavailable: u32) {
    let keys = format!("update = {{ max_unavailable = {max_unavailable} }}");
    let host = Host::start(&zones(5, &[], &keys));
    let before = ready_all(&host, 5);
    let seq = last_seq(&host);
    let applied = host.apply(&zones(5, &["--bind", "127.0.0.1"], &keys));
    assert_eq!(applied["plan"]["changed"][0]["restarts"], true, "{applied}");
    for old in &before {
        let new = host.ready_again(old);
        assert_eq!(new["ports"], old["ports"]);
        assert_eq!(new["last_exit"]["cause"], "stop", "{new}");
        let line = fs::read_to_string(format!("/proc/{}/cmdline", pid(&new))).expect("alive");
        assert!(line.contains("--bind"), "the new run has the old command: {line}");
    }
    let events = host.events("");
    assert_eq!(most_down(&events, seq), max_unavailable as usize, "{}", host.story());
}

#[test]
fn an_update_takes_one_after_the_other() {
    roll(1);
}

#[test]
fn an_update_takes_as_many_at_once_as_it_may() {
    roll(2);
}

/// A new binary at the same path: the command is a link that leads elsewhere from now on.
#[test]
fn a_rolling_restart_brings_a_new_binary_at_the_pace_of_an_update() {
    let host = Host::prepare("");
    let link = host.folder().join("zone-server");
    let point_to = |program: &str| {
        fs::remove_file(&link).ok();
        std::os::unix::fs::symlink(program, &link).expect("a link");
    };
    point_to("/bin/sleep");
    let process = format!(
        "[process.zone]\ncommand = [{link:?}, \"600\"]\ncount = 4\nready = {{ mode = \"spawned\", after = \"100ms\" }}\n\
         heartbeat = {{ mode = \"none\" }}\nupdate = {{ max_unavailable = 2 }}\nrestart = {{ backoff = {{ min = \"10ms\", \
         max = \"20ms\" }}, give_up = {{ failures = 2 }} }}\n"
    );
    host.write(&format!("{process}[process.other]\n{}", zone(&[])));
    let mut host = host;
    host.start_agent();
    let (before, other) = (ready_all(&host, 4), host.ready("other.0"));
    let seq = last_seq(&host);
    point_to("/usr/bin/tail");
    // `tail 600` ends at once: what was replaced fails, and the others keep their old program.
    let bad = host.run(&["restart", "zone", "--rolling"]);
    assert_eq!(bad.code, Some(1), "{bad:?}");
    assert!(bad.out.contains("its turn has not come"), "{bad:?}");
    let failed = host.ps().into_iter().filter(|i| i["state"] == "failed").count();
    assert_eq!(failed, 2, "{}", host.story());
    assert_eq!(most_down(&host.events(""), seq), 2, "{}", host.story());

    // Nor is it any better the next time, which is said again.
    let again = host.run(&["restart", "zone", "--rolling"]);
    assert_eq!(again.code, Some(1), "{again:?}");
    assert!(again.out.contains("its turn has not come"), "{again:?}");

    point_to("/bin/sleep");
    let good = host.ok(&["restart", "zone", "--rolling", "--key", "release-7"]).out;
    assert!(good.starts_with("4 instances restarted and ready again"), "{good}");
    let after = ready_all(&host, 4);
    for (old, new) in before.iter().zip(&after) {
        assert_ne!(old["run"], new["run"], "{}", host.story());
    }
    // Asked again, it is done already.
    host.ok(&["restart", "zone", "--rolling", "--key", "release-7"]);
    assert_eq!(
        ready_all(&host, 4).iter().map(|i| &i["run"]).collect::<Vec<_>>(),
        after.iter().map(|i| &i["run"]).collect::<Vec<_>>()
    );
    let reused = host.run(&["restart", "other", "--key", "release-7"]);
    assert_eq!(reused.code, Some(4), "{reused:?}");
    assert!(reused.err.contains("another request"), "{reused:?}");
    assert_eq!(host.ready("other.0")["run"], other["run"], "another process was taken along");

    // It begins with those that failed, also where there are no others.
    point_to("/usr/bin/tail");
    assert_eq!(host.run(&["restart", "zone"]).code, Some(1));
    let failed = host.ps().into_iter().filter(|i| i["state"] == "failed").count();
    assert_eq!(failed, 4, "{}", host.story());
    point_to("/bin/sleep");
    let all = host.ok(&["restart", "zone", "--rolling"]).out;
    assert!(all.starts_with("4 instances restarted and ready again"), "{all}");
}

#[test]
fn a_restart_with_a_key_happens_once() {
    let host = Host::start(&zones(1, &[], ""));
    let old = host.ready("zone.0");
    host.ok(&["restart", "zone.0", "--key", "k1"]);
    let new = host.ready_again(&old);
    let told = host.ok(&["restart", "zone.0", "--key", "k1", "--json"]).json();
    assert_eq!((&told[0]["run_before"], &told[0]["run"]), (&old["run"], &new["run"]), "{told}");
    assert_eq!(host.ready("zone.0")["run"], new["run"], "it was restarted twice");
    host.ok(&["restart", "zone.0", "--key", "k2"]);
    assert_ne!(host.ready("zone.0")["run"], new["run"]);
}

#[test]
fn a_bad_update_stops_by_itself_and_a_good_one_heals_it() {
    let keys = "restart = { backoff = { min = \"10ms\", max = \"20ms\" }, give_up = { failures = 2 } }";
    let host = Host::start(&zones(4, &[], keys));
    let before = ready_all(&host, 4);
    let bad = zones(4, &["--no-such-option"], keys);
    host.apply(&bad);
    let failed = until("one of them has failed", || {
        let failed = host.ps().into_iter().find(|i| i["state"] == "failed");
        failed.ok_or_else(|| format!("{:#?}", host.ps()))
    });
    // A plan follows every change of the state. A further change makes one more for certain.
    host.apply(&format!("{bad}\n[process.other]\n{}", zone(&[])));
    host.ready("other.0");
    let hit: Vec<Value> = host.events("").into_iter().filter(|e| e["kind"] == "exited").collect();
    assert!(hit.iter().all(|e| e["instance"] == failed["instance"]), "it went on:\n{}", host.story());
    let others = before.iter().filter(|old| old["instance"] != failed["instance"]);
    for old in others {
        let now = host.ready(old["instance"].as_str().expect("a name"));
        assert_eq!((&now["run"], &now["pid"]), (&old["run"], &old["pid"]), "it was taken along: {now}");
    }
    host.apply(&zones(4, &["--bind", "127.0.0.1"], keys));
    for old in &before {
        host.ready_again(old);
    }
}

#[test]
fn a_heartbeat_timeout_changes_without_a_restart() {
    let beat = |timeout: &str| {
        let keys =
            format!("heartbeat = {{ mode = \"native\", interval = \"200ms\", timeout = \"{timeout}\" }}");
        zones(1, &[], &keys)
    };
    let host = Host::start(&beat("20m"));
    let old = host.ready("zone.0");
    host.write(&beat("2s"));
    let plan = host.run(&["plan", "--json"]);
    assert_eq!(plan.code, Some(10), "something would change: {plan:?}");
    let applied = host.apply(&beat("2s"));
    assert_eq!(applied["plan"]["changed"][0]["restarts"], false, "{applied}");
    assert_eq!(host.run(&["plan"]).code, Some(0), "nothing is left to change");
    let same = host.ready("zone.0");
    assert_eq!((&same["run"], &same["pid"]), (&old["run"], &old["pid"]), "it was restarted");
    signal(pid(&old), Signal::SIGSTOP);
    let new = host.ready_again(&old);
    assert_eq!(new["last_exit"]["cause"], "hang", "{new}");
}

#[test]
fn reload_applies_the_file_until_somebody_else_has_applied_another() {
    let host = Host::start(&zones(1, &[], ""));
    let old = host.ready("zone.0");
    host.write(&zones(2, &[], ""));
    signal(host.agent_pid(), Signal::SIGHUP);
    host.ready("zone.1");
    until("it is in the audit trail", || {
        let trail = host.ok(&["audit", "--json"]).out;
        let entries = trail.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let mut entries = entries.filter(|entry| entry["who"] == "SIGHUP" && entry["status"] == 200);
        let change = entries.next().and_then(|entry| entry["change"].as_str().map(str::to_owned));
        let told =
            change.is_some_and(|change| change.contains("revision 2") && change.contains("changed: zone"));
        if told { Ok(()) } else { Err(trail) }
    });
    // Applied from elsewhere: the file is no longer what the cluster runs.
    let elsewhere = host.folder().join("elsewhere.toml");
    host.write_to(&elsewhere, &zones(3, &[], ""));
    host.ok(&["apply", elsewhere.to_str().expect("UTF-8")]);
    host.ready("zone.2");
    host.write(&zones(1, &[], ""));
    let said = host.ok(&["reload"]).out;
    assert!(said.starts_with("spec-drift"), "{said:?}");
    let told = host.ok(&["reload", "--json"]).json();
    assert_eq!(told["message"], said.trim());
    let trail = host.ok(&["audit", "--json"]).out;
    assert!(trail.contains("\"POST /v1/reload\"") && trail.contains("\"change\":\"spec-drift"), "{trail}");
    let status = host.ok(&["status", "--json"]).json();
    assert!(status["spec_drift"].as_str().is_some_and(|drift| drift.contains("zone")), "{status}");
    assert_eq!(host.ps().len(), 3, "a reload took back what was applied");
    // Whoever means it, applies it.
    host.ok(&["apply", host.config().to_str().expect("UTF-8")]);
    until("one is left", || {
        let all = host.ps();
        if all.len() == 1 { Ok(()) } else { Err(format!("{all:#?}")) }
    });
    host.ok(&["reload"]);
    assert_eq!(host.ok(&["status", "--json"]).json()["spec_drift"], Value::Null);
    assert_eq!(host.ready("zone.0")["run"], old["run"]);
    // A file with a fault changes nothing.
    host.write("[process.zone]\ncomand = []\n");
    let refused = host.run(&["reload"]);
    assert_eq!(refused.code, Some(4), "{refused:?}");
    assert!(refused.err.contains("command"), "the fault is not named: {}", refused.err);
    assert_eq!(host.ready("zone.0")["run"], old["run"]);
}

/// Asked to end, it drains: it says so, plays on, and ends when its players have left.
const DRAINER: &str = r#"
import json, os, socket
run = os.environ["BIGBROTHER_RUN"]
agent = socket.socket(socket.AF_UNIX)
agent.connect(os.environ["BIGBROTHER_SOCKET"])
agent.settimeout(0.1)
def say(method, **params):
    agent.sendall(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode() + b"\n")
say("hello", client="drainer", version="1", state="ready")
while not os.path.exists("empty." + run):
    say("heartbeat")
    try: lines = agent.recv(65536).splitlines()
    except TimeoutError: continue
    for line in lines:
        message = json.loads(line)
        if message.get("method") == "shutdown":
            with open("shutdown.new", "w") as file: json.dump(message["params"], file)
            os.rename("shutdown.new", "shutdown." + run)
            say("draining")
say("stopping")
"#;

#[test]
fn a_run_with_players_drains_before_an_update_replaces_it() {
    let game = |region: &str| {
        format!(
            "[process.zone]\n{}env = {{ REGION = \"{region}\" }}\nstop = {{ timeout = \"2s\" }}\n\
             heartbeat = {{ mode = \"native\", interval = \"200ms\", timeout = \"30s\" }}\n",
            python(DRAINER)
        )
    };
    let host = Host::start(&game("eu"));
    let old = host.ready("zone.0");
    host.apply(&game("us"));
    let asked: Value = until("it was asked to end", || {
        let file = host.data("zone.0").join(format!("shutdown.{}", old["run"]));
        let text = fs::read(file).map_err(|e| e.to_string())?;
        serde_json::from_slice(&text).map_err(|e| e.to_string())
    });
    assert_eq!(asked, json!({ "reason": "update", "deadline_ms": 2 * 3600 * 1000 }));
    let draining = host.wait("zone.0", "draining", |i| i["state"] == "draining");
    assert_eq!(draining["run"], old["run"]);
    // A server without players in the drain would have been ended after stop.timeout.
    let beats = |i: &Value| i["heartbeat"]["age_ms"].as_u64();
    let began = std::time::Instant::now();
    until("it drains for longer than stop.timeout", || {
        let now = host.instance("zone.0");
        assert_eq!((&now["run"], &now["state"]), (&old["run"], &"draining".into()), "{now}");
        assert!(beats(&now).is_some_and(|age| age < 30_000), "{now}");
        if began.elapsed().as_secs() >= 4 { Ok(()) } else { Err("not yet".to_owned()) }
    });
    assert!(alive(pid(&old)));
    fs::write(host.data("zone.0").join(format!("empty.{}", old["run"])), "").expect("a file");
    let new = host.ready_again(&old);
    assert_eq!((&new["last_exit"]["cause"], &new["last_exit"]["code"]), (&"stop".into(), &0.into()), "{new}");
    let env = fs::read(format!("/proc/{}/environ", pid(&new))).expect("alive");
    assert!(String::from_utf8_lossy(&env).contains("REGION=us"));
}
