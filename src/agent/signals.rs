//! The signals by which an agent is told to end, or to read its file again.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What the agent is told by a signal.
pub enum Told {
    /// To end.
    End,
    /// To read its file again.
    Reload,
}

/// Those that are listened for.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
}

impl Signals {
    /// Listens from now on.
    pub fn new() -> std::io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            reload: signal(SignalKind::hangup())?,
        })
    }

    /// Until one of those that end the agent comes.
    pub async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        farewell();
    }

    /// The next one.
    pub async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.reload.recv() => return Told::Reload,
        }
        farewell();
        Told::End
    }
}

/// Whoever ends an agent by hand for the first time takes the games for ended, too.
fn farewell() {
    tracing::info!(
        "this agent ends; the games go on, and the next agent takes them over (`bigbrother stop --all` ends them, while an \
         agent runs)"
    );
}
