//! What the loop waits for: descriptors by source, and one alarm.
//!
//! Owns the epoll descriptor and a timer on CLOCK_BOOTTIME, so that a deadline that passes while the
//! machine sleeps is seen when it wakes. Called by the loop only.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::protocol::RunId;

/// Who has something for the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// signalfd.
    Signals,
    /// The listener of keeper.sock.
    Listener,
    /// The agent's connection.
    Agent,
    /// The alarm.
    Alarm,
    /// The log copier.
    Logs,
    /// The main process of a run that is not our child.
    Process(RunId),
    /// The cgroup of a run whose main process has ended.
    Cgroup(RunId),
    /// The notify socket of the instance with this number.
    Notify(u64),
}

const NUMBER: u64 = (1 << 56) - 1;

impl Source {
    /// The word that epoll keeps: the kind in the top byte.
    fn word(self) -> u64 {
        let (kind, number) = match self {
            Source::Signals => (1, 0),
            Source::Listener => (2, 0),
            Source::Agent => (3, 0),
            Source::Alarm => (4, 0),
            Source::Logs => (5, 0),
            Source::Process(run) => (6, run.0),
            Source::Cgroup(run) => (8, run.0),
            Source::Notify(number) => (9, number),
        };
        (kind << 56) | (number & NUMBER)
    }

    fn of_word(word: u64) -> Option<Source> {
        let number = word & NUMBER;
        Some(match word >> 56 {
            1 => Source::Signals,
            2 => Source::Listener,
            3 => Source::Agent,
            4 => Source::Alarm,
            5 => Source::Logs,
            6 => Source::Process(RunId(number)),
            8 => Source::Cgroup(RunId(number)),
            9 => Source::Notify(number),
            _ => return None,
        })
    }
}

/// epoll and the alarm.
pub struct Poll {
    epoll: Epoll,
    timer: TimerFd,
    /// When the timer rings; `None`: not set.
    rings_ns: Option<u64>,
}

impl Poll {
    /// With nothing to wait for but the alarm.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer =
            TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        let poll = Poll { epoll, timer, rings_ns: None };
        poll.add(&poll.timer, Source::Alarm, EpollFlags::EPOLLIN)?;
        Ok(poll)
    }

    /// Begins to watch.
    pub fn add(&self, fd: impl AsFd, source: Source, events: EpollFlags) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(events, source.word()))?)
    }

    /// Watches for other events.
    pub fn change(&self, fd: impl AsFd, source: Source, events: EpollFlags) {
        let _ = self.epoll.modify(fd, &mut EpollEvent::new(events, source.word()));
    }

    /// No longer watches; nothing happens if it did not.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = self.epoll.delete(fd);
    }

    /// Waits until something happens, and gives the sources.
    pub fn wait(&self, into: &mut Vec<Source>) -> io::Result<()> {
        into.clear();
        let mut events = [EpollEvent::empty(); 256];
        match self.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => into.extend(events[..count].iter().filter_map(|e| Source::of_word(e.data()))),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }

    /// Rings at this time of CLOCK_BOOTTIME or earlier. The timer is only set when it would ring too late,
    /// so a deadline that keeps moving away costs no system call.
    pub fn ring_at(&mut self, at_ns: Option<u64>) -> io::Result<()> {
        let Some(at) = at_ns else { return Ok(()) };
        if self.rings_ns.is_some_and(|rings| rings <= at) {
            return Ok(());
        }
        // Zero would unset it.
        let expiration = Expiration::OneShot(Duration::from_nanos(at.max(1)).into());
        self.timer.set(expiration, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
        self.rings_ns = Some(at);
        Ok(())
    }

    /// The alarm has rung.
    pub fn rang(&mut self) {
        let mut count = [0_u8; 8];
        let _ = nix::unistd::read(&self.timer, &mut count);
        self.rings_ns = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_and_words_agree() {
        let run = RunId(1 << 50);
        for source in [
            Source::Signals,
            Source::Listener,
            Source::Agent,
            Source::Alarm,
            Source::Logs,
            Source::Process(run),
            Source::Cgroup(run),
            Source::Notify(7),
        ] {
            assert_eq!(Source::of_word(source.word()), Some(source));
        }
        assert_eq!(Source::of_word(0), None);
    }

    #[test]
    fn the_alarm_rings_at_the_earliest_time_asked_for() {
        let mut poll = Poll::new().unwrap();
        let start = crate::keeper::process::boottime_ns();
        poll.ring_at(Some(start + 60_000_000_000)).unwrap();
        poll.ring_at(Some(start + 5_000_000)).unwrap();
        poll.ring_at(Some(start + 90_000_000_000)).unwrap();
        let mut sources = Vec::new();
        poll.wait(&mut sources).unwrap();
        assert_eq!(sources, [Source::Alarm]);
        let waited = crate::keeper::process::boottime_ns() - start;
        assert!((5_000_000..30_000_000_000).contains(&waited), "rang after {waited} ns");
    }
}
