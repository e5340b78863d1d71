//! The commands of the replicated state, their answers and refusals.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Ended, Rest, Role, Settings, Version};
use crate::keeper::protocol::RunId;
use crate::spec::fingerprint::SpecHash;
use crate::spec::{HostName, InstanceId, ProcessName, Protocol, Spec, TokenName};

/// A command with its proposer's clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Milliseconds since 1970, by the proposer's clock.
    pub stamp_ms: u64,
    /// What to do.
    pub command: Command,
}

/// A change of the replicated state. Append-only: the position is the tag on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Replace the desired set.
    ApplySpec {
        /// The new set.
        spec: Spec,
        /// Refused unless the revision is this one; `None`: whatever it is.
        expected_revision: Option<u64>,
    },
    /// Override the count of a process; `None` takes the override back.
    Scale {
        /// Which.
        process: ProcessName,
        /// How many.
        count: Option<u32>,
    },
    /// Stop instances until [`Command::Resume`].
    Pause {
        /// Which.
        target: Target,
    },
    /// Let paused (and failed) instances run.
    Resume {
        /// Which.
        target: Target,
    },
    /// A host (re)joins; it is given an incarnation.
    JoinHost {
        /// Its name.
        host: HostName,
        /// What it says about itself.
        facts: HostFacts,
    },
    /// Where instances belong from now on.
    Place {
        /// [`super::State::basis`] of the plan.
        based_on: u64,
        /// What changes.
        changes: Vec<PlaceChange>,
    },
    /// What happened on a host; applied exactly once by incarnation and sequence.
    Events {
        /// Where.
        host: HostName,
        /// Which life of the host.
        incarnation: u64,
        /// The sequence number of the first one.
        first_seq: u64,
        /// In order.
        events: Vec<Event>,
    },
    /// Launch an instance of an on-demand process.
    Launch {
        /// Which.
        process: ProcessName,
        /// Values of `{arg.NAME}`.
        args: BTreeMap<String, String>,
        /// The same key gives the same instance while it lives.
        key: Option<String>,
    },
    /// Everything that runs on a host; the directory is made to agree (anti-entropy, on every attach).
    Inventory {
        /// Where.
        host: HostName,
        /// Which life of the host.
        incarnation: u64,
        /// The sequence number of the last event that the list holds; an older list is ignored.
        seq: u64,
        /// Every live run.
        runs: BTreeMap<InstanceId, RunFact>,
        /// Every instance that the host knows to rest; of others it may not know yet.
        rests: BTreeMap<InstanceId, Rest>,
    },
    /// Replace every run of a process at the pace of its `update`: a new binary lies at the same path.
    Roll {
        /// Which.
        process: ProcessName,
        /// The epoch to be reached, one after [`super::State::epochs`]; sent again it changes nothing.
        epoch: u64,
    },
    /// A host was silent for `host_timeout`: its runs are over (or fenced), its instances go elsewhere.
    HostDown {
        /// Which.
        host: HostName,
        /// Which life; a host that has joined again is not meant.
        incarnation: u64,
    },
    /// A host's instances go elsewhere, or may come (back) again.
    DrainHost {
        /// Which.
        host: HostName,
        /// It is to be empty.
        drained: bool,
    },
    /// Change the spans of time that all hosts go by.
    Settings {
        /// The new ones.
        settings: Settings,
    },
    /// The primary has waited out the older, longer settings.
    Settle {
        /// [`super::Pending::since`] of those that it waited for.
        since: u64,
    },
    /// Every program of the cluster knows the commands of this version.
    Upgrade {
        /// Only grows.
        to: Version,
    },
    /// Somebody may ask the API.
    TokenCreate {
        /// By this name; one that there is already is refused.
        name: TokenName,
        /// What.
        role: Role,
        /// The SHA-256 of the secret.
        hash: [u8; 32],
        /// Until then, milliseconds since 1970; `None`: until it is revoked.
        expires_ms: Option<u64>,
    },
    /// And may no more.
    TokenRevoke {
        /// By this name.
        name: TokenName,
    },
    /// This state is a copy that was put back: what was given out after it was made is not given out again.
    Recover,
}

/// A live run, as its host sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFact {
    /// Which life.
    pub run: RunId,
    /// Its spec.
    pub hash: SpecHash,
    /// Its ports.
    pub ports: BTreeMap<String, (Protocol, u16)>,
    /// It is ready.
    pub ready: bool,
}

/// Whom a command is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Everything.
    All,
    /// All instances of a process, later ones included.
    Process(ProcessName),
    /// One instance.
    Instance(InstanceId),
}

/// What a host says about itself when it joins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Tells a cloned machine from the original.
    pub machine_id: String,
    /// What clients reach it by.
    pub address: String,
    /// Where its agent listens for other agents, `host:port`; empty: nowhere.
    pub agent: String,
    /// Labels for placement.
    pub labels: BTreeMap<String, String>,
    /// What instances may take; no entry: no bound.
    pub capacity: BTreeMap<String, u64>,
    /// Limits that it can enforce: `memory`, `cpu`, `pids`.
    pub enforces: Vec<String>,
    /// The newest commands that its program knows.
    pub version: Version,
}

/// One change of placements.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlaceChange {
    /// The instance belongs to this host, and its runs have this spec.
    Put {
        /// Which.
        instance: InstanceId,
        /// Where.
        host: HostName,
        /// Its spec.
        hash: SpecHash,
    },
    /// The instance is not wanted any more.
    Remove {
        /// Which.
        instance: InstanceId,
    },
}

/// Something that happened to a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// To an instance.
    pub instance: InstanceId,
    /// To a run of it.
    pub run: RunId,
    /// What.
    pub kind: EventKind,
}

/// What happened to a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// It was spawned.
    Started {
        /// Its spec.
        hash: SpecHash,
        /// Its ports.
        ports: BTreeMap<String, (Protocol, u16)>,
    },
    /// It is ready.
    Ready,
    /// It is ready no more, but lives (draining).
    Unready,
    /// Nothing of it is left.
    Stopped(Ended),
    /// Nor does another run follow by itself. Where the run was never started there is no `Stopped` before it.
    Rests(Rest),
    /// The host has no run of the exclusive instance and starts none before it is placed there anew.
    /// [`EventKind::Stopped`] cannot say that: a restart may be under way behind it.
    Released {
        /// [`super::Claim::generation`] of what is given back.
        generation: u64,
    },
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// Done.
    Done,
    /// The spec has this revision now.
    Revision(u64),
    /// The host has this incarnation now.
    Incarnation(u64),
    /// The launched instance.
    Launched(InstanceId),
}

/// Why a command was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejected {
    /// Somebody else applied a spec in between.
    #[error("the spec has revision {found}, not {expected}: look at `bigbrother plan` and apply again")]
    Revision {
        /// Asked for.
        expected: u64,
        /// In force.
        found: u64,
    },
    /// The plan is older than the state.
    #[error("the plan is based on {based_on}, the state is at {basis}")]
    StalePlan {
        /// Of the plan.
        based_on: u64,
        /// Of the state.
        basis: u64,
    },
    /// An exclusive instance cannot be placed elsewhere while its run may live.
    #[error("{0} is exclusive and its run is not known to have stopped")]
    StillRuns(InstanceId),
    /// The host of a placement is down or has not joined.
    #[error("host {0} is down or has not joined")]
    NotUp(HostName),
    /// No such host.
    #[error("there is no host {0}")]
    NoHost(HostName),
    /// With these settings a cut-off host and its successor could run one exclusive instance.
    #[error("host_timeout must be at least fence_after + fence_kill + 1s, and fence_after not be zero")]
    Unsafe,
    /// Some program of the cluster would not understand it.
    #[error(
        "the cluster is at version {found:?}, this needs {needed:?}: update the agents of all hosts first"
    )]
    Version {
        /// By the command.
        needed: Version,
        /// In force.
        found: Version,
    },
    /// No such process.
    #[error("there is no process {0}")]
    NoProcess(ProcessName),
    /// No such instance.
    #[error("there is no instance {0}")]
    NoInstance(InstanceId),
    /// Only a process with a `count` can be scaled.
    #[error("{0} has no count: only a process with `count` can be scaled")]
    NotCounted(ProcessName),
    /// Only an on-demand process can be launched.
    #[error("{0} is not on_demand: its instances are not launched")]
    NotOnDemand(ProcessName),
    /// As many as `max` live already.
    #[error(
        "{process} has as many instances as its on_demand max allows, {max}: wait for one to end, or raise it"
    )]
    Full {
        /// Which.
        process: ProcessName,
        /// Its bound.
        max: u32,
    },
    /// A launch without a value that its command, environment or folder needs.
    #[error(
        "a launch of {process} needs the argument {missing}: `--arg {missing}=VALUE`, or `args` over a socket"
    )]
    NoArgument {
        /// What was to be launched.
        process: ProcessName,
        /// The NAME of `{arg.NAME}`.
        missing: String,
    },
    /// The key names a launch with other arguments.
    #[error(
        "the key {key:?} is that of {instance}, launched with other arguments: each launch has a key of its own"
    )]
    OtherLaunch {
        /// The launcher's key.
        key: String,
        /// What it was used for.
        instance: InstanceId,
    },
    /// The host's machine-id is not that of the host that holds the name.
    #[error("host {0} is up with another machine-id: is this machine a clone? Give it a name of its own")]
    CloneOf(HostName),
    /// No such host, or an older life of it.
    #[error("host {0} has a newer incarnation or has not joined")]
    OldIncarnation(HostName),
    /// Somebody else has rolled the process in between.
    #[error(
        "{process} is at restart {found}, not at {expected}: others restart it, too; ask again if it is still meant"
    )]
    Epoch {
        /// Which.
        process: ProcessName,
        /// The epoch before the one asked for.
        expected: u64,
        /// In force.
        found: u64,
    },
    /// Events are missing before this batch.
    #[error("the batch starts at {first_seq}, the next event of {host} is {next}")]
    Gap {
        /// Whose.
        host: HostName,
        /// Of the batch.
        first_seq: u64,
        /// Of the state.
        next: u64,
    },
    /// A token of that name is there.
    #[error("there is a token {0} already: `bigbrother token revoke {0}` first, or take another name")]
    TokenExists(TokenName),
    /// No such token.
    #[error("there is no token {0}: `bigbrother token list` shows them")]
    NoToken(TokenName),
    /// As many as there may be.
    #[error("there are {} tokens, and no more are possible: revoke some", super::access::MAX_TOKENS)]
    TooManyTokens,
}
