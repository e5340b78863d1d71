//! The orders that wait for the keeper or for their turn.
//!
//! Owns the order in which they go: what players miss comes before what was not there, and the older before the newer.
//! Never decides when. Called by the orders only.

use std::collections::BTreeMap;

use crate::keeper::protocol::RunId;
use crate::spec::InstanceId;

#[derive(Default)]
pub(super) struct Queue {
    /// They follow runs that lived.
    missed: BTreeMap<RunId, InstanceId>,
    /// Nothing of them was there.
    new: BTreeMap<RunId, InstanceId>,
}

impl Queue {
    pub(super) fn put(&mut self, run: RunId, instance: InstanceId, missed: bool) {
        if missed { &mut self.missed } else { &mut self.new }.insert(run, instance);
    }

    /// Takes the next.
    pub(super) fn pop(&mut self) -> Option<(RunId, InstanceId)> {
        self.missed.pop_first().or_else(|| self.new.pop_first())
    }

    pub(super) fn remove(&mut self, run: RunId) -> Option<InstanceId> {
        self.missed.remove(&run).or_else(|| self.new.remove(&run))
    }

    pub(super) fn has(&self, run: RunId) -> bool {
        self.missed.contains_key(&run) || self.new.contains_key(&run)
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = &RunId> {
        self.missed.keys().chain(self.new.keys())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.missed.is_empty() && self.new.is_empty()
    }

    /// Somebody waits for the next one.
    pub(super) fn is_urgent(&self) -> bool {
        !self.missed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missed_goes_before_thousands_and_the_older_before_the_newer() {
        let mut queue = Queue::default();
        let id = |run: u64| -> InstanceId { format!("zone.{run}").parse().unwrap() };
        for (run, missed) in [(1, false), (4, true), (2, false), (3, true), (5, true)] {
            queue.put(RunId(run), id(run), missed);
        }
        assert_eq!(queue.runs().count(), 5);
        assert!(queue.has(RunId(1)) && queue.has(RunId(5)));
        assert_eq!(queue.remove(RunId(5)), Some(id(5)));
        assert!(!queue.has(RunId(5)));
        assert_eq!(queue.remove(RunId(5)), None);
        let mut order = Vec::new();
        while let Some((run, instance)) = queue.pop() {
            assert_eq!(instance, id(run.0));
            order.push((run.0, queue.is_urgent()));
        }
        assert_eq!(order, [(3, true), (4, false), (1, false), (2, false)]);
        assert!(queue.is_empty());
    }
}
