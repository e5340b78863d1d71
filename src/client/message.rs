//! The shapes of the process API: what a process says, what it is told. docs/protocol.md shows each as JSON.
//!
//! Owns plain data only. Shared by the client and by `process_api`, so that both ends agree by construction.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::spec::{HostName, InstanceId, ProcessName, Protocol};

/// The version of the process API; told in [`Welcome::protocol`].
pub const PROTOCOL: u32 = 1;

/// The longest line of `status` and `launch`, in bytes.
pub const MAX_PARAMS: usize = 16 * 1024;

/// The plainest heartbeat; the agent takes exactly these bytes without parsing them.
pub const BEAT: &str = r#"{"jsonrpc":"2.0","method":"heartbeat"}"#;

/// How far a process is, in its own words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It loads.
    #[default]
    Starting,
    /// It takes players.
    Ready,
    /// It takes no new players and ends when the last one has left.
    Draining,
}

/// `hello`: who speaks. Sent first on every connection; after a reconnection `state` tells a new agent
/// what the old one knew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The program or library; for people.
    #[serde(default)]
    pub client: String,
    /// Its version; for people.
    #[serde(default)]
    pub version: String,
    /// How far the process is.
    #[serde(default)]
    pub state: Phase,
}

/// The answer to `hello`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`PROTOCOL`] of the agent.
    pub protocol: u32,
    /// Who the process is.
    pub instance: InstanceId,
    /// Where it runs.
    pub host: HostName,
    /// Which life this is.
    pub run: u64,
    /// How often a heartbeat is asked for, in milliseconds; 0: none is.
    pub heartbeat_ms: u64,
}

/// `status`: soft facts of a run. Replaces the earlier status whole; an absent field is unknown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// Players now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub players: Option<u32>,
    /// Players at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u32>,
    /// Simulation steps a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fps: Option<f64>,
    /// How long a message to a player and back takes on average, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ping_ms: Option<f64>,
    /// The map or level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
    /// One line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Anything else, flat.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Label>,
    /// Who plays. Stays with the agent of this host, which is asked for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub player_list: Vec<Player>,
}

/// One of a [`Status::player_list`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Player {
    /// As others see it.
    pub name: String,
    /// The game's own, of the account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<i64>,
    /// How long a message and its answer take, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ping_ms: Option<u32>,
}

/// The value of a label in a [`Status`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum Label {
    /// true or false
    Flag(bool),
    /// A whole number.
    Whole(i64),
    /// Any other number.
    Number(f64),
    /// Text.
    Text(String),
}

/// `find`: list the runs of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Find {
    /// Which.
    pub process: ProcessName,
    /// Only those that are ready.
    #[serde(default)]
    pub ready: bool,
}

/// The most processes that one connection watches at once. After a reconnection `hello` and all of them fit into
/// what the agent takes at once.
pub const MAX_WATCHES: usize = 12;

/// `watch`: be told of every change to the runs of a process; answered by a [`WatchChange::Snapshot`] first.
/// `unwatch`, of the same shape, ends that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Which.
    pub process: ProcessName,
}

/// `launch`: start an instance of an on-demand process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Which.
    pub process: ProcessName,
    /// Values of `{arg.NAME}` in its command.
    #[serde(default)]
    pub args: BTreeMap<String, String>,
    /// The same key gives the same instance while it lives, so that a launch may be tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// The answer to `find`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// In order of their names.
    pub listings: Vec<Listing>,
}

/// The answer to `launch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launched {
    /// The instance; it is listed once it runs.
    pub instance: InstanceId,
}

/// A run in the directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listing {
    /// Which instance.
    pub instance: InstanceId,
    /// Where.
    pub host: HostName,
    /// How clients reach the host.
    pub address: String,
    /// Which life.
    pub run: u64,
    /// It takes players.
    pub ready: bool,
    /// Its ports by name.
    #[serde(default)]
    pub ports: BTreeMap<String, Port>,
    /// What it says about itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Box<Status>>,
    /// How long ago it said so, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_age_ms: Option<u64>,
}

/// A port of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "host", derive(utoipa::ToSchema))]
pub struct Port {
    /// Its transport.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

/// The notification `watch`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// Of which process.
    pub process: ProcessName,
    /// What changed.
    #[serde(flatten)]
    pub change: WatchChange,
}

/// One change that a watch tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum WatchChange {
    /// Everything there is; forget what was told before.
    Snapshot {
        /// In order of their names.
        listings: Vec<Listing>,
    },
    /// A run is new or differs.
    Put {
        /// As it is now.
        listing: Listing,
    },
    /// A run is gone.
    Gone {
        /// Which instance.
        instance: InstanceId,
        /// Which life of it.
        run: u64,
    },
}

/// The notification `shutdown`: save the world and end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shutdown {
    /// `stop`, `restart`, `update`, `remove` or `drain-timeout`.
    pub reason: String,
    /// Milliseconds from now until the process is killed.
    pub deadline_ms: u64,
}

/// A JSON-RPC error object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Fault {
    /// What kind; the constants below.
    pub code: i64,
    /// What failed, why, and what to do.
    pub message: String,
}

impl Fault {
    /// Not JSON (JSON-RPC 2.0).
    pub const PARSE: i64 = -32700;
    /// JSON, but no request (JSON-RPC 2.0); also batches, which are not taken.
    pub const INVALID: i64 = -32600;
    /// No such method (JSON-RPC 2.0).
    pub const METHOD: i64 = -32601;
    /// The method does not take these parameters (JSON-RPC 2.0).
    pub const PARAMS: i64 = -32602;
    /// A line over [`super::line::MAX_LINE`].
    pub const LINE: i64 = -32000;
    /// The process may not do that: `launch` names it in cluster.toml.
    pub const NOT_ALLOWED: i64 = -32001;
    /// There is no such process.
    pub const NO_PROCESS: i64 = -32002;
    /// As many instances as `on_demand.max` live already.
    pub const FULL: i64 = -32003;
    /// The agent is busy; try again.
    pub const BUSY: i64 = -32004;
    /// Too many connections on one process socket.
    pub const CONNECTIONS: i64 = -32005;
    /// The caller does not belong to the instance whose socket this is.
    pub const STRANGER: i64 = -32006;
    /// The answer would be over [`super::line::MAX_ANSWER`].
    pub const ANSWER: i64 = -32007;
    /// More than [`MAX_WATCHES`] watches on one connection.
    pub const WATCHES: i64 = -32008;

    /// An error with its reason.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Fault { code, message: message.into() }
    }
}
