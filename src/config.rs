//! cluster.toml: from text to a validated spec and host settings, every fault with line and column.
//!
//! Owns the file format (docs/config.md). Pure except for nothing: it is given the text. Called by the
//! agent at start and reload, and by `bigbrother check`, `plan` and `apply`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::spec::{HostName, Spec};

/// A whole valid cluster.toml.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[cluster]`
    pub cluster: ClusterSettings,
    /// `[host]`
    pub host: HostSettings,
    /// `[process.*]`
    pub spec: Spec,
}

/// `[cluster]`: the same in every host's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSettings {
    /// The cluster's name.
    pub name: String,
    /// Peers and their addresses; empty: this host alone.
    pub peers: BTreeMap<HostName, String>,
    /// Silence after which a host is declared down.
    pub host_timeout: Duration,
    /// How long a confirm holds.
    pub fence_after: Duration,
    /// How long the kill of exclusive runs may take.
    pub fence_kill: Duration,
    /// Silence after which a peer is given up by those attached to it.
    pub peer_silence: Duration,
    /// The largest number of hosts that may be silent at once before the brake holds; `None`: the larger of 1 and 30 %.
    pub max_lost: Option<u32>,
    /// A voter that is dead for this long is replaced.
    pub dead_voter_after: Duration,
}

/// `[host]`: this host's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSettings {
    /// The host's name.
    pub name: HostName,
    /// Logs, ports and state, over reboots.
    pub data_dir: PathBuf,
    /// Sockets and ledger, until the reboot.
    pub runtime_dir: PathBuf,
    /// Where other agents connect.
    pub listen: String,
    /// The API's TCP address; `None`: only the Unix socket.
    pub api: Option<String>,
    /// What the directory lists.
    pub address: String,
    /// The range of free ports, both ends included.
    pub ports: (u16, u16),
    /// Labels for placement and templates.
    pub labels: BTreeMap<String, String>,
    /// What instances may take; no entry: no bound.
    pub capacity: BTreeMap<String, u64>,
    /// What this host refuses to run.
    pub policy: HostPolicy,
}

/// `[host.policy]`: an empty list allows everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPolicy {
    /// Users that a process may run as.
    pub users: Vec<String>,
    /// Folders below which programs must lie.
    pub programs: Vec<PathBuf>,
}
