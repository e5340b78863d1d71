//! Watching over a peer: how the cluster stands, who can be reached again, what the disk still owes.
//!
//! Owns [`Standing`]. It is for people and for choosing whom to ask; it may be late, and nothing is done on
//! its word alone (`Node::ensure_primary`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::Instant;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::mpsc;

use super::Shared;
use crate::cluster::raft::log_store::disk::Op;
use crate::cluster::raft::membership::{self, Raft};
use crate::cluster::raft::{ELECTION_MS, network};
use crate::cluster::session::message::Members;
use crate::cluster::wire::Target;
use crate::spec::HostName;

/// How often it is looked, beside each change.
const LOOK: Duration = Duration::from_millis(50);
/// How often the disk is tidied and dead voters are looked for.
const TIDY: Duration = Duration::from_millis(500);
/// A primary that was heard within this time counts.
pub(super) const FRESH: Duration = Duration::from_millis(2 * ELECTION_MS.1);

/// Why nothing changes where Raft has found what must not be.
const PANICKED: &str = "this peer's log does not go with that of the others, or the program has a fault: the agent's log \
                        says more; if this comes again, move the folder `raft` away";

/// What a peer is told of which the number is nobody's any more.
pub(super) const REMOVED: &str = "this host is no peer any more: it was removed, or replaced when it was away for long. \
                                  Start its agent again to bring it back as a new peer; take it out of `peers` in its \
                                  own cluster.toml before that, and it attaches to the others";

/// How the cluster stands, as far as this peer knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The primary; `None`: there is none, or this peer does not hear it.
    pub primary: Option<HostName>,
    /// The term of the last election.
    pub term: u64,
    /// The last entry that this peer has applied; 0: none.
    pub index: u64,
    /// A primary with a quorum was heard just now.
    pub quorum: bool,
    /// Nothing changes here until the agent is started again, and why: this peer's log stopped, or it was removed.
    pub broken: Option<String>,
    /// It was removed.
    pub removed: bool,
}

/// Keeps [`Standing`] as it is.
pub(super) async fn watch(shared: Arc<Shared>) {
    let mut rafts = shared.raft.subscribe();
    let Ok(raft) = rafts.wait_for(Option::is_some).await.map(|raft| raft.clone()) else { return };
    let Some(raft) = raft else { return };
    let mut metrics = raft.metrics();
    let mut ended = false;
    loop {
        let now = standing(&shared, &raft, ended);
        shared.standing.send_if_modified(|standing| {
            let changed = *standing != now;
            *standing = now;
            changed
        });
        // The end of the metrics is the end of Raft. Why it ended is in them, unless that was a panic.
        if let Ok(Err(_)) = tokio::time::timeout(LOOK, metrics.changed()).await {
            ended = true;
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn standing(shared: &Shared, raft: &Raft, ended: bool) -> Standing {
    let metrics = raft.metrics().borrow_watched().clone();
    let membership = metrics.membership_config.membership();
    let leads = metrics.current_leader == Some(metrics.id) && metrics.state.is_leader();
    let quorum = if leads {
        let lease = Duration::from_millis(ELECTION_MS.1);
        let acked = metrics.last_quorum_acked.is_some_and(|at| at.elapsed() < lease);
        acked || membership.voter_ids().count() == 1
    } else {
        let heard = *shared.heard.borrow();
        metrics.current_leader.is_some() && heard.is_some_and(|h| h.quorum && h.at.elapsed() < FRESH)
    };
    // Another term is another primary, though it be the same peer.
    let term = leads.then_some(metrics.current_term);
    shared.led.send_if_modified(|led| {
        let changed = led.map(|(term, _)| term) != term;
        if changed {
            *led = term.map(|term| (term, std::time::Instant::now()));
        }
        changed
    });
    let peers =
        membership.nodes().filter_map(|(_, peer)| Some((peer.name.parse().ok()?, peer.address.clone())));
    let at = metrics.membership_config.log_id().map_or(0, |log| log.index);
    let members = Members { at, peers: peers.collect() };
    shared.known.send_if_modified(|known| {
        let changed = *known != members;
        *known = members;
        changed
    });
    let broken = metrics.running_state.as_ref().err().map(ToString::to_string);
    let broken = broken.or_else(|| ended.then(|| PANICKED.to_owned()));
    let removed = *shared.removed.borrow();
    let broken = broken.or_else(|| removed.then(|| REMOVED.to_owned()));
    let quorum = quorum && broken.is_none();
    shared.quorum.send_if_modified(|known| std::mem::replace(known, leads && quorum) != (leads && quorum));
    let primary = metrics.current_leader.filter(|_| quorum);
    let primary = primary.and_then(|id| membership.get_node(&id)?.name.parse().ok());
    let index = metrics.last_applied.map_or(0, |log| log.index);
    Standing { primary, term: metrics.current_term, index, quorum, broken, removed }
}

/// Ends the waiting for a peer as soon as it can be reached again.
pub(super) async fn reconnect(shared: Arc<Shared>, mut connections: mpsc::Receiver<Target>) {
    while let Some(target) = connections.recv().await {
        if let (Some(id), Some(raft)) = (target.id, shared.raft()) {
            let _ = raft.trigger().reset_backoff([id]).await;
        }
    }
}

/// Brings to disk what nobody waits for, closes lines to former peers, and, as primary, replaces dead voters.
pub(super) async fn tidy(shared: Arc<Shared>) {
    let mut told = BTreeSet::new();
    loop {
        tokio::time::sleep(TIDY).await;
        if shared.disk.send(Op::Tidy).await.is_err() {
            return;
        }
        let Some(raft) = shared.raft() else { continue };
        let members = shared.members(&raft);
        let known = |target: &Target| {
            target.id.is_none()
                || members
                    .iter()
                    .any(|m| network::target(m.id, &m.peer).is_some_and(|known| known == *target))
        };
        shared.exchange.keep(known);
        if !*shared.quorum.borrow() {
            continue;
        }
        let dead_after = shared.settings.dead_voter_after;
        match membership::replacement(&members, dead_after) {
            Some((dead, by)) => {
                let _turn = shared.changing.lock().await;
                match membership::replace(&raft, dead, by).await {
                    Ok(()) => tracing::warn!(dead, by, "a dead voter was replaced"),
                    Err(error) => tracing::warn!(dead, by, %error, "a dead voter cannot be replaced now"),
                }
            }
            None => {
                let dead = membership::to_replace(&members, dead_after).into_iter();
                let dead: BTreeSet<String> = dead.map(|member| member.peer.name.clone()).collect();
                for host in dead.difference(&told) {
                    tracing::warn!(host, "{}", membership::SUGGESTION);
                }
                told = dead;
            }
        }
    }
}
