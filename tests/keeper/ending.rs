//! A keeper that is replaced or told to end.

use std::fs;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use bigbrother::keeper::protocol::{End, Reply, Request, Stage};

use super::host::{Host, alive, held_sockets, on_both, spawn, until, until_true};

#[test]
fn an_upgrade_keeps_pids_exit_codes_logs_and_sockets() {
    on_both(|mut host| {
        let mut agent = host.greeted();
        let go = host.logs.join("go");
        let script = "echo one; while ! [ -e $GO ]; do sleep 0.02; done; echo two; exit 7";
        let mut request = host.shell(1, "zone.1", script);
        request.env.push(format!("GO={}", go.display()));
        spawn(&agent, request);
        let pid = agent.spawned(1);
        spawn(&agent, host.shell(2, "zone.2", "exit 2"));
        agent.gone(2);
        let (listener, notify) = held_sockets(&host);
        agent.send_with(
            &Request::Hold { instance: "zone.1".parse().unwrap() },
            &[listener.as_raw_fd(), notify.as_raw_fd()],
        );
        host.log_has("zone.1", "one\n");

        agent.send(&Request::Upgrade { program: "/nonexistent".into() });
        agent.expect("a bad upgrade is refused", |r| matches!(r, Reply::Refused { .. }).then_some(()));
        // A program that exists and cannot be executed: everything goes on.
        let bad = host.logs.join("bad");
        fs::write(&bad, "no program").unwrap();
        fs::set_permissions(&bad, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        agent.send(&Request::Upgrade { program: bad.to_str().unwrap().into() });
        agent.expect("a failed upgrade is told", |r| matches!(r, Reply::Refused { .. }).then_some(()));
        spawn(&agent, host.shell(3, "zone.3", "echo three"));
        agent.gone(3);
        host.log_has("zone.3", "three\n");

        agent.send(&Request::Upgrade { program: env!("CARGO_BIN_EXE_bigbrother").into() });
        until("the connection closes", || match agent.receive() {
            Err(_) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        let mut agent = host.connect();
        let listing = agent.hello();
        assert_eq!(listing.welcome.as_ref().unwrap().0, host.keeper_pid(), "another process");
        let stages: Vec<_> = listing.runs.iter().map(|r| (r.pid, r.stage)).collect();
        assert_eq!(stages[0], (pid, Stage::Running));
        assert_eq!(stages[1].1, Stage::Gone { end: End::Code(2), fenced: false });
        let [(_, fds)] = listing.held.as_slice() else { panic!("{listing:?}") };
        assert_eq!(fds.len(), 2);
        let inode = |fd: RawFd| {
            fs::metadata(format!("/proc/self/fd/{fd}")).map(|m| std::os::unix::fs::MetadataExt::ino(&m))
        };
        assert_eq!(inode(fds[1].as_raw_fd()).unwrap(), inode(notify.as_raw_fd()).unwrap());
        fs::write(go, "").unwrap();
        assert_eq!(agent.gone(1).0, End::Code(7), "it is still a child of the keeper");
        until_true("the log goes on", || host.log("zone.1", "stdout.log") == "one\ntwo\n");

        // SIGHUP does the same; the ledger and the next spawn are in order.
        // SAFETY: our own keeper.
        unsafe { libc::kill(host.keeper_pid(), libc::SIGHUP) };
        until("the connection closes", || match agent.receive() {
            Err(_) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        let mut agent = host.connect();
        agent.hello();
        spawn(&agent, host.shell(4, "zone.1", "exit 0"));
        assert_eq!(agent.gone(4).0, End::Code(0));
    });
}

#[test]
fn a_keeper_that_is_told_to_end_leaves_the_runs_and_one_that_is_shut_down_does_not() {
    on_both(|mut host| {
        let mut agent = host.greeted();
        spawn(&agent, host.shell(1, "zone.1", "head -c 60000 /dev/zero; exec sleep 1000"));
        let pid = agent.spawned(1);
        // SAFETY: our own keeper.
        unsafe { libc::kill(host.keeper_pid(), libc::SIGTERM) };
        assert!(host.keeper_ends().success());
        assert!(alive(pid));
        let mut agent = host.start();
        assert_eq!(agent.hello().runs[0].pid, pid);
        agent.send(&Request::Shutdown);
        agent.gone(1);
        assert!(host.keeper_ends().success());
        assert!(!alive(pid));
        assert!(!host.cgroup.exists(), "it leaves no cgroup");
        assert_eq!(fs::read_dir(host.runtime.join("fifo")).unwrap().count(), 0);
    });
}

#[test]
fn a_shutdown_keeps_the_last_words() {
    let mut host = Host::new(true);
    let agent = host.greeted();
    let done = |run: u64| host.logs.join(format!("done{run}"));
    for run in 1..=20 {
        let script = format!("seq 1 5000; > {}; exec sleep 1000", done(run).display());
        spawn(&agent, host.shell(run, &format!("zone.{run}"), &script));
    }
    // 24 kB fit a pipe: each has written all, wherever it is by now.
    until_true("all have written", || (1..=20).all(|run| done(run).exists()));
    agent.send(&Request::Shutdown);
    assert!(host.keeper_ends().success());
    for run in 1..=20 {
        let text = host.log(&format!("zone.{run}"), "stdout.log");
        assert!(text.ends_with("5000\n") && text.lines().count() == 5000, "zone.{run}: {} bytes", text.len());
    }
}

#[test]
fn an_idle_keeper_exits_when_it_was_asked_to() {
    let mut host = Host::new(true);
    host.extra.push("--exit-when-idle".into());
    let mut agent = host.greeted();
    spawn(&agent, host.spawn_of(1, "zone.1", &["/bin/sleep", "7"]));
    agent.spawned(1);
    drop(agent);
    let begun = Instant::now();
    assert!(host.keeper_ends().success());
    assert!(begun.elapsed() > Duration::from_secs(11), "{:?}", begun.elapsed());
}
