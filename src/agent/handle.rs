//! What the API may ask of the agent.
//!
//! Owns nothing: it is the sending end of bounded channels into the supervision loop, and the way to the replicated state.
//! Cheap to clone; called by `http` and by `dev`. A full queue is [`AskError::Busy`], never a wait.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::ring::Ring;
use crate::cluster::node::ProposeError;
use crate::http::Audit;
use crate::http::view::{EventView, InstanceView, KeeperView, PlayersView};
use crate::metrics::{Metrics, Outcome};
use crate::spec::{HostName, InstanceId};
use crate::state::{Command, Rejected, Response, State};

/// The sending ends; see the module.
#[derive(Clone)]
pub struct Handle {
    /// This host's name.
    pub host: HostName,
    /// The cluster's name.
    pub cluster: String,
    /// When the agent started, RFC 3339.
    pub started_at: String,
    /// Log files: `<logs>/<instance>/stdout.log`, `stderr.log`, older ones with `.1`, `.2` …
    pub logs: PathBuf,
    /// Into the supervision loop.
    pub requests: mpsc::Sender<HostRequest>,
    /// This host's place in the cluster.
    pub ring: Ring,
    /// The newest applied state.
    pub state: watch::Receiver<Arc<State>>,
    /// Events of this host as they happen; a receiver that lags loses the oldest.
    pub events: broadcast::Sender<Arc<EventView>>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The audit trail.
    pub audit: Audit,
}

/// A question to the supervision loop.
pub enum HostRequest {
    /// All instances of this host as they are now.
    Snapshot(oneshot::Sender<Arc<HostSnapshot>>),
    /// The last events, oldest first: of one instance (up to 50) or of all (up to 1,000).
    Events(Option<InstanceId>, oneshot::Sender<Vec<EventView>>),
    /// Replace the runs of these instances by new ones (cause `operator`).
    Restart(Vec<InstanceId>, oneshot::Sender<()>),
    /// Write an event of kind `announce` for the instance: what is about to be done to it by hand.
    Announce(InstanceId, String, oneshot::Sender<()>),
    /// Who plays on the instance's run; `None`: none runs here.
    Players(InstanceId, oneshot::Sender<Option<PlayersView>>),
    /// The newest hang report of the instance, as text.
    HangReport(InstanceId, oneshot::Sender<Option<String>>),
    /// Re-read the file (also on SIGHUP); the answer is what came of it, in words.
    Reload(oneshot::Sender<Result<String, String>>),
}

/// What the supervision loop knows at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct HostSnapshot {
    /// Every instance placed on or still running on this host, in order.
    pub instances: Vec<InstanceView>,
    /// The keeper, if connected.
    pub keeper: Option<KeeperView>,
    /// Runs whose successor is ordered ahead.
    pub successors: usize,
    /// The file's processes and the cluster's differ.
    pub spec_drift: Option<String>,
}

/// A command on its way into the replicated state.
pub struct Proposal {
    /// What to apply.
    pub command: Command,
    /// What came of it.
    pub reply: oneshot::Sender<Result<Response, ProposeError>>,
}

/// A question that got no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The queue is full.
    #[error("the agent is busy; try again")]
    Busy,
    /// The agent is ending.
    #[error("the agent is stopping")]
    Stopping,
    /// Whoever asks may not.
    #[error("its `launch` does not list that process")]
    NotAllowed,
    /// The state refused the command.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The cluster did not take it in time, or cannot.
    #[error(transparent)]
    Unanswered(ProposeError),
}

impl<T> From<mpsc::error::TrySendError<T>> for AskError {
    fn from(error: mpsc::error::TrySendError<T>) -> Self {
        match error {
            mpsc::error::TrySendError::Full(_) => AskError::Busy,
            mpsc::error::TrySendError::Closed(_) => AskError::Stopping,
        }
    }
}

#[cfg(test)]
impl Handle {
    /// That of a host alone, whose proposals and states are the test's.
    pub(crate) fn of_test(proposals: mpsc::Sender<Proposal>, state: watch::Receiver<Arc<State>>) -> Handle {
        let host: HostName = "alpha".parse().unwrap();
        Handle {
            host: host.clone(),
            cluster: String::new(),
            started_at: String::new(),
            logs: PathBuf::new(),
            requests: mpsc::channel(1).0,
            ring: Ring::Alone(super::ring::Alone::to(proposals, host)),
            state,
            events: broadcast::channel(1).0,
            metrics: Arc::default(),
            audit: Audit::open(PathBuf::new(), Arc::default()).0,
        }
    }
}

impl Handle {
    /// All instances of this host as they are now.
    pub async fn snapshot(&self) -> Result<Arc<HostSnapshot>, AskError> {
        self.ask(HostRequest::Snapshot).await
    }

    /// Puts a question to the supervision loop: `handle.ask(|reply| HostRequest::Restart(ids, reply))`.
    pub async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>) -> HostRequest,
    ) -> Result<T, AskError> {
        let (reply, answer) = oneshot::channel();
        self.requests.try_send(question(reply))?;
        answer.await.map_err(|_| AskError::Stopping)
    }

    /// Applies a command to the replicated state.
    pub async fn propose(&self, command: Command) -> Result<Response, AskError> {
        let answered = self.ring.propose(command).await;
        self.metrics.proposed(match &answered {
            Ok(_) => Outcome::Applied,
            Err(AskError::Rejected(_)) => Outcome::Refused,
            Err(_) => Outcome::Unanswered,
        });
        answered
    }
}
