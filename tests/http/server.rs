//! The API under test, served on real sockets, and a client that reads what it says.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bigbrother::agent::Handle;
use bigbrother::agent::handle::{HostRequest, HostSnapshot, Proposal};
use bigbrother::agent::ring::{Alone, Ring};
use bigbrother::cluster::statuses::Statuses;
use bigbrother::cluster::tunnel::Tunnelled;
use bigbrother::config::ApiTls;
use bigbrother::http::view::{EventView, Problem};
use bigbrother::http::{Audit, Listeners, Shown, serve};
use bigbrother::metrics::Metrics;
use bigbrother::state::State;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;

use super::pretended::{Asked, pretend, state, two_zones};

/// Nothing takes longer.
pub const DEADLINE: Duration = Duration::from_secs(10);

pub struct Server {
    pub dir: tempfile::TempDir,
    pub metrics: Arc<Metrics>,
    pub statuses: Statuses,
    pub events: broadcast::Sender<Arc<EventView>>,
    /// `None`: the agent answers nothing until there is one.
    pub snapshot: watch::Sender<Option<Arc<HostSnapshot>>>,
    pub asked: mpsc::UnboundedReceiver<Asked>,
    pub tcp: std::net::SocketAddr,
    /// What it shows over TLS.
    pub shown: Option<Shown>,
    /// What the agent waits for.
    pub starting: watch::Sender<Option<String>>,
    pub shutdown: watch::Sender<bool>,
    pub served: JoinHandle<Result<(), bigbrother::http::ServeError>>,
    pub agent: JoinHandle<()>,
}

impl Server {
    pub async fn start() -> Server {
        let dir = tempfile::tempdir().unwrap();
        let (requests, requests_in) = mpsc::channel(64);
        let (proposals, proposals_in) = mpsc::channel(64);
        let (snapshot, snapshots) = watch::channel(Some(two_zones()));
        let (asked_in, asked) = mpsc::unbounded_channel();
        let agent = tokio::spawn(pretend(requests_in, proposals_in, snapshots, asked_in));
        Server::with(dir, requests, proposals, agent, snapshot, asked).await
    }

    pub async fn with(
        dir: tempfile::TempDir,
        requests: mpsc::Sender<HostRequest>,
        proposals: mpsc::Sender<Proposal>,
        agent: JoinHandle<()>,
        snapshot: watch::Sender<Option<Arc<HostSnapshot>>>,
        asked: mpsc::UnboundedReceiver<Asked>,
    ) -> Server {
        // The sender may go: the last value stays.
        let ring = (
            Ring::Alone(Alone::to(proposals, "alpha".parse().unwrap())),
            watch::channel(Arc::new(state())).1,
        );
        Server::of(dir, requests, ring, None, agent, snapshot, asked).await
    }

    /// One of a cluster; what other agents ask is answered, too.
    pub async fn of(
        dir: tempfile::TempDir,
        requests: mpsc::Sender<HostRequest>,
        (ring, state): (Ring, watch::Receiver<Arc<State>>),
        tunnelled: Option<mpsc::Receiver<Tunnelled>>,
        agent: JoinHandle<()>,
        snapshot: watch::Sender<Option<Arc<HostSnapshot>>>,
        asked: mpsc::UnboundedReceiver<Asked>,
    ) -> Server {
        let events = broadcast::channel(4).0;
        let metrics = Arc::new(Metrics::new());
        let (audit, writing) = Audit::open(dir.path().join("audit.jsonl"), metrics.clone());
        tokio::spawn(writing);
        let statuses = ring.statuses().clone();
        let handle = Handle {
            host: "alpha".parse().unwrap(),
            cluster: "pirates".into(),
            started_at: "2026-01-01T00:00:00Z".into(),
            logs: dir.path().join("logs"),
            requests,
            ring,
            state,
            events: events.clone(),
            metrics: metrics.clone(),
            audit,
        };
        // Whoever has put a certificate there is served over TLS.
        let tls = ApiTls { cert: dir.path().join("alpha-api.pem"), key: dir.path().join("alpha-api.key") };
        let tls = Some(&tls).filter(|tls| tls.cert.exists());
        let socket = dir.path().join("api.sock");
        let listeners = Listeners::bind(&socket, 0o600, Some("127.0.0.1:0"), tls).await.unwrap();
        let listeners = match tunnelled {
            Some(tunnelled) => listeners.with_tunnel(tunnelled),
            None => listeners,
        };
        let (tcp, shown) = (listeners.tcp_address().unwrap(), listeners.shown());
        let (shutdown, stop) = watch::channel(false);
        let (starting, waits) = watch::channel(None);
        let served = tokio::spawn(serve(handle, listeners, waits, stop));
        Server {
            dir,
            metrics,
            statuses,
            events,
            snapshot,
            asked,
            tcp,
            shown,
            starting,
            shutdown,
            served,
            agent,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> hyper::Response<Incoming> {
        let stream = UnixStream::connect(self.socket()).await.unwrap();
        exchange(stream, method, path, headers, body).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::read(self.send("GET", path, &[], "").await).await
    }

    pub async fn post(&self, path: &str, body: &str) -> Answer {
        Answer::read(self.send("POST", path, &[("content-type", "application/json")], body).await).await
    }

    pub async fn apply(&self, query: &str, toml: &str) -> Answer {
        let path = format!("/v1/apply{query}");
        Answer::read(self.send("POST", &path, &[("content-type", "application/toml")], toml).await).await
    }

    pub async fn follow(&self, path: &str) -> Follower {
        let response = self.send("GET", path, &[], "").await;
        assert_eq!(response.status(), 200);
        Follower { body: response.into_body(), seen: String::new() }
    }

    /// What was asked of the agent since the last call, snapshots left out.
    pub fn asked(&mut self) -> Vec<Asked> {
        let mut asked = self.all_asked();
        asked.retain(|a| *a != Asked::Snapshot);
        asked
    }

    pub fn all_asked(&mut self) -> Vec<Asked> {
        std::iter::from_fn(|| self.asked.try_recv().ok()).collect()
    }
}

pub async fn exchange(
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

pub struct Answer {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    pub body: String,
}

impl Answer {
    pub async fn read(response: hyper::Response<Incoming>) -> Answer {
        let (head, body) = response.into_parts();
        let body = tokio::time::timeout(DEADLINE, body.collect()).await.expect("the body ends").unwrap();
        let body = String::from_utf8(body.to_bytes().to_vec()).unwrap();
        Answer { status: head.status.as_u16(), headers: head.headers, body }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        assert!((200..300).contains(&self.status), "{}: {}", self.status, self.body);
        assert_eq!(self.header("content-type"), "application/json");
        serde_json::from_str(&self.body).unwrap()
    }

    #[track_caller]
    pub fn problem(&self) -> Problem {
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.body);
        let problem: Problem = serde_json::from_str(&self.body).unwrap();
        assert_eq!(problem.status, self.status);
        assert!(!problem.detail.is_empty());
        problem
    }
}

pub struct Follower {
    pub body: Incoming,
    pub seen: String,
}

impl Follower {
    /// Reads on until all that was seen satisfies the predicate.
    pub async fn until(&mut self, what: &str, predicate: impl Fn(&str) -> bool) {
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

    pub async fn end(&mut self) {
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
