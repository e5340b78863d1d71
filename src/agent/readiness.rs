//! Waiting for a descriptor in the supervision loop.
//!
//! Owns a duplicate of the descriptor and its registration with the runtime; the reading is done by others
//! on the original, with calls that do not block.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::task::{Context, Poll, Waker};

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

/// A registered descriptor.
pub struct Readiness {
    registered: AsyncFd<OwnedFd>,
}

impl Readiness {
    /// Registers a duplicate of the descriptor, for reading. Must be called within the runtime.
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Readiness::register(fd, Interest::READABLE)
    }

    /// The same for sending: whoever sends has no use for being woken each time that the other side reads.
    pub fn of_room(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Readiness::register(fd, Interest::WRITABLE)
    }

    fn register(fd: BorrowedFd<'_>, interest: Interest) -> io::Result<Self> {
        let own = fd.try_clone_to_owned()?;
        // SAFETY: an OwnedFd gives the same open descriptor for as long as it lives, and it lives as long as
        // the registration, which owns it.
        let registered =
            unsafe { AsyncFd::register_with_interest(own, interest) }.map_err(io::Error::from)?;
        Ok(Readiness { registered })
    }

    /// Waits until there may be something to read. Takes nothing: until [`Round::empty`] it stays ready.
    pub async fn readable(&self) -> io::Result<()> {
        self.registered.readable().await?.retain_ready();
        Ok(())
    }

    /// Waits until something can be sent.
    pub async fn writable(&self) -> io::Result<()> {
        self.registered.writable().await?.clear_ready();
        Ok(())
    }

    /// Begins to read. What arrives after this is not forgotten by [`Round::empty`].
    pub fn begin(&self) -> Round<'_> {
        let mut context = Context::from_waker(Waker::noop());
        match self.registered.poll_read_ready(&mut context) {
            Poll::Ready(Ok(guard)) => Round(Some(guard)),
            _ => Round(None),
        }
    }
}

/// One round of reading.
pub struct Round<'a>(Option<AsyncFdReadyGuard<'a, OwnedFd>>);

impl Round<'_> {
    /// Nothing was left to read.
    pub fn empty(self) {
        if let Some(mut guard) = self.0 {
            guard.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    #[tokio::test]
    async fn it_stays_ready_until_a_round_found_nothing_and_wakes_for_what_comes_later() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let readiness = Readiness::new(far.as_fd()).unwrap();
        near.write_all(b"x").unwrap();
        let soon = Duration::from_secs(5);
        tokio::time::timeout(soon, readiness.readable()).await.unwrap().unwrap();
        tokio::time::timeout(soon, readiness.readable()).await.unwrap().unwrap();
        readiness.begin().empty();
        let short = Duration::from_millis(50);
        assert!(tokio::time::timeout(short, readiness.readable()).await.is_err());
        near.write_all(b"y").unwrap();
        tokio::time::timeout(soon, readiness.readable()).await.unwrap().unwrap();
    }
}
