//! The status of runs, on a peer: asked of each other peer, and answered to peers and hosts.
//!
//! Owns the tasks that ask. Each peer tells what is its own and what its attached hosts tell it, so every line of
//! status comes from one peer, and none goes round.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};

use super::Shared;
use super::service::words;
use crate::cluster::raft::network;
use crate::cluster::statuses::Whose;
use crate::cluster::statuses::carry::TTL;
use crate::cluster::wire::{Hello, Kind, Peerage, Purpose, Target};

/// How often it is looked who is a peer.
const LOOK: Duration = Duration::from_millis(500);

/// Asks each other peer for as long as it is one.
pub(super) async fn hear_peers(shared: Arc<Shared>) {
    let (mut tasks, mut asked) = (JoinSet::new(), BTreeMap::<Target, AbortHandle>::new());
    loop {
        let members = shared.raft().map(|raft| shared.members(&raft)).unwrap_or_default();
        let targets = members.iter().filter_map(|member| network::target(member.id, &member.peer));
        let targets: BTreeSet<Target> = targets.filter(|t| t.host != shared.settings.host).collect();
        asked.retain(|target, task| {
            let stays = targets.contains(target);
            if !stays {
                task.abort();
            }
            stays
        });
        for target in targets {
            let task = || hear(shared.clone(), target.clone());
            asked.entry(target.clone()).or_insert_with(|| tasks.spawn(task()));
        }
        while tasks.try_join_next().is_some() {}
        tokio::time::sleep(LOOK).await;
    }
}

async fn hear(shared: Arc<Shared>, peer: Target) {
    let mut told = BTreeSet::new();
    loop {
        let ask = |body| shared.exchange.call(&peer, Purpose::Status, Kind::Statuses, body, TTL);
        shared.statuses.ask(&mut told, ask).await;
    }
}

impl Shared {
    /// What a peer or a host says and asks of status.
    pub(super) async fn answer_status(
        &self,
        from: &Hello,
        kind: Kind,
        body: &[u8],
    ) -> Result<Vec<u8>, String> {
        match kind {
            Kind::Status => self.statuses.hear_host(&from.host, body).map_err(words),
            Kind::Statuses => {
                let whose = if self.peerage(&from.host) == Peerage::Peer { Whose::Home } else { Whose::All };
                self.statuses.answer(whose, body).await.map_err(words)
            }
            _ => Err(format!("{kind:?} is not about status")),
        }
    }
}
