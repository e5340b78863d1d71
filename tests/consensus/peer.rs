//! A peer: openraft with the cluster's state machine, over a disk that outlives it.

use std::io;
use std::sync::Arc;

use bigbrother::cluster::raft::machine::{Applied, Builder, Machine, Snap, SnapshotBytes};
use bigbrother::cluster::raft::{LogId, SnapshotMeta, StoredMembership, Types, config};
use bigbrother::state::State;
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft_rt_sim::SimRuntime;
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt};

use crate::Fault;
use crate::disk::{Disk, Store};
use crate::network::Network;
use crate::record::Record;

pub type C = Types<SimRuntime>;
pub type Raft = openraft::Raft<C, Watched>;

/// Few, so that there are snapshots and purges.
const SNAPSHOT_EVERY: u64 = 12;

/// The machine, and what is looked at after each entry.
pub struct Watched {
    id: u64,
    inner: Machine<Store>,
    states: watch::Receiver<Arc<State>>,
    record: Record,
    fault: Fault,
}

impl Watched {
    async fn look(&mut self) -> io::Result<()> {
        let (log, _) = RaftStateMachine::<C>::applied_state(&mut self.inner).await?;
        let mut state = self.states.borrow().clone();
        if self.fault == Fault::OwnClock {
            Arc::make_mut(&mut state).now_ms += self.id;
        }
        log.into_iter().for_each(|log| self.record.applied(self.id, log, &state));
        Ok(())
    }
}

impl RaftStateMachine<C> for Watched {
    type SnapshotData = SnapshotBytes;
    type SnapshotBuilder = Builder<Store>;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        RaftStateMachine::<C>::applied_state(&mut self.inner).await
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<C>>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            self.inner.apply(tokio_stream::iter([next])).await?;
            self.look().await?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder<Store> {
        RaftStateMachine::<C>::get_snapshot_builder(&mut self.inner).await
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotBytes) -> io::Result<()> {
        RaftStateMachine::<C>::install_snapshot(&mut self.inner, meta, snapshot).await?;
        self.look().await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snap>> {
        RaftStateMachine::<C>::get_current_snapshot(&mut self.inner).await
    }
}

/// A living peer.
#[derive(Clone)]
pub struct Peer {
    pub raft: Raft,
    pub states: watch::Receiver<Arc<State>>,
    pub applies: watch::Receiver<Applied>,
}

impl Peer {
    pub async fn start(id: u64, disk: &Disk, network: &Network, record: &Record, fault: Fault) -> Peer {
        let store = disk.open();
        let (states, states_seen) = watch::channel(Arc::default());
        let (applies, applies_seen) = watch::channel(Applied::default());
        let inner = Machine::new(store.clone(), states, applies);
        let record = record.clone();
        let machine = Watched { id, inner, states: states_seen.clone(), record, fault };
        let settings = Arc::new(config("simulated", SNAPSHOT_EVERY).validate().unwrap());
        let raft = Raft::new(id, settings, network.of(id), store, machine).await.unwrap();
        Peer { raft, states: states_seen, applies: applies_seen }
    }

    /// The last entry applied here.
    pub fn applied(&self) -> Option<u64> {
        self.applies.borrow().log.map(|log| log.index)
    }
}
