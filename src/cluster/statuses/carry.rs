//! Asking others for what they have, and telling the own sheet.
//!
//! Owns nothing that lasts. Who is asked, and over which line, is the caller's: `node` of a peer, `session` of an
//! attached host.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::Duration;

use super::{Have, LEASE, Lacks, Statuses, WAIT, locked};
use crate::agent::supervise::moment;
use crate::cluster::wire::{CallError, decode, encode};
use crate::spec::HostName;
use crate::status::Place;

/// How long an answer may take; one without news comes sooner.
pub const TTL: Duration = Duration::from_secs(10);
/// Between two questions: what changes meanwhile goes together.
const PACE: Duration = Duration::from_millis(200);
/// Before somebody that did not answer is asked again.
const AGAIN: Duration = Duration::from_secs(1);

type Answer = Result<Vec<u8>, CallError>;

impl Statuses {
    /// Asks somebody once for what is not here of what it tells, and takes that over; `told`: the hosts of which it
    /// has told before. Comes back when it is time to ask again. True: nothing more was left out of the answer.
    pub async fn ask<A: Future<Output = Answer>>(
        &self,
        told: &mut BTreeSet<HostName>,
        ask: impl FnOnce(Vec<u8>) -> A,
    ) -> bool {
        let mut places = locked(&self.0.board).places();
        places.retain(|host, _| told.contains(host));
        let answer = match encode(&Have { places }) {
            Ok(body) => ask(body).await.ok(),
            Err(_) => None,
        };
        let taken = match answer {
            Some(answer) => self.aside(move |statuses| statuses.take_over(&answer)).await.flatten(),
            None => None,
        };
        let Some((hosts, more)) = taken else {
            tokio::time::sleep(AGAIN).await;
            return false;
        };
        told.extend(hosts);
        if !more {
            tokio::time::sleep(PACE).await;
        }
        !more
    }

    /// Whose sheets the answer tells, and whether there is more.
    fn take_over(&self, answer: &[u8]) -> Option<(Vec<HostName>, bool)> {
        let Lacks { deltas, more } = decode(answer).ok()?;
        let hosts = deltas.iter().map(|delta| delta.host.clone()).collect();
        for delta in deltas {
            self.merge(delta);
        }
        self.change(|board| board.forget(moment()));
        Some((hosts, more))
    }

    /// Waits until somebody reads.
    pub async fn wanted(&self) {
        let mut reads = self.0.read.subscribe();
        // The sender is here; it cannot be gone.
        let _ = reads.wait_for(|read| read.is_some_and(|read| moment().since(read) < LEASE)).await;
    }

    /// Somebody has read just now, or not long ago.
    pub fn is_wanted(&self) -> bool {
        self.0.read.borrow().is_some_and(|read| moment().since(read) < LEASE)
    }

    /// All that the others say is here now.
    pub fn complete(&self) {
        self.0.whole.send_replace(true);
    }

    /// Nobody reads any more: what the others say is not kept.
    pub fn lapse(&self) {
        self.0.whole.send_replace(false);
        self.change(|board| board.forget_others());
    }

    /// Tells somebody what it lacks of the own sheet when it has so much of it; up to where it has it then. `None`: it
    /// is not known, or there is nothing to tell yet.
    pub async fn tell<A: Future<Output = Answer>>(
        &self,
        have: Option<Place>,
        tell: impl FnOnce(Vec<u8>) -> A,
    ) -> Option<Place> {
        let delta = self.change(|board| board.own_since(have, moment()));
        let told = match delta.and_then(|delta| encode(&delta).ok()) {
            Some(body) => tell(body).await.ok().and_then(|place| decode::<Option<Place>>(&place).ok()),
            None => None,
        };
        tokio::time::sleep(if told.is_some() { PACE } else { AGAIN }).await;
        told.flatten()
    }

    /// Waits until the own sheet is beyond a place, or it is time to say that it is not.
    pub async fn changed_since(&self, place: Option<Place>) {
        let mut versions = self.versions();
        let changed = async {
            while Some(locked(&self.0.board).own().place()) == place {
                // The sender is here; it cannot be gone.
                let _ = versions.changed().await;
            }
        };
        let _ = tokio::time::timeout(WAIT, changed).await;
    }
}
