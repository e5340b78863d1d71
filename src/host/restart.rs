//! What follows the end of a run: another one at once, later, or never.
//!
//! Pure and total. Called by [`super::lifecycle`] when nothing of a run is left.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Cause, Moment, Now};
use crate::keeper::protocol::End;
use crate::spec::{Restart, RestartPolicy};

/// The pause after a failed spawn when no back-off is configured: a program that is not there is no
/// reason to spin.
const SPAWN_PAUSE: Duration = Duration::from_secs(1);

/// Moments of failures in a note, which has 256 bytes for all.
const MOST_NOTED: usize = 12;

/// The failures of an instance that still count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// Since the last healthy run.
    consecutive: u32,
    /// When, oldest first; as many as `give_up` can ask for.
    recent: VecDeque<Moment>,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Another run at once.
    Again,
    /// Another run after this wait.
    Wait(Duration),
    /// Too many failures.
    GiveUp,
    /// The run did what it was for.
    Done,
}

/// How a run ended and how well it did before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Why it ended.
    pub cause: Cause,
    /// How.
    pub end: End,
    /// How long it had been ready.
    pub healthy_for: Duration,
}

impl Failures {
    /// Forgets everything: an operator wants a new start.
    pub fn clear(&mut self) {
        *self = Failures::default();
    }

    /// As much of it as a note has room for: the newest.
    pub fn noted(&self) -> Failures {
        let older = self.recent.len().saturating_sub(MOST_NOTED);
        Failures { consecutive: self.consecutive, recent: self.recent.iter().skip(older).copied().collect() }
    }

    /// How many in a row.
    pub fn consecutive(&self) -> u32 {
        self.consecutive
    }

    /// Takes note of an end and decides what follows.
    pub fn judge(&mut self, policy: &Restart, ending: Ending, now: Now) -> Verdict {
        match ending.cause {
            Cause::Operator | Cause::Stop | Cause::Stray => return Verdict::Again,
            _ => {}
        }
        let clean = ending.cause == Cause::Exit && ending.end == End::Code(0);
        match policy.policy {
            RestartPolicy::Never => return Verdict::Done,
            RestartPolicy::OnFailure if clean => return Verdict::Done,
            _ => {}
        }
        if ending.healthy_for >= policy.healthy_after {
            self.clear();
        }
        self.consecutive = self.consecutive.saturating_add(1);
        if self.too_many(policy, now.at) {
            return Verdict::GiveUp;
        }
        self.delay(policy, ending.cause, now.chance)
    }

    fn too_many(&mut self, policy: &Restart, now: Moment) -> bool {
        let Some(limit) = policy.give_up else { return false };
        self.recent.push_back(now);
        while self.recent.front().is_some_and(|first| now.since(*first) > limit.within) {
            self.recent.pop_front();
        }
        let most = limit.failures as usize;
        while self.recent.len() > most + 1 {
            self.recent.pop_front();
        }
        self.recent.len() > most
    }

    fn delay(&self, policy: &Restart, cause: Cause, chance: u32) -> Verdict {
        match policy.backoff {
            None if cause == Cause::Spawn => Verdict::Wait(SPAWN_PAUSE),
            None => Verdict::Again,
            Some(_) if self.consecutive == 1 && cause != Cause::Spawn => Verdict::Again,
            Some(backoff) => {
                let doublings = self.consecutive.saturating_sub(2).min(32);
                let full = backoff.min.saturating_mul(1u32.checked_shl(doublings).unwrap_or(u32::MAX));
                let full = full.min(backoff.max);
                // Between three quarters and the whole, so that instances that died together part.
                let share = 0.75 + 0.25 * f64::from(chance) / f64::from(u32::MAX);
                Verdict::Wait(full.mul_f64(share))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Backoff, GiveUp};

    fn policy() -> Restart {
        Restart {
            policy: RestartPolicy::Always,
            backoff: Some(Backoff { min: Duration::from_millis(100), max: Duration::from_secs(1) }),
            healthy_after: Duration::from_secs(60),
            give_up: Some(GiveUp { failures: 5, within: Duration::from_secs(600) }),
        }
    }

    fn died(cause: Cause, end: End) -> Ending {
        Ending { cause, end, healthy_for: Duration::ZERO }
    }

    fn now(seconds: u64) -> Now {
        Now { at: Moment(seconds * 1_000_000_000), wall_ms: 0, chance: u32::MAX }
    }

    #[test]
    fn the_first_restart_is_at_once_then_delays_double_up_to_the_maximum_then_it_gives_up() {
        let mut failures = Failures::default();
        let crash = died(Cause::Signal, End::Signal { signal: 11, core: false });
        let ms = |n| Verdict::Wait(Duration::from_millis(n));
        let got: Vec<Verdict> = (0..6).map(|i| failures.judge(&policy(), crash, now(i))).collect();
        assert_eq!(got, [Verdict::Again, ms(100), ms(200), ms(400), ms(800), Verdict::GiveUp]);
    }

    #[test]
    fn jitter_takes_up_to_a_quarter() {
        let mut failures = Failures { consecutive: 1, ..Failures::default() };
        let low = Now { chance: 0, ..now(0) };
        let crash = died(Cause::Hang, End::Signal { signal: 9, core: false });
        assert_eq!(failures.judge(&policy(), crash, low), Verdict::Wait(Duration::from_millis(75)));
    }

    #[test]
    fn old_failures_leave_the_window() {
        let mut failures = Failures::default();
        let crash = died(Cause::Exit, End::Code(1));
        for i in 0..20 {
            assert_ne!(failures.judge(&policy(), crash, now(i * 200)), Verdict::GiveUp, "failure {i}");
        }
    }

    #[test]
    fn a_healthy_run_clears_the_count() {
        let mut failures = Failures { consecutive: 4, ..Failures::default() };
        let ending = Ending { healthy_for: Duration::from_secs(60), ..died(Cause::Exit, End::Code(1)) };
        assert_eq!(failures.judge(&policy(), ending, now(0)), Verdict::Again);
        assert_eq!(failures.consecutive(), 1);
    }

    #[test]
    fn operators_and_updates_count_for_nothing() {
        let mut failures = Failures::default();
        for cause in [Cause::Operator, Cause::Stop] {
            for i in 0..20 {
                let ending = died(cause, End::Signal { signal: 9, core: false });
                assert_eq!(failures.judge(&policy(), ending, now(i)), Verdict::Again);
            }
        }
        assert_eq!(failures, Failures::default());
    }

    #[test]
    fn policies() {
        let clean = died(Cause::Exit, End::Code(0));
        let unknown = died(Cause::Unknown, End::Unknown);
        let table = [
            (RestartPolicy::Always, clean, Verdict::Again),
            (RestartPolicy::OnFailure, clean, Verdict::Done),
            (RestartPolicy::OnFailure, unknown, Verdict::Again),
            (RestartPolicy::OnFailure, died(Cause::Exit, End::Code(1)), Verdict::Again),
            (RestartPolicy::Never, died(Cause::Exit, End::Code(1)), Verdict::Done),
        ];
        for (kind, ending, wanted) in table {
            let policy = Restart { policy: kind, ..policy() };
            assert_eq!(Failures::default().judge(&policy, ending, now(0)), wanted, "{kind:?} {ending:?}");
        }
    }

    #[test]
    fn without_backoff_crashes_restart_at_once_but_spawn_failures_wait() {
        let policy = Restart { backoff: None, give_up: None, ..policy() };
        let mut failures = Failures::default();
        for i in 0..100 {
            let crash = died(Cause::Signal, End::Signal { signal: 9, core: false });
            assert_eq!(failures.judge(&policy, crash, now(i)), Verdict::Again);
        }
        let unborn = died(Cause::Spawn, End::Unknown);
        assert_eq!(failures.judge(&policy, unborn, now(101)), Verdict::Wait(SPAWN_PAUSE));
    }
}
