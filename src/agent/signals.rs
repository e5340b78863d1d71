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

    /// Until one of those that end the agent comes. One that asks for a reload waits.
    pub async fn end(&mut self) {
        ended(&mut self.terminate, &mut self.interrupt).await;
    }

    /// The next one.
    pub async fn next(&mut self) -> Told {
        tokio::select! {
            () = ended(&mut self.terminate, &mut self.interrupt) => Told::End,
            _ = self.reload.recv() => Told::Reload,
        }
    }
}

/// Whoever ends an agent by hand for the first time takes the games for ended, too.
async fn ended(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!(
        "this agent ends; the games go on, and the next agent takes them over (`bigbrother stop --all` ends them, while an \
         agent runs)"
    );
}
