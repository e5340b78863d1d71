//! What operators change.

use std::collections::BTreeMap;

use bigbrother::spec::{Population, ProcessName};
use bigbrother::state::{Command, Target};
use tokio::net::UnixStream;

use super::pretended::{Asked, instance, own_pid, snapshot, two_zones};
use super::server::{Answer, DEADLINE, Server, exchange};

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
    assert_eq!(server.asked().len(), 1, "the one that was not a dry run");
    let plain = [("content-type", "text/plain; charset=utf-8")];
    assert_eq!(server.send("POST", "/v1/apply?dry_run=true", &plain, toml).await.status(), 200);
}

#[tokio::test]
async fn a_spec_is_applied_on_the_condition_of_a_revision_and_shown_to_people() {
    let mut server = Server::start().await;
    let toml = "[process.zone]\ncommand = [\"/bin/zone\"]\ncount = 3\n";
    let apply = async |server: &Server, query: &str, header: (&str, &str)| {
        let headers = [("content-type", "application/toml"), header];
        Answer::read(server.send("POST", &format!("/v1/apply{query}"), &headers, toml).await).await
    };
    let spec = server.get("/v1/spec").await;
    assert_eq!((spec.header("etag"), &spec.json()["revision"]), ("\"4\"", &4.into()));
    for query in ["", "?dry_run=true"] {
        let refused = apply(&server, query, ("if-match", "\"3\"")).await;
        assert_eq!((refused.status, refused.problem().kind.as_str()), (412, "revision"), "{query}");
    }
    for (query, tag, wrong) in [("?expected_revision=4", "\"3\"", 3), ("?expected_revision=3", "\"4\"", 3)] {
        let refused = apply(&server, query, ("if-match", tag)).await;
        assert_eq!((refused.status, refused.problem().kind.as_str()), (412, "revision"), "{query} {tag}");
        assert!(refused.problem().detail.contains(&format!("not {wrong}")), "{}", refused.body);
    }
    assert_eq!(apply(&server, "?expected_revision=4&dry_run=true", ("if-match", "\"4\"")).await.status, 200);
    let nonsense = apply(&server, "", ("if-match", "yesterday")).await;
    assert!(nonsense.status == 400 && nonsense.problem().detail.contains("yesterday"), "{}", nonsense.body);
    server.asked();
    let applied = apply(&server, "", ("if-match", spec.header("etag"))).await;
    assert_eq!((applied.status, applied.header("etag")), (200, "\"5\""), "{}", applied.body);
    let [Asked::Proposed(Command::ApplySpec { expected_revision, .. })] = &server.asked()[..] else {
        panic!("one spec is proposed")
    };
    assert_eq!(*expected_revision, Some(4));

    let shown = apply(&server, "?dry_run=true", ("accept", "text/plain")).await;
    assert_eq!(shown.header("content-type"), "text/plain; charset=utf-8");
    assert!(
        shown.body.starts_with("- dungeon\n- login\n~ zone (restarts its instances)\n"),
        "{}",
        shown.body
    );
    assert!(shown.body.contains("    count: 2 -> 3\n"), "{}", shown.body);
}

#[tokio::test]
async fn a_restart_with_a_key_is_carried_out_once() {
    let mut server = Server::start().await;
    let headers = [("content-type", "application/json"), ("idempotency-key", "k1")];
    let body = r#"{"target":{"process":"zone"}}"#;
    let first = Answer::read(server.send("POST", "/v1/restart", &headers, body).await).await.json();
    // Only what lives is replaced.
    assert_eq!(first, serde_json::json!({ "instances": ["zone.0", "zone.1"], "runs": { "zone.0": 7 } }));
    let restart = Asked::Restart(vec!["zone.0".into(), "zone.1".into()]);
    assert_eq!(server.asked(), [restart]);
    // Another run by now; the answer is that of the first.
    server.snapshot.send_replace(None);
    server.all_asked();
    let again = Answer::read(server.send("POST", "/v1/restart", &headers, body).await).await.json();
    assert_eq!(again, first);
    assert_eq!(server.asked(), []);
    let other = server.send("POST", "/v1/restart", &headers, r#"{"target":"all"}"#).await;
    let other = Answer::read(other).await;
    assert_eq!((other.status, other.problem().kind.as_str()), (422, "key-reused"));

    // While the first is under way: it waits for the snapshot that it has asked for.
    let stream = UnixStream::connect(server.socket()).await.unwrap();
    let slow = r#"{"target":{"process":"zone"}}"#;
    let headers = [("content-type", "application/json"), ("idempotency-key", "k2")];
    let under_way =
        tokio::spawn(async move { exchange(stream, "POST", "/v1/restart", &headers, slow).await });
    let waited = tokio::time::timeout(DEADLINE, server.asked.recv()).await;
    assert_eq!(waited, Ok(Some(Asked::Snapshot)));
    let second = Answer::read(server.send("POST", "/v1/restart", &headers, slow).await).await;
    assert_eq!((second.status, second.problem().kind.as_str()), (409, "key-under-way"));
    server.snapshot.send_replace(Some(two_zones()));
    assert_eq!(Answer::read(under_way.await.unwrap()).await.json(), first);
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn a_rolling_restart_is_proposed_to_the_cluster() {
    let mut server = Server::start().await;
    let views = vec![instance("zone.0", "ready", Some(own_pid())), instance("zone.1", "failed", None)];
    server.snapshot.send_replace(Some(snapshot(views)));
    let answer = server.post("/v1/restart", r#"{"target":{"process":"zone"},"rolling":true}"#).await;
    let told = serde_json::json!({
        "instances": ["zone.0", "zone.1"],
        "runs": { "zone.0": 7 },
        "failed": { "zone.1": "2026-01-01T00:00:00Z" }
    });
    assert_eq!(answer.json(), told);
    assert_eq!(
        server.asked(),
        [Asked::Proposed(Command::Roll { process: "zone".parse().unwrap(), epoch: 1 })]
    );
    for target in [r#""all""#, r#"{"instance":"zone.0"}"#] {
        let answer = server.post("/v1/restart", &format!(r#"{{"target":{target},"rolling":true}}"#)).await;
        assert_eq!((answer.status, answer.problem().kind.as_str()), (422, "not-rolling"));
    }
    assert_eq!(server.asked(), []);
}
