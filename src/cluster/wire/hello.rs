//! The handshake: who dialled, what for, and why it is refused.
//!
//! Pure. Fields and variants are append-only, and a [`Hello`] must be readable by every version, because it
//! is what tells two versions that they do not fit.

use serde::{Deserialize, Serialize};

use crate::spec::HostName;

/// The versions of the messages that this program speaks, both ends included.
pub const VERSIONS: (u16, u16) = (1, 1);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Purpose {
    /// Small and in a hurry: votes, heartbeats, reports.
    Urgent,
    /// Entries and proposals.
    Bulk,
    /// One snapshot.
    Snapshot,
    /// A host that does not belong to the cluster yet looks around.
    Probe,
    /// A host that is no peer: its reports.
    Host,
    /// A host that is no peer: what it follows and proposes.
    HostBulk,
    /// Requests of the API, from any host to any other.
    Api,
    /// What runs say about themselves, from any host to a peer: nothing waits behind it.
    Status,
}

impl Purpose {
    /// Whoever has no part in the founding yet may begin so: it looks around, or attaches.
    fn is_open(self) -> bool {
        matches!(self, Purpose::Probe | Purpose::Host | Purpose::HostBulk)
    }

    /// Only peers speak on it.
    pub fn is_for_peers(self) -> bool {
        matches!(self, Purpose::Urgent | Purpose::Bulk | Purpose::Snapshot)
    }
}

/// The first frame of whoever dialled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The oldest and the newest version that it speaks.
    pub versions: (u16, u16),
    /// Its cluster's name.
    pub cluster: String,
    /// Its name.
    pub host: HostName,
    /// Which life of the host; 0: not known yet.
    pub incarnation: u64,
    /// Which founding of a cluster of this name it belongs to; `None`: to none yet.
    pub history: Option<u64>,
    /// Its number among the peers; `None`: it has none.
    pub id: Option<u64>,
    /// Whom it means to talk to.
    pub to: HostName,
    /// The number of the peer it means; `None`: whoever has the name.
    pub to_id: Option<u64>,
    /// What for.
    pub purpose: Purpose,
}

/// The handshake is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that is spoken from here on.
    pub version: u16,
    /// Who answered.
    pub host: HostName,
    /// Which life of that host; 0: not known yet.
    pub incarnation: u64,
}

/// Why the other side hung up. The text says what failed and what to do, to the operator of the one that dialled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Of another cluster.
    #[error(
        "{host} belongs to the cluster {theirs:?}, not {ours:?}: look at `name` and `peers` in [cluster] on both hosts"
    )]
    Cluster {
        /// Who refused.
        host: HostName,
        /// Its cluster.
        theirs: String,
        /// That of the hello.
        ours: String,
    },
    /// No version in common.
    #[error(
        "{host} speaks versions {} to {}, this program {} to {}: upgrade the older of the two",
        theirs.0, theirs.1, ours.0, ours.1
    )]
    Version {
        /// Who refused.
        host: HostName,
        /// What it speaks.
        theirs: (u16, u16),
        /// What the hello offered.
        ours: (u16, u16),
    },
    /// The address belongs to another host.
    #[error("{found} answers where {wanted} is said to be: look at the addresses in `peers`")]
    OtherHost {
        /// Who answered.
        found: HostName,
        /// Who was meant.
        wanted: HostName,
    },
    /// The host has another number now (its folder was lost), or none yet.
    #[error("{host} is not peer {wanted} (any more)")]
    OtherPeer {
        /// Who answered.
        host: HostName,
        /// Who was meant.
        wanted: u64,
    },
    /// Two clusters of one name, founded apart.
    #[error(
        "{host} belongs to another founding of the cluster {cluster:?}: if this host's state is the one to give up, \
         move `raft` in its data_dir away (of a host that is no peer: `attached.bin`) and start its agent again"
    )]
    History {
        /// Who refused.
        host: HostName,
        /// The name of both.
        cluster: String,
    },
    /// The certificate is of another host.
    #[error("the certificate is not that of {0}: issue one with `bigbrother ca issue {0}`")]
    Certificate(HostName),
    /// As many connections as it takes.
    #[error("{0} has no room for another connection")]
    Busy(HostName),
    /// Speaks as a peer and is none, as far as this host knows.
    #[error(
        "{host} knows of no peer named {stranger}: if it is one, name it in `peers` in the cluster.toml of {host} and \
         start the agent there again; else `bigbrother peers add {stranger} ADDRESS`"
    )]
    Stranger {
        /// Who refused.
        host: HostName,
        /// Who dialled.
        stranger: HostName,
    },
}

/// Whom a hello is held against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ours {
    /// The cluster's name.
    pub cluster: String,
    /// This host.
    pub host: HostName,
    /// Which life of it; 0: not known yet.
    pub incarnation: u64,
    /// The founding this host belongs to; `None`: to none yet.
    pub history: Option<u64>,
    /// This host's number; `None`: none yet.
    pub id: Option<u64>,
}

impl Ours {
    /// The hello of a connection from here.
    pub fn hello(&self, to: &HostName, to_id: Option<u64>, purpose: Purpose) -> Hello {
        Hello {
            versions: VERSIONS,
            cluster: self.cluster.clone(),
            host: self.host.clone(),
            incarnation: self.incarnation,
            history: self.history,
            id: self.id,
            to: to.clone(),
            to_id,
            purpose,
        }
    }

    /// Whether the other side is taken in.
    pub fn judge(&self, hello: &Hello) -> Result<Welcome, Refusal> {
        let host = self.host.clone();
        if hello.cluster != self.cluster {
            let (theirs, ours) = (self.cluster.clone(), hello.cluster.clone());
            return Err(Refusal::Cluster { host, theirs, ours });
        }
        let version = hello.versions.1.min(VERSIONS.1);
        if version < hello.versions.0.max(VERSIONS.0) {
            return Err(Refusal::Version { host, theirs: VERSIONS, ours: hello.versions });
        }
        if hello.to != self.host {
            return Err(Refusal::OtherHost { found: host, wanted: hello.to.clone() });
        }
        // A host that looks around belongs nowhere yet; whoever has a number belongs to one founding.
        let alike = hello.history == self.history || hello.history.is_none() && hello.purpose.is_open();
        if self.history.is_some() && !alike {
            return Err(Refusal::History { host, cluster: self.cluster.clone() });
        }
        if let Some(wanted) = hello.to_id.filter(|id| Some(*id) != self.id) {
            return Err(Refusal::OtherPeer { host, wanted });
        }
        Ok(Welcome { version, host, incarnation: self.incarnation })
    }
}

#[cfg(test)]
mod tests {
    use super::super::codec::{decode, encode};
    use super::*;

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    fn ours() -> Ours {
        let cluster = "pirates".to_owned();
        Ours { cluster, host: name("alpha"), incarnation: 3, history: Some(7), id: Some(1) }
    }

    fn hello() -> Hello {
        let beta = Ours { host: name("beta"), id: Some(2), ..ours() };
        beta.hello(&name("alpha"), Some(1), Purpose::Urgent)
    }

    #[test]
    fn the_bytes_of_a_handshake_are_these() {
        let golden = b"\x01\x01\x07pirates\x04beta\x03\x01\x07\x01\x02\x05alpha\x01\x01\x00";
        assert_eq!(encode(&hello()).unwrap(), golden);
        assert_eq!(decode::<Hello>(golden).unwrap(), hello());
        assert_eq!(encode(&ours().judge(&hello()).unwrap()).unwrap(), b"\x01\x05alpha\x03");
        let refusal = Refusal::OtherPeer { host: name("alpha"), wanted: 9 };
        assert_eq!(encode(&refusal).unwrap(), b"\x03\x05alpha\x09");
    }

    #[test]
    fn whoever_does_not_belong_is_refused_with_the_reason() {
        let refused = |change: &dyn Fn(&mut Hello)| {
            let mut hello = hello();
            change(&mut hello);
            ours().judge(&hello).unwrap_err().to_string()
        };
        assert!(refused(&|h| h.cluster = "ninjas".into()).contains("\"pirates\", not \"ninjas\""));
        assert!(refused(&|h| h.versions = (2, 4)).contains("speaks versions 1 to 1, this program 2 to 4"));
        assert!(refused(&|h| h.to = name("gamma")).contains("alpha answers where gamma"));
        assert!(refused(&|h| h.to_id = Some(9)).contains("alpha is not peer 9"));
        assert!(refused(&|h| h.history = Some(8)).contains("another founding"));
        assert!(refused(&|h| h.history = None).contains("another founding"));
    }

    #[test]
    fn a_host_without_a_number_may_look_around() {
        let newcomer = Ours { host: name("delta"), history: None, id: None, ..ours() };
        let probe = newcomer.hello(&name("alpha"), None, Purpose::Probe);
        assert_eq!(ours().judge(&probe).unwrap().version, 1);
        assert!(ours().judge(&Hello { purpose: Purpose::Urgent, ..probe }).is_err());
    }

    #[test]
    fn the_newest_common_version_is_spoken() {
        let hello = Hello { versions: (1, 9), ..hello() };
        assert_eq!(ours().judge(&hello).unwrap().version, 1);
    }
}
