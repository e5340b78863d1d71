//! The last changes of the directory, for those who watch it.
//!
//! Owns a ring of changes beside the state, filled by whoever applies commands here. A watcher asks for what
//! came after the change that it has seen; what has left the ring, or was never told here because a whole state
//! came, it must begin anew. Numbers are the same on every host ([`crate::state::Change`]). A change is written out
//! for the first watcher who is told it, and all others share that text. Called by the owner of this host's copy and
//! by `http`.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use tokio::sync::watch;

use crate::state::{Change, State};

/// Changes that are kept.
const KEPT: usize = 10_000;
/// Changes that a watcher takes at once.
pub const BATCH: usize = 64;

/// A place among the changes: a state index, and a place within it.
pub type At = (u64, u32);

/// The last place of an index.
pub const END: u32 = u32::MAX;

/// A change that is out.
#[derive(Debug)]
pub struct Told {
    /// What has changed.
    pub change: Change,
    text: OnceLock<Bytes>,
}

impl Told {
    /// Its place among all.
    pub fn at(&self) -> At {
        (self.change.index, self.change.offset)
    }

    /// As it is told; written when it is told for the first time.
    pub fn text(&self, write: impl FnOnce(&Change) -> Bytes) -> Bytes {
        self.text.get_or_init(|| write(&self.change)).clone()
    }
}

#[derive(Debug, Default)]
struct Ring {
    /// All later changes are in the ring.
    since: At,
    changes: VecDeque<Arc<Told>>,
}

/// The filling end.
#[derive(Debug)]
pub struct Recorder {
    ring: Arc<RwLock<Ring>>,
    newest: watch::Sender<u64>,
    modified: watch::Sender<u64>,
    /// Told with the next state that goes out.
    waiting: Vec<Change>,
}

/// The asking end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Feed {
    ring: Arc<RwLock<Ring>>,
    newest: watch::Receiver<u64>,
    modified: watch::Receiver<u64>,
}

/// Both ends of an empty ring.
pub fn feed() -> (Recorder, Feed) {
    let ((newest, seen), (modified, changed)) = (watch::channel(0), watch::channel(0));
    let ring = Arc::new(RwLock::new(Ring::default()));
    let recorder = Recorder { ring: ring.clone(), newest, modified, waiting: Vec::new() };
    (recorder, Feed { ring, newest: seen, modified: changed })
}

impl Recorder {
    /// A command has changed this.
    pub fn note(&mut self, changes: Vec<Change>) {
        self.waiting.extend(changes);
    }

    /// The state with all that was noted is out.
    pub fn tell(&mut self, state: &State) {
        let noted = std::mem::take(&mut self.waiting);
        let modified = noted.last().map(|change| change.index);
        if !noted.is_empty() {
            let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
            let told = noted.into_iter().map(|change| Arc::new(Told { change, text: OnceLock::new() }));
            ring.changes.extend(told);
            while ring.changes.len() > KEPT
                && let Some(oldest) = ring.changes.pop_front()
            {
                ring.since = oldest.at();
            }
        }
        let index = state.index;
        self.newest.send_if_modified(|newest| std::mem::replace(newest, index) != index);
        if let Some(modified) = modified {
            self.modified.send_replace(modified);
        }
    }

    /// A whole state came: what led to it is not known.
    pub fn begin_anew(&mut self, state: &State) {
        self.waiting.clear();
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        *ring = Ring { since: (state.index, END), changes: VecDeque::new() };
        drop(ring);
        self.newest.send_replace(state.index);
        self.modified.send_replace(state.index);
    }
}

impl Feed {
    /// The state index of this host's copy, up to which the ring reaches; changes with each state that goes out.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.clone()
    }

    /// The index of the last change of the directory: who waits for such is not woken by all else.
    pub fn modified(&self) -> watch::Receiver<u64> {
        self.modified.clone()
    }

    /// All that came after a place is known here.
    pub fn knows(&self, at: At) -> bool {
        at >= self.ring.read().unwrap_or_else(PoisonError::into_inner).since
    }

    /// Adds the first changes that came after a place, in order: as many as are taken at once, none when there are none.
    /// `false`: not all that came after it is known here any more.
    pub fn take(&self, at: At, taken: &mut VecDeque<Arc<Told>>) -> bool {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        if at < ring.since {
            return false;
        }
        // Most who ask lack the last one or two.
        let new = ring.changes.iter().rev().take(BATCH).take_while(|told| told.at() > at).count();
        let first = match new < BATCH {
            true => ring.changes.len() - new,
            false => ring.changes.partition_point(|told| told.at() <= at),
        };
        taken.extend(ring.changes.range(first..).take(BATCH).cloned());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Changed;

    fn change(index: u64, offset: u32) -> Change {
        Change { index, offset, what: Changed::Leader("zone".parse().unwrap(), None) }
    }

    fn state(index: u64) -> State {
        State { index, ..State::default() }
    }

    /// `None`: not all are known.
    fn after(feed: &Feed, at: At) -> Option<Vec<At>> {
        let mut taken = VecDeque::new();
        let known = feed.take(at, &mut taken);
        known.then(|| taken.iter().map(|told| told.at()).collect())
    }

    #[test]
    fn what_came_after_a_place_is_told_once_it_is_out() {
        let (mut recorder, feed) = feed();
        recorder.note(vec![change(3, 0), change(3, 1)]);
        assert_eq!(after(&feed, (0, END)), Some(vec![]), "not out yet");
        recorder.tell(&state(4));
        assert_eq!((*feed.newest().borrow(), *feed.modified().borrow()), (4, 3));
        recorder.note(vec![change(6, 0)]);
        recorder.tell(&state(6));
        let mut modified = feed.modified();
        assert_eq!(*modified.borrow_and_update(), 6);
        recorder.tell(&state(9));
        assert!(!modified.has_changed().unwrap(), "nothing of the directory");
        assert_eq!((*feed.newest().borrow(), *feed.modified().borrow()), (9, 6));
        assert_eq!(after(&feed, (0, 0)), Some(vec![(3, 0), (3, 1), (6, 0)]));
        assert_eq!(after(&feed, (3, 0)), Some(vec![(3, 1), (6, 0)]));
        assert_eq!(after(&feed, (3, END)), Some(vec![(6, 0)]));
        assert_eq!(after(&feed, (6, 0)), Some(vec![]));
    }

    #[test]
    fn what_has_left_the_ring_or_was_never_in_it_is_not_known() {
        let (mut recorder, feed) = feed();
        for index in 1..=KEPT as u64 + 2 {
            recorder.note(vec![change(index, 0)]);
        }
        recorder.tell(&state(KEPT as u64 + 2));
        assert!(after(&feed, (1, 0)).is_none() && !feed.knows((1, 0)) && feed.knows((2, 0)));
        // All that is kept, piece by piece.
        let (mut at, mut count) = ((2, 0), 0);
        while let Some(&last) = after(&feed, at).expect("known").last() {
            count += after(&feed, at).expect("known").len();
            at = last;
        }
        assert_eq!((at, count), ((KEPT as u64 + 2, 0), KEPT));
        recorder.note(vec![change(20_000, 0)]);
        recorder.begin_anew(&state(30_000));
        assert!(after(&feed, (29_999, 7)).is_none());
        assert_eq!(after(&feed, (30_000, END)), Some(vec![]));
        assert_eq!((*feed.newest().borrow(), *feed.modified().borrow()), (30_000, 30_000));
    }

    #[test]
    fn a_change_is_written_out_once_for_all() {
        let (mut recorder, feed) = feed();
        recorder.note(vec![change(3, 0)]);
        recorder.tell(&state(3));
        let mut taken = VecDeque::new();
        assert!(feed.take((0, 0), &mut taken));
        let text = |words: &'static str| taken[0].text(|_| words.into());
        assert_eq!(text("first"), "first");
        assert_eq!(text("second"), "first");
    }
}
