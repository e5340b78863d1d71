//! The replicated state, kept by Raft (openraft): its types, its timing, and the parts that openraft asks for.
//!
//! Owns the types of entries, votes and members. [`log_store`] keeps the log on disk, [`machine`] applies
//! it, [`network`] carries it, [`membership`] says who the peers are. Generic over the async runtime, so
//! that the simulation can run the same machine in virtual time. Called by `cluster::node`.

use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;

use openraft::impls::leader_id_adv;
use openraft::{AsyncRuntime, Config, OptionalSend, RaftTypeConfig, SnapshotPolicy};
use serde::{Deserialize, Serialize};

pub mod change;
pub mod log_store;
pub mod machine;
pub mod membership;
pub mod network;

pub use change::{Change, Outcome};

/// A peer's number. A number is given once: whoever loses its disk comes back under another.
pub type PeerId = u64;
/// Who leads, and since when.
pub type LeaderId = leader_id_adv::LeaderId<u64, PeerId>;
/// The place of an entry in the log.
pub type LogId = openraft::LogId<LeaderId>;
/// A vote, granted or asked for.
pub type Vote = openraft::impls::Vote<LeaderId>;
/// What an entry says.
pub type Payload = openraft::EntryPayload<Change, PeerId, Peer>;
/// An entry of the log.
pub type Entry = openraft::Entry<LeaderId, Payload>;
/// The peers, and the entry that made them so.
pub type StoredMembership = openraft::StoredMembership<LeaderId, PeerId, Peer>;
/// What a snapshot holds.
pub type SnapshotMeta = openraft::SnapshotMeta<LeaderId, PeerId, Peer>;

/// A peer as the others reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its host's name.
    pub name: String,
    /// `host:port`, resolved anew at each connection.
    pub address: String,
}

/// openraft's types, on the async runtime `RT`.
pub struct Types<RT>(PhantomData<fn() -> RT>);

macro_rules! same_for_all {
    ($($of:ident { $($body:tt)* })*) => { $(impl<RT> $of for Types<RT> { $($body)* })* };
}

// Derived they would ask the same of the runtime.
same_for_all! {
    Clone { fn clone(&self) -> Self { *self } }
    Copy {}
    Default { fn default() -> Self { Types(PhantomData) } }
    PartialEq { fn eq(&self, _: &Self) -> bool { true } }
    Eq {}
    PartialOrd { fn partial_cmp(&self, other: &Self) -> Option<Ordering> { Some(self.cmp(other)) } }
    Ord { fn cmp(&self, _: &Self) -> Ordering { Ordering::Equal } }
}

impl<RT> fmt::Debug for Types<RT> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Types")
    }
}

impl<RT: AsyncRuntime> RaftTypeConfig for Types<RT> {
    type D = Change;
    type R = Outcome;
    type NodeId = PeerId;
    type Node = Peer;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = RT;
    type Responder<T>
        = openraft::impls::OneshotResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// Entries between two snapshots, unless a test wants fewer.
pub const SNAPSHOT_EVERY: u64 = 10_000;

/// Shortest and longest election timeout, milliseconds. A follower waits for the longest and then a random
/// time between the two, so the range is narrow.
pub const ELECTION_MS: (u64, u64) = (150, 300);

/// Between two heartbeats, milliseconds.
pub const HEARTBEAT_MS: u64 = 50;

/// openraft's settings for a cluster of this name, with a snapshot after so many entries.
pub fn config(cluster: &str, snapshot_every: u64) -> Config {
    Config {
        cluster_name: cluster.to_owned(),
        election_timeout_min: ELECTION_MS.0,
        election_timeout_max: ELECTION_MS.1,
        heartbeat_interval: HEARTBEAT_MS,
        // A peer that was cut off or slept does not disturb the primary when it is back.
        enable_pre_vote: Some(true),
        // Without a quorum the primary falls silent, so that a half that still hears it can elect another.
        quorum_loss_probe_interval: Some(4 * ELECTION_MS.1),
        // A restarted primary asks for votes again: it may have been replaced meanwhile.
        enable_leader_restore: Some(false),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(snapshot_every),
        // Whoever misses less than two snapshots' worth gets entries.
        max_in_snapshot_log_to_keep: snapshot_every,
        replication_lag_threshold: 3 * snapshot_every,
        purge_batch_size: snapshot_every.div_ceil(10),
        max_payload_entries: 256,
        // For each step of a snapshot, not for the whole.
        install_snapshot_timeout: 10_000,
        // How long a peer that does not answer is left alone; a new connection ends the wait.
        backoff: "50ms 100ms 200ms ...500ms".to_owned(),
        ..Config::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_are_sound() {
        let config = config("pirates", SNAPSHOT_EVERY).validate().unwrap();
        // Otherwise a snapshot would not end the lag for which it was sent.
        assert!(config.replication_lag_threshold > SNAPSHOT_EVERY);
    }
}
