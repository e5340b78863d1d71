//! The HTTP API over a real Unix socket, with a pretended agent behind the handle.

// clippy's leave for tests does not reach the helpers of a file that is all test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bigbrother::agent::Handle;
use bigbrother::agent::handle::{HostRequest, HostSnapshot, Proposal};
use bigbrother::http::view::{
    EventView, ExitView, HeartbeatView, InstanceView, KeeperView, Problem, StatusView,
};
use bigbrother::http::{Listeners, serve};
use bigbrother::keeper::protocol::SpawnStep;
use bigbrother::metrics::{Metrics, SocketFault, SpawnFault};
use bigbrother::spec::*;
use bigbrother::state::{Command, Placement, Rejected, Response, State, Target};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;

const DEADLINE: Duration = Duration::from_secs(10);

// ---------------------------------------------------------------- the pretended agent

/// What reached the agent.
#[derive(Debug, PartialEq)]
enum Asked {
    Snapshot,
    Restart(Vec<String>),
    Announce(String, String),
    Proposed(Command),
}

struct Server {
    dir: tempfile::TempDir,
    metrics: Arc<Metrics>,
    events: broadcast::Sender<EventView>,
    /// `None`: the agent answers nothing until there is one.
    snapshot: watch::Sender<Option<Arc<HostSnapshot>>>,
    asked: mpsc::UnboundedReceiver<Asked>,
    tcp: std::net::SocketAddr,
    shutdown: watch::Sender<bool>,
    served: JoinHandle<Result<(), bigbrother::http::ServeError>>,
    agent: JoinHandle<()>,
}

fn process(population: Population, logs: Logs) -> Process {
    let second = Duration::from_secs(1);
    Process {
        command: vec!["/bin/true".into()],
        population,
        ports: BTreeMap::new(),
        user: None,
        group: None,
        working_dir: None,
        env: BTreeMap::new(),
        umask: 0o022,
        nice: 0,
        ignore_sigpipe: true,
        ready: Ready { mode: ReadyMode::Native, timeout: second },
        heartbeat: Heartbeat {
            mode: HeartbeatMode::Native,
            interval: second,
            timeout: second * 5,
            on_hang: OnHang::Kill,
            abort_timeout: second,
        },
        restart: Restart {
            policy: RestartPolicy::Always,
            backoff: None,
            healthy_after: second,
            give_up: None,
        },
        stop: Stop { signal: 15, timeout: second },
        drain: Drain { timeout: second },
        limits: Limits {
            memory: None,
            cpu_milli: None,
            pids: None,
            files: None,
            core: None,
            required: false,
        },
        placement: PlacementPolicy {
            labels: BTreeMap::new(),
            strategy: Strategy::Spread,
            max_per_host: None,
            needs: BTreeMap::new(),
        },
        update: Update { max_unavailable: 1, when_empty: false, deadline: None },
        after: vec![],
        on_partition: OnPartition::Keep,
        logs,
        build: None,
        launch: vec![],
        labels: BTreeMap::new(),
    }
}

fn state() -> State {
    let files = Logs::Files { size: 1 << 20, files: 3 };
    let mut state = State { index: 17, revision: 4, ..State::default() };
    let processes = [
        ("zone", process(Population::Count(2), files.clone())),
        ("login", process(Population::PerHost, Logs::Journald)),
        ("dungeon", process(Population::OnDemand { max: 1 }, files)),
    ];
    for (name, process) in processes {
        state.spec.processes.insert(name.parse().unwrap(), process.into());
    }
    let host: HostName = "alpha".parse().unwrap();
    let placement = Placement { host, generation: 1, hash: Default::default() };
    state.placements.insert("zone.2".parse().unwrap(), placement);
    state
}

fn instance(id: &str, state: &str, pid: Option<i32>) -> InstanceView {
    let instance: InstanceId = id.parse().unwrap();
    InstanceView {
        process: instance.process.clone(),
        instance,
        host: "alpha".parse().unwrap(),
        state: state.into(),
        reason: None,
        pid,
        run: Some(7),
        restarts: 1,
        started_at: Some("2026-01-01T00:00:00Z".into()),
        ready_at: None,
        last_exit: Some(ExitView {
            cause: "hang".into(),
            code: None,
            signal: Some("SIGKILL".into()),
            at: "2026-01-01T00:00:00Z".into(),
            detail: None,
        }),
        ports: BTreeMap::new(),
        heartbeat: HeartbeatView { mode: "native".into(), age_ms: Some(12) },
        status: serde_json::Map::new(),
    }
}

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap()
}

fn snapshot(instances: Vec<InstanceView>) -> Arc<HostSnapshot> {
    let keeper = KeeperView { pid: own_pid(), version: "0.1.0".into(), cgroups: "kill-only".into() };
    Arc::new(HostSnapshot { instances, keeper: Some(keeper), spec_drift: None })
}

fn two_zones() -> Arc<HostSnapshot> {
    snapshot(vec![
        instance("login.alpha", "ready", None),
        instance("zone.0", "ready", Some(own_pid())),
        instance("zone.1", "backoff", None),
    ])
}

fn event(seq: u64, instance: &str) -> EventView {
    EventView {
        seq,
        at: "2026-01-01T00:00:00Z".into(),
        host: "alpha".parse().unwrap(),
        instance: instance.parse().unwrap(),
        run: Some(1),
        kind: "started".into(),
        cause: None,
        detail: None,
    }
}

/// The recent events of the pretended agent.
fn recent(of: Option<&InstanceId>) -> Vec<EventView> {
    let all = [event(1, "zone.0"), event(2, "zone.1"), event(3, "zone.0")];
    all.into_iter().filter(|e| of.is_none_or(|id| e.instance == *id)).collect()
}

fn applied(command: &Command) -> Result<Response, Rejected> {
    let name = |n: &ProcessName| n.as_str().to_owned();
    match command {
        Command::ApplySpec { expected_revision: Some(expected), .. } if *expected != 4 => {
            Err(Rejected::Revision { expected: *expected, found: 4 })
        }
        Command::ApplySpec { .. } => Ok(Response::Revision(5)),
        Command::Scale { process, .. } if name(process) != "zone" => {
            Err(Rejected::NotCounted(process.clone()))
        }
        Command::Launch { process, .. } if name(process) != "dungeon" => {
            Err(Rejected::NotOnDemand(process.clone()))
        }
        Command::Launch { process, key: Some(key), .. } if key == "second" => {
            Err(Rejected::Full { process: process.clone(), max: 1 })
        }
        Command::Launch { .. } => Ok(Response::Launched("dungeon.7".parse().unwrap())),
        _ => Ok(Response::Done),
    }
}

async fn pretend(
    mut requests: mpsc::Receiver<HostRequest>,
    mut proposals: mpsc::Receiver<Proposal>,
    mut snapshot: watch::Receiver<Option<Arc<HostSnapshot>>>,
    asked: mpsc::UnboundedSender<Asked>,
) {
    loop {
        tokio::select! {
            Some(request) = requests.recv() => match request {
                HostRequest::Snapshot(reply) => {
                    asked.send(Asked::Snapshot).unwrap();
                    let now = snapshot.wait_for(Option::is_some).await.unwrap().clone().unwrap();
                    let _ = reply.send(now);
                }
                HostRequest::Events(of, reply) => {
                    let _ = reply.send(recent(of.as_ref()));
                }
                HostRequest::Restart(ids, reply) => {
                    asked.send(Asked::Restart(ids.iter().map(ToString::to_string).collect())).unwrap();
                    let _ = reply.send(());
                }
                HostRequest::Announce(id, text, reply) => {
                    asked.send(Asked::Announce(id.to_string(), text)).unwrap();
                    let _ = reply.send(());
                }
                HostRequest::HangReport(id, reply) => {
                    let report = (id.to_string() == "zone.1").then(|| "wchan: futex_wait\n".to_owned());
                    let _ = reply.send(report);
                }
                HostRequest::Reload(reply) => {
                    let _ = reply.send(Err("cluster.toml:3:1: unknown key".into()));
                }
            },
            Some(Proposal { command, reply }) = proposals.recv() => {
                let answer = applied(&command);
                asked.send(Asked::Proposed(command)).unwrap();
                let _ = reply.send(answer);
            }
            else => return,
        }
    }
}

impl Server {
    async fn start() -> Server {
        let dir = tempfile::tempdir().unwrap();
        let (requests, requests_in) = mpsc::channel(64);
        let (proposals, proposals_in) = mpsc::channel(64);
        let (snapshot, snapshots) = watch::channel(Some(two_zones()));
        let (asked_in, asked) = mpsc::unbounded_channel();
        let agent = tokio::spawn(pretend(requests_in, proposals_in, snapshots, asked_in));
        Server::with(dir, requests, proposals, agent, snapshot, asked).await
    }

    async fn with(
        dir: tempfile::TempDir,
        requests: mpsc::Sender<HostRequest>,
        proposals: mpsc::Sender<Proposal>,
        agent: JoinHandle<()>,
        snapshot: watch::Sender<Option<Arc<HostSnapshot>>>,
        asked: mpsc::UnboundedReceiver<Asked>,
    ) -> Server {
        let events = broadcast::channel(4).0;
        // The sender may go: the last value stays.
        let state = watch::channel(Arc::new(state())).1;
        let handle = Handle {
            host: "alpha".parse().unwrap(),
            cluster: "pirates".into(),
            started_at: "2026-01-01T00:00:00Z".into(),
            logs: dir.path().join("logs"),
            requests,
            proposals,
            state,
            events: events.clone(),
        };
        let listeners =
            Listeners::bind(&dir.path().join("api.sock"), 0o600, Some("127.0.0.1:0")).await.unwrap();
        let tcp = listeners.tcp_address().unwrap();
        let metrics = Arc::new(Metrics::new());
        let (shutdown, stop) = watch::channel(false);
        let served = tokio::spawn(serve(handle, metrics.clone(), listeners, stop));
        Server { dir, metrics, events, snapshot, asked, tcp, shutdown, served, agent }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> hyper::Response<Incoming> {
        let stream = UnixStream::connect(self.socket()).await.unwrap();
        exchange(stream, method, path, headers, body).await
    }

    async fn get(&self, path: &str) -> Answer {
        Answer::read(self.send("GET", path, &[], "").await).await
    }

    async fn post(&self, path: &str, body: &str) -> Answer {
        Answer::read(self.send("POST", path, &[("content-type", "application/json")], body).await).await
    }

    async fn apply(&self, query: &str, toml: &str) -> Answer {
        let path = format!("/v1/apply{query}");
        Answer::read(self.send("POST", &path, &[("content-type", "application/toml")], toml).await).await
    }

    async fn follow(&self, path: &str) -> Follower {
        let response = self.send("GET", path, &[], "").await;
        assert_eq!(response.status(), 200);
        Follower { body: response.into_body(), seen: String::new() }
    }

    /// What was asked of the agent since the last call, snapshots left out.
    fn asked(&mut self) -> Vec<Asked> {
        let mut asked = self.all_asked();
        asked.retain(|a| *a != Asked::Snapshot);
        asked
    }

    fn all_asked(&mut self) -> Vec<Asked> {
        std::iter::from_fn(|| self.asked.try_recv().ok()).collect()
    }
}

async fn exchange(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> hyper::Response<Incoming> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = hyper::Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "localhost");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
    let answer = tokio::time::timeout(DEADLINE, sender.send_request(request));
    answer.await.unwrap_or_else(|_| panic!("no answer to {method} {path}")).unwrap()
}

struct Answer {
    status: u16,
    headers: hyper::HeaderMap,
    body: String,
}

impl Answer {
    async fn read(response: hyper::Response<Incoming>) -> Answer {
        let (head, body) = response.into_parts();
        let body = tokio::time::timeout(DEADLINE, body.collect()).await.expect("the body ends").unwrap();
        let body = String::from_utf8(body.to_bytes().to_vec()).unwrap();
        Answer { status: head.status.as_u16(), headers: head.headers, body }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    fn json(&self) -> serde_json::Value {
        assert!((200..300).contains(&self.status), "{}: {}", self.status, self.body);
        assert_eq!(self.header("content-type"), "application/json");
        serde_json::from_str(&self.body).unwrap()
    }

    #[track_caller]
    fn problem(&self) -> Problem {
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.body);
        let problem: Problem = serde_json::from_str(&self.body).unwrap();
        assert_eq!(problem.status, self.status);
        assert!(!problem.detail.is_empty());
        problem
    }
}

struct Follower {
    body: Incoming,
    seen: String,
}

impl Follower {
    /// Reads on until all that was seen satisfies the predicate.
    async fn until(&mut self, what: &str, predicate: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !predicate(&self.seen) {
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.seen.push_str(std::str::from_utf8(&data).unwrap());
                    }
                }
                other => panic!("waited for {what}; saw {:?}, then {other:?}", self.seen),
            }
        }
    }

    async fn end(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, self.body.frame()).await {
                Ok(None) => return,
                Ok(Some(Ok(_))) => {}
                other => panic!("waited for the end; saw {:?}, then {other:?}", self.seen),
            }
        }
    }
}

// ---------------------------------------------------------------- reading

#[tokio::test]
async fn the_host_can_be_read() {
    let server = Server::start().await;
    assert_eq!(server.get("/v1/healthz").await.json(), serde_json::json!({ "ok": true }));

    let status: StatusView = serde_json::from_value(server.get("/v1/status").await.json()).unwrap();
    assert_eq!((status.cluster.as_str(), status.host.as_str()), ("pirates", "alpha"));
    assert_eq!((status.index, status.revision, status.quorum), (17, 4, true));
    assert_eq!(status.instances, BTreeMap::from([("backoff".to_owned(), 1), ("ready".to_owned(), 2)]));
    assert_eq!(status.keeper.unwrap().pid, own_pid());

    let names = |answer: Answer| {
        let all: Vec<InstanceView> = serde_json::from_value(answer.json()).unwrap();
        all.iter().map(|i| i.instance.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(server.get("/v1/instances").await), ["login.alpha", "zone.0", "zone.1"]);
    assert_eq!(names(server.get("/v1/instances?process=zone").await), ["zone.0", "zone.1"]);
    assert_eq!(names(server.get("/v1/instances?instance=zone.1").await), ["zone.1"]);
    // On demand, and none was launched.
    assert_eq!(names(server.get("/v1/instances?process=dungeon").await), [""; 0]);

    let one: InstanceView = serde_json::from_value(server.get("/v1/instances/zone.0").await.json()).unwrap();
    assert_eq!(one, instance("zone.0", "ready", Some(own_pid())));

    let spec = server.get("/v1/spec").await.json();
    assert_eq!(spec["revision"], 4);
    assert_eq!(spec["spec"]["processes"]["zone"]["command"][0], "/bin/true");

    let report = server.get("/v1/instances/zone.1/hang-report").await;
    assert_eq!((report.status, report.body.as_str()), (200, "wchan: futex_wait\n"));

    let seqs = |answer: Answer| {
        let all: Vec<EventView> = serde_json::from_value(answer.json()).unwrap();
        all.iter().map(|e| e.seq).collect::<Vec<_>>()
    };
    assert_eq!(seqs(server.get("/v1/events").await), [1, 2, 3]);
    assert_eq!(seqs(server.get("/v1/events?instance=zone.1").await), [2]);
}

#[tokio::test]
async fn requests_that_come_together_share_snapshots() {
    let mut server = Server::start().await;
    server.snapshot.send_replace(None);
    let mut streams = Vec::new();
    for _ in 0..50 {
        let mut stream = UnixStream::connect(server.socket()).await.unwrap();
        stream
            .write_all(b"GET /v1/instances HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        streams.push(stream);
    }
    // One thread, and first come, first served: when this is answered, the fifty are waiting.
    assert_eq!(server.get("/v1/healthz").await.status, 200);
    server.snapshot.send_replace(Some(two_zones()));
    for mut stream in streams {
        let mut answer = String::new();
        tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    // The first request's, and one for all that came meanwhile.
    let asked = server.all_asked().len();
    assert!(asked <= 2, "{asked} snapshots for 50 requests at once");
}

// ---------------------------------------------------------------- refusals

#[tokio::test]
async fn every_refusal_is_a_problem_that_says_what_to_do() {
    let server = Server::start().await;
    const JSON: &str = "application/json";
    const TOML: &str = "application/toml";
    #[rustfmt::skip]
    let cases = [
        // method, path, content type, body, status, type, part of the detail
        ("GET", "/", "", "", 404, "no-route", "/"),
        ("GET", "/v1/nothing", "", "", 404, "no-route", "/v1/nothing"),
        ("DELETE", "/v1/status", "", "", 405, "method-not-allowed", "DELETE"),
        ("GET", "/v1/restart", "", "", 405, "method-not-allowed", "GET"),
        ("GET", "/v1/instances/zone.5", "", "", 404, "no-instance", "zone.0"),
        ("GET", "/v1/instances/zone.2", "", "", 404, "nothing-there", "zone.2"),
        ("GET", "/v1/instances/Zone", "", "", 400, "bad-name", "zone.3"),
        ("GET", "/v1/instances/..%2f..%2fetc", "", "", 400, "bad-name", "a name has"),
        ("GET", "/v1/instances/%ff", "", "", 400, "bad-request", "UTF-8"),
        ("GET", "/v1/instances?process=zne", "", "", 404, "no-process", "did you mean zone?"),
        ("GET", "/v1/instances?instance=zonne.1", "", "", 404, "no-instance", "did you mean zone.1?"),
        ("GET", "/v1/instances?proces=zone", "", "", 400, "bad-request", "proces"),
        ("GET", "/v1/events?follow=perhaps", "", "", 400, "bad-request", "follow"),
        ("GET", "/v1/events?instance=arena.9", "", "", 404, "no-instance", "arena.9"),
        ("GET", "/v1/instances/zone.0/hang-report", "", "", 404, "nothing-there", "zone.0"),
        ("GET", "/v1/instances/nobody.0/hang-report", "", "", 404, "no-instance", "nobody.0"),
        ("GET", "/v1/instances/nobody.0/logs", "", "", 404, "no-instance", "nobody.0"),
        ("GET", "/v1/instances/login.alpha/logs", "", "", 404, "nothing-there", "journalctl"),
        ("GET", "/v1/instances/zone.0/logs?stream=stdin", "", "", 400, "bad-request", "stdin"),
        ("GET", "/v1/instances/zone.0/logs?lines=-1", "", "", 400, "bad-request", "lines"),
        ("POST", "/v1/restart", "", r#"{"target":"all"}"#, 415, "unsupported-media-type", "application/json"),
        ("POST", "/v1/restart", JSON, "{", 400, "bad-request", "JSON"),
        ("POST", "/v1/restart", JSON, r#"{"target":"some"}"#, 400, "bad-request", "some"),
        ("POST", "/v1/restart", JSON, r#"{"target":{"process":"zoen"}}"#, 404, "no-process", "did you mean zone?"),
        ("POST", "/v1/stop", JSON, r#"{"target":{"instance":"zone.9"}}"#, 404, "no-instance", "did you mean zone."),
        ("POST", "/v1/start", JSON, r#"{"target":{"instance":"zone"}}"#, 400, "bad-request", "zone.3"),
        ("POST", "/v1/scale", JSON, r#"{"process":"login","count":3}"#, 409, "not-counted", "login"),
        ("POST", "/v1/scale", JSON, r#"{"process":"lgin","count":3}"#, 404, "no-process", "did you mean login?"),
        ("POST", "/v1/scale", JSON, r#"{"process":"zone","count":-1}"#, 400, "bad-request", "count"),
        ("POST", "/v1/launch", JSON, r#"{"process":"zone"}"#, 409, "not-on-demand", "zone"),
        ("POST", "/v1/launch", JSON, r#"{"process":"dungeon","key":"second"}"#, 409, "full", "max"),
        ("POST", "/v1/launch", JSON, r#"{"process":"dungeon","arg":{}}"#, 400, "bad-request", "arg"),
        ("POST", "/v1/announce", JSON, r#"{"instance":"zone.7","text":"x"}"#, 404, "no-instance", "zone.7"),
        ("POST", "/v1/reload", "", "", 422, "reload-failed", "unknown key"),
        ("POST", "/v1/apply", JSON, "{}", 415, "unsupported-media-type", "application/toml"),
        ("POST", "/v1/apply", TOML, "[process.zone", 422, "invalid-spec", "zone"),
        ("POST", "/v1/apply?dry_run=maybe", TOML, "", 400, "bad-request", "dry_run"),
    ];
    for (method, path, content_type, body, status, kind, part) in cases {
        let headers = [("content-type", content_type)];
        let headers = if content_type.is_empty() { &headers[..0] } else { &headers[..] };
        let answer = Answer::read(server.send(method, path, headers, body).await).await;
        let seen = format!("{method} {path} {body}: {} {}", answer.status, answer.body);
        assert_eq!(answer.status, status, "{seen}");
        let problem = answer.problem();
        assert_eq!(problem.kind, kind, "{seen}");
        assert!(problem.detail.contains(part), "{seen}");
    }
    let answer = Answer::read(server.send("DELETE", "/v1/status", &[], "").await).await;
    assert!(answer.header("allow").contains("GET"), "{:?}", answer.headers);
}

#[tokio::test]
async fn a_body_over_the_bound_is_refused_and_one_below_is_not() {
    let server = Server::start().await;
    let answer = server.apply("", &"#".repeat(1024 * 1024 + 1)).await;
    assert_eq!((answer.status, answer.problem().kind.as_str()), (413, "too-large"));
    let padding = format!("{}\n", "#".repeat(1024 * 1024 - 100));
    let answer =
        server.apply("", &format!("{padding}[process.a]\ncommand = [\"/bin/a\"]\ncount = 1\n")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[tokio::test]
async fn bytes_that_are_no_http_end_their_connection_only() {
    let server = Server::start().await;
    let huge_head = format!("GET / HTTP/1.1\r\nhost: x\r\nbig: {}\r\n\r\n", "x".repeat(200_000));
    for garbage in ["\0\x01\x02\r\n\r\n", "GET\r\n\r\n", "{\"jsonrpc\":\"2.0\"}\n\r\n\r\n", &huge_head] {
        let mut stream = UnixStream::connect(server.socket()).await.unwrap();
        // The server may hang up before it has all.
        let _ = stream.write_all(garbage.as_bytes()).await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
        let shown = String::from_utf8_lossy(&answer);
        let head = &garbage[..garbage.len().min(20)];
        assert!(read.is_ok(), "the connection stays open after {head:?}, it says {shown}");
        assert!(shown.is_empty() || shown.starts_with("HTTP/1.1 4"), "{head:?} is answered by {shown}");
    }
    assert_eq!(server.get("/v1/healthz").await.status, 200);
}

#[tokio::test]
async fn a_full_queue_is_busy_and_a_gone_agent_is_stopping() {
    let dir = tempfile::tempdir().unwrap();
    let (requests, mut requests_in) = mpsc::channel(1);
    let (proposals, proposals_in) = mpsc::channel(1);
    let (reply, _answer) = tokio::sync::oneshot::channel();
    requests.try_send(HostRequest::Reload(reply)).unwrap();
    let (snapshot, _) = watch::channel(Some(two_zones()));
    let agent = tokio::spawn(async {});
    let asked = mpsc::unbounded_channel().1;
    let server = Server::with(dir, requests, proposals, agent, snapshot, asked).await;

    for path in ["/v1/instances", "/v1/events", "/v1/status", "/v1/instances/zone.0"] {
        let answer = server.get(path).await;
        assert_eq!((answer.status, answer.problem().kind.as_str()), (503, "busy"), "{path}");
        assert_eq!(answer.header("retry-after"), "1");
    }
    let answer = server.post("/v1/reload", "").await;
    assert_eq!((answer.status, answer.problem().kind.as_str()), (503, "busy"));
    // What needs no agent is there, and says that the agent does not answer.
    assert_eq!(server.get("/v1/healthz").await.status, 200);
    let metrics = server.get("/metrics").await;
    assert!(metrics.body.contains("bigbrother_supervision_loop_up 0\n"), "{}", metrics.body);

    requests_in.close();
    drop((requests_in, proposals_in));
    let answer = server.get("/v1/instances").await;
    assert_eq!((answer.status, answer.problem().kind.as_str()), (503, "stopping"));
    let toml = "[process.a]\ncommand = [\"/bin/a\"]\ncount = 1\n";
    assert_eq!(server.apply("", toml).await.problem().kind, "stopping");
}

#[tokio::test]
async fn web_pages_cannot_operate_games_over_tcp() {
    let server = Server::start().await;
    let own = server.tcp.to_string();
    let cases = [
        (own.as_str(), None, 200),
        ("evil.example", None, 403),
        (own.as_str(), Some("https://evil.example"), 403),
    ];
    for (host, origin, status) in cases {
        let mut headers = vec![("host", host)];
        headers.extend(origin.map(|origin| ("origin", origin)));
        let stream = TcpStream::connect(server.tcp).await.unwrap();
        let answer = Answer::read(exchange(stream, "GET", "/v1/status", &headers, "").await).await;
        assert_eq!(answer.status, status, "{host} {origin:?}: {}", answer.body);
        if status == 403 {
            assert_eq!(answer.problem().kind, "foreign-origin");
        }
    }
}

#[tokio::test]
async fn tcp_is_for_reading() {
    let server = Server::start().await;
    let own = server.tcp.to_string();
    let headers = [("host", own.as_str()), ("content-type", "application/json")];
    let stream = TcpStream::connect(server.tcp).await.unwrap();
    let body = r#"{"target":"all"}"#;
    let answer = Answer::read(exchange(stream, "POST", "/v1/stop", &headers, body).await).await;
    assert_eq!((answer.status, answer.problem().kind.as_str()), (403, "read-only"));
}

// ---------------------------------------------------------------- changing

#[tokio::test]
async fn operators_reach_the_agent() {
    let mut server = Server::start().await;
    let both = |kind: fn(Target) -> Command| {
        let process = Asked::Proposed(kind(Target::Process("zone".parse().unwrap())));
        [process, Asked::Proposed(kind(Target::All))]
    };
    let ids = |answer: Answer| answer.json()["instances"].clone();

    let answer = server.post("/v1/restart", r#"{"target":"all"}"#).await;
    assert_eq!(ids(answer), serde_json::json!(["login.alpha", "zone.0", "zone.1"]));
    let answer = server.post("/v1/restart", r#"{"target":{"instance":"zone.1"}}"#).await;
    assert_eq!(ids(answer), serde_json::json!(["zone.1"]));
    let all = ["login.alpha", "zone.0", "zone.1"].map(str::to_owned).to_vec();
    assert_eq!(server.asked(), [Asked::Restart(all), Asked::Restart(vec!["zone.1".into()])]);

    for (path, kind) in [
        ("/v1/stop", (|target| Command::Pause { target }) as fn(Target) -> Command),
        ("/v1/start", |target| Command::Resume { target }),
    ] {
        let answer = server.post(path, r#"{"target":{"process":"zone"}}"#).await;
        assert_eq!(ids(answer), serde_json::json!(["zone.0", "zone.1"]));
        server.post(path, r#"{"target":"all"}"#).await.json();
        assert_eq!(server.asked(), both(kind));
    }

    server.post("/v1/scale", r#"{"process":"zone","count":9}"#).await.json();
    server.post("/v1/scale", r#"{"process":"zone","count":null}"#).await.json();
    let zone: ProcessName = "zone".parse().unwrap();
    let scale = |count| Asked::Proposed(Command::Scale { process: zone.clone(), count });
    assert_eq!(server.asked(), [scale(Some(9)), scale(None)]);

    let body = r#"{"process":"dungeon","args":{"map":"x"}}"#;
    let headers = [("content-type", "application/json"), ("idempotency-key", "k1")];
    let answer = Answer::read(server.send("POST", "/v1/launch", &headers, body).await).await;
    assert_eq!((answer.status, answer.json()["instance"].as_str()), (201, Some("dungeon.7")));
    let launch = Command::Launch {
        process: "dungeon".parse().unwrap(),
        args: BTreeMap::from([("map".into(), "x".into())]),
        key: Some("k1".into()),
    };
    assert_eq!(server.asked(), [Asked::Proposed(launch)]);

    server.post("/v1/announce", r#"{"instance":"zone.0","text":"kill-test"}"#).await.json();
    assert_eq!(server.asked(), [Asked::Announce("zone.0".into(), "kill-test".into())]);
}

#[tokio::test]
async fn a_spec_is_applied_or_shown() {
    let mut server = Server::start().await;
    let toml = "[process.zone]\ncommand = [\"/bin/zone\"]\ncount = 3\n\n[process.arena]\ncommand = [\"/bin/arena\"]\ncount = 1\n";

    let shown = server.apply("?dry_run=true", toml).await.json();
    assert_eq!(shown["revision"], 4);
    assert_eq!(shown["plan"]["added"], serde_json::json!(["arena"]));
    assert_eq!(shown["plan"]["removed"], serde_json::json!(["dungeon", "login"]));
    assert_eq!(shown["plan"]["changed"][0]["process"], "zone");
    assert_eq!(shown["plan"]["changed"][0]["restarts"], true);
    assert_eq!(server.asked(), [], "a dry run changes nothing");

    let applied = server.apply("?expected_revision=4", toml).await.json();
    assert_eq!((&applied["revision"], &applied["plan"]), (&5.into(), &shown["plan"]));
    let [Asked::Proposed(Command::ApplySpec { spec, expected_revision })] = &server.asked()[..] else {
        panic!("one spec is proposed")
    };
    assert_eq!(*expected_revision, Some(4));
    let zone = &spec.processes[&"zone".parse::<ProcessName>().unwrap()];
    assert_eq!((&zone.command, &zone.population), (&vec!["/bin/zone".to_owned()], &Population::Count(3)));

    for query in ["?expected_revision=3", "?expected_revision=3&dry_run=true"] {
        let answer = server.apply(query, toml).await;
        assert_eq!((answer.status, answer.problem().kind.as_str()), (409, "revision"), "{query}");
    }
    let plain = [("content-type", "text/plain; charset=utf-8")];
    assert_eq!(server.send("POST", "/v1/apply?dry_run=true", &plain, toml).await.status(), 200);
}

// ---------------------------------------------------------------- following

fn data_lines(seen: &str) -> Vec<u64> {
    let events = seen.lines().filter_map(|line| line.strip_prefix("data: "));
    events.filter_map(|json| serde_json::from_str::<EventView>(json).ok()).map(|event| event.seq).collect()
}

#[tokio::test]
async fn events_are_followed_without_gap_or_double() {
    let server = Server::start().await;
    let mut all = server.follow("/v1/events?follow=true").await;
    let mut one = server.follow("/v1/events?follow=true&instance=zone.1").await;
    all.until("the recent events", |seen| data_lines(seen) == [1, 2, 3]).await;
    // The third again, as if it had happened between subscribing and asking.
    for event in [event(3, "zone.0"), event(4, "zone.0"), event(5, "zone.1")] {
        server.events.send(event).unwrap();
    }
    all.until("the live events", |seen| data_lines(seen) == [1, 2, 3, 4, 5]).await;
    one.until("the events of one", |seen| data_lines(seen) == [2, 5]).await;

    // The ring holds four, and nobody gets to read while a hundred come.
    for seq in 6..106 {
        server.events.send(event(seq, "zone.0")).unwrap();
    }
    all.until("the newest", |seen| data_lines(seen).last() == Some(&105)).await;
    assert!(all.seen.contains("event: reset\ndata: {\"missed\":96}\n"), "{}", all.seen);

    server.shutdown.send(true).unwrap();
    all.end().await;
    one.end().await;
    server.served.await.unwrap().unwrap();
    assert!(!Path::new(&server.dir.path().join("api.sock")).exists(), "the socket's file is removed");
    server.agent.abort();
}

#[tokio::test]
async fn followers_are_bounded_and_give_their_place_back() {
    let server = Server::start().await;
    let mut followers = Vec::new();
    for _ in 0..64 {
        followers.push(server.follow("/v1/events?follow=true").await);
    }
    let answer = server.get("/v1/events?follow=true").await;
    assert_eq!((answer.status, answer.problem().kind.as_str()), (503, "busy"));
    followers.pop();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let status = server.send("GET", "/v1/events?follow=true", &[], "").await.status();
        if status == 200 {
            break;
        }
        assert!(Instant::now() < deadline, "no place was given back, still {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn logs_are_read_and_followed_across_rotation() {
    let server = Server::start().await;
    let folder = server.dir.path().join("logs/zone.0");
    // Known, but it never wrote.
    let answer = server.get("/v1/instances/zone.0/logs").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));

    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("stdout.log.1"), "one\ntwo\n").unwrap();
    std::fs::write(folder.join("stdout.log"), "three\n").unwrap();
    std::fs::write(folder.join("stderr.log"), "wrong\n").unwrap();
    let answer = server.get("/v1/instances/zone.0/logs?lines=2").await;
    assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(answer.body, "two\nthree\n");
    assert_eq!(server.get("/v1/instances/zone.0/logs?stream=stderr").await.body, "wrong\n");

    let mut follower = server.follow("/v1/instances/zone.0/logs?follow=true&lines=1").await;
    follower.until("the last line", |seen| seen == "three\n").await;
    std::fs::rename(folder.join("stdout.log"), folder.join("stdout.log.1")).unwrap();
    std::fs::write(folder.join("stdout.log"), "four\n").unwrap();
    follower.until("the line after the rotation", |seen| seen == "three\nfour\n").await;
    server.shutdown.send(true).unwrap();
    follower.end().await;
    server.served.await.unwrap().unwrap();
}

// ---------------------------------------------------------------- metrics

/// Families of which no sample is above zero.
fn zero_families(text: &str) -> Vec<String> {
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let families = families.map(|line| line.split(' ').next().unwrap());
    let above_zero = |family: &&str| {
        let mut samples = text.lines().filter(|line| !line.starts_with('#') && line.starts_with(family));
        samples.any(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() > 0.0)
    };
    families.filter(|family| !above_zero(family)).map(str::to_owned).collect()
}

fn promtool(text: &str) {
    let mut tool = Program::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is needed: apt-get install --no-install-recommends prometheus");
    tool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let said = tool.wait_with_output().unwrap();
    let complaints =
        format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success() && complaints.is_empty(), "promtool: {complaints}\n{text}");
}

#[tokio::test]
async fn metrics_pass_promtool_with_everything_above_zero() {
    let server = Server::start().await;
    let m = &server.metrics;
    let second = Duration::from_secs(1);
    let probe = Probe::Tcp { port: "game".into() };
    m.restarted("hang", second);
    m.restarted("a cause of tomorrow", second);
    m.hang_killed(Duration::from_millis(3));
    m.beat(second * 3, second);
    m.spawn_failed(SpawnFault::Step(SpawnStep::Exec));
    m.spawn_failed(SpawnFault::Port);
    m.logged(1000, 10);
    m.socket_refused(SocketFault::Flooded);
    m.probe_failed(&probe);
    m.stalled(second);
    m.limits_unenforced(&["memory.max".into(), "io.max".into()]);
    m.keeper_lost();
    server.get("/v1/status").await;
    server.get("/nowhere").await;

    // The busy ratio of the host is known from the second reading on, and CPU time comes in steps of 10 ms.
    let deadline = Instant::now() + DEADLINE;
    let text = loop {
        let answer = server.get("/metrics").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
        let mut zero = zero_families(&answer.body);
        // An idle machine has no load.
        zero.retain(|family| family != "bigbrother_host_load1");
        if zero.is_empty() {
            break answer.body;
        }
        assert!(Instant::now() < deadline, "still zero: {zero:?}\n{}", answer.body);
        let spin = Instant::now();
        while spin.elapsed() < Duration::from_millis(50) {}
    };
    promtool(&text);

    for sample in [
        "bigbrother_restarts_total{cause=\"hang\"} 1\n",
        "bigbrother_restarts_total{cause=\"unknown\"} 1\n",
        "bigbrother_restarts_total{cause=\"fence\"} 0\n",
        "bigbrother_kill_to_restart_seconds_count 2\n",
        "bigbrother_hang_kill_lateness_seconds_bucket{le=\"0.005\"} 1\n",
        "bigbrother_heartbeat_lateness_seconds_sum 2\n",
        "bigbrother_spawn_failures_total{step=\"exec\"} 1\n",
        "bigbrother_spawn_failures_total{step=\"port\"} 1\n",
        "bigbrother_log_dropped_bytes_total 10\n",
        "bigbrother_process_socket_errors_total{kind=\"flooded\"} 1\n",
        "bigbrother_probe_failures_total{mode=\"tcp\"} 1\n",
        "bigbrother_agent_stall_seconds_total 1\n",
        "bigbrother_unenforced_limits_total{limit=\"memory\"} 1\n",
        "bigbrother_unenforced_limits_total{limit=\"other\"} 1\n",
        "bigbrother_instances{state=\"ready\"} 2\n",
        "bigbrother_instances{state=\"failed\"} 0\n",
        "bigbrother_supervision_loop_up 1\n",
        "bigbrother_api_requests_total{route=\"/v1/status\",status=\"2xx\"} 1\n",
        "bigbrother_api_requests_total{route=\"none\",status=\"4xx\"} 1\n",
        "bigbrother_instance_memory_bytes{instance=\"zone.0\"} ",
        "bigbrother_own_resident_memory_bytes{part=\"keeper\"} ",
    ] {
        assert!(text.contains(sample), "no {sample:?} in\n{text}");
    }

    // What is gone is gone from the next scrape.
    server.snapshot.send_replace(Some(snapshot(vec![instance("zone.1", "ready", None)])));
    let text = server.get("/metrics").await.body;
    assert!(!text.contains("zone.0"), "{text}");
    assert!(text.contains("bigbrother_instances{state=\"ready\"} 1\n"), "{text}");
}
