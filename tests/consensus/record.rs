//! What the peers have made of the log, entry by entry: the invariants of the copies.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bigbrother::cluster::raft::LogId;
use bigbrother::state::State;
use bigbrother::state::check::{shrunk, violations};

pub const DIFFER: &str = "the copies of two peers differ";
pub const LOST: &str = "what was committed is lost";
pub const TWICE: &str = "a change with a key was applied twice, or not at all";

#[derive(Default)]
struct Inner {
    states: BTreeMap<u64, (LogId, Arc<State>)>,
    /// Launches that were asked for, and answered.
    launches: (u64, u64),
    answered: u64,
    broken: Option<String>,
}

#[derive(Clone, Default)]
pub struct Record(Arc<Mutex<Inner>>);

impl Record {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// A peer has applied all entries up to this one.
    pub fn applied(&self, peer: u64, log: LogId, state: &Arc<State>) {
        let mut inner = self.inner();
        let broken = match inner.states.get(&log.index) {
            Some((known, _)) if *known != log => {
                Some(format!("{LOST}: {known} was, {log} is at peer {peer}"))
            }
            Some((_, known)) if known != state => Some(format!("{DIFFER}: peer {peer} at {log}")),
            Some(_) => None,
            None => {
                let before = inner.states.range(..log.index).next_back().map(|(_, (_, state))| state.clone());
                let before = before.filter(|before| before.index <= state.index).unwrap_or_default();
                let broken = violations(state).into_iter().chain(shrunk(&before, state)).next();
                inner.states.insert(log.index, (log, state.clone()));
                broken.map(|violation| violation.to_string())
            }
        };
        inner.broken = inner.broken.take().or(broken);
    }

    /// A change is told to be done at this place.
    pub fn answered(&self, log: LogId) {
        let mut inner = self.inner();
        inner.answered += 1;
        let held = inner.states.get(&log.index).map(|(known, _)| *known);
        let broken = (held != Some(log)).then(|| format!("{LOST}: {log} was answered, {held:?} is there"));
        inner.broken = inner.broken.take().or(broken);
    }

    pub fn launches(&self, asked: u64, answered: u64) {
        let (all_asked, all_answered) = &mut self.inner().launches;
        (*all_asked, *all_answered) = (*all_asked + asked, *all_answered + answered);
    }

    /// In the end: what was answered is in the state, and nothing is in it that was not asked for.
    pub fn check_launches(&self) -> Result<(), String> {
        let inner = self.inner();
        let state = inner.states.values().next_back().map(|(_, state)| state.clone()).unwrap_or_default();
        let made = state.counters.values().sum::<u64>();
        let (asked, answered) = inner.launches;
        match (answered..=asked).contains(&made) {
            true => Ok(()),
            false => Err(format!("{TWICE}: {asked} launches, {answered} answered, {made} made")),
        }
    }

    /// The last entry that any peer has applied.
    pub fn last(&self) -> Option<u64> {
        self.inner().states.keys().next_back().copied()
    }

    pub fn check(&self) -> Result<(), String> {
        self.inner().broken.clone().map_or(Ok(()), Err)
    }

    /// Entries, changes answered, primaries.
    pub fn counts(&self) -> (u64, u64, u64) {
        let inner = self.inner();
        let leaders: std::collections::BTreeSet<_> =
            inner.states.values().map(|(log, _)| log.leader_id).collect();
        (inner.states.len() as u64, inner.answered, leaders.len() as u64)
    }
}
