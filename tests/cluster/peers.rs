//! Peers in one process, each with a runtime of its own, so that one can be killed as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use bigbrother::cluster::node::{Node, OpenError, Settings, Standing};
use bigbrother::cluster::raft::membership::{Member, Role};
use bigbrother::config::{self, Context};
use bigbrother::spec::HostName;
use bigbrother::state::{Command, Response, State};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// What one wait may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn name(text: &str) -> HostName {
    text.parse().unwrap()
}

/// Waits until `look` gives something; what it saw last is told when it does not.
pub fn until<T, S: Debug>(what: &str, mut look: impl FnMut() -> Result<T, S>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if Instant::now() > deadline => {
                panic!("{what}: not within {PATIENCE:?}, last {seen:?}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// A peer that runs.
pub struct Peer {
    pub settings: Settings,
    runtime: Option<Runtime>,
    node: Option<Node>,
}

impl Peer {
    pub fn start(settings: &Settings) -> Peer {
        Peer::try_start(settings).unwrap()
    }

    /// A killed one may need a moment to let go of its files and its port.
    pub fn try_start(settings: &Settings) -> Result<Peer, OpenError> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match runtime.block_on(Node::open(settings.clone())) {
                Ok(node) => {
                    return Ok(Peer { settings: settings.clone(), runtime: Some(runtime), node: Some(node) });
                }
                Err(error)
                    if error.to_string().contains("another agent runs") && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub fn name(&self) -> &HostName {
        &self.settings.host
    }

    pub fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(work)
    }

    /// As SIGKILL does: no hand-over, no last word.
    pub fn kill(mut self) -> Settings {
        self.end();
        self.settings.clone()
    }

    /// As SIGSTOP does, for so long: its sockets stay open and nothing moves.
    pub fn stall(&self, time: Duration) {
        // The only thread of its runtime.
        self.runtime.as_ref().unwrap().spawn(async move { std::thread::sleep(time) });
    }

    /// The same until what comes back is dropped.
    pub fn freeze(&self) -> std::sync::mpsc::Sender<()> {
        let (thaw, thawed) = std::sync::mpsc::channel();
        self.runtime.as_ref().unwrap().spawn(async move { thawed.recv().unwrap_err() });
        thaw
    }

    fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        // Outside of any runtime nothing is taken leave of.
        drop(self.node.take());
    }

    /// As SIGTERM does.
    pub fn close(mut self) -> Settings {
        let node = self.node.take().unwrap();
        self.run(node.close());
        self.end();
        self.settings.clone()
    }

    pub fn standing(&self) -> Standing {
        self.node().standing().borrow().clone()
    }

    pub fn state(&self) -> State {
        State::clone(&self.node().states().borrow())
    }

    /// A busy machine may hold an election now and then: what finds no primary is asked again.
    pub fn propose(&self, command: Command) -> Response {
        until("a change", || {
            self.run(self.node().propose(command.clone())).map_err(|error| error.to_string())
        })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.end();
    }
}

/// Settings of a cluster of these hosts, in folders that go with the guard.
pub fn settings(hosts: &[&str]) -> (TempDir, Vec<Settings>) {
    let folder = tempfile::tempdir().unwrap();
    let all = settings_in(folder.path(), hosts);
    (folder, all)
}

/// A loopback address of this process alone: no other program is given a port there while a peer is down.
pub fn own_address() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 + high, middle, low)
}

pub fn settings_in(folder: &Path, hosts: &[&str]) -> Vec<Settings> {
    let sockets: Vec<TcpListener> =
        hosts.iter().map(|_| TcpListener::bind((own_address(), 0)).unwrap()).collect();
    let address = |socket: &TcpListener| socket.local_addr().unwrap().to_string();
    let peers: BTreeMap<HostName, String> =
        hosts.iter().zip(&sockets).map(|(host, socket)| (name(host), address(socket))).collect();
    let one = |(host, listen): (&HostName, &String)| Settings {
        cluster: "pirates".to_owned(),
        host: host.clone(),
        peers: peers.clone(),
        listen: listen.clone(),
        data_dir: folder.join(host.as_str()),
        tls: None,
        dead_voter_after: Duration::from_secs(600),
        snapshot_every: 10_000,
    };
    peers.iter().map(one).collect()
}

/// A cluster of these hosts that has a primary all agree on.
pub fn formed(hosts: &[&str]) -> (TempDir, Vec<Peer>) {
    let (folder, settings) = settings(hosts);
    let peers: Vec<Peer> = settings.iter().map(Peer::start).collect();
    primary(&peers);
    (folder, peers)
}

/// The place of the primary that all of them see.
pub fn primary(peers: &[Peer]) -> usize {
    until("one primary", || {
        let standings: Vec<Standing> = peers.iter().map(Peer::standing).collect();
        let host = standings[0].primary.clone();
        let alike = standings.iter().all(|standing| standing.quorum && standing.primary == host);
        let place = host.and_then(|host| peers.iter().position(|peer| *peer.name() == host));
        place.filter(|_| alike).ok_or(standings)
    })
}

/// (host, number, votes) of all peers, as this one knows them.
pub fn roll(peer: &Peer) -> Vec<(String, u64, bool)> {
    let member = |m: Member| (m.peer.name, m.id, m.role == Role::Voter);
    let mut roll: Vec<_> = peer.node().peers().into_iter().map(member).collect();
    roll.sort();
    roll
}

/// A spec with an on-demand process, of which instances can be launched and counted.
pub fn spec() -> Command {
    let text = "[process.dungeon]\ncommand = ['/bin/true']\non_demand = { max = 1000000 }\n";
    let context = Context { hostname: "alpha".to_owned(), host_override: None };
    let spec =
        config::parse(text, "cluster.toml", &context).unwrap_or_else(|f| panic!("{}", f.render(false))).spec;
    Command::ApplySpec { spec, expected_revision: None }
}

/// Launches one; not idempotent by itself.
pub fn launch(note: &str) -> Command {
    let args = [("note".to_owned(), note.to_owned())].into();
    Command::Launch { process: "dungeon".parse().unwrap(), args, key: None }
}

/// The notes of what was launched: a set, since on a busy machine a launch may be asked for twice.
pub fn notes(state: &State) -> BTreeSet<String> {
    state.launches.values().map(|launch| launch.args["note"].clone()).collect()
}

/// All peers have the same state.
pub fn agreed<'a>(peers: impl IntoIterator<Item = &'a Peer>) -> State {
    let peers: Vec<&Peer> = peers.into_iter().collect();
    until("the same state everywhere", || {
        let states: Vec<State> = peers.iter().map(|peer| peer.state()).collect();
        let first = states[0].clone();
        let seen: Vec<(u64, usize)> =
            states.iter().map(|state| (state.index, state.launches.len())).collect();
        if states.iter().all(|state| *state == first) { Ok(first) } else { Err(seen) }
    })
}
