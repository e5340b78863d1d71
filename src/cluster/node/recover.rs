//! One peer's copy of the state becomes the whole cluster's: a majority of the peers is lost for good, or the copy was
//! kept for that.
//!
//! Owns the record of it, in the files of a peer whose agent does not run. The copy goes on as another history, of
//! which it is the only peer: copies of two moments must never meet in one log, so nobody of the old history is
//! listened to. Whoever watches the directory begins anew, and what was given out since is passed over by this machine's
//! clock: fencing tokens, generations, incarnations. Called by the command line.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::{EntryPayload, Membership};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::identity::Identity;
use super::{Settings, ours_of, seat};
use crate::agent::replica::wall_ms;
use crate::cluster::raft::log_store::cache::Marks;
use crate::cluster::raft::log_store::disk::{Disk, FILE, Key, Op, OpenError, Record};
use crate::cluster::raft::machine::DiskShelf;
use crate::cluster::raft::{Change, Entry, LeaderId, LogId, Peer, PeerId, Vote};
use crate::cluster::tls::{Tls, TlsError};
use crate::cluster::wire::{
    DecodeError, DialError, Dialer, EncodeError, Purpose, Refusal, Target, decode, encode,
};
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
    /// Its state is a file, of which there are no copies.
    #[error(
        "{0} is a host alone (no `peers` in [cluster]): its state is `state.bin` in data_dir, which you put there while no \
         agent runs"
    )]
    Alone(HostName),
    /// This host's own agent runs.
    #[error("the agent of {0} runs: stop it first")]
    Running(HostName),
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
    /// What listens where another peer was may be its agent.
    #[error(
        "something listens at {address}, where {host} was when the copy was made, and may be its agent: stop it. If it is \
         another program, `bigbrother peers recover --anyway`"
    )]
    Unclear {
        /// Which peer.
        host: HostName,
        /// Where.
        address: String,
        /// What came of a handshake.
        source: DialError,
    },
    /// The copy is not one to begin with while there is a better one.
    #[error(
        "by this copy itself {host} {standing}: what the voters have decided since is not in it. Take the copy of a peer \
         that votes; if none is left, `bigbrother peers recover --anyway`"
    )]
    NoVoter {
        /// This host.
        host: HostName,
        /// What it is by the copy.
        standing: &'static str,
    },
    /// The certificates, by which another peer's agent is known.
    #[error(transparent)]
    Tls(#[from] TlsError),
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
/// answers: one of the file's `peers`, or of those that the copy knows. Only `anyway` it is taken while something unclear
/// listens where one of the latter was, or when it is that of a peer that does not vote by it.
pub async fn recover(settings: &Settings, anyway: bool) -> Result<u64, RecoverError> {
    let Settings { host, peers, data_dir, .. } = settings;
    if peers.is_empty() {
        return Err(RecoverError::Alone(host.clone()));
    }
    let address = peers.get(host).cloned().ok_or_else(|| RecoverError::NoPeer(host.clone()))?;
    let folder = data_dir.join("raft");
    if !folder.join(FILE).exists() {
        return Err(RecoverError::NoCopy { folder });
    }
    let disk = Arc::new(Disk::open(&folder).map_err(|error| match error {
        OpenError::InUse { .. } => RecoverError::Running(host.clone()),
        error => error.into(),
    })?);
    let marks = disk.load()?.marks();
    let identity: Option<Identity> = disk.get(Key::Identity)?.as_deref().map(decode).transpose()?;
    let (Some(identity @ Identity::Peer { id, .. }), Some(last)) = (identity, marks.last) else {
        return Err(RecoverError::NoCopy { folder });
    };
    let recorded =
        recorded(&DiskShelf::new(&folder, disk.clone()), &disk, &marks).map_err(RecoverError::Read)?;
    others_are_gone(settings, &identity, &recorded, anyway).await?;
    let removed = seat::was_void(&disk, &identity)?;
    if let Some(standing) = lesser(&recorded, id, removed).filter(|_| !anyway) {
        return Err(RecoverError::NoVoter { host: host.clone(), standing });
    }
    let voted = marks.vote.map_or(0, |vote| vote.leader_id.term);
    let by = LeaderId { term: voted.max(last.leader_id.term) + 1, node_id: id };
    let peer = Peer { name: host.to_string(), address };
    let alone = Membership::new(vec![BTreeSet::from([id])], BTreeMap::from([(id, peer)]));
    let passed_over = Change::State(Arc::new(Envelope { stamp_ms: wall_ms(), command: Command::Recover }));
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
fn recorded(shelf: &DiskShelf, disk: &Disk, marks: &Marks) -> io::Result<Membership<PeerId, Peer>> {
    let snapshot = shelf.described()?;
    let mut last = snapshot.map(|meta| meta.last_membership.membership().clone());
    let after = |log: Option<LogId>| log.map_or(0, |log| log.index + 1);
    disk.read(after(marks.purged)..after(marks.last), |record| {
        if let EntryPayload::Membership(membership) = decode::<Entry>(record)?.payload {
            last = Some(membership);
        }
        Ok(true)
    })?;
    Ok(last.unwrap_or_default())
}

/// Why the copy is a lesser one; `None`: it is a voter's. A change of the peers that was under way counts as made.
fn lesser(recorded: &Membership<PeerId, Peer>, id: PeerId, removed: bool) -> Option<&'static str> {
    let votes = recorded.get_joint_config().last().is_some_and(|voters| voters.contains(&id));
    match recorded.get_node(&id) {
        Some(_) if votes && !removed => None,
        Some(_) if !removed => Some("keeps a copy and does not vote"),
        _ => Some("is no peer any more"),
    }
}

/// Where one of the other peers of the file should be, whoever listens is taken for it; where one was that only the copy
/// knows, another program may be by now.
async fn others_are_gone(
    settings: &Settings,
    identity: &Identity,
    recorded: &Membership<PeerId, Peer>,
    anyway: bool,
) -> Result<(), RecoverError> {
    let mut asked = JoinSet::new();
    for (host, Target { address, .. }) in settings.others() {
        asked.spawn(async move {
            if listens(&address).await { Err(RecoverError::Alive { host, address }) } else { Ok(()) }
        });
    }
    let known = recorded.nodes().filter_map(|(_, peer)| Some((peer.name.parse().ok()?, &peer.address)));
    let gone: BTreeSet<(HostName, &String)> = known
        .filter(|(host, address)| *host != settings.host && settings.peers.get(host) != Some(address))
        .collect();
    if !gone.is_empty() {
        let dialer = dialer(settings, identity)?;
        for (host, address) in gone {
            let (dialer, target) = (dialer.clone(), Target { host, id: None, address: address.clone() });
            asked.spawn(async move { is_gone(&dialer, target).await });
        }
    }
    let mut unclear = None;
    for refused in asked.join_all().await.into_iter().filter_map(Result::err) {
        match refused {
            RecoverError::Unclear { .. } => unclear = Some(refused),
            alive => return Err(alive),
        }
    }
    unclear.filter(|_| !anyway).map_or(Ok(()), Err)
}

/// Dials as this host's agent would. By a certificate that nobody takes none of the others could be told.
fn dialer(settings: &Settings, identity: &Identity) -> Result<Dialer, TlsError> {
    let tls = Tls::if_any(settings.tls.as_ref(), &settings.host)?;
    if let Some(tls) = &tls {
        tls.read_again()?;
    }
    // What it saw last is kept when the sender is gone.
    Ok(Dialer::new(watch::channel(ours_of(settings, identity)).1, tls))
}

async fn listens(address: &str) -> bool {
    let dialled = tokio::time::timeout(QUESTION, TcpStream::connect(address)).await;
    dialled.is_ok_and(|dialled| dialled.is_ok())
}

/// Only nobody, or an agent of another cluster, is surely no agent of this one: an agent may stand still, lack memory, or
/// have other certificates than this host. One that is busy may need a moment.
async fn is_gone(dialer: &Dialer, target: Target) -> Result<(), RecoverError> {
    if !listens(&target.address).await {
        return Ok(());
    }
    let began = Instant::now();
    let dialled = loop {
        match dialer.dial(&target, Purpose::Probe).await {
            Err(DialError::Silent { .. }) if began.elapsed() < QUESTION => {}
            dialled => break dialled,
        }
    };
    let Target { host, address, .. } = target;
    match dialled {
        Err(DialError::Connect { .. } | DialError::Refused(Refusal::Cluster { .. })) => Ok(()),
        Ok(_) | Err(DialError::Refused(_)) => Err(RecoverError::Alive { host, address }),
        Err(source) => Err(RecoverError::Unclear { host, address, source }),
    }
}
