//! The orders that wait for a look-up.
//!
//! Owns which errand each of them waits for and since when. Who comes back, and what is due, is found without a look at all
//! the others: thousands wait when a host starts. Never decides what follows. Called by the orders only.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::agent::lookup::Errand;
use crate::host::Moment;
use crate::keeper::protocol::RunId;
use crate::spec::InstanceId;

/// What is not looked up by then is a failed spawn.
pub(super) const LONGEST_LOOK_UP: Duration = Duration::from_secs(5);

/// An order that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// Whose run it is for.
    pub(super) instance: InstanceId,
    /// What is looked up for it.
    pub(super) errand: Errand,
    /// When it was sent for.
    since: Moment,
}

/// All of them.
#[derive(Default)]
pub(super) struct Waitings {
    runs: BTreeMap<RunId, Waiting>,
    errands: BTreeMap<Errand, BTreeSet<RunId>>,
    sent: BTreeSet<(Moment, RunId)>,
}

impl Waitings {
    pub(super) fn put(&mut self, run: RunId, instance: InstanceId, errand: Errand, since: Moment) {
        self.remove(run);
        self.errands.entry(errand.clone()).or_default().insert(run);
        self.sent.insert((since, run));
        self.runs.insert(run, Waiting { instance, errand, since });
    }

    pub(super) fn has(&self, run: RunId) -> bool {
        self.runs.contains_key(&run)
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = &RunId> {
        self.runs.keys()
    }

    pub(super) fn remove(&mut self, run: RunId) -> Option<Waiting> {
        let waiting = self.runs.remove(&run)?;
        self.sent.remove(&(waiting.since, run));
        if let Some(runs) = self.errands.get_mut(&waiting.errand) {
            runs.remove(&run);
            if runs.is_empty() {
                self.errands.remove(&waiting.errand);
            }
        }
        Some(waiting)
    }

    /// Takes those that wait for this errand.
    pub(super) fn take(&mut self, errand: &Errand) -> Vec<(RunId, Waiting)> {
        let runs = self.errands.remove(errand).unwrap_or_default();
        runs.into_iter().filter_map(|run| Some((run, self.remove(run)?))).collect()
    }

    /// Takes one that has waited for too long.
    pub(super) fn take_overdue(&mut self, now: Moment) -> Option<(RunId, Waiting)> {
        self.next_due().filter(|due| *due <= now)?;
        let (_, run) = *self.sent.first()?;
        Some((run, self.remove(run)?))
    }

    /// When the first has waited for too long.
    pub(super) fn next_due(&self) -> Option<Moment> {
        self.sent.first().map(|(since, _)| since.after(LONGEST_LOOK_UP))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errand(program: &str) -> Errand {
        Errand { program: program.to_owned(), ..Errand::default() }
    }

    #[test]
    fn each_goes_with_its_errand_or_when_it_is_overdue_and_but_once() {
        let mut waitings = Waitings::default();
        let id = |run: u64| -> InstanceId { format!("zone.{run}").parse().unwrap() };
        let start = Moment(1_000);
        for (run, program, after) in [(4, "ls", 0), (1, "cat", 1), (3, "ls", 2), (2, "cat", 3)] {
            let since = start.after(Duration::from_secs(after));
            waitings.put(RunId(run), id(run), errand(program), since);
        }
        assert_eq!(waitings.runs().map(|run| run.0).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(waitings.next_due(), Some(start.after(LONGEST_LOOK_UP)));
        let runs = |taken: Vec<(RunId, Waiting)>| taken.iter().map(|(run, _)| run.0).collect::<Vec<_>>();

        assert_eq!(waitings.remove(RunId(4)).map(|waiting| waiting.instance), Some(id(4)));
        assert_eq!(waitings.remove(RunId(4)), None);
        assert_eq!(runs(waitings.take(&errand("ls"))), [3]);
        assert_eq!(runs(waitings.take(&errand("ls"))), [0_u64; 0]);
        assert!(!waitings.has(RunId(3)) && waitings.has(RunId(1)));

        let first = start.after(Duration::from_secs(1)).after(LONGEST_LOOK_UP);
        assert_eq!(waitings.next_due(), Some(first));
        assert_eq!(waitings.take_overdue(Moment(first.0 - 1)), None);
        assert_eq!(waitings.take_overdue(first).map(|(run, _)| run.0), Some(1));
        assert_eq!(waitings.take_overdue(first), None);
        assert_eq!(runs(waitings.take(&errand("cat"))), [2]);
        assert_eq!(waitings.next_due(), None);
        assert!(waitings.errands.is_empty());
    }

    #[test]
    fn one_that_is_sent_for_again_waits_for_that_alone() {
        let mut waitings = Waitings::default();
        let id: InstanceId = "zone.0".parse().unwrap();
        waitings.put(RunId(1), id.clone(), errand("ls"), Moment(0));
        waitings.put(RunId(1), id, errand("cat"), Moment(9));
        assert_eq!(waitings.take(&errand("ls")), []);
        assert_eq!(waitings.next_due(), Some(Moment(9).after(LONGEST_LOOK_UP)));
        assert_eq!(waitings.take(&errand("cat")).len(), 1);
    }
}
