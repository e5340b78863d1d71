//! What the directory shows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::PortView;
use crate::client::message::{Label, Player};
use crate::spec::{HostName, InstanceId, ProcessName};

/// A run that lives: one element of `GET /v1/directory`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// What it says about itself. Left out unless it is asked for; null when that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Option<RunStatusView>>,
}

/// What a run says about itself; null where it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunStatusView {
    /// Players now.
    pub players: Option<u32>,
    /// Players at most.
    pub capacity: Option<u32>,
    /// Simulation steps a second.
    pub fps: Option<f64>,
    /// How long a message to a player and back takes on average.
    pub ping_ms: Option<f64>,
    /// The map or level.
    pub map: Option<String>,
    /// One line for people.
    pub text: Option<String>,
    /// Anything else: text, number, true or false.
    pub labels: BTreeMap<String, Label>,
    /// How long ago it said so.
    pub age_ms: u64,
}

/// One element of the event `status` of `GET /v1/directory/watch`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SaidView {
    /// Which instance.
    pub instance: InstanceId,
    /// Where.
    pub host: HostName,
    /// Which life; with the host it names the run.
    pub run: u64,
    /// What it says.
    pub status: RunStatusView,
}

/// `GET /v1/instances/{id}/players`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlayersView {
    /// Which instance.
    pub instance: InstanceId,
    /// Where.
    pub host: HostName,
    /// Which life.
    pub run: u64,
    /// How many play; null when the run does not say.
    pub players: Option<u64>,
    /// Who, as far as the run says and goes into 16 KiB.
    pub player_list: Vec<Player>,
    /// The run told of more.
    pub truncated: bool,
}

/// `GET /v1/directory/{process}/leader`: the run that speaks for a process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
