//! A crash that the keeper answers by itself: whatever dies on the way, there is one run, and the agent knows of it.

use std::os::unix::process::ExitStatusExt;

use super::host::{Cgroups, Host, expect, signal, until};

const ALL: [&str; 3] = ["beat.0", "mute.0", "zone.0"];

/// Three kinds of runs, all in service, and what follows a crash of them is ordered.
fn appointed(cgroups: Cgroups, fault: Option<&str>) -> Host {
    let mut host = Host::new(cgroups);
    let (zone, beat, mute) = (host.zone("0"), host.beater(), host.witness(&["/bin/sleep", "100000"]));
    host.write_config(&format!(
        r#"
[process.zone]
command = {zone}
heartbeat = {{ mode = "native", interval = "500ms", timeout = "10s" }}

[process.beat]
command = {beat}
heartbeat = {{ mode = "notify", interval = "500ms", timeout = "10s" }}

[process.mute]
command = {mute}
"#
    ));
    if let Some(fault) = fault {
        host.own_keeper(Some(fault));
    }
    host.start();
    host.settled(&ALL);
    until("what follows a crash is ordered", || {
        let successors = host.metric("bigbrother_successors", "")?;
        expect(successors == ALL.len() as f64, successors)
    });
    host
}

/// The main process of an instance, by its cgroup or its mark: no agent is asked.
fn another_runs(host: &Host, name: &str, before: i32) {
    until(&format!("another run of {name}"), || {
        let games = host.games();
        let pids = games.get(name).cloned().unwrap_or_default();
        expect(pids.len() == 1 && pids[0] != before, pids)
    });
}

#[test]
fn a_crash_is_answered_while_the_agent_stands_still() {
    for cgroups in [Cgroups::Own, Cgroups::None] {
        let host = appointed(cgroups, None);
        let before = host.settled(&ALL);
        signal(host.agent_pid(), libc::SIGSTOP);
        for name in ALL {
            signal(before[name].pid.unwrap(), libc::SIGKILL);
        }
        for name in ALL {
            another_runs(&host, name, before[name].pid.unwrap());
        }
        signal(host.agent_pid(), libc::SIGCONT);
        until("the agent knows of all", || {
            let views = ALL.map(|name| host.view(name));
            let known = |(name, view): (&str, &Result<bigbrother::http::view::InstanceView, String>)| {
                view.as_ref().is_ok_and(|view| view.state == "ready" && view.run > before[name].run)
            };
            expect(ALL.into_iter().zip(&views).all(known), &views)
        });
        let after = host.settled(&ALL);
        for name in ALL {
            let last = after[name].last_exit.as_ref().unwrap();
            assert_eq!(
                (after[name].restarts, last.signal.as_deref(), last.cause.as_str()),
                (1, Some("SIGKILL"), "signal"),
                "{name}"
            );
        }
        assert_eq!(host.metric("bigbrother_successions_total", "").unwrap(), 3.0);
        assert_eq!(host.metric("bigbrother_restarts_total", "cause=\"signal\"").unwrap(), 3.0);
    }
}

#[test]
fn a_keeper_that_dies_on_the_way_loses_and_doubles_nothing() {
    // The last of the three at their start, and the first after that.
    let points = ["after-gone", "after-intent:4", "after-clone:4", "child-after-pid:4", "before-spawned:4"];
    let ways = [false, true].into_iter().flat_map(|frozen| points.map(|point| (point, frozen)));
    // Whoever gets ready by its own word has said it while nobody knew of it.
    for ((point, frozen), victim) in ways.zip(ALL.into_iter().cycle()) {
        println!("{victim} crashes, the keeper dies at {point}, agent frozen: {frozen}");
        let mut host = appointed(Cgroups::Own, Some(point));
        let before = host.settled(&ALL);
        if frozen {
            signal(host.agent_pid(), libc::SIGSTOP);
        }
        signal(before[victim].pid.unwrap(), libc::SIGKILL);
        assert_eq!(host.own_keeper_ended().signal(), Some(libc::SIGKILL), "{point} was passed");
        host.own_keeper(None);
        if frozen {
            signal(host.agent_pid(), libc::SIGCONT);
        }
        until("it is back", || {
            let view = host.view(victim)?;
            expect(view.state == "ready" && view.pid != before[victim].pid, &view)
        });
        let after = host.settled(&ALL);
        // One that died with the keeper before it was a program was one, too.
        let most = if ["after-gone", "before-spawned:4"].contains(&point) { 1 } else { 2 };
        assert!((1..=most).contains(&after[victim].restarts), "{point}, {victim}: {:?}", after[victim]);
        for name in ALL.into_iter().filter(|name| *name != victim) {
            assert_eq!(after[name].run, before[name].run, "{point}, {name}");
        }
    }
}

#[test]
fn one_that_was_revoked_too_late_makes_way() {
    for victim in ALL {
        let host = appointed(Cgroups::Own, None);
        let before = host.settled(&ALL);
        let [keeper] = host.keepers()[..] else { panic!("{:?}", host.keepers()) };
        signal(keeper, libc::SIGSTOP);
        // The keeper will hear of the crash first, and of the operator's wish when the next run has begun.
        signal(before[victim].pid.unwrap(), libc::SIGKILL);
        let target = serde_json::json!({ "target": { "instance": victim } });
        host.post("/v1/restart", &target).unwrap();
        signal(keeper, libc::SIGCONT);
        until("it is back", || {
            let view = host.view(victim)?;
            expect(view.state == "ready" && view.run > before[victim].run, &view)
        });
        let after = host.settled(&ALL)[victim].clone();
        // Three runs, and a number reserved for each.
        assert!(after.run > Some(6), "it has the number of one that was revoked: {after:?}");
        assert_eq!((after.restarts, after.last_exit.unwrap().cause.as_str()), (1, "operator"));
        assert_eq!(host.metric("bigbrother_successions_total", "").unwrap(), 0.0);
        assert_eq!(host.metric("bigbrother_spawn_failures_total", "").unwrap(), 0.0);
    }
}

#[test]
fn an_agent_that_dies_on_the_way_finds_what_has_begun() {
    for agent_first in [false, true] {
        let mut host = appointed(Cgroups::Own, None);
        let before = host.settled(&ALL);
        signal(host.agent_pid(), libc::SIGSTOP);
        if !agent_first {
            signal(before["mute.0"].pid.unwrap(), libc::SIGKILL);
            another_runs(&host, "mute.0", before["mute.0"].pid.unwrap());
        }
        host.kill_agent();
        if agent_first {
            // Whoever judged is gone: nobody follows until the next agent says so.
            signal(before["mute.0"].pid.unwrap(), libc::SIGKILL);
        }
        host.start();
        until("mute.0 is back", || {
            let view = host.view("mute.0")?;
            expect(view.state == "ready" && view.pid != before["mute.0"].pid, &view)
        });
        let view = host.settled(&ALL)["mute.0"].clone();
        assert_eq!(
            view.last_exit.and_then(|last| last.signal).as_deref(),
            Some("SIGKILL"),
            "agent first: {agent_first}"
        );
        assert_eq!(view.restarts, 1, "agent first: {agent_first}");
    }
}
