//! The time of the cluster, as whoever stamps commands counts it.
//!
//! [`super::State::now_ms`] never goes back, so one wrong clock would stop it for as long as it was ahead: nothing would
//! be forgotten, and no deadline of an update would pass. Therefore it is counted on from where it is, whatever the wall
//! clock says. Pure: clocks are arguments. Owned by the primary's peer, by the replica of a lone host and by the planner.

use std::time::Duration;

use crate::host::Moment;

/// A wall clock that is further ahead than this has leapt.
const LEAP_MS: u64 = 60_000;
/// A leap that has lasted for so long is believed: no clock was set wrong for a moment, it was set right.
const BELIEVED: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Debug, Default)]
pub struct Clock {
    /// So late it was then; counted on from there. 0: nothing was counted yet.
    known: (u64, Moment),
    /// Since when the wall clock is far ahead.
    leapt: Option<Moment>,
}

impl Clock {
    /// Milliseconds since 1970: by the wall clock, but never before what the state holds and what has passed since.
    pub fn now_ms(&mut self, state_ms: u64, wall_ms: u64, now: Moment) -> u64 {
        let passed = u64::try_from(now.since(self.known.1).as_millis()).unwrap_or(u64::MAX);
        let from_known = (self.known.0 > 0).then(|| self.known.0.saturating_add(passed));
        let counted = from_known.unwrap_or(0).max(state_ms);
        let leaps = counted > 0 && wall_ms > counted.saturating_add(LEAP_MS);
        self.leapt = leaps.then(|| self.leapt.unwrap_or(now));
        let believed = self.leapt.is_none_or(|since| now.since(since) >= BELIEVED);
        let now_ms = if believed { counted.max(wall_ms) } else { counted };
        // What is merely counted on keeps its beginning: milliseconds are not rounded down each time.
        if from_known.is_none_or(|counted| now_ms > counted) {
            self.known = (now_ms, now);
        }
        now_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEARS: u64 = 4 * 365 * 86_400_000;
    const BEGIN: u64 = 1_700_000_000_000;

    fn at(ms: u64) -> Moment {
        Moment(7).after(Duration::from_millis(ms))
    }

    #[test]
    fn the_first_word_in_a_cluster_is_believed_however_long_the_machine_runs() {
        let mut clock = Clock::default();
        let up = at(4_000_000);
        assert_eq!(clock.now_ms(0, BEGIN, up), BEGIN);
        assert_eq!(clock.now_ms(BEGIN, BEGIN, up.after(Duration::from_millis(20))), BEGIN + 20);
    }

    #[test]
    fn it_is_the_wall_clocks_time_and_never_goes_back() {
        let mut clock = Clock::default();
        assert_eq!(clock.now_ms(0, BEGIN, at(0)), BEGIN, "the first word in a cluster is believed");
        assert_eq!(
            clock.now_ms(BEGIN, BEGIN + 5_000, at(4_990)),
            BEGIN + 5_000,
            "clocks are set right in small steps"
        );
        assert_eq!(
            clock.now_ms(BEGIN + 5_000, BEGIN - 90_000, at(6_990)),
            BEGIN + 7_000,
            "set back, it is counted on"
        );
        assert_eq!(
            clock.now_ms(BEGIN + 30_000, BEGIN, at(6_990)),
            BEGIN + 30_000,
            "another primary's was ahead"
        );
        assert_eq!(clock.now_ms(BEGIN, BEGIN, at(7_990)), BEGIN + 31_000);
    }

    #[test]
    fn a_state_that_is_years_ahead_is_counted_on() {
        let (mut clock, ahead) = (Clock::default(), BEGIN + YEARS);
        assert_eq!(clock.now_ms(ahead, BEGIN, at(0)), ahead);
        // Asked often it is not slower.
        for ms in 1..=3_000 {
            clock.now_ms(ahead, BEGIN + ms / 2, Moment(at(0).0 + ms * 500_000));
        }
        assert_eq!(clock.now_ms(ahead, BEGIN + 3_600_000, at(3_600_000)), ahead + 3_600_000);
    }

    #[test]
    fn a_leap_of_the_wall_clock_counts_when_it_has_lasted() {
        let mut clock = Clock::default();
        clock.now_ms(0, BEGIN, at(0));
        let mut says = |ms: u64, leap: u64| clock.now_ms(0, BEGIN + ms + leap, at(ms)) - BEGIN;
        for ms in [1_000, 300_000, 600_000] {
            assert_eq!(says(ms, YEARS), ms, "an accident");
        }
        assert_eq!(says(600_500, 0), 600_500, "it was set right again");
        for ms in [700_000, 1_299_000] {
            assert_eq!(says(ms, YEARS), ms);
        }
        assert_eq!(says(1_300_000, YEARS), 1_300_000 + YEARS, "it stands");
        assert_eq!(says(1_301_000, 0), 1_301_000 + YEARS, "what was believed goes on");
    }
}
