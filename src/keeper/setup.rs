//! Starting a keeper: from options to the loop.
//!
//! Owns the order: signals are blocked before the second thread starts, the runtime folder is locked before
//! the ledger is read, and the old keeper's runs are taken over before the socket is there. Called by the
//! command line.

use std::fs::{self, File};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::cgroup::{self, Cgroups};
use super::instance::Instances;
use super::ledger::{Ledger, LedgerError};
use super::link::{self, Link};
use super::logs::Copier;
use super::poll::{Poll, Source};
use super::process::{self, boottime_ns};
use super::protocol::SOCKET;
use super::spawn::{self, Surroundings};
use super::table::Table;
use super::upgrade::Carried;
use super::{Keeper, fault};
use crate::lock;
use crate::systemd::Systemd;

/// How long a slow disk may hold up the keeper's own end.
const LAST_WORDS_NS: u64 = 2_000_000_000;
/// How long a keeper before this one that is dead may still have its lock.
const LAST_CHILD: Duration = Duration::from_secs(1);
/// How often it is looked.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How to run a keeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `keeper.sock`, `ledger`, `keeper.lock` and the FIFOs lie here; a tmpfs. Made when it is missing.
    pub runtime_dir: PathBuf,
    /// The games cgroup: a folder, or a relative path below wherever cgroup v2 is mounted; `none`: no cgroups;
    /// default: `bigbrother-<hash>` below the keeper's own cgroup.
    pub cgroup: Option<PathBuf>,
    /// Exit after 5 s without a run and without an agent (a keeper that no systemd looks after).
    pub exit_when_idle: bool,
}

/// A keeper that could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Another keeper serves the runtime folder.
    #[error("another keeper serves {0}; stop it, or give this one another --runtime-dir")]
    Taken(PathBuf),
    /// The runtime folder cannot be used.
    #[error("cannot use the runtime folder {path}; it must be a folder that the keeper may write to")]
    RuntimeDir {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The games cgroup asked for.
    #[error("cannot use the cgroup {path}; give a cgroup v2 folder that the keeper owns, or --cgroup none")]
    Cgroup {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What an upgraded keeper was handed.
    #[error("cannot read what the program before this upgrade handed over")]
    Carried(#[source] io::Error),
    /// A test's fault point.
    #[error("{0}")]
    Fault(String),
    /// The kernel refused something that every keeper needs.
    #[error("the kernel refused {what}")]
    Kernel {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn kernel<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> KeeperError {
    move |e| KeeperError::Kernel { what, source: e.into() }
}

/// Runs a keeper in this process until it is told to end. Call it on the main thread, before any other is
/// started: it sets signals, the subreaper flag and limits of the whole process.
pub fn run(options: Options) -> Result<(), KeeperError> {
    fault::arm_from_environment().map_err(KeeperError::Fault)?;
    let carried = Carried::from_environment().map_err(KeeperError::Carried)?;
    let signals = take_signals().map_err(kernel("signalfd"))?;
    nix::sys::prctl::set_child_subreaper(true).map_err(kernel("the subreaper flag"))?;
    // A child that dumps core before its exec would write this memory, and before Linux 5.16 the kernel kills
    // everybody who shares it: us. Programs are dumped as ever, an exec sets this anew.
    nix::sys::prctl::set_dumpable(false).map_err(kernel("PR_SET_DUMPABLE"))?;
    // Never dropped, whatever ends us (an error and a panic, too): a child whose exec hangs still lives in this
    // memory, and nothing that it reads must be unmapped under it.
    let mut keeper = ManuallyDrop::new(Keeper::new(options, signals, carried)?);
    keeper.serve().map_err(kernel("epoll"))?;
    keeper.link.end();
    keeper.tidy();
    Ok(())
}

/// Blocks what the loop reads, for all threads to come; what was ignored is not (children inherit that).
fn take_signals() -> io::Result<SignalFd> {
    // By the raw call: the C library keeps two of the 64 to itself, and an ignored one passes on.
    for number in 1..=64 {
        // The kernel's struct sigaction: handler, flags, restorer, mask; all zero is SIG_DFL.
        let (mut old, default) = ([0_usize; 4], [0_usize; 4]);
        let none = std::ptr::null_mut::<usize>();
        // SAFETY: both arrays are as large as the structure with a set of 64 signals.
        unsafe {
            let asked = libc::syscall(libc::SYS_rt_sigaction, number, none, old.as_mut_ptr(), 8_usize);
            if asked == 0 && old[0] == libc::SIG_IGN {
                libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), none, 8_usize);
            }
        }
    }
    // SAFETY: installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let mut read = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGHUP] {
        read.add(signal);
    }
    let mut blocked = read;
    // Ctrl-C is for the agent, which then tells us what to do.
    blocked.add(Signal::SIGINT);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&blocked), None)?;
    Ok(SignalFd::with_flags(&read, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

impl Keeper {
    fn new(options: Options, signals: SignalFd, carried: Carried) -> Result<Self, KeeperError> {
        let dir = options.runtime_dir.clone();
        let fifos = dir.join("fifo");
        let bad_dir = |source| KeeperError::RuntimeDir { path: dir.clone(), source };
        for folder in [&dir, &fifos] {
            make_dir(folder).map_err(bad_dir)?;
        }
        let lock = carried.lock.map_or_else(|| lock_dir(&dir), Ok)?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(kernel("the boot id"))?;
        let (ledger, _) = Ledger::open(&dir.join("ledger"), boot_id.trim())?;
        let hash = cgroup::hash_of(&fs::canonicalize(&dir).map_err(bad_dir)?);
        let cgroups = choose_cgroups(&options, &ledger, &hash)?;
        let mut surroundings = Surroundings::new().map_err(kernel("/dev/null"))?;
        try_out(&cgroups, &mut surroundings);
        let copier = Copier::start().map_err(kernel("the log thread"))?;
        let poll = Poll::new().map_err(kernel("epoll"))?;
        let mut keeper = Keeper {
            hash,
            lock,
            signals,
            poll,
            // Made below, once everything is taken over.
            link: Link::new(placeholder().map_err(kernel("/dev/null"))?),
            systemd: Systemd::from_environment(),
            table: Table::default(),
            instances: Instances::new(&fifos),
            ledger,
            cgroups,
            copier,
            surroundings,
            successors: Default::default(),
            pending: Default::default(),
            unborn: Default::default(),
            strangers: Default::default(),
            leftovers: Default::default(),
            repeats: Default::default(),
            strays: Vec::new(),
            sweep_ns: None,
            // What its own start has taken is given back when the runs' have started, too.
            calm_ns: Some(boottime_ns() + super::CALM_NS),
            fence_fired: false,
            heard_ns: boottime_ns(),
            draining: true,
            interest: EpollFlags::empty(),
            reported_ns: 0,
            report_due: false,
            idle_since_ns: None,
            beat_ns: boottime_ns(),
            upgrade: None,
            stopping_copier: false,
            shutdown: false,
            terminated: false,
            options,
        };
        keeper.take_over();
        for carried in carried.instances {
            let instance = keeper.instances.make(&carried.id);
            instance.held = carried.held;
            instance.kept = carried.kept;
        }
        // The FIFOs are open again by now: these kept them from being lost.
        drop(carried.fifos);
        let listener = match carried.listener {
            Some(listener) => listener,
            None => link::bind_at(&dir.join(SOCKET)).map_err(bad_dir)?,
        };
        keeper.link = Link::new(listener);
        keeper.watch().map_err(kernel("epoll"))?;
        Ok(keeper)
    }

    /// Ends the copier; when no run is left, after the last words of all of them, and without a trace.
    fn tidy(&mut self) {
        if self.table.living().next().is_none() {
            for (_, instance) in self.instances.iter_mut() {
                instance.fifos.remove(&mut self.copier);
                if let Some(cgroup) = &instance.cgroup {
                    let _ = cgroup.remove();
                }
            }
            // Refused while another instance's cgroup is there.
            let _ = self.cgroups.root().map(fs::remove_dir);
        }
        self.copier.stop();
        let until = boottime_ns() + LAST_WORDS_NS;
        while !self.copier.stopped() && boottime_ns() < until {
            self.copier.tend(boottime_ns());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    fn watch(&self) -> io::Result<()> {
        self.poll.add(&self.signals, Source::Signals, EpollFlags::EPOLLIN)?;
        self.poll.add(self.link.listener(), Source::Listener, EpollFlags::EPOLLIN)?;
        self.poll.add(self.copier.news(), Source::Logs, EpollFlags::EPOLLIN)
    }

    /// Signs the ledger as ours.
    pub(super) fn sign_ledger(&self) {
        let pid = self.surroundings.keeper_pid;
        self.ledger.set_keeper(pid, process::stat(pid).map_or(0, |s| s.start_ticks));
        self.ledger.set_games_root(self.cgroups.root());
    }
}

/// Starts a child in a cgroup of its own, to see whether one lives there at all.
fn try_out(cgroups: &Cgroups, surroundings: &mut Surroundings) {
    match cgroups.open_probe() {
        Ok(Some(probe)) => {
            spawn::clone::probe(&probe, surroundings);
            let _ = probe.remove();
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "cannot try out the games cgroup"),
    }
}

fn placeholder() -> io::Result<OwnedFd> {
    File::open("/dev/null").map(OwnedFd::from)
}

/// Run users must reach their own sockets in it, and see nothing else.
fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o711).create(path)?;
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o111 != 0o111 {
        fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o111))?;
    }
    Ok(())
}

/// A keeper that was killed as it made a child keeps its lock until that child's first step: the child shares its table of
/// descriptors, and with it the lock.
fn lock_dir(dir: &Path) -> Result<OwnedFd, KeeperError> {
    let until = Instant::now() + LAST_CHILD;
    loop {
        match lock::take(&dir.join("keeper.lock")) {
            Ok(Some(file)) => return Ok(file.into()),
            Ok(None) if Instant::now() < until => std::thread::sleep(LOOK_AGAIN),
            Ok(None) => return Err(KeeperError::Taken(dir.to_owned())),
            Err(source) => return Err(KeeperError::RuntimeDir { path: dir.to_owned(), source }),
        }
    }
}

/// Living runs stay in the games cgroup that they are in, whatever the options say now.
fn choose_cgroups(options: &Options, ledger: &Ledger, hash: &str) -> Result<Cgroups, KeeperError> {
    let in_use = ledger.entries().iter().any(|(_, entry)| entry.record.in_cgroup);
    if in_use && let Some(root) = ledger.games_root() {
        match Cgroups::at(&root) {
            Ok(cgroups) => return Ok(cgroups),
            Err(error) => tracing::error!(%error, root = %root.display(), "lost the games cgroup"),
        }
    }
    match &options.cgroup {
        Some(path) if path.as_os_str() == "none" => Ok(Cgroups::none()),
        Some(path) => named_cgroups(path),
        None => Ok(default_cgroups(hash)),
    }
}

/// A unit knows the name of its cgroup, but not where the hierarchy is mounted: hybrid hosts have it elsewhere.
fn named_cgroups(path: &Path) -> Result<Cgroups, KeeperError> {
    let mut root = path.to_owned();
    if path.is_relative() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let Some(found) = cgroup::find(&mounts, &Path::new("/").join(path)) else {
            tracing::warn!("no cgroup v2 here: runs are killed by walking over their descendants");
            return Ok(Cgroups::none());
        };
        root = found;
    }
    Cgroups::at(&root).map_err(|source| KeeperError::Cgroup { path: root, source })
}

fn default_cgroups(hash: &str) -> Cgroups {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let Some(own) = cgroup::find_own(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup")) else {
        tracing::warn!("no cgroup v2 here: runs are killed by walking over their descendants");
        return Cgroups::none();
    };
    let root = own.join(format!("bigbrother-{hash}"));
    Cgroups::at(&root).unwrap_or_else(|error| {
        tracing::warn!(%error, root = %root.display(), "no games cgroup: descendants are walked over instead");
        Cgroups::none()
    })
}
