//! What an attached host asks of the cluster through its peer.
//!
//! Everything that is asked waits for a peer, until its deadline; what is asked while the peer changes is asked again of
//! the next one. Only [`Attached::report`] is asked once: it is worthless later.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Attached;
use crate::agent::replica::wall_ms;
use crate::cluster::node::{NotPrimary, ProposeError, bytes_of};
use crate::cluster::raft::{Change, Outcome};
use crate::cluster::session::message::Proposed;
use crate::cluster::wire::{CallError, Kind, Purpose, Target, decode, encode};
use crate::plan::liveness::{Attendance, Confirm};
use crate::state::{Command, Envelope, Response};

/// How long a change is tried, as on a peer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one attempt may take: as long as the peer itself tries (1.8 s), and the way there and back on a busy machine. A
/// peer that is silent for two seconds is left sooner.
const ATTEMPT: Duration = Duration::from_millis(3000);
/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(10);

/// Why an attempt has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cluster::session) enum Unheard {
    /// It has reached nobody.
    Unasked,
    /// The peer says no.
    Refused,
    /// It may have been carried out.
    Unanswered,
}

impl Attached {
    /// Applies a command, whoever is the primary. When it returns, this host's own copy has the change.
    pub async fn propose(&self, command: Command) -> Result<Response, ProposeError> {
        let envelope = Arc::new(Envelope { stamp_ms: wall_ms(), command });
        let number = self.0.number.fetch_add(1, Ordering::Relaxed);
        let body = bytes_of(&Change::of(envelope, (self.0.origin, number)))?;
        let deadline = Instant::now() + PATIENCE;
        // Which of these came of any attempt.
        let (mut heard, mut unknown) = (false, false);
        while Instant::now() < deadline {
            // The last attempt has its time, too: one that is cut short leaves nobody knowing.
            match self.ask_for(Kind::Propose, &body, deadline + ATTEMPT, ATTEMPT).await {
                Ok(Proposed::Applied(outcome, index)) => {
                    // The own copy may be behind for long: the change holds all the same.
                    let _ = tokio::time::timeout_at(deadline.into(), self.applied(index)).await;
                    return match outcome {
                        Outcome::State(outcome) => Ok(outcome?),
                        // A command has no other outcome.
                        _ => Err(ProposeError::NoPrimary(PATIENCE)),
                    };
                }
                Ok(Proposed::NoPrimary) | Err(Unheard::Refused) => heard = true,
                Ok(Proposed::Unknown) | Err(Unheard::Unanswered) => unknown = true,
                Err(Unheard::Unasked) => {}
            }
            tokio::time::sleep(AGAIN).await;
        }
        Err(match (unknown, heard) {
            (true, _) => ProposeError::Unknown(PATIENCE),
            (false, true) => ProposeError::NoPrimary(PATIENCE),
            (false, false) => ProposeError::NoPeer(self.0.trouble.borrow().clone().unwrap_or_default()),
        })
    }

    /// Waits until this host's own copy has all that was committed anywhere when this was called.
    pub async fn catch_up(&self) -> Result<(), NotPrimary> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Ok(index) = self.ask(Kind::ReadIndex, &[], deadline).await {
                let applied = tokio::time::timeout_at(deadline.into(), self.applied(index)).await;
                return applied.map_err(|_| NotPrimary("this host's copy is behind".to_owned()));
            }
            tokio::time::sleep(AGAIN).await;
        }
        Err(NotPrimary("no primary answers".to_owned()))
    }

    /// Tells the primary that this host lives, and waits for its answer for at most `ttl`. Never behind anything
    /// large, and never asked twice. The answer on the wire is an `Option<Confirm>`.
    pub async fn report(&self, attendance: &Attendance, ttl: Duration) -> Option<Confirm> {
        let peer = self.peer()?;
        let body = encode(attendance).ok()?;
        let answer = self.call_peer(&peer, Purpose::Host, Kind::Report, body, ttl).await;
        decode::<Option<Confirm>>(&answer.ok()?).ok()?
    }

    /// Asks the peer something beside the log, once.
    pub async fn call(&self, kind: Kind, body: Vec<u8>, ttl: Duration) -> Result<Vec<u8>, CallError> {
        let deadline = Instant::now() + ttl;
        let nobody = |_| CallError::Unreachable("no peer serves this host".to_owned());
        let peer = tokio::time::timeout(ttl, self.some_peer()).await.map_err(nobody)?;
        let rest = deadline.saturating_duration_since(Instant::now());
        let soft = matches!(kind, Kind::Status | Kind::Statuses);
        let purpose = if soft { Purpose::Status } else { Purpose::HostBulk };
        self.call_peer(&peer, purpose, kind, body, rest).await
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        kind: Kind,
        body: &[u8],
        deadline: Instant,
    ) -> Result<T, Unheard> {
        self.ask_for(kind, body, deadline, ATTEMPT).await
    }

    /// One attempt with whoever serves this host; it ends early when that is somebody else.
    pub(in crate::cluster::session) async fn ask_for<T: serde::de::DeserializeOwned>(
        &self,
        kind: Kind,
        body: &[u8],
        deadline: Instant,
        attempt: Duration,
    ) -> Result<T, Unheard> {
        let peer = tokio::time::timeout_at(deadline.into(), self.some_peer()).await;
        let peer = peer.map_err(|_| Unheard::Unasked)?;
        let ttl = attempt.min(deadline.saturating_duration_since(Instant::now()));
        let mut peers = self.0.peer.subscribe();
        let purpose = if kind == Kind::ReadIndex { Purpose::Host } else { Purpose::HostBulk };
        let answer = tokio::select! {
            answer = self.call_peer(&peer, purpose, kind, body.to_vec(), ttl) => answer,
            _ = peers.wait_for(|now| now.as_ref() != Some(&peer)) => return Err(Unheard::Unanswered),
        };
        match answer {
            Ok(answer) => decode(&answer).map_err(|_| Unheard::Unanswered),
            Err(CallError::Busy | CallError::Unreachable(_)) => Err(Unheard::Unasked),
            Err(CallError::Failed(_)) => Err(Unheard::Refused),
            Err(CallError::Broken | CallError::Late(_)) => Err(Unheard::Unanswered),
        }
    }

    /// Until this host's copy has the entry.
    async fn applied(&self, index: u64) {
        let _ = self.0.copy.subscribe().wait_for(|(place, _)| place.index >= index).await;
    }

    async fn some_peer(&self) -> Target {
        let mut peers = self.0.peer.subscribe();
        // The sender is here; it cannot be gone.
        match peers.wait_for(Option::is_some).await.ok().and_then(|peer| peer.clone()) {
            Some(peer) => peer,
            None => std::future::pending().await,
        }
    }
}
