//! A client at one of the hosts: it changes and reads, one thing after the other, as the agent's node does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bigbrother::cluster::raft::{Change, Outcome};
use bigbrother::config::{Context, parse};
use bigbrother::keeper::protocol::RunId;
use bigbrother::spec::{HostName, InstanceId, Spec};
use bigbrother::state::{Command, Envelope, Event, EventKind, HostFacts, Response, State};
use openraft::{AsyncRuntime, ReadPolicy};
use openraft_rt_sim::SimRuntime;

use crate::Fault;
use crate::history::{History, Key};
use crate::network::Network;
use crate::peer::{Peer, Raft};
use crate::record::Record;

/// How long one attempt may take, and all attempts together.
const ATTEMPT: Duration = Duration::from_millis(400);
const ATTEMPTS: u32 = 6;

/// What must be answered some time is asked so often.
const PATIENCE: u32 = 100;

pub struct Client {
    pub number: u64,
    pub peers: u64,
    pub network: Network,
    pub record: Record,
    pub history: History,
    pub rng: fastrand::Rng,
    pub fault: Fault,
    /// Changes proposed so far.
    pub changes: u64,
    /// The incarnation of this host, and its events so far.
    incarnation: u64,
    events: u64,
}

fn host(number: u64) -> HostName {
    format!("h{number}").parse().unwrap()
}

fn instance(number: u64) -> InstanceId {
    InstanceId::on_host("each".parse().unwrap(), host(number))
}

fn spec(build: u64) -> Spec {
    let text = format!(
        "[process.each]\ncommand = [\"/e\"]\nper_host = true\n\
         [process.zone]\ncommand = [\"/z\"]\ncount = 1000\nbuild = \"{build}\"\n\
         [process.job]\ncommand = [\"/j\"]\non_demand = {{ max = 1000 }}\n"
    );
    let context = Context { hostname: "a".to_owned(), host_override: None };
    parse(&text, "consensus.toml", &context).unwrap_or_else(|faults| panic!("{}", faults.render(false))).spec
}

/// What a state holds under a key.
fn value(state: &State, key: Key) -> u64 {
    let zone = "zone".parse().unwrap();
    match key {
        Key::Spec => {
            let build = state.spec.processes.get(&zone).and_then(|zone| zone.build.clone());
            build.map_or(0, |build| build.parse().unwrap())
        }
        Key::Scale => state.scales.get(&zone).map_or(0, |scale| scale.count.into()),
        Key::Run(number) => state.directory.get(&instance(number)).map_or(0, |entry| entry.run.0),
    }
}

impl Client {
    pub fn new(
        number: u64,
        peers: u64,
        network: Network,
        record: Record,
        history: History,
        seed: u64,
        fault: Fault,
    ) -> Client {
        let rng = fastrand::Rng::with_seed(seed);
        let (changes, incarnation, events) = (0, 0, 0);
        Client { number, peers, network, record, history, rng, fault, changes, incarnation, events }
    }

    /// There is a spec from the beginning.
    pub async fn begin(mut self) {
        let command = Command::ApplySpec { spec: spec(0), expected_revision: None };
        let change = self.once(command);
        for _ in 0..PATIENCE {
            if self.submit(&change).await.is_some() {
                return;
            }
        }
    }

    /// Joins, and does so many things.
    pub async fn run(mut self, operations: u64) {
        self.join().await;
        for _ in 0..operations {
            let pause = self.rng.u64(10..150);
            SimRuntime::sleep(Duration::from_millis(pause)).await;
            if self.rng.u32(0..4) == 0 {
                self.launch().await;
                continue;
            }
            let others = self.rng.u64(1..=3);
            let key = match self.rng.u32(0..4) {
                0 => Key::Spec,
                1 => Key::Scale,
                2 => Key::Run(self.number),
                _ => Key::Run(others),
            };
            match self.rng.u32(0..4) {
                0 | 1 if key == Key::Run(self.number) => self.tell().await,
                0 | 1 if !matches!(key, Key::Run(_)) => self.change(key).await,
                _ => self.read(key).await,
            }
        }
        self.history.resign();
    }

    /// Reads everything, when all is over.
    pub async fn look(mut self) {
        for key in [Key::Spec, Key::Scale, Key::Run(1), Key::Run(2), Key::Run(3)] {
            self.read(key).await;
        }
    }

    async fn join(&mut self) {
        let facts = HostFacts { machine_id: host(self.number).to_string(), ..HostFacts::default() };
        let change = self.once(Command::JoinHost { host: host(self.number), facts });
        for _ in 0..PATIENCE {
            if let Some(Outcome::State(Ok(Response::Incarnation(n)))) = self.submit(&change).await {
                self.incarnation = n;
                return;
            }
        }
    }

    fn once(&mut self, command: Command) -> Change {
        self.changes += 1;
        let envelope = Arc::new(Envelope { stamp_ms: 1, command });
        match self.fault {
            Fault::NoKeys if self.incarnation > 0 => Change::State(envelope),
            _ => Change::Once { key: (self.number, self.changes), envelope },
        }
    }

    /// The spec or a scale; it may stay unknown whether it was changed.
    async fn change(&mut self, key: Key) {
        let written = self.number * 1_000 + self.changes + 1;
        let change = match key {
            Key::Spec => self.once(Command::ApplySpec { spec: spec(written), expected_revision: None }),
            _ => {
                let count = u32::try_from(written).ok();
                self.once(Command::Scale { process: "zone".parse().unwrap(), count })
            }
        };
        let operation = self.history.begin(self.number, key, Some(written));
        if let Some(Outcome::State(Ok(_))) = self.submit(&change).await {
            self.history.end(operation, 0);
        }
    }

    /// Each launch makes an instance, so that it is seen how often it was applied.
    async fn launch(&mut self) {
        let process = "job".parse().unwrap();
        let change = self.once(Command::Launch { process, args: BTreeMap::new(), key: None });
        self.record.launches(1, 0);
        if self.submit(&change).await.is_some() {
            self.record.launches(0, 1);
        }
    }

    /// A new run of this host's instance, told until it is answered.
    async fn tell(&mut self) {
        self.events += 1;
        let run = self.events;
        let kind = EventKind::Started { hash: Default::default(), ports: BTreeMap::new() };
        let event = Event { instance: instance(self.number), run: RunId(run), kind };
        let (host, incarnation, first_seq) = (host(self.number), self.incarnation, run);
        let command = Command::Events { host, incarnation, first_seq, events: vec![event] };
        let change = Change::State(Arc::new(Envelope { stamp_ms: 1, command }));
        let operation = self.history.begin(self.number, Key::Run(self.number), Some(run));
        for _ in 0..PATIENCE {
            if let Some(Outcome::State(answer)) = self.submit(&change).await {
                assert_eq!(answer, Ok(Response::Done), "the events of a host are in order");
                return self.history.end(operation, 0);
            }
        }
    }

    /// Some peer that lives, and whom it takes for the primary.
    fn some_peer(&mut self) -> Option<(u64, Peer, u64)> {
        let id = self.rng.u64(1..=self.peers);
        let peer = self.network.peer(id)?;
        let any = self.rng.u64(1..=self.peers);
        let primary = openraft::async_runtime::watch::WatchReceiver::borrow_watched(&peer.raft.metrics())
            .current_leader;
        Some((id, peer, primary.unwrap_or(any)))
    }

    /// Asks until it is answered or patience ends.
    async fn submit(&mut self, change: &Change) -> Option<Outcome> {
        for _ in 0..ATTEMPTS {
            let pause = self.rng.u64(1..30);
            SimRuntime::sleep(Duration::from_millis(pause)).await;
            let Some((at, _, primary)) = self.some_peer() else { continue };
            let change = change.clone();
            let question = move |raft: Raft| {
                let change = change.clone();
                async move { raft.client_write(change).await }
            };
            if let Some(Ok(applied)) = self.network.ask((at, primary), ATTEMPT, question).await {
                self.record.answered(applied.log_id);
                return Some(applied.data);
            }
        }
        None
    }

    /// From a peer's own copy, when that has all that was committed before.
    async fn read(&mut self, key: Key) {
        let operation = self.history.begin(self.number, key, None);
        let Some((at, peer, primary)) = self.some_peer() else { return };
        if self.fault != Fault::StaleReads {
            let question = |raft: Raft| async move { raft.get_read_log_id(ReadPolicy::ReadIndex).await };
            let Some(Ok((read, _))) = self.network.ask((at, primary), ATTEMPT, question).await else {
                return;
            };
            let index = read.log_id().index;
            let mut waits = 0;
            while peer.applied() < Some(index) {
                waits += 1;
                if waits > 100 {
                    return;
                }
                SimRuntime::sleep(Duration::from_millis(5)).await;
            }
        }
        let found = value(&peer.states.borrow(), key);
        self.history.end(operation, found);
    }
}
