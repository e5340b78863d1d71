//! The replicated state and the commands that change it.
//!
//! Owns what the whole cluster agrees on: spec, scale overrides, pauses, hosts, placements, the directory.
//! [`State::apply`] is deterministic: the same commands in the same order give the same state on every
//! host, and every command is idempotent or guarded. Pure: time is stamped in the command by its proposer.
//! Called by the replica (one host now, Raft later); read by everything.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::keeper::protocol::{End, RunId};
use crate::spec::fingerprint::SpecHash;
use crate::spec::{HostName, InstanceId, ProcessName, Protocol, Spec};

mod apply;
mod command;
mod epoch;

pub use command::{
    Command, Envelope, Event, EventKind, HostFacts, PlaceChange, Rejected, Response, RunFact, Target,
};

/// What the whole cluster agrees on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Grows by one with each applied command.
    pub index: u64,
    /// The newest proposer's clock seen, milliseconds since 1970; never used for order.
    pub now_ms: u64,
    /// Grows with each applied spec; 0: none yet.
    pub revision: u64,
    /// Grows with each change that a plan depends on; guards [`Command::Place`].
    pub basis: u64,
    /// The desired set.
    pub spec: Spec,
    /// When a process was last changed so that its instances must be replaced, milliseconds since 1970.
    pub changed_ms: BTreeMap<ProcessName, u64>,
    /// How often the instances of a process were asked for anew; no entry: never.
    pub epochs: BTreeMap<ProcessName, u64>,
    /// Counts that replace those of the spec.
    pub scales: BTreeMap<ProcessName, Scale>,
    /// What an operator has stopped.
    pub paused: Pauses,
    /// Every host that has joined.
    pub hosts: BTreeMap<HostName, Host>,
    /// Where instances belong.
    pub placements: BTreeMap<InstanceId, Placement>,
    /// Launched on-demand instances that are not done.
    pub launches: BTreeMap<InstanceId, Launch>,
    /// The next counter of each on-demand process; never goes back.
    pub counters: BTreeMap<ProcessName, u64>,
    /// Live runs.
    pub directory: BTreeMap<InstanceId, Entry>,
    /// Placed instances of which their host starts no further run by itself.
    pub rests: BTreeMap<InstanceId, Rest>,
}

/// A count set by `scale`; it lasts until the spec's own count changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    /// The count in force.
    pub count: u32,
    /// The spec's count when it was set.
    pub declared: u32,
}

/// What an operator has stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pauses {
    /// Everything.
    pub all: bool,
    /// Whole processes.
    pub processes: BTreeSet<ProcessName>,
    /// Single instances.
    pub instances: BTreeSet<InstanceId>,
    /// Single instances that run although `all` or their process is paused.
    pub except: BTreeSet<InstanceId>,
}

impl Pauses {
    /// True when the instance must not run.
    pub fn holds(&self, instance: &InstanceId) -> bool {
        self.instances.contains(instance)
            || ((self.all || self.processes.contains(&instance.process)) && !self.except.contains(instance))
    }
}

/// A host that has joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Which life of the host; events of an older one are refused.
    pub incarnation: u64,
    /// What it says about itself.
    pub facts: HostFacts,
    /// Instances may be placed here.
    pub up: bool,
    /// Its instances move elsewhere.
    pub drained: bool,
    /// The sequence number of the last event applied.
    pub last_seq: u64,
}

/// Which host an instance belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Where.
    pub host: HostName,
    /// Grows with each placement of the instance.
    pub generation: u64,
    /// The spec that its runs must have.
    pub hash: SpecHash,
}

/// An on-demand instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Values of `{arg.NAME}`.
    pub args: BTreeMap<String, String>,
    /// The launcher's key: the same key gives the same instance.
    pub key: Option<String>,
    /// When it was launched, milliseconds since 1970.
    pub at_ms: u64,
}

/// A live run in the directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where.
    pub host: HostName,
    /// Which life.
    pub run: RunId,
    /// Its spec.
    pub hash: SpecHash,
    /// How clients reach it.
    pub address: String,
    /// Its ports.
    pub ports: BTreeMap<String, (Protocol, u16)>,
    /// The state index of its start.
    pub started: u64,
    /// The state index at which it got ready; `None` while it is not.
    pub ready: Option<u64>,
}

/// The end of a run, as the directory is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// How.
    pub end: End,
    /// The host will not start another run of the instance by itself: it is done.
    pub done: bool,
}

/// That a host starts no further run of an instance by itself: it is done, or it has failed too often. Ended
/// by its next run, `start`, a new placement or a changed spec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest {
    /// The last run.
    pub run: RunId,
    /// How that ended.
    pub end: End,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// Why the host gave up; `None`: the run did what it was for.
    pub failed: Option<String>,
}

#[cfg(test)]
mod tests;
