//! The keeper: the small process of a host that is the parent of all game processes.
//!
//! Owns: the runs (spawn, reap, exit codes until acknowledged), their stdout and stderr, the listening
//! ends of their sockets, the game cgroups, and the fence deadline. Holds no policy: what to start, when
//! to restart and what hangs is decided by the agent, which talks to it over [`protocol`].
//!
//! One thread, one epoll loop, which touches tmpfs, cgroupfs and /proc only; and a second thread that
//! copies logs ([`logs`]), because a write to a slow disk must never delay a reap or the fence.
//!
//! | module | what it owns |
//! |---|---|
//! | [`protocol`] | the messages |
//! | [`table`] | the runs and their transitions (pure) |
//! | [`ledger`] | what a new keeper must know |
//! | [`adopt`] | taking over from a keeper that was killed |
//! | [`upgrade`] | executing a new program in place |
//! | [`spawn`], [`child`] | from a request to a program |
//! | [`runs`], [`kills`] | the life of a run: spawned, ended, killed, gone |
//! | [`requests`], [`succession`] | what the agent asks, and what it has ordered ahead |
//! | [`cgroup`], [`descent`], [`process`] | what belongs to a run, and how to kill it |
//! | [`logs`] | FIFOs, the copier, rotation |
//! | [`link`], [`notify`], [`instance`], [`poll`], [`fault`] | socket, drained datagrams, held descriptors, waiting, test points |

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::epoll::EpollFlags;
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

use self::cgroup::Cgroups;
use self::instance::Instances;
use self::ledger::Ledger;
use self::link::Link;
use self::logs::Copier;
use self::poll::{Poll, Source};
use self::protocol::{AGENT_SILENCE_MS, Reply, RunId};
use self::spawn::{Birth, Surroundings};
use self::succession::Successors;
use self::table::Table;
use crate::spec::InstanceId;
use crate::systemd::Systemd;

pub mod adopt;
pub mod cgroup;
pub mod child;
pub mod descent;
pub mod fault;
pub mod instance;
pub mod kills;
pub mod ledger;
pub mod link;
pub mod logs;
pub mod memory;
pub mod notify;
pub mod poll;
pub mod process;
pub mod protocol;
pub mod requests;
pub mod runs;
pub mod setup;
pub mod spawn;
pub mod succession;
pub mod table;
pub mod upgrade;

pub use setup::{KeeperError, Options, run};

/// Log bytes are reported at most this often.
const REPORT_NS: u64 = 1_000_000_000;
/// How soon after a fork it is looked whether the program executes, and after a run that has followed a crash at once how long
/// all else may wait. The look, and what it tells, takes a processor: on a slow machine a program needs more than a
/// millisecond to begin.
const LOOK_NS: u64 = 2_000_000;
/// After the end of one child, how long a look at the others may wait.
const SWEEP_NS: u64 = 3_000_000;
/// An exec that takes longer is reported as stuck.
const STUCK_NS: u64 = 5_000_000_000;
/// As many children that have just been forked are a crowd.
const CROWD: usize = 32;
/// A child that is on its way for longer is slow, and holds up no requests.
const CROWD_NS: u64 = 200_000_000;
/// How long after the last start or end of a run, or its own start, the memory of those is given back.
const CALM_NS: u64 = 2_000_000_000;
/// With `exit_when_idle`: how long without runs and without an agent.
const IDLE_NS: u64 = 5_000_000_000;

/// A spawn whose exec has not come back.
struct Pending {
    pid: i32,
    /// What the child uses of our memory.
    birth: Birth,
    forked_ns: u64,
    /// When it is looked again at the latest.
    look_ns: u64,
    /// It was told that it is stuck.
    stuck: bool,
}

/// A kill that has to be repeated until nothing is left.
struct Repeat {
    at_ns: u64,
    pause_ns: u64,
}

/// The keeper's whole state; one thread has it.
pub struct Keeper {
    options: Options,
    /// Tells this runtime folder's marks from those of others.
    hash: String,
    lock: OwnedFd,
    signals: SignalFd,
    poll: Poll,
    link: Link,
    systemd: Systemd,
    table: Table,
    instances: Instances,
    ledger: Ledger,
    cgroups: Cgroups,
    copier: Copier,
    surroundings: Surroundings,
    /// What is to follow a crash.
    successors: Successors,
    /// Runs between fork and exec.
    pending: BTreeMap<RunId, Pending>,
    /// The same of children of the keeper before this one.
    unborn: BTreeMap<RunId, adopt::Unborn>,
    /// Descriptors of main processes that are not our children.
    strangers: BTreeMap<RunId, OwnedFd>,
    /// Runs whose main process has ended and of which something is left.
    leftovers: BTreeSet<RunId>,
    repeats: BTreeMap<RunId, Repeat>,
    /// Instances whose leftovers were killed when this keeper started.
    strays: Vec<InstanceId>,
    /// One child's end was looked at, others may have ended: when all are looked at.
    sweep_ns: Option<u64>,
    /// This keeper or runs have started or ended; when that is long ago.
    calm_ns: Option<u64>,
    /// The deadline in force has passed and its runs were killed.
    fence_fired: bool,
    heard_ns: u64,
    /// No agent listens: the notify sockets are drained.
    draining: bool,
    /// What of the agent's socket is waited for.
    interest: EpollFlags,
    reported_ns: u64,
    report_due: bool,
    idle_since_ns: Option<u64>,
    beat_ns: u64,
    /// The program to execute as soon as nothing is in flight.
    upgrade: Option<PathBuf>,
    stopping_copier: bool,
    shutdown: bool,
    terminated: bool,
}

impl Keeper {
    /// Serves until it is told to end.
    fn serve(&mut self) -> io::Result<()> {
        self.systemd.tell("READY=1");
        self.start_draining();
        self.reap();
        let mut sources = Vec::new();
        loop {
            // What has just followed a crash begins on this processor, when we leave it: all else can wait.
            let wait = if self.successors.take_just_begun() {
                Some(LOOK_NS)
            } else {
                self.on_time(process::boottime_ns());
                self.flush();
                if self.finished() {
                    return Ok(());
                }
                let fence = self.ledger.fence_ns();
                self.poll.ring_at((fence != 0 && !self.fence_fired).then_some(fence))?;
                self.next_deadline().map(|at| at.saturating_sub(process::boottime_ns()))
            };
            self.poll.wait(&mut sources, wait.map(Duration::from_nanos))?;
            for source in &sources {
                self.on(*source);
            }
        }
    }

    fn on(&mut self, source: Source) {
        match source {
            Source::Signals => self.on_signals(),
            Source::Listener => self.on_connection(),
            Source::Agent => self.on_agent(),
            Source::Alarm => self.poll.rang(),
            Source::Logs => {
                self.copier.clear_news();
                self.report_due = true;
            }
            Source::Process(run) => self.on_stranger_end(run),
            Source::Cgroup(run) => self.settle(run),
            Source::Notify(number) => self.on_notify(number),
        }
    }

    fn on_signals(&mut self) {
        // One at a time: when there are more, the descriptor stays readable.
        let Ok(Some(info)) = self.signals.read_signal() else { return };
        match Signal::try_from(info.ssi_signo as i32) {
            Ok(Signal::SIGCHLD) => self.on_child(info.ssi_pid as i32),
            // The runs live on: whoever comes next adopts them.
            Ok(Signal::SIGTERM) => self.terminated = true,
            Ok(Signal::SIGHUP) => self.begin_upgrade(None),
            _ => {}
        }
    }

    /// What is due by now.
    fn on_time(&mut self, now: u64) {
        self.fence(now);
        if self.sweep_ns.is_some_and(|at| now >= at) {
            self.reap();
        }
        self.look_at_births(now);
        self.look_at_unborn(now);
        if self.calm_ns.is_some_and(|at| now >= at) {
            self.calm_ns = None;
            self.surroundings.rest();
            memory::give_back();
        }
        self.repeat_kills(now);
        self.report_logs(now);
        if !self.draining && now >= self.heard_ns + AGENT_SILENCE_MS * 1_000_000 {
            self.start_draining();
        }
        if let Some(pause) = self.systemd.beat_ns
            && now >= self.beat_ns + pause
        {
            self.systemd.tell("WATCHDOG=1");
            self.beat_ns = now;
        }
        let idle = self.link.agent().is_none() && self.table.living().next().is_none();
        self.idle_since_ns = idle.then(|| self.idle_since_ns.unwrap_or(now));
        self.copier.tend(now);
        self.continue_upgrade();
    }

    /// When `on_time` has something to do again, the fence aside.
    fn next_deadline(&self) -> Option<u64> {
        let idle = self.idle_since_ns.filter(|_| self.options.exit_when_idle).map(|since| since + IDLE_NS);
        let silence = (!self.draining).then(|| self.heard_ns + AGENT_SILENCE_MS * 1_000_000);
        [
            self.pending.values().map(|p| p.look_ns).min(),
            self.unborn.values().map(|child| child.look_ns).min(),
            self.sweep_ns,
            self.calm_ns,
            self.repeats.values().map(|r| r.at_ns).min(),
            self.report_due.then(|| self.reported_ns + REPORT_NS),
            self.systemd.beat_ns.map(|pause| self.beat_ns + pause),
            self.copier.due_ns(),
            idle,
            silence,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn report_logs(&mut self, now: u64) {
        if self.report_due && now >= self.reported_ns + REPORT_NS {
            self.report_due = false;
            self.reported_ns = now;
            // Without a listener they count for the next one.
            if self.link.greeted() {
                let (kept, dropped) = self.copier.take_counts();
                if kept + dropped > 0 {
                    self.link.send(&Reply::LogBytes { kept, dropped });
                }
            }
        }
    }

    fn finished(&mut self) -> bool {
        let now = process::boottime_ns();
        let idle =
            self.options.exit_when_idle && self.idle_since_ns.is_some_and(|since| now >= since + IDLE_NS);
        let emptied = self.shutdown && self.table.living().next().is_none();
        self.terminated || idle || emptied
    }

    /// Sends what waits.
    fn flush(&mut self) {
        if self.link.waits() && !self.link.flush() {
            self.lose_agent();
        }
        self.attend(process::boottime_ns());
    }

    /// Watches for room when the agent does not read, and for its requests.
    fn attend(&mut self, now: u64) {
        let mut interest = EpollFlags::empty();
        interest.set(EpollFlags::EPOLLOUT, self.link.waits());
        interest.set(EpollFlags::EPOLLIN, self.listens(now));
        if let Some(agent) = self.link.agent()
            && interest != self.interest
        {
            self.interest = interest;
            self.poll.change(agent, Source::Agent, interest);
        }
    }

    /// Requests are read now. Not while a crowd of children is on its way: these run sooner when no more join
    /// them. Nor while an upgrade waits for a child, unless that is a slow one, which must hold up nobody.
    fn listens(&self, now: u64) -> bool {
        let young = self.young(now);
        let only_slow = young == 0 && !self.pending.is_empty();
        young < CROWD && (self.upgrade.is_none() || only_slow)
    }

    /// Children that have just been forked.
    fn young(&self, now: u64) -> usize {
        self.pending.values().filter(|child| now < child.forked_ns + CROWD_NS).count()
    }
}
