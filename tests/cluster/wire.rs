//! What agents say to each other, over real sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bigbrother::cluster::wire::hello::Ours;
use bigbrother::cluster::wire::{
    CallError, DialError, Dialer, Exchange, Frame, Hello, Kind, Outlet, Peerage, Purpose, Refusal, Server,
    Service, Target, parcel,
};
use bigbrother::spec::HostName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use super::peers::name;

fn ours(host: &str, cluster: &str) -> Ours {
    Ours { cluster: cluster.to_owned(), host: name(host), incarnation: 1, history: Some(7), id: Some(1) }
}

/// As much as goes into a message.
const MUCH: usize = 15 << 20;

/// Gives back what it is asked, and takes its time with one kind.
#[derive(Default)]
struct Echo {
    snapshots: AtomicUsize,
    /// Requests that take their time, and have come.
    slow: AtomicUsize,
}

impl Service for Echo {
    fn ours(&self) -> Ours {
        ours("alpha", "pirates")
    }

    fn peerage(&self, host: &HostName) -> Peerage {
        match host.as_str() {
            "delta" => Peerage::Unproven,
            "omega" => Peerage::Stranger,
            _ => Peerage::Peer,
        }
    }

    async fn answer(&self, _: &Hello, kind: Kind, body: Vec<u8>, _: &Outlet) -> Result<Vec<u8>, String> {
        match kind {
            Kind::Join => Err("no".to_owned()),
            Kind::Transfer => {
                self.slow.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(60)).await;
                Ok(body)
            }
            Kind::Statuses => Ok(vec![7; MUCH]),
            _ => Ok(body),
        }
    }

    async fn take_snapshot(&self, _: &Hello, head: Vec<u8>, bytes: Vec<u8>) -> Result<Vec<u8>, String> {
        if head == b"slow disk" {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        self.snapshots.fetch_add(bytes.len(), Ordering::Relaxed);
        Ok(head)
    }
}

struct Wire {
    exchange: Exchange,
    target: Target,
    echo: Arc<Echo>,
    server: tokio::task::JoinHandle<()>,
    _ours: watch::Sender<Ours>,
    connected: mpsc::Receiver<Target>,
}

async fn wire(from: Ours) -> Wire {
    let server = Server::bind("127.0.0.1:0", None).await.unwrap();
    let address = server.address().unwrap().to_string();
    let echo = Arc::new(Echo::default());
    let (sender, seen) = watch::channel(from);
    let (told, connected) = mpsc::channel(8);
    let target = Target { host: name("alpha"), id: None, address };
    let exchange = Exchange::new(Dialer::new(seen, None), told);
    Wire { exchange, target, server: tokio::spawn(server.run(echo.clone())), echo, _ours: sender, connected }
}

async fn ask(wire: &Wire, kind: Kind, body: &[u8], ttl_ms: u64) -> Result<Vec<u8>, CallError> {
    let ttl = Duration::from_millis(ttl_ms);
    wire.exchange.call(&wire.target, Purpose::Urgent, kind, body.to_vec(), ttl).await
}

#[tokio::test]
async fn each_request_gets_its_own_answer_or_its_deadline() {
    let wire = wire(ours("beta", "pirates")).await;
    let slow = ask(&wire, Kind::Transfer, b"slow", 300);
    let quick = async {
        for number in 0..200u32 {
            let body = number.to_le_bytes();
            assert_eq!(ask(&wire, Kind::Vote, &body, 5000).await.unwrap(), body);
        }
        assert_eq!(ask(&wire, Kind::Join, b"", 5000).await, Err(CallError::Failed("no".to_owned())));
    };
    let (slow, ()) = tokio::join!(slow, quick);
    assert_eq!(slow, Err(CallError::Late(Duration::from_millis(300))));
}

/// Each purpose has a connection of its own: what is not answered or not taken on one holds up nothing on another.
#[tokio::test]
async fn votes_and_reports_overtake_all_that_waits() {
    let wire = wire(ours("beta", "pirates")).await;
    // More than are at work at once, and none is answered: as it is while statuses wait for news.
    let mut waiting = tokio::task::JoinSet::new();
    for purpose in [Purpose::Status, Purpose::Bulk, Purpose::HostBulk] {
        for _ in 0..100 {
            let (exchange, target) = (wire.exchange.clone(), wire.target.clone());
            waiting.spawn(async move {
                exchange.call(&target, purpose, Kind::Transfer, Vec::new(), Duration::from_secs(60)).await
            });
        }
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    // Of each connection, as many as it may have at work.
    while wire.echo.slow.load(Ordering::Relaxed) < 3 * 64 {
        assert!(Instant::now() < deadline, "{:?} at work only", wire.echo.slow);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for (much, little, kind) in [
        (Purpose::Status, Purpose::Urgent, Kind::Vote),
        (Purpose::Bulk, Purpose::Urgent, Kind::Report),
        (Purpose::HostBulk, Purpose::Host, Kind::Report),
    ] {
        let (mut reader, mut writer, _) = wire.exchange.dialer().dial(&wire.target, much).await.unwrap();
        let ask_for_much =
            |request| Frame { kind: Kind::Statuses, request, ttl_ms: 60_000, body: Vec::new() };
        let flood: Vec<Frame> = (1..20).map(ask_for_much).collect();
        writer.send(&flood).await.unwrap();
        for number in 0..200u32 {
            let body = number.to_le_bytes().to_vec();
            let asked = wire.exchange.call(&wire.target, little, kind, body.clone(), Duration::from_secs(5));
            assert_eq!(asked.await.unwrap(), body, "{kind:?} behind {much:?}");
        }
        // They were under way all the time.
        assert!(waiting.try_join_next().is_none(), "what was to wait is answered");
        let first = reader.next().await.unwrap();
        assert_eq!((first.kind, first.body.len()), (Kind::Answer, MUCH));
    }
}

#[tokio::test]
async fn a_request_that_takes_long_is_waited_for_while_others_are_answered() {
    let wire = wire(ours("beta", "pirates")).await;
    let started = Instant::now();
    let slow = ask(&wire, Kind::Transfer, b"slow", 3000);
    let quick = async {
        // For longer than an urgent line bears to hear nothing.
        while started.elapsed() < Duration::from_millis(2500) {
            assert_eq!(ask(&wire, Kind::Vote, b"quick", 5000).await.unwrap(), b"quick");
            tokio::time::sleep(Duration::from_millis(600)).await;
        }
    };
    let (slow, ()) = tokio::join!(slow, quick);
    assert_eq!(slow, Err(CallError::Late(Duration::from_millis(3000))), "the connection was given up");
}

/// Lets handshakes through and nothing else, and counts them. What comes then is swallowed, or not even taken.
async fn abyss(listener: TcpListener, real: String, dialled: Arc<AtomicUsize>, swallows: bool) {
    while let Ok((mut socket, _)) = listener.accept().await {
        let (real, dialled) = (real.clone(), dialled.clone());
        tokio::spawn(async move {
            let mut chunk = [0; 4096];
            let mut peer = TcpStream::connect(&real).await?;
            let read = socket.read(&mut chunk).await?;
            peer.write_all(&chunk[..read]).await?;
            let read = peer.read(&mut chunk).await?;
            socket.write_all(&chunk[..read]).await?;
            dialled.fetch_add(1, Ordering::Relaxed);
            while swallows && socket.read(&mut chunk).await? > 0 {}
            std::future::pending::<std::io::Result<()>>().await
        });
    }
}

/// As heartbeats do after a cable was pulled: one is asked for after the other.
#[tokio::test]
async fn a_line_that_hears_nothing_is_dialled_anew_however_busy_it_is() {
    for swallows in [true, false] {
        let mut wire = wire(ours("beta", "pirates")).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = listener.local_addr().unwrap().to_string();
        let real = std::mem::replace(&mut wire.target.address, proxy);
        let dialled = Arc::new(AtomicUsize::new(0));
        let _abyss = tokio::spawn(abyss(listener, real, dialled.clone(), swallows));
        let count = || dialled.load(Ordering::Relaxed);
        let mut quickest = Duration::MAX;
        // A busy machine may be slow once.
        for round in 1..=3 {
            let began = Instant::now();
            let mut body = if swallows { vec![] } else { vec![7; MUCH] };
            while count() <= round {
                let waited = began.elapsed();
                assert!(waited < Duration::from_secs(10), "{} dials in {waited:?}, {swallows}", count());
                let answer = ask(&wire, Kind::Append, &std::mem::take(&mut body), 50).await;
                assert!(answer.is_err(), "answered by nobody: {answer:?}");
            }
            quickest = quickest.min(began.elapsed());
        }
        assert!(quickest < Duration::from_millis(1500), "dialled anew after {quickest:?}, {swallows}");
    }
}

#[tokio::test]
async fn what_finds_a_full_queue_is_told_so_and_waits_for_nothing() {
    // It takes the connection, and says nothing.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (_ours, seen) = watch::channel(ours("beta", "pirates"));
    let exchange = Exchange::new(Dialer::new(seen, None), mpsc::channel(1).0);
    let target = Target { host: name("alpha"), id: None, address: deaf.local_addr().unwrap().to_string() };
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let (exchange, target) = (exchange.clone(), target.clone());
        asked.spawn(async move {
            let began = Instant::now();
            let ttl = Duration::from_secs(2);
            (exchange.call(&target, Purpose::Bulk, Kind::Propose, Vec::new(), ttl).await, began.elapsed())
        });
    }
    let answers = asked.join_all().await;
    let busy: Vec<Duration> =
        answers.iter().filter(|(answer, _)| *answer == Err(CallError::Busy)).map(|(_, took)| *took).collect();
    assert!(busy.len() > 200, "{} of 500 found no place", busy.len());
    assert!(busy.iter().all(|took| *took < Duration::from_secs(1)), "{busy:?}");
    assert!(answers.iter().all(|(answer, _)| answer.is_err()));
}

#[tokio::test]
async fn another_cluster_hears_why_it_is_refused() {
    let wire = wire(ours("beta", "ninjas")).await;
    let Err(DialError::Refused(refusal)) =
        wire.exchange.dialer().dial(&wire.target, Purpose::Bulk).await.map(drop)
    else {
        panic!("not refused");
    };
    assert!(matches!(refusal, Refusal::Cluster { .. }));
    let Err(CallError::Unreachable(why)) = ask(&wire, Kind::Vote, b"", 5000).await else {
        panic!("answered")
    };
    assert!(why.contains("belongs to the cluster \"pirates\", not \"ninjas\""), "{why}");
}

#[tokio::test]
async fn a_stranger_does_not_speak_as_a_peer() {
    let wire = wire(ours("omega", "pirates")).await;
    for purpose in [Purpose::Urgent, Purpose::Bulk, Purpose::Snapshot] {
        let dialled = wire.exchange.dialer().dial(&wire.target, purpose).await.map(drop);
        let Err(DialError::Refused(refusal)) = dialled else { panic!("{purpose:?} is let in") };
        assert!(refusal.to_string().starts_with("alpha knows of no peer named omega"), "{refusal}");
    }
    for purpose in [Purpose::Host, Purpose::HostBulk, Purpose::Api, Purpose::Probe] {
        let asked = wire.exchange.call(&wire.target, purpose, Kind::Load, vec![7], Duration::from_secs(5));
        assert_eq!(asked.await.unwrap(), [7]);
    }
}

#[tokio::test]
async fn little_is_taken_from_whoever_is_not_known_to_be_a_peer() {
    let wire = wire(ours("delta", "pirates")).await;
    let send = async |size: usize| {
        let (dialer, head) = (wire.exchange.dialer(), b"head".to_vec());
        parcel::send(dialer, &wire.target, head, &vec![7; size], Duration::from_secs(10)).await
    };
    assert_eq!(send(64 << 20).await.unwrap(), b"head");
    assert!(send((64 << 20) + 1).await.is_err());
    // One begins, and holds the only place there is.
    let _first = wire.exchange.dialer().dial(&wire.target, Purpose::Snapshot).await.unwrap();
    assert!(send(1).await.is_err());
    drop(_first);
    let deadline = Instant::now() + Duration::from_secs(10);
    while send(1).await.is_err() {
        assert!(Instant::now() < deadline, "its place is never free again");
    }
}

#[tokio::test]
async fn a_host_that_is_back_is_told_of() {
    let mut wire = wire(ours("beta", "pirates")).await;
    ask(&wire, Kind::Vote, b"1", 5000).await.unwrap();
    wire.server.abort();
    let deadline = Instant::now() + Duration::from_secs(10);
    while ask(&wire, Kind::Vote, b"2", 200).await.is_ok() {
        assert!(Instant::now() < deadline, "a host that is gone answers");
    }
    assert!(matches!(
        ask(&wire, Kind::Vote, b"3", 200).await,
        Err(CallError::Unreachable(_) | CallError::Late(_))
    ));
    let server = Server::bind(&wire.target.address, None).await.unwrap();
    let _server = tokio::spawn(server.run(wire.echo.clone()));
    while ask(&wire, Kind::Vote, b"4", 200).await.is_err() {
        assert!(Instant::now() < deadline, "a host that is back does not answer");
    }
    let told = tokio::time::timeout(Duration::from_secs(10), wire.connected.recv()).await;
    assert_eq!(told.expect("nobody was told"), Some(wire.target.clone()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vote_does_not_wait_behind_a_snapshot() {
    let wire = wire(ours("beta", "pirates")).await;
    let snapshot = vec![7u8; 256 << 20];
    let size = snapshot.len();
    let (dialer, target) = (wire.exchange.dialer().clone(), wire.target.clone());
    ask(&wire, Kind::Vote, b"warm", 5000).await.unwrap();
    let sent = tokio::spawn(async move {
        parcel::send(&dialer, &target, b"head".to_vec(), &snapshot, Duration::from_secs(30)).await
    });
    let started = Instant::now();
    let mut slowest = Duration::ZERO;
    let mut votes = 0;
    while !sent.is_finished() {
        let asked = Instant::now();
        ask(&wire, Kind::Vote, b"vote", 5000).await.unwrap();
        slowest = slowest.max(asked.elapsed());
        votes += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(sent.await.unwrap().unwrap(), b"head");
    assert_eq!(wire.echo.snapshots.load(Ordering::Relaxed), size);
    println!("{votes} votes while {} MiB went by, the slowest {slowest:?}", size >> 20);
    assert!(votes >= 20, "only {votes} votes went by: the snapshot was too short to tell");
    // On one connection the slowest would have waited for all of it; the rest is the machine's own business.
    let most = (started.elapsed() / 5).max(Duration::from_millis(75));
    assert!(slowest < most, "{slowest:?} of {:?}", started.elapsed());
}

/// Each step has its second; what comes after the last one takes the longer the more there is to write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_to_a_large_snapshot_may_take_longer_than_a_step() {
    let wire = wire(ours("beta", "pirates")).await;
    let send = |length: usize| {
        let (dialer, target) = (wire.exchange.dialer().clone(), wire.target.clone());
        let bytes = vec![7; length];
        async move { parcel::send(&dialer, &target, b"slow disk".to_vec(), &bytes, Duration::from_secs(1)).await }
    };
    let (large, small) = tokio::join!(send(32 << 20), send(1 << 10));
    assert_eq!(large.unwrap(), b"slow disk");
    assert_eq!(
        small,
        Err(CallError::Late(Duration::from_secs(1))),
        "it is waited for no longer than it may take"
    );
}

/// Opens connections without a word until it is told to end, more in 3 s than there may be in all.
fn pester(address: &str, opened: &AtomicUsize, done: &AtomicBool) {
    let mut silent = std::collections::VecDeque::new();
    while !done.load(Ordering::Relaxed) {
        silent.push_back((Instant::now(), std::net::TcpStream::connect(address).unwrap()));
        opened.fetch_add(1, Ordering::Relaxed);
        while silent.front().is_some_and(|(at, _)| at.elapsed() > Duration::from_secs(4)) {
            silent.pop_front();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_that_say_nothing_keep_no_peer_out() {
    bigbrother::descriptors::raise_limit().unwrap();
    let wire = wire(ours("beta", "pirates")).await;
    let counts = Arc::new((AtomicUsize::new(0), AtomicBool::new(false)));
    let (address, shared) = (wire.target.address.clone(), counts.clone());
    let pest = std::thread::spawn(move || pester(&address, &shared.0, &shared.1));
    let since = Instant::now();
    while counts.0.load(Ordering::Relaxed) < 2000 && since.elapsed() < Duration::from_secs(5) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let since = Instant::now();
    while let Err(why) = ask(&wire, Kind::Vote, b"x", 1500).await {
        let opened = counts.0.load(Ordering::Relaxed);
        assert!(since.elapsed() < Duration::from_millis(2500), "{opened} strangers keep it out: {why}");
    }
    println!("a peer was in after {:?}, {} strangers", since.elapsed(), counts.0.load(Ordering::Relaxed));
    counts.1.store(true, Ordering::Relaxed);
    pest.join().unwrap();
}

#[tokio::test]
async fn rubbish_ends_its_connection_and_nothing_else() {
    let wire = wire(ours("beta", "pirates")).await;
    for rubbish in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[255; 64]] {
        let mut socket = TcpStream::connect(&wire.target.address).await.unwrap();
        socket.write_all(rubbish).await.unwrap();
        let mut heard = Vec::new();
        // Closed with or without a reset; nothing is said.
        let _ = tokio::time::timeout(Duration::from_secs(5), socket.read_to_end(&mut heard)).await.unwrap();
        assert!(heard.is_empty());
    }
    assert_eq!(ask(&wire, Kind::Vote, b"x", 5000).await.unwrap(), b"x");
}
