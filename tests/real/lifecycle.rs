//! The life of instances: order, number, ports, restarts, giving up, and ends that leave nobody behind.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::agent::{Host, alive, pid, signal, until};
use crate::{python, zone};

fn states(host: &Host) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    host.ps().iter().map(|i| (text(&i["instance"]), text(&i["state"]))).collect()
}

fn all_ready(host: &Host, count: usize) -> Vec<Value> {
    until(&format!("{count} ready instances"), || {
        let all = host.ps();
        let ready = all.iter().filter(|i| i["state"] == "ready").count();
        if ready == count && all.len() == count { Ok(all) } else { Err(format!("{:?}", states(host))) }
    })
}

#[test]
fn scale_adds_and_takes_the_highest_and_leaves_the_others_alone() {
    let host = Host::start(&format!("[process.zone]\n{}count = 2\n", zone(&[])));
    let two = all_ready(&host, 2);
    host.ok(&["scale", "zone", "5"]);
    let five = all_ready(&host, 5);
    assert_eq!(five[4]["instance"], "zone.4");
    host.ok(&["scale", "zone", "1"]);
    let one = all_ready(&host, 1);
    host.ok(&["scale", "zone", "default"]);
    let again = all_ready(&host, 2);
    for now in [&five[0], &one[0], &again[0]] {
        assert_eq!(
            (&now["pid"], &now["run"]),
            (&two[0]["pid"], &two[0]["run"]),
            "zone.0 was restarted: {now}"
        );
    }
    assert!(five[1..].iter().all(|gone| !alive(pid(gone))), "scaled down, but alive: {five:#?}");
    assert_eq!(host.in_cgroup(), again.iter().map(pid).collect::<Vec<_>>());
}

#[test]
fn an_instance_waits_for_those_that_it_comes_after() {
    let host = Host::start(&format!(
        "[process.login]\n{}ready = {{ mode = \"exec\", command = [\"/usr/bin/test\", \"-e\", \"{{data}}/open\"] }}\n\
         heartbeat = {{ mode = \"none\" }}\n[process.zone]\n{}after = [\"login\"]\n",
        zone(&[]),
        zone(&[])
    ));
    let waits = host.wait("zone.0", "waiting for login", |i| i["state"] == "waiting");
    assert!(waits["reason"].as_str().is_some_and(|why| why.contains("login")), "{waits}");
    host.wait("login.0", "starting", |i| i["state"] == "starting" && !i["pid"].is_null());
    assert_eq!(host.instance("zone.0")["run"], Value::Null);
    fs::write(host.data("login.0").join("open"), "").expect("a file");
    host.ready("zone.0");
    let at = |name: &str, kind: &str| {
        let events = host.events(name);
        events.iter().find(|e| e["kind"] == kind).map(|e| e["seq"].as_u64()).expect("the event")
    };
    assert!(at("login.0", "ready") < at("zone.0", "started"));
}

#[test]
fn games_live_on_while_the_agent_is_away_and_a_death_meanwhile_is_told_truly() {
    let mut host = Host::start(&format!("[process.zone]\n{}count = 2\n", zone(&[])));
    let before = all_ready(&host, 2);
    for how in [Signal::SIGKILL, Signal::SIGTERM] {
        host.end_agent(how);
        assert!(before.iter().all(|i| alive(pid(i))), "the agent's end by {how} took a game along");
        let said = host.agent_log().contains("this agent ends; the games go on");
        assert_eq!(said, how == Signal::SIGTERM, "{}", host.agent_log());
        host.start_agent();
        for (old, new) in before.iter().zip(all_ready(&host, 2)) {
            for key in ["pid", "run", "ports"] {
                assert_eq!(new[key], old[key], "{key} after {how}");
            }
        }
    }
    host.end_agent(Signal::SIGTERM);
    signal(pid(&before[1]), Signal::SIGABRT);
    until("it is dead", || if alive(pid(&before[1])) { Err("alive".to_owned()) } else { Ok(()) });
    host.start_agent();
    let new = host.ready_again(&before[1]);
    assert_eq!(new["last_exit"]["cause"], "signal", "{new}");
    assert_eq!(new["last_exit"]["signal"], "SIGABRT", "{new}");
    assert_eq!(new["ports"], before[1]["ports"]);
}

#[test]
fn restarts_by_hand_count_for_nothing() {
    let host = Host::start(&format!(
        "[process.zone]\n{}restart = {{ backoff = {{ min = \"5m\", max = \"5m\" }}, give_up = {{ failures = 2 }} }}\n",
        zone(&[])
    ));
    let mut old = host.ready("zone.0");
    for round in 1..=4 {
        let outcome = host.ok(&["restart", "zone.0", "--json"]).json();
        assert_eq!(outcome[0]["ok"], true, "{outcome}");
        let new = host.instance("zone.0");
        assert_ne!(new["run"], old["run"]);
        assert_eq!((&new["state"], &new["restarts"]), (&"ready".into(), &round.into()), "{new}");
        assert_eq!(new["last_exit"]["cause"], "operator", "{new}");
        assert!(!alive(pid(&old)));
        old = new;
    }
    let kinds = host.kinds("zone.0");
    assert!(!kinds.iter().any(|kind| kind == "backoff" || kind == "failed"), "{kinds:?}");
}

#[test]
fn a_program_that_keeps_failing_is_given_up_and_start_tries_it_again() {
    let host = Host::start(
        r#"
[process.zone]
command = ["/bin/sh", "-c", "test -e repaired && exec sleep 1000; exit 7"]
ready = { mode = "spawned", after = "200ms" }
heartbeat = { mode = "none" }
restart = { backoff = { min = "10ms", max = "20ms" }, give_up = { failures = 3, within = "10m" } }
"#,
    );
    let failed = host.wait("zone.0", "failed", |i| i["state"] == "failed");
    assert_eq!((&failed["last_exit"]["cause"], &failed["last_exit"]["code"]), (&"exit".into(), &7.into()));
    let kinds = host.kinds("zone.0");
    let count = |kind: &str| kinds.iter().filter(|k| *k == kind).count();
    // More failures than three: the fourth is the last. The first restart does not wait.
    assert_eq!((count("started"), count("backoff"), count("failed")), (4, 2, 1), "{kinds:?}");
    assert_eq!(host.run(&["status"]).code, Some(1), "a failed instance must show in the status");
    fs::write(host.data("zone.0").join("repaired"), "").expect("a file");
    host.ok(&["start", "zone"]);
    assert_eq!(host.instance("zone.0")["state"], "ready");
}

/// Forks twice, leaves its session and ignores SIGTERM; says who it is when all of that is done.
const FUGITIVE: &str = r#"
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with open("fugitive.new", "w") as file: file.write(str(os.getpid()))
        os.rename("fugitive.new", "fugitive")
    else:
        os._exit(0)
    while True: time.sleep(60)
while True: time.sleep(60)
"#;

fn nobody_escapes(agent_args: &[&str]) {
    let mut host =
        Host::prepare(&format!("[process.zone]\n{}heartbeat = {{ mode = \"none\" }}\n", python(FUGITIVE)));
    host.agent_args(agent_args);
    host.start_agent();
    let file = host.data("zone.0").join("fugitive");
    let read = || {
        let text = fs::read_to_string(&file).map_err(|e| e.to_string())?;
        text.parse::<i32>().map_err(|e| format!("{text:?}: {e}"))
    };
    let fugitive = until("it has run away", read);
    let main = host.ready("zone.0");
    assert!(alive(fugitive) && fugitive != pid(&main));
    // With its instance it dies, whether that is stopped or its main process is killed.
    fs::remove_file(&file).expect("the file");
    signal(pid(&main), Signal::SIGKILL);
    let second = until("the next has run away", read);
    assert!(!alive(fugitive), "it outlived its instance's death: the next run is {second}");
    host.ready_again(&main);
    host.ok(&["stop", "zone"]);
    assert!(!alive(second), "it outlived its instance's stop");
    let mine = [host.agent_pid(), host.keeper_pid().expect("a keeper")];
    let left: Vec<i32> = host.processes().into_iter().filter(|pid| !mine.contains(pid)).collect();
    assert_eq!(left, [0; 0]);
}

#[test]
fn a_child_that_ran_away_dies_with_its_instance() {
    nobody_escapes(&[]);
}

#[test]
fn a_child_that_ran_away_dies_with_its_instance_without_cgroups() {
    nobody_escapes(&["--cgroup", "none"]);
}

#[test]
fn the_logs_of_agent_and_keeper_are_an_object_a_line_for_who_asks_for_that() {
    let mut host = Host::prepare(&format!("[process.zone]\n{}", zone(&[])));
    host.agent_env(&["BIGBROTHER_LOG_FORMAT=json", "BIGBROTHER_LOG=debug"]);
    host.start_agent();
    host.ready("zone.0");
    host.end_agent(Signal::SIGTERM);
    let log = host.agent_log();
    let lines: Vec<&str> = log.lines().filter(|line| !line.is_empty() && !line.starts_with("--- ")).collect();
    assert!(!lines.is_empty(), "{log}");
    for line in lines {
        let object: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(object["level"].is_string() && object["timestamp"].is_string(), "{line}");
        assert!(object["message"].is_string(), "{line}");
    }
}
