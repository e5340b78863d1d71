//! The loop's own clock: wakes it at its next deadline, to the nanosecond. The runtime's timers count in milliseconds, and
//! each of them costs several wakes.
//!
//! Owns the alarm and its registration with the runtime. Called by [`super::wake`].

use std::io;
use std::os::fd::AsFd;

use nix::sys::timerfd::ClockId;

use super::moment;
use crate::agent::readiness::Readiness;
use crate::alarm::Alarm;
use crate::host::Moment;

/// See the module.
pub(super) struct Bell {
    alarm: Alarm,
    readiness: Readiness,
}

impl Bell {
    /// One that does not ring yet. Must be called within the runtime.
    pub(super) fn new() -> io::Result<Self> {
        // That of `moment`.
        let alarm = Alarm::new(ClockId::CLOCK_MONOTONIC)?;
        let readiness = Readiness::new(alarm.as_fd())?;
        Ok(Bell { alarm, readiness })
    }

    /// Waits until this moment, or an earlier one for which it was set and that nobody waited for to the end. Also where
    /// that is over the runtime gets its turn: else it would not hear the descriptors for as long as something is due.
    pub(super) async fn rings(&mut self, at: Moment) {
        if at <= moment() {
            return tokio::task::yield_now().await;
        }
        if self.alarm.ring_at(at.0).is_err() || self.readiness.readable().await.is_err() {
            return tokio::time::sleep(at.since(moment())).await;
        }
        self.readiness.begin().empty();
        self.alarm.rang();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn waited(bell: &mut Bell, at: Moment) -> Moment {
        let rings = bell.rings(at);
        tokio::time::timeout(Duration::from_secs(20), rings).await.expect("it rings");
        moment()
    }

    #[tokio::test]
    async fn it_rings_in_time_for_each_deadline_and_never_before() {
        let mut bell = Bell::new().unwrap();
        for micros in [0, 1, 300, 1_700, 30_000, 300] {
            let at = moment().after(Duration::from_micros(micros));
            assert!(waited(&mut bell, at).await >= at, "{micros}");
        }
    }

    #[tokio::test]
    async fn what_is_overdue_keeps_nobody_from_being_heard() {
        let mut bell = Bell::new().unwrap();
        let (mut near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let readiness = Readiness::new(far.as_fd()).unwrap();
        std::io::Write::write_all(&mut near, b"x").unwrap();
        for _ in 0..10_000 {
            tokio::select! {
                biased;
                heard = readiness.readable() => return heard.unwrap(),
                () = bell.rings(Moment(0)) => {}
            }
        }
        panic!("the runtime was not asked who has something to say");
    }

    #[tokio::test]
    async fn an_earlier_deadline_counts_and_a_later_one_after_it_has_rung_for_that() {
        let mut bell = Bell::new().unwrap();
        let start = moment();
        let [soon, late] = [20, 40_000].map(|millis| start.after(Duration::from_millis(millis)));
        let given_up = tokio::time::timeout(Duration::from_millis(1), bell.rings(late)).await;
        assert!(given_up.is_err());
        let rang = waited(&mut bell, soon).await;
        assert!(rang >= soon && rang < late, "{rang:?}");
        // It was set for a deadline that has moved away: that ring comes, and the next one is right.
        let [soon, later] = [20, 60].map(|millis| moment().after(Duration::from_millis(millis)));
        assert!(tokio::time::timeout(Duration::from_millis(1), bell.rings(soon)).await.is_err());
        assert!(waited(&mut bell, later).await >= soon);
        assert!(waited(&mut bell, later).await >= later);
    }
}
