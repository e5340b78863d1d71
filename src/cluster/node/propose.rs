//! Changes on their way to the primary, and what only the primary may say.
//!
//! Owns the asking again: a primary that is not known, lost its quorum or just changed is waited for until
//! the deadline. Asking again is safe, because a change that is not guarded by itself carries a key under
//! which it is applied once. A refusal by the state is an answer, not a failure.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use openraft::ReadPolicy;
use openraft::async_runtime::watch::WatchReceiver;

use super::service::{Forwarded, PeersAnswer};
use super::standing::FRESH;
use super::{Peer, Shared};
use crate::cluster::raft::log_store::MAX_CHANGE;
use crate::cluster::raft::membership::{self, PeersChange, PeersRefused, Raft};
use crate::cluster::raft::{Change, Outcome};
use crate::cluster::wire::codec::encode_unbounded;
use crate::cluster::wire::{CallError, EncodeError, Kind, Purpose, Target, decode, encode};
use crate::spec::HostName;
use crate::state::{Command, Envelope, Rejected, Response};

/// How long a change is tried: an election, and one more.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_millis(1500);
/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(10);
/// How long a round with a quorum may take.
const ROUND: Duration = Duration::from_secs(1);
/// How long a hand-over may take.
const HAND_OVER: Duration = Duration::from_secs(1);

/// Why a command was not applied, or is not known to be.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// The state refused it: nothing was changed.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// No primary with a quorum in time: nothing was applied.
    #[error(
        "the cluster has no quorum: no primary took the change within {0:?}; `bigbrother peers` shows who is missing"
    )]
    NoPrimary(Duration),
    /// A primary was given it, and its answer did not come: it is applied, will be, or never.
    #[error(
        "nobody knows whether the change was made: a primary was given it and did not confirm it within {0:?}; it may \
         still be made, so look before you try again"
    )]
    Unknown(Duration),
    /// This host is attached to no peer now: nothing was applied.
    #[error("no peer serves this host, which is none itself ({0}): is one up, and reached from here?")]
    NoPeer(String),
    /// It would not get from one peer to another.
    #[error(
        "the change takes {0} bytes, and {MAX_CHANGE} is the most that the peers take at once: nothing was changed"
    )]
    TooLarge(usize),
    /// It makes no message.
    #[error("the change cannot be written")]
    Encode(#[from] EncodeError),
}

/// The bytes of a change, as they go to the primary.
pub(in crate::cluster) fn bytes_of(change: &Change) -> Result<Vec<u8>, ProposeError> {
    let bytes = encode_unbounded(change)?;
    fits(&bytes)?;
    Ok(bytes)
}

/// Whether a change of these bytes may go into the log.
pub(super) fn fits(bytes: &[u8]) -> Result<(), ProposeError> {
    if bytes.len() > MAX_CHANGE { Err(ProposeError::TooLarge(bytes.len())) } else { Ok(()) }
}

/// Why the peers were not changed.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// The primary said no.
    #[error(transparent)]
    Refused(#[from] PeersRefused),
    /// No primary with a quorum in time.
    #[error(
        "the cluster has no quorum: no primary took the change within {0:?}; `bigbrother peers` shows who is missing"
    )]
    NoPrimary(Duration),
}

/// This peer is not the primary, or cannot reach a quorum.
#[derive(Debug, thiserror::Error)]
#[error("this host is not the primary or has no quorum: {0}")]
pub struct NotPrimary(pub String);

/// A quorum just confirmed that this peer is the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Primary {
    /// Of its election.
    pub term: u64,
    /// All entries up to here are applied here.
    pub index: u64,
}

impl Peer {
    /// Applies a command, whoever is the primary. When it returns, this host's own copy has the change.
    pub async fn propose(&self, command: Command) -> Result<Response, ProposeError> {
        let shared = &self.shared;
        let envelope = Arc::new(Envelope { stamp_ms: shared.now_ms(), command });
        let number = shared.number.fetch_add(1, Ordering::Relaxed);
        let change = Change::of(envelope, (shared.origin, number));
        let started = Instant::now();
        let (outcome, index) = shared.submit(change, PATIENCE).await?;
        // The own copy may be behind for long: the change holds all the same.
        let _ = tokio::time::timeout(PATIENCE.saturating_sub(started.elapsed()), shared.applied(index)).await;
        match outcome {
            Outcome::State(outcome) => Ok(outcome?),
            // A command has no other outcome.
            _ => Err(ProposeError::NoPrimary(PATIENCE)),
        }
    }

    /// A round with a quorum: that this peer is the primary now, and has applied all that was committed.
    pub async fn ensure_primary(&self) -> Result<Primary, NotPrimary> {
        self.shared.ensure_primary().await
    }

    /// Waits until this host's own copy has all that was committed anywhere when this was called.
    pub async fn catch_up(&self) -> Result<(), NotPrimary> {
        let shared = &self.shared;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(index) = shared.read_index().await {
                let rest = deadline.saturating_duration_since(Instant::now());
                let applied = tokio::time::timeout(rest, shared.applied(index)).await;
                return applied.map_err(|_| NotPrimary("this host's copy is behind".to_owned()));
            }
            tokio::time::sleep(AGAIN).await;
        }
        Err(NotPrimary("no primary answers".to_owned()))
    }

    /// Makes another peer the primary; `None`: this peer is not the primary, or is alone.
    pub async fn hand_over(&self) -> Result<Option<HostName>, NotPrimary> {
        let Some(raft) = self.shared.raft() else { return Ok(None) };
        let metrics = raft.metrics().borrow_watched().clone();
        if metrics.current_leader != Some(metrics.id) {
            return Ok(None);
        }
        let others = self.shared.members(&raft).into_iter();
        let others = others.filter(|m| m.role == membership::Role::Voter && m.id != metrics.id);
        // Who answers, and misses least.
        let Some(heir) = others
            .filter(|member| member.silent.is_some_and(|silent| silent < ROUND))
            .max_by_key(|member| member.matched)
        else {
            return Ok(None);
        };
        raft.trigger().transfer_leader(heir.id).await.map_err(|error| NotPrimary(error.to_string()))?;
        let me = metrics.id;
        let taken = raft.wait(Some(HAND_OVER));
        let taken =
            taken.metrics(|m| m.current_leader.is_some_and(|leader| leader != me), "another peer leads");
        taken.await.map_err(|_| NotPrimary(format!("{} did not take over", heir.peer.name)))?;
        Ok(heir.peer.name.parse().ok())
    }

    /// Lets a host become a peer that is not in the founders' file.
    pub async fn add_peer(&self, host: HostName, address: String) -> Result<(), PeersError> {
        self.shared.change_peers(&PeersChange::Add { host, address }, PATIENCE).await.map(drop)
    }

    /// Takes a host out of the peers.
    pub async fn remove_peer(&self, host: HostName) -> Result<(), PeersError> {
        self.shared.change_peers(&PeersChange::Remove { host }, 4 * PATIENCE).await.map(drop)
    }

    /// Lets a peer vote.
    pub async fn promote_peer(&self, host: HostName) -> Result<(), PeersError> {
        self.shared.change_peers(&PeersChange::Promote { host }, 24 * PATIENCE).await.map(drop)
    }
}

/// Where an attempt went, and what came of it.
enum Attempt<T> {
    Answered(T),
    /// It was not carried out.
    Again,
    /// It may have been carried out. Asking again is safe all the same: the change carries its guard.
    Unknown,
}

impl Shared {
    pub(super) async fn ensure_primary(&self) -> Result<Primary, NotPrimary> {
        let raft = self.raft().ok_or_else(|| NotPrimary("it is no peer yet".to_owned()))?;
        let round = tokio::time::timeout(ROUND, raft.ensure_linearizable(ReadPolicy::ReadIndex)).await;
        let read = round.map_err(|_| NotPrimary("no quorum answers".to_owned()))?;
        let read = read.map_err(|error| NotPrimary(error.to_string()))?;
        Ok(Primary { term: read.log_id().leader_id.term, index: read.log_id().index })
    }

    /// The index from which on a read is linearizable, whoever is the primary.
    pub(super) async fn read_index(&self) -> Option<u64> {
        let primary = self.primary()?;
        if primary.host == self.settings.host {
            return self.ensure_primary().await.ok().map(|primary| primary.index);
        }
        let asked = self.exchange.call(&primary, Purpose::Urgent, Kind::ReadIndex, Vec::new(), ROUND).await;
        decode(&asked.ok()?).ok()
    }

    /// Until this host's copy has the entry.
    async fn applied(&self, index: u64) {
        let mut applies = self.applies.clone();
        let _ = applies.wait_for(|applied| applied.log.is_some_and(|log| log.index >= index)).await;
    }

    /// Gives a change to the primary, again and again until the deadline.
    pub(super) async fn submit(
        &self,
        change: Change,
        patience: Duration,
    ) -> Result<(Outcome, u64), ProposeError> {
        let body = bytes_of(&change)?;
        let deadline = Instant::now() + patience;
        let mut unknown = false;
        while Instant::now() < deadline {
            let ttl = ATTEMPT.min(deadline.saturating_duration_since(Instant::now()));
            match self.attempt(&change, &body, ttl).await {
                Attempt::Answered(applied) => return Ok(applied),
                Attempt::Unknown => unknown = true,
                Attempt::Again => {}
            }
            tokio::time::sleep(AGAIN).await;
        }
        Err(if unknown { ProposeError::Unknown(patience) } else { ProposeError::NoPrimary(patience) })
    }

    async fn attempt(&self, change: &Change, body: &[u8], ttl: Duration) -> Attempt<(Outcome, u64)> {
        let (Some(raft), Some(primary)) = (self.raft(), self.primary()) else { return Attempt::Again };
        if primary.host == self.settings.host {
            // Raft would take it, and commit it whenever a quorum is back.
            if !*self.quorum.borrow() {
                return Attempt::Again;
            }
            let written = tokio::time::timeout(ttl, raft.client_write(change.clone())).await;
            return match written {
                Ok(Ok(applied)) => Attempt::Answered((applied.data, applied.log_id.index)),
                // Not the primary any more, or no quorum: it may be in the log already.
                Ok(Err(_)) | Err(_) => Attempt::Unknown,
            };
        }
        // Raft names its last primary for ever. One that is cut off would only leave nobody knowing.
        if !self.heard.borrow().is_some_and(|heard| heard.at.elapsed() < FRESH) {
            return Attempt::Again;
        }
        let answer = tokio::select! {
            answer = self.exchange.call(&primary, Purpose::Bulk, Kind::Propose, body.to_vec(), ttl) => answer,
            // One that stands still would be waited for although there is another one.
            () = self.succeeded(&primary) => return Attempt::Unknown,
        };
        match answer {
            Ok(answer) => match decode(&answer) {
                Ok(Forwarded::Applied(outcome, index)) => Attempt::Answered((outcome, index)),
                Ok(Forwarded::NotPrimary) | Err(_) => Attempt::Unknown,
            },
            Err(CallError::Busy | CallError::Unreachable(_)) => Attempt::Again,
            Err(CallError::Broken | CallError::Late(_) | CallError::Failed(_)) => Attempt::Unknown,
        }
    }

    /// Until this peer knows of another primary.
    async fn succeeded(&self, old: &Target) {
        while self.primary().is_none_or(|primary| primary == *old) {
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        target: &Target,
        kind: Kind,
        body: Vec<u8>,
        ttl: Duration,
    ) -> Option<T> {
        let answer = self.exchange.call(target, Purpose::Bulk, kind, body, ttl).await;
        decode(&answer.ok()?).ok()
    }

    /// Gives a change of the peers to the primary. The number, where one was asked for.
    pub(super) async fn change_peers(
        &self,
        change: &PeersChange,
        patience: Duration,
    ) -> Result<Option<u64>, PeersError> {
        let deadline = Instant::now() + patience;
        // An attempt without an answer may have been carried out.
        let mut unknown = false;
        while Instant::now() < deadline {
            let rest = deadline.saturating_duration_since(Instant::now());
            let answer = match (self.raft(), self.primary_or_file()) {
                (Some(raft), Some(primary)) if primary.host == self.settings.host => {
                    Some(self.change_peers_as_primary(&raft, change).await)
                }
                (_, Some(primary)) => {
                    let body = encode(change).map_err(|error| PeersRefused::NotNow(error.to_string()))?;
                    self.ask(&primary, Kind::Peers, body, rest).await
                }
                _ => None,
            };
            match answer {
                Some(PeersAnswer::Done(number)) => return Ok(number),
                Some(PeersAnswer::Refused(refused)) if unknown && refused.says_done(change) => {
                    return Ok(None);
                }
                Some(PeersAnswer::Refused(PeersRefused::Unsettled)) | None => unknown = true,
                Some(PeersAnswer::Refused(refused)) => return Err(refused.into()),
                Some(PeersAnswer::NotPrimary) => {}
            }
            tokio::time::sleep(10 * AGAIN).await;
        }
        Err(PeersError::NoPrimary(patience))
    }

    /// A newcomer hears nothing of the primary yet: any peer of the file will do, in turn.
    fn primary_or_file(&self) -> Option<Target> {
        self.primary().or_else(|| {
            let mut others = self.settings.others().into_iter();
            let turn = self.number.fetch_add(1, Ordering::Relaxed) as usize;
            others.nth(turn % others.len().max(1)).map(|(_, target)| target)
        })
    }

    /// Changes the peers if this one is the primary.
    pub(super) async fn change_peers_as_primary(&self, raft: &Raft, change: &PeersChange) -> PeersAnswer {
        // One at a time: openraft refuses a second one, and a plan of the first may not hold for it.
        let _turn = self.changing.lock().await;
        let confirmed = tokio::time::timeout(ROUND, raft.ensure_linearizable(ReadPolicy::ReadIndex)).await;
        if !matches!(confirmed, Ok(Ok(_))) {
            return PeersAnswer::NotPrimary;
        }
        match self.carry_out(raft, change).await {
            Ok(number) => PeersAnswer::Done(number),
            Err(refused) => PeersAnswer::Refused(refused),
        }
    }

    async fn carry_out(&self, raft: &Raft, change: &PeersChange) -> Result<Option<u64>, PeersRefused> {
        let roll = self.applies.borrow().roll.clone();
        if let PeersChange::Number { host, .. } = change {
            membership::may_join(&self.members(raft), &roll, &self.settings.peers, host)?;
        }
        if let PeersChange::Add { host, address } = change {
            membership::may_add(&self.members(raft), host, address)?;
        }
        let entry = match change {
            PeersChange::Number { host, address } => {
                Some(Change::HandOut { host: host.clone(), address: address.clone() })
            }
            PeersChange::Add { host, address } => {
                Some(Change::Expect { host: host.clone(), address: address.clone() })
            }
            PeersChange::Remove { host } => Some(Change::Forget { host: host.clone() }),
            PeersChange::Promote { .. } | PeersChange::Admit { .. } => None,
        };
        let mut number = None;
        // Before Raft's members change: a primary that removes itself can say nothing afterwards.
        if let Some(entry) = entry {
            let written = self.submit(entry, PATIENCE).await;
            if let (Outcome::Number(id), _) =
                written.map_err(|error| PeersRefused::NotNow(error.to_string()))?
            {
                number = Some(id);
            }
        }
        membership::change(raft, &roll, change).await?;
        Ok(number)
    }
}
