//! The replicated state and the commands that change it.
//!
//! Owns what the whole cluster agrees on: spec, scale overrides, pauses, hosts, placements, the directory.
//! [`State::apply`] is deterministic: the same commands in the same order give the same state on every
//! host, and every command is idempotent or guarded. Pure: time is stamped in the command by its proposer.
//! Called by the replica (one host now, Raft later); read by everything. The files: `apply` is the list of
//! commands and what operators ask for, `hosts` who is in the cluster, `placing` who may run what,
//! `directory` what runs, `rest` what runs no more, `epoch` what is restarted as a whole, `clock` what time it is, `leader`
//! who speaks for a process, `recover` how a copy that was put back goes on, `access` who may ask the API, `shared_map` how
//! the large maps lie in memory, [`check`] what must always be true.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::keeper::protocol::{End, RunId};
use crate::spec::fingerprint::SpecHash;
use crate::spec::{HostName, InstanceId, Population, Process, ProcessName, Spec, TokenName};

pub mod access;
mod apply;
pub mod check;
mod clock;
mod command;
mod directory;
mod epoch;
mod hosts;
mod journal;
mod leader;
mod placing;
mod ports;
mod recover;
mod rest;
mod settings;
mod shared_map;

pub use access::{ApiToken, Role};
pub use clock::Clock;
pub use command::{
    Command, Envelope, Event, EventKind, HostFacts, PlaceChange, Rejected, Response, RunFact, Target,
};
pub use journal::{Change, Changed};
pub use leader::Leader;
pub use ports::Ports;
pub use settings::{MARGIN, Pending, Settings, Version};
pub use shared_map::SharedMap;

/// What the whole cluster agrees on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Grows by one with each applied command.
    pub index: u64,
    /// The newest stamp seen ([`Clock`]), milliseconds since 1970; never used for order.
    pub now_ms: u64,
    /// Grows with each applied spec; 0: none yet.
    pub revision: u64,
    /// Grows with each change that a plan depends on; guards [`Command::Place`].
    pub basis: u64,
    /// The desired set.
    pub spec: Spec,
    /// When a process was last changed so that instances must be replaced or go, milliseconds since 1970.
    pub changed_ms: BTreeMap<ProcessName, u64>,
    /// How often the instances of a process were asked for anew; no entry: never.
    pub epochs: BTreeMap<ProcessName, u64>,
    /// Counts that replace those of the spec.
    pub scales: BTreeMap<ProcessName, Scale>,
    /// What an operator has stopped.
    pub paused: Pauses,
    /// Every host that has joined.
    pub hosts: SharedMap<HostName, Host>,
    /// Where instances belong.
    pub placements: SharedMap<InstanceId, Placement>,
    /// Launched on-demand instances that are not done.
    pub launches: SharedMap<InstanceId, Launch>,
    /// The next counter of each on-demand process; never goes back.
    pub counters: BTreeMap<ProcessName, u64>,
    /// Live runs, one an instance: that of the host it is placed on, where there are more.
    pub directory: SharedMap<InstanceId, Entry>,
    /// Live runs beside those: a host that was cut off is back and has not ended them yet.
    pub superseded: BTreeMap<InstanceId, BTreeMap<HostName, Entry>>,
    /// Who alone may run an exclusive instance, from its placement until it is released.
    pub claims: SharedMap<InstanceId, Claim>,
    /// Who speaks for a process.
    pub leaders: BTreeMap<ProcessName, Leader>,
    /// Placed instances of which their host starts no further run by itself.
    pub rests: SharedMap<InstanceId, Rest>,
    /// Hosts on which an instance was given up, by its rests there: until it runs there after all, is resumed, or
    /// its process changes or is rolled.
    pub failed: BTreeMap<InstanceId, BTreeSet<HostName>>,
    /// Launched instances that are done, for an hour.
    pub finished: BTreeMap<InstanceId, Finished>,
    /// The last incarnation given; all hosts share the count, so it grows also for a host that was forgotten.
    pub incarnations: u64,
    /// The spans of time that all hosts go by.
    pub settings: Settings,
    /// Settings that wait for the older, longer ones to have passed.
    pub pending: Option<Pending>,
    /// Which commands every program of the cluster knows.
    pub version: Version,
    /// Who may ask the API over TCP.
    pub api_tokens: BTreeMap<TokenName, ApiToken>,
}

/// A count set by `scale`; it lasts until the spec's own count changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    /// The count in force.
    pub count: u32,
    /// The spec's count when it was set.
    pub declared: u32,
}

impl Scale {
    /// True while the process, as the spec has it, still has the count beside which this was set.
    pub fn lasts(&self, process: Option<&Process>) -> bool {
        process.is_some_and(|process| process.population == Population::Count(self.declared))
    }
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
    /// A plan was made that knows of this life of the host; before that it ends nothing.
    pub planned: bool,
    /// Its instances move elsewhere.
    pub drained: bool,
    /// The sequence number of the last event applied.
    pub last_seq: u64,
    /// When it was last declared down, milliseconds since 1970; 0: never.
    pub down_ms: u64,
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

/// The right to run an exclusive instance. It outlives the placement: whoever was told to run it may be
/// about to, although nothing was heard of a run yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Whose.
    pub host: HostName,
    /// The placement that it comes from; a release must name it.
    pub generation: u64,
}

/// A launched instance that is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Where it ran.
    pub host: HostName,
    /// How its last run ended.
    pub end: End,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
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
    pub ports: Ports,
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

/// The entries of one process in a map by instance, without a look at the others.
pub fn of_process<'a, V>(
    map: &'a SharedMap<InstanceId, V>,
    name: &ProcessName,
) -> shared_map::Iter<'a, InstanceId, V> {
    // Numbers come before hosts.
    let first = InstanceId::numbered(name.clone(), 0);
    let last = InstanceId::on_host(name.clone(), HostName::last());
    map.range(first..=last)
}

#[cfg(test)]
mod tests;
