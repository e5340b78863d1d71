//! Rounds of SIGKILL at random moments: of agent, keeper or both, while instances start, die, hang and stop.
//!
//! `BIGBROTHER_TEST_ROUNDS` sets how many, `BIGBROTHER_TEST_SEED` repeats a run that failed.

use std::time::Duration;

use fastrand::Rng;
use serde_json::json;

use super::host::{Cgroups, Host, signal};

const ALL: [&str; 7] = ["beat.0", "beat.1", "mute.0", "mute.1", "stubborn.0", "zone.0", "zone.1"];

fn household(host: &Host) {
    let (zone, beat) = (host.zone("0"), host.beater());
    let mute = host.witness(&["/bin/sleep", "600"]);
    // It ignores SIGTERM, and so does what it leaves behind.
    let stubborn = host.witness(&["/bin/sh", "-c", "trap '' TERM; exec sleep 600"]);
    host.write_config(&format!(
        r#"
[process.zone]
command = {zone}
count = 2
heartbeat = {{ mode = "native", interval = "200ms", timeout = "2s" }}
restart = {{ backoff = false, give_up = false }}

[process.beat]
command = {beat}
count = 2
heartbeat = {{ mode = "notify", interval = "200ms", timeout = "2s" }}
restart = {{ backoff = false, give_up = false }}

[process.mute]
command = {mute}
count = 2
ready = {{ mode = "spawned", after = "10ms" }}
heartbeat = {{ mode = "none" }}
restart = {{ backoff = false, give_up = false }}

[process.stubborn]
command = {stubborn}
ready = {{ mode = "spawned", after = "10ms" }}
heartbeat = {{ mode = "none" }}
restart = {{ backoff = false, give_up = false }}
stop = {{ timeout = "200ms" }}
"#
    ));
}

/// What happens to the games right before agent or keeper dies.
fn disturb(host: &Host, rng: &mut Rng) -> String {
    let name = *rng.choice(&ALL).unwrap();
    let pid = host.games().get(name).and_then(|pids| pids.first().copied());
    let process = name.split('.').next().unwrap();
    // An agent that is just starting answers nobody: then this round is without that disturbance.
    let ask = |path: &str, target| host.post(path, &json!({ "target": target })).is_ok();
    match rng.u32(0..6) {
        0 | 1 => {
            if let Some(pid) = pid {
                signal(pid, libc::SIGKILL);
            }
            format!("kill {name} {pid:?}")
        }
        2 => {
            // Only the watched ones are found out.
            let watched = *rng.choice(&["beat.0", "beat.1", "zone.0", "zone.1"]).unwrap();
            if let Some(pid) = host.games().get(watched).and_then(|pids| pids.first()) {
                signal(*pid, libc::SIGSTOP);
            }
            format!("hang {watched}")
        }
        3 => format!("restart {name}: {}", ask("/v1/restart", json!({ "instance": name }))),
        4 => format!("restart {process}: {}", ask("/v1/restart", json!({ "process": process }))),
        _ => {
            let stopped = ask("/v1/stop", json!({ "process": process }));
            std::thread::sleep(Duration::from_millis(rng.u64(0..20)));
            let mut started = ask("/v1/start", json!({ "process": process }));
            while stopped && !started {
                std::thread::sleep(Duration::from_millis(10));
                started = ask("/v1/start", json!({ "process": process }));
            }
            format!("stop and start {process}: {stopped}, {started}")
        }
    }
}

fn rounds(cgroups: Cgroups) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("BIGBROTHER_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    let count = number("BIGBROTHER_TEST_ROUNDS").unwrap_or(30);
    eprintln!("BIGBROTHER_TEST_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let mut host = Host::new(cgroups);
    household(&host);
    host.start();
    host.settled(&ALL);
    for round in 0..count {
        let mut story = vec![disturb(&host, &mut rng)];
        if rng.bool() {
            story.push(disturb(&host, &mut rng));
        }
        std::thread::sleep(Duration::from_micros(rng.u64(0..30_000)));
        let victim = rng.u32(0..3);
        if victim != 1 {
            host.kill_agent();
        }
        if victim != 0 {
            host.kill_keeper();
        }
        eprintln!(
            "round {round}: {story:?}, then SIGKILL of {}",
            ["agent", "keeper", "both"][victim as usize]
        );
        // Sometimes the next death comes before the new ones have met.
        if rng.u32(0..4) == 0 {
            if !host.has_agent() {
                host.launch_agent();
            }
            std::thread::sleep(Duration::from_micros(rng.u64(0..60_000)));
            host.kill_agent();
            host.kill_keeper();
        }
        if !host.has_agent() {
            host.start();
        }
        host.settled(&ALL);
    }
}

#[test]
fn sigkill_at_any_moment_doubles_and_loses_nobody() {
    rounds(Cgroups::Own);
}

#[test]
fn sigkill_at_any_moment_doubles_and_loses_nobody_without_cgroups() {
    rounds(Cgroups::None);
}
