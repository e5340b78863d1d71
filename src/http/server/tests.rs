//! Connections that take too long, and those that are too many.

use super::*;
use crate::agent::handle::HostRequest;
use crate::agent::ring::{Alone, Ring};
use crate::cluster::tls::issue;
use crate::config::ApiTls;
use crate::http::Audit;
use crate::http::tls::Shown;
use crate::metrics::Metrics;
use crate::state::State;
use std::sync::Arc;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc};

const STATUS: &[u8] = b"GET /v1/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
const HEALTH: &[u8] = b"GET /v1/healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

struct Served {
    dir: tempfile::TempDir,
    tcp: std::net::SocketAddr,
    metrics: Arc<Metrics>,
    // Kept, and never read: an agent that does not answer.
    unanswered: mpsc::Receiver<HostRequest>,
    shutdown: watch::Sender<bool>,
    served: tokio::task::JoinHandle<Result<(), ServeError>>,
}

/// An agent that nobody is behind, and what is asked of it.
fn handle(dir: &Path) -> (Handle, mpsc::Receiver<HostRequest>) {
    let (requests, unanswered) = mpsc::channel(8);
    let handle = Handle {
        host: "alpha".parse().unwrap(),
        cluster: "test".into(),
        started_at: String::new(),
        logs: dir.into(),
        requests,
        ring: Ring::Alone(Alone::to(mpsc::channel(1).0, "alpha".parse().unwrap())),
        state: watch::channel(Arc::new(State::default())).1,
        events: broadcast::channel(1).0,
        metrics: Arc::default(),
        audit: Audit::open(dir.join("audit.jsonl"), Arc::default()).0,
    };
    (handle, unanswered)
}

async fn start(limits: Limits) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let (handle, unanswered) = handle(dir.path());
    let metrics = handle.metrics.clone();
    let listeners =
        Listeners::bind(&dir.path().join("api.sock"), 0o600, Some("127.0.0.1:0"), None).await.unwrap();
    let tcp = listeners.tcp_address().unwrap();
    let (shutdown, stop) = watch::channel(false);
    let served = tokio::spawn(serve_within(limits, handle, listeners, watch::channel(None).1, stop));
    Served { dir, tcp, metrics, unanswered, shutdown, served }
}

impl Served {
    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("api.sock")).await.unwrap()
    }
}

async fn rest(mut stream: UnixStream) -> String {
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("the connection ends").unwrap();
    answer
}

#[tokio::test]
async fn an_agent_that_does_not_answer_is_a_timeout() {
    let server = start(Limits { request: Duration::from_millis(50), ..Limits::DEFAULT }).await;
    let mut stream = server.connect().await;
    stream.write_all(STATUS).await.unwrap();
    let answer = rest(stream).await;
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    assert!(answer.contains("\"type\":\"timeout\""), "{answer}");
    // It has read no state.
    assert!(!answer.contains("bigbrother-index"), "{answer}");
    let mut stream = server.connect().await;
    stream.write_all(HEALTH).await.unwrap();
    let answer = rest(stream).await;
    assert!(answer.contains("bigbrother-index: 0\r\n"), "{answer}");
}

#[tokio::test]
async fn a_half_sent_head_holds_a_place_for_a_while_only() {
    let head = Duration::from_millis(300);
    let server = start(Limits { connections: 1, head, ..Limits::DEFAULT }).await;
    let began = Instant::now();
    let mut slow = server.connect().await;
    slow.write_all(b"GET /v1/hea").await.unwrap();
    let mut next = server.connect().await;
    next.write_all(HEALTH).await.unwrap();
    let answer = rest(next).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(began.elapsed() >= head, "the second was served beside the first after {:?}", began.elapsed());
    assert_eq!(rest(slow).await, "");
}

#[tokio::test]
async fn a_reader_that_takes_no_answer_holds_a_place_for_a_while_only() {
    let stall = Duration::from_millis(300);
    let server = start(Limits { connections: 1, stall, ..Limits::DEFAULT }).await;
    let mut slow = server.connect().await;
    let ask = b"GET /v1/healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    // As many questions as fit, and no answer is read.
    let many = async {
        loop {
            slow.write_all(ask).await?;
        }
    };
    let ended: io::Result<()> = tokio::select! {
        ended = many => ended,
        () = tokio::time::sleep(Duration::from_secs(10)) => panic!("it is never given up"),
    };
    assert!(ended.is_err());
    let mut next = server.connect().await;
    next.write_all(HEALTH).await.unwrap();
    let answer = rest(next).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let counted = server.metrics.render(None, &Default::default());
    assert!(counted.contains("bigbrother_api_stalled_total 1\n"), "nobody learns why: {counted}");
}

#[tokio::test]
async fn shutdown_waits_for_answers_and_not_for_ever() {
    let server = start(Limits { grace: Duration::from_millis(100), ..Limits::DEFAULT }).await;
    let mut stream = server.connect().await;
    stream.write_all(STATUS).await.unwrap();
    // Its request must have been read, or it would be closed as an idle one.
    tokio::time::timeout(Duration::from_secs(10), async {
        while server.unanswered.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the request reaches the agent");
    server.shutdown.send(true).unwrap();
    let served = tokio::time::timeout(Duration::from_secs(10), server.served).await;
    served.expect("it ends although an answer is missing").unwrap().unwrap();
    assert_eq!(rest(stream).await, "");
    assert!(!server.dir.path().join("api.sock").exists());
}

/// Connections from wherever the test says.
struct Street(tokio::sync::Mutex<mpsc::Receiver<(DuplexStream, IpAddr)>>);

impl Accept for Street {
    type Stream = DuplexStream;

    async fn connection(&self) -> io::Result<(DuplexStream, Origin)> {
        match self.0.lock().await.recv().await {
            Some((stream, address)) => {
                Ok((stream, Origin::Tcp { address, tls: true, badge: Badge::default() }))
            }
            None => std::future::pending().await,
        }
    }
}

/// Whether somebody there is greeted, over TLS.
async fn greeted(mut stream: DuplexStream, folder: &Path) -> bool {
    use rustls::pki_types::ServerName;
    let roots = crate::cluster::tls::roots(&folder.join(issue::CA_CERT)).unwrap();
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let greeting = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, &mut stream);
    tokio::time::timeout(Duration::from_secs(10), greeting)
        .await
        .expect("it is greeted, or turned away")
        .is_ok()
}

#[tokio::test]
async fn a_crowd_from_one_address_is_turned_away_and_its_neighbours_are_not() {
    let dir = tempfile::tempdir().unwrap();
    issue::init(dir.path(), "pirates").unwrap();
    issue::issue_api(dir.path(), &"alpha".parse().unwrap(), &["localhost".to_owned()], dir.path()).unwrap();
    let files = |file: &str| dir.path().join(file);
    let shown = Shown::load(&ApiTls { cert: files("alpha-api.pem"), key: files("alpha-api.key") }).unwrap();
    let (handle, _unanswered) = handle(dir.path());
    let (_stop, shutdown) = watch::channel(false);
    let limits = Limits { of_one: 3, ..Limits::DEFAULT };
    let (snapshots, _) = snapshots::shared(handle.clone());
    let (states, metrics) = (handle.state.clone(), handle.metrics.clone());
    let (tables, _) = tables::tables(states.clone(), handle.ring.feed());
    let gate = Gate::new(limits.given);
    let api = Api::new(handle, snapshots, tables, watch::channel(None).1, shutdown.clone(), gate);
    let router = router::router(api, Transport::Tls, limits);
    let tokens = watch::channel(Default::default()).1;
    let door = Door { router, limits, tokens, states, metrics, shutdown, tls: Some(shown) };
    let (street, come) = mpsc::channel(8);
    let _accepting = tokio::spawn(accept_all(Street(tokio::sync::Mutex::new(come)), door));
    let comes = async |address: &str| {
        let (theirs, ours) = tokio::io::duplex(64 << 10);
        street.send((ours, address.parse().unwrap())).await.unwrap();
        theirs
    };
    let mut crowd = vec![comes("192.0.2.1").await, comes("192.0.2.1").await, comes("::ffff:192.0.2.1").await];
    assert!(!greeted(comes("192.0.2.1").await, dir.path()).await, "a fourth of one address");
    assert!(greeted(comes("192.0.2.2").await, dir.path()).await, "a neighbour");
    // One subscriber has many addresses of version 6.
    for n in 0..3 {
        crowd.push(comes(&format!("2001:db8::{n}")).await);
    }
    assert!(!greeted(comes("2001:db8::77").await, dir.path()).await);
    assert!(greeted(comes("2001:db8:0:1::1").await, dir.path()).await);
    drop(crowd);
    let until = Instant::now() + Duration::from_secs(10);
    while !greeted(comes("192.0.2.1").await, dir.path()).await {
        assert!(Instant::now() < until, "its places are never free again");
    }
}

/// The status of an answer to nobody, over TCP on loopback.
async fn asked(server: &Served, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(server.tcp).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", server.tcp);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(Duration::from_secs(10), read).await.expect("an answer").unwrap();
    answer.split(' ').nth(1).unwrap_or_default().to_owned()
        + if answer.contains("retry-after: 1") { " later" } else { "" }
}

#[tokio::test]
async fn lists_have_a_pace_by_their_size_and_what_is_about_one_thing_has_none() {
    let server = start(Limits { given: (4, 4), ..Limits::DEFAULT }).await;
    let mut given = 0;
    while asked(&server, ["/v1/directory", "/v1/processes"][given % 2]).await == "200" {
        given += 1;
        assert!(given < 200, "as many as are asked for");
    }
    assert!(given >= 4, "{given} at once");
    for path in ["/v1/directory/zone.0", "/v1/healthz"] {
        assert_ne!(asked(&server, path).await, "429 later", "{path}");
    }
    let mut local = server.connect().await;
    let list = b"GET /v1/directory HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    local.write_all(list).await.unwrap();
    assert!(rest(local).await.starts_with("HTTP/1.1 200"), "the socket has no pace");
    // What was given is forgotten; a large answer counts for many.
    let until = Instant::now() + Duration::from_secs(20);
    while asked(&server, "/v1/openapi.json").await != "200" {
        assert!(Instant::now() < until, "nothing is ever given again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let since = Instant::now();
    while asked(&server, "/v1/directory").await != "200" {
        assert!(Instant::now() < until + Duration::from_secs(60), "nothing is ever given again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(since.elapsed() > Duration::from_secs(1), "as if it were small: {:?}", since.elapsed());
}

#[tokio::test]
async fn who_reads_many_lists_keeps_no_monitoring_out_nor_the_other_way_round() {
    // So few a second that nothing is forgotten meanwhile.
    for (many, other) in
        [("/v1/directory", "/v1/prometheus/targets"), ("/v1/prometheus/targets", "/v1/directory")]
    {
        let server = start(Limits { given: (4, 1), ..Limits::DEFAULT }).await;
        let until = Instant::now() + Duration::from_secs(60);
        while asked(&server, many).await != "429 later" {
            assert!(Instant::now() < until, "{many} has no pace");
        }
        // With the whole of its share left.
        for n in 0..3 {
            assert_eq!(asked(&server, other).await, "200", "{n} of {other}, after many {many}");
        }
    }
}

#[tokio::test]
async fn a_long_poll_waits_although_it_does_not_say_how_long() {
    let server = start(Limits { request: Duration::from_millis(50), ..Limits::DEFAULT }).await;
    for path in ["/v1/directory?index=7", "/v1/hosts?index=7", "/v1/spec?index=7&consistent"] {
        let answer = tokio::time::timeout(Duration::from_millis(500), asked(&server, path)).await;
        assert!(answer.is_err(), "{path}: {answer:?}");
    }
}
