//! A keeper that was killed, and the next one.

use std::fs;
use std::time::Duration;

use bigbrother::keeper::process::stat;
use bigbrother::keeper::protocol::{End, Reply, Request, RunId, RunRecord, Stage};

use super::host::{Host, KILLED, alive, on_both, processes_with, spawn, until, until_true};

/// Spawns one long run with a keeper that dies at this point, then starts another keeper and compares what
/// it says with what is there.
fn dies_at(mut host: Host, point: &str) {
    let seconds = format!("4{:07}", u64::from(std::process::id()) * 7 % 9_999_999);
    let mut agent = host.start_with(&[("BIGBROTHER_FAULT", point)]);
    agent.hello();
    spawn(&agent, host.spawn_of(1, "zone.1", &["/bin/sleep", &seconds]));
    let first =
        until(&format!("{point}: the keeper dies, or the run is spawned"), || match agent.receive() {
            Ok(Some((Reply::Spawned { pid, .. }, _))) => Ok(Some(pid)),
            Err(_) => Ok(None),
            other => Err(format!("{other:?}")),
        });
    if let Some(pid) = first {
        // The later points need an end: of itself, or by a kill.
        if point.contains("kill") {
            agent.send(&Request::Kill { run: RunId(1) });
        } else {
            // SAFETY: our own run's process.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        if point == "after-acknowledge" {
            agent.gone(1);
            agent.send(&Request::Acknowledge { run: RunId(1) });
        }
    }
    host.keeper_ends();

    let mut agent = host.start();
    let listing = agent.hello();
    let there = processes_with(&seconds);
    match listing.runs.as_slice() {
        [] => assert_eq!((there.as_slice(), point), (&[] as &[i32], "after-acknowledge")),
        [RunRecord { stage: Stage::Gone { .. }, .. }] => {
            assert_eq!(there, [] as [i32; 0], "{point}: gone, and yet there");
            if matches!(point, "before-gone" | "after-gone") {
                let stage = listing.runs[0].stage;
                assert_eq!(stage, Stage::Gone { end: KILLED, fenced: false }, "{point}: it was seen to end");
            }
        }
        [RunRecord { stage: Stage::Running, pid, note, .. }] => {
            // It may still be on its way into the exec, or out of the door.
            until(&format!("{point}: one run or none"), || {
                let there = processes_with(&seconds);
                let right = there == [*pid] || (there.is_empty() && !alive(*pid));
                if right { Ok(()) } else { Err(format!("{there:?}, main {pid}")) }
            });
            assert_eq!(note, b"note");
            agent.send(&Request::Kill { run: RunId(1) });
            agent.gone(1);
        }
        other => panic!("{point}: {other:?}"),
    }
    // The instance is free, and what comes next is the only one.
    spawn(&agent, host.spawn_of(2, "zone.1", &["/bin/sleep", &seconds]));
    let pid = agent.spawned(2);
    if point == "child-before-pid" {
        // That child sleeps 0.3 s; if it went on then, it would show.
        std::thread::sleep(Duration::from_millis(600));
    }
    assert_eq!(processes_with(&seconds), [pid], "{point}");
}

#[test]
fn a_keeper_killed_at_any_point_leaves_no_second_run_and_loses_none() {
    let points = [
        "after-intent",
        "child-before-pid",
        "child-after-pid",
        "child-before-exec",
        "after-clone",
        "before-spawned",
        "after-reap",
        "before-gone",
        "after-gone",
        "before-kill",
        "after-kill",
        "after-acknowledge",
    ];
    for point in points {
        on_both(|host| dies_at(host, point));
    }
}

/// Killed as it makes a child, it has its lock until that child's first step.
#[test]
fn a_keeper_whose_lock_outlives_it_for_a_moment_is_waited_for() {
    let mut host = Host::new(true);
    fs::create_dir(&host.runtime).unwrap();
    let held = bigbrother::lock::take(&host.runtime.join("keeper.lock")).unwrap().expect("the lock is free");
    let runtime = host.runtime.clone();
    let released = std::thread::spawn(move || {
        // Made just before the keeper asks for its lock.
        until_true("the keeper comes up", || runtime.join("fifo").exists());
        std::thread::sleep(Duration::from_millis(100));
        drop(held);
    });
    host.greeted();
    released.join().unwrap();
}

#[test]
fn a_new_keeper_adopts_and_sees_how_adopted_runs_end() {
    on_both(|mut host| {
        let mut agent = host.greeted();
        let script = "echo one; while ! [ -e $GO ]; do sleep 0.02; done; echo two; exit 7";
        let mut request = host.shell(1, "zone.1", script);
        let go = host.logs.join("go");
        request.env.push(format!("GO={}", go.display()));
        spawn(&agent, request);
        let pid = agent.spawned(1);
        agent.send(&Request::Note { run: RunId(1), note: b"new note".to_vec() });
        spawn(&agent, host.shell(2, "zone.2", "exit 2"));
        agent.gone(2);
        host.log_has("zone.1", "one\n");
        host.kill_keeper();

        let mut agent = host.start();
        let listing = agent.hello();
        assert_eq!(listing.strays, []);
        let [one, two] = listing.runs.as_slice() else { panic!("{listing:?}") };
        assert_eq!((one.pid, one.stage, one.note.as_slice()), (pid, Stage::Running, &b"new note"[..]));
        assert_eq!(two.stage, Stage::Gone { end: End::Code(2), fenced: false });
        fs::write(go, "").unwrap();
        // The kernel tells (Linux 6.15), or its zombie does; it was never our child.
        assert_eq!(agent.gone(1).0, End::Code(7));
        until_true("the log goes on", || host.log("zone.1", "stdout.log") == "one\ntwo\n");
    });
}

#[test]
fn deaths_that_nobody_watched_are_unknown_and_their_leftovers_are_killed() {
    on_both(|mut host| {
        let mut agent = host.greeted();
        let mark = format!("3{}", std::process::id());
        spawn(&agent, host.shell(1, "zone.1", &format!("setsid sleep {mark} & setsid sleep {mark} & wait")));
        let pid = agent.spawned(1);
        until_true("both sleep", || processes_with(&mark).iter().filter(|p| **p != pid).count() == 2);
        host.kill_keeper();
        // SAFETY: our own run's process.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        until_true("the main process is gone without a trace", || stat(pid).is_none());
        let mut agent = host.start();
        let listing = agent.hello();
        assert_eq!(listing.strays, ["zone.1".parse().unwrap()]);
        assert_eq!(listing.runs[0].stage, Stage::Gone { end: End::Unknown, fenced: false });
        assert_eq!(processes_with(&mark), [] as [i32; 0]);
    });
}

#[test]
fn a_ledger_of_another_boot_is_wiped_and_a_reused_pid_is_not_adopted() {
    let mut host = Host::new(true);
    let mut agent = host.greeted();
    spawn(&agent, host.spawn_of(1, "zone.1", &["/bin/sleep", "1000"]));
    let pid = agent.spawned(1);
    host.kill_keeper();
    // The process is there, but the record's window is a second earlier: as if the pid were reused.
    let path = host.runtime.join("ledger");
    let mut ledger = fs::read(&path).unwrap();
    for word in [3, 4] {
        let at = 4096 + word * 8;
        let time = u64::from_ne_bytes(ledger[at..at + 8].try_into().unwrap());
        ledger[at..at + 8].copy_from_slice(&(time - 1_000_000_000).to_ne_bytes());
    }
    fs::write(&path, &ledger).unwrap();
    let mut agent = host.start();
    let listing = agent.hello();
    assert_eq!(listing.runs[0].stage, Stage::Gone { end: End::Unknown, fenced: false });
    assert!(!alive(pid), "it lay in our cgroup without a certain record");

    spawn(&agent, host.spawn_of(2, "zone.1", &["/bin/sleep", "1000"]));
    let pid = agent.spawned(2);
    host.kill_keeper();
    let mut ledger = fs::read(&path).unwrap();
    ledger[20] ^= 1; // in the boot id
    fs::write(&path, &ledger).unwrap();
    let listing = host.start().hello();
    assert_eq!(listing.runs, []);
    assert!(!alive(pid));
}
