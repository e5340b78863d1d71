//! The audit trail: each change with who asked, from where, and what came of it.

use bigbrother::cluster::tunnel::Answered;
use bigbrother::cluster::tunnel::Asked as Request;
use bigbrother::cluster::wire::{Hello, Outlet, Purpose, decode, encode};
use bigbrother::http::view::AuditView;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::pretended::Asked;
use super::secured::{BOSS, OPERATOR, READER, Secured};
use super::server::DEADLINE;

fn told(entries: &[AuditView]) -> Vec<(String, String, u16)> {
    entries.iter().map(|entry| (entry.who.clone(), entry.what.clone(), entry.status)).collect()
}

#[tokio::test]
async fn each_change_is_written_down_with_who_asked_and_what_came_of_it() {
    let secured = Secured::over_tls().await;
    let scale = r#"{"process":"zone","count":9}"#;
    assert_eq!(secured.send("POST", "/v1/scale", Some(OPERATOR), scale).await.status, 200);
    let toml = "[process.zone]\ncommand = [\"/bin/zone\"]\ncount = 2\n";
    let headers = [("content-type", "application/toml"), ("authorization", "Bearer bb_boss")];
    secured.send_with("POST", "/v1/apply?dry_run=true", &headers, toml).await.json();
    secured.send_with("POST", "/v1/apply?expected_revision=4", &headers, toml).await.json();
    secured.send_with("POST", "/v1/apply?expected_revision=3", &headers, toml).await.problem();
    secured.send("POST", "/v1/scale?dry_run=true", Some(OPERATOR), scale).await.json();
    assert_eq!(secured.send("POST", "/v1/apply", Some(OPERATOR), toml).await.status, 403);
    assert_eq!(secured.send("GET", "/v1/tokens", Some(READER), "").await.status, 403);
    assert_eq!(secured.send("POST", "/v1/stop", None, r#"{"target":"all"}"#).await.status, 401);
    assert_eq!(secured.send("POST", "/v1/stop", Some("bb_nobody"), "").await.status, 401);
    secured.server.post("/v1/stop", r#"{"target":"all"}"#).await.json();
    let made = secured.send("POST", "/v1/tokens", Some(BOSS), r#"{"name":"ci","role":"read"}"#).await.json();

    let entries = secured.trail().await;
    let uid = format!("unix uid={}", nix::unistd::geteuid());
    let line = |who: &str, what: &str, status| (who.to_owned(), what.to_owned(), status);
    assert_eq!(
        told(&entries),
        [
            line("token operator", "POST /v1/scale", 200),
            line("token boss", "POST /v1/apply?expected_revision=4", 200),
            line("token boss", "POST /v1/apply?expected_revision=3", 409),
            line("token operator", "POST /v1/scale?dry_run=true", 200),
            line("token operator", "POST /v1/apply", 403),
            line("token reader", "GET /v1/tokens", 403),
            line("nobody", "POST /v1/stop", 401),
            line("nobody", "POST /v1/stop", 401),
            line(&uid, "POST /v1/stop", 200),
            line("token boss", "POST /v1/tokens", 201),
        ]
    );
    let of = |at: usize| &entries[at];
    assert_eq!((of(0).from.as_str(), &of(0).via), ("127.0.0.1", &None));
    assert_eq!(of(0).request, Some(json!({ "process": "zone", "count": 9 })));
    assert_eq!(of(0).change, Some(json!({ "from": 2, "to": 9 })));
    let change = of(1).change.as_ref().unwrap();
    assert_eq!((&change["revision"], &change["plan"]["removed"]), (&json!(5), &json!(["dungeon", "login"])));
    assert!(of(2).refused.as_ref().unwrap().starts_with("revision: "), "{:?}", of(2));
    assert!(of(4).refused.as_ref().unwrap().contains("the role admin"), "{:?}", of(4));
    assert_eq!(of(8).from, "local");
    let file = std::fs::read_to_string(secured.server.dir.path().join("audit.jsonl")).unwrap();
    assert!(!file.contains(made["token"].as_str().unwrap()), "a secret is written down");
    assert_eq!(file.lines().count(), 10, "what nobody changed is not written down");

    let newest: Vec<AuditView> =
        serde_json::from_value(secured.server.get("/v1/audit?limit=2").await.json()).unwrap();
    assert_eq!(newest, entries[8..]);
    let since = format!("/v1/audit?since={}", of(9).at);
    assert_eq!(secured.server.get(&since).await.json().as_array().unwrap().last(), Some(&json!(of(9))));
    assert_eq!(secured.server.get("/v1/audit?since=2999-01-01T00:00:00Z").await.json(), json!([]));
    assert_eq!(secured.server.get("/v1/audit?since=yesterday").await.problem().status, 400);
}

#[tokio::test]
async fn a_change_whose_body_is_too_large_is_written_down() {
    let secured = Secured::on_loopback().await;
    let large = format!(r#"{{"instance":"zone.0","text":"{}"}}"#, "x".repeat(1 << 20));
    assert_eq!(secured.server.post("/v1/announce", &large).await.status, 413);
    let entries = secured.trail().await;
    assert_eq!(
        entries.iter().map(|entry| (entry.what.as_str(), entry.status)).collect::<Vec<_>>(),
        [("POST /v1/announce", 413)]
    );
    assert!(entries[0].refused.as_ref().unwrap().starts_with("too-large: "), "{entries:?}");
}

#[tokio::test]
async fn what_another_agent_passes_on_is_written_down_in_the_name_of_whom_it_asks_for() {
    let secured = Secured::on_loopback().await;
    let hello = Hello {
        versions: (1, 1),
        cluster: "pirates".into(),
        host: "beta".parse().unwrap(),
        incarnation: 2,
        history: None,
        id: None,
        to: "alpha".parse().unwrap(),
        to_id: None,
        purpose: Purpose::Api,
    };
    for caller in [Some(r#"{"who":"token deploy","from":"192.0.2.7"}"#), None] {
        let mut headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        headers.extend(caller.map(|caller| ("bigbrother-caller".to_owned(), caller.to_owned())));
        let body = br#"{"target":{"instance":"zone.0"}}"#.to_vec();
        let request = Request { method: "POST".into(), path: "/v1/restart".into(), headers, body };
        let answer =
            secured.entrance.answer(&hello, &encode(&request).unwrap(), &Outlet::default()).await.unwrap();
        assert_eq!(decode::<Answered>(&answer).unwrap().status, 200);
    }
    // Who is no agent cannot speak for another one.
    let own = secured.server.tcp.to_string();
    let headers = [
        ("host", own.as_str()),
        ("authorization", "Bearer bb_operator"),
        ("content-type", "application/json"),
        ("bigbrother-caller", r#"{"who":"token deploy","from":"192.0.2.7"}"#),
    ];
    secured.send_with("POST", "/v1/restart", &headers, r#"{"target":{"instance":"zone.0"}}"#).await.json();
    let entries = secured.trail().await;
    let seen: Vec<_> = entries.iter().map(|e| (e.who.as_str(), e.from.as_str(), e.via.is_some())).collect();
    assert_eq!(
        seen,
        [
            ("token deploy", "192.0.2.7", true),
            ("host beta", "beta", true),
            ("token operator", "127.0.0.1", false)
        ]
    );
}

#[tokio::test]
async fn a_change_whose_asker_goes_away_is_carried_out_and_written_down() {
    let mut secured = Secured::on_loopback().await;
    // It waits for the snapshot.
    let snapshot = secured.server.snapshot.send_replace(None);
    let mut stream = UnixStream::connect(secured.server.socket()).await.unwrap();
    let body = r#"{"target":{"instance":"zone.0"}}"#;
    let head = "POST /v1/restart HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let asked = tokio::time::timeout(DEADLINE, secured.server.asked.recv()).await;
    assert_eq!(asked, Ok(Some(Asked::Snapshot)));
    // It hangs up, and the server has noticed.
    stream.shutdown().await.unwrap();
    let mut heard = Vec::new();
    let ended = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut heard)).await;
    assert_eq!((ended.expect("it is noticed").unwrap(), heard), (0, Vec::new()));
    secured.server.snapshot.send_replace(snapshot);
    let restarted = tokio::time::timeout(DEADLINE, secured.server.asked.recv()).await;
    assert_eq!(restarted, Ok(Some(Asked::Restart(vec!["zone.0".into()]))));
    let began = std::time::Instant::now();
    loop {
        let entries = secured.trail().await;
        if entries.len() == 1 {
            break assert_eq!(entries[0].status, 200);
        }
        assert!(began.elapsed() < DEADLINE, "{entries:?}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_crowd_that_is_turned_away_fills_no_disk() {
    let secured = Secured::over_tls().await;
    let mut stream =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(secured.connect().await))
            .await
            .unwrap();
    tokio::spawn(stream.1);
    for _ in 0..400 {
        let request = hyper::Request::builder().uri("/v1/status").header("host", "x");
        let request = request.body(http_body_util::Empty::<hyper::body::Bytes>::new()).unwrap();
        let answer = stream.0.send_request(request).await.unwrap();
        assert!([401, 429].contains(&answer.status().as_u16()), "{}", answer.status());
        drop(http_body_util::BodyExt::collect(answer.into_body()).await);
    }
    assert_eq!(secured.send("POST", "/v1/stop", Some(OPERATOR), r#"{"target":"all"}"#).await.status, 200);
    let entries = secured.trail().await;
    assert!(entries.len() < 100, "{} entries", entries.len());
    let missed: u64 = entries.iter().map(|entry| entry.missed).sum();
    assert_eq!(missed + entries.len() as u64, 401, "those that are not written down are counted");
}
