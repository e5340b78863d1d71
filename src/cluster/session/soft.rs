//! The status of runs, on an attached host: told to its peer, and asked of it while somebody reads.
//!
//! Owns nothing; what is known is `cluster::statuses`'. On a line of its own, so that what is followed and proposed
//! never waits behind it.

use std::collections::BTreeSet;

use super::handle::Attached;
use crate::cluster::statuses::carry::TTL;
use crate::cluster::wire::Kind;

/// Tells the peer what the runs of this host say.
pub(super) async fn tell(attached: Attached) {
    let statuses = attached.statuses().clone();
    let mut peers = attached.served_by();
    loop {
        // Another peer is told all of it.
        let mut place = None;
        let Ok(peer) = peers.wait_for(Option::is_some).await.map(|peer| peer.clone()) else { return };
        while *peers.borrow_and_update() == peer {
            place = statuses.tell(place, |body| attached.call(Kind::Status, body, TTL)).await;
            tokio::select! {
                () = statuses.changed_since(place) => {}
                _ = peers.changed() => {}
            }
        }
    }
}

/// Asks the peer for what all other runs say, while somebody reads that here.
pub(super) async fn hear(attached: Attached) {
    let statuses = attached.statuses().clone();
    loop {
        statuses.wanted().await;
        let mut told = BTreeSet::new();
        while statuses.is_wanted() {
            if statuses.ask(&mut told, |body| attached.call(Kind::Statuses, body, TTL)).await {
                statuses.complete();
            }
        }
        statuses.lapse();
    }
}
