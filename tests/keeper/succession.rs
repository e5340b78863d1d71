//! What is ordered ahead: started at once after a crash, and after nothing else.

use bigbrother::keeper::protocol::{End, LogTarget, Reply, Request, RunId, Spawn, SpawnStep, Stage, Target};

use super::host::{Agent, Host, KILLED, alive, on_both, spawn, until_true};

fn kill(pid: i32) {
    // SAFETY: kill touches no memory; the process was started by this test's keeper.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
}

fn appoint(agent: &Agent, of: u64, successor: Spawn) {
    agent.send(&Request::Appoint { run: RunId(of), successor: Box::new(successor) });
}

/// How the run ended, and what follows it.
fn succeeded(agent: &mut Agent, run: u64) -> (End, u64) {
    agent.expect_once(&format!("run {run} succeeded"), |reply| match reply {
        Reply::Succeeded { run: RunId(id), end, ago_ns, by } if *id == run => {
            assert!((1..20_000_000_000).contains(ago_ns), "{reply:?}");
            Some((*end, by.0))
        }
        Reply::Gone { run: RunId(id), .. } if *id == run => panic!("run {run} is gone, and nothing follows"),
        _ => None,
    })
}

/// Nothing follows the run: another one is not in the way.
fn nothing_follows(agent: &mut Agent, host: &Host, run: u64) {
    agent.gone(run);
    spawn(agent, host.spawn_of(run + 90, "zone.1", &["/bin/sleep", "1000"]));
    agent.spawned(run + 90);
    let follows = |reply: &&Reply| matches!(reply, Reply::Succeeded { .. });
    assert_eq!(agent.seen.iter().find(follows), None);
    agent.send(&Request::Kill { run: RunId(run + 90) });
    agent.gone(run + 90);
}

#[test]
fn a_crash_is_followed_at_once_and_told_in_order() {
    on_both(|mut host| {
        let mut agent = host.greeted();
        spawn(&agent, host.spawn_of(1, "zone.1", &["/bin/sleep", "1000"]));
        let mut pid = agent.spawned(1);
        for run in 1..6 {
            appoint(&agent, run, host.spawn_of(run + 1, "zone.1", &["/bin/sleep", "1000"]));
            // Heard once this is.
            spawn(&agent, host.spawn_of(run + 50, "zone.2", &["/bin/true"]));
            agent.gone(run + 50);
            kill(pid);
            assert_eq!(succeeded(&mut agent, run), (KILLED, run + 1));
            assert_eq!(
                agent
                    .seen
                    .iter()
                    .filter(|r| matches!(r, Reply::Spawned { run: RunId(id), .. } if *id == run + 1))
                    .count(),
                0
            );
            pid = agent.spawned(run + 1);
            assert!(alive(pid));
        }
        kill(pid);
        assert_eq!(agent.gone(6), (KILLED, false), "each order is carried out once");
    });
}

/// A program whose first thread has left: the SIGCHLD of older kernels speaks of that one, which ended well.
#[test]
fn a_crash_of_another_thread_than_the_first_is_a_crash() {
    const SCRIPT: &str = "import ctypes, os, signal, sys, threading, time
def crash():
    while open('/proc/self/stat').read().split()[2] != 'Z': time.sleep(0.01)
    while not os.path.exists(sys.argv[1]): time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGSEGV) if sys.argv[2] == 'crash' else os._exit(7)
threading.Thread(target=crash).start()
ctypes.CDLL(None).pthread_exit(None)";
    on_both(|mut host| {
        let mut agent = host.greeted();
        for (run, how, end) in
            [(1, "crash", End::Signal { signal: libc::SIGSEGV, core: false }), (11, "exit", End::Code(7))]
        {
            let go = host.logs.join(format!("go-{how}"));
            let args = ["/usr/bin/python3", "-c", SCRIPT, go.to_str().unwrap(), how];
            let mut request = host.spawn_of(run, "zone.1", &args);
            request.rlimits = vec![(libc::RLIMIT_CORE, 0)];
            spawn(&agent, request);
            let pid = agent.spawned(run);
            appoint(&agent, run, host.spawn_of(run + 1, "zone.1", &["/bin/sleep", "1000"]));
            until_true("the first thread has left", || {
                std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
            });
            std::fs::write(&go, "").unwrap();
            assert_eq!(succeeded(&mut agent, run), (end, run + 1));
            kill(agent.spawned(run + 1));
            agent.gone(run + 1);
        }
    });
}

#[test]
fn what_did_not_crash_by_itself_has_no_successor() {
    on_both(|mut host| {
        let mut agent = host.greeted();
        type Case = (&'static str, &'static str, fn(RunId) -> Option<Request>);
        let cases: [Case; 6] = [
            ("it is done", "sleep 0.3; exit 0", |_| None),
            ("revoked", "sleep 0.3; exit 3", |run| Some(Request::Revoke { run })),
            ("killed", "exec sleep 1000", |run| Some(Request::Kill { run })),
            ("asked to end", "exec sleep 1000", |run| {
                Some(Request::Signal { run, signal: libc::SIGTERM, to: Target::Group })
            }),
            ("its output goes elsewhere", "sleep 0.3; exit 3", |run| {
                Some(Request::Logs { run, logs: LogTarget::Null })
            }),
            ("something of it is left", "sleep 1000 & sleep 0.3; exit 3", |_| None),
        ];
        for (run, (name, script, ask)) in (1..).zip(cases) {
            println!("{name}");
            spawn(&agent, host.shell(run, "zone.1", script));
            agent.spawned(run);
            appoint(&agent, run, host.spawn_of(run + 30, "zone.1", &["/bin/sleep", "4711"]));
            if let Some(request) = ask(RunId(run)) {
                agent.send(&request);
            }
            nothing_follows(&mut agent, &host, run);
        }
    });
}

#[test]
fn an_order_goes_with_the_agent_that_gave_it() {
    on_both(|mut host| {
        let mut agent = host.greeted();
        spawn(&agent, host.spawn_of(1, "zone.1", &["/bin/sleep", "1000"]));
        let pid = agent.spawned(1);
        appoint(&agent, 1, host.spawn_of(2, "zone.1", &["/bin/sleep", "1000"]));
        let mut other = host.connect();
        other.hello();
        kill(pid);
        assert_eq!(other.gone(1), (KILLED, false));

        spawn(&other, host.spawn_of(3, "zone.1", &["/bin/sleep", "1000"]));
        let pid = other.spawned(3);
        appoint(&other, 3, host.spawn_of(4, "zone.1", &["/bin/sleep", "1000"]));
        drop((agent, other));
        // It has seen that nobody is there any more when it lets somebody else in.
        let mut third = host.connect();
        kill(pid);
        until_true("the run ends", || !alive(pid));
        let listing = third.hello();
        assert!(!listing.runs.iter().any(|run| run.run == RunId(4)), "{listing:?}");
        // Told in the table, or right behind it.
        if !listing.runs.iter().any(|run| run.run == RunId(3) && matches!(run.stage, Stage::Gone { .. })) {
            assert_eq!(third.gone(3), (KILLED, false));
        }
    });
}

#[test]
fn an_agent_that_does_not_read_keeps_nobody_waiting() {
    on_both(|mut host| {
        let mut agent = host.greeted();
        let started = host.logs.join("started");
        spawn(&agent, host.spawn_of(1, "zone.1", &["/bin/sleep", "1000"]));
        let pid = agent.spawned(1);
        let script = format!("touch {}; exec sleep 1000", started.display());
        appoint(&agent, 1, host.shell(2, "zone.1", &script));
        kill(pid);
        until_true("the successor runs without anybody's word", || started.exists());
        assert_eq!(succeeded(&mut agent, 1), (KILLED, 2));
        agent.spawned(2);
    });
}

#[test]
fn a_successor_is_of_the_same_instance_and_may_fail_as_any_other() {
    on_both(|mut host| {
        let mut agent = host.greeted();
        spawn(&agent, host.spawn_of(1, "zone.1", &["/bin/sleep", "1000"]));
        let pid = agent.spawned(1);
        let mut exclusive = host.spawn_of(2, "zone.1", &["/bin/sleep", "1000"]);
        exclusive.exclusive = true;
        for unfit in [exclusive, host.spawn_of(2, "zone.2", &["/bin/sleep", "1000"])] {
            appoint(&agent, 1, unfit);
            agent.expect("a refusal", |reply| match reply {
                Reply::Refused { run: Some(RunId(1)), reason } => {
                    reason.contains("same instance").then_some(())
                }
                _ => None,
            });
        }
        appoint(&agent, 1, host.spawn_of(2, "zone.1", &["/nonexistent/program"]));
        appoint(&agent, 77, host.spawn_of(78, "zone.1", &["/bin/sleep", "1000"]));
        kill(pid);
        assert_eq!(succeeded(&mut agent, 1), (KILLED, 2));
        assert_eq!(agent.failed(2), (SpawnStep::Exec, libc::ENOENT));
        spawn(&agent, host.spawn_of(3, "zone.1", &["/bin/sleep", "1000"]));
        agent.spawned(3);
    });
}
