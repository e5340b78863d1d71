//! Measures many attached hosts: how they spread over three peers, what they cost, how long a change takes to
//! reach the last of them, and how long they are without a peer when one is killed.
//!
//! `cargo run --release --example attached -- 300` runs so many sessions in this process against three peers in
//! processes of their own, in a folder below the current one.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use bigbrother::cluster::node::{self, Node, ProposeError};
use bigbrother::cluster::raft::SNAPSHOT_EVERY;
use bigbrother::cluster::session::{self, Attached, MOVE_AFTER, Session};
use bigbrother::keeper::protocol::RunId;
use bigbrother::spec::HostName;
use bigbrother::state::{Command, Event, EventKind, HostFacts, Response, Target, Version};

type Fault = Box<dyn Error>;

const PEERS: [&str; 3] = ["alpha", "beta", "gamma"];
/// Directory entries of each host.
const INSTANCES: u64 = 20;
/// Changes whose way is timed.
const CHANGES: usize = 50;
/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(10);

/// A peer in a process of its own; it is killed with this.
struct Peer {
    host: HostName,
    child: Child,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn settings(folder: &Path, host: &str, addresses: &[String]) -> Result<node::Settings, Fault> {
    let mut peers = BTreeMap::new();
    for (host, address) in PEERS.iter().zip(addresses) {
        peers.insert(host.parse()?, address.clone());
    }
    let host: HostName = host.parse()?;
    let listen = peers.get(&host).cloned().unwrap_or_default();
    Ok(node::Settings {
        cluster: "bench".to_owned(),
        data_dir: folder.join(host.as_str()),
        host,
        peers,
        listen,
        tls: None,
        dead_voter_after: Duration::from_secs(600),
        snapshot_every: SNAPSHOT_EVERY,
    })
}

/// Is a peer until its standard input ends.
async fn be_a_peer(settings: node::Settings) -> Result<(), Fault> {
    let _node = Node::open(settings).await?;
    let end = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0]));
    end.await??;
    Ok(())
}

/// Resident memory in MiB, and the processor time used so far.
fn used(pid: u32) -> Result<(f64, Duration), Fault> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |place: usize| fields.get(place).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    // User and system time, in hundredths of a second.
    Ok((kib / 1024.0, Duration::from_millis(10 * (ticks(11) + ticks(12)))))
}

/// Memory of this process and of each peer, and what of a processor they use while nothing happens.
async fn show_cost(peers: &[Peer], hosts: usize) -> Result<(), Fault> {
    let pids: Vec<u32> =
        std::iter::once(std::process::id()).chain(peers.iter().map(|p| p.child.id())).collect();
    let before = pids.iter().map(|pid| used(*pid)).collect::<Result<Vec<_>, _>>()?;
    tokio::time::sleep(IDLE).await;
    for (pid, (_, spent)) in pids.iter().zip(before) {
        let (memory, now) = used(*pid)?;
        let share = 100.0 * (now - spent).as_secs_f64() / IDLE.as_secs_f64();
        let who = if *pid == pids[0] { format!("{hosts} hosts") } else { "a peer".to_owned() };
        println!("    {who}: {memory:.0} MiB, {share:.1} % of a processor while nothing happens");
    }
    Ok(())
}

fn shown(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let (Some(first), Some(last)) = (times.first(), times.last()) else { return };
    let median = times[times.len() / 2];
    println!("{what}: min {:.1} ms, median {:.1} ms, max {:.1} ms", ms(*first), ms(median), ms(*last));
}

fn spread(hosts: &[Attached]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for host in hosts {
        let by = host.served_by().borrow().as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
        *counts.entry(by).or_default() += 1;
    }
    counts.iter().map(|(peer, count)| format!("{peer} {count}")).collect::<Vec<_>>().join(", ")
}

/// A machine that is too slow for so many hosts at once is asked again, as agents do.
async fn insist(host: &Attached, command: Command) -> Result<Response, String> {
    for _ in 0..20 {
        match host.propose(command.clone()).await {
            Ok(response) => return Ok(response),
            Err(ProposeError::NoPrimary(_)) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Err("no primary".to_owned())
}

/// A host joins and says what runs on it.
async fn move_in(host: Attached, name: HostName) -> Result<(), String> {
    let facts = HostFacts { version: Version(1), ..HostFacts::default() };
    let join = Command::JoinHost { host: name.clone(), facts };
    let Response::Incarnation(incarnation) = insist(&host, join).await? else {
        return Err("no incarnation".to_owned());
    };
    host.set_incarnation(incarnation);
    let mut events = Vec::new();
    for number in 0..INSTANCES {
        let instance = format!("zone-{name}.{number}").parse().map_err(|_| "a name".to_owned())?;
        let kind = EventKind::Started { hash: Default::default(), ports: BTreeMap::new() };
        events.push(Event { instance, run: RunId(number + 1), kind });
    }
    let events = Command::Events { host: name, incarnation, first_seq: 1, events };
    insist(&host, events).await.map(drop)
}

async fn changes(hosts: &[Attached]) -> Result<(), Fault> {
    let (mut whole, mut fan_out) = (Vec::new(), Vec::new());
    for number in 0..CHANGES {
        let proposer = &hosts[number % hosts.len()];
        let proposed = Instant::now();
        insist(proposer, Command::Pause { target: Target::All }).await?;
        let known = Instant::now();
        let index = proposer.standing().borrow().index;
        for host in hosts {
            host.standing().wait_for(|standing| standing.index >= index).await?;
        }
        whole.push(proposed.elapsed());
        fan_out.push(known.elapsed());
    }
    shown("a change, from its proposal to the last copy", whole);
    shown("a change, from the proposer's copy to the last one", fan_out);
    Ok(())
}

/// Kills a peer; how long its hosts are without one.
async fn failover(hosts: &[Attached], victim: &mut Peer) -> Result<(), Fault> {
    let served: Vec<&Attached> =
        hosts.iter().filter(|host| host.served_by().borrow().as_ref() == Some(&victim.host)).collect();
    let killed = Instant::now();
    victim.child.kill()?;
    let mut times = Vec::new();
    for host in &served {
        let mut by = host.served_by();
        let other = by.wait_for(|by| by.as_ref().is_some_and(|by| *by != victim.host)).await;
        drop(other?);
        times.push(killed.elapsed());
    }
    // In the order of the hosts, so each is at least that of the one before.
    shown(&format!("{} hosts of a killed peer have another one", served.len()), times);
    println!("    {}", spread(hosts));
    Ok(())
}

async fn measure(folder: &Path, count: usize) -> Result<(), Fault> {
    let sockets = PEERS.map(|_| TcpListener::bind("127.0.0.1:0"));
    let mut addresses = Vec::new();
    for socket in sockets {
        addresses.push(socket?.local_addr()?.to_string());
    }
    let mut peers = Vec::new();
    for host in PEERS {
        let mut child = Process::new(std::env::current_exe()?);
        child.arg("peer").arg(folder).arg(host).args(&addresses).stdin(Stdio::piped());
        peers.push(Peer { host: host.parse()?, child: child.spawn()? });
    }
    let (mut sessions, mut hosts, mut names) = (Vec::new(), Vec::new(), Vec::new());
    let known = settings(folder, PEERS[0], &addresses)?;
    for number in 0..count {
        let host: HostName = format!("host{number}").parse()?;
        let data_dir = folder.join(host.as_str());
        std::fs::create_dir_all(&data_dir)?;
        let settings = session::Settings {
            cluster: known.cluster.clone(),
            host: host.clone(),
            peers: known.peers.clone(),
            data_dir,
            tls: None,
            peer_silence: Duration::from_secs(1),
            move_after: MOVE_AFTER,
        };
        let session = Session::open(settings).await?;
        hosts.push(session.attached());
        sessions.push(session);
        names.push(host);
    }
    let started = Instant::now();
    for host in &hosts {
        host.served_by().wait_for(Option::is_some).await?;
    }
    println!("{count} hosts attached within {:.1} s: {}", started.elapsed().as_secs_f64(), spread(&hosts));
    show_cost(&peers, count).await?;
    let started = Instant::now();
    let moving: Vec<_> =
        hosts.iter().cloned().zip(names).map(|(host, name)| tokio::spawn(move_in(host, name))).collect();
    for host in moving {
        host.await??;
    }
    let index = hosts.iter().map(|host| host.standing().borrow().index).max().unwrap_or(0);
    for host in &hosts {
        host.standing().wait_for(|standing| standing.index >= index).await?;
    }
    let entries = hosts[0].states().borrow().directory.len();
    println!("{entries} directory entries are in all copies after {:.1} s", started.elapsed().as_secs_f64());
    // Let the files be written first.
    tokio::time::sleep(Duration::from_secs(3)).await;
    show_cost(&peers, count).await?;
    changes(&hosts).await?;
    failover(&hosts, &mut peers[1]).await?;
    println!("whole states taken: {}", hosts.iter().map(Attached::wholes).sum::<u64>());
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Fault> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    bigbrother::descriptors::raise_limit()?;
    if let [what, folder, host, addresses @ ..] = &args[..]
        && what == "peer"
    {
        return be_a_peer(settings(Path::new(folder), host, addresses)?).await;
    }
    let count = args.first().map_or(Ok(300), |count| count.parse())?;
    let folder = tempfile::Builder::new().prefix("attached-bench-").tempdir_in(".")?;
    measure(folder.path(), count).await
}
