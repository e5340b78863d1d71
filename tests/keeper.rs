//! The keeper as it is: the built program, driven over its socket. Needs root (users, cgroups, mounts).

#![allow(clippy::unwrap_used)] // a test program: its helpers too may panic

use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::fs;
use std::io::{IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bigbrother::keeper::cgroup::{find_own, hash_of};
use bigbrother::keeper::descent::marked;
use bigbrother::keeper::process::{boottime_ns, stat};
use bigbrother::keeper::protocol::{
    Account, CgroupSupport, End, LogTarget, MAX_PACKET, Reply, Request, RunId, RunRecord, Spawn, SpawnStep,
    Stage, Target, decode, encode,
};
use bigbrother::spec::InstanceId;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect,
    recvmsg, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(20);
const KILLED: End = End::Signal { signal: 9, core: false };

/// Waits until something is there; panics with what was seen last.
fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if begun.elapsed() > DEADLINE => panic!("{what}: not within {DEADLINE:?}; saw {seen}"),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn until_true(what: &str, mut holds: impl FnMut() -> bool) {
    until(what, || if holds() { Ok(()) } else { Err("false".to_owned()) });
}

fn alive(pid: i32) -> bool {
    stat(pid).is_some_and(|s| s.alive())
}

/// The programs of live processes that have this text in their command line.
fn processes_with(text: &str) -> Vec<i32> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            alive(*pid) && String::from_utf8_lossy(&line).contains(text)
        })
        .collect()
}

/// The agent's side of the socket.
struct Agent {
    socket: OwnedFd,
    seen: Vec<Reply>,
    /// Of a packet of which the first was taken.
    gathered: VecDeque<Reply>,
}

impl Agent {
    fn connect(path: &Path) -> Agent {
        let socket = until("connect to keeper.sock", || {
            let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
            match connect(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()) {
                Ok(()) => Ok(fd),
                Err(e) => Err(e.to_string()),
            }
        });
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 100_000)).unwrap();
        Agent { socket, seen: Vec::new(), gathered: VecDeque::new() }
    }

    fn send(&self, request: &Request) {
        self.send_with(request, &[]);
    }

    fn send_with(&self, request: &Request, fds: &[RawFd]) {
        let packet = encode(request).unwrap();
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(&packet)], control, flags, None)
            .expect("the keeper reads");
    }

    /// The next reply; `None` when there is none for 100 ms; an error when the keeper is gone.
    fn receive(&mut self) -> Result<Option<(Reply, Vec<OwnedFd>)>, String> {
        if let Some(reply) = self.gathered.pop_front() {
            self.seen.push(reply.clone());
            return Ok(Some((reply, Vec::new())));
        }
        let mut buffer = vec![0; MAX_PACKET];
        let mut space = nix::cmsg_space!([RawFd; 8]);
        let mut vector = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(self.socket.as_raw_fd(), &mut vector, Some(&mut space), flags);
        let (length, fds) = match message {
            Err(nix::errno::Errno::EAGAIN) => return Ok(None),
            Err(e) => return Err(e.to_string()),
            Ok(message) => {
                let mut fds = Vec::new();
                for control in message.cmsgs().unwrap() {
                    if let ControlMessageOwned::ScmRights(list) = control {
                        // SAFETY: just received, nobody else owns them.
                        fds.extend(list.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                    }
                }
                (message.bytes, fds)
            }
        };
        if length == 0 {
            return Err("the keeper closed the connection".to_owned());
        }
        let mut replies: VecDeque<Reply> = decode(&buffer[..length]).unwrap().into();
        let first = replies.pop_front().unwrap();
        self.gathered.extend(replies);
        self.seen.push(first.clone());
        Ok(Some((first, fds)))
    }

    /// As `expect`, also when it was told a while ago.
    fn expect_once<T>(&mut self, what: &str, take: impl Fn(&Reply) -> Option<T>) -> T {
        match self.seen.iter().find_map(&take) {
            Some(found) => found,
            None => self.expect(what, take),
        }
    }

    /// Reads replies until one is what is looked for. Pings meanwhile, as an agent does.
    fn expect<T>(&mut self, what: &str, mut take: impl FnMut(&Reply) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            match self.receive() {
                Ok(Some((reply, _))) => {
                    if let Some(found) = take(&reply) {
                        return found;
                    }
                }
                Ok(None) => self.send(&Request::Ping),
                Err(e) => panic!("{what}: {e}; saw {:?}", self.seen),
            }
            assert!(begun.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}; saw {:?}", self.seen);
        }
    }

    /// Says hello and reads the whole table.
    fn hello(&mut self) -> Listing {
        self.send(&Request::Hello { agent: "test".into() });
        let mut listing = Listing::default();
        let begun = Instant::now();
        loop {
            match self.receive() {
                Ok(Some((Reply::Welcome { pid, cgroups, fence_deadline_ns, .. }, _))) => {
                    listing.welcome = Some((pid, cgroups, fence_deadline_ns));
                }
                Ok(Some((Reply::Held { instance }, fds))) => listing.held.push((instance, fds)),
                Ok(Some((Reply::Run(record), _))) => listing.runs.push(record),
                Ok(Some((Reply::Datagram { pid, data, .. }, _))) => {
                    listing.datagrams.push((pid, String::from_utf8(data).unwrap()));
                }
                Ok(Some((Reply::Listed { strays }, _))) => {
                    listing.strays = strays;
                    return listing;
                }
                Ok(_) => {}
                Err(e) => panic!("hello: {e}; saw {:?}", self.seen),
            }
            assert!(begun.elapsed() < DEADLINE, "hello: no list; saw {:?}", self.seen);
        }
    }

    fn spawned(&mut self, run: u64) -> i32 {
        self.expect_once(&format!("run {run} spawned"), |reply| match reply {
            Reply::Spawned { run: RunId(id), pid } if *id == run => Some(*pid),
            Reply::SpawnFailed { run: RunId(id), step, errno } if *id == run => {
                panic!("run {run}: {step:?}, errno {errno}")
            }
            _ => None,
        })
    }

    fn gone(&mut self, run: u64) -> (End, bool) {
        self.expect_once(&format!("run {run} gone"), |reply| match reply {
            Reply::Gone { run: RunId(id), end, fenced } if *id == run => Some((*end, *fenced)),
            _ => None,
        })
    }

    fn failed(&mut self, run: u64) -> (SpawnStep, i32) {
        self.expect(&format!("run {run} failed"), |reply| match reply {
            Reply::SpawnFailed { run: RunId(id), step, errno } if *id == run => Some((*step, *errno)),
            _ => None,
        })
    }
}

#[derive(Debug, Default)]
struct Listing {
    welcome: Option<(i32, CgroupSupport, u64)>,
    held: Vec<(InstanceId, Vec<OwnedFd>)>,
    runs: Vec<RunRecord>,
    datagrams: Vec<(i32, String)>,
    strays: Vec<InstanceId>,
}

/// A runtime folder, a games cgroup, and the keeper that serves them.
struct Host {
    runtime: PathBuf,
    logs: PathBuf,
    cgroup: PathBuf,
    keeper: Option<Child>,
    extra: Vec<String>,
    _dirs: (TempDir, TempDir),
}

impl Host {
    fn new(with_cgroups: bool) -> Host {
        // SAFETY: no arguments, cannot fail.
        assert_eq!(unsafe { libc::geteuid() }, 0, "these tests need root");
        let dirs = (tempfile::tempdir_in("/dev/shm").unwrap(), tempfile::tempdir().unwrap());
        let cgroup = if with_cgroups {
            let read = |path| fs::read_to_string(path).unwrap();
            let own = find_own(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
            let own = own.expect("these tests need a mounted cgroup v2");
            own.join(format!("bbtest-{}", dirs.0.path().file_name().unwrap().to_str().unwrap()))
        } else {
            "none".into()
        };
        let (runtime, logs) = (dirs.0.path().join("run"), dirs.1.path().to_owned());
        Host { runtime, logs, cgroup, keeper: None, extra: Vec::new(), _dirs: dirs }
    }

    fn start(&mut self) -> Agent {
        self.start_with(&[])
    }

    fn start_with(&mut self, env: &[(&str, &str)]) -> Agent {
        assert!(self.keeper.is_none());
        let mut command = Command::new(env!("CARGO_BIN_EXE_bigbrother"));
        command.arg("keeper").arg("--runtime-dir").arg(&self.runtime).arg("--cgroup").arg(&self.cgroup);
        command.args(&self.extra).envs(env.iter().copied()).stdin(Stdio::null());
        self.keeper = Some(command.spawn().unwrap());
        self.connect()
    }

    /// Connects as soon as it listens; until then an older one's socket may refuse.
    fn connect(&self) -> Agent {
        Agent::connect(&self.runtime.join("keeper.sock"))
    }

    fn greeted(&mut self) -> Agent {
        let mut agent = self.start();
        agent.hello();
        agent
    }

    fn keeper_pid(&self) -> i32 {
        self.keeper.as_ref().unwrap().id() as i32
    }

    /// SIGKILL, and wait for the end.
    fn kill_keeper(&mut self) {
        let mut keeper = self.keeper.take().unwrap();
        let _ = keeper.kill();
        keeper.wait().unwrap();
    }

    /// Waits for the keeper's own end.
    fn keeper_ends(&mut self) -> std::process::ExitStatus {
        let keeper = self.keeper.as_mut().unwrap();
        let status =
            until("the keeper ends", || keeper.try_wait().unwrap().ok_or_else(|| "it still runs".to_owned()));
        self.keeper = None;
        status
    }

    fn spawn_of(&self, run: u64, instance: &str, args: &[&str]) -> Spawn {
        Spawn {
            run: RunId(run),
            instance: instance.parse().unwrap(),
            program: args[0].to_owned(),
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            env: vec!["PATH=/usr/bin:/bin".into(), "MARK=here".into()],
            working_dir: "/".into(),
            account: None,
            umask: 0o22,
            nice: 0,
            rlimits: Vec::new(),
            ignore_sigpipe: true,
            limits: Vec::new(),
            limits_required: false,
            exclusive: false,
            logs: LogTarget::Files {
                folder: self.logs.join(instance).to_str().unwrap().to_owned(),
                size: 1 << 20,
                files: 3,
            },
            note: b"note".to_vec(),
        }
    }

    fn shell(&self, run: u64, instance: &str, script: &str) -> Spawn {
        self.spawn_of(run, instance, &["/bin/sh", "-c", script])
    }

    fn log(&self, instance: &str, name: &str) -> String {
        fs::read_to_string(self.logs.join(instance).join(name)).unwrap_or_default()
    }

    fn log_has(&self, instance: &str, text: &str) {
        until(&format!("{instance} logs {text:?}"), || {
            let log = self.log(instance, "stdout.log");
            if log.contains(text) { Ok(()) } else { Err(format!("{log:?}")) }
        });
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
        if self.cgroup.is_absolute() {
            let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
            let folders = || fs::read_dir(&self.cgroup).into_iter().flatten().flatten();
            let begun = Instant::now();
            while self.cgroup.exists() && begun.elapsed() < DEADLINE {
                for entry in folders().filter(|e| e.path().is_dir()) {
                    let _ = fs::remove_dir(entry.path());
                }
                let _ = fs::remove_dir(&self.cgroup);
            }
        }
        // Without cgroups: whatever still has our mark in its environment.
        let hash = hash_of(&fs::canonicalize(&self.runtime).unwrap_or_default());
        for (pid, _, _) in marked(&hash) {
            // SAFETY: kill touches no memory.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}

fn spawn(agent: &Agent, spawn: Spawn) {
    agent.send(&Request::Spawn(Box::new(spawn)));
}

/// Both kinds of host.
fn on_both(test: impl Fn(Host)) {
    test(Host::new(true));
    test(Host::new(false));
}

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
        agent.hello();
        fs::write(host.logs.join("main"), "").unwrap();
        let keeper = host.keeper_pid();
        until_true("the first main process ends", || stat(pid).is_some_and(|s| s.parent == keeper));
        assert_eq!(agent.hello().runs[0].stage, Stage::Running);
        fs::write(host.logs.join("other"), "").unwrap();
        assert_eq!(agent.gone(1).0, End::Code(9));
    });
}

#[test]
fn ends_are_kept_until_acknowledged_and_strangers_are_turned_away() {
    let mut host = Host::new(true);
    let mut agent = host.greeted();
    spawn(&agent, host.shell(1, "zone.1", "exit 6"));
    agent.spawned(1);
    drop(agent);
    let mut agent = host.connect();
    until("the end is listed", || {
        let runs = agent.hello().runs;
        match runs.as_slice() {
            [RunRecord { stage: Stage::Gone { end: End::Code(6), fenced: false }, .. }] => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    agent.send(&Request::Acknowledge { run: RunId(1) });
    assert_eq!(agent.hello().runs, []);

    // A user that is neither root nor the keeper's, let in by the file's mode: the peer check is what holds.
    fs::set_permissions(
        host.runtime.join("keeper.sock"),
        std::os::unix::fs::PermissionsExt::from_mode(0o666),
    )
    .unwrap();
    let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET)\n\
                  s.settimeout(20)\ns.connect(sys.argv[1])\nsys.exit(0 if s.recv(1)==b'' else 1)";
    fs::set_permissions(host.runtime.parent().unwrap(), std::os::unix::fs::PermissionsExt::from_mode(0o711))
        .unwrap();
    let mut stranger = Command::new("python3");
    stranger.args(["-c", script]).arg(host.runtime.join("keeper.sock"));
    let status = std::os::unix::process::CommandExt::uid(&mut stranger, 65534).status().unwrap();
    assert!(status.success(), "the stranger was not turned away: {status}");
    // And ours is still there.
    agent.hello();
}

#[test]
fn a_second_keeper_refuses_to_start() {
    let mut host = Host::new(true);
    let _agent = host.greeted();
    let first = host.keeper.take();
    let output = Command::new(env!("CARGO_BIN_EXE_bigbrother"))
        .arg("keeper")
        .arg("--runtime-dir")
        .arg(&host.runtime)
        .output()
        .unwrap();
    host.keeper = first;
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("another keeper serves"), "{text}");
}

#[test]
fn rubbish_on_the_socket_is_refused_and_harms_nothing() {
    let mut host = Host::new(true);
    let mut agent = host.greeted();
    for packet in [&b"\x01"[..], b"\x07hello", b"\x01\xff\xff\xff\xff", &[1; 4096]] {
        sendmsg::<()>(agent.socket.as_raw_fd(), &[IoSlice::new(packet)], &[], MsgFlags::empty(), None)
            .unwrap();
        agent.expect("a refusal", |r| matches!(r, Reply::Refused { run: None, .. }).then_some(()));
    }
    spawn(&agent, host.shell(1, "zone.1", "exit 0"));
    assert_eq!(agent.gone(1).0, End::Code(0));
}

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
        let deadline_ns = boottime_ns() + 100_000_000;
        agent.send(&Request::Fence { deadline_ns });
        agent.hello();
        host.kill_keeper();
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

/// A listener and a notify socket, as an agent makes them.
fn held_sockets(host: &Host) -> (OwnedFd, OwnedFd) {
    let dir = host.runtime.parent().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(dir.join("process.sock")).unwrap();
    let notify = UnixDatagram::bind(dir.join("notify.sock")).unwrap();
    setsockopt(&notify, sockopt::PassCred, &true).unwrap();
    (listener.into(), notify.into())
}

#[test]
fn without_an_agent_the_notify_sockets_are_drained() {
    let mut host = Host::new(true);
    let mut agent = host.greeted();
    let (listener, notify) = held_sockets(&host);
    let instance: InstanceId = "zone.1".parse().unwrap();
    let fds = [listener.as_raw_fd(), notify.as_raw_fd()];
    agent.send_with(&Request::Hold { instance: instance.clone() }, &fds);
    agent.hello();
    let sender = UnixDatagram::unbound().unwrap();
    let path = host.runtime.parent().unwrap().join("notify.sock");
    sender.set_write_timeout(Some(DEADLINE)).unwrap();

    // The agent is connected but silent. Far more than the socket's queue (10 datagrams) holds.
    sender.send_to(b"READY=1", &path).unwrap();
    for _ in 0..2000 {
        sender.send_to(b"WATCHDOG=1", &path).expect("nobody reads the notify socket");
    }
    sender.send_to(b"STATUS=last", &path).unwrap();
    agent.send(&Request::Ping);
    let mut texts = Vec::new();
    agent.expect("the drained datagrams", |reply| {
        if let Reply::Datagram { instance: of, pid, data } = reply {
            assert_eq!((of, *pid), (&instance, std::process::id() as i32));
            texts.push(String::from_utf8(data.clone()).unwrap());
        }
        texts.last().is_some_and(|t| t == "STATUS=last").then_some(())
    });
    assert_eq!(texts, ["READY=1", "WATCHDOG=1", "STATUS=last"]);

    // No connection at all, and an end of a BARRIER: the descriptor is closed.
    drop(agent);
    let (mut end, barrier) = std::io::pipe().unwrap();
    let rights = [barrier.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&rights)];
    let address = UnixAddr::new(&path).unwrap();
    let vector = [IoSlice::new(b"BARRIER=1")];
    sendmsg(sender.as_raw_fd(), &vector, &control, MsgFlags::empty(), Some(&address)).unwrap();
    drop(barrier);
    assert_eq!(std::io::Read::read(&mut end, &mut [0]).unwrap(), 0, "the barrier's descriptor is open");
    let mut agent = host.connect();
    let listing = agent.hello();
    assert_eq!(listing.datagrams, [(std::process::id() as i32, "BARRIER=1".to_owned())]);
    assert_eq!(listing.held.len(), 1);
    agent.send(&Request::Release { instance });
    assert_eq!(agent.hello().held.len(), 0);
}

#[test]
fn no_line_is_lost_when_the_keeper_is_killed() {
    let mut host = Host::new(true);
    let mut agent = host.greeted();
    let mut request =
        host.shell(1, "zone.1", "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); echo line $i; done; sleep 1000");
    request.logs = LogTarget::Files {
        folder: host.logs.join("zone.1").to_str().unwrap().into(),
        size: 1 << 26,
        files: 1,
    };
    spawn(&agent, request);
    agent.spawned(1);
    for round in 0..5 {
        until_true("the log grows", || host.log("zone.1", "stdout.log").len() > 20_000 * round);
        host.kill_keeper();
        agent = host.start();
        agent.hello();
    }
    let text = until("the last line", || {
        let text = host.log("zone.1", "stdout.log");
        if text.ends_with("line 60000\n") { Ok(text) } else { Err(format!("{} bytes", text.len())) }
    });
    for (at, line) in text.lines().enumerate() {
        assert_eq!(line, format!("line {}", at + 1));
    }
    assert_eq!(text.lines().count(), 60_000);
}

/// SIGSTOP, and wait until every thread stands.
fn stop(pid: i32) {
    // SAFETY: our own process.
    unsafe { libc::kill(pid, libc::SIGSTOP) };
    until_true("every thread stands", || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let ids = threads.map(|t| t.file_name().to_str().unwrap().parse().unwrap());
        ids.into_iter().all(|id| stat(id).is_none_or(|s| s.state == b'T'))
    });
}

/// Bytes of all files of a stream.
fn kept(folder: &Path, stream: &str) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files
        .filter(|e| e.file_name().to_str().unwrap().starts_with(stream))
        .filter_map(|e| Some(e.metadata().ok()?.len()))
        .sum()
}

#[test]
fn a_flood_keeps_to_its_bound_and_leaves_room_for_others() {
    let mut host = Host::new(true);
    let mut agent = host.greeted();
    let (size, files) = (1 << 20, 3);
    for (run, script) in [(1, "yes 0123456789abcdef"), (2, "tr '\\0' x < /dev/zero")] {
        let instance = format!("flood.{run}");
        let mut request = host.shell(run, &instance, &format!("exec {script}"));
        let folder = host.logs.join(&instance).to_str().unwrap().to_owned();
        request.logs = LogTarget::Files { folder, size, files };
        spawn(&agent, request);
        agent.spawned(run);
    }
    let mut total = 0;
    let begun = Instant::now();
    let mut asked = 100;
    while total < 150_000_000 {
        assert!(begun.elapsed() < DEADLINE, "only {total} bytes");
        // Another one's line comes through meanwhile.
        spawn(&agent, host.shell(asked, "quiet.1", &format!("echo line {asked}")));
        agent.gone(asked);
        host.log_has("quiet.1", &format!("line {asked}\n"));
        asked += 1;
        // Held still while it is measured: a rename in between would count a file twice.
        stop(host.keeper_pid());
        for run in [1, 2] {
            let bytes = kept(&host.logs.join(format!("flood.{run}")), "stdout.log");
            assert!(bytes <= size * u64::from(files) + 64 * 1024, "flood.{run} keeps {bytes} bytes");
        }
        // SAFETY: our own keeper.
        unsafe { libc::kill(host.keeper_pid(), libc::SIGCONT) };
        let sum = |r: &Reply| if let Reply::LogBytes { kept, .. } = r { *kept } else { 0 };
        total = agent.seen.iter().map(sum).sum::<u64>();
    }
    for run in [1, 2] {
        agent.send(&Request::Kill { run: RunId(run) });
        agent.gone(run);
    }
    // Lines are whole, in every file.
    for name in ["stdout.log.1", "stdout.log.2"] {
        let text = host.log("flood.1", name);
        assert!(text.ends_with('\n') && text.lines().all(|l| l == "0123456789abcdef"), "{name} is torn");
    }
}

/// A tmpfs of this many bytes, unmounted at the end.
struct Small(PathBuf);

impl Small {
    fn at(path: PathBuf, options: &str) -> Small {
        fs::create_dir_all(&path).unwrap();
        nix::mount::mount(Some("tmpfs"), &path, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(options))
            .expect("these tests mount a small tmpfs");
        Small(path)
    }

    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("filler")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_drops_log_bytes_and_blocks_nobody() {
    let mut host = Host::new(true);
    let small = Small::at(host.logs.join("zone.1"), "size=64k");
    let mut agent = host.greeted();
    let script =
        "head -c 1000000 /dev/zero; echo done >&2; while ! [ -e $GO ]; do sleep 0.02; done; echo after";
    let mut request = host.shell(1, "zone.1", script);
    let go = host.logs.join("go");
    request.env.push(format!("GO={}", go.display()));
    small.fill();
    spawn(&agent, request);
    agent.spawned(1);
    let mut dropped = 0;
    agent.expect("dropped bytes", |reply| {
        if let Reply::LogBytes { dropped: bytes, .. } = reply {
            dropped += bytes;
        }
        (dropped >= 1_000_005).then_some(())
    });
    fs::remove_file(small.0.join("filler")).unwrap();
    std::thread::sleep(Duration::from_millis(300)); // the disk is tried again after 250 ms
    fs::write(go, "").unwrap();
    assert_eq!(agent.gone(1).0, End::Code(0));
    host.log_has("zone.1", "after\n");
}

#[test]
fn a_full_tmpfs_refuses_spawns_and_harms_no_run() {
    let mut host = Host::new(true);
    let small = Small::at(host.runtime.clone(), "size=256k,mode=711");
    let mut agent = host.greeted();
    let quiet = |run: u64| {
        let mut request = host.spawn_of(run, &format!("zone.{run}"), &["/bin/sleep", "1000"]);
        request.logs = LogTarget::Null;
        request
    };
    spawn(&agent, quiet(1));
    let pid = agent.spawned(1);
    small.fill();
    // The first 64 slots have their space already.
    let mut refused = None;
    for run in 2..=70 {
        spawn(&agent, quiet(run));
        let outcome = agent.expect("an answer", |r| match r {
            Reply::Spawned { run: RunId(n), .. } if *n == run => Some(None),
            Reply::SpawnFailed { run: RunId(n), step, errno } if *n == run => Some(Some((*step, *errno))),
            _ => None,
        });
        if outcome.is_some() {
            refused = outcome;
            break;
        }
    }
    assert_eq!(refused, Some((SpawnStep::Ledger, libc::ENOSPC)));
    assert!(alive(pid));
    // A new keeper reads it all the same.
    host.kill_keeper();
    assert_eq!(host.start().hello().runs[0].pid, pid);
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
