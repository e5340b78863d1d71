//! The process socket of a real agent: several watches on a connection, and pings. Without cgroups the test
//! itself may speak for an instance.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bigbrother::client::{Client, Fault, Incoming, WatchChange, WatchEvent};
use bigbrother::spec::ProcessName;
use serde_json::Value;

use crate::agent::{Host, PATIENCE, until};

const SLEEPERS: &str = r#"
[process.lobby]
command = ["/bin/sleep", "600"]
ready = { mode = "spawned", after = "10ms" }
heartbeat = { mode = "none" }

[process.login]
command = ["/bin/sleep", "600"]
ready = { mode = "spawned", after = "10ms" }
heartbeat = { mode = "none" }

[process.zone]
command = ["/bin/sleep", "600"]
ready = { mode = "spawned", after = "10ms" }
heartbeat = { mode = "none" }
"#;

fn without_cgroups(processes: &str) -> Host {
    let mut host = Host::prepare(processes);
    host.agent_args(&["--cgroup", "none"]);
    host.start_agent();
    host
}

fn socket(host: &Host, instance: &str) -> std::path::PathBuf {
    host.runtime_dir().join("i").join(instance).join("api.sock")
}

fn name(process: &str) -> ProcessName {
    process.parse().expect("a name")
}

/// What a client has heard of its watches.
struct Watcher {
    client: Client,
    heard: Vec<WatchEvent>,
    refused: Vec<Fault>,
}

impl Watcher {
    fn of(host: &Host) -> Watcher {
        host.ready("lobby.0");
        let client = Client::connect(&socket(host, "lobby.0"), Duration::from_secs(1)).expect("a connection");
        Watcher { client, heard: Vec::new(), refused: Vec::new() }
    }

    fn poll(&mut self) {
        for incoming in self.client.poll() {
            match incoming {
                Incoming::Watch(event) => self.heard.push(event),
                Incoming::Refused(fault) => self.refused.push(fault),
                _ => {}
            }
        }
    }

    fn hears(&mut self, what: &str, holds: impl Fn(&WatchEvent) -> bool) {
        until(what, || {
            self.poll();
            if self.heard.iter().any(&holds) { Ok(()) } else { Err(format!("{:#?}", self.heard)) }
        });
    }

    fn hears_of(&mut self, instance: &str) {
        self.hears(&format!("{instance} is told"), |event| {
            matches!(&event.change, WatchChange::Put { listing } if listing.instance.to_string() == instance)
        });
    }
}

#[test]
fn a_connection_watches_several_processes_until_it_has_enough_of_one() {
    let host = without_cgroups(SLEEPERS);
    for instance in ["login.0", "zone.0"] {
        host.ready(instance);
    }
    let mut watcher = Watcher::of(&host);
    for process in ["login", "zone"] {
        watcher.client.watch(&name(process));
        let snapshot = |event: &WatchEvent| matches!(&event.change, WatchChange::Snapshot { listings } if listings.len() == 1);
        watcher.hears(&format!("the snapshot of {process}"), |e| e.process == name(process) && snapshot(e));
    }
    // The second watch has not taken the place of the first.
    for (process, second) in [("login", "login.1"), ("zone", "zone.1")] {
        host.ok(&["scale", process, "2"]);
        watcher.hears_of(second);
    }
    watcher.client.unwatch(&name("login"));
    host.ok(&["scale", "login", "3"]);
    host.ready("login.2");
    host.ok(&["scale", "zone", "3"]);
    watcher.hears_of("zone.2");
    let late: Vec<_> =
        watcher.heard.iter().filter(|event| format!("{event:?}").contains("login.2")).collect();
    assert!(late.is_empty(), "told of what it does not watch any more: {late:#?}");
}

#[test]
fn the_watches_of_a_connection_are_bounded_and_the_same_again_is_not_one_more() {
    let host = without_cgroups(SLEEPERS);
    let mut watcher = Watcher::of(&host);
    for number in 0..12 {
        watcher.client.watch(&name(&format!("p{number}")));
        watcher.hears("its snapshot", |event| event.process == name(&format!("p{number}")));
    }
    watcher.heard.clear();
    watcher.client.watch(&name("p3"));
    watcher.hears("the same again, from the start", |event| event.process == name("p3"));
    assert_eq!(watcher.refused, []);
    watcher.client.watch(&name("p12"));
    until("one too many is refused", || {
        watcher.poll();
        match watcher.refused.first() {
            Some(fault) if fault.code == Fault::WATCHES && fault.message.contains("unwatch") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

const BEATING: &str = r#"
[process.game]
command = ["/bin/sleep", "600"]
ready = { mode = "native" }
heartbeat = { mode = "native", interval = "200ms", timeout = "2s" }
"#;

#[test]
fn a_silent_process_is_pinged_in_time_to_answer() {
    let host = without_cgroups(BEATING);
    host.wait("game.0", "started", |i| i["state"] == "starting" && i["pid"].is_u64());
    let mut game = UnixStream::connect(socket(&host, "game.0")).expect("a connection");
    game.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut lines = BufReader::new(game.try_clone().expect("a descriptor")).lines();
    let mut say = |method: &str| {
        let line = format!("{{\"jsonrpc\":\"2.0\",\"method\":\"{method}\"}}\n");
        game.write_all(line.as_bytes()).expect("the agent listens");
    };
    say("hello");
    say("ready");
    say("heartbeat");
    let run = host.ready("game.0")["run"].clone();
    // Nothing but answers to pings keeps it alive, for longer than its timeout.
    for beat in 0..4 {
        let line = lines.next().expect("a line").expect("in time");
        let message: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(message["method"], "ping", "{beat}: {line}");
        say("heartbeat");
    }
    let now = host.instance("game.0");
    assert_eq!((&now["run"], &now["state"]), (&run, &"ready".into()), "{}", host.story());
    // And one that does not answer is hung.
    let next = host.wait("game.0", "killed", |i| i["run"] != run);
    assert_eq!(next["last_exit"]["cause"], "hang", "{next}");
}
