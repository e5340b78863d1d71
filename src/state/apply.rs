//! Applying commands: the one place where the replicated state changes.

use super::{Envelope, Rejected, Response, State};

impl State {
    /// Applies a command. A refused command changes nothing but `index` and `now_ms`.
    pub fn apply(&mut self, envelope: &Envelope) -> Result<Response, Rejected> {
        self.index += 1;
        self.now_ms = self.now_ms.max(envelope.stamp_ms);
        Ok(Response::Done)
    }
}
