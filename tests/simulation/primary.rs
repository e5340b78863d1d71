//! Primaries: the one that the log obeys, and those before it that do not know better yet.

use bigbrother::host::Moment;
use bigbrother::plan::Planner;
use bigbrother::plan::liveness::{Confirm, Report, Roll, Round};
use bigbrother::state::{Command, State};

use crate::world::Fault;

pub struct Primary {
    /// The site that it runs on.
    pub at: usize,
    pub term: u64,
    pub roll: Roll,
    pub planner: Planner,
    /// ReadIndex rounds under way: when they end.
    pub rounds: Vec<(u64, Round)>,
    pub ticks: u64,
    /// Until then its plan rests: the state has not moved.
    pub planned: Option<u64>,
}

impl Primary {
    pub fn new(at: usize, term: u64, committed: Moment, fault: Fault) -> Primary {
        // One that does not wait takes silence from before its time for silence.
        let early = if fault == Fault::NoWait { committed.0.min(60_000_000_000) } else { 0 };
        let mut roll = Roll::new(Moment(committed.0 - early));
        // Small steps: it must not look as if it had slept.
        for ns in (0..early).rev().step_by(100_000_000) {
            roll.tick(&State::default(), Moment(committed.0 - ns));
        }
        let (planner, rounds) = (Planner::default(), Vec::new());
        Primary { at, term, roll, planner, rounds, ticks: 0, planned: None }
    }

    pub fn hear(&mut self, report: Report, now: Moment) {
        self.roll.report(report, now);
    }

    /// Rounds that have ended: `real` says whether they succeeded.
    pub fn answer(&mut self, now: u64, real: bool, state: &State, fault: Fault) -> Vec<Confirm> {
        let (over, rounds): (Vec<_>, Vec<_>) = self.rounds.drain(..).partition(|(ends, _)| *ends <= now);
        self.rounds = rounds;
        let succeeded = real || fault == Fault::NoReadIndex;
        over.into_iter()
            .filter(|_| succeeded)
            .flat_map(|(_, round)| self.roll.confirm(round, state))
            .collect()
    }

    pub fn judge(&mut self, state: &State, now: Moment) -> Vec<Command> {
        self.roll.tick(state, now).commands
    }
}
