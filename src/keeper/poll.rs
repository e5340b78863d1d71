//! What the loop waits for: descriptors by source, an alarm, and the end of its patience.
//!
//! Owns the epoll descriptor and the alarm, which goes by CLOCK_BOOTTIME: a deadline that passes while the machine sleeps is
//! seen when it wakes. All that is less strict waits by epoll's own time-out, which costs no system call. Called by the
//! loop only.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::ClockId;

use super::protocol::RunId;
use crate::alarm::Alarm;

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
    alarm: Alarm,
    /// The kernel waits by milliseconds.
    coarse: bool,
}

impl Poll {
    /// With nothing to wait for but the alarm.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let poll = Poll { epoll, alarm: Alarm::new(ClockId::CLOCK_BOOTTIME)?, coarse: false };
        poll.add(&poll.alarm, Source::Alarm, EpollFlags::EPOLLIN)?;
        Ok(poll)
    }

    /// Begins to watch.
    pub fn add(&self, fd: impl AsFd, source: Source, events: EpollFlags) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(events, source.word()))?)
    }

    /// Watches for other events. For none at all it is not watched: epoll tells of a hang-up whatever is asked
    /// for, and again and again.
    pub fn change(&self, fd: impl AsFd, source: Source, events: EpollFlags) {
        if events.is_empty() {
            self.remove(fd);
        } else if let Err(Errno::ENOENT) = self.epoll.modify(&fd, &mut EpollEvent::new(events, source.word()))
        {
            let _ = self.add(fd, source, events);
        }
    }

    /// No longer watches; nothing happens if it did not.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = self.epoll.delete(fd);
    }

    /// Waits until something happens, and gives the sources; for so long at most.
    pub fn wait(&mut self, into: &mut Vec<Source>, most: Option<Duration>) -> io::Result<()> {
        into.clear();
        let mut events = [EpollEvent::empty(); 256];
        match self.wait_for(&mut events, most) {
            Ok(count) => into.extend(events[..count].iter().filter_map(|e| Source::of_word(e.data()))),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }

    /// To the nanosecond where the kernel can (Linux 5.11), else to the millisecond, and never too early.
    fn wait_for(&mut self, events: &mut [EpollEvent], most: Option<Duration>) -> Result<usize, Errno> {
        if !self.coarse {
            let most = most.map(TimeSpec::from);
            let until = most.as_ref().map_or(ptr::null(), |most| ptr::from_ref(most.as_ref()));
            let (epoll, room) = (self.epoll.0.as_raw_fd(), events.len());
            let no_signals = ptr::null::<libc::sigset_t>();
            // SAFETY: there is room for so many events, which are the kernel's own structure; the time is read only.
            let count = unsafe {
                libc::syscall(libc::SYS_epoll_pwait2, epoll, events.as_mut_ptr(), room, until, no_signals, 0)
            };
            match Errno::result(count) {
                // Containers forbid what they do not know.
                Err(Errno::ENOSYS | Errno::EPERM) => self.coarse = true,
                waited => return waited.map(|count| count as usize),
            }
        }
        let millis = |most: Duration| most.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(i32::MAX);
        let most = most.map_or(EpollTimeout::NONE, |most| {
            EpollTimeout::try_from(millis(most)).unwrap_or(EpollTimeout::MAX)
        });
        self.epoll.wait(events, most)
    }

    /// Rings at this time of CLOCK_BOOTTIME or earlier; `None`: need not ring.
    pub fn ring_at(&mut self, at_ns: Option<u64>) -> io::Result<()> {
        at_ns.map_or(Ok(()), |at_ns| self.alarm.ring_at(at_ns))
    }

    /// The alarm has rung.
    pub fn rang(&mut self) {
        self.alarm.rang();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

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
    fn what_is_watched_for_nothing_is_not_told_as_hung_up() {
        let mut poll = Poll::new().unwrap();
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        poll.add(&ours, Source::Agent, EpollFlags::EPOLLIN).unwrap();
        poll.change(&ours, Source::Agent, EpollFlags::empty());
        drop(theirs);
        poll.ring_at(Some(1)).unwrap();
        let mut sources = Vec::new();
        poll.wait(&mut sources, None).unwrap();
        assert_eq!(sources, [Source::Alarm]);
        poll.rang();
        poll.change(&ours, Source::Agent, EpollFlags::EPOLLIN);
        poll.wait(&mut sources, None).unwrap();
        assert_eq!(sources, [Source::Agent]);
    }

    #[test]
    fn its_patience_ends_in_time_and_not_before() {
        for coarse in [false, true] {
            let mut poll = Poll::new().unwrap();
            poll.coarse = coarse;
            let mut sources = vec![Source::Agent];
            for nanos in [0, 1, 300_000, 1_700_000, 30_000_000] {
                let (start, most) = (Instant::now(), Duration::from_nanos(nanos));
                poll.wait(&mut sources, Some(most)).unwrap();
                let waited = start.elapsed();
                assert!(sources.is_empty());
                assert!(waited >= most && waited < Duration::from_secs(20), "{waited:?} of {most:?}");
            }
            poll.ring_at(Some(1)).unwrap();
            poll.wait(&mut sources, Some(Duration::from_secs(60))).unwrap();
            assert_eq!(sources, [Source::Alarm], "coarse: {coarse}");
        }
    }

    #[test]
    fn the_alarm_rings_at_the_earliest_time_asked_for() {
        let mut poll = Poll::new().unwrap();
        let start = crate::keeper::process::boottime_ns();
        poll.ring_at(Some(start + 60_000_000_000)).unwrap();
        poll.ring_at(Some(start + 5_000_000)).unwrap();
        poll.ring_at(Some(start + 90_000_000_000)).unwrap();
        let mut sources = Vec::new();
        poll.wait(&mut sources, None).unwrap();
        assert_eq!(sources, [Source::Alarm]);
        let waited = crate::keeper::process::boottime_ns() - start;
        assert!((5_000_000..30_000_000_000).contains(&waited), "rang after {waited} ns");
    }
}
