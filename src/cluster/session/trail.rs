//! What was applied last, for whoever follows: a bounded trail of commands by their place in the log.
//!
//! Owns the trail of a peer. The machine writes it as it applies and waits for nobody: whoever is so far behind
//! that the trail does not reach back to it gets the whole state. [`Trail`] is pure; [`Recorder`] is the
//! machine's end and [`Reader`] that of `desk`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::message::Place;
use crate::state::State;

/// The longest trail: entries of the log, and bytes of their commands.
const ENTRIES: usize = 16 * 1024;
const BYTES: usize = 16 * 1024 * 1024;

/// An entry of the log as it was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which.
    pub place: Place,
    /// Its command, encoded; `None`: it changed nothing of the state.
    pub envelope: Option<Arc<[u8]>>,
}

/// What somebody lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Since {
    /// Nothing that is here.
    Nothing,
    /// These, in order, as many as go together.
    Steps(Vec<Step>),
    /// More than the trail reaches.
    Whole,
}

/// See the module.
#[derive(Debug)]
pub struct Trail {
    steps: VecDeque<Step>,
    bytes: usize,
    most: (usize, usize),
    /// The trail begins after it.
    floor: Place,
    /// The state and where it is.
    head: (Place, Arc<State>),
}

impl Trail {
    /// An empty trail of an empty state, which keeps at most so many entries and bytes.
    pub fn new(entries: usize, bytes: usize) -> Trail {
        let (floor, head) = (Place::default(), Default::default());
        Trail { steps: VecDeque::new(), bytes: 0, most: (entries, bytes), floor, head }
    }

    /// The state, and the place it is of.
    pub fn head(&self) -> (Place, Arc<State>) {
        self.head.clone()
    }

    /// Entries were applied, with this outcome.
    pub fn extend(&mut self, steps: Vec<Step>, state: Arc<State>) {
        for step in steps {
            self.bytes += size(&step);
            self.head.0 = step.place;
            self.steps.push_back(step);
        }
        self.head.1 = state;
        while self.steps.len() > self.most.0 || self.bytes > self.most.1 {
            let Some(first) = self.steps.pop_front() else { break };
            self.bytes -= size(&first);
            self.floor = first.place;
        }
    }

    /// The state came from elsewhere, as a whole.
    pub fn begin_anew(&mut self, place: Place, state: Arc<State>) {
        self.steps.clear();
        (self.bytes, self.floor, self.head) = (0, place, (place, state));
    }

    /// True when whoever is at this place can go on by steps.
    pub fn reaches(&self, have: Place) -> bool {
        let first = self.steps.partition_point(|step| step.place.index <= have.index);
        let at = first.checked_sub(1).and_then(|at| self.steps.get(at)).map_or(self.floor, |step| step.place);
        at == have
    }

    /// What somebody at this place lacks; steps up to about `bytes`.
    pub fn since(&self, have: Place, bytes: usize) -> Since {
        if have.index > self.head.0.index {
            // A peer may be behind the one that served the host before, but then its term is no later one: what an
            // older primary wrote and this log does not have was undone, by copies that were put back.
            return if have.term < self.head.0.term { Since::Whole } else { Since::Nothing };
        }
        if !self.reaches(have) {
            return Since::Whole;
        }
        let first = self.steps.partition_point(|step| step.place.index <= have.index);
        let mut taken = 0;
        let mut room = |step: &&Step| {
            let fits = taken == 0 || taken + size(step) <= bytes;
            taken += size(step);
            fits
        };
        let steps: Vec<Step> = self.steps.range(first..).take_while(&mut room).cloned().collect();
        match steps.first() {
            None => Since::Nothing,
            // It would not go into one message, but a state goes in parts.
            Some(step) if size(step) > bytes.saturating_mul(8) => Since::Whole,
            Some(_) => Since::Steps(steps),
        }
    }
}

fn size(step: &Step) -> usize {
    step.envelope.as_ref().map_or(0, |envelope| envelope.len())
}

struct Shared {
    trail: Mutex<Trail>,
    head: watch::Sender<Place>,
}

impl Shared {
    fn trail(&self) -> MutexGuard<'_, Trail> {
        self.trail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end that the machine writes to.
pub struct Recorder(Arc<Shared>);

/// The end that followers are served from. Cheap to clone.
#[derive(Clone)]
pub struct Reader(Arc<Shared>);

/// Both ends of a new trail.
pub fn trail() -> (Recorder, Reader) {
    let trail = Mutex::new(Trail::new(ENTRIES, BYTES));
    let shared = Arc::new(Shared { trail, head: watch::channel(Place::default()).0 });
    (Recorder(shared.clone()), Reader(shared))
}

impl Recorder {
    /// See [`Trail::extend`].
    pub fn extend(&self, steps: Vec<Step>, state: Arc<State>) {
        self.0.trail().extend(steps, state);
        self.tell();
    }

    /// See [`Trail::begin_anew`].
    pub fn begin_anew(&self, place: Place, state: Arc<State>) {
        self.0.trail().begin_anew(place, state);
        self.tell();
    }

    fn tell(&self) {
        let (place, _) = self.0.trail().head();
        self.0.head.send_replace(place);
    }
}

impl Reader {
    /// Changes with each state.
    pub fn heads(&self) -> watch::Receiver<Place> {
        self.0.head.subscribe()
    }

    /// See [`Trail::head`].
    pub fn head(&self) -> (Place, Arc<State>) {
        self.0.trail().head()
    }

    /// See [`Trail::since`].
    pub fn since(&self, have: Place, bytes: usize) -> Since {
        self.0.trail().since(have, bytes)
    }

    /// See [`Trail::reaches`].
    pub fn reaches(&self, have: Place) -> bool {
        self.0.trail().reaches(have)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64) -> Place {
        Place { index, term: 1 + index / 10 }
    }

    fn step(index: u64, size: usize) -> Step {
        Step { place: at(index), envelope: (size > 0).then(|| vec![7; size].into()) }
    }

    fn state(index: u64) -> Arc<State> {
        Arc::new(State { index, ..State::default() })
    }

    /// Entries 1 to `last`, each of ten bytes.
    fn trail(entries: usize, bytes: usize, last: u64) -> Trail {
        let mut trail = Trail::new(entries, bytes);
        for index in 1..=last {
            trail.extend(vec![step(index, 10)], state(index));
        }
        trail
    }

    fn steps(trail: &Trail, have: Place, bytes: usize) -> Result<Vec<u64>, Since> {
        match trail.since(have, bytes) {
            Since::Steps(steps) => Ok(steps.iter().map(|step| step.place.index).collect()),
            other => Err(other),
        }
    }

    #[test]
    fn what_somebody_lacks_is_what_came_after() {
        let trail = trail(100, 1000, 25);
        let older = Place { index: 20, term: 2 };
        type Row = (&'static str, Place, usize, Result<Vec<u64>, Since>);
        let table: &[Row] = &[
            ("some", at(22), 1000, Ok(vec![23, 24, 25])),
            ("as many as go together", at(20), 35, Ok(vec![21, 22, 23])),
            ("one in any case", at(20), 3, Ok(vec![21])),
            ("one that is too large for a message", at(20), 1, Err(Since::Whole)),
            ("nothing", at(25), 1000, Err(Since::Nothing)),
            ("more than is here", at(26), 1000, Err(Since::Nothing)),
            ("more than is here, by a later primary", at(30), 1000, Err(Since::Nothing)),
            (
                "more than is here, from before a restore",
                Place { index: 26, term: 2 },
                1000,
                Err(Since::Whole),
            ),
            ("what another primary wrote", older, 1000, Err(Since::Whole)),
            ("the last of another primary", Place { index: 25, term: 9 }, 1000, Err(Since::Whole)),
        ];
        for (what, have, bytes, wanted) in table {
            assert_eq!(steps(&trail, *have, *bytes), *wanted, "{what}");
        }
        // It begins with the empty state, so whoever has nothing needs no whole one.
        assert_eq!(steps(&trail, Place::default(), 1000).unwrap().len(), 25);
        assert_eq!(trail.head(), (at(25), state(25)));
    }

    #[test]
    fn the_trail_is_bounded_by_entries_and_by_bytes() {
        for (entries, bytes) in [(10, 1000), (100, 109)] {
            let trail = trail(entries, bytes, 25);
            assert_eq!(steps(&trail, at(15), 1000).unwrap().len(), 10);
            assert_eq!(steps(&trail, at(14), 1000), Err(Since::Whole));
            assert_eq!(steps(&trail, Place::default(), 1000), Err(Since::Whole));
            assert!(trail.reaches(at(15)) && !trail.reaches(at(14)));
        }
        // What is larger than all of it leaves nothing but the place.
        let mut trail = trail(10, 1000, 5);
        trail.extend(vec![step(6, 2000)], state(6));
        assert_eq!(steps(&trail, at(5), 1000), Err(Since::Whole));
        assert_eq!(steps(&trail, at(6), 1000), Err(Since::Nothing));
    }

    #[test]
    fn entries_that_change_nothing_are_places_all_the_same() {
        let mut trail = trail(100, 1000, 5);
        trail.extend(vec![step(6, 0), step(7, 0)], state(5));
        assert_eq!(steps(&trail, at(5), 1000), Ok(vec![6, 7]));
        assert_eq!(steps(&trail, at(7), 1000), Err(Since::Nothing));
    }

    #[test]
    fn after_a_snapshot_the_trail_begins_there() {
        let mut trail = trail(100, 1000, 5);
        trail.begin_anew(at(40), state(40));
        assert_eq!(steps(&trail, at(5), 1000), Err(Since::Whole));
        assert_eq!(steps(&trail, at(40), 1000), Err(Since::Nothing));
        trail.extend(vec![step(41, 10)], state(41));
        assert_eq!(steps(&trail, at(40), 1000), Ok(vec![41]));
        assert_eq!(trail.head(), (at(41), state(41)));
    }
}
