//! What is refused, and in which words.

use bigbrother::agent::handle::HostRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};

use super::pretended::two_zones;
use super::server::{Answer, DEADLINE, Server, exchange};

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
        ("POST", "/v1/hosts/alpha/drain", "", "", 409, "alone", "`bigbrother stop --all`"),
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
async fn a_starting_agent_answers_its_status_and_says_what_it_waits_for() {
    let mut server = Server::start().await;
    server.starting.send_replace(Some("it waits for the moon".to_owned()));
    let status = server.get("/v1/status").await.json();
    assert_eq!(status["starting"], "it waits for the moon");
    assert_eq!(server.get("/v1/healthz").await.status, 200);
    for path in ["/metrics", "/v1/hosts/alpha/metrics"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    for path in [
        "/v1/instances",
        "/v1/instances/zone.0",
        "/v1/events?follow=true",
        "/v1/spec",
        "/v1/prometheus/targets",
    ] {
        let answer = server.get(path).await;
        assert_eq!(answer.header("retry-after"), "1");
        let problem = answer.problem();
        assert_eq!((problem.status, problem.kind.as_str()), (503, "starting"), "{path}");
        assert!(problem.detail.contains("it waits for the moon"), "{problem:?}");
    }
    assert_eq!(server.post("/v1/stop", r#"{"target":"all"}"#).await.problem().kind, "starting");
    assert_eq!(server.asked(), [], "nothing reaches an agent that is not at work");
    server.starting.send_replace(None);
    assert_eq!(server.get("/v1/instances").await.status, 200);
    assert_eq!(server.get("/v1/status").await.json()["starting"], serde_json::Value::Null);
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
    assert_eq!((answer.status, answer.problem().kind.as_str()), (401, "no-token"));
    assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"bigbrother\"");
}
