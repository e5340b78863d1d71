//! Which peers do not answer, as this one finds by asking: without a primary nobody else tells.
//!
//! Owns nothing. Called for people who look at a cluster without a quorum.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::JoinSet;

use super::Peer;
use crate::cluster::raft::PeerId;
use crate::cluster::raft::network::target;
use crate::cluster::wire::{Kind, Purpose};

/// What one peer may take: whoever asks waits for the slowest.
const QUESTION: Duration = Duration::from_millis(500);

impl Peer {
    /// The other peers that do not answer this one, and why. All are asked at once, for a moment.
    pub async fn missing(&self) -> BTreeMap<PeerId, String> {
        let own = self.id();
        let mut asked = JoinSet::new();
        for member in self.peers().into_iter().filter(|member| Some(member.id) != own) {
            let Some(target) = target(member.id, &member.peer) else { continue };
            let exchange = self.exchange().clone();
            asked.spawn(async move {
                let answer = exchange.call(&target, Purpose::Probe, Kind::Probe, Vec::new(), QUESTION).await;
                Some((member.id, answer.err()?.to_string()))
            });
        }
        asked.join_all().await.into_iter().flatten().collect()
    }
}
