//! Who the peers are and who of them votes.
//!
//! Owns the rules: which of the file's peers found the cluster, how a newcomer takes the seat of a lost one,
//! who may be removed or promoted, which dead voter is replaced. Carried out by the primary, one change at a
//! time; a number is never used twice (`change::Roll`). Called by `node`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::errors::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, Instant, TokioRuntime};
use serde::{Deserialize, Serialize};

use super::change::Roll;
use super::machine::{DiskShelf, Machine};
use super::{Peer, PeerId, Types};
use crate::spec::HostName;

/// Raft on tokio, with its files.
pub type Raft = openraft::Raft<Types<TokioRuntime>, Machine<DiskShelf>>;
type C = Types<TokioRuntime>;

/// The most peers that vote: more make every change slower and survive no more in practice.
pub const MAX_VOTERS: usize = 7;
/// What an operator may do about a voter that is dead for long.
pub const SUGGESTION: &str = "dead for long: start its agent again, or one of its name with an empty data_dir. Is it lost, \
                              `bigbrother peers add HOST HOST:PORT` and start an agent there with a cluster.toml that \
                              has HOST among `peers`: while most of the others live it takes the place by itself";
/// A peer that answered within this time is alive.
const ALIVE: Duration = Duration::from_secs(2);
/// How long a newcomer may take to catch up.
const CATCH_UP: Duration = Duration::from_secs(120);

/// A change of the peers. Append-only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeersChange {
    /// The host may become a peer.
    Add {
        /// The host.
        host: HostName,
        /// `host:port`.
        address: String,
    },
    /// The host is a peer no more.
    Remove {
        /// The host.
        host: HostName,
    },
    /// The peer votes from now on.
    Promote {
        /// The host.
        host: HostName,
    },
    /// A host without a number asks for one.
    Number {
        /// The host.
        host: HostName,
        /// `host:port`.
        address: String,
    },
    /// The newcomer with this number is ready to take part.
    Admit {
        /// Handed out before.
        id: PeerId,
    },
}

/// Why the peers were not changed. Append-only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum PeersRefused {
    /// Nobody of that name.
    #[error("{0} is no peer: `bigbrother peers list` shows them")]
    NoPeer(HostName),
    /// It votes already.
    #[error("{0} votes already")]
    Votes(HostName),
    /// The cluster would have no voter.
    #[error("{0} is the only peer that votes: promote another one first")]
    OnlyVoter(HostName),
    /// As many voters as there may be.
    #[error("{MAX_VOTERS} peers vote already: remove one first")]
    Full,
    /// Not in the file and not added.
    #[error("{0} is not expected among the peers: run `bigbrother peers add {0} ADDRESS` on one of them")]
    NotExpected(HostName),
    /// Somebody of this name is alive.
    #[error(
        "a peer named {0} is alive: is this machine a clone? Give it a name of its own, or stop the other one first"
    )]
    Alive(HostName),
    /// The number is void.
    #[error("the number {0} is not handed out to anybody")]
    NoNumber(PeerId),
    /// Raft could not do it now.
    #[error("the peers cannot be changed now: {0}")]
    NotNow(String),
    /// The primary was replaced or lost its quorum on the way: whoever asked asks again.
    #[error("the primary changed meanwhile: try again")]
    Unsettled,
    /// Added although it is one, somewhere else.
    #[error(
        "{host} is a peer already, at {address}: to move it, run `bigbrother drain {host} --wait`, stop its agent, run \
         `bigbrother peers remove {host}`, then `bigbrother peers add {host} ADDRESS` with the new one. Without the \
         drain it can be removed only when it is down, `host_timeout` after its agent was stopped"
    )]
    IsPeer {
        /// The host.
        host: HostName,
        /// Where it is.
        address: String,
    },
}

impl PeersRefused {
    /// True when it says that the change was carried out before.
    pub fn says_done(&self, change: &PeersChange) -> bool {
        matches!(
            (self, change),
            (PeersRefused::Votes(_), PeersChange::Promote { .. })
                | (PeersRefused::NoPeer(_), PeersChange::Remove { .. })
        )
    }
}

/// What a peer is to Raft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Counts for the quorum.
    Voter,
    /// Keeps the state and does not count.
    Learner,
}

/// A peer as the primary sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub id: PeerId,
    /// Its host and address.
    pub peer: Peer,
    /// Whether it counts.
    pub role: Role,
    /// How long it has not answered this primary; `None`: this peer is not the primary and does not know.
    pub silent: Option<Duration>,
    /// The last entry it is known to have, as far as this peer knows.
    pub matched: Option<u64>,
}

/// The peers of the file that vote at first: as many as are odd, at most [`MAX_VOTERS`], by name.
pub fn founders(peers: &BTreeMap<HostName, String>) -> BTreeMap<HostName, String> {
    let most = peers.len().min(MAX_VOTERS);
    let odd = if most.is_multiple_of(2) { most.saturating_sub(1) } else { most };
    peers.iter().take(odd).map(|(host, address)| (host.clone(), address.clone())).collect()
}

/// The voters that are dead for long. None but on the primary, which hears them.
fn dead_voters(members: &[Member], dead_after: Duration) -> impl Iterator<Item = &Member> {
    let dead = move |member: &&Member| member.silent.is_some_and(|silent| silent >= dead_after);
    members.iter().filter(|member| member.role == Role::Voter).filter(dead)
}

/// Those of them that nothing takes the seat of by itself: an operator is told of them.
pub fn to_replace(members: &[Member], dead_after: Duration) -> Vec<&Member> {
    match replacement(members, dead_after) {
        Some(_) => Vec::new(),
        None => dead_voters(members, dead_after).collect(),
    }
}

/// The dead voter that is to be replaced, and the learner that takes its seat.
///
/// Only while the living voters are a quorum by themselves: they have to agree to it.
pub fn replacement(members: &[Member], dead_after: Duration) -> Option<(PeerId, PeerId)> {
    let silent = |member: &Member, than: Duration| member.silent.is_none_or(|silent| silent >= than);
    let voters: Vec<&Member> = members.iter().filter(|member| member.role == Role::Voter).collect();
    let living = voters.iter().filter(|member| !silent(member, ALIVE)).count();
    let dead = dead_voters(members, dead_after).next()?;
    let ready = members.iter().filter(|member| member.role == Role::Learner && !silent(member, ALIVE));
    let best = ready.max_by_key(|member| member.matched)?;
    (living > voters.len() / 2).then_some((dead.id, best.id))
}

/// The peers as this one knows them, in the order of their numbers; `led`: for how long it has been the
/// primary. Whoever has not answered since then is not taken for dead any earlier.
pub fn members(raft: &Raft, led: Option<Duration>) -> Vec<Member> {
    let metrics = raft.metrics();
    let metrics = openraft::async_runtime::watch::WatchReceiver::borrow_watched(&metrics).clone();
    let membership = metrics.membership_config.membership();
    let voters: BTreeSet<PeerId> = membership.voter_ids().collect();
    let of = |(id, peer): (&PeerId, &Peer)| {
        let own = *id == metrics.id;
        let answered = metrics.heartbeat.as_ref().and_then(|acks| acks.get(id).copied().flatten());
        let matched = metrics.replication.as_ref().and_then(|logs| logs.get(id).copied().flatten());
        Member {
            id: *id,
            peer: peer.clone(),
            role: if voters.contains(id) { Role::Voter } else { Role::Learner },
            silent: led.map(|led| if own { Duration::ZERO } else { answered.map_or(led, |at| at.elapsed()) }),
            matched: if own { metrics.last_log_index } else { matched.map(|log| log.index) },
        }
    };
    membership.nodes().map(of).collect()
}

/// Whether a host without a number may have one, as far as the primary knows.
pub fn may_join(
    members: &[Member],
    roll: &Roll,
    file: &BTreeMap<HostName, String>,
    host: &HostName,
) -> Result<(), PeersRefused> {
    let known = |member: &&Member| member.peer.name == host.as_str();
    if !file.contains_key(host) && !roll.expected.contains_key(host) && !members.iter().any(|m| known(&m)) {
        return Err(PeersRefused::NotExpected(host.clone()));
    }
    let alive = |member: &Member| member.silent.is_none_or(|silent| silent < ALIVE);
    match members.iter().filter(known).any(alive) {
        true => Err(PeersRefused::Alive(host.clone())),
        false => Ok(()),
    }
}

/// Whether a host may be added with this address: what is a peer does not move by that.
pub fn may_add(members: &[Member], host: &HostName, address: &str) -> Result<(), PeersRefused> {
    let of_host: Vec<&Peer> =
        members.iter().map(|member| &member.peer).filter(|peer| peer.name == host.as_str()).collect();
    match of_host.iter().find(|peer| peer.address != address) {
        Some(peer) => Err(PeersRefused::IsPeer { host: host.clone(), address: peer.address.clone() }),
        None => Ok(()),
    }
}

/// Changes Raft's members; called on the primary, one change at a time.
pub async fn change(raft: &Raft, roll: &Roll, change: &PeersChange) -> Result<(), PeersRefused> {
    match change {
        // These only change the roll.
        PeersChange::Add { .. } | PeersChange::Number { .. } => Ok(()),
        PeersChange::Remove { host } => remove(raft, roll, host).await,
        PeersChange::Promote { host } => promote(raft, host).await,
        PeersChange::Admit { id } => admit(raft, roll, *id).await,
    }
}

/// Puts a learner into the seat of a dead voter.
pub async fn replace(raft: &Raft, dead: PeerId, by: PeerId) -> Result<(), PeersRefused> {
    let changes = vec![
        ChangeMembers::AddVoterIds(BTreeSet::from([by])),
        ChangeMembers::RemoveVoters(BTreeSet::from([dead])),
    ];
    apply(raft, ChangeMembers::Batch(changes)).await
}

async fn admit(raft: &Raft, roll: &Roll, id: PeerId) -> Result<(), PeersRefused> {
    let before = members(raft, None);
    let peer = match before.iter().find(|member| member.id == id) {
        Some(member) => member.peer.clone(),
        None => roll.pending.get(&id).cloned().ok_or(PeersRefused::NoNumber(id))?,
    };
    // Waits until it has caught up: a voter that has not would cost the cluster its quorum.
    let added = tokio::time::timeout(CATCH_UP, raft.add_learner(id, peer.clone(), true)).await;
    added.map_err(|_| PeersRefused::NotNow(format!("{} does not catch up", peer.name)))?.map_err(not_now)?;
    let older: Vec<&Member> = before.iter().filter(|m| m.peer.name == peer.name && m.id != id).collect();
    for old in older {
        match old.role {
            Role::Voter => replace(raft, old.id, id).await?,
            Role::Learner => apply(raft, ChangeMembers::RemoveNodes(BTreeSet::from([old.id]))).await?,
        }
    }
    Ok(())
}

async fn promote(raft: &Raft, host: &HostName) -> Result<(), PeersRefused> {
    let members = members(raft, None);
    let found = members.iter().find(|member| member.peer.name == host.as_str());
    let member = found.ok_or_else(|| PeersRefused::NoPeer(host.clone()))?;
    if member.role == Role::Voter {
        return Err(PeersRefused::Votes(host.clone()));
    }
    if members.iter().filter(|member| member.role == Role::Voter).count() >= MAX_VOTERS {
        return Err(PeersRefused::Full);
    }
    // Blocks until it has caught up.
    let ready = tokio::time::timeout(CATCH_UP, raft.add_learner(member.id, member.peer.clone(), true)).await;
    ready.map_err(|_| PeersRefused::NotNow(format!("{host} does not catch up")))?.map_err(not_now)?;
    apply(raft, ChangeMembers::AddVoterIds(BTreeSet::from([member.id]))).await
}

async fn remove(raft: &Raft, roll: &Roll, host: &HostName) -> Result<(), PeersRefused> {
    let members = members(raft, None);
    let of_host = |member: &&Member| member.peer.name == host.as_str();
    if !members.iter().any(|member| of_host(&member)) {
        // One that was added and never came is off the roll by now, and that is all there was of it.
        if roll.knows(host) {
            return Ok(());
        }
        return Err(PeersRefused::NoPeer(host.clone()));
    }
    let ids = |role| members.iter().filter(of_host).filter(move |m| m.role == role).map(|m| m.id);
    let (voters, learners): (BTreeSet<_>, BTreeSet<_>) =
        (ids(Role::Voter).collect(), ids(Role::Learner).collect());
    let others = members.iter().any(|member| member.role == Role::Voter && !of_host(&member));
    if !voters.is_empty() && !others {
        return Err(PeersRefused::OnlyVoter(host.clone()));
    }
    if !learners.is_empty() {
        apply(raft, ChangeMembers::RemoveNodes(learners)).await?;
    }
    if !voters.is_empty() {
        apply(raft, ChangeMembers::RemoveVoters(voters)).await?;
    }
    Ok(())
}

async fn apply(raft: &Raft, change: ChangeMembers<PeerId, Peer>) -> Result<(), PeersRefused> {
    raft.change_membership(change, false).await.map(drop).map_err(not_now)
}

fn not_now(error: RaftError<C, ClientWriteError<C>>) -> PeersRefused {
    match error.forward_to_leader() {
        Some(_) => PeersRefused::Unsettled,
        None => PeersRefused::NotNow(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: PeerId, role: Role, silent_s: u64) -> Member {
        let silent = Some(Duration::from_secs(silent_s));
        Member { id, peer: Peer::default(), role, silent, matched: Some(id) }
    }

    #[test]
    fn an_odd_number_of_peers_founds_the_cluster() {
        let of = |count: usize| {
            let peers = (0..count).map(|n| (format!("h{n:02}").parse().unwrap(), String::new())).collect();
            founders(&peers).len()
        };
        assert_eq!((1..=9).map(of).collect::<Vec<_>>(), [1, 1, 3, 3, 5, 5, 7, 7, 7]);
    }

    #[test]
    fn a_change_that_is_asked_for_again_is_known_to_be_done() {
        let host: HostName = "beta".parse().unwrap();
        let (promote, remove) =
            (PeersChange::Promote { host: host.clone() }, PeersChange::Remove { host: host.clone() });
        assert!(PeersRefused::Votes(host.clone()).says_done(&promote));
        assert!(PeersRefused::NoPeer(host.clone()).says_done(&remove));
        assert!(!PeersRefused::NoPeer(host).says_done(&promote));
    }

    #[test]
    fn a_name_is_free_only_when_its_peer_is_dead() {
        let file: BTreeMap<_, _> = [("alpha".parse().unwrap(), String::new())].into();
        let alpha = "alpha".parse().unwrap();
        let mut all = vec![member(1, Role::Voter, 2)];
        all[0].peer.name = "alpha".to_owned();
        assert_eq!(may_join(&all, &Roll::default(), &file, &alpha), Ok(()));
        all[0].silent = Some(Duration::from_millis(1999));
        assert_eq!(may_join(&all, &Roll::default(), &file, &alpha), Err(PeersRefused::Alive(alpha.clone())));
        all[0].silent = None;
        assert_eq!(may_join(&all, &Roll::default(), &file, &alpha), Err(PeersRefused::Alive(alpha)));
        let beta: HostName = "beta".parse().unwrap();
        let refused = PeersRefused::NotExpected(beta.clone());
        assert_eq!(may_join(&all, &Roll::default(), &file, &beta), Err(refused));
    }

    #[test]
    fn a_dead_voter_is_replaced_by_the_readiest_learner() {
        use Role::{Learner, Voter};
        let after = Duration::from_secs(600);
        let mut all = vec![
            member(1, Voter, 0),
            member(2, Voter, 0),
            member(3, Voter, 700),
            member(4, Learner, 0),
            member(5, Learner, 0),
        ];
        assert_eq!(replacement(&all, after), Some((3, 5)));
        all[4].silent = Some(Duration::from_secs(60));
        assert_eq!(replacement(&all, after), Some((3, 4)), "a silent learner is not ready");
        all[2].silent = Some(Duration::from_secs(599));
        assert_eq!(replacement(&all, after), None, "not dead for long enough");
        let told = |all: &[Member]| to_replace(all, after).iter().map(|m| m.id).collect::<Vec<_>>();
        assert!(told(&all).is_empty());
        all[2].silent = Some(Duration::from_secs(700));
        all[1].silent = Some(Duration::from_secs(3));
        assert_eq!(replacement(&all, after), None, "the quorum has none to spare");
        assert_eq!(told(&all), [3], "it is suggested all the same");
        all[1].silent = Some(Duration::from_secs(700));
        assert_eq!(told(&all), [2, 3]);
        all[1].silent = Some(Duration::ZERO);
        assert!(told(&all).is_empty(), "it is replaced by itself");
        all[2].role = Learner;
        assert!(told(&all).is_empty(), "a learner costs nothing");
    }
}
