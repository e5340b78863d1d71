//! What the directory shows: the shapes of `/v1/directory`, the same on both ends. Field names are stable.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::client::message::{Label, Port};
use crate::spec::{HostName, InstanceId, ProcessName};

/// A run that lives: one element of `GET /v1/directory`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
pub struct Entry {
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
    pub ports: BTreeMap<String, Port>,
    /// It is ready.
    pub ready: bool,
    /// The state index of its start: the eldest has the smallest.
    pub started: u64,
    /// The labels of its process.
    pub labels: BTreeMap<String, String>,
    /// What it says about itself. Left out unless it is asked for; null when that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Option<RunStatus>>,
}

/// What a run says about itself; null where it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
pub struct RunStatus {
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
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
pub struct Said {
    /// Which instance.
    pub instance: InstanceId,
    /// Where.
    pub host: HostName,
    /// Which life; with the host it names the run.
    pub run: u64,
    /// What it says.
    pub status: RunStatus,
}

/// `GET /v1/directory/{process}/leader`: the run that speaks for a process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
pub struct Leader {
    /// The fencing token: it grows with each election, so who shows a smaller one is leader no more.
    pub token: u64,
    /// The run.
    #[serde(flatten)]
    pub entry: Entry,
}

/// RFC 9457 problem details, the body of every refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
#[error("{title}: {detail} ({kind})")]
pub struct Problem {
    /// A short word that programs can match.
    #[serde(rename = "type")]
    pub kind: String,
    /// What failed.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// Why, and what to do.
    pub detail: String,
}
