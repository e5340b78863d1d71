//! A timer of the kernel that is only set when it would ring too late: a deadline that keeps moving away costs no system
//! call.
//!
//! Owns a timerfd. Rings to the nanosecond, and never too late; it may ring for a deadline that has moved away meanwhile.
//! Called by the keeper's loop and by the supervision loop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// See the module.
pub struct Alarm {
    timer: TimerFd,
    /// When the timer rings; `None`: not set.
    rings_ns: Option<u64>,
}

impl Alarm {
    /// One that is not set. Its descriptor can be read when it has rung.
    pub fn new(clock: ClockId) -> io::Result<Self> {
        let timer = TimerFd::new(clock, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        Ok(Alarm { timer, rings_ns: None })
    }

    /// Rings at this time of its clock or earlier.
    pub fn ring_at(&mut self, at_ns: u64) -> io::Result<()> {
        if self.rings_ns.is_some_and(|rings| rings <= at_ns) {
            return Ok(());
        }
        // Zero would unset it.
        let expiration = Expiration::OneShot(Duration::from_nanos(at_ns.max(1)).into());
        self.timer.set(expiration, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
        self.rings_ns = Some(at_ns);
        Ok(())
    }

    /// It has rung, and is to be set anew.
    pub fn rang(&mut self) {
        let mut count = [0_u8; 8];
        let _ = nix::unistd::read(&self.timer, &mut count);
        self.rings_ns = None;
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}
