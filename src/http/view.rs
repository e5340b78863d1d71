//! The JSON shapes of the API, shared by the server and the command line. Field names are stable
//! (docs/cli.md); times are RFC 3339 UTC, durations milliseconds in fields named `_ms`.

mod access;
mod cluster;
mod directory;
mod plan;

pub use access::{AuditView, NewTokenView, TokenRequest, TokenView};
pub use cluster::{HostCounts, HostView, PeerRequest, PeerView};
pub use directory::{DirectoryView, LeaderView, PlayersView, ProcessView, RunStatusView, SaidView};
pub use plan::{AppliedView, ChangedView, PlanView, SpecView};

pub use crate::client::Port as PortView;
pub use crate::client::directory::Problem;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::plan::liveness::SILENT;
use crate::spec::{HostName, InstanceId, ProcessName};
use crate::state::Target;

/// A host that the primary has not heard for this long is shown as silent: as the brake counts.
pub const SILENT_MS: u64 = SILENT.as_millis() as u64;

/// `GET /v1/healthz`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthView {
    /// The API answers.
    pub ok: bool,
    /// The version of the program.
    pub version: String,
}

/// `GET /v1/status`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatusView {
    /// The cluster's name.
    pub cluster: String,
    /// This host.
    pub host: HostName,
    /// The host that plans; null when none is known.
    pub primary: Option<HostName>,
    /// The Raft term; 0 for a host alone.
    pub term: u64,
    /// The index of the replicated state.
    pub index: u64,
    /// Whether changes can be made.
    pub quorum: bool,
    /// What this host is: `peer`, `attached`, or `alone`.
    #[serde(default)]
    pub role: String,
    /// The peer that serves it, of an attached host; null while none does.
    #[serde(default)]
    pub peer: Option<HostName>,
    /// How many hosts there are.
    #[serde(default)]
    pub hosts: HostCounts,
    /// So many hosts are silent at once that none is declared down: these.
    #[serde(default)]
    pub brake: Vec<HostName>,
    /// Without a quorum: the peers that do not answer this host, or the peer that serves it.
    #[serde(default)]
    pub missing: Vec<HostName>,
    /// Runs that do not belong where they are: their host was cut off, and they end when they can.
    #[serde(default)]
    pub superseded: u64,
    /// Instances that fit nowhere, and why.
    #[serde(default)]
    pub unplaced: BTreeMap<InstanceId, String>,
    /// Why nothing changes on this host until its agent is started again; null: all is well.
    #[serde(default)]
    pub broken: Option<String>,
    /// What keeps this host from the cluster, in words: peers that it waits for, or that do not serve it; null: nothing.
    #[serde(default)]
    pub apart: Option<String>,
    /// The revision of the spec.
    pub revision: u64,
    /// The file and the cluster's spec differ: what `bigbrother plan` would show. Null when they agree.
    pub spec_drift: Option<String>,
    /// The program's version.
    pub version: String,
    /// When the agent started.
    pub started_at: String,
    /// What a starting agent waits for before it does anything, in words; null once it is at work.
    pub starting: Option<String>,
    /// The keeper; null while the agent has no connection to one.
    pub keeper: Option<KeeperView>,
    /// How many instances there are by state.
    pub instances: BTreeMap<String, u64>,
}

/// The keeper of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeeperView {
    /// Its process.
    pub pid: i32,
    /// Its version.
    pub version: String,
    /// `full`, `kill-only` or `none`.
    pub cgroups: String,
}

/// One element of `GET /v1/instances`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InstanceView {
    /// `zone.3`
    pub instance: InstanceId,
    /// `zone`
    pub process: ProcessName,
    /// Where it is.
    pub host: HostName,
    /// `waiting`, `starting`, `ready`, `draining`, `stopping`, `stopped`, `backoff`, `failed`, `paused`;
    /// `unreachable`: its host does not answer; `superseded`: it belongs to another host now.
    pub state: String,
    /// Why it is in this state, when that is not plain: "waits for login", "exec: No such file or directory (/x)".
    pub reason: Option<String>,
    /// The main process; null without one.
    pub pid: Option<i32>,
    /// The run; null before the first.
    pub run: Option<u64>,
    /// How often it was restarted since the agent knows it (operator restarts included).
    pub restarts: u64,
    /// When the run was spawned; null without one.
    pub started_at: Option<String>,
    /// When the run got ready; null while it is not.
    pub ready_at: Option<String>,
    /// How the last run ended; null before.
    pub last_exit: Option<ExitView>,
    /// Ports by name.
    pub ports: BTreeMap<String, PortView>,
    /// Its heartbeat.
    pub heartbeat: HeartbeatView,
    /// What the process says about itself, or its query answer: players, capacity, fps, map, text, labels.
    #[schema(value_type = Object)]
    pub status: serde_json::Map<String, serde_json::Value>,
}

impl InstanceView {
    /// When its last run ended, if it has failed; `None`: it has not.
    pub fn failed_at(&self) -> Option<&str> {
        (self.state == "failed").then(|| self.last_exit.as_ref().map_or("", |exit| &exit.at))
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExitView {
    /// `exit`, `signal`, `hang`, `spawn`, `stop`, `operator`, `fence`, `stray` or `unknown`.
    pub cause: String,
    /// The exit code; null when there was none.
    pub code: Option<i32>,
    /// The signal's name, `SIGKILL`; null when there was none.
    pub signal: Option<String>,
    /// When.
    pub at: String,
    /// In words.
    pub detail: Option<String>,
}

/// The heartbeat of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeartbeatView {
    /// `native`, `notify`, `query`, `tcp`, `exec` or `none`.
    pub mode: String,
    /// Milliseconds since the last beat; null before the first and without heartbeat.
    pub age_ms: Option<u64>,
}

/// One element of `GET /v1/events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// Grows by one with each event of this host; starts anew with the agent.
    pub seq: u64,
    /// When.
    pub at: String,
    /// Where; of `host-down`, `host-up` and `primary`: which host.
    pub host: HostName,
    /// Of which instance; null where a host is concerned.
    pub instance: Option<InstanceId>,
    /// Of which run; null where none is concerned.
    pub run: Option<u64>,
    /// `started`, `ready`, `draining`, `stopping`, `hang`, `exited`, `stopped`, `backoff`, `failed`, `paused`,
    /// `resumed`, `spawn-failed`, `spawn-stuck`, `unarmed`, `unenforced`, `strays`, `adopted`,
    /// `port-moved`, `port-taken`, `announce`, `moved`; of hosts `host-down`, `host-up`, `primary`.
    pub kind: String,
    /// The cause of an end; see [`ExitView::cause`]. Of `moved`: `host-down`, `drain`, `failed` or `placement`.
    pub cause: Option<String>,
    /// In words.
    pub detail: Option<String>,
    /// Of `host-down` and `host-up` the incarnation, of `primary` the term: each host tells these events, and under the
    /// same number they are the same. Null for what only its own host tells.
    #[serde(default)]
    pub number: Option<u64>,
}

impl EventView {
    /// What tells it from all others, whoever tells it.
    pub fn mark(&self) -> (HostName, u64, String) {
        match self.number {
            Some(number) => (self.host.clone(), number, self.kind.clone()),
            None => (self.host.clone(), self.seq, self.at.clone()),
        }
    }
}

/// The body of `POST /v1/restart`; the target as in [`TargetRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestartRequest {
    /// Whom it is about.
    pub target: Target,
    /// A process, at the pace of its `update`, for a new binary at the same path; else all at once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rolling: bool,
    /// The same key within an hour does it once and gives the same answer; the header `Idempotency-Key` does
    /// as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 128)]
    pub key: Option<String>,
}

/// The answer to `POST /v1/restart`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestartedView {
    /// The instances that the target names, in order. They change after the answer, not before.
    pub instances: Vec<InstanceId>,
    /// The living runs among them, which are replaced.
    pub runs: BTreeMap<InstanceId, u64>,
    /// Those among them that have failed and that a rolling restart begins with, and when the last run of each ended.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed: BTreeMap<InstanceId, String>,
}

/// The body of `POST /v1/stop` and `/v1/start`: `{"target": "all"}`,
/// `{"target": {"process": "zone"}}` or `{"target": {"instance": "zone.3"}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetRequest {
    /// Whom it is about.
    pub target: Target,
}

/// The answer to `POST /v1/stop` and `/v1/start`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AffectedView {
    /// The instances that the target names, in order. They change after the answer, not before.
    pub instances: Vec<InstanceId>,
}

/// The body of `POST /v1/scale`, and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScaleRequest {
    /// Which.
    pub process: ProcessName,
    /// How many; null takes the override back.
    #[schema(maximum = 100000)]
    pub count: Option<u32>,
}

/// The body of `POST /v1/launch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LaunchRequest {
    /// An on-demand process.
    pub process: ProcessName,
    /// Values of `{arg.NAME}`.
    #[serde(default)]
    pub args: BTreeMap<String, String>,
    /// The same key gives the same instance while it lives; the header `Idempotency-Key` does as well.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    pub key: Option<String>,
}

/// The answer to `POST /v1/launch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LaunchedView {
    /// The launched instance.
    pub instance: InstanceId,
}

/// The body of `POST /v1/announce`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AnnounceRequest {
    /// About which.
    pub instance: InstanceId,
    /// What is about to be done to it.
    pub text: String,
}

/// The body of `POST /v1/strike`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StrikeRequest {
    /// Of which instance.
    pub instance: InstanceId,
    /// Which run; another one is not struck.
    pub run: u64,
    /// `SIGKILL`, `SIGSTOP`, `SIGCONT` or `SIGSEGV`.
    #[schema(pattern = "^SIG(KILL|STOP|CONT|SEGV)$")]
    pub signal: String,
    /// Where it runs, if that is not where it belongs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
}

/// The answer to `POST /v1/strike`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StruckView {
    /// The signal was sent; false: the run is not there any more.
    pub struck: bool,
}

/// The answer to `POST /v1/announce` and `/v1/reload`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DoneView {
    /// What came of it, in words.
    pub detail: String,
}
