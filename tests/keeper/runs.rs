//! Spawning, watching and ending runs.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use bigbrother::keeper::process::stat;
use bigbrother::keeper::protocol::{
    Account, End, LogTarget, Reply, Request, RunId, Spawn, SpawnStep, Stage, Target,
};

use super::host::{Host, KILLED, alive, on_both, processes_with, spawn, until, until_true};

#[test]
fn exit_codes_signals_and_output_arrive() {
    on_both(|mut host| {
        let mut agent = host.greeted();
        spawn(&agent, host.shell(1, "zone.1", "echo out $MARK; echo err >&2; exit 3"));
        assert!(agent.spawned(1) > 0);
        assert_eq!(agent.gone(1), (End::Code(3), false));
        host.log_has("zone.1", "out here\n");
        until_true("stderr is logged", || host.log("zone.1", "stderr.log") == "err\n");

        spawn(&agent, host.shell(2, "zone.1", "kill -SEGV $$"));
        let (end, _) = agent.gone(2);
        assert!(matches!(end, End::Signal { signal: libc::SIGSEGV, .. }), "{end:?}");

        spawn(
            &agent,
            host.shell(
                3,
                "zone.1",
                "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.01; done",
            ),
        );
        agent.spawned(3);
        host.log_has("zone.1", "ready");
        agent.send(&Request::Signal { run: RunId(3), signal: libc::SIGTERM, to: Target::Main });
        assert_eq!(agent.gone(3).0, End::Code(5));
        assert!(
            agent.seen.iter().all(|r| !matches!(r, Reply::Exited { run: RunId(3), .. })),
            "{:?}",
            agent.seen
        );
    });
}

#[test]
fn a_spawn_that_fails_names_the_step_and_errno() {
    on_both(|mut host| {
        let mut agent = host.greeted();
        type Case = (fn(&mut Spawn), SpawnStep, i32);
        let cases: [Case; 6] = [
            (|s| s.program = "/nonexistent/program".into(), SpawnStep::Exec, libc::ENOENT),
            (|s| s.program = "/etc/passwd".into(), SpawnStep::Exec, libc::EACCES),
            (|s| s.working_dir = "/nonexistent".into(), SpawnStep::WorkingDir, libc::ENOENT),
            (|s| s.rlimits = vec![(9999, 1)], SpawnStep::Rlimit, libc::EINVAL),
            (|s| s.env = vec!["A=\0".into()], SpawnStep::Exec, libc::EINVAL),
            (
                |s| s.logs = LogTarget::Files { folder: "x".repeat(500), size: 1, files: 1 },
                SpawnStep::Ledger,
                libc::ENAMETOOLONG,
            ),
        ];
        for (run, (change, step, errno)) in (1..).zip(cases) {
            let mut request = host.spawn_of(run, "zone.1", &["/bin/true"]);
            change(&mut request);
            spawn(&agent, request);
            assert_eq!(agent.failed(run), (step, errno), "case {run}");
        }
        // None of them is in the way.
        spawn(&agent, host.shell(50, "zone.1", "exit 0"));
        assert_eq!(agent.gone(50).0, End::Code(0));
    });
}

#[test]
fn required_limits_refuse_and_others_are_told() {
    on_both(|mut host| {
        let mut agent = host.greeted();
        let limits = vec![("no.such.limit".to_owned(), "1".to_owned())];
        let mut request = host.shell(1, "zone.1", "exit 0");
        (request.limits, request.limits_required) = (limits.clone(), true);
        spawn(&agent, request);
        assert_eq!(agent.failed(1).0, SpawnStep::Limit);
        let mut request = host.shell(2, "zone.1", "exit 0");
        request.limits = limits;
        spawn(&agent, request);
        let files = agent.expect("unenforced", |reply| match reply {
            Reply::Unenforced { run: RunId(2), files } => Some(files.clone()),
            _ => None,
        });
        assert_eq!(files, ["no.such.limit"]);
        assert_eq!(agent.gone(2).0, End::Code(0));
    });
}

#[test]
fn an_instance_never_has_two_runs() {
    on_both(|mut host| {
        let mut agent = host.greeted();
        spawn(&agent, host.spawn_of(1, "zone.1", &["/bin/sleep", "1000"]));
        let pid = agent.spawned(1);
        spawn(&agent, host.spawn_of(2, "zone.1", &["/bin/sleep", "1000"]));
        assert_eq!(agent.failed(2), (SpawnStep::Busy, libc::EBUSY));
        assert!(alive(pid));
        agent.send(&Request::Kill { run: RunId(1) });
        assert_eq!(agent.gone(1), (KILLED, false));
        spawn(&agent, host.spawn_of(1, "zone.1", &["/bin/sleep", "1000"]));
        assert_eq!(agent.failed(1), (SpawnStep::Busy, libc::EEXIST));
    });
}

#[test]
fn the_child_has_what_was_asked_for_and_nothing_else() {
    on_both(|mut host| {
        let mut agent = host.greeted();
        let script = "id -u; id -g; id -G; umask; nice; ulimit -c; pwd; ls /proc/self/fd | wc -l; \
                      readlink /proc/self/fd/0; grep -E 'SigBlk|SigIgn' /proc/self/status | cut -f2; \
                      ps -o sid= -p $$ | tr -d ' '; echo $$";
        let mut request = host.shell(1, "zone.1", script);
        request.account = Some(Account { uid: 65534, gid: 65533, groups: vec![65533, 4242] });
        (request.umask, request.nice, request.working_dir) = (0o027, 3, "/tmp".into());
        request.rlimits = vec![(libc::RLIMIT_CORE, 0)];
        spawn(&agent, request);
        assert_eq!(agent.gone(1).0, End::Code(0));
        until("the log is complete", || {
            let log = host.log("zone.1", "stdout.log");
            if log.lines().count() == 13 { Ok(()) } else { Err(log) }
        });
        let log = host.log("zone.1", "stdout.log");
        let lines: Vec<&str> = log.lines().collect();
        assert_eq!(lines[..7], ["65534", "65533", "65533 4242", "0027", "3", "0", "/tmp"], "{log}");
        // 0, 1, 2 and the folder that ls reads.
        assert_eq!(lines[7], "4", "{log}");
        assert_eq!(lines[8], "/dev/null");
        // Nothing blocked, SIGPIPE (bit 12) alone ignored.
        assert_eq!(lines[9..11], ["0000000000000000", "0000000000001000"], "{log}");
        assert_eq!(lines[11], lines[12], "it leads a session");
    });
}

#[test]
fn a_program_is_killed_by_a_broken_pipe_where_that_is_asked_for() {
    on_both(|mut host| {
        let mut agent = host.greeted();
        for (run, ignore, end) in
            [(1, true, End::Code(7)), (2, false, End::Signal { signal: libc::SIGPIPE, core: false })]
        {
            let mut request = host.shell(run, "zone.1", "kill -PIPE $$; exit 7");
            request.ignore_sigpipe = ignore;
            spawn(&agent, request);
            assert_eq!(agent.gone(run).0, end);
        }
    });
}

/// A child that forks twice, in a session of its own, with another main process, and ignores SIGTERM.
const RUNAWAY: &str = "(setsid sh -c 'trap \"\" TERM; (setsid sh -c \"trap \\\"\\\" TERM HUP; echo away; \
                       exec sleep 98765.$MARK\" &) ; exec sleep 98764.$MARK' &) ; trap '' TERM; echo main; ";

#[test]
fn a_runaway_dies_with_its_run() {
    on_both(|mut host| {
        let mut agent = host.greeted();
        let mark = std::process::id();
        for run in [1, 2] {
            let go = host.logs.join(format!("go{run}"));
            let script = format!("{RUNAWAY} while ! [ -e {} ]; do sleep 0.05; done; exit 4", go.display());
            let mut request = host.shell(run, "zone.1", &script);
            request.env.push(format!("MARK={mark}{run}"));
            request.env.remove(1);
            spawn(&agent, request);
            agent.spawned(run);
            let text = format!(".{mark}{run}");
            until("the runaways run", || {
                let sleeps =
                    [processes_with(&format!("98765{text}")), processes_with(&format!("98764{text}"))];
                let log = (host.log("zone.1", "stdout.log"), host.log("zone.1", "stderr.log"));
                let _ = agent.receive();
                if sleeps.iter().all(|s| s.len() == 1) {
                    Ok(())
                } else {
                    Err(format!("run {run}: {sleeps:?} {log:?} {:?}", agent.seen))
                }
            });
            if run == 1 {
                agent.send(&Request::Signal { run: RunId(1), signal: libc::SIGTERM, to: Target::Group });
                agent.send(&Request::Kill { run: RunId(1) });
            } else {
                fs::write(go, "").unwrap();
            }
            let (gone, _) = agent.gone(run);
            assert_eq!(gone, if run == 1 { KILLED } else { End::Code(4) });
            assert_eq!(processes_with(&text), [] as [i32; 0], "run {run}, told to be gone");
            let keeper = host.keeper_pid();
            let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap();
            assert_eq!(children, "", "zombies are left");
        }
        let told =
            |run| agent.seen.iter().any(|r| matches!(r, Reply::Exited { run: RunId(n), .. } if *n == run));
        assert!(told(2), "others were left, so the main process's end comes first: {:?}", agent.seen);
    });
}

#[test]
fn a_followed_process_is_the_run() {
    on_both(|mut host| {
        let mut agent = host.greeted();
        let waits =
            |file: &str| format!("while ! [ -e {} ]; do sleep 0.02; done", host.logs.join(file).display());
        let script = format!("sh -c 'echo $$; {}; exit 9' & {}; exit 0", waits("other"), waits("main"));
        spawn(&agent, host.shell(1, "zone.1", &script));
        agent.spawned(1);
        let pid = until("the other process tells its pid", || {
            let log = host.log("zone.1", "stdout.log");
            log.trim().parse::<i32>().map_err(|_| log)
        });
        agent.send(&Request::Follow { run: RunId(1), pid: std::process::id() as i32 });
        agent.expect("a stranger is refused", |r| matches!(r, Reply::Refused { .. }).then_some(()));
        agent.send(&Request::Follow { run: RunId(1), pid });
        let told = |r: &Reply| matches!(r, Reply::Spawned { pid: other, .. } if *other == pid).then_some(());
        agent.expect("it is told", told);
        fs::write(host.logs.join("main"), "").unwrap();
        let keeper = host.keeper_pid();
        until_true("the first main process ends", || stat(pid).is_some_and(|s| s.parent == keeper));
        assert_eq!(agent.hello().runs[0].stage, Stage::Running);
        fs::write(host.logs.join("other"), "").unwrap();
        assert_eq!(agent.gone(1).0, End::Code(9));
    });
}

#[test]
fn three_hundred_instances_start_die_and_start_again() {
    let mut host = Host::new(true);
    let mut agent = host.greeted();
    let mut pids = BTreeSet::new();
    for run in 1..=300 {
        spawn(&agent, host.spawn_of(run, &format!("zone.{run}"), &["/bin/sleep", "1000"]));
    }
    for run in 1..=300 {
        pids.insert(agent.spawned(run));
    }
    for pid in &pids {
        // SAFETY: our own runs.
        unsafe { libc::kill(*pid, libc::SIGKILL) };
    }
    let mut ended = 0;
    while ended < 300 {
        let run = agent.expect("a death", |r| match r {
            Reply::Gone { run: RunId(n), end: KILLED, .. } if *n <= 300 => Some(*n),
            _ => None,
        });
        agent.send(&Request::Acknowledge { run: RunId(run) });
        spawn(&agent, host.spawn_of(run + 300, &format!("zone.{run}"), &["/bin/sleep", "1000"]));
        ended += 1;
    }
    let again: BTreeSet<i32> = (301..=600).map(|run| agent.spawned(run)).collect();
    assert_eq!((pids.len(), again.len()), (300, 300));
    assert!(again.iter().all(|pid| alive(*pid)) && pids.iter().all(|pid| !alive(*pid)));
    assert_eq!(agent.hello().runs.len(), 300);
}

#[test]
fn a_keeper_whose_own_cgroup_was_once_killed_spawns_all_the_same() {
    let mut host = Host::new(true);
    // Linux (seen on 6.18) kills what is then cloned into another cgroup.
    let own = PathBuf::from(format!("{}-own", host.cgroup.display()));
    fs::create_dir(&own).unwrap();
    fs::write(own.join("cgroup.kill"), "1").unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "echo $$ > \"$1\"/cgroup.procs; shift; exec \"$@\"", "sh"]).arg(&own);
    command.arg(env!("CARGO_BIN_EXE_bigbrother")).arg("keeper").arg("--runtime-dir").arg(&host.runtime);
    host.keeper = Some(command.arg("--cgroup").arg(&host.cgroup).spawn().unwrap());
    let mut agent = host.connect();
    agent.hello();
    spawn(&agent, host.spawn_of(1, "zone.1", &["/bin/sleep", "1000"]));
    let pid = agent.spawned(1);
    let procs = fs::read_to_string(host.cgroup.join("instance-zone.1/cgroup.procs")).unwrap();
    assert_eq!(procs.trim(), pid.to_string());
    agent.send(&Request::Kill { run: RunId(1) });
    assert_eq!(agent.gone(1).0, KILLED);
    spawn(&agent, host.shell(2, "zone.1", "exit 3"));
    assert_eq!(agent.gone(2).0, End::Code(3));
    host.kill_keeper();
    until_true("its cgroup is removed", || fs::remove_dir(&own).is_ok());
}
