//! Word that an answer has gone out, for whoever must not end before.
//!
//! Owns nothing but who waits. It goes down with a request to whoever answers it, and stays with whoever writes the
//! answer, here or in `http`. Where nobody waits it costs next to nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// See the module. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Outlet(Arc<Mutex<Option<oneshot::Sender<()>>>>);

impl Outlet {
    /// Ends, one way or the other, when what is answered next has been written, or never will be. Whoever waited here
    /// before waits no more.
    pub fn written(&self) -> oneshot::Receiver<()> {
        let (out, written) = oneshot::channel();
        *self.waiting() = Some(out);
        written
    }

    /// Somebody waits.
    pub fn is_awaited(&self) -> bool {
        self.waiting().is_some()
    }

    /// It has been written.
    pub fn out(&self) {
        self.waiting().take();
    }

    fn waiting(&self) -> MutexGuard<'_, Option<oneshot::Sender<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
