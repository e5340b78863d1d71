//! What the peers have made of the log, entry by entry: the invariants of the copies.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bigbrother::cluster::raft::{LeaderId, LogId};
use bigbrother::state::State;
use bigbrother::state::check::{shrunk, violations};

pub const DIFFER: &str = "the copies of two peers differ";
pub const LOST: &str = "what was committed is lost";
pub const ORDER: &str = "an older primary was obeyed after a newer one";

#[derive(Default)]
struct Inner {
    states: BTreeMap<u64, (LogId, Arc<State>)>,
    greatest: Option<LeaderId>,
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

    /// The newest primary that has answered.
    pub fn greatest(&self) -> Option<LeaderId> {
        self.inner().greatest
    }

    /// A change that was asked for when `before` was the newest primary is told to be done at this place.
    pub fn answered(&self, before: Option<LeaderId>, log: LogId) {
        let mut inner = self.inner();
        inner.answered += 1;
        let held = inner.states.get(&log.index).map(|(known, _)| *known);
        let broken = match held == Some(log) {
            false => Some(format!("{LOST}: {log} was answered, {held:?} is there")),
            true if before > Some(log.leader_id) => Some(format!("{ORDER}: {log} after {before:?}")),
            true => None,
        };
        inner.greatest = inner.greatest.max(Some(log.leader_id));
        inner.broken = inner.broken.take().or(broken);
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
