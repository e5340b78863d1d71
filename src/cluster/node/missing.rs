//! Which peers do not answer: as this one finds by asking, since without a primary nobody else tells, and as a primary knows.
//!
//! Owns nothing. Called for people who look at the peers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Peer;
use crate::cluster::raft::PeerId;
use crate::cluster::raft::membership::to_replace;
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

    /// The voters that have been dead for `dead_voter_after`, and that an operator is to replace. None but on the primary.
    pub fn to_replace(&self) -> BTreeSet<PeerId> {
        let dead = self.peers();
        to_replace(&dead, self.shared.settings.dead_voter_after).iter().map(|member| member.id).collect()
    }
}
