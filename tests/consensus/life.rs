//! The life of a few peers: a beginning, trouble, quiet.

use std::collections::BTreeMap;
use std::time::Duration;

use bigbrother::cluster::raft::Peer as Member;
use openraft::AsyncRuntime;
use openraft::async_runtime::watch::WatchReceiver;
use openraft_rt_sim::SimRuntime;

use crate::Fault;
use crate::client::Client;
use crate::disk::Disk;
use crate::history::History;
use crate::network::Network;
use crate::peer::Peer;
use crate::record::Record;

const CLIENTS: u64 = 3;
/// What each client does.
const OPERATIONS: u64 = 25;
/// Troubles at most; they go on while clients work.
const TROUBLES: u64 = 60;

/// What has happened.
#[derive(Debug, PartialEq, Eq)]
pub struct Summary {
    pub entries: u64,
    pub answered: u64,
    pub primaries: u64,
    pub digest: u64,
}

/// The first invariant that breaks, or what has happened.
pub fn live(seed: u64, fault: Fault) -> Result<Summary, String> {
    let mut runtime = SimRuntime::with_seed(seed);
    runtime.block_on(Life::new(seed, fault).run(seed))
}

struct Life {
    peers: u64,
    disks: BTreeMap<u64, Disk>,
    network: Network,
    record: Record,
    history: History,
    rng: fastrand::Rng,
    fault: Fault,
}

impl Life {
    fn new(seed: u64, fault: Fault) -> Life {
        let mut rng = fastrand::Rng::with_seed(seed);
        let peers = if seed.is_multiple_of(3) { 5 } else { 3 };
        let disks = (1..=peers).map(|id| (id, Disk::new(rng.u64(..), fault))).collect();
        let network = Network::new(rng.u64(..));
        Life { peers, disks, network, record: Record::default(), history: History::default(), rng, fault }
    }

    async fn run(mut self, seed: u64) -> Result<Summary, String> {
        for id in 1..=self.peers {
            self.start(id).await;
        }
        let members: BTreeMap<u64, Member> = (1..=self.peers).map(|id| (id, Member::default())).collect();
        let first = self.network.peer(1).unwrap();
        first.raft.initialize(members).await.map_err(|error| error.to_string())?;
        let mut clients = Vec::new();
        self.client(0).begin().await;
        for number in 1..=CLIENTS {
            let (network, record, history) =
                (self.network.clone(), self.record.clone(), self.history.clone());
            let seed = self.rng.u64(..);
            let client = Client::new(number, self.peers, network, record, history, seed, self.fault);
            clients.push(SimRuntime::spawn(client.run(OPERATIONS)));
        }
        self.change_weather();
        for _ in 0..TROUBLES {
            if self.history.resigned() == CLIENTS {
                break;
            }
            let pause = self.rng.u64(50..700);
            SimRuntime::sleep(Duration::from_millis(pause)).await;
            self.trouble().await;
            self.record.check()?;
        }
        self.heal().await;
        for client in clients {
            client.await.map_err(|error| format!("a client has failed: {error}"))?;
        }
        self.rest().await?;
        self.client(CLIENTS + 1).look().await;
        self.record.check_launches()?;
        self.history.check().map_err(|what| format!("seed {seed}: {what}"))?;
        let (entries, answered, primaries) = self.record.counts();
        let ids: Vec<u64> = self.network.links().peers.keys().copied().collect();
        for id in ids {
            self.kill(id).await;
        }
        Ok(Summary { entries, answered, primaries, digest: self.history.digest() })
    }

    fn client(&mut self, number: u64) -> Client {
        let (network, record, history) = (self.network.clone(), self.record.clone(), self.history.clone());
        let seed = self.rng.u64(..);
        Client::new(number, self.peers, network, record, history, seed, self.fault)
    }

    async fn start(&self, id: u64) {
        let peer = Peer::start(id, &self.disks[&id], &self.network, &self.record, self.fault).await;
        self.network.links().peers.insert(id, peer);
    }

    async fn kill(&self, id: u64) {
        let killed = self.network.links().peers.remove(&id);
        self.disks[&id].crash();
        if let Some(peer) = killed {
            let _ = peer.raft.shutdown().await;
        }
    }

    fn primary(&self) -> Option<u64> {
        let links = self.network.links();
        let leads =
            |(id, peer): &(&u64, &Peer)| peer.raft.metrics().borrow_watched().current_leader == Some(**id);
        links.peers.iter().find(leads).map(|(id, _)| *id)
    }

    async fn trouble(&mut self) {
        let any = self.rng.u64(1..=self.peers);
        let primary = self.primary().unwrap_or(any);
        match self.rng.u32(0..13) {
            0 => self.cut_off(any),
            1 | 2 => self.cut_off(primary),
            3 => {
                let half: Vec<u64> = (1..=self.peers).filter(|_| self.rng.bool()).collect();
                let others = (1..=self.peers).filter(|id| !half.contains(id));
                let pairs =
                    others.flat_map(|other| half.iter().flat_map(move |one| [(*one, other), (other, *one)]));
                let pairs: Vec<_> = pairs.collect();
                self.network.links().cuts.extend(pairs);
            }
            4 | 5 => self.network.links().cuts.clear(),
            6 => self.restart(any).await,
            7 | 8 => self.restart(primary).await,
            9 | 10 => self.change_weather(),
            11 => {
                // It takes part no more until somebody starts it again.
                self.disks[&primary].fail();
                let pause = self.rng.u64(0..1_500);
                SimRuntime::sleep(Duration::from_millis(pause)).await;
                self.restart(primary).await;
            }
            _ => {
                if let Some(peer) = self.network.peer(primary) {
                    let _ = peer.raft.trigger().transfer_leader(any).await;
                }
            }
        }
    }

    fn change_weather(&mut self) {
        self.network.links().trouble = self.rng.choice([0, 5, 20]).unwrap();
    }

    fn cut_off(&mut self, id: u64) {
        let (out, back) = self.rng.choice([(true, true), (true, false), (false, true)]).unwrap();
        let mut links = self.network.links();
        for other in (1..=self.peers).filter(|other| *other != id) {
            if out {
                links.cuts.insert((id, other));
            }
            if back {
                links.cuts.insert((other, id));
            }
        }
    }

    async fn restart(&mut self, id: u64) {
        self.kill(id).await;
        let pause = self.rng.u64(0..600);
        SimRuntime::sleep(Duration::from_millis(pause)).await;
        self.start(id).await;
    }

    async fn heal(&mut self) {
        self.network.links().cuts.clear();
        self.network.links().trouble = 0;
    }

    /// All peers come to have applied the same, and all that anybody had.
    async fn rest(&self) -> Result<(), String> {
        for _ in 0..200 {
            SimRuntime::sleep(Duration::from_millis(50)).await;
            self.record.check()?;
            let links = self.network.links();
            let applied: Vec<_> = links.peers.values().map(Peer::applied).collect();
            if applied.len() as u64 == self.peers
                && applied.windows(2).all(|pair| pair[0] == pair[1])
                && applied[0].is_some_and(|last| self.record.last() == Some(last))
            {
                return Ok(());
            }
        }
        Err("the peers do not come to agree".to_owned())
    }
}
