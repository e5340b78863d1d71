//! Measures three peers on this machine: how long a failover and a hand-over take, and how many directory
//! events a second go through their disks.
//!
//! `cargo run --release --example raft` runs it in a folder of its own below the current one (so that it is
//! the disk that is measured, and no tmpfs); docs/performance.md has the figures.
//! `… --example raft -- steady 600` lets the peers stand for ten minutes on a machine of which every core is
//! loaded, and counts elections. What misses its bound is an error.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bigbrother::cluster::node::{Node, Settings};
use bigbrother::cluster::raft::SNAPSHOT_EVERY;
use bigbrother::keeper::protocol::RunId;
use bigbrother::spec::HostName;
use bigbrother::state::{Command, Event, EventKind, HostFacts, Response, Target};
use tokio::runtime::Runtime;

type Fault = Box<dyn Error>;

/// How often a failover and a hand-over are measured.
const TRIALS: usize = 20;
/// Events of one batch.
const BATCH: u64 = 64;
/// Hosts that report at once, for how long, and the instances of each.
const HOSTS: usize = 48;
const LOAD: Duration = Duration::from_secs(10);
const INSTANCES: u64 = 100;

struct Peer {
    settings: Settings,
    runtime: Runtime,
    node: Arc<Node>,
}

impl Peer {
    fn start(settings: &Settings) -> Result<Peer, Fault> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match runtime.block_on(Node::open(settings.clone())) {
                Ok(node) => return Ok(Peer { settings: settings.clone(), runtime, node: Arc::new(node) }),
                // A killed one may need a moment to let go of its files.
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn kill(self) -> Settings {
        self.runtime.shutdown_background();
        self.settings
    }

    fn is_primary(&self) -> bool {
        let standing = self.node.standing().borrow().clone();
        standing.quorum && standing.primary.as_ref() == Some(&self.settings.host)
    }
}

fn settings(folder: &Path) -> Result<Vec<Settings>, Fault> {
    let mut peers = BTreeMap::new();
    for host in ["alpha", "beta", "gamma"] {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        peers.insert(host.parse::<HostName>()?, address.to_string());
    }
    let one = |(host, listen): (&HostName, &String)| Settings {
        cluster: "bench".to_owned(),
        host: host.clone(),
        peers: peers.clone(),
        listen: listen.clone(),
        data_dir: folder.join(host.as_str()),
        tls: None,
        dead_voter_after: Duration::from_secs(600),
        snapshot_every: SNAPSHOT_EVERY,
    };
    Ok(peers.iter().map(one).collect())
}

/// Waits until one of them is the primary, and says which.
fn primary(peers: &[Peer]) -> Result<usize, Fault> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let agreed = |place: &usize| {
            let host = &peers[*place].settings.host;
            peers.iter().all(|peer| peer.node.standing().borrow().primary.as_ref() == Some(host))
        };
        if let Some(place) = (0..peers.len()).find(|place| peers[*place].is_primary()).filter(agreed) {
            return Ok(place);
        }
        if Instant::now() > deadline {
            return Err("no primary within 30 s".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Median and longest are to be no longer than these.
fn shown(what: &str, mut times: Vec<Duration>, bounds: Option<(u64, u64)>) -> Result<(), Fault> {
    times.sort();
    let (Some(first), Some(last)) = (times.first(), times.last()) else { return Ok(()) };
    let median = times[times.len() / 2];
    println!(
        "{what}: min {:.1} ms, median {:.1} ms, max {:.1} ms ({} trials)",
        ms(*first),
        ms(median),
        ms(*last),
        times.len()
    );
    match bounds {
        Some((middle, most)) if ms(median) > middle as f64 || ms(*last) > most as f64 => {
            Err(format!("{what} takes longer than {middle} ms in the median or {most} ms at most").into())
        }
        _ => Ok(()),
    }
}

fn change(peer: &Peer) -> Result<Response, Fault> {
    Ok(peer.runtime.block_on(peer.node.propose(Command::Pause { target: Target::All }))?)
}

/// From the kill of the primary to the first change that another one has carried out.
fn failovers(peers: &mut Vec<Peer>) -> Result<(), Fault> {
    let mut times = Vec::new();
    for _ in 0..TRIALS {
        let victim = peers.remove(primary(peers)?);
        let killed = Instant::now();
        let settings = victim.kill();
        change(&peers[0])?;
        times.push(killed.elapsed());
        peers.push(Peer::start(&settings)?);
    }
    shown("failover", times, Some((700, 1200)))
}

fn hand_overs(peers: &[Peer]) -> Result<(), Fault> {
    let (mut times, mut writes) = (Vec::new(), Vec::new());
    for _ in 0..TRIALS {
        let old = &peers[primary(peers)?];
        let started = Instant::now();
        old.runtime.block_on(old.node.hand_over())?;
        times.push(started.elapsed());
        change(old)?;
        writes.push(started.elapsed());
    }
    shown("hand-over to the next change", writes, None)?;
    shown("hand-over", times, Some((20, 20)))
}

/// Hosts report batches of events, each one after another, all to one peer.
async fn report(
    node: Arc<Node>,
    process: String,
    host: HostName,
    until: Instant,
    done: Arc<AtomicU64>,
) -> Result<(), String> {
    let words = |error: &dyn Error| error.to_string();
    let join = Command::JoinHost { host: host.clone(), facts: HostFacts::default() };
    let Response::Incarnation(incarnation) = node.propose(join).await.map_err(|e| words(&e))? else {
        return Err("no incarnation".to_owned());
    };
    let mut seq = 1;
    while Instant::now() < until {
        let event = |offset: u64| {
            let number = (seq + offset) / 2;
            let instance =
                format!("{process}.{}", number % INSTANCES).parse().map_err(|_| "a name".to_owned())?;
            let kind = match (seq + offset) % 2 {
                0 => EventKind::Started { hash: Default::default(), ports: BTreeMap::new() },
                _ => EventKind::Ready,
            };
            Ok::<_, String>(Event { instance, run: RunId(number), kind })
        };
        let events = (0..BATCH).map(event).collect::<Result<Vec<_>, _>>()?;
        let host = host.clone();
        node.propose(Command::Events { host, incarnation, first_seq: seq, events })
            .await
            .map_err(|e| words(&e))?;
        seq += BATCH;
        done.fetch_add(BATCH, Ordering::Relaxed);
    }
    Ok(())
}

fn events(peers: &[Peer]) -> Result<(), Fault> {
    for (who, place) in [("the primary", primary(peers)?), ("another peer", (primary(peers)? + 1) % 3)] {
        let peer = &peers[place];
        let done = Arc::new(AtomicU64::new(0));
        let started = Instant::now();
        let mut tasks = Vec::new();
        for number in 0..HOSTS {
            let host = format!("host{number}").parse()?;
            let work = report(peer.node.clone(), format!("zone{number}"), host, started + LOAD, done.clone());
            tasks.push(peer.runtime.spawn(work));
        }
        for task in tasks {
            peer.runtime.block_on(task)??;
        }
        let rate = done.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64();
        println!("events through {who}: {rate:.0}/s, {HOSTS} hosts in batches of {BATCH}");
        let standing = peer.node.standing().borrow().clone();
        let entries = peer.node.states().borrow().directory.len();
        println!(
            "    {entries} entries in the directory, log index {}, term {}",
            standing.index, standing.term
        );
        if rate < 20_000.0 {
            return Err("fewer than 20,000 events a second".into());
        }
    }
    let started = Instant::now();
    let single = 500;
    for _ in 0..single {
        change(&peers[primary(peers)?])?;
    }
    println!(
        "single changes, one after another: {:.2} ms each",
        started.elapsed().as_secs_f64() * 1000.0 / f64::from(single)
    );
    Ok(())
}

/// Every election that nobody asked for, with every core busy.
fn steady(peers: &[Peer], span: Duration) -> Result<(), Fault> {
    let began = Instant::now();
    let place = primary(peers)?;
    let first = peers[place].node.standing().borrow().clone();
    let cores = std::thread::available_parallelism()?.get();
    let burners: Vec<_> = (0..cores)
        .map(|_| {
            std::thread::spawn(move || {
                let mut number = 1_u64;
                while began.elapsed() < span {
                    for _ in 0..100_000 {
                        number =
                            std::hint::black_box(number.wrapping_mul(6364136223846793005).wrapping_add(1));
                    }
                }
                number
            })
        })
        .collect();
    let (mut changes, mut without) = (0, Duration::ZERO);
    while began.elapsed() < span {
        std::thread::sleep(Duration::from_millis(50));
        // A little work, as a cluster has it.
        if changes % 20 == 0 {
            change(&peers[place])?;
        }
        changes += 1;
        if !peers.iter().any(Peer::is_primary) {
            without += Duration::from_millis(50);
        }
    }
    for burner in burners {
        burner.join().map_err(|_| "a burner ended")?;
    }
    let last = peers[primary(peers)?].node.standing().borrow().clone();
    println!(
        "{:.0} s with {cores} cores loaded: {} elections, {:.1} s without a primary",
        span.as_secs_f64(),
        last.term - first.term,
        without.as_secs_f64()
    );
    match last.term == first.term {
        true => Ok(()),
        false => Err("an election that nobody asked for".into()),
    }
}

fn main() -> Result<(), Fault> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let folder = tempfile::Builder::new().prefix("raft-bench-").tempdir_in(".")?;
    let settings = settings(folder.path())?;
    let mut peers = settings.iter().map(Peer::start).collect::<Result<Vec<_>, _>>()?;
    primary(&peers)?;
    if let [mode, seconds] = &args[..]
        && mode == "steady"
    {
        return steady(&peers, Duration::from_secs(seconds.parse()?));
    }
    events(&peers)?;
    hand_overs(&peers)?;
    failovers(&mut peers)
}
