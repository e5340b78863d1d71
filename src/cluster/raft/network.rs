//! Raft's messages on their way: what this peer asks of the others.
//!
//! Owns nothing but the way to one peer. Votes and heartbeats use the urgent line, entries the bulk line, a
//! snapshot a connection of its own. openraft's deadline (`soft_ttl`) is for a heartbeat and is kept; entries
//! must reach a disk before they are answered and get `ENTRIES` times as much. A peer that cannot be
//! reached is `Unreachable`, so that openraft leaves it alone for a while; `node` ends that wait when a
//! connection comes to be again. `node::service` is the other end.

use std::future::Future;
use std::time::Duration;

use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2, TokioRuntime};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::machine::{Snap, SnapshotBytes};
use super::{Peer, PeerId, Types, Vote};
use crate::cluster::wire::{CallError, Exchange, Kind, Purpose, Target, decode, encode, parcel};

type C = Types<TokioRuntime>;

/// How much longer entries may take than a heartbeat.
const ENTRIES: u32 = 20;

/// Makes the ways to the peers.
#[derive(Clone)]
pub struct Network {
    me: PeerId,
    exchange: Exchange,
    /// This peer, as primary, is heard by a quorum; goes out with each heartbeat.
    quorum: watch::Receiver<bool>,
}

impl Network {
    /// The network of the peer `me`.
    pub fn new(me: PeerId, exchange: Exchange, quorum: watch::Receiver<bool>) -> Network {
        Network { me, exchange, quorum }
    }

    fn way(&self, id: PeerId, peer: &Peer, appends: Purpose) -> Way {
        let target = target(id, peer);
        Way { network: self.clone(), id, target, appends }
    }
}

/// Whom to dial for a peer; `None` if its name is none.
pub fn target(id: PeerId, peer: &Peer) -> Option<Target> {
    Some(Target { host: peer.name.parse().ok()?, id: Some(id), address: peer.address.clone() })
}

/// The way to one peer.
pub struct Way {
    network: Network,
    id: PeerId,
    target: Option<Target>,
    appends: Purpose,
}

impl RaftNetworkFactory<C> for Network {
    type Network = Way;

    async fn new_client(&mut self, id: PeerId, peer: &Peer) -> Way {
        self.way(id, peer, Purpose::Bulk)
    }

    async fn new_heartbeat_client(&mut self, id: PeerId, peer: &Peer) -> Way {
        self.way(id, peer, Purpose::Urgent)
    }
}

impl Way {
    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        action: RPCTypes,
        (kind, purpose): (Kind, Purpose),
        question: &Q,
        ttl: Duration,
    ) -> Result<A, RPCError<C>> {
        let body = encode(question).map_err(|error| NetworkError::new(&error))?;
        let target = self.target.as_ref().ok_or_else(|| Unreachable::from_string("no host name"))?;
        let answer = self.network.exchange.call(target, purpose, kind, body, ttl).await;
        let answer = answer.map_err(|error| self.told(action, error, ttl))?;
        decode(&answer).map_err(|error| RPCError::Network(NetworkError::new(&error)))
    }

    fn told(&self, action: RPCTypes, error: CallError, timeout: Duration) -> RPCError<C> {
        match error {
            CallError::Late(_) => Timeout { action, id: self.network.me, target: self.id, timeout }.into(),
            CallError::Unreachable(_) | CallError::Failed(_) => Unreachable::new(&error).into(),
            CallError::Busy | CallError::Broken => NetworkError::new(&error).into(),
        }
    }
}

impl RaftNetworkV2<C> for Way {
    type SnapshotData = SnapshotBytes;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<C>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<C>, RPCError<C>> {
        let ttl = match self.appends {
            Purpose::Urgent => option.soft_ttl(),
            _ => option.soft_ttl() * ENTRIES,
        };
        let quorum = *self.network.quorum.borrow();
        self.call(RPCTypes::AppendEntries, (Kind::Append, self.appends), &(quorum, rpc), ttl).await
    }

    async fn vote(&mut self, rpc: VoteRequest<C>, option: RPCOption) -> Result<VoteResponse<C>, RPCError<C>> {
        self.call(RPCTypes::Vote, (Kind::Vote, Purpose::Urgent), &rpc, option.soft_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<C>,
        option: RPCOption,
    ) -> Result<VoteResponse<C>, RPCError<C>> {
        self.call(RPCTypes::Vote, (Kind::PreVote, Purpose::Urgent), &rpc, option.soft_ttl()).await
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<C>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<C>, RPCError<C>> {
        self.call(RPCTypes::TransferLeader, (Kind::Transfer, Purpose::Urgent), &rpc, option.soft_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snap,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<C>, StreamingError<C>> {
        let ttl = option.soft_ttl();
        let head = encode(&(vote, &snapshot.meta)).map_err(|error| NetworkError::new(&error))?;
        let target = self.target.as_ref().ok_or_else(|| Unreachable::from_string("no host name"))?;
        let sent = parcel::send(self.network.exchange.dialer(), target, head, &snapshot.snapshot, ttl);
        let answer = tokio::select! {
            closed = cancel => return Err(closed.into()),
            answer = sent => answer.map_err(|error| self.told(RPCTypes::InstallSnapshot, error, ttl))?,
        };
        decode(&answer).map_err(|error| StreamingError::Network(NetworkError::new(&error)))
    }
}
