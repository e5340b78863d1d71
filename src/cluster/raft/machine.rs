//! Applying the log: the replicated state of this peer.
//!
//! Owns the state. It is copied on write: the newest one goes out by `watch` after each batch, a snapshot is
//! made of the copy that it was asked of, and neither holds up the next entry. A proposer hears of its
//! change only after the state that has it went out. Generic over where snapshots are kept ([`Shelf`]).
//! Called by openraft.

use std::future::Future;
use std::io;
use std::sync::Arc;

use openraft::entry::RaftPayload;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{AsyncRuntime, EntryPayload, OptionalSend, Snapshot};
use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt};

use super::change::{Change, Outcome, Roll};
use super::{Entry, LeaderId, LogId, Peer, PeerId, SnapshotMeta, StoredMembership, Types};
use crate::cluster::feed;
use crate::cluster::session::message::Place;
use crate::cluster::session::trail::{Recorder, Step};
use crate::cluster::wire::codec::encode_unbounded;
use crate::state::{Envelope, State};

mod content;
pub mod shelf;

use content::Content;
pub use shelf::DiskShelf;

/// A snapshot's bytes.
pub type SnapshotBytes = Arc<Vec<u8>>;
/// A snapshot and its description.
pub type Snap = Snapshot<LeaderId, PeerId, Peer, SnapshotBytes>;

/// Where the newest snapshot is kept.
pub trait Shelf: Clone + Send + Sync + 'static {
    /// Makes the bytes and keeps them, unless a newer snapshot is kept already: one may have come while they were made.
    /// When this returns, one that is as new survives a crash, and older ones may go.
    fn keep(
        &self,
        meta: SnapshotMeta,
        bytes: impl FnOnce() -> io::Result<SnapshotBytes> + Send + 'static,
    ) -> impl Future<Output = io::Result<SnapshotBytes>> + Send;

    /// The newest one.
    fn newest(&self) -> impl Future<Output = io::Result<Option<(SnapshotMeta, SnapshotBytes)>>> + Send;
}

/// What went out last: the state, and the place in the log up to which it is applied.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// The last entry applied.
    pub log: Option<LogId>,
    /// The peers' own part.
    pub roll: Arc<Roll>,
    /// The peers.
    pub membership: StoredMembership,
}

/// See the module.
pub struct Machine<S> {
    content: Content,
    applied: Option<LogId>,
    membership: StoredMembership,
    states: watch::Sender<Arc<State>>,
    applies: watch::Sender<Applied>,
    trail: Option<Recorder>,
    feed: Option<feed::Recorder>,
    shelf: S,
}

impl<S: Shelf> Machine<S> {
    /// An empty state, which openraft fills from the newest snapshot and the log.
    pub fn new(shelf: S, states: watch::Sender<Arc<State>>, applies: watch::Sender<Applied>) -> Machine<S> {
        Machine {
            content: Content::default(),
            applied: None,
            membership: StoredMembership::default(),
            states,
            applies,
            trail: None,
            feed: None,
            shelf,
        }
    }

    /// Writes what it applies on a trail, too.
    pub fn recording(mut self, trail: Recorder) -> Machine<S> {
        self.trail = Some(trail);
        self
    }

    /// Tells what it changes in the directory, too.
    pub fn telling(mut self, feed: feed::Recorder) -> Machine<S> {
        self.feed = Some(feed);
        self
    }

    fn apply_envelope(&mut self, envelope: &Envelope) -> Outcome {
        let (result, changes) = Arc::make_mut(&mut self.content.state).apply_and_tell(envelope);
        self.feed.iter_mut().for_each(|feed| feed.note(changes.clone()));
        Outcome::State(result)
    }

    fn apply_change(&mut self, change: &Change) -> Outcome {
        match change {
            Change::State(envelope) => self.apply_envelope(envelope),
            Change::Once { key, envelope } => {
                if let Some(outcome) = self.content.recent.outcome(*key) {
                    return outcome.clone();
                }
                let outcome = self.apply_envelope(envelope);
                let now_ms = self.content.state.now_ms;
                Arc::make_mut(&mut self.content.recent).remember(*key, outcome.clone(), now_ms);
                outcome
            }
            Change::HandOut { host, address } => {
                Outcome::Number(Arc::make_mut(&mut self.content.roll).hand_out(host, address))
            }
            Change::Expect { host, address } => {
                Arc::make_mut(&mut self.content.roll).expected.insert(host.clone(), address.clone());
                Outcome::Nothing
            }
            Change::Forget { host } => {
                let roll = Arc::make_mut(&mut self.content.roll);
                roll.expected.remove(host);
                roll.pending.retain(|_, peer| peer.name != host.as_str());
                Outcome::Nothing
            }
        }
    }

    /// The state goes out, and with it what is `told` of the way there.
    fn publish(&mut self, told: fn(&mut feed::Recorder, &State)) {
        self.states.send_replace(self.content.state.clone());
        self.feed.iter_mut().for_each(|feed| told(feed, &self.content.state));
        let (roll, membership) = (self.content.roll.clone(), self.membership.clone());
        self.applies.send_replace(Applied { log: self.applied, roll, membership });
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }
}

impl<RT: AsyncRuntime, S: Shelf> RaftStateMachine<Types<RT>> for Machine<S> {
    type SnapshotData = SnapshotBytes;
    type SnapshotBuilder = Builder<S>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types<RT>>, io::Error>> + Unpin + OptionalSend,
    {
        let (mut answers, mut steps) = (Vec::new(), Vec::new());
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            self.applied = Some(entry.log_id);
            let before = self.content.state.index;
            let outcome = match &entry.payload {
                EntryPayload::Blank => Outcome::Nothing,
                EntryPayload::Normal(change) => self.apply_change(change),
                EntryPayload::Membership(_) => Outcome::Nothing,
            };
            if self.trail.is_some() {
                // What was applied before under its key changes nothing, here and elsewhere.
                let applied = self.content.state.index != before;
                steps.push(step(&entry, applied)?);
            }
            if let Some(membership) = entry.payload.get_membership() {
                Arc::make_mut(&mut self.content.roll).take_note(membership.nodes().map(|(id, _)| *id));
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            answers.extend(responder.map(|responder| (responder, outcome)));
        }
        if let Some(trail) = &self.trail {
            trail.extend(steps, self.content.state.clone());
        }
        self.publish(feed::Recorder::tell);
        answers.into_iter().for_each(|(responder, outcome)| responder.send(outcome));
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder<S> {
        Builder { content: self.content.clone(), meta: self.meta(), shelf: self.shelf.clone() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotBytes,
    ) -> Result<(), io::Error> {
        let content = Content::of(&snapshot)?;
        self.shelf.keep(meta.clone(), move || Ok(snapshot)).await?;
        self.content = content;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        if let (Some(trail), Some(last)) = (&self.trail, &self.applied) {
            trail.begin_anew(place(last), self.content.state.clone());
        }
        self.publish(feed::Recorder::begin_anew);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snap>, io::Error> {
        Ok(self.shelf.newest().await?.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

fn place(log: &LogId) -> Place {
    Place { index: log.index, term: log.leader_id.term }
}

fn step(entry: &Entry, applied: bool) -> io::Result<Step> {
    let envelope = match &entry.payload {
        EntryPayload::Normal(Change::State(envelope) | Change::Once { envelope, .. }) if applied => {
            Some(encode_unbounded(&**envelope)?.into())
        }
        _ => None,
    };
    Ok(Step { place: place(&entry.log_id), envelope })
}

/// Makes one snapshot of the state as it was.
pub struct Builder<S> {
    content: Content,
    meta: SnapshotMeta,
    shelf: S,
}

impl<RT: AsyncRuntime, S: Shelf> RaftSnapshotBuilder<Types<RT>> for Builder<S> {
    type SnapshotData = SnapshotBytes;

    async fn build_snapshot(&mut self) -> Result<Snap, io::Error> {
        let content = self.content.clone();
        let snapshot = self.shelf.keep(self.meta.clone(), move || content.bytes()).await?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::raft::log_store::Disk;
    use crate::state::{Command, Envelope, Target};

    #[test]
    fn a_change_with_a_key_is_applied_once_and_one_without_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = DiskShelf::new(folder.path(), Arc::new(Disk::open(folder.path()).unwrap()));
        let (states, _) = watch::channel(Arc::default());
        let (applies, _) = watch::channel(Applied::default());
        let mut machine = Machine::new(shelf, states, applies);
        let envelope = || Arc::new(Envelope { stamp_ms: 5, command: Command::Pause { target: Target::All } });
        let once = |number| Change::Once { key: (7, number), envelope: envelope() };
        let first = machine.apply_change(&once(1));
        assert_eq!(machine.apply_change(&once(1)), first);
        assert_eq!(machine.content.state.index, 1);
        machine.apply_change(&once(2));
        machine.apply_change(&Change::State(envelope()));
        machine.apply_change(&Change::State(envelope()));
        assert_eq!(machine.content.state.index, 4);
    }

    /// Writes when it is let.
    #[derive(Clone)]
    struct Slow(Arc<tokio::sync::Semaphore>);

    impl Shelf for Slow {
        async fn keep(
            &self,
            _: SnapshotMeta,
            bytes: impl FnOnce() -> io::Result<SnapshotBytes> + Send + 'static,
        ) -> io::Result<SnapshotBytes> {
            let _turn = self.0.acquire().await.map_err(io::Error::other)?;
            bytes()
        }

        async fn newest(&self) -> io::Result<Option<(SnapshotMeta, SnapshotBytes)>> {
            Ok(None)
        }
    }

    #[tokio::test]
    async fn a_snapshot_is_of_the_moment_at_which_it_was_asked_for_and_holds_up_no_entry() {
        type C = Types<openraft::TokioRuntime>;
        let disk = Slow(Arc::new(tokio::sync::Semaphore::new(0)));
        let (states, seen) = watch::channel(Arc::default());
        let mut machine = Machine::new(disk.clone(), states, watch::channel(Applied::default()).0);
        let pause = Arc::new(Envelope { stamp_ms: 5, command: Command::Pause { target: Target::All } });
        let pause = Change::State(pause);
        machine.apply_change(&pause);
        let patience = std::time::Duration::from_secs(10);
        let builder =
            tokio::time::timeout(patience, RaftStateMachine::<C>::get_snapshot_builder(&mut machine));
        let mut builder = builder.await.expect("it waits for the disk");
        let building =
            tokio::spawn(async move { RaftSnapshotBuilder::<C>::build_snapshot(&mut builder).await });
        tokio::task::yield_now().await;
        machine.apply_change(&pause);
        machine.apply_change(&pause);
        machine.publish(feed::Recorder::tell);
        assert_eq!((seen.borrow().index, building.is_finished()), (3, false));
        disk.0.add_permits(1);
        let snapshot = building.await.unwrap().unwrap();
        assert_eq!(Content::of(&snapshot.snapshot).unwrap().state.index, 1);
    }

    #[tokio::test]
    async fn what_comes_as_a_whole_is_told_as_such() {
        type C = Types<openraft::TokioRuntime>;
        let (recorder, feed) = feed::feed();
        let (states, _) = watch::channel(Arc::default());
        let disk = Slow(Arc::new(tokio::sync::Semaphore::new(1)));
        let mut machine = Machine::new(disk, states, watch::channel(Applied::default()).0).telling(recorder);
        let mut modified = feed.modified();
        let state = Arc::new(State { index: 40, ..State::default() });
        let snapshot = Content { state, ..Content::default() }.bytes().unwrap();
        let meta = SnapshotMeta::default();
        RaftStateMachine::<C>::install_snapshot(&mut machine, &meta, snapshot).await.unwrap();
        assert!(!feed.knows((39, feed::END)) && feed.knows((40, feed::END)));
        assert!(modified.has_changed().unwrap(), "whoever waits for a change waits on");
        assert_eq!((*modified.borrow_and_update(), *feed.newest().borrow()), (40, 40));
    }
}
