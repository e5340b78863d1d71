//! What the directory shows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::PortView;
use crate::spec::{HostName, InstanceId, ProcessName};

/// A run that lives: one element of `GET /v1/directory`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryView {
    /// Of which instance.
    pub instance: InstanceId,
    /// Of which process.
    pub process: ProcessName,
    /// Where.
    pub host: HostName,
    /// Which life; with the host it names the run.
    pub run: u64,
    /// How clients reach it.
    pub address: String,
    /// Its ports by their names.
    pub ports: BTreeMap<String, PortView>,
    /// It is ready.
    pub ready: bool,
    /// The state index of its start: the eldest has the smallest.
    pub started: u64,
    /// The labels of its process.
    pub labels: BTreeMap<String, String>,
}

/// `GET /v1/directory/{process}/leader`: the run that speaks for a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderView {
    /// The fencing token: it grows with each election, so who shows a smaller one is leader no more.
    pub token: u64,
    /// The run.
    #[serde(flatten)]
    pub entry: DirectoryView,
}

/// One element of `GET /v1/processes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessView {
    /// Which.
    pub process: ProcessName,
    /// `count`, `per_host` or `on_demand`.
    pub population: String,
    /// How many there are to be; null where hosts or launches say so.
    pub count: Option<u32>,
    /// How many instances are placed on a host.
    pub placed: u64,
    /// How many runs live.
    pub running: u64,
    /// How many of them are ready.
    pub ready: u64,
    /// An operator has stopped the process as a whole.
    pub paused: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The run that speaks for it; null when none is ready.
    pub leader: Option<InstanceId>,
}
