//! How often something may be done: so much at once, and from then on so much a second, for each who does it.
//!
//! Owns one moment for each of them, at most [`MAX_KEPT`]: up to when what was done is paid for (the generic cell rate
//! algorithm). Pure but for the lock: the moment is an argument. Called by `auth` and `audit`.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
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
        // Nothing that is done under the lock can leave it half done.
        let mut kept = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        let until = kept.get(who).copied().unwrap_or(now).max(now);
        if until - now > self.every * self.at_once.saturating_sub(1) {
            return false;
        }
        if kept.len() >= MAX_KEPT && !kept.contains_key(who) {
            kept.retain(|_, until| *until > now);
            if kept.len() >= MAX_KEPT {
                return false;
            }
        }
        kept.insert(who.clone(), until + self.every);
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
    fn as_many_as_are_kept_make_room_when_their_time_is_over() {
        let pace = Pace::new(1, 1);
        let now = Instant::now();
        assert!((0..MAX_KEPT).all(|who| pace.allows(&who, now)));
        assert!(!pace.allows(&MAX_KEPT, now));
        assert!(pace.allows(&MAX_KEPT, now + Duration::from_secs(2)));
        assert_eq!(pace.paid_until.lock().unwrap().len(), 1);
    }
}
