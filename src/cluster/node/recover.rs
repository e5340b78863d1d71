//! One peer's copy of the state becomes the whole cluster's: a majority of the peers is lost for good, or the copy was
//! kept for that.
//!
//! Owns the record of it, in the files of a peer whose agent does not run. The copy goes on as another history, of
//! which it is the only peer: copies of two moments must never meet in one log, so nobody of the old history is
//! listened to. Whoever watches the directory begins anew, and fencing tokens given since are passed over. Called
//! by the command line.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use openraft::{EntryPayload, Membership};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::identity::Identity;
use crate::cluster::raft::log_store::cache::Marks;
use crate::cluster::raft::log_store::disk::{Disk, FILE, Key, Op, OpenError, Record};
use crate::cluster::raft::machine::DiskShelf;
use crate::cluster::raft::{Change, Entry, LeaderId, LogId, Peer, Vote};
use crate::cluster::wire::{DecodeError, EncodeError, decode, encode};
use crate::spec::HostName;
use crate::state::{Command, Envelope};

/// How long another peer may take to show that its agent runs.
const QUESTION: Duration = Duration::from_secs(2);

/// Why a copy cannot become the cluster's.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// Nothing to begin with.
    #[error("{folder} holds no copy of a cluster's state: put the folder `raft` of a peer there")]
    NoCopy {
        /// Where one would be.
        folder: PathBuf,
    },
    /// It would be no peer when its agent starts.
    #[error("{0} is not among `peers` in [cluster] of its cluster.toml: write it there first")]
    NoPeer(HostName),
    /// Another peer's agent runs: two clusters would come of it, and each would run what is exclusive.
    #[error(
        "{host} answers at {address}: a cluster that lives needs no copy; if it is to go, stop all its agents first"
    )]
    Alive {
        /// Which peer.
        host: HostName,
        /// Where.
        address: String,
    },
    /// The log.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// A record of it.
    #[error("a record of the copy cannot be understood")]
    Decode(#[from] DecodeError),
    /// One that is to be written.
    #[error("a record cannot be made")]
    Encode(#[from] EncodeError),
    /// A part of it.
    #[error("the copy cannot be read to its end: take another one")]
    Read(#[source] io::Error),
    /// The disk.
    #[error("the copy cannot be changed; run this again when the disk takes something")]
    Disk(#[from] io::Error),
}

/// Makes the copy in `data_dir` that of a cluster with this one of the peers; gives the last entry that it has. The
/// agent that is started next is its primary, and takes in whoever has no copy. Refused while another peer's agent
/// answers: one of the file's `peers`, or of those that the copy knows.
pub async fn recover(
    data_dir: &Path,
    host: &HostName,
    peers: &BTreeMap<HostName, String>,
) -> Result<u64, RecoverError> {
    let address = peers.get(host).cloned().ok_or_else(|| RecoverError::NoPeer(host.clone()))?;
    let folder = data_dir.join("raft");
    if !folder.join(FILE).exists() {
        return Err(RecoverError::NoCopy { folder });
    }
    let disk = Arc::new(Disk::open(&folder)?);
    let marks = disk.load()?.marks();
    let identity = disk.get(Key::Identity)?.as_deref().map(decode).transpose()?;
    let (Some(Identity::Peer { id, .. }), Some(last)) = (identity, marks.last) else {
        return Err(RecoverError::NoCopy { folder });
    };
    let recorded =
        recorded(&DiskShelf::new(&folder, disk.clone()), &disk, &marks).map_err(RecoverError::Read)?;
    let known = peers.clone().into_iter().chain(recorded).filter(|(other, _)| other != host).collect();
    if let Some((host, address)) = living(known).await {
        return Err(RecoverError::Alive { host, address });
    }
    let voted = marks.vote.map_or(0, |vote| vote.leader_id.term);
    let by = LeaderId { term: voted.max(last.leader_id.term) + 1, node_id: id };
    let peer = Peer { name: host.to_string(), address };
    let alone = Membership::new(vec![BTreeSet::from([id])], BTreeMap::from([(id, peer)]));
    // The time of the state goes on when the primary says what it is.
    let passed_over = Change::State(Arc::new(Envelope { stamp_ms: 0, command: Command::Recover }));
    let payloads =
        [EntryPayload::Membership(alone.map_err(io::Error::other)?), EntryPayload::Normal(passed_over)];
    let entries: Vec<Entry> = (last.index + 1..)
        .zip(payloads)
        .map(|(index, payload)| Entry { log_id: LogId::new(by, index), payload })
        .collect();
    let record =
        |entry: &Entry| Ok::<_, EncodeError>(Record { index: entry.log_id.index, bytes: encode(entry)? });
    let records = entries.iter().map(record).collect::<Result<Vec<_>, _>>()?;
    // The history first: from then on no other peer takes part, wherever this is broken off.
    let history = fastrand::u64(1..);
    disk.put(Key::Identity, encode(&Identity::Peer { id, history, founding: None })?).await?;
    disk.put(Key::Vote, encode(&Vote::new(by.term, id))?).await?;
    disk.write(|done| Op::Append { records, done }).await?;
    disk.put(Key::Committed, encode(&entries.last().map(|entry| entry.log_id))?).await?;
    Ok(last.index)
}

/// The peers as the copy has written them down last.
fn recorded(shelf: &DiskShelf, disk: &Disk, marks: &Marks) -> io::Result<Vec<(HostName, String)>> {
    let snapshot = shelf.described()?;
    let mut last = snapshot.map(|meta| meta.last_membership.membership().clone());
    let after = |log: Option<LogId>| log.map_or(0, |log| log.index + 1);
    disk.read(after(marks.purged)..after(marks.last), |record| {
        if let EntryPayload::Membership(membership) = decode::<Entry>(record)?.payload {
            last = Some(membership);
        }
        Ok(true)
    })?;
    let peers = last.iter().flat_map(Membership::nodes);
    Ok(peers.filter_map(|(_, peer)| Some((peer.name.parse().ok()?, peer.address.clone()))).collect())
}

/// One of them whose agent listens.
async fn living(peers: BTreeSet<(HostName, String)>) -> Option<(HostName, String)> {
    let mut asked = JoinSet::new();
    for (host, address) in peers {
        asked.spawn(async move {
            let dialled = tokio::time::timeout(QUESTION, TcpStream::connect(&address)).await;
            dialled.is_ok_and(|dialled| dialled.is_ok()).then_some((host, address))
        });
    }
    asked.join_all().await.into_iter().flatten().next()
}
