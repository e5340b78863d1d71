//! The process API end to end: real clients on real sockets, and the agent's side of them.
#![cfg(feature = "host")]
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bigbrother::agent::readiness::Readiness;
use bigbrother::client::message::{Found, Launched};
use bigbrother::client::{AskError, Client, Fault, Incoming, Launch, Listing, Phase, Status};
use bigbrother::client::{Shutdown, WatchChange, WatchEvent, Welcome};
use bigbrother::process_api::rpc::{Call, Decoder, Outgoing, Request};
use bigbrother::process_api::{Identity, Said, Sockets, notify};
use bigbrother::spec::InstanceId;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(20);

fn instance() -> InstanceId {
    "zone.3".parse().unwrap()
}

/// The agent's part, just enough of it: answers questions, keeps what was said.
struct Agent {
    sockets: Sockets,
    folder: TempDir,
    heard: Vec<Call>,
}

impl Agent {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let mut sockets = Sockets::new().unwrap();
        sockets.open(&instance(), folder.path(), me()).unwrap();
        Agent { sockets, folder, heard: Vec::new() }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket(), Duration::ZERO).unwrap()
    }

    /// Dies and comes back; the keeper has held the sockets.
    fn restart(&mut self) {
        let [listener, notify] =
            self.sockets.descriptors(&instance()).unwrap().map(|s| s.try_clone_to_owned().unwrap());
        self.sockets = Sockets::new().unwrap();
        self.heard.clear();
        self.sockets.adopt(&instance(), listener, notify, me()).unwrap();
    }

    fn turn(&mut self) {
        let mut events = Vec::new();
        self.sockets.poll(&mut events);
        for event in events {
            let (Said::Request(Request { id, call }), Some(conn)) = (event.said, event.conn) else {
                continue;
            };
            if let Some(id) = id {
                let answer = match &call {
                    Call::Hello(_) => Outgoing::answer(id, &welcome()),
                    Call::Find(find) if find.process.as_str() == "login" => {
                        Outgoing::answer(id, &Found { listings: vec![listing()] })
                    }
                    Call::Find(_) => Outgoing::refused(id, Fault::NO_PROCESS, "there is no such process"),
                    Call::Launch(_) => {
                        Outgoing::answer(id, &Launched { instance: "dungeon.7".parse().unwrap() })
                    }
                    _ => Outgoing::answer(id, &()),
                };
                self.sockets.send(&instance(), conn, &answer);
            }
            if let Call::Watch(watch) = &call {
                let change = WatchChange::Snapshot { listings: vec![listing()] };
                let event = WatchEvent { process: watch.process.clone(), change };
                self.sockets.send(&instance(), conn, &Outgoing::Watch(Box::new(event)));
            }
            self.heard.push(call);
        }
    }

    /// Turns until the agent has heard such a call; `tick` is what the game does meanwhile.
    fn until(&mut self, what: &str, mut tick: impl FnMut(), holds: impl Fn(&Call) -> bool) {
        let end = Instant::now() + LIMIT;
        while !self.heard.iter().any(&holds) {
            assert!(Instant::now() < end, "the agent never heard {what}; it heard {:?}", self.heard);
            tick();
            self.turn();
        }
    }
}

fn me() -> Identity {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    Identity { uid, gid, ..Identity::default() }
}

fn welcome() -> Welcome {
    Welcome { protocol: 1, instance: instance(), host: "alpha".parse().unwrap(), run: 5, heartbeat_ms: 1000 }
}

fn listing() -> Listing {
    Listing {
        instance: "login.0".parse().unwrap(),
        host: "alpha".parse().unwrap(),
        address: "10.0.0.1".to_owned(),
        run: 2,
        ready: true,
        ports: BTreeMap::new(),
        status: Some(Box::new(Status { players: Some(3), ..Status::default() })),
        status_age_ms: Some(700),
    }
}

fn hears(client: &mut Client, agent: &mut Agent, expected: &Incoming) {
    let end = Instant::now() + LIMIT;
    let mut heard = Vec::new();
    while !heard.contains(expected) {
        assert!(Instant::now() < end, "the client never heard {expected:?}; it heard {heard:?}");
        agent.turn();
        heard.extend(client.poll());
    }
}

/// Runs the agent's part until the question of a client on another thread is answered.
fn asked<T: Send>(agent: &mut Agent, client: &mut Client, ask: impl FnOnce(&mut Client) -> T + Send) -> T {
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(client));
        while !asking.is_finished() {
            agent.turn();
        }
        asking.join().unwrap()
    })
}

#[test]
fn a_game_goes_through_its_life() {
    let mut agent = Agent::new();
    let mut game = agent.client();
    game.hello("zone", "1.4.2");
    hears(&mut game, &mut agent, &Incoming::Welcome(welcome()));
    game.ready();
    let status = Status { players: Some(3), map: Some("harbour".to_owned()), ..Status::default() };
    game.status(&status);
    agent.until("ready", || (), |call| *call == Call::Ready);
    agent.until("the status", || (), |call| *call == Call::Status(Box::new(status.clone())));
    agent.until("a beat", || game.heartbeat(), |call| *call == Call::Heartbeat);

    let found = asked(&mut agent, &mut game, |game| game.find(&"login".parse().unwrap(), true, LIMIT));
    assert_eq!(found.unwrap(), [listing()]);
    let refused = asked(&mut agent, &mut game, |game| game.find(&"nobody".parse().unwrap(), true, LIMIT));
    assert!(matches!(refused, Err(AskError::Refused(ref f)) if f.code == Fault::NO_PROCESS), "{refused:?}");
    let launch = Launch { process: "dungeon".parse().unwrap(), args: BTreeMap::new(), key: None };
    let launched = asked(&mut agent, &mut game, |game| game.launch(&launch, LIMIT));
    assert_eq!(launched.unwrap().to_string(), "dungeon.7");
    let late = game.find(&"login".parse().unwrap(), true, Duration::from_millis(30));
    assert!(matches!(late, Err(AskError::Timeout(_))), "nobody answers: {late:?}");

    game.watch(&"login".parse().unwrap());
    let snapshot = WatchEvent {
        process: "login".parse().unwrap(),
        change: WatchChange::Snapshot { listings: vec![listing()] },
    };
    hears(&mut game, &mut agent, &Incoming::Watch(snapshot));

    agent.heard.clear();
    let shutdown = Shutdown { reason: "rolling update".to_owned(), deadline_ms: 10_000 };
    agent.sockets.broadcast(&instance(), &Outgoing::Shutdown(shutdown.clone()));
    hears(&mut game, &mut agent, &Incoming::Shutdown(shutdown));
    game.draining();
    game.stopping();
    agent.until("stopping", || (), |call| *call == Call::Stopping);
    let order: Vec<_> = agent.heard.iter().filter(|c| !matches!(c, Call::Heartbeat)).collect();
    assert_eq!(order, [&Call::Draining, &Call::Stopping]);
}

#[test]
fn a_new_agent_is_told_how_far_the_game_is() {
    let mut agent = Agent::new();
    let mut game = agent.client();
    game.hello("zone", "1");
    game.ready();
    let status = Status { players: Some(9), ..Status::default() };
    game.status(&status);
    game.watch(&"login".parse().unwrap());
    agent.until("the watch", || (), |call| matches!(call, Call::Watch(_)));
    agent.restart();
    // Nothing but its tick: no call about the loss.
    let told = |call: &Call| matches!(call, Call::Hello(h) if h.state == Phase::Ready && h.client == "zone");
    agent.until("hello", || game.heartbeat(), told);
    agent.until("a beat", || game.heartbeat(), |call| *call == Call::Heartbeat);
    agent.until("the status", || game.heartbeat(), |call| *call == Call::Status(Box::new(status.clone())));
    agent.until("the watch", || (), |call| matches!(call, Call::Watch(_)));
    hears(&mut game, &mut agent, &Incoming::Welcome(welcome()));
}

#[test]
fn the_first_beat_after_a_reconnection_goes_out_at_once() {
    let mut agent = Agent::new();
    let mut game = Client::connect(&agent.socket(), Duration::from_secs(3600)).unwrap();
    game.heartbeat();
    agent.until("a beat", || (), |call| *call == Call::Heartbeat);
    agent.heard.clear();
    game.heartbeat();
    game.draining();
    agent.until("draining", || (), |call| *call == Call::Draining);
    assert_eq!(agent.heard, [Call::Draining], "one beat an interval is enough");
    agent.restart();
    let end = Instant::now() + LIMIT;
    while !game.poll().contains(&Incoming::Reconnected) {
        assert!(Instant::now() < end, "the game never came back");
    }
    game.heartbeat();
    agent.until("a beat", || (), |call| *call == Call::Heartbeat);
}

#[test]
fn a_ping_is_answered_by_the_games_tick_and_not_by_its_reading() {
    let mut agent = Agent::new();
    let mut game = Client::connect(&agent.socket(), Duration::from_secs(3600)).unwrap();
    game.hello("zone", "1");
    game.heartbeat();
    agent.until("a beat", || (), |call| *call == Call::Heartbeat);
    agent.heard.clear();
    assert_eq!(agent.sockets.broadcast(&instance(), &Outgoing::Ping), 1);
    // The welcome that the next hello brings shows that all before it was read.
    game.hello("zone", "2");
    let end = Instant::now() + LIMIT;
    while !game.poll().contains(&Incoming::Welcome(welcome())) {
        assert!(Instant::now() < end, "the game never read the ping");
        agent.turn();
    }
    assert!(
        !agent.heard.contains(&Call::Heartbeat),
        "a loop that only reads does not tick: {:?}",
        agent.heard
    );
    agent.until("the answer to the ping", || game.heartbeat(), |call| *call == Call::Heartbeat);
}

#[test]
fn an_agent_that_does_not_read_never_blocks_the_game() {
    let mut agent = Agent::new();
    let mut game = agent.client();
    let (done, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for _ in 0..50_000 {
            game.heartbeat();
        }
        game.stopping();
        done.send(game).expect("the test waits for it");
    });
    let game = finished.recv_timeout(LIMIT).expect("heartbeat() has blocked");
    // What was written before the socket was full is whole lines, and the last word is not lost.
    let mut game = Some(game);
    agent.until("stopping", || drop(game.as_mut().map(Client::poll)), |call| *call == Call::Stopping);
    assert_eq!(agent.sockets.counters().malformed_lines, 0);
    assert!(agent.heard.iter().all(|call| matches!(call, Call::Heartbeat | Call::Stopping)));
}

/// The example client; ended when dropped.
struct Python(std::process::Child);

impl Python {
    fn start(agent: &Agent, heartbeat_ms: &str) -> Python {
        let game = Command::new("python3")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/client.py"))
            .env("BIGBROTHER_SOCKET", agent.socket())
            .env("BIGBROTHER_HEARTBEAT_MS", heartbeat_ms)
            .stdout(Stdio::null())
            .spawn();
        Python(game.expect("this test needs python3: apt-get install python3"))
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_client_in_python_answers_a_ping_and_a_shutdown_at_once() {
    let mut agent = Agent::new();
    let mut game = Python::start(&agent, "3600000");
    agent.until("a beat", || (), |call| *call == Call::Heartbeat);
    agent.heard.clear();
    assert_eq!(agent.sockets.broadcast(&instance(), &Outgoing::Ping), 1);
    agent.until("the answer to the ping", || (), |call| *call == Call::Heartbeat);
    let shutdown = Shutdown { reason: "test".to_owned(), deadline_ms: 1000 };
    assert_eq!(agent.sockets.broadcast(&instance(), &Outgoing::Shutdown(shutdown)), 1);
    agent.until("stopping", || (), |call| *call == Call::Stopping);
    assert!(game.0.wait().unwrap().success());
}

#[test]
fn forty_lines_of_python_are_a_client() {
    let mut agent = Agent::new();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/client.py");
    let lines = std::fs::read_to_string(&example).unwrap().lines().count();
    assert!(lines <= 40, "{lines} lines");
    let mut game = Python::start(&agent, "20");
    let told = |call: &Call| matches!(call, Call::Hello(h) if h.state == Phase::Ready);
    agent.until("hello", || (), told);
    agent.until("a beat", || (), |call| *call == Call::Heartbeat);
    let status = |call: &Call| matches!(call, Call::Status(s) if s.capacity == Some(8));
    agent.until("a status", || (), status);
    agent.restart();
    agent.until("hello again", || (), told);
    let shutdown = Shutdown { reason: "test".to_owned(), deadline_ms: 1000 };
    assert_eq!(agent.sockets.broadcast(&instance(), &Outgoing::Shutdown(shutdown)), 1);
    agent.until("stopping", || (), |call| *call == Call::Stopping);
    assert!(game.0.wait().unwrap().success());
}

/// The supervision loop waits for one descriptor; a beat must never be left lying behind it.
#[test]
fn every_beat_wakes_the_loop() {
    const INSTANCES: usize = 100;
    const BEATS: usize = 20;
    let folder = TempDir::new().unwrap();
    let mut sockets = Sockets::new().unwrap();
    let names: Vec<InstanceId> = (0..INSTANCES).map(|n| format!("zone.{n}").parse().unwrap()).collect();
    for name in &names {
        sockets.open(name, &folder.path().join(name.to_string()), me()).unwrap();
    }
    let mut games: Vec<UnixStream> = names
        .iter()
        .map(|name| UnixStream::connect(folder.path().join(name.to_string()).join("api.sock")).unwrap())
        .collect();
    let (heard, hear) = std::sync::mpsc::channel();
    // One game after the other waits until its beat is heard, so that a lost one stops everything.
    let players = std::thread::spawn(move || {
        for beat in 0..BEATS {
            for (number, game) in games.iter_mut().enumerate() {
                game.write_all(b"{\"jsonrpc\":\"2.0\",\"method\":\"heartbeat\"}\n").unwrap();
                let name: InstanceId = hear
                    .recv_timeout(LIMIT)
                    .unwrap_or_else(|e| panic!("beat {beat} of zone.{number} was not heard: {e}"));
                assert_eq!(name.to_string(), format!("zone.{number}"));
            }
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let readiness = Readiness::new(sockets.as_fd()).unwrap();
        let mut events = Vec::new();
        let mut count = 0;
        while count < INSTANCES * BEATS && !players.is_finished() {
            let Ok(readable) = tokio::time::timeout(LIMIT, readiness.readable()).await else { break };
            readable.unwrap();
            let round = readiness.begin();
            if !sockets.poll(&mut events) {
                round.empty();
            }
            for event in events.drain(..) {
                if matches!(event.said, Said::Request(_)) {
                    count += 1;
                    heard.send((*event.instance).clone()).unwrap();
                }
            }
        }
    });
    players.join().unwrap();
}

/// 300 beats a second may cost half a percent of a core: 16 microseconds each.
#[test]
fn a_beat_costs_microseconds() {
    const BEATS: u32 = 3_000;
    let mut agent = Agent::new();
    let mut game = UnixStream::connect(agent.socket()).unwrap();
    let mut events = Vec::new();
    while agent.sockets.poll(&mut events) {}
    events.clear();
    let mut spent = Duration::ZERO;
    for _ in 0..BEATS {
        game.write_all(b"{\"jsonrpc\":\"2.0\",\"method\":\"heartbeat\"}\n").unwrap();
        let before = cpu();
        agent.sockets.poll(&mut events);
        spent += cpu() - before;
        assert_eq!(events.len(), 1);
        events.clear();
    }
    let each = spent / BEATS;
    println!("{each:?} a beat");
    assert!(each < Duration::from_micros(16), "{each:?} a beat");
}

fn cpu() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

#[test]
fn the_client_is_light() {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--package",
            "bigbrother",
            "--offline",
            "--locked",
            "--no-default-features",
            "--features",
            "client",
        ])
        .args(["-e", "normal", "--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let found: BTreeSet<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    for wanted in ["bigbrother", "httparse", "serde", "serde_json", "thiserror"] {
        assert!(found.contains(wanted), "{wanted} is missing: has the test looked at the right tree? {text}");
    }
    // What those bring along themselves.
    let known = [
        "bigbrother",
        "httparse",
        "itoa",
        "memchr",
        "proc-macro2",
        "quote",
        "ryu",
        "serde",
        "serde_core",
        "serde_derive",
        "serde_json",
        "smol_str",
        "syn",
        "thiserror",
        "thiserror-impl",
        "unicode-ident",
        "zmij",
    ];
    let heavy: Vec<_> = found.iter().filter(|name| !known.contains(name)).collect();
    assert!(heavy.is_empty(), "the client's tree has grown by {heavy:?}");
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    assert!(files.len() >= 10, "the corpus of {target} is gone: {} files", files.len());
    files
}

/// As fuzz/fuzz_targets/rpc.rs, but with every cut; the first byte of a file is the fuzzer's cut.
#[test]
fn the_corpus_of_rpc_is_decoded() {
    let heard = |chunks: &[&[u8]]| {
        let mut decoder = Decoder::default();
        let mut heard = Vec::new();
        for chunk in chunks {
            decoder.feed(chunk, |message| heard.push(message));
        }
        heard
    };
    let (mut calls, mut refusals) = (0, BTreeSet::new());
    for (name, file) in corpus("rpc") {
        let stream = &file[1..];
        let whole = heard(&[stream]);
        for at in (0..stream.len()).step_by(1 + stream.len() / 500) {
            assert_eq!(heard(&[&stream[..at], &stream[at..]]), whole, "{name} cut at {at}");
        }
        for message in whole {
            match message {
                Ok(_) => calls += 1,
                Err(refusal) => drop(refusals.insert(refusal.fault.code)),
            }
        }
    }
    assert_eq!(calls, 12);
    let all = [Fault::PARSE, Fault::INVALID, Fault::METHOD, Fault::PARAMS, Fault::LINE];
    assert_eq!(refusals, BTreeSet::from(all), "the corpus reaches every refusal of the decoder");
}

#[test]
fn the_corpus_of_notify_is_decoded() {
    let mut refused = BTreeSet::new();
    for (name, file) in corpus("notify") {
        match notify::read(&file) {
            Ok(notice) => {
                assert!(notice.status.is_none_or(|s| !s.contains(char::is_control)), "{name}");
                assert!(notice.main_pid.is_none_or(|pid| pid > 0), "{name}");
            }
            Err(_) => drop(refused.insert(name)),
        }
    }
    let expected = ["empty", "mixed-barrier", "oversized", "zero"].map(str::to_owned);
    assert_eq!(refused, BTreeSet::from(expected));
}
