//! Which peers do not answer, as this one finds by asking: without a primary nobody else tells.
//!
//! Owns nothing. Called for people who look at a cluster without a quorum.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Peer;
use crate::cluster::raft::PeerId;
use crate::cluster::raft::network::target;
use crate::cluster::wire::Kind;

/// What one peer may take: whoever asks waits for the slowest.
const QUESTION: Duration = Duration::from_millis(500);

impl Peer {
    /// The other peers that do not answer this one, and why. All are asked at once, for a moment.
    pub async fn missing(&self) -> BTreeMap<PeerId, String> {
        let own = self.id();
        let others = self.peers().into_iter().filter(|member| Some(member.id) != own);
        let others = others.filter_map(|member| Some((member.id, target(member.id, &member.peer)?)));
        let asked = self.shared.ask_each(others.collect(), (Kind::Probe, Vec::new()), QUESTION);
        let answers = asked.join_all().await.into_iter();
        answers.filter_map(|(id, answer)| Some((id, answer.err()?.to_string()))).collect()
    }
}
