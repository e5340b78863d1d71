//! What agent and keeper say to each other.
//!
//! One Unix seqpacket socket, `keeper.sock` in the runtime folder. A packet is a version byte and one or more
//! messages, each in bincode with fixed-width little-endian integers ([`encode`], [`gather`]). Descriptors
//! travel with SCM_RIGHTS on the messages that say so, which then are the first of their packet, and the only one in it
//! with descriptors. Pure: bytes in, bytes out. Called by the keeper's loop and by `agent::keeper_link`; the golden tests below hold the bytes,
//! because an upgraded agent talks to yesterday's keeper.
//!
//! A conversation: the agent sends [`Request::Hello`]; the keeper answers [`Reply::Welcome`], then
//! one [`Reply::Held`] per instance whose sockets it holds (with descriptors), one [`Reply::Run`] per run
//! in its table, the datagrams that it drained while no agent listened ([`Reply::Datagram`]), and
//! [`Reply::Listed`]. After that both sides send as things happen. A newer connection replaces an older.

use serde::{Deserialize, Serialize};

use crate::spec::InstanceId;

mod packet;
mod spawn;
#[cfg(test)]
mod tests;

pub use packet::{DecodeError, EncodeError, decode, encode, gather};
pub use spawn::{Account, LogTarget, Spawn, SpawnStep, describe_failure};

/// Version of the messages below; another one is refused at the first byte.
pub const VERSION: u8 = 1;

/// Where they meet, in the runtime folder.
pub const SOCKET: &str = "keeper.sock";

/// The largest packet; `check` refuses a command and environment that would not fit.
pub const MAX_PACKET: usize = 128 * 1024;

/// Messages are gathered up to this size, so that the other side can begin with the first.
pub const MAX_GATHERED: usize = 16 * 1024;

/// The longest note, so that it fits the ledger.
pub const MAX_NOTE: usize = 256;

/// An agent that says nothing for this long is taken for stalled: the keeper then drains the notify
/// sockets, so that no process blocks in `sd_notify`. Agents therefore send [`Request::Ping`] each second.
pub const AGENT_SILENCE_MS: u64 = 2_500;

/// A number that names one life of an instance; grows over the life of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub u64);

impl std::fmt::Display for RunId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Agent to keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The first message of a connection.
    Hello {
        /// The agent's program version, for the keeper's log.
        agent: String,
    },
    /// Nothing; shows that the agent runs.
    Ping,
    /// Keep the sockets of an instance. Descriptors: the process socket's listener, the notify socket.
    Hold {
        /// Whose they are.
        instance: InstanceId,
    },
    /// Close the sockets of an instance, remove its cgroup and FIFOs; it has no run any more.
    Release {
        /// Which instance.
        instance: InstanceId,
    },
    /// Start a run. Refused (with [`Reply::SpawnFailed`], step `Busy`) while another run of the instance lives.
    Spawn(Box<Spawn>),
    /// Send a signal.
    Signal {
        /// To which run.
        run: RunId,
        /// Which signal.
        signal: i32,
        /// To whom in the run.
        to: Target,
    },
    /// End a run and all that it started: cgroup.kill, or the fall-backs. [`Reply::Gone`] follows.
    Kill {
        /// Which run.
        run: RunId,
    },
    /// The agent has taken note of the end of a run; the keeper may forget it.
    Acknowledge {
        /// Which run.
        run: RunId,
    },
    /// The main process is now another one of the same run (`MAINPID=`).
    Follow {
        /// Which run.
        run: RunId,
        /// The process whose end ends the run. Ignored unless it belongs to the run.
        pid: i32,
    },
    /// Replace the note of a run (see [`Spawn::note`]).
    Note {
        /// Which run.
        run: RunId,
        /// At most [`MAX_NOTE`] bytes.
        note: Vec<u8>,
    },
    /// Apply changed cgroup limits to a living run: (file, value) below its cgroup.
    Limit {
        /// Which run.
        run: RunId,
        /// As in [`Spawn::limits`].
        limits: Vec<(String, String)>,
    },
    /// Kill the exclusive runs when CLOCK_BOOTTIME passes this; 0: no deadline.
    Fence {
        /// Nanoseconds of CLOCK_BOOTTIME.
        deadline_ns: u64,
    },
    /// Execute the program at this path in place, keeping children and descriptors.
    Upgrade {
        /// The new program.
        program: String,
    },
    /// Kill all runs and exit.
    Shutdown,
    /// Copy what a living run writes to another folder, or with other bounds; files only.
    Logs {
        /// Which run.
        run: RunId,
        /// As in [`Spawn::logs`].
        logs: LogTarget,
    },
    /// Whether a living run may outlive the deadline is another thing now.
    Exclusive {
        /// Which run.
        run: RunId,
        /// As in [`Spawn::exclusive`].
        exclusive: bool,
    },
    /// Start this at once when the run crashes (not: exits with 0) and nothing else of it is left: see
    /// [`Reply::Succeeded`]. Holds as long as the connection, until something is asked of the run (whatever names it but
    /// [`Request::Note`]). Nothing, if the run is over; a keeper that is busy answers with [`Reply::Gone`] all the same.
    Appoint {
        /// Which run.
        run: RunId,
        /// What follows it: of the same instance, with a number that was never used, and not exclusive.
        successor: Box<Spawn>,
    },
    /// Nothing is to follow the run by itself any more.
    Revoke {
        /// Which run.
        run: RunId,
    },
}

/// Who gets a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// The main process only.
    Main,
    /// The main process's process group.
    Group,
    /// Every process of the run.
    All,
}

/// Keeper to agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The first answer.
    Welcome {
        /// The keeper's program version.
        keeper: String,
        /// Its process.
        pid: i32,
        /// What it can do with cgroups.
        cgroups: CgroupSupport,
        /// The fence deadline in force, nanoseconds of CLOCK_BOOTTIME; 0: none.
        fence_deadline_ns: u64,
    },
    /// Descriptors: the process socket's listener and the notify socket of an instance.
    Held {
        /// Whose they are.
        instance: InstanceId,
    },
    /// One run of the table.
    Run(RunRecord),
    /// A datagram of a notify socket that arrived while no agent was reading.
    Datagram {
        /// To whose socket.
        instance: InstanceId,
        /// The sender.
        pid: i32,
        /// Its bytes (4 KiB at most).
        data: Vec<u8>,
    },
    /// The table is complete.
    Listed {
        /// Instances of which leftovers (no certain record) were killed by this keeper when it started.
        strays: Vec<InstanceId>,
    },
    /// The run's program is being executed, or another one of its processes is followed as the main one.
    Spawned {
        /// Which run.
        run: RunId,
        /// Its main process.
        pid: i32,
    },
    /// The run could not be started; nothing of it is left.
    SpawnFailed {
        /// Which run.
        run: RunId,
        /// What was being done.
        step: SpawnStep,
        /// errno, or 0.
        errno: i32,
    },
    /// The exec does not come back (dead network file system?). The run stays in the table until it does.
    SpawnStuck {
        /// Which run.
        run: RunId,
    },
    /// The main process has ended; others of the run may remain.
    Exited {
        /// Which run.
        run: RunId,
        /// How it ended.
        end: End,
    },
    /// No process of the run is left. Always the last word on a run; kept until acknowledged.
    Gone {
        /// Which run.
        run: RunId,
        /// How the main process ended.
        end: End,
        /// The keeper killed it because the fence deadline passed.
        fenced: bool,
    },
    /// Some limits could not be written (and were not required).
    Unenforced {
        /// Which run.
        run: RunId,
        /// The files.
        files: Vec<String>,
    },
    /// A request that could not be carried out.
    Refused {
        /// About which run, if any.
        run: Option<RunId>,
        /// What failed and why.
        reason: String,
    },
    /// Log bytes since the last report (sent at most once a second, when not zero).
    LogBytes {
        /// Bytes written to log files.
        kept: u64,
        /// Bytes thrown away because the disk refused them.
        dropped: u64,
    },
    /// No process of the run is left, as in [`Reply::Gone`], and the next one that was ordered ahead
    /// ([`Request::Appoint`]) was started: [`Reply::Spawned`] or [`Reply::SpawnFailed`] follows for that. Told two milliseconds
    /// or so later, so the new run may have been heard before.
    Succeeded {
        /// Which run.
        run: RunId,
        /// How the main process ended.
        end: End,
        /// How long before this word, nanoseconds.
        ago_ns: u64,
        /// The run that follows.
        by: RunId,
    },
}

/// A run as the keeper knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Its number.
    pub run: RunId,
    /// Its instance.
    pub instance: InstanceId,
    /// Its main process; 0 when none was started.
    pub pid: i32,
    /// When it was spawned, nanoseconds of CLOCK_BOOTTIME.
    pub spawned_ns: u64,
    /// How far it is.
    pub stage: Stage,
    /// See [`Spawn::exclusive`].
    pub exclusive: bool,
    /// See [`Spawn::note`].
    pub note: Vec<u8>,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Between fork and exec.
    Spawning,
    /// Alive.
    Running,
    /// The main process has ended, others are left.
    Exited(End),
    /// Nothing is left.
    Gone {
        /// How the main process ended.
        end: End,
        /// See [`Reply::Gone`].
        fenced: bool,
    },
    /// It never started; nothing is left.
    SpawnFailed {
        /// What was being done.
        step: SpawnStep,
        /// errno, or 0.
        errno: i32,
    },
}

/// How a main process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// exit(code).
    Code(i32),
    /// Killed by a signal.
    Signal {
        /// Which.
        signal: i32,
        /// It left a core.
        core: bool,
    },
    /// Nobody could watch it end.
    Unknown,
}

/// What the keeper can do with cgroups on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupSupport {
    /// Version 2 with these controllers.
    Full {
        /// Enabled controllers.
        controllers: Vec<String>,
    },
    /// Version 2 for kill and freeze only.
    KillOnly,
    /// None: killpg and a walk over descendants.
    None,
}
