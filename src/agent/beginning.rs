//! How an agent comes into force: what must be known before anything is started or stopped.
//!
//! ```text
//! keeper met ▶ join ▶ inventory ▶ file's processes ▶ a plan that knows of this life ▶ all on disk ▶ the gate opens
//! ```
//!
//! Owns this order, and the one way around it: a host that cannot join within `host_timeout`, because there is
//! no quorum, starts from its own copy what it ran before, and joins when it can. What is exclusive waits for a
//! confirm in any case. One that hears meanwhile that it is no peer any more ends, to begin as another one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::handle::{AskError, Handle};
use super::planner;
use super::reload::Reloader;
use super::reporter::{Report, Reporter};
use crate::config::Config;
use crate::plan::Liveness;
use crate::state::HostFacts;
use crate::systemd::Systemd;

/// What an agent that has met its keeper waits for.
pub(super) const JOINS: &str = "it joins the cluster";
/// Between two attempts to join.
const AGAIN: Duration = Duration::from_millis(200);
/// How long the file's processes are tried beside a cluster that lost its quorum just after the join.
const FILE_AGAIN: Duration = Duration::from_secs(2);

/// Why an agent does not come into force.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// Joining or planning.
    #[error("cannot join: {0}")]
    Join(#[from] AskError),
    /// Nothing is lost by another start, which gives it another number; a service manager sees to it.
    #[error(
        "this host was removed from the peers, or replaced, while it was away: start the agent again, it comes back as a \
         new peer, with the state of the others; the games go on"
    )]
    Removed,
    /// Whoever was to act behind the gate is gone.
    #[error("the supervision thread ended")]
    Supervision,
}

/// What the beginning is made of.
pub struct Beginning<'a> {
    /// To the replicated state.
    pub handle: &'a Handle,
    /// What this host says of itself.
    pub facts: HostFacts,
    /// The supervision loop's reports.
    pub reports: &'a mut mpsc::Receiver<Report>,
    /// For people who ask meanwhile.
    pub starting: &'a watch::Sender<Option<String>>,
    /// Opened when the supervision loop may act.
    pub gate: oneshot::Sender<()>,
}

impl Beginning<'_> {
    /// Goes through all steps. A host alone plans for itself; in a cluster the primary does.
    pub async fn run(
        self,
        mut reporter: Reporter,
        reloader: &Reloader,
        config: &Config,
        alone: Option<(&watch::Receiver<Arc<Liveness>>, &watch::Sender<planner::Unplaced>)>,
    ) -> Result<Reporter, BeginError> {
        let Beginning { handle, facts, reports, starting, gate } = self;
        let mut gate = Gate { closed: Some(gate), starting, systemd: Systemd::from_environment() };
        let patience = handle.state.borrow().settings.host_timeout;
        join(handle, &mut reporter, &facts, &mut gate, patience).await?;
        gate.say("it compares what is wanted with what runs".to_owned());
        {
            let file = async {
                // The first plan must know what runs.
                reporter.catch_up(reports).await;
                while let Err(error) = reloader.begin(config).await {
                    let (AskError::Unanswered(_) | AskError::Busy) = error else { return Err(error) };
                    tracing::warn!(%error, "the file's processes are not compared with the cluster's yet");
                    tokio::time::sleep(FILE_AGAIN).await;
                }
                Ok(())
            };
            let mut file = std::pin::pin!(file);
            match tokio::time::timeout(patience, &mut file).await {
                Ok(done) => done?,
                // The quorum was lost again, just after the join.
                Err(_) => {
                    gate.open()?;
                    file.await?;
                }
            }
        }
        match alone {
            Some((liveness, unplaced)) => planner::settle_once(handle, liveness, unplaced).await,
            None => await_plan(handle, reporter.incarnation(), patience).await,
        }
        gate.say("it saves what is to run".to_owned());
        handle.ring.begun().await;
        gate.open()?;
        reloader.begun(config).await;
        Ok(reporter)
    }
}

/// Until this host has joined, or never will in this life.
async fn join(
    handle: &Handle,
    reporter: &mut Reporter,
    facts: &HostFacts,
    gate: &mut Gate<'_>,
    patience: Duration,
) -> Result<(), BeginError> {
    let began = Instant::now();
    let mut unsettled = handle.ring.unsettled();
    loop {
        match gate.telling(reporter.join(facts.clone()), &mut unsettled).await {
            Ok(()) => return Ok(()),
            Err(AskError::Unanswered(_)) if is_removed(handle) => return Err(BeginError::Removed),
            Err(AskError::Unanswered(error)) => {
                // What keeps it from the cluster says more than that nobody took the join.
                if unsettled.borrow().is_none() {
                    gate.say(format!("it cannot join: {error}"));
                }
                if began.elapsed() >= patience && gate.open()? {
                    tracing::warn!(
                        "no quorum for {patience:?}: what this host ran before is started from its own copy"
                    );
                }
                tokio::time::sleep(AGAIN).await;
            }
            Err(AskError::Busy) => tokio::time::sleep(AGAIN).await,
            Err(error) => return Err(error.into()),
        }
    }
}

fn is_removed(handle: &Handle) -> bool {
    handle.ring.standing().is_some_and(|standing| standing.removed)
}

/// Until a plan knows of this life of the host, or for as long as that may take.
async fn await_plan(handle: &Handle, incarnation: u64, patience: Duration) {
    let mut states = handle.state.clone();
    let planned = states.wait_for(|state| {
        let own = state.hosts.get(&handle.host);
        own.is_some_and(|host| host.planned && host.incarnation == incarnation)
    });
    if tokio::time::timeout(patience, planned).await.is_err() {
        tracing::warn!("no plan was made for this host yet: it goes on with what it ran before");
    }
}

/// Opens once; from then on the agent is in force.
struct Gate<'a> {
    closed: Option<oneshot::Sender<()>>,
    starting: &'a watch::Sender<Option<String>>,
    systemd: Systemd,
}

impl Gate<'_> {
    /// For people who ask, as long as the agent is not in force.
    fn say(&self, waits: String) {
        if self.closed.is_some() {
            self.starting.send_replace(Some(waits));
        }
    }

    /// Does the work, and says meanwhile what keeps this host from the cluster.
    async fn telling<T>(
        &self,
        work: impl Future<Output = T>,
        unsettled: &mut watch::Receiver<Option<String>>,
    ) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            if let Some(why) = unsettled.borrow_and_update().clone() {
                self.say(format!("{JOINS}: {why}"));
            }
            tokio::select! {
                done = &mut work => return done,
                changed = unsettled.changed() => if changed.is_err() {
                    return work.await;
                }
            }
            // Nothing keeps it any more, so what did is not said any longer.
            if unsettled.borrow().is_none() {
                self.say(JOINS.to_owned());
            }
        }
    }

    /// True when it was closed. The loop that waits behind it ends only with the agent; if it is gone, nothing is in force.
    fn open(&mut self) -> Result<bool, BeginError> {
        let Some(gate) = self.closed.take() else { return Ok(false) };
        gate.send(()).map_err(|()| BeginError::Supervision)?;
        self.starting.send_replace(None);
        self.systemd.tell("READY=1");
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn a_gate_without_a_supervision_behind_it_does_not_open() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, starting) =
            (folder.path().join("notify"), watch::channel(Some("it joins".to_owned())).0);
        let told = UnixDatagram::bind(&socket).unwrap();
        told.set_nonblocking(true).unwrap();
        let mut said = [0; 16];
        let open = |keep: bool| {
            let (gate, behind) = oneshot::channel();
            let _behind = keep.then_some(behind);
            Gate { closed: Some(gate), starting: &starting, systemd: Systemd::at(&socket) }.open()
        };
        assert!(matches!(open(false), Err(BeginError::Supervision)));
        assert!(told.recv(&mut said).is_err(), "systemd is told nothing");
        assert!(starting.borrow().is_some(), "nor whoever asks");
        assert!(matches!(open(true), Ok(true)));
        assert_eq!(told.recv(&mut said).map(|length| said[..length].to_vec()).unwrap(), b"READY=1");
        assert!(starting.borrow().is_none());
    }
}
