//! Answering the other hosts: the receiving end of Raft's messages, of proposals, and of newcomers.
//!
//! Owns nothing. Raft's messages are only taken from peers; a newcomer may look around and ask for a number.

use std::sync::Arc;
use std::time::Instant;

use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use openraft::{ReadPolicy, Snapshot, TokioRuntime};
use serde::{Deserialize, Serialize};

use super::identity::{Identity, Probed};
use super::propose::{PATIENCE, PeersError, fits};
use super::settle::ASKS_WHY;
use super::{Heard, Shared};
use crate::cluster::raft::membership::{PeersChange, PeersRefused, Raft};
use crate::cluster::raft::{Change, Outcome, PeerId, SnapshotMeta, Types, Vote};
use crate::cluster::wire::hello::Ours;
use crate::cluster::wire::{Hello, Kind, Outlet, Peerage, Purpose, Service, decode, encode};
use crate::spec::HostName;

type C = Types<TokioRuntime>;

/// A number and the founding, for a newcomer.
pub(super) type JoinAnswer = Result<(u64, u64), PeersRefused>;

/// What the host that was taken for the primary answers. Append-only.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Forwarded {
    /// Applied, at this place of the log.
    Applied(Outcome, u64),
    /// Not the primary, or not able to say so now. Nothing was applied, or it is not known.
    NotPrimary,
}

/// What is answered to a change of the peers. Append-only.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum PeersAnswer {
    /// Done; the number, where one was asked for.
    Done(Option<u64>),
    /// Refused.
    Refused(PeersRefused),
    /// Not the primary.
    NotPrimary,
}

/// See the module.
pub(super) struct Answers {
    pub(super) shared: Arc<Shared>,
}

pub(super) fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Service for Answers {
    fn ours(&self) -> Ours {
        self.shared.ours.borrow().clone()
    }

    fn peerage(&self, host: &HostName) -> Peerage {
        self.shared.peerage(host)
    }

    async fn answer(
        &self,
        from: &Hello,
        kind: Kind,
        body: Vec<u8>,
        outlet: &Outlet,
    ) -> Result<Vec<u8>, String> {
        match kind {
            Kind::Probe => {
                let identity = self.shared.identity.borrow().clone();
                let probed = Probed { identity, peers: self.shared.settings.peers.clone() };
                let why = (body == ASKS_WHY).then(|| self.shared.unsettled.borrow().clone());
                why.map_or_else(|| encode(&probed), |why| encode(&(&probed, why))).map_err(words)
            }
            Kind::Seat => {
                let id: PeerId = decode(&body).map_err(words)?;
                encode(&self.shared.seat(id).await).map_err(words)
            }
            Kind::Join => {
                let (host, address): (HostName, String) = decode(&body).map_err(words)?;
                if host != from.host {
                    return Err(format!("{} asks for {host}", from.host));
                }
                encode(&self.join(host, address).await).map_err(words)
            }
            Kind::Tunnel if from.purpose == Purpose::Api => {
                let entrance = self.shared.tunnel.get().ok_or("its API is not up yet")?;
                entrance.answer(from, &body, outlet).await
            }
            _ if from.purpose == Purpose::Status => self.shared.answer_status(from, kind, &body).await,
            // A peer reports for the hosts that are attached to it, too.
            _ if from.purpose.is_for_peers() && self.peerage(&from.host) == Peerage::Stranger => {
                Err(format!("{} is no peer (any more)", from.host))
            }
            Kind::Report | Kind::GiveUp | Kind::Roll if from.purpose.is_for_peers() => {
                self.shared.answer_vigil(kind, &body).await
            }
            _ if from.purpose.is_for_peers() => self.answer_peer(kind, &body).await,
            _ => match from.purpose {
                Purpose::Host | Purpose::HostBulk => self.answer_host(from, kind, &body).await,
                _ => Err("this is for peers".to_owned()),
            },
        }
    }

    async fn take_snapshot(&self, from: &Hello, head: Vec<u8>, bytes: Vec<u8>) -> Result<Vec<u8>, String> {
        if self.peerage(&from.host) == Peerage::Stranger {
            return Err(format!("{} is no peer (any more)", from.host));
        }
        let (vote, meta): (Vote, SnapshotMeta) = decode(&head).map_err(words)?;
        let snapshot = Snapshot { meta, snapshot: Arc::new(bytes) };
        encode(&self.raft()?.install_full_snapshot(vote, snapshot).await.map_err(words)?).map_err(words)
    }
}

impl Answers {
    fn raft(&self) -> Result<Raft, String> {
        self.shared.raft().ok_or_else(|| "this host is no peer yet".to_owned())
    }

    async fn answer_peer(&self, kind: Kind, body: &[u8]) -> Result<Vec<u8>, String> {
        let raft = self.raft()?;
        match kind {
            Kind::Vote => {
                let rpc: VoteRequest<C> = decode(body).map_err(words)?;
                encode(&raft.vote(rpc).await.map_err(words)?)
            }
            Kind::PreVote => {
                let rpc: VoteRequest<C> = decode(body).map_err(words)?;
                encode(&raft.pre_vote(rpc).await.map_err(words)?)
            }
            Kind::Append => {
                let (quorum, rpc): (bool, AppendEntriesRequest<C>) = decode(body).map_err(words)?;
                let answer = raft.append_entries(rpc).await.map_err(words)?;
                // An older primary is answered with a higher vote, and is not heard of.
                if !matches!(answer, openraft::raft::AppendEntriesResponse::HigherVote(_)) {
                    self.shared.heard.send_replace(Some(Heard { at: Instant::now(), quorum }));
                }
                encode(&answer)
            }
            Kind::Transfer => {
                let rpc: TransferLeaderRequest<C> = decode(body).map_err(words)?;
                encode(&raft.handle_transfer_leader(rpc).await.map_err(words)?)
            }
            Kind::Propose => {
                fits(body).map_err(words)?;
                let change: Change = decode(body).map_err(words)?;
                let applied = raft.client_write(change.stamped(self.shared.now_ms())).await;
                encode(&match applied {
                    Ok(applied) => Forwarded::Applied(applied.data, applied.log_id.index),
                    Err(_) => Forwarded::NotPrimary,
                })
            }
            Kind::Peers => {
                let change: PeersChange = decode(body).map_err(words)?;
                encode(&self.shared.change_peers_as_primary(&raft, &change).await)
            }
            Kind::ReadIndex => {
                let (read, _) = raft.get_read_log_id(ReadPolicy::ReadIndex).await.map_err(words)?;
                encode(&read.log_id().index)
            }
            _ => return Err(format!("{kind:?} is no question")),
        }
        .map_err(words)
    }

    /// Any peer hands out numbers in the primary's name.
    async fn join(&self, host: HostName, address: String) -> JoinAnswer {
        let not_now = |why: &str| PeersRefused::NotNow(why.to_owned());
        let Identity::Peer { history, .. } = *self.shared.identity.borrow() else {
            return Err(not_now("this host is no peer itself"));
        };
        let change = PeersChange::Number { host, address };
        match self.shared.change_peers(&change, PATIENCE).await {
            Ok(Some(id)) => Ok((id, history)),
            Ok(None) => Err(not_now("no number was handed out")),
            Err(PeersError::Refused(refused)) => Err(refused),
            Err(error) => Err(not_now(&error.to_string())),
        }
    }
}
