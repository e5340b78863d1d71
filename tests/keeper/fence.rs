//! The fence: exclusive runs die when nobody renews it.

use bigbrother::keeper::process::boottime_ns;
use bigbrother::keeper::protocol::{Request, RunId, SpawnStep, Stage};

use super::host::{KILLED, alive, on_both, spawn, until_true};

#[test]
fn the_fence_kills_the_exclusive_runs_only() {
    on_both(|mut host| {
        let mut agent = host.greeted();
        for (run, exclusive) in [(1, true), (2, false)] {
            let mut request = host.spawn_of(run, &format!("zone.{run}"), &["/bin/sleep", "1000"]);
            request.exclusive = exclusive;
            spawn(&agent, request);
        }
        let (_, other) = (agent.spawned(1), agent.spawned(2));
        let deadline_ns = boottime_ns() + 300_000_000;
        agent.send(&Request::Fence { deadline_ns });
        let (end, fenced) = agent.gone(1);
        let late = boottime_ns() - deadline_ns;
        assert_eq!((end, fenced), (KILLED, true));
        assert!(late < 1_000_000_000, "{late} ns late");
        assert!(alive(other));
        // None starts any more, until the deadline moves.
        let mut request = host.spawn_of(3, "zone.1", &["/bin/sleep", "1000"]);
        request.exclusive = true;
        spawn(&agent, request.clone());
        assert_eq!(agent.failed(3), (SpawnStep::Busy, libc::ETIME));
        agent.send(&Request::Fence { deadline_ns: boottime_ns() + 600_000_000_000 });
        request.run = RunId(4);
        spawn(&agent, request);
        agent.spawned(4);
    });
}

#[test]
fn the_fence_holds_over_a_restart_of_the_keeper() {
    on_both(|mut host| {
        let mut agent = host.greeted();
        let mut request = host.spawn_of(1, "zone.1", &["/bin/sleep", "1000"]);
        request.exclusive = true;
        spawn(&agent, request);
        spawn(&agent, host.spawn_of(2, "zone.2", &["/bin/sleep", "1000"]));
        let (pid, other) = (agent.spawned(1), agent.spawned(2));
        // Far enough for a busy machine to kill the keeper before.
        let deadline_ns = boottime_ns() + 1_000_000_000;
        agent.send(&Request::Fence { deadline_ns });
        agent.hello();
        host.kill_keeper();
        assert!(boottime_ns() < deadline_ns, "the keeper was to be killed before");
        assert!(alive(pid), "killed too early");
        until_true("the deadline passes", || boottime_ns() > deadline_ns);
        let mut agent = host.start();
        let listing = agent.hello();
        assert_eq!(listing.welcome.unwrap().2, deadline_ns);
        assert!(!alive(pid), "listed before it was killed");
        if matches!(listing.runs[0].stage, Stage::Running | Stage::Exited(_)) {
            assert_eq!(agent.gone(1), (KILLED, true));
        } else {
            assert_eq!(listing.runs[0].stage, Stage::Gone { end: KILLED, fenced: true });
        }
        assert!(alive(other));
    });
}

#[test]
fn a_living_run_becomes_exclusive_and_stays_so_over_a_restart_of_the_keeper() {
    on_both(|mut host| {
        let mut agent = host.greeted();
        for run in [1, 2, 3] {
            let mut request = host.spawn_of(run, &format!("zone.{run}"), &["/bin/sleep", "1000"]);
            request.exclusive = run == 3;
            spawn(&agent, request);
        }
        let (_, other, released) = (agent.spawned(1), agent.spawned(2), agent.spawned(3));
        agent.send(&Request::Exclusive { run: RunId(1), exclusive: true });
        agent.send(&Request::Exclusive { run: RunId(3), exclusive: false });
        agent.send(&Request::Fence { deadline_ns: boottime_ns() + 600_000_000_000 });
        agent.hello();
        host.kill_keeper();
        let mut agent = host.start();
        let listed: Vec<_> = agent.hello().runs.iter().map(|run| (run.run.0, run.exclusive)).collect();
        assert_eq!(listed, [(1, true), (2, false), (3, false)]);
        agent.send(&Request::Fence { deadline_ns: boottime_ns() + 1 });
        assert_eq!(agent.gone(1), (KILLED, true));
        assert!(alive(other) && alive(released));
        // Past the deadline it is too late for another one.
        agent.send(&Request::Exclusive { run: RunId(2), exclusive: true });
        assert_eq!(agent.gone(2), (KILLED, true));
        assert!(alive(released));
    });
}
