//! The words of the desired set: processes, instances and their policies.
//!
//! Owns the plain data that `config` produces and everything else reads: state holds a [`Spec`],
//! the plan places its instances, the host core follows its policies. Pure: no clock, no files, no
//! sockets. It never reads TOML (that is `config`) and never decides anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub mod fingerprint;
pub mod name;
pub mod probe;
pub mod template;

pub use name::{HostName, InstanceId, InstanceKey, InvalidName, ProcessName, TokenName};
pub use probe::{Probe, QueryProtocol};

/// The most instances that a process may be declared or scaled to have.
pub const MAX_COUNT: u32 = 100_000;

/// The whole desired set of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Every declared process by its name.
    pub processes: BTreeMap<ProcessName, Arc<Process>>,
}

/// One entry of the desired set, `[process.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The program and its arguments, templates unexpanded. Never empty, never a shell line.
    pub command: Vec<String>,
    /// How many instances there are and what names them.
    pub population: Population,
    /// Named ports; each becomes the template `{port.NAME}`.
    pub ports: BTreeMap<String, PortRequest>,
    /// The account to run as; `None`: the agent's own.
    pub user: Option<String>,
    /// The group to run as; `None`: the user's primary group.
    pub group: Option<String>,
    /// The folder to start in (template); `None`: the instance's `{data}` folder.
    pub working_dir: Option<String>,
    /// Environment variables (values are templates) on top of the small default environment.
    pub env: BTreeMap<String, String>,
    /// The file mode creation mask.
    pub umask: u32,
    /// The scheduling priority, -20 to 19.
    pub nice: i32,
    /// SIGPIPE is ignored in the new process unless this is false.
    pub ignore_sigpipe: bool,
    /// What makes a starting run ready.
    pub ready: Ready,
    /// What shows that a run is alive.
    pub heartbeat: Heartbeat,
    /// When and how fast a dead run is followed by another.
    pub restart: Restart,
    /// How a run is asked to end, and for how long.
    pub stop: Stop,
    /// How long a draining run may take before it is stopped.
    pub drain: Drain,
    /// Bounds on what a run may use.
    pub limits: Limits,
    /// Where instances may go.
    pub placement: PlacementPolicy,
    /// How a changed process is rolled out.
    pub update: Update,
    /// Processes that must be ready before an instance of this one starts.
    pub after: Vec<ProcessName>,
    /// What a host cut off from the cluster does with its instances.
    pub on_partition: OnPartition,
    /// Where stdout and stderr go.
    pub logs: Logs,
    /// An opaque version; changing it restarts the instances.
    pub build: Option<String>,
    /// Processes that an instance of this one may launch over its process socket.
    pub launch: Vec<ProcessName>,
    /// Free labels, shown in the directory.
    pub labels: BTreeMap<String, String>,
}

/// How many instances a process has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Population {
    /// `count = N`: ordinals 0 to N-1.
    Count(u32),
    /// `per_host = true`: one on every fit host, named by the host.
    PerHost,
    /// `on_demand = { max = N }`: launched by request, numbered by a counter, gone when done.
    OnDemand {
        /// The largest number of live instances.
        max: u32,
    },
}

/// The transport of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// A datagram port.
    Udp,
    /// A stream port.
    Tcp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Udp => "udp",
            Protocol::Tcp => "tcp",
        })
    }
}

/// A port that a process asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRequest {
    /// The transport.
    pub protocol: Protocol,
    /// A fixed number, or `None` for a free one from the host's range.
    pub fixed: Option<u16>,
}

/// What makes a run ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The sign that is waited for.
    pub mode: ReadyMode,
    /// From spawn to ready; a run that takes longer counts as hung.
    pub timeout: Duration,
}

/// The sign of readiness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadyMode {
    /// The JSON-RPC message `ready`.
    Native,
    /// `READY=1` on the notify socket.
    Notify,
    /// An answer of the game's own query protocol, a TCP connection, or a command that exits 0.
    Probe(Probe),
    /// The run has lived this long.
    Spawned {
        /// How long.
        after: Duration,
    },
}

/// What shows that a run is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The sign that is watched.
    pub mode: HeartbeatMode,
    /// How often a probe asks, and how often a process is asked to beat.
    pub interval: Duration,
    /// Silence for this long is a hang.
    pub timeout: Duration,
    /// What happens to a hung run.
    pub on_hang: OnHang,
    /// How long an aborted run may write its core before it is killed.
    pub abort_timeout: Duration,
}

/// The sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeartbeatMode {
    /// The JSON-RPC message `heartbeat`.
    Native,
    /// `WATCHDOG=1` on the notify socket.
    Notify,
    /// Asked from outside every `interval`.
    Probe(Probe),
    /// Nothing: only the end of the process is seen.
    None,
}

/// What happens to a run that hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnHang {
    /// SIGKILL at once.
    Kill,
    /// SIGABRT first, so that it may leave a core.
    Abort,
}

/// When a dead run is followed by another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// After which ends.
    pub policy: RestartPolicy,
    /// Growing delays; `None`: always at once.
    pub backoff: Option<Backoff>,
    /// A run that was ready this long clears the count of failures.
    pub healthy_after: Duration,
    /// When to stop trying; `None`: never.
    pub give_up: Option<GiveUp>,
}

/// After which ends an instance is restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// After every end.
    Always,
    /// After every end but exit code 0.
    OnFailure,
    /// Never.
    Never,
}

/// Exponential delays between restarts. The first restart never waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// The first delay.
    pub min: Duration,
    /// The longest delay.
    pub max: Duration,
}

/// More than `failures` ends within `within` make an instance failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GiveUp {
    /// How many failures are borne.
    pub failures: u32,
    /// In which span.
    pub within: Duration,
}

/// How a run is asked to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// The signal for a process that has no connection on its process socket.
    pub signal: i32,
    /// From asking to killing.
    pub timeout: Duration,
}

/// How long a run may drain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// From `draining` to the stop.
    pub timeout: Duration,
}

/// Bounds on what a run may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory (cgroup v2).
    pub memory: Option<u64>,
    /// Thousandths of a core (cgroup v2).
    pub cpu_milli: Option<u64>,
    /// Threads and processes (cgroup v2).
    pub pids: Option<u64>,
    /// Open files (RLIMIT_NOFILE).
    pub files: Option<u64>,
    /// Bytes of a core file (RLIMIT_CORE).
    pub core: Option<u64>,
    /// Refuse a host that cannot enforce the cgroup limits.
    pub required: bool,
}

/// Where instances may go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementPolicy {
    /// Labels that a host must have.
    pub labels: BTreeMap<String, String>,
    /// How hosts are chosen among the fit ones.
    pub strategy: Strategy,
    /// The largest number of instances on one host.
    pub max_per_host: Option<u32>,
    /// What one instance takes of a host's `capacity`.
    pub needs: BTreeMap<String, u64>,
}

/// How hosts are chosen among the fit ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Evenly.
    Spread,
    /// As few hosts as will do.
    Pack,
}

/// How a changed process is rolled out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// How many instances may be down at once for the update's sake.
    pub max_unavailable: u32,
    /// Take instances without players first and wait for the others.
    pub when_empty: bool,
    /// After this wait, take the others too.
    pub deadline: Option<Duration>,
}

/// What a host cut off from the cluster does with the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnPartition {
    /// Players play on.
    Keep,
    /// Exclusive: killed before another host may start it.
    Stop,
}

/// Where stdout and stderr go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Logs {
    /// Rotated files below the host's data folder.
    Files {
        /// Bytes of one file, about.
        size: u64,
        /// How many files are kept, the current one included.
        files: u32,
    },
    /// A stream of the systemd journal.
    Journald,
    /// /dev/null.
    Null,
}

impl Spec {
    /// Every fixed port that some process asks for.
    pub fn fixed_ports(&self) -> impl Iterator<Item = (Protocol, u16)> {
        self.processes.values().flat_map(|process| process.fixed_ports())
    }
}

impl Process {
    /// The ports that it asks for by number.
    pub fn fixed_ports(&self) -> impl Iterator<Item = (Protocol, u16)> {
        self.ports.values().filter_map(|request| Some((request.protocol, request.fixed?)))
    }

    /// The NAMEs of `{arg.NAME}` in what a run of it is started with.
    pub fn arguments(&self) -> BTreeSet<String> {
        let texts = self.command.iter().chain(self.env.values()).chain(&self.working_dir);
        // What is no template is told when a run of it is resolved.
        let parts = texts.filter_map(|text| template::parse(text).ok()).flatten();
        let named = parts.filter_map(|part| match part {
            template::Part::Variable(template::Variable::Arg(name)) => Some(name),
            _ => None,
        });
        named.collect()
    }

    /// True when two runs of an instance must never live at once, whatever fails.
    pub fn exclusive(&self) -> bool {
        self.on_partition == OnPartition::Stop
    }
}
