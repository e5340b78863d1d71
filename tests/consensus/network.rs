//! The links between the peers: cut, lossy, late, doubling.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bigbrother::cluster::raft::machine::{Snap, SnapshotBytes};
use bigbrother::cluster::raft::{Peer as Member, Vote};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{AsyncRuntime, OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft_rt_sim::SimRuntime;

use crate::peer::{C, Peer, Raft};

/// As in the agent's network: entries, which must reach a disk, get so much longer than a heartbeat.
const ENTRIES: u32 = 20;

pub struct Links {
    pub rng: fastrand::Rng,
    /// Nothing goes from the first to the second.
    pub cuts: BTreeSet<(u64, u64)>,
    /// Of a hundred messages so many are lost, doubled, late.
    pub trouble: u32,
    /// The peers that live.
    pub peers: BTreeMap<u64, Peer>,
}

#[derive(Clone)]
pub struct Network(Arc<Mutex<Links>>);

/// How one message fares.
struct Fate {
    lost: bool,
    doubled: bool,
    delay: Duration,
}

impl Network {
    pub fn new(seed: u64) -> Network {
        let rng = fastrand::Rng::with_seed(seed);
        Network(Arc::new(Mutex::new(Links {
            rng,
            cuts: BTreeSet::new(),
            trouble: 0,
            peers: BTreeMap::new(),
        })))
    }

    pub fn links(&self) -> MutexGuard<'_, Links> {
        self.0.lock().unwrap()
    }

    pub fn of(&self, from: u64) -> From {
        From { network: self.clone(), from }
    }

    pub fn peer(&self, id: u64) -> Option<Peer> {
        self.links().peers.get(&id).cloned()
    }

    fn fate(&self) -> Fate {
        let mut links = self.links();
        let trouble = links.trouble;
        let happens = |links: &mut Links| links.rng.u32(0..100) < trouble;
        let (lost, doubled, late) = (happens(&mut links), happens(&mut links), happens(&mut links));
        let delay = if late { links.rng.u64(20..400) } else { links.rng.u64(0..4) };
        Fate { lost, doubled, delay: Duration::from_millis(delay) }
    }

    fn is_cut(&self, from: u64, to: u64) -> bool {
        self.links().cuts.contains(&(from, to))
    }

    /// Asks a peer; `None`: no answer came in time.
    pub async fn ask<A: Send + 'static, F: Future<Output = A> + Send + 'static>(
        &self,
        (from, to): (u64, u64),
        within: Duration,
        question: impl Fn(Raft) -> F + Send + 'static,
    ) -> Option<A> {
        let network = self.clone();
        let asking = async move {
            let there = network.fate();
            SimRuntime::sleep(there.delay).await;
            let raft = network.peer(to)?.raft;
            if there.lost || network.is_cut(from, to) {
                return None;
            }
            if there.doubled {
                let question = question(raft.clone());
                let later = Duration::from_millis(network.links().rng.u64(5..400));
                drop(SimRuntime::spawn(async move {
                    SimRuntime::sleep(later).await;
                    drop(question.await);
                }));
            }
            let answer = question(raft).await;
            let back = network.fate();
            SimRuntime::sleep(back.delay).await;
            (!back.lost && !network.is_cut(to, from)).then_some(answer)
        };
        let begun = <SimRuntime as AsyncRuntime>::timeout(within, asking).await;
        match begun {
            Ok(Some(answer)) => Some(answer),
            // Silence takes all the time that there is.
            Ok(None) => {
                SimRuntime::sleep(within / 2).await;
                None
            }
            Err(_) => None,
        }
    }
}

/// The network of one peer.
#[derive(Clone)]
pub struct From {
    network: Network,
    from: u64,
}

/// The way from one peer to another.
pub struct Way {
    network: Network,
    from: u64,
    to: u64,
    patience: u32,
}

impl RaftNetworkFactory<C> for From {
    type Network = Way;

    async fn new_client(&mut self, to: u64, _: &Member) -> Way {
        Way { network: self.network.clone(), from: self.from, to, patience: ENTRIES }
    }

    async fn new_heartbeat_client(&mut self, to: u64, _: &Member) -> Way {
        Way { network: self.network.clone(), from: self.from, to, patience: 1 }
    }
}

impl Way {
    async fn ask<A: Send + 'static, E: Send + 'static, F: Future<Output = Result<A, E>> + Send + 'static>(
        &self,
        action: RPCTypes,
        timeout: Duration,
        question: impl Fn(Raft) -> F + Send + 'static,
    ) -> Result<A, RPCError<C>> {
        let late = || Timeout { action, id: self.from, target: self.to, timeout };
        let answer = self.network.ask((self.from, self.to), timeout, question).await.ok_or_else(late)?;
        answer.map_err(|_| Unreachable::from_string("it is ending").into())
    }
}

impl RaftNetworkV2<C> for Way {
    type SnapshotData = SnapshotBytes;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<C>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<C>, RPCError<C>> {
        let ttl = option.soft_ttl() * self.patience;
        let question = move |raft: Raft| {
            let rpc = rpc.clone();
            async move { raft.append_entries(rpc).await }
        };
        self.ask(RPCTypes::AppendEntries, ttl, question).await
    }

    async fn vote(&mut self, rpc: VoteRequest<C>, option: RPCOption) -> Result<VoteResponse<C>, RPCError<C>> {
        let question = move |raft: Raft| {
            let rpc = rpc.clone();
            async move { raft.vote(rpc).await }
        };
        self.ask(RPCTypes::Vote, option.soft_ttl(), question).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<C>,
        option: RPCOption,
    ) -> Result<VoteResponse<C>, RPCError<C>> {
        let question = move |raft: Raft| {
            let rpc = rpc.clone();
            async move { raft.pre_vote(rpc).await }
        };
        self.ask(RPCTypes::Vote, option.soft_ttl(), question).await
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<C>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<C>, RPCError<C>> {
        let question = move |raft: Raft| {
            let rpc = rpc.clone();
            async move { raft.handle_transfer_leader(rpc).await }
        };
        self.ask(RPCTypes::TransferLeader, option.soft_ttl(), question).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snap,
        _: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<C>, StreamingError<C>> {
        let question = move |raft: Raft| {
            let snapshot = snapshot.clone();
            async move { raft.install_full_snapshot(vote, snapshot).await }
        };
        let within = Duration::from_millis(1_000);
        self.ask(RPCTypes::InstallSnapshot, within, question).await.map_err(|error| match error {
            RPCError::Timeout(timeout) => StreamingError::Timeout(timeout),
            other => StreamingError::Unreachable(Unreachable::new(&other)),
        })
    }
}
