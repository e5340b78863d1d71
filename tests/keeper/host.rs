//! The keeper under test with a folder of its own, and the agent's end of its socket.

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
use bigbrother::keeper::process::stat;
use bigbrother::keeper::protocol::{
    CgroupSupport, End, LogTarget, MAX_PACKET, Reply, Request, RunId, RunRecord, Spawn, SpawnStep, decode,
    encode,
};
use bigbrother::spec::InstanceId;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect,
    recvmsg, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use tempfile::TempDir;

pub const DEADLINE: Duration = Duration::from_secs(20);

pub const KILLED: End = End::Signal { signal: 9, core: false };

/// Waits until something is there; panics with what was seen last.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if begun.elapsed() > DEADLINE => panic!("{what}: not within {DEADLINE:?}; saw {seen}"),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

pub fn until_true(what: &str, mut holds: impl FnMut() -> bool) {
    until(what, || if holds() { Ok(()) } else { Err("false".to_owned()) });
}

pub fn alive(pid: i32) -> bool {
    stat(pid).is_some_and(|s| s.alive())
}

/// The programs of live processes that have this text in their command line.
pub fn processes_with(text: &str) -> Vec<i32> {
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
pub struct Agent {
    pub socket: OwnedFd,
    pub seen: Vec<Reply>,
    /// Of a packet of which the first was taken.
    gathered: VecDeque<Reply>,
}

impl Agent {
    pub fn connect(path: &Path) -> Agent {
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

    pub fn send(&self, request: &Request) {
        self.send_with(request, &[]);
    }

    pub fn send_with(&self, request: &Request, fds: &[RawFd]) {
        let packet = encode(request).unwrap();
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(&packet)], control, flags, None)
            .expect("the keeper reads");
    }

    /// The next reply; `None` when there is none for 100 ms; an error when the keeper is gone.
    pub fn receive(&mut self) -> Result<Option<(Reply, Vec<OwnedFd>)>, String> {
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
    pub fn expect_once<T>(&mut self, what: &str, take: impl Fn(&Reply) -> Option<T>) -> T {
        match self.seen.iter().find_map(&take) {
            Some(found) => found,
            None => self.expect(what, take),
        }
    }

    /// Reads replies until one is what is looked for. Pings meanwhile, as an agent does.
    pub fn expect<T>(&mut self, what: &str, mut take: impl FnMut(&Reply) -> Option<T>) -> T {
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
    pub fn hello(&mut self) -> Listing {
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

    pub fn spawned(&mut self, run: u64) -> i32 {
        self.expect_once(&format!("run {run} spawned"), |reply| match reply {
            Reply::Spawned { run: RunId(id), pid } if *id == run => Some(*pid),
            Reply::SpawnFailed { run: RunId(id), step, errno } if *id == run => {
                panic!("run {run}: {step:?}, errno {errno}")
            }
            _ => None,
        })
    }

    pub fn gone(&mut self, run: u64) -> (End, bool) {
        self.expect_once(&format!("run {run} gone"), |reply| match reply {
            Reply::Gone { run: RunId(id), end, fenced } if *id == run => Some((*end, *fenced)),
            _ => None,
        })
    }

    pub fn failed(&mut self, run: u64) -> (SpawnStep, i32) {
        self.expect(&format!("run {run} failed"), |reply| match reply {
            Reply::SpawnFailed { run: RunId(id), step, errno } if *id == run => Some((*step, *errno)),
            _ => None,
        })
    }
}

#[derive(Debug, Default)]
pub struct Listing {
    pub welcome: Option<(i32, CgroupSupport, u64)>,
    pub held: Vec<(InstanceId, Vec<OwnedFd>)>,
    pub runs: Vec<RunRecord>,
    pub datagrams: Vec<(i32, String)>,
    pub strays: Vec<InstanceId>,
}

/// A runtime folder, a games cgroup, and the keeper that serves them.
pub struct Host {
    pub runtime: PathBuf,
    pub logs: PathBuf,
    pub cgroup: PathBuf,
    pub keeper: Option<Child>,
    pub extra: Vec<String>,
    pub _dirs: (TempDir, TempDir),
}

impl Host {
    pub fn new(with_cgroups: bool) -> Host {
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

    pub fn start(&mut self) -> Agent {
        self.start_with(&[])
    }

    pub fn start_with(&mut self, env: &[(&str, &str)]) -> Agent {
        assert!(self.keeper.is_none());
        let mut command = Command::new(env!("CARGO_BIN_EXE_bigbrother"));
        command.arg("keeper").arg("--runtime-dir").arg(&self.runtime).arg("--cgroup").arg(&self.cgroup);
        command.args(&self.extra).envs(env.iter().copied()).stdin(Stdio::null());
        self.keeper = Some(command.spawn().unwrap());
        self.connect()
    }

    /// Connects as soon as it listens; until then an older one's socket may refuse.
    pub fn connect(&self) -> Agent {
        Agent::connect(&self.runtime.join("keeper.sock"))
    }

    pub fn greeted(&mut self) -> Agent {
        let mut agent = self.start();
        agent.hello();
        agent
    }

    pub fn keeper_pid(&self) -> i32 {
        self.keeper.as_ref().unwrap().id() as i32
    }

    /// SIGKILL, and wait for the end.
    pub fn kill_keeper(&mut self) {
        let mut keeper = self.keeper.take().unwrap();
        let _ = keeper.kill();
        keeper.wait().unwrap();
    }

    /// Waits for the keeper's own end.
    pub fn keeper_ends(&mut self) -> std::process::ExitStatus {
        let keeper = self.keeper.as_mut().unwrap();
        let status =
            until("the keeper ends", || keeper.try_wait().unwrap().ok_or_else(|| "it still runs".to_owned()));
        self.keeper = None;
        status
    }

    pub fn spawn_of(&self, run: u64, instance: &str, args: &[&str]) -> Spawn {
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

    pub fn shell(&self, run: u64, instance: &str, script: &str) -> Spawn {
        self.spawn_of(run, instance, &["/bin/sh", "-c", script])
    }

    pub fn log(&self, instance: &str, name: &str) -> String {
        fs::read_to_string(self.logs.join(instance).join(name)).unwrap_or_default()
    }

    pub fn log_has(&self, instance: &str, text: &str) {
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

pub fn spawn(agent: &Agent, spawn: Spawn) {
    agent.send(&Request::Spawn(Box::new(spawn)));
}

/// Both kinds of host.
pub fn on_both(test: impl Fn(Host)) {
    test(Host::new(true));
    test(Host::new(false));
}

/// A listener and a notify socket, as an agent makes them.
pub fn held_sockets(host: &Host) -> (OwnedFd, OwnedFd) {
    let dir = host.runtime.parent().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(dir.join("process.sock")).unwrap();
    let notify = UnixDatagram::bind(dir.join("notify.sock")).unwrap();
    setsockopt(&notify, sockopt::PassCred, &true).unwrap();
    (listener.into(), notify.into())
}

/// SIGSTOP, and wait until every thread stands.
pub fn stop(pid: i32) {
    // SAFETY: our own process.
    unsafe { libc::kill(pid, libc::SIGSTOP) };
    until_true("every thread stands", || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let ids = threads.map(|t| t.file_name().to_str().unwrap().parse().unwrap());
        ids.into_iter().all(|id| stat(id).is_none_or(|s| s.state == b'T'))
    });
}

/// A tmpfs of this many bytes, unmounted at the end.
pub struct Small(pub PathBuf);

impl Small {
    pub fn at(path: PathBuf, options: &str) -> Small {
        fs::create_dir_all(&path).unwrap();
        nix::mount::mount(Some("tmpfs"), &path, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(options))
            .expect("these tests mount a small tmpfs");
        Small(path)
    }

    pub fn fill(&self) {
        let mut file = fs::File::create(self.0.join("filler")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
