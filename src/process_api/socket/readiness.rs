//! Waiting for the sockets in a tokio loop. The only place here that knows tokio.

use std::os::fd::{AsFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

use super::Sockets;

/// Wakes the supervision loop when [`Sockets::poll`] has something to do. Made once, beside the `Sockets`.
///
/// ```no_run
/// # use bigbrother::process_api::{Readiness, Sockets};
/// # async fn watch(mut sockets: Sockets) -> std::io::Result<()> {
/// let readiness = Readiness::of(&sockets)?;
/// let mut events = Vec::new();
/// loop {
///     let mut guard = readiness.readable().await?;
///     if !sockets.poll(&mut events) {
///         guard.clear_ready(); // nothing is left: sleep until the next message
///     }
///     for event in events.drain(..) { /* ... */ }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Readiness(AsyncFd<OwnedFd>);

impl Readiness {
    /// To be called inside the runtime that will wait.
    pub fn of(sockets: &Sockets) -> std::io::Result<Self> {
        let copy = sockets.as_fd().try_clone_to_owned()?;
        // SAFETY: the AsyncFd owns the descriptor, nobody else has its number, and nothing here gives out
        // mutable access to it, so it stays open and the same until the AsyncFd is dropped.
        let registered = unsafe { AsyncFd::register_with_interest(copy, Interest::READABLE) };
        Ok(Readiness(registered?))
    }

    /// Waits until something can be read. Clear the guard only after [`Sockets::poll`] said that nothing is left.
    pub async fn readable(&self) -> std::io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.0.readable().await
    }
}
