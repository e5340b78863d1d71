//! The disk of a peer: what is written in order, some time later, and survives a crash from then on.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bigbrother::cluster::raft::machine::{Shelf, SnapshotBytes};
use bigbrother::cluster::raft::{Entry, LogId, SnapshotMeta, Vote};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{AsyncRuntime, OptionalSend};
use openraft_rt_sim::SimRuntime;

use crate::Fault;
use crate::peer::C;

#[derive(Clone, Default)]
struct Platter {
    vote: Option<Vote>,
    log: BTreeMap<u64, Entry>,
    purged: Option<LogId>,
    committed: Option<LogId>,
    snapshot: Option<(SnapshotMeta, SnapshotBytes)>,
}

#[derive(Clone)]
enum Op {
    Vote(Vote),
    Committed(Option<LogId>),
    Append(Vec<Entry>),
    TruncateAfter(Option<LogId>),
    Purge(LogId),
    Snapshot(SnapshotMeta, SnapshotBytes),
}

impl Platter {
    fn take(&mut self, op: Op) {
        match op {
            Op::Vote(vote) => self.vote = Some(vote),
            Op::Committed(committed) => self.committed = committed,
            Op::Append(entries) => self.log.extend(entries.into_iter().map(|e| (e.log_id.index, e))),
            Op::TruncateAfter(last) => drop(self.log.split_off(&last.map_or(0, |last| last.index + 1))),
            Op::Purge(upto) => {
                self.log = self.log.split_off(&(upto.index + 1));
                self.purged = Some(upto);
            }
            Op::Snapshot(meta, bytes) => self.snapshot = Some((meta, bytes)),
        }
    }
}

struct Inner {
    /// What readers see, and what a crash leaves.
    seen: Platter,
    durable: Platter,
    queue: VecDeque<Op>,
    taken: u64,
    /// Grows with each crash; the operations of an older life come to nothing.
    life: u64,
    /// Nothing is written any more in this life: it is full, or broken.
    failing: bool,
    rng: fastrand::Rng,
    fault: Fault,
}

/// Cheap to clone: all clones are the same disk.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<Inner>>);

/// The disk as one life of its peer knows it.
#[derive(Clone)]
pub struct Store {
    disk: Disk,
    life: u64,
}

impl Disk {
    pub fn new(seed: u64, fault: Fault) -> Disk {
        let (seen, durable) = (Platter::default(), Platter::default());
        let rng = fastrand::Rng::with_seed(seed);
        Disk(Arc::new(Mutex::new(Inner {
            seen,
            durable,
            queue: VecDeque::new(),
            taken: 0,
            life: 0,
            failing: false,
            rng,
            fault,
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// What was not written is lost.
    pub fn crash(&self) {
        let mut inner = self.inner();
        inner.life += 1;
        inner.failing = false;
        inner.queue.clear();
        inner.seen = inner.durable.clone();
    }

    /// From now on each write is an error, until the peer has died.
    pub fn fail(&self) {
        self.inner().failing = true;
    }

    pub fn open(&self) -> Store {
        Store { disk: self.clone(), life: self.inner().life }
    }
}

impl Store {
    fn inner(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let inner = self.disk.inner();
        match inner.life == self.life {
            true => Ok(inner),
            false => Err(io::Error::other("this life is over")),
        }
    }

    /// Seen at once; on disk when this is over.
    async fn write(&self, op: Op) -> io::Result<()> {
        let (number, delay, lies) = {
            let mut inner = self.inner()?;
            inner.seen.take(op.clone());
            if inner.failing {
                return match inner.fault {
                    Fault::ErrorsPassedOver => Ok(()),
                    _ => Err(io::Error::other("no space is left")),
                };
            }
            inner.queue.push_back(op);
            inner.taken += 1;
            let lies = inner.fault == Fault::DiskLies;
            let slow = lies || inner.rng.u32(0..50) == 0;
            let delay = if slow { inner.rng.u64(50..500) } else { inner.rng.u64(0..4) };
            (inner.taken, delay, lies)
        };
        let store = self.clone();
        let written = async move {
            SimRuntime::sleep(Duration::from_millis(delay)).await;
            let mut inner = store.inner()?;
            let waiting = inner.queue.len() as u64;
            let over = (number + waiting).saturating_sub(inner.taken);
            for _ in 0..over {
                if let Some(op) = inner.queue.pop_front() {
                    inner.durable.take(op);
                }
            }
            Ok(())
        };
        if lies {
            drop(SimRuntime::spawn(written));
            return Ok(());
        }
        written.await
    }
}

impl RaftLogReader<C> for Store {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        let inner = self.inner()?;
        Ok(inner
            .seen
            .log
            .range((range.start_bound().cloned(), range.end_bound().cloned()))
            .map(|(_, e)| e.clone())
            .collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.inner()?.seen.vote)
    }
}

impl RaftLogStorage<C> for Store {
    type LogReader = Store;

    async fn get_log_state(&mut self) -> io::Result<LogState<C>> {
        let inner = self.inner()?;
        let last = inner.seen.log.values().next_back().map(|entry| entry.log_id);
        Ok(LogState { last_purged_log_id: inner.seen.purged, last_log_id: last.or(inner.seen.purged) })
    }

    async fn get_log_reader(&mut self) -> Store {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.write(Op::Vote(*vote)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let store = self.clone();
        drop(SimRuntime::spawn(async move { store.write(Op::Committed(committed)).await }));
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.inner()?.seen.committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<C>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        // Seen when this returns, written later.
        let store = self.clone();
        let mut writing = Box::pin(async move { store.write(Op::Append(entries)).await });
        let first = std::future::poll_fn(|cx| std::task::Poll::Ready(writing.as_mut().poll(cx))).await;
        match first {
            std::task::Poll::Ready(result) => callback.io_completed(result),
            std::task::Poll::Pending => drop(SimRuntime::spawn(async move {
                callback.io_completed(writing.await);
            })),
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        self.write(Op::TruncateAfter(last_log_id)).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.write(Op::Purge(log_id)).await
    }
}

impl Shelf for Store {
    async fn keep(
        &self,
        meta: SnapshotMeta,
        bytes: impl FnOnce() -> io::Result<SnapshotBytes> + Send + 'static,
    ) -> io::Result<SnapshotBytes> {
        let bytes = bytes()?;
        self.write(Op::Snapshot(meta, bytes.clone())).await?;
        Ok(bytes)
    }

    async fn newest(&self) -> io::Result<Option<(SnapshotMeta, SnapshotBytes)>> {
        Ok(self.inner()?.seen.snapshot.clone())
    }
}
