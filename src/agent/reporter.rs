//! Reports of this host to the replicated state: joining, events in batches, the inventory.
//!
//! Owns the incarnation and the sequence numbers. A host that was given up joins again by itself. The supervision loop hands events over and never waits;
//! what does not fit the queue is made good by an inventory. When the state holds that an instance rests, its
//! last run is named to the loop, which then lets the keeper forget it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::handle::{AskError, Handle};
use crate::keeper::fault::{self, Point};
use crate::keeper::protocol::RunId;
use crate::spec::InstanceId;
use crate::state::{Command, Event, EventKind, Host, HostFacts, Response, Rest, RunFact};

/// Events of this span go in one command.
const GATHER: Duration = Duration::from_millis(5);
/// The most events of one command.
const BATCH: usize = 512;

/// How soon what the cluster did not take is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// How soon a host joins again that shares its name with another.
const RIVAL: Duration = Duration::from_secs(30);

/// Why a life of this host is over, as the cluster sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outlived {
    /// It was declared down.
    GivenUp,
    /// A later one has joined, and not from here.
    Succeeded,
}

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

/// The reporting end of this host.
pub struct Reporter {
    handle: Handle,
    settled: mpsc::Sender<RunId>,
    /// What this host said of itself last.
    facts: HostFacts,
    /// Which life of the host; 0: it has not joined. The supervision loop hears of a new one, and tells what runs.
    incarnation: watch::Sender<u64>,
    next_seq: u64,
    /// A join that was refused is tried again then.
    again: Instant,
    /// The cluster has not taken the newest facts yet.
    owes: bool,
    /// A join got no answer: it may come to be all the same.
    unsure: bool,
}

impl Reporter {
    /// One that has not joined.
    pub fn new(handle: Handle, settled: mpsc::Sender<RunId>, incarnation: watch::Sender<u64>) -> Reporter {
        let facts = HostFacts::default();
        Reporter {
            handle,
            settled,
            facts,
            incarnation,
            next_seq: 1,
            again: Instant::now(),
            owes: false,
            unsure: false,
        }
    }

    /// Which life of the host reports; 0: it has not joined.
    pub fn incarnation(&self) -> u64 {
        *self.incarnation.borrow()
    }

    /// Joins the cluster as this host: from here on it is another life of it.
    pub async fn join(&mut self, facts: HostFacts) -> Result<(), AskError> {
        let command = Command::JoinHost { host: self.handle.host.clone(), facts: facts.clone() };
        (self.facts, self.owes) = (facts, true);
        let answer = self.handle.propose(command).await;
        self.unsure |= matches!(answer, Err(AskError::Unanswered(_)));
        let Response::Incarnation(incarnation) = answer? else {
            // The state answers a join with nothing else.
            return Err(AskError::Stopping);
        };
        self.lives(incarnation);
        Ok(())
    }

    fn lives(&mut self, incarnation: u64) {
        (self.next_seq, self.owes, self.unsure) = (1, false, false);
        self.handle.ring.set_incarnation(incarnation);
        self.incarnation.send_replace(incarnation);
    }

    /// A join that got no answer has come to be after all.
    fn take_late_join(&mut self) {
        let known = self.handle.state.borrow().hosts.get(&self.handle.host).cloned();
        let own = |host: &Host| {
            host.up && host.incarnation > self.incarnation() && host.last_seq == 0 && host.facts == self.facts
        };
        if let Some(host) = known.filter(|host| self.unsure && own(host)) {
            self.lives(host.incarnation);
        }
    }

    /// Reports until the supervision loop is gone.
    pub async fn run(mut self, mut reports: mpsc::Receiver<Report>) {
        let mut states = self.handle.state.clone();
        let mut batch = Vec::new();
        loop {
            let room = tokio::select! {
                taken = reports.recv_many(&mut batch, BATCH) => match taken {
                    0 => return,
                    _ => true,
                },
                // The cluster may have given this host up while it was cut off.
                Ok(()) = states.changed() => false,
                () = tokio::time::sleep_until(self.again.into()), if self.owes || self.outlived().is_some() => false,
            };
            self.take_late_join();
            if let Some(why) = self.outlived() {
                self.rejoin(why).await;
            } else if self.owes && Instant::now() >= self.again {
                self.tell_facts(self.facts.clone()).await;
            }
            if !room {
                continue;
            }
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

    /// Why the state holds this life of the host for over, if it does.
    fn outlived(&self) -> Option<Outlived> {
        let incarnation = *self.incarnation.borrow();
        let state = self.handle.state.borrow();
        let known = state.hosts.get(&self.handle.host)?;
        match known.incarnation.cmp(&incarnation) {
            Ordering::Greater => Some(Outlived::Succeeded),
            Ordering::Equal if !known.up => Some(Outlived::GivenUp),
            _ => None,
        }
    }

    /// What the host offers has changed; what the cluster does not take now it is told again.
    async fn tell_facts(&mut self, facts: HostFacts) {
        if let Err(error) = self.join(facts).await {
            tracing::warn!(%error, "the cluster has not taken the host's new labels and capacity yet");
            self.again = Instant::now() + AGAIN;
        }
    }

    async fn rejoin(&mut self, why: Outlived) {
        if Instant::now() < self.again {
            return;
        }
        match self.join(self.facts.clone()).await {
            Ok(()) => match why {
                Outlived::GivenUp => {
                    tracing::warn!("the cluster had given this host up: it has joined again")
                }
                Outlived::Succeeded => {
                    tracing::error!(
                        "another agent joined under this host's name and machine-id; give each machine its own \
                         /etc/machine-id and host.name"
                    );
                    // Two that do so in turn must not fill the log.
                    self.again = Instant::now() + RIVAL;
                }
            },
            Err(error) => {
                tracing::warn!(%error, "cannot join again yet");
                self.again = Instant::now() + AGAIN;
            }
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
                    self.tell_facts(facts).await;
                }
            }
        }
        self.send_events(events).await;
    }

    async fn send_events(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let (host, incarnation, first_seq) =
            (self.handle.host.clone(), *self.incarnation.borrow(), self.next_seq);
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
        let (host, incarnation) = (self.handle.host.clone(), *self.incarnation.borrow());
        let seq = self.next_seq - 1;
        let resting = rests.values().map(|rest| rest.run).collect();
        self.send(Command::Inventory { host, incarnation, seq, runs, rests }, resting).await;
    }

    /// A command that is repeated changes nothing twice, so a busy replica, or a cluster without a quorum, is
    /// simply asked again.
    async fn send(&self, command: Command, resting: Vec<RunId>) {
        loop {
            match self.handle.propose(command.clone()).await {
                Err(AskError::Busy) => tokio::time::sleep(GATHER).await,
                Err(AskError::Unanswered(error)) => {
                    tracing::debug!(%error, "a report waits");
                    tokio::time::sleep(AGAIN).await;
                }
                Err(AskError::Rejected(error)) => {
                    tracing::warn!(%error, "a report was refused");
                    return;
                }
                Err(AskError::Stopping | AskError::NotAllowed) => return,
                Ok(_) => break,
            }
        }
        for run in resting {
            // The loop that is gone acknowledges nothing; the next agent is told of the run again.
            let _ = self.settled.send(run).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::agent::handle::Proposal;
    use crate::state::State;

    const WAIT: Duration = Duration::from_secs(10);

    struct Cluster {
        proposals: mpsc::Receiver<Proposal>,
        state: watch::Sender<Arc<State>>,
    }

    impl Cluster {
        /// What the host proposes next, which must be to join; it is given this incarnation.
        async fn joins(&mut self, incarnation: u64) {
            let asked = tokio::time::timeout(WAIT, self.proposals.recv()).await.expect("a proposal");
            let Proposal { command, reply } = asked.unwrap();
            assert!(matches!(command, Command::JoinHost { .. }), "{command:?}");
            reply.send(Ok(Response::Incarnation(incarnation))).unwrap();
        }

        /// The number of the first of the events that the host proposes next, and how many they are.
        async fn is_told(&mut self) -> (u64, usize) {
            let asked = tokio::time::timeout(WAIT, self.proposals.recv()).await.expect("a proposal");
            let Proposal { command, reply } = asked.unwrap();
            let Command::Events { first_seq, events, .. } = command else { panic!("{command:?}") };
            reply.send(Ok(Response::Done)).unwrap();
            (first_seq, events.len())
        }

        /// The state shows this life of the host.
        fn shows(&self, incarnation: u64, up: bool) {
            let facts = HostFacts::default();
            let host = crate::state::Host {
                incarnation,
                facts,
                up,
                planned: true,
                drained: false,
                last_seq: 0,
                down_ms: 0,
            };
            self.state.send_modify(|state| {
                Arc::make_mut(state).hosts.insert("alpha".parse().unwrap(), host);
            });
        }
    }

    fn cluster() -> (Handle, Cluster) {
        let ((to, proposals), (state, seen)) = (mpsc::channel(8), watch::channel(Arc::default()));
        (Handle::of_test(to, seen), Cluster { proposals, state })
    }

    #[tokio::test]
    async fn a_host_that_was_given_up_joins_again_and_one_that_shares_its_name_does_not_so_in_turn_for_ever()
    {
        let (handle, mut cluster) = cluster();
        let (incarnation, mut incarnations) = watch::channel(0);
        let mut reporter = Reporter::new(handle, mpsc::channel(1).0, incarnation);
        let (_reports, reported) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            reporter.join(HostFacts::default()).await.unwrap();
            reporter.run(reported).await;
        });
        cluster.joins(5).await;
        incarnations.wait_for(|known| *known == 5).await.unwrap();
        cluster.shows(5, true);
        // It lives on in the state of others as it does here: nothing is to be done.
        cluster.shows(5, false);
        cluster.joins(6).await;
        incarnations.wait_for(|known| *known == 6).await.unwrap();
        cluster.shows(6, true);
        // Somebody else has joined under this name.
        cluster.shows(7, true);
        cluster.joins(8).await;
        cluster.shows(9, true);
        let again = tokio::time::timeout(Duration::from_millis(300), cluster.proposals.recv()).await;
        assert!(again.is_err(), "it joins again at once: {:?}", again.map(|asked| asked.map(|a| a.command)));
        task.abort();
    }

    #[tokio::test]
    async fn what_happens_at_once_is_one_command_and_each_event_has_its_number() {
        let (handle, mut cluster) = cluster();
        let mut reporter = Reporter::new(handle, mpsc::channel(1).0, watch::channel(0).0);
        let (reports, reported) = mpsc::channel(128);
        let task = tokio::spawn(async move {
            reporter.join(HostFacts::default()).await.unwrap();
            reporter.run(reported).await;
        });
        cluster.joins(5).await;
        for (first, burst) in [(1, 100), (101, 3), (104, 1)] {
            for _ in 0..burst {
                let instance = "zone.0".parse().unwrap();
                reports
                    .try_send(Report::Event(Event { instance, run: RunId(1), kind: EventKind::Ready }))
                    .unwrap();
            }
            assert_eq!(cluster.is_told().await, (first, burst));
        }
        task.abort();
    }
}
