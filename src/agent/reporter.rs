//! Reports of this host to the replicated state: joining, events in batches, the inventory.
//!
//! Owns the incarnation and the sequence numbers. The supervision loop hands events over and never waits;
//! what does not fit the queue is made good by an inventory. When the state holds that an instance rests, its
//! last run is named to the loop, which then lets the keeper forget it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;

use super::handle::{AskError, Handle};
use crate::keeper::fault::{self, Point};
use crate::keeper::protocol::RunId;
use crate::spec::InstanceId;
use crate::state::{Command, Event, EventKind, HostFacts, Response, Rest, RunFact};

/// Events of this span go in one command.
const GATHER: Duration = Duration::from_millis(5);
/// The most events of one command.
const BATCH: usize = 512;

/// What the supervision loop reports.
#[derive(Debug)]
pub enum Report {
    /// Something happened to a run.
    Event(Event),
    /// Everything that runs, and what rests: the replicated state is to agree with it.
    Inventory {
        /// The live runs.
        runs: BTreeMap<InstanceId, RunFact>,
        /// The instances of which no run follows by itself.
        rests: BTreeMap<InstanceId, Rest>,
    },
    /// The host's labels, capacity or address changed: it joins anew.
    Facts(HostFacts),
}

/// The reporting end of a host that has joined.
pub struct Reporter {
    handle: Handle,
    settled: mpsc::Sender<RunId>,
    incarnation: u64,
    next_seq: u64,
}

impl Reporter {
    /// Joins the cluster as this host.
    pub async fn join(
        handle: Handle,
        facts: HostFacts,
        settled: mpsc::Sender<RunId>,
    ) -> Result<Reporter, AskError> {
        let incarnation = join(&handle, facts).await?;
        Ok(Reporter { handle, settled, incarnation, next_seq: 1 })
    }

    /// Reports until the supervision loop is gone.
    pub async fn run(mut self, mut reports: mpsc::Receiver<Report>) {
        let mut batch = Vec::new();
        while reports.recv_many(&mut batch, BATCH).await > 0 {
            // Before the sending, not after it: an end and the new run's start then go together, and a
            // restart under way has the processors to itself.
            tokio::time::sleep(GATHER).await;
            while batch.len() < BATCH
                && let Ok(report) = reports.try_recv()
            {
                batch.push(report);
            }
            self.deliver(batch.drain(..)).await;
        }
    }

    /// Delivers what is there already: the inventory of the first meeting with the keeper.
    pub async fn catch_up(&mut self, reports: &mut mpsc::Receiver<Report>) {
        let waiting: Vec<Report> = std::iter::from_fn(|| reports.try_recv().ok()).collect();
        self.deliver(waiting.into_iter()).await;
    }

    async fn deliver(&mut self, reports: impl Iterator<Item = Report>) {
        let mut events = Vec::new();
        for report in reports {
            match report {
                Report::Event(event) => events.push(event),
                Report::Inventory { runs, rests } => {
                    self.send_events(std::mem::take(&mut events)).await;
                    self.send_inventory(runs, rests).await;
                }
                Report::Facts(facts) => {
                    self.send_events(std::mem::take(&mut events)).await;
                    self.rejoin(facts).await;
                }
            }
        }
        self.send_events(events).await;
    }

    async fn rejoin(&mut self, facts: HostFacts) {
        match join(&self.handle, facts).await {
            Ok(incarnation) => (self.incarnation, self.next_seq) = (incarnation, 1),
            Err(error) => tracing::warn!(%error, "the host's new labels and capacity were refused"),
        }
    }

    async fn send_events(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let (host, incarnation, first_seq) = (self.handle.host.clone(), self.incarnation, self.next_seq);
        self.next_seq += events.len() as u64;
        let last = |event: &Event| match &event.kind {
            EventKind::Rests(rest) => Some(rest.run),
            _ => None,
        };
        let resting: Vec<RunId> = events.iter().filter_map(last).collect();
        fault::pass(Point::AgentBeforeReport);
        self.send(Command::Events { host, incarnation, first_seq, events }, resting).await;
        fault::pass(Point::AgentAfterReport);
    }

    async fn send_inventory(&self, runs: BTreeMap<InstanceId, RunFact>, rests: BTreeMap<InstanceId, Rest>) {
        let (host, incarnation) = (self.handle.host.clone(), self.incarnation);
        let seq = self.next_seq - 1;
        let resting = rests.values().map(|rest| rest.run).collect();
        self.send(Command::Inventory { host, incarnation, seq, runs, rests }, resting).await;
    }

    /// A command that is repeated changes nothing twice, so a busy replica is simply asked again.
    async fn send(&self, command: Command, resting: Vec<RunId>) {
        loop {
            match self.handle.propose(command.clone()).await {
                Err(AskError::Busy) => tokio::time::sleep(GATHER).await,
                Err(AskError::Rejected(error)) => {
                    tracing::warn!(%error, "a report was refused");
                    return;
                }
                Err(AskError::Stopping) => return,
                Ok(_) => break,
            }
        }
        for run in resting {
            // The loop that is gone acknowledges nothing; the next agent is told of the run again.
            let _ = self.settled.send(run).await;
        }
    }
}

async fn join(handle: &Handle, facts: HostFacts) -> Result<u64, AskError> {
    match handle.propose(Command::JoinHost { host: handle.host.clone(), facts }).await? {
        Response::Incarnation(incarnation) => Ok(incarnation),
        // The state answers a join with nothing else.
        _ => Err(AskError::Stopping),
    }
}
