//! Fills the directory of a running cluster and watches it with many connections: the load of `benches/directory.py`.
//!
//! `crowd CLUSTER FOLDER NAME=ADDRESS,...` attaches as further hosts, whose instances it makes up, and then obeys the
//! lines of its standard input with one line of JSON each:
//!
//! ```text
//! fill N                        N runs in the directory
//! watch N CHANGES ADDRESS[,...] N watchers, a connection each; when CHANGES changes have reached the last of them,
//!                               counted from the proposal, and from when the proposer heard that it is committed
//! drop                          the watchers hang up
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, Read, Write};
use std::net::TcpStream;
use std::os::linux::net::TcpStreamExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bigbrother::cluster::session::{self, Attached, MOVE_AFTER, Session};
use bigbrother::keeper::protocol::RunId;
use bigbrother::spec::{HostName, Protocol};
use bigbrother::state::{Command, Event, EventKind, HostFacts, Response, Version};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use tokio::sync::mpsc;

type Fault = Box<dyn Error + Send + Sync>;

/// Hosts that are made up. More of them are silent at once than may be lost, so none is declared down. Few, since each keeps
/// a copy of the state here, on the processors that are measured, and writes it to disk.
const HOSTS: usize = 5;
/// Events in one command.
const BATCH: usize = 250;
/// How long a change may take to the last watcher.
const PATIENCE: Duration = Duration::from_secs(60);

struct Host {
    attached: Attached,
    name: HostName,
    incarnation: u64,
    next_seq: u64,
    _session: Session,
}

impl Host {
    async fn join(
        cluster: &str,
        folder: &Path,
        peers: &BTreeMap<HostName, String>,
        number: usize,
    ) -> Result<Host, Fault> {
        let name: HostName = format!("crowd{number}").parse()?;
        let data_dir = folder.join(name.as_str());
        std::fs::create_dir_all(&data_dir)?;
        let session = Session::open(session::Settings {
            cluster: cluster.to_owned(),
            host: name.clone(),
            peers: peers.clone(),
            data_dir,
            tls: None,
            peer_silence: Duration::from_secs(1),
            move_after: MOVE_AFTER,
        })
        .await?;
        let attached = session.attached();
        attached.served_by().wait_for(Option::is_some).await?;
        let facts =
            HostFacts { version: Version(1), address: format!("203.0.113.{number}"), ..HostFacts::default() };
        let Response::Incarnation(incarnation) =
            attached.propose(Command::JoinHost { host: name.clone(), facts }).await?
        else {
            return Err("no incarnation".into());
        };
        attached.set_incarnation(incarnation);
        Ok(Host { attached, name, incarnation, next_seq: 1, _session: session })
    }

    async fn tell(&mut self, events: Vec<Event>) -> Result<(), Fault> {
        let first_seq = self.next_seq;
        self.next_seq += events.len() as u64;
        let command =
            Command::Events { host: self.name.clone(), incarnation: self.incarnation, first_seq, events };
        self.attached.propose(command).await?;
        Ok(())
    }
}

fn event(number: usize, kind: EventKind) -> Result<Event, Fault> {
    Ok(Event { instance: format!("zone.{number}").parse()?, run: RunId(1), kind })
}

fn started(number: usize) -> Result<Event, Fault> {
    let port = 20_000 + (number % 40_000) as u16;
    let ports = BTreeMap::from([("game".to_owned(), (Protocol::Udp, port))]);
    event(number, EventKind::Started { hash: Default::default(), ports })
}

/// Which host has the instance.
fn of(number: usize) -> usize {
    number % HOSTS
}

async fn fill(hosts: &mut [Host], count: usize) -> Result<String, Fault> {
    let began = Instant::now();
    for (place, host) in hosts.iter_mut().enumerate() {
        let mine: Vec<usize> = (0..count).filter(|number| of(*number) == place).collect();
        for batch in mine.chunks(BATCH) {
            host.tell(batch.iter().map(|number| started(*number)).collect::<Result<_, _>>()?).await?;
        }
    }
    // The first one leads; the others come after it, and change nothing but themselves.
    hosts[0].tell(vec![event(0, EventKind::Ready)?]).await?;
    Ok(format!("{{\"entries\":{count},\"seconds\":{:.2}}}", began.elapsed().as_secs_f64()))
}

/// Opens a watch; what comes of it is still to be read.
fn open(address: &str, after: &str) -> Result<TcpStream, Fault> {
    let mut stream = TcpStream::connect(address)?;
    let head = format!("GET /v1/directory/watch?after={after} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut said = [0; 4096];
    let size = stream.read(&mut said)?;
    if !said.starts_with(b"HTTP/1.1 200") {
        return Err(String::from_utf8_lossy(&said[..size]).into());
    }
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Passes on when each `put` came, until nobody wants to know. One thread for all: in the field the watchers are on other
/// machines, so here they take as little of the processors as they can.
fn read_events(streams: &[TcpStream], puts: &mpsc::Sender<Vec<Instant>>) -> Result<(), Fault> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (number, stream) in streams.iter().enumerate() {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll.add(stream, EpollEvent::new(flags, number as u64))?;
    }
    let (mut ready, mut buffer) = ([EpollEvent::empty(); 64], [0; 4096]);
    while !puts.is_closed() {
        let count = epoll.wait(&mut ready, 100_u16)?;
        let mut heard = Vec::with_capacity(count);
        for event in &ready[..count] {
            let mut stream = &streams[event.data() as usize];
            // The kernel would else send an acknowledgement with each read; so it does once in a while.
            stream.set_quickack(false)?;
            let size = stream.read(&mut buffer)?;
            if size == 0 {
                return Err("an agent hung up".into());
            }
            let now = Instant::now();
            // An event is short and sent at once, so it comes in one piece.
            let lines = buffer[..size].split(|byte| *byte == b'\n');
            heard.extend(lines.filter(|line| *line == b"event: put").map(|_| now));
        }
        if !heard.is_empty() && puts.blocking_send(heard).is_err() {
            break;
        }
    }
    Ok(())
}

/// The id of the last event, by an agent's own account.
fn newest(address: &str) -> Result<String, Fault> {
    let mut stream = TcpStream::connect(address)?;
    let head = format!("GET /v1/directory/watch?process=none HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut said = String::new();
    let mut buffer = [0; 4096];
    while !said.contains("\n\n") {
        let size = stream.read(&mut buffer)?;
        said.push_str(std::str::from_utf8(&buffer[..size])?);
    }
    let id = said.lines().find_map(|line| line.strip_prefix("id: "));
    id.map(str::to_owned).ok_or_else(|| format!("no id in {said}").into())
}

struct Crowd {
    hosts: Vec<Host>,
    /// What the watchers hear; they hang up when it is dropped.
    watchers: Option<mpsc::Receiver<Vec<Instant>>>,
    /// The next instance that becomes ready.
    next: usize,
}

impl Crowd {
    async fn watch(&mut self, count: usize, changes: usize, addresses: &[&str]) -> Result<String, Fault> {
        let after = newest(addresses[0])?;
        let began = Instant::now();
        let addresses = addresses.iter().cycle().take(count);
        let streams: Vec<TcpStream> =
            addresses.map(|address| open(address, &after)).collect::<Result<_, _>>()?;
        let (to, puts) = mpsc::channel(8192);
        let puts = self.watchers.insert(puts);
        std::thread::spawn(move || {
            read_events(&streams, &to).inspect_err(|error| eprintln!("the watchers: {error}"))
        });
        let connected = began.elapsed();
        let (mut since_proposal, mut since_commit, mut middle) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..changes {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let number = self.next;
            self.next += 1;
            let proposed = Instant::now();
            self.hosts[of(number)].tell(vec![event(number, EventKind::Ready)?]).await?;
            let committed = Instant::now();
            let mut heard = Vec::new();
            while heard.len() < count {
                let more = tokio::time::timeout(PATIENCE, puts.recv()).await?;
                heard.extend(more.ok_or("the watchers ended")?);
            }
            heard.sort();
            let last = heard[heard.len() - 1];
            since_proposal.push(last - proposed);
            since_commit.push(last.saturating_duration_since(committed));
            middle.push(heard[heard.len() / 2] - proposed);
        }
        let figure = |name: &str, mut times: Vec<Duration>| {
            times.sort();
            let ms = |share: f64| {
                let place = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len()) - 1;
                times[place].as_secs_f64() * 1000.0
            };
            format!("\"{name}_p50_ms\":{:.2},\"{name}_p99_ms\":{:.2}", ms(0.5), ms(0.99))
        };
        Ok(format!(
            "{{\"watchers\":{count},\"changes\":{changes},\"connected_s\":{:.2},{},{},{}}}",
            connected.as_secs_f64(),
            figure("last_since_proposal", since_proposal),
            figure("last_since_commit", since_commit),
            figure("middle_since_proposal", middle)
        ))
    }

    async fn obey(&mut self, line: &str) -> Result<String, Fault> {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["fill", count] => fill(&mut self.hosts, count.parse()?).await,
            ["watch", count, changes, addresses] => {
                let addresses: Vec<&str> = addresses.split(',').collect();
                self.watch(count.parse()?, changes.parse()?, &addresses).await
            }
            ["drop"] => {
                self.watchers = None;
                Ok("{}".to_owned())
            }
            _ => Err(format!("{line:?} is no order").into()),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Fault> {
    bigbrother::descriptors::raise_limit()?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [cluster, folder, addresses] = &args[..] else {
        return Err("crowd CLUSTER FOLDER NAME=ADDRESS,...".into());
    };
    let mut peers = BTreeMap::new();
    for peer in addresses.split(',') {
        let (name, address) = peer.split_once('=').ok_or("NAME=ADDRESS")?;
        peers.insert(name.parse()?, address.to_owned());
    }
    let mut crowd = Crowd { hosts: Vec::new(), watchers: None, next: 1 };
    for number in 0..HOSTS {
        crowd.hosts.push(Host::join(cluster, Path::new(folder), &peers, number).await?);
    }
    println!("{{\"hosts\":{HOSTS}}}");
    for line in std::io::stdin().lock().lines() {
        println!("{}", crowd.obey(&line?).await?);
    }
    Ok(())
}
