//! How often something may be done: so much at once, and from then on so much a second, for each who does it.
//!
//! Owns one moment for each of them, at most [`MAX_KEPT`]: up to when what was done is paid for (the generic cell rate
//! algorithm). Pure but for the lock: the moment is an argument. Called by `auth` and `audit`.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Those who did something of late.
const MAX_KEPT: usize = 10_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Pace<K> {
    every: Duration,
    at_once: u32,
    paid_until: Mutex<BTreeMap<K, Instant>>,
}

impl<K: Ord + Clone> Pace<K> {
    /// `at_once`, and then `a_second`.
    pub(super) fn new(at_once: u32, a_second: u32) -> Self {
        Pace { every: Duration::from_secs(1) / a_second.max(1), at_once, paid_until: Mutex::default() }
    }

    /// True when it may be done once more; then it counts as done.
    pub(super) fn allows(&self, who: &K, now: Instant) -> bool {
        let mut kept = self.kept();
        let until = kept.get(who).copied().unwrap_or(now).max(now);
        !self.is_much(until, now) && self.pay(&mut kept, who, until + self.every, now)
    }

    /// True when so much was done that nothing may be for now.
    pub(super) fn owes(&self, who: &K, now: Instant) -> bool {
        self.kept().get(who).is_some_and(|until| self.is_much(*until, now))
    }

    /// It was done so often: how much it would be, was not known before.
    pub(super) fn charge(&self, who: &K, times: u32, now: Instant) {
        let mut kept = self.kept();
        let until = kept.get(who).copied().unwrap_or(now).max(now);
        self.pay(&mut kept, who, until + self.every.saturating_mul(times), now);
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<K, Instant>> {
        // Nothing that is done under the lock can leave it half done.
        self.paid_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_much(&self, until: Instant, now: Instant) -> bool {
        until.saturating_duration_since(now) > self.every * self.at_once.saturating_sub(1)
    }

    /// False: too many are kept already.
    fn pay(&self, kept: &mut BTreeMap<K, Instant>, who: &K, until: Instant, now: Instant) -> bool {
        if kept.len() >= MAX_KEPT && !kept.contains_key(who) {
            kept.retain(|_, until| *until > now);
            if kept.len() >= MAX_KEPT {
                return false;
            }
        }
        kept.insert(who.clone(), until);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_much_at_once_and_then_so_much_a_second_for_each() {
        let pace = Pace::new(5, 10);
        let now = Instant::now();
        let allowed = |who: u32, at: Duration| (0..100).filter(|_| pace.allows(&who, now + at)).count();
        assert_eq!(allowed(1, Duration::ZERO), 5);
        assert_eq!(allowed(2, Duration::ZERO), 5, "another one has its own");
        assert_eq!(allowed(1, Duration::from_millis(99)), 0);
        assert_eq!(allowed(1, Duration::from_millis(300)), 3);
        assert_eq!(allowed(1, Duration::from_secs(60)), 5, "nothing is saved up beyond that");
    }

    #[test]
    fn what_was_done_in_plenty_is_paid_for_before_anything_more() {
        let pace = Pace::new(5, 10);
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        assert!(!pace.owes(&1, now));
        pace.charge(&1, 4, now);
        assert!(!pace.owes(&1, now), "a little is left");
        pace.charge(&1, 20, now);
        assert!(pace.owes(&1, now) && !pace.owes(&2, now));
        assert!(pace.owes(&1, now + 19 * second / 10) && !pace.owes(&1, now + 2 * second));
    }

    #[test]
    fn as_many_as_are_kept_make_room_when_their_time_is_over() {
        let pace = Pace::new(1, 1);
        let now = Instant::now();
        assert!((0..MAX_KEPT).all(|who| pace.allows(&who, now)));
        assert!(!pace.allows(&MAX_KEPT, now));
        assert!(pace.allows(&MAX_KEPT, now + Duration::from_secs(2)));
        assert_eq!(pace.paid_until.lock().unwrap().len(), 1);
    }
}
