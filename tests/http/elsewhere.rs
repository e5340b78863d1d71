//! Requests about another host: a real peer with its state, beside a pretended agent of a host that is none.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bigbrother::agent::ring::Ring;
use bigbrother::cluster::node::{Node, Settings};
use bigbrother::cluster::tunnel::{self, Answered, Asked as Request, Entrance};
use bigbrother::cluster::wire::hello::Ours;
use bigbrother::cluster::wire::{Hello, Outlet, Purpose, decode, encode};
use bigbrother::http::view::{InstanceView, PlayersView, Problem};
use bigbrother::spec::*;
use bigbrother::state::{Command, HostFacts, PlaceChange};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use super::pretended::{Asked, instance, players, pretend, process, two_zones};
use super::server::{Answer, Server, exchange};

/// What the pretended agent answers, by method and path.
type Script = Arc<Mutex<BTreeMap<String, (u16, String)>>>;

struct Two {
    server: Server,
    /// What beta was asked.
    asked: Arc<Mutex<Vec<Request>>>,
    script: Script,
    /// Into alpha, for other agents.
    entrance: Entrance,
    _node: Node,
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn name(host: &str) -> HostName {
    host.parse().unwrap()
}

/// An agent of beta that answers by its script, and nothing where there is none.
async fn beta(address: &str, script: Script, asked: Arc<Mutex<Vec<Request>>>) {
    let (entrance, mut tunnelled) = Entrance::new();
    let ours =
        Ours { cluster: "pirates".into(), host: name("beta"), incarnation: 2, history: None, id: None };
    // The sender may go: the last value stays.
    let listening = tunnel::listen(address, None, watch::channel(ours).1, entrance).await.unwrap();
    tokio::spawn(listening);
    tokio::spawn(async move {
        let mut unanswered = Vec::new();
        while let Some(request) = tunnelled.recv().await {
            let key = format!("{} {}", request.asked.method, request.asked.path);
            asked.lock().unwrap().push(request.asked);
            match script.lock().unwrap().get(&key).cloned() {
                Some((status, body)) => {
                    let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
                    let answered = Answered { status, headers, body: body.into_bytes() };
                    drop(request.reply.send(answered));
                }
                None => unanswered.push(request.reply),
            }
        }
    });
}

impl Two {
    /// The zones 0 and 1 are on alpha, 5 and 6 belong to beta.
    async fn start() -> Two {
        let dir = tempfile::tempdir().unwrap();
        let (address, script) = (free_address(), Script::default());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let node = Node::open(Settings {
            cluster: "pirates".into(),
            host: name("alpha"),
            peers: [(name("alpha"), address.clone())].into(),
            listen: address,
            data_dir: dir.path().join("data"),
            tls: None,
            dead_voter_after: Duration::from_secs(600),
            snapshot_every: 1_000,
        });
        let node = node.await.unwrap();
        let elsewhere = free_address();
        beta(&elsewhere, script.clone(), asked.clone()).await;
        let facts = HostFacts { agent: elsewhere, ..HostFacts::default() };
        let mut spec = Spec::default();
        let files = Logs::Files { size: 1 << 20, files: 3 };
        spec.processes.insert("zone".parse().unwrap(), process(Population::Count(4), files).into());
        let put = |instance: &str, host: &str| PlaceChange::Put {
            instance: instance.parse().unwrap(),
            host: name(host),
            hash: Default::default(),
        };
        for command in [
            Command::JoinHost { host: name("alpha"), facts: HostFacts::default() },
            Command::JoinHost { host: name("beta"), facts },
            Command::ApplySpec { spec, expected_revision: None },
        ] {
            node.propose(command).await.unwrap();
        }
        let states = node.states();
        let based_on = states.borrow().basis;
        let changes = vec![
            put("zone.0", "alpha"),
            put("zone.1", "alpha"),
            put("zone.5", "beta"),
            put("zone.6", "beta"),
        ];
        node.propose(Command::Place { based_on, changes }).await.unwrap();

        let (requests, requests_in) = mpsc::channel(64);
        let (snapshot, snapshots) = watch::channel(Some(two_zones()));
        let (asked_in, was_asked) = mpsc::unbounded_channel();
        let agent = tokio::spawn(pretend(requests_in, mpsc::channel(1).1, snapshots, asked_in));
        let (entrance, tunnelled) = Entrance::new();
        let ring = (Ring::Peer(node.peer()), states);
        let server = Server::of(dir, requests, ring, Some(tunnelled), agent, snapshot, was_asked).await;
        Two { server, asked, script, entrance, _node: node }
    }

    fn answers(&self, request: &str, status: u16, body: &impl serde::Serialize) {
        let body = serde_json::to_string(body).unwrap();
        self.script.lock().unwrap().insert(request.to_owned(), (status, body));
    }

    fn asked(&self) -> Vec<String> {
        let asked = std::mem::take(&mut *self.asked.lock().unwrap());
        let words = |r: Request| format!("{} {} {}", r.method, r.path, String::from_utf8(r.body).unwrap());
        asked.into_iter().map(|request| words(request).trim_end().to_owned()).collect()
    }

    /// A request of another agent to alpha.
    async fn tunnelled(&self, request: Request) -> Answered {
        let hello = Hello {
            versions: (1, 1),
            cluster: "pirates".into(),
            host: name("beta"),
            incarnation: 2,
            history: None,
            id: None,
            to: name("alpha"),
            to_id: None,
            purpose: Purpose::Api,
        };
        decode(&self.entrance.answer(&hello, &encode(&request).unwrap(), &Outlet::default()).await.unwrap())
            .unwrap()
    }
}

fn far(id: &str) -> InstanceView {
    InstanceView { host: name("beta"), ..instance(id, "ready", Some(77)) }
}

fn shown(answer: &Answer) -> Vec<String> {
    let all: Vec<InstanceView> = serde_json::from_value(answer.json()).unwrap();
    all.iter().map(|view| format!("{} {} {}", view.instance, view.host, view.state)).collect()
}

const OWN: [&str; 3] = ["login.alpha alpha ready", "zone.0 alpha ready", "zone.1 alpha backoff"];

#[tokio::test(flavor = "multi_thread")]
async fn instances_of_all_hosts_are_shown_and_those_of_a_silent_one_as_known() {
    let two = Two::start().await;
    two.answers("GET /v1/instances", 200, &[far("zone.5"), far("zone.6")]);
    let all = shown(&two.server.get("/v1/instances").await);
    assert_eq!(all[..3], OWN);
    assert_eq!(all[3..], ["zone.5 beta ready", "zone.6 beta ready"]);
    two.answers("GET /v1/instances?host=beta", 200, &[far("zone.6")]);
    assert_eq!(shown(&two.server.get("/v1/instances?host=beta").await), ["zone.6 beta ready"]);
    assert_eq!(two.asked(), ["GET /v1/instances", "GET /v1/instances?host=beta"]);
    assert_eq!(shown(&two.server.get("/v1/instances?host=alpha").await), OWN);
    // Nobody there can have it.
    shown(&two.server.get("/v1/instances?instance=zone.0").await);
    assert_eq!(two.asked(), [""; 0]);

    two.script.lock().unwrap().clear();
    let began = Instant::now();
    let silent = shown(&two.server.get("/v1/instances").await);
    assert_eq!(silent[3..], ["zone.5 beta unreachable", "zone.6 beta unreachable"]);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_goes_to_the_host_of_the_instance() {
    let mut two = Two::start().await;
    let done = |id: &str| serde_json::json!({ "instances": [id], "runs": { id: 7 } });
    two.answers("POST /v1/restart", 200, &done("zone.5"));
    let headers = [("content-type", "application/json"), ("idempotency-key", "k1")];
    let body = r#"{"target":{"instance":"zone.5"}}"#;
    let answer = Answer::read(two.server.send("POST", "/v1/restart", &headers, body).await).await;
    assert_eq!(answer.json(), done("zone.5"));
    let passed = two.asked.lock().unwrap()[0].clone();
    assert!(passed.headers.contains(&("idempotency-key".into(), "k1".into())), "{passed:?}");
    assert_eq!(two.asked(), ["POST /v1/restart {\"target\":{\"instance\":\"zone.5\"}}"]);
    // Each host does its own.
    let both = two.server.post("/v1/restart", r#"{"target":{"process":"zone"}}"#).await.json();
    assert_eq!(both["instances"], serde_json::json!(["zone.0", "zone.1", "zone.5"]));
    let here = two.server.asked();
    assert!(here.contains(&Asked::Restart(vec!["zone.0".into(), "zone.1".into()])), "{here:?}");

    two.answers("POST /v1/announce", 200, &serde_json::json!({ "detail": "announced" }));
    two.server.post("/v1/announce", r#"{"instance":"zone.6","text":"x"}"#).await.json();
    two.answers("POST /v1/strike", 200, &serde_json::json!({ "struck": true }));
    let strike = |signal: &str| format!(r#"{{"instance":"zone.6","run":7,"signal":"{signal}"}}"#);
    assert_eq!(two.server.post("/v1/strike", &strike("SIGKILL")).await.json()["struck"], true);
    assert_eq!(two.server.post("/v1/strike", &strike("SIGHUP")).await.problem().kind, "bad-signal");

    // A refusal is that of the host, a host that says nothing is one of its own.
    let no = Problem { kind: "busy".into(), title: "busy".into(), status: 503, detail: "try again".into() };
    two.answers("POST /v1/restart", 503, &no);
    let refused = two.server.post("/v1/restart", body).await;
    assert_eq!(
        (refused.status, refused.problem().kind.as_str(), refused.header("retry-after")),
        (503, "busy", "1")
    );
    assert_eq!(refused.problem().detail, "try again (says beta)");
    two.script.lock().unwrap().clear();
    let began = Instant::now();
    let refused = two.server.get("/v1/status?host=beta").await;
    assert_eq!((refused.status, refused.problem().kind.as_str()), (503, "host-unreachable"));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let unknown = two.server.get("/v1/status?host=bta").await.problem();
    assert_eq!(
        (unknown.kind.as_str(), unknown.detail.as_str()),
        ("no-host", "there is no host bta: did you mean beta?")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_plays_is_asked_of_the_host_of_the_run() {
    let two = Two::start().await;
    let theirs = PlayersView { host: name("beta"), ..players(&"zone.5".parse().unwrap()) };
    two.answers("GET /v1/instances/zone.5/players", 200, &theirs);
    let read = async |id: &str| two.server.get(&format!("/v1/instances/{id}/players")).await;
    assert_eq!(read("zone.5").await.json(), serde_json::to_value(&theirs).unwrap());
    assert_eq!(two.asked(), ["GET /v1/instances/zone.5/players"]);
    let own = read("zone.0").await.json();
    assert_eq!((&own["host"], &own["player_list"][0]["name"]), (&"alpha".into(), &"ann".into()));
    assert_eq!((&own["players"], &own["truncated"]), (&3.into(), &true.into()));
    assert_eq!(read("zone.1").await.problem().status, 404, "it does not run");
    assert_eq!(read("zone.9").await.problem().kind, "no-instance");
    assert_eq!(two.asked(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_that_failed_on_another_host_is_asked_for_again_and_each_host_does_its_share_once() {
    let mut two = Two::start().await;
    let no = Problem { kind: "busy".into(), title: "busy".into(), status: 503, detail: "try again".into() };
    two.answers("POST /v1/restart", 503, &no);
    let headers = [("content-type", "application/json"), ("idempotency-key", "k1")];
    let body = r#"{"target":{"process":"zone"}}"#;
    let refused = Answer::read(two.server.send("POST", "/v1/restart", &headers, body).await).await;
    assert_eq!((refused.status, refused.problem().kind.as_str()), (503, "busy"));
    let own = Asked::Restart(vec!["zone.0".into(), "zone.1".into()]);
    assert_eq!(two.server.asked(), [own]);
    // Another run by now: the first answer for it holds.
    two.answers(
        "POST /v1/restart",
        200,
        &serde_json::json!({ "instances": ["zone.5"], "runs": { "zone.5": 7 } }),
    );
    let done = Answer::read(two.server.send("POST", "/v1/restart", &headers, body).await).await.json();
    assert_eq!(done["instances"], serde_json::json!(["zone.0", "zone.1", "zone.5"]));
    assert_eq!(done["runs"], serde_json::json!({ "zone.0": 7, "zone.5": 7 }));
    assert_eq!(two.server.asked(), [], "the own ones are restarted again");
    assert_eq!(two.asked().len(), 2, "the other host was asked again");
    let again = Answer::read(two.server.send("POST", "/v1/restart", &headers, body).await).await.json();
    assert_eq!((again, two.asked().len()), (done, 0));
    // Under a key of which a share was done nothing else is.
    two.answers("POST /v1/restart", 503, &no);
    let headers = [("content-type", "application/json"), ("idempotency-key", "k2")];
    let failed = Answer::read(two.server.send("POST", "/v1/restart", &headers, body).await).await;
    assert_eq!(failed.status, 503);
    let other = two.server.send("POST", "/v1/restart", &headers, r#"{"target":"all"}"#).await;
    assert_eq!(Answer::read(other).await.problem().kind, "key-reused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_that_another_agent_asked_for_is_not_taken_for_the_whole() {
    let mut two = Two::start().await;
    let body = r#"{"target":{"process":"zone"}}"#;
    let headers = [("content-type", "application/json"), ("idempotency-key", "k1")];
    let request = Request {
        method: "POST".into(),
        path: "/v1/restart".into(),
        headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        body: body.as_bytes().to_vec(),
    };
    let share = two.tunnelled(request).await;
    let share: serde_json::Value = serde_json::from_slice(&share.body).unwrap();
    assert_eq!(share["instances"], serde_json::json!(["zone.0", "zone.1"]));
    assert_eq!(two.server.asked(), [Asked::Restart(vec!["zone.0".into(), "zone.1".into()])]);
    // That agent is lost, and whoever asked it asks here.
    let theirs = serde_json::json!({ "instances": ["zone.5"], "runs": { "zone.5": 7 } });
    two.answers("POST /v1/restart", 200, &theirs);
    let whole = Answer::read(two.server.send("POST", "/v1/restart", &headers, body).await).await.json();
    assert_eq!(whole["instances"], serde_json::json!(["zone.0", "zone.1", "zone.5"]));
    assert_eq!(two.asked().len(), 1, "the other host has its share");
    assert_eq!(two.server.asked(), [], "the own ones are restarted again");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_seen_the_answer_of_another_host_is_told_that_it_is_the_same() {
    let two = Two::start().await;
    two.answers("GET /v1/instances?host=beta", 304, &());
    let seen = [("if-none-match", "\"=7\"")];
    let same = Answer::read(two.server.send("GET", "/v1/instances?host=beta", &seen, "").await).await;
    assert_eq!(same.status, 304);
    let passed = two.asked.lock().unwrap()[0].clone();
    assert_eq!(passed.headers[0], ("if-none-match".into(), "\"=7\"".into()), "{passed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_agent_gives_the_metrics_of_any_host() {
    let mut two = Two::start().await;
    two.script.lock().unwrap().insert("GET /metrics".into(), (200, "bigbrother_primary 0\n".into()));
    assert_eq!(two.server.get("/v1/hosts/beta/metrics").await.body, "bigbrother_primary 0\n");
    assert_eq!(two.server.asked(), [], "this host was asked, too");
    let own = two.server.get("/v1/hosts/alpha/metrics").await;
    assert_eq!(own.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    for sample in ["primary 1", "quorum 1", "term 1", "hosts{state=\"up\"} 2", "hosts{state=\"down\"} 0"] {
        assert!(own.body.contains(&format!("bigbrother_{sample}\n")), "no {sample} in {}", own.body);
    }
    assert_eq!(two.asked(), ["GET /metrics"]);
    assert_eq!(two.server.get("/v1/hosts/bta/metrics").await.problem().kind, "no-host");
    let tunnelled = two.tunnelled(Request::get("/v1/hosts/beta/metrics")).await;
    assert_eq!(tunnelled.status, 421, "{tunnelled:?}");

    // Both are found where this one was asked.
    let over_tcp = TcpStream::connect(two.server.tcp).await.unwrap();
    let here = two.server.tcp.to_string();
    let found = exchange(over_tcp, "GET", "/v1/prometheus/targets", &[("host", &here)], "").await;
    let found = Answer::read(found).await.json();
    let paths = ["/v1/hosts/alpha/metrics", "/v1/hosts/beta/metrics"];
    let shown: Vec<_> = found
        .as_array()
        .unwrap()
        .iter()
        .map(|group| (&group["targets"][0], &group["labels"]["__metrics_path__"]))
        .collect();
    let here = serde_json::Value::from(here);
    assert_eq!(
        shown,
        paths.map(serde_json::Value::from).iter().map(|path| (&here, path)).collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_agent_asks_is_answered_for_this_host_and_not_passed_on() {
    let two = Two::start().await;
    let answered = two.tunnelled(Request::get("/v1/instances")).await;
    let own: Vec<InstanceView> = serde_json::from_slice(&answered.body).unwrap();
    assert_eq!((answered.status, own.len()), (200, 3));
    let json = vec![("content-type".to_owned(), "application/json".to_owned())];
    let post = |path: &str, body: &str| Request {
        method: "POST".into(),
        path: path.into(),
        headers: json.clone(),
        body: body.as_bytes().to_vec(),
    };
    let restarted = two.tunnelled(post("/v1/restart", r#"{"target":{"process":"zone"}}"#)).await;
    let restarted: serde_json::Value = serde_json::from_slice(&restarted.body).unwrap();
    assert_eq!(restarted["instances"], serde_json::json!(["zone.0", "zone.1"]));
    let elsewhere = two.tunnelled(Request::get("/v1/status?host=beta")).await;
    assert_eq!(elsewhere.status, 421, "{elsewhere:?}");
    assert_eq!(two.asked(), [""; 0], "it was passed on");
    let nothing = two.tunnelled(Request::get("/v1/nothing")).await;
    assert_eq!((nothing.status, nothing.header("content-type")), (404, "application/problem+json"));
    let broken = two.tunnelled(Request { method: "G T".into(), ..Request::get("/v1/status") }).await;
    assert_eq!(broken.status, 400);
    // Over the bound.
    let large = encode(&post("/v1/restart", &"x".repeat(tunnel::MAX_BODY + 1))).unwrap();
    let hello =
        decode::<Hello>(b"\x01\x01\x07pirates\x04beta\x03\x01\x07\x01\x02\x05alpha\x01\x01\x00").unwrap();
    assert!(
        two.entrance.answer(&hello, &large, &Outlet::default()).await.unwrap_err().contains("over the limit")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_from_all_hosts_and_whoever_is_missing_is_named() {
    let two = Two::start().await;
    let mut theirs = super::pretended::event(9, "zone.5");
    (theirs.host, theirs.at) = (name("beta"), "2025-12-31T23:59:59Z".into());
    two.answers("GET /v1/events", 200, &[theirs]);
    let all = two.server.get("/v1/events").await;
    let seqs = |answer: &Answer| {
        let json = answer.json();
        json.as_array().unwrap().iter().map(|event| event["seq"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!((seqs(&all), all.header("bigbrother-unreachable")), (vec![9, 1, 2, 3], ""));
    two.script.lock().unwrap().clear();
    let some = two.server.get("/v1/events").await;
    assert_eq!((seqs(&some), some.header("bigbrother-unreachable")), (vec![1, 2, 3], "beta"));
    // In pieces, for other agents.
    let piece = two.tunnelled(Request::get("/v1/events?after=start")).await;
    let next = piece.header("bigbrother-next").to_owned();
    assert_eq!(next, "3@2026-01-01T00:00:00Z");
    let rest = two.tunnelled(Request::get(format!("/v1/events?after={next}"))).await;
    assert_eq!((rest.body.as_slice(), rest.header("bigbrother-next")), (&b"[]"[..], next.as_str()));
    // Another life of the agent begins anew.
    let anew = two.tunnelled(Request::get("/v1/events?after=2@before")).await;
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&anew.body).unwrap().as_array().unwrap().len(), 3);
}
