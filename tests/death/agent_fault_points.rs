//! The agent dies at each step of its side of spawn and stop (src/keeper/fault.rs) under a living keeper, or together
//! with it, and those that come next go on.

use std::os::unix::process::ExitStatusExt;

use serde_json::json;

use super::fault_points::{ALL, Victims, household};
use super::host::{Cgroups, Host, expect, signal, until};

/// Passed when something is spawned; the first of three instances, or the last.
const SPAWN: [&str; 12] = [
    "agent-after-hold",
    "agent-before-order",
    "agent-before-order:3",
    "agent-after-order",
    "agent-after-order:3",
    "agent-before-book",
    "agent-after-book",
    "agent-after-spawned",
    "agent-after-spawned:3",
    "agent-before-report",
    "agent-after-report",
    "agent-after-note",
];
/// Passed when something is stopped that has to be killed in the end.
const STOP: [&str; 7] = [
    "agent-before-ask",
    "agent-after-ask",
    "agent-before-kill",
    "agent-after-kill",
    "agent-after-gone",
    "agent-before-acknowledge",
    "agent-after-acknowledge",
];

fn died(victims: Victims, host: &mut Host, point: &str) {
    let status = host.agent_ended();
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{point} was passed");
    if victims == Victims::Both {
        host.kill_keeper();
    }
}

/// All as it should be, and what dies comes back.
fn goes_on(host: &Host, point: &str) {
    let views = host.settled(&ALL);
    // The port that the run was given is the one that clients are told of.
    let zone = &views["zone.0"];
    let told = zone.ports.get("game").map(|port| port.port.to_string());
    let line = std::fs::read_to_string(format!("/proc/{}/cmdline", zone.pid.unwrap())).unwrap();
    let words: Vec<&str> = line.split('\0').collect();
    let given = words.windows(2).find(|pair| pair[0] == "--port").map(|pair| pair[1].to_owned());
    assert_eq!(told, given, "{point}: {zone:?}");
    let before = views["mute.0"].pid.unwrap();
    signal(before, libc::SIGKILL);
    until("mute.0 is started again", || {
        let view = host.view("mute.0")?;
        expect(view.state == "ready" && view.pid != Some(before), &view)
    });
    host.settled(&ALL);
}

fn dies_in_a_spawn(victims: Victims, cgroups: Cgroups) {
    for point in SPAWN {
        eprintln!("{point}");
        let mut host = Host::new(cgroups);
        household(&host);
        host.fault = Some(point);
        host.launch_agent();
        died(victims, &mut host, point);
        host.start();
        goes_on(&host, point);
    }
}

#[test]
fn an_agent_killed_at_any_step_of_a_spawn() {
    dies_in_a_spawn(Victims::One, Cgroups::Own);
}

#[test]
fn an_agent_killed_at_any_step_of_a_spawn_without_cgroups() {
    dies_in_a_spawn(Victims::One, Cgroups::None);
}

/// A host whose agent has died at this point while it did what was asked, with the next agent.
fn died_of(victims: Victims, cgroups: Cgroups, point: &'static str, what: &str) -> Host {
    eprintln!("{point}");
    let mut host = Host::new(cgroups);
    household(&host);
    host.fault = Some(point);
    host.start();
    host.settled(&ALL);
    // The agent may die before it answers.
    let _ = host.post(&format!("/v1/{what}"), &json!({ "target": { "process": "stubborn" } }));
    died(victims, &mut host, point);
    host.start();
    host
}

fn dies_in_a_restart(victims: Victims, cgroups: Cgroups) {
    for point in STOP {
        let host = died_of(victims, cgroups, point, "restart");
        goes_on(&host, point);
    }
}

#[test]
fn an_agent_killed_at_any_step_of_a_restart() {
    dies_in_a_restart(Victims::One, Cgroups::Own);
}

#[test]
fn an_agent_killed_at_any_step_of_a_restart_without_cgroups() {
    dies_in_a_restart(Victims::One, Cgroups::None);
}

/// A stop that was asked for is carried out by whoever comes next.
fn dies_in_a_stop(cgroups: Cgroups) {
    for point in STOP {
        let host = died_of(Victims::One, cgroups, point, "stop");
        until("stubborn.0 is paused, and nothing of it is left", || {
            let view = host.view("stubborn.0")?;
            expect(view.state == "paused" && view.pid.is_none(), &view)?;
            let games = host.games();
            expect(!games.contains_key("stubborn.0"), &games)
        });
        assert_eq!(host.witnessed("stubborn.0").len(), 1, "{point}: it was started once, and never again");
        host.post("/v1/start", &json!({ "target": { "process": "stubborn" } })).unwrap();
        goes_on(&host, point);
    }
}

#[test]
fn an_agent_killed_at_any_step_of_a_stop() {
    dies_in_a_stop(Cgroups::Own);
}

#[test]
fn an_agent_killed_at_any_step_of_a_stop_without_cgroups() {
    dies_in_a_stop(Cgroups::None);
}

#[test]
fn an_agent_killed_with_its_keeper_at_any_step() {
    dies_in_a_spawn(Victims::Both, Cgroups::Own);
    dies_in_a_restart(Victims::Both, Cgroups::Own);
}

#[test]
fn an_agent_killed_with_its_keeper_at_any_step_without_cgroups() {
    dies_in_a_spawn(Victims::Both, Cgroups::None);
    dies_in_a_restart(Victims::Both, Cgroups::None);
}
