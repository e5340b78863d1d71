//! A child between fork and exec. To look at one there, its cgroup is frozen before it is made: it stands at
//! its first instruction, in the keeper's memory.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bigbrother::keeper::protocol::{End, Reply, Request, RunId, SpawnStep, Stage};

use super::host::{Agent, Host, KILLED, alive, on_both, spawn, until};

/// Freezes the cgroup of zone.1, after a first run that has made it.
fn freeze(host: &Host, agent: &mut Agent) {
    spawn(agent, host.shell(1, "zone.1", "exit 0"));
    assert_eq!(agent.gone(1).0, End::Code(0));
    agent.send(&Request::Acknowledge { run: RunId(1) });
    fs::write(folder(host).join("cgroup.freeze"), "1").unwrap();
}

fn folder(host: &Host) -> PathBuf {
    host.cgroup.join("instance-zone.1")
}

fn thaw(host: &Host) {
    fs::write(folder(host).join("cgroup.freeze"), "0").unwrap();
}

/// The frozen child.
fn child(host: &Host) -> i32 {
    until("the child stands", || {
        let procs = fs::read_to_string(folder(host).join("cgroup.procs")).unwrap();
        let events = fs::read_to_string(folder(host).join("cgroup.events")).unwrap();
        let pid = procs.trim().parse().map_err(|_| procs)?;
        if events.contains("frozen 1") { Ok(pid) } else { Err(events) }
    })
}

/// kcmp(2): the two processes share their memory.
fn shares_memory(one: i32, other: i32) -> bool {
    const KCMP_VM: i32 = 1;
    // SAFETY: numbers only.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_VM, 0, 0) };
    assert!(order >= 0, "kcmp: {}", io::Error::last_os_error());
    order == 0
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: our own keeper, or a child of it.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "{}", io::Error::last_os_error());
}

fn told(agent: &Agent, run: u64) -> Vec<&Reply> {
    let of_run = |reply: &&Reply| match reply {
        Reply::SpawnFailed { run: id, .. } | Reply::Gone { run: id, .. } => id.0 == run,
        _ => false,
    };
    agent.seen.iter().filter(of_run).collect()
}

#[test]
fn a_child_that_is_killed_before_its_exec_is_told_as_killed_once() {
    let mut host = Host::new(true);
    let mut agent = host.greeted();
    freeze(&host, &mut agent);
    spawn(&agent, host.spawn_of(2, "zone.1", &["/bin/sleep", "1000"]));
    let pid = child(&host);
    assert!(shares_memory(pid, host.keeper_pid()), "it has a copy of the keeper's memory");
    let run = agent.hello().runs.remove(0);
    assert_eq!((run.run, run.pid, run.stage), (RunId(2), pid, Stage::Spawning));
    signal(pid, libc::SIGKILL);
    assert_eq!(agent.gone(2).0, KILLED);
    spawn(&agent, host.shell(3, "zone.1", "exit 3"));
    assert_eq!(agent.gone(3).0, End::Code(3));
    assert_eq!(told(&agent, 2).len(), 1, "{:?}", agent.seen);
}

#[test]
fn a_games_cgroup_that_was_made_anew_while_nothing_ran_costs_a_known_instance_one_spawn() {
    let mut host = Host::new(true);
    let mut agent = host.greeted();
    spawn(&agent, host.shell(1, "zone.1", "exit 0"));
    assert_eq!(agent.gone(1).0, End::Code(0));
    agent.send(&Request::Acknowledge { run: RunId(1) });
    fs::remove_dir(folder(&host)).unwrap();
    fs::remove_dir(&host.cgroup).unwrap();
    fs::create_dir(&host.cgroup).unwrap();
    // One of which the keeper holds nothing yet.
    spawn(&agent, host.shell(2, "zone.2", "exit 2"));
    assert_eq!(agent.gone(2).0, End::Code(2));
    spawn(&agent, host.shell(3, "zone.1", "exit 3"));
    assert_eq!(agent.failed(3).0, SpawnStep::Cgroup);
    spawn(&agent, host.shell(4, "zone.1", "exit 4"));
    assert_eq!(agent.gone(4).0, End::Code(4));
}

/// What the keeper watches a cgroup by is opened only when somebody in it has ended.
#[test]
fn a_run_that_was_taken_out_of_its_cgroup_before_that_was_removed_ends_all_the_same() {
    let mut host = Host::new(true);
    let mut agent = host.greeted();
    spawn(&agent, host.spawn_of(1, "zone.1", &["/bin/sleep", "1000"]));
    let pid = agent.spawned(1);
    fs::write(host.cgroup.parent().unwrap().join("cgroup.procs"), pid.to_string()).unwrap();
    fs::remove_dir(folder(&host)).unwrap();
    signal(pid, libc::SIGKILL);
    assert_eq!(agent.gone(1).0, KILLED);
}

#[test]
fn a_child_that_dumps_core_before_its_exec_dumps_nothing_of_the_keeper() {
    let mut host = Host::new(true);
    let mut agent = host.greeted();
    freeze(&host, &mut agent);
    let mut request = host.spawn_of(2, "zone.1", &["/bin/sleep", "1000"]);
    request.working_dir = host.logs.to_str().unwrap().to_owned();
    spawn(&agent, request);
    signal(child(&host), libc::SIGABRT);
    thaw(&host);
    assert_eq!(agent.gone(2).0, End::Signal { signal: libc::SIGABRT, core: false });
    // The program itself may dump.
    spawn(&agent, host.shell(3, "zone.1", "cat /proc/self/coredump_filter > /dev/null && kill -ABRT $$"));
    assert!(matches!(agent.gone(3).0, End::Signal { signal: libc::SIGABRT, .. }));
}

/// The OOM killer takes all who share its victim's memory.
#[test]
fn a_child_with_a_limit_of_memory_has_a_memory_of_its_own() {
    let mut host = Host::new(true);
    let mut agent = host.greeted();
    freeze(&host, &mut agent);
    let mut request = host.shell(2, "zone.1", "exit 2");
    request.limits = vec![("memory.max".into(), "1000000000".into())];
    spawn(&agent, request);
    assert!(!shares_memory(child(&host), host.keeper_pid()), "it shares the keeper's memory");
    // It has executed nothing: that is what the keeper says.
    assert_eq!(agent.hello().runs[0].stage, Stage::Spawning);
    thaw(&host);
    agent.spawned(2);
    assert_eq!(agent.gone(2).0, End::Code(2));
}

#[test]
fn an_upgrade_that_waits_for_a_child_holds_up_nobody() {
    let mut host = Host::new(true);
    let mut agent = host.greeted();
    freeze(&host, &mut agent);
    spawn(&agent, host.spawn_of(2, "zone.1", &["/bin/sleep", "1000"]));
    let pid = child(&host);
    signal(host.keeper_pid(), libc::SIGHUP);
    // Others start and end, over the same connection.
    spawn(&agent, host.shell(3, "zone.2", "exit 3"));
    assert_eq!(agent.gone(3).0, End::Code(3));
    assert!(alive(pid));
    agent.send(&Request::Kill { run: RunId(2) });
    until("the connection closes", || match agent.receive() {
        Err(_) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let listing = host.connect().hello();
    assert_eq!(listing.welcome.unwrap().0, host.keeper_pid());
    let ends: Vec<_> = listing.runs.iter().map(|run| (run.run.0, run.stage)).collect();
    let gone = |end| Stage::Gone { end, fenced: false };
    assert_eq!(ends, [(2, gone(KILLED)), (3, gone(End::Code(3)))]);
}

/// A keeper under a filter that answers this to these system calls (seccomp(2)).
fn start_refused(host: &mut Host, refused: &[(libc::c_long, i32)]) -> Agent {
    let op = |code: u32, jt: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf: 0, k };
    let mut program = vec![op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for (number, errno) in refused {
        let not_equal =
            libc::sock_filter { jf: 1, ..op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, *number as u32) };
        program.push(not_equal);
        program.push(op(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | *errno as u32));
    }
    program.push(op(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW));
    let mut command = Command::new(env!("CARGO_BIN_EXE_bigbrother"));
    command.arg("keeper").arg("--runtime-dir").arg(&host.runtime).arg("--cgroup").arg(&host.cgroup);
    // SAFETY: one system call; what it points at was made before.
    unsafe {
        command.stdin(Stdio::null()).pre_exec(move || {
            let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
            match libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        })
    };
    host.keeper = Some(command.spawn().unwrap());
    let mut agent = host.connect();
    agent.hello();
    agent
}

#[test]
fn a_container_that_forbids_the_quick_ways_has_the_slow_ones() {
    on_both(|mut host| {
        let eperm = libc::EPERM;
        let refused =
            [(libc::SYS_clone3, libc::ENOSYS), (libc::SYS_close_range, eperm), (libc::SYS_unshare, eperm)];
        let mut agent = start_refused(&mut host, &refused);
        spawn(&agent, host.shell(1, "zone.1", "ls /proc/self/fd | tr '\\n' ' '; exec sleep 1000"));
        let pid = agent.spawned(1);
        // The third is the folder that is listed.
        host.log_has("zone.1", "0 1 2 3 ");
        if host.cgroup.is_absolute() {
            // `tr` may have written, and not have ended yet.
            until("it alone lies in its cgroup", || {
                let procs = fs::read_to_string(folder(&host).join("cgroup.procs")).unwrap();
                if procs.trim() == pid.to_string() { Ok(()) } else { Err(procs) }
            });
        }
        agent.send(&Request::Kill { run: RunId(1) });
        assert_eq!(agent.gone(1).0, KILLED);
        spawn(&agent, host.spawn_of(2, "zone.1", &["/nonexistent/program"]));
        assert_eq!(agent.failed(2), (SpawnStep::Exec, libc::ENOENT));
        let mut request = host.shell(3, "zone.1", "exit 3");
        request.working_dir = "/nonexistent".into();
        spawn(&agent, request);
        assert_eq!(agent.failed(3), (SpawnStep::WorkingDir, libc::ENOENT));
        for run in 4..60 {
            spawn(&agent, host.shell(run, &format!("zone.{run}"), &format!("exit {run}")));
        }
        for run in 4..60 {
            assert_eq!(agent.gone(run).0, End::Code(run as i32));
        }
    });
}

#[test]
fn why_an_exec_failed_outlives_the_keeper() {
    on_both(|mut host| {
        let mut agent = host.start_with(&[("BIGBROTHER_FAULT", "after-reap")]);
        agent.hello();
        spawn(&agent, host.spawn_of(1, "zone.1", &["/nonexistent/program"]));
        host.keeper_ends();
        let listing = host.start().hello();
        let stage = Stage::SpawnFailed { step: SpawnStep::Exec, errno: libc::ENOENT };
        assert_eq!(listing.runs[0].stage, stage);
    });
}

/// What a keeper holds: descriptors, mappings, KiB of memory of its own.
fn holdings(keeper: i32) -> (usize, usize, u64) {
    let read = |file: &str| fs::read_to_string(format!("/proc/{keeper}/{file}")).unwrap();
    let status = read("status");
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let kib = anonymous.trim().trim_end_matches(" kB").parse().unwrap();
    (fs::read_dir(format!("/proc/{keeper}/fd")).unwrap().count(), read("maps").lines().count(), kib)
}

#[test]
fn a_thousand_restarts_leave_nothing_behind() {
    let mut host = Host::new(true);
    let mut agent = host.greeted();
    let mut run = 0;
    let mut rounds = |count: u64, agent: &mut Agent| {
        for _ in 0..count {
            let first = run + 1;
            run += 20;
            for id in first..=run {
                // One of them fails on its way.
                let program = if id == first { "/nonexistent/program" } else { "/bin/true" };
                spawn(agent, host.spawn_of(id, &format!("zone.{}", id - first), &[program]));
            }
            for id in first..=run {
                agent.expect_once(&format!("run {id} is over"), |reply| match reply {
                    Reply::Gone { run, .. } | Reply::SpawnFailed { run, .. } => (run.0 == id).then_some(()),
                    _ => None,
                });
                agent.send(&Request::Acknowledge { run: RunId(id) });
            }
            agent.seen.clear();
        }
    };
    rounds(10, &mut agent);
    let before = holdings(host.keeper_pid());
    rounds(50, &mut agent);
    let begun = Instant::now();
    loop {
        let after = holdings(host.keeper_pid());
        // Some mappings and pages come and go with what is going on.
        if after.0 == before.0 && after.1 <= before.1 + 4 && after.2 <= before.2 + 256 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{before:?} became {after:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
