//! How a peer is opened.
//!
//! Pure. Given to [`super::Node::open`] by the agent, and to [`super::recover`] by the command line.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::cluster::raft::SNAPSHOT_EVERY;
use crate::cluster::wire::Target;
use crate::config::{Config, TlsFiles};
use crate::spec::HostName;

/// How a peer is opened.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cluster's name.
    pub cluster: String,
    /// This host, one of `peers` unless that is empty.
    pub host: HostName,
    /// The peers of cluster.toml; empty: this host alone.
    pub peers: BTreeMap<HostName, String>,
    /// `host:port` for the other peers; not used by a host alone.
    pub listen: String,
    /// The log and the snapshots lie in its folder `raft`.
    pub data_dir: PathBuf,
    /// The certificates; `None`: in plain.
    pub tls: Option<TlsFiles>,
    /// A voter that has been dead for this long is replaced by a learner.
    pub dead_voter_after: Duration,
    /// Entries between two snapshots ([`SNAPSHOT_EVERY`]).
    pub snapshot_every: u64,
}

impl Settings {
    /// As cluster.toml has it.
    pub fn of(config: &Config) -> Settings {
        let (host, cluster) = (&config.host, &config.cluster);
        Settings {
            cluster: cluster.name.clone(),
            host: host.name.clone(),
            peers: cluster.peers.clone(),
            listen: host.listen.clone(),
            data_dir: host.data_dir.clone(),
            tls: cluster.tls.clone(),
            dead_voter_after: cluster.dead_voter_after,
            snapshot_every: SNAPSHOT_EVERY,
        }
    }

    /// The other peers of the file, whatever their numbers are by now.
    pub(super) fn others(&self) -> Vec<(HostName, Target)> {
        let others = self.peers.iter().filter(|(host, _)| **host != self.host);
        let target = |(host, address): (&HostName, &String)| {
            (host.clone(), Target { host: host.clone(), id: None, address: address.clone() })
        };
        others.map(target).collect()
    }
}
