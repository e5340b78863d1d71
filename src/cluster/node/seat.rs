//! Whether a number is still that of a peer: who was replaced or removed while it was away has to hear of it, since it
//! is heard by nobody.
//!
//! Owns the question, its answer, and the mark in the log's file that it was heard. That a number is void, which it then is
//! for ever, only a primary says that a quorum has just confirmed. Asked before Raft is started (`settle`) and while no
//! primary is heard, answered for `service`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::ReadPolicy;
use openraft::async_runtime::watch::WatchReceiver;
use serde::{Deserialize, Serialize};

use super::Shared;
use super::identity::Identity;
use crate::cluster::raft::PeerId;
use crate::cluster::raft::log_store::disk::{Disk, Key};
use crate::cluster::wire::{Kind, decode, encode};

/// What all answers together may take: an agent that starts waits for them.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the primary may take to be confirmed.
const ROUND: Duration = Duration::from_millis(800);
/// How often it is asked while no primary is heard.
const AGAIN: Duration = Duration::from_secs(2);

/// Append-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Seat {
    /// By a peer, or by a newcomer that is expected.
    Taken,
    /// By nobody, ever again.
    Void,
    /// Asked of a host that is not the primary, or cannot say so now.
    Unknown,
}

impl Shared {
    /// The answer of this host.
    pub(super) async fn seat(&self, id: PeerId) -> Seat {
        let Some(raft) = self.raft() else { return Seat::Unknown };
        if !raft.metrics().borrow_watched().state.is_leader() {
            return Seat::Unknown;
        }
        let confirmed = tokio::time::timeout(ROUND, raft.ensure_linearizable(ReadPolicy::ReadIndex)).await;
        if !matches!(confirmed, Ok(Ok(_))) {
            return Seat::Unknown;
        }
        // What is not committed yet may be taken back.
        let applied = self.applies.borrow().clone();
        let newest = raft.metrics().borrow_watched().membership_config.membership().get_node(&id).is_some();
        let held = applied.membership.membership().get_node(&id).is_some();
        match newest || held || applied.roll.pending.contains_key(&id) {
            true => Seat::Taken,
            false => Seat::Void,
        }
    }

    /// True when the primary says that this number is nobody's; false as well when there is none.
    pub(super) async fn is_void(&self, id: PeerId) -> bool {
        let Ok(body) = encode(&id) else { return false };
        let mut asked = self.ask_each(self.settings.others(), (Kind::Seat, body), PATIENCE);
        let first = async {
            while let Some(said) = asked.join_next().await {
                let said = said.ok().and_then(|(_, said)| decode(&said.ok()?).ok());
                if let Some(known @ (Seat::Taken | Seat::Void)) = said {
                    return known;
                }
            }
            Seat::Unknown
        };
        matches!(tokio::time::timeout(PATIENCE, first).await, Ok(Seat::Void))
    }
}

/// What is written down: the number, and of which history. A copy that was made the cluster's (`recover`) keeps its number,
/// and has another history.
type Mark = (PeerId, u64);

/// Whether this number was heard to be void in an earlier life. Nobody needs to be asked then.
pub(super) fn was_void(disk: &Disk, identity: &Identity) -> io::Result<bool> {
    let Identity::Peer { id, history, .. } = identity else { return Ok(false) };
    let mark: Option<Mark> = disk.get(Key::Void)?.as_deref().map(decode).transpose()?;
    Ok(mark == Some((*id, *history)))
}

async fn write_void(shared: &Shared, id: PeerId) -> io::Result<()> {
    let Some(history) = shared.ours.borrow().history else { return Ok(()) };
    shared.disk.put(Key::Void, encode(&(id, history))?).await
}

/// While no primary is heard: this peer may have been removed. Then it says so, for the agent to end by if it has never
/// had a quorum; else it goes on as it is: whether it comes back as a new peer or as a host that attaches is in its file,
/// which is read when it is started again.
pub(super) async fn watch(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(AGAIN).await;
        let id = shared.ours.borrow().id;
        let Some(id) = id.filter(|_| shared.raft().is_some() && !shared.standing.borrow().quorum) else {
            continue;
        };
        if shared.is_void(id).await {
            tracing::error!(number = id, "{}", super::standing::REMOVED);
            if let Err(error) = write_void(&shared, id).await {
                tracing::warn!(%error, "this is not written down: the next start has to ask again");
            }
            shared.removed.send_replace(true);
            return;
        }
    }
}
