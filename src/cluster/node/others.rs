//! One question to many peers at once.
//!
//! Owns nothing. Asked by whoever has no primary to ask: a newcomer that looks around (`settle`), a peer that may be none
//! any more (`seat`), and for people who look at a cluster without a quorum (`missing`).

use std::time::Duration;

use tokio::task::JoinSet;

use super::Shared;
use crate::cluster::wire::{CallError, Kind, Purpose, Target};

/// Who was asked, and what came of it; in the order in which the answers come.
pub(super) type Answers<Who> = JoinSet<(Who, Result<Vec<u8>, CallError>)>;

impl Shared {
    /// Asks all of these; each has so long.
    pub(super) fn ask_each<Who: Send + 'static>(
        &self,
        whom: Vec<(Who, Target)>,
        (kind, body): (Kind, Vec<u8>),
        ttl: Duration,
    ) -> Answers<Who> {
        let mut asked = JoinSet::new();
        for (who, target) in whom {
            let (exchange, body) = (self.exchange.clone(), body.clone());
            asked.spawn(async move { (who, exchange.call(&target, Purpose::Probe, kind, body, ttl).await) });
        }
        asked
    }
}
