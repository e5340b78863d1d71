//! Reports of this host to the replicated state: joining, events in batches, the inventory.
//!
//! Owns the incarnation and the sequence numbers. The supervision loop hands events over and never waits;
//! what does not fit the queue is made good by an inventory.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;

use super::handle::{AskError, Handle};
use crate::spec::InstanceId;
use crate::state::{Command, Event, HostFacts, Response, RunFact};

/// Events of this span go in one command.
const GATHER: Duration = Duration::from_millis(5);
/// The most events of one command.
const BATCH: usize = 512;

/// What the supervision loop reports.
#[derive(Debug)]
pub enum Report {
    /// Something happened to a run.
    Event(Event),
    /// Everything that runs: the directory is to agree with it.
    Inventory(BTreeMap<InstanceId, RunFact>),
    /// The host's labels, capacity or address changed: it joins anew.
    Facts(HostFacts),
}

/// The reporting end of a host that has joined.
pub struct Reporter {
    handle: Handle,
    incarnation: u64,
    next_seq: u64,
}

impl Reporter {
    /// Joins the cluster as this host.
    pub async fn join(handle: Handle, facts: HostFacts) -> Result<Reporter, AskError> {
        let incarnation = join(&handle, facts).await?;
        Ok(Reporter { handle, incarnation, next_seq: 1 })
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
                Report::Inventory(runs) => {
                    self.send_events(std::mem::take(&mut events)).await;
                    self.send_inventory(runs).await;
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
        self.send(Command::Events { host, incarnation, first_seq, events }).await;
    }

    async fn send_inventory(&self, runs: BTreeMap<InstanceId, RunFact>) {
        let (host, incarnation) = (self.handle.host.clone(), self.incarnation);
        let seq = self.next_seq - 1;
        self.send(Command::Inventory { host, incarnation, seq, runs }).await;
    }

    /// A command that is repeated changes nothing twice, so a busy replica is simply asked again.
    async fn send(&self, command: Command) {
        loop {
            match self.handle.propose(command.clone()).await {
                Err(AskError::Busy) => tokio::time::sleep(GATHER).await,
                Err(AskError::Rejected(error)) => {
                    tracing::warn!(%error, "a report was refused");
                    return;
                }
                Ok(_) | Err(AskError::Stopping) => return,
            }
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
