//! What the directory shows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::client::message::Player;
use crate::spec::{HostName, InstanceId, ProcessName};

pub use crate::client::directory::{
    Entry as DirectoryView, Leader as LeaderView, RunStatus as RunStatusView, Said as SaidView,
};

/// `GET /v1/instances/{id}/players`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

/// One element of `GET /v1/processes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
