//! The keeper dies at each step of spawn and stop (src/keeper/fault.rs) under a living agent, or together with it,
//! and those that come next go on.

use std::os::unix::process::ExitStatusExt;

use serde_json::json;

use super::host::{Cgroups, Host, signal};

pub const ALL: [&str; 3] = ["mute.0", "stubborn.0", "zone.0"];

/// Passed when something is spawned.
const SPAWN: [&str; 6] = [
    "after-intent",
    "child-before-pid",
    "child-after-pid",
    "child-before-exec",
    "after-clone",
    "before-spawned",
];
/// Passed when something ends.
const END: [&str; 6] =
    ["after-reap", "before-gone", "after-gone", "before-kill", "after-kill", "after-acknowledge"];

pub fn household(host: &Host) {
    let zone = host.zone("{port.game}");
    let mute = host.witness(&["/bin/sleep", "600"]);
    let stubborn = host.witness(&["/bin/sh", "-c", "trap '' TERM; exec sleep 600"]);
    host.write_config(&format!(
        r#"
[process.zone]
command = {zone}
ports = {{ game = "udp" }}
heartbeat = {{ mode = "native", interval = "200ms", timeout = "5s" }}
restart = {{ backoff = false, give_up = false }}

[process.mute]
command = {mute}
ready = {{ mode = "spawned", after = "10ms" }}
heartbeat = {{ mode = "none" }}
restart = {{ backoff = false, give_up = false }}

[process.stubborn]
command = {stubborn}
ready = {{ mode = "spawned", after = "10ms" }}
heartbeat = {{ mode = "none" }}
restart = {{ backoff = false, give_up = false }}
stop = {{ timeout = "100ms" }}
"#
    ));
}

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victims {
    /// Whoever comes to the point.
    One,
    /// That one, and at once the other as well.
    Both,
}

/// The keeper dies at the point, another comes; each instance runs once, and has a whole history.
fn dies_at(victims: Victims, cgroups: Cgroups, points: &[&str], disturb: impl Fn(&Host)) {
    for point in points {
        eprintln!("{point}");
        let mut host = Host::new(cgroups);
        household(&host);
        host.own_keeper(Some(point));
        if SPAWN.contains(point) {
            host.launch_agent();
        } else {
            host.start();
            host.settled(&ALL);
            disturb(&host);
        }
        let status = host.own_keeper_ended();
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{point} was passed");
        if victims == Victims::Both {
            host.kill_agent();
        }
        host.own_keeper(None);
        if victims == Victims::Both {
            host.start();
        }
        let views = host.settled(&ALL);
        // And it goes on as ever.
        let before = views["mute.0"].pid.unwrap();
        signal(before, libc::SIGKILL);
        super::host::until("mute.0 is started again", || {
            let view = host.view("mute.0")?;
            super::host::expect(view.state == "ready" && view.pid != Some(before), &view)
        });
        host.settled(&ALL);
    }
}

/// A stop that takes all of the ladder: asked, waited for, killed.
fn restart_stubborn(host: &Host) {
    host.post("/v1/restart", &json!({ "target": { "process": "stubborn" } })).unwrap();
}

#[test]
fn a_keeper_killed_at_any_step_of_a_spawn() {
    dies_at(Victims::One, Cgroups::Own, &SPAWN, |_| ());
}

#[test]
fn a_keeper_killed_at_any_step_of_a_spawn_without_cgroups() {
    dies_at(Victims::One, Cgroups::None, &SPAWN, |_| ());
}

#[test]
fn a_keeper_killed_at_any_step_of_a_stop() {
    dies_at(Victims::One, Cgroups::Own, &END, restart_stubborn);
}

#[test]
fn a_keeper_killed_at_any_step_of_a_stop_without_cgroups() {
    dies_at(Victims::One, Cgroups::None, &END, restart_stubborn);
}

#[test]
fn a_keeper_killed_with_its_agent_at_any_step() {
    dies_at(Victims::Both, Cgroups::Own, &SPAWN, |_| ());
    dies_at(Victims::Both, Cgroups::Own, &END, restart_stubborn);
}

#[test]
fn a_keeper_killed_with_its_agent_at_any_step_without_cgroups() {
    dies_at(Victims::Both, Cgroups::None, &SPAWN, |_| ());
    dies_at(Victims::Both, Cgroups::None, &END, restart_stubborn);
}
