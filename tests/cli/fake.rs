//! A small fake of the agent's API on a Unix socket: it holds instances, writes down what is asked of it,
//! and can keep real processes alive, so that `kill-test` has something to kill.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bigbrother::http::view::{EventView, HeartbeatView, InstanceView, PortView, Problem};
use bigbrother::spec::Protocol;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::BroadcastStream;

/// What the fake agent knows.
pub struct Known {
    instances: Mutex<Vec<InstanceView>>,
    asked: Mutex<Vec<String>>,
    events: broadcast::Sender<EventView>,
    past: Mutex<Vec<EventView>>,
    keeper: Mutex<bool>,
    /// What the next announcement makes of the first instance.
    on_announce: Mutex<Option<InstanceView>>,
}

/// A running fake agent; ends when dropped.
pub struct Fake {
    known: Arc<Known>,
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

pub fn instance(id: &str, state: &str, run: u64) -> InstanceView {
    let id: bigbrother::spec::InstanceId = id.parse().expect("an instance");
    InstanceView {
        process: id.process.clone(),
        instance: id,
        host: "alpha".parse().expect("a host"),
        state: state.to_owned(),
        reason: None,
        pid: (state == "ready").then_some(4_000_000),
        run: Some(run),
        restarts: 0,
        started_at: Some("2026-01-02T03:04:05.000Z".to_owned()),
        ready_at: None,
        last_exit: None,
        ports: [("game".to_owned(), PortView { protocol: Protocol::Udp, port: 20_001 })].into(),
        heartbeat: HeartbeatView { mode: "native".to_owned(), age_ms: Some(12) },
        status: json!({ "players": 3, "capacity": 16 }).as_object().expect("an object").clone(),
    }
}

impl Fake {
    pub fn start(instances: Vec<InstanceView>) -> Fake {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let known = Arc::new(Known {
            instances: Mutex::new(instances),
            asked: Mutex::default(),
            events: broadcast::channel(100).0,
            past: Mutex::default(),
            keeper: Mutex::new(true),
            on_announce: Mutex::default(),
        });
        let router = router(Arc::clone(&known));
        let path = folder.path().join("api.sock");
        let listener = runtime.block_on(async { tokio::net::UnixListener::bind(path) }).expect("a socket");
        runtime.spawn(async move { axum::serve(listener, router).await });
        Fake { known, folder, runtime }
    }

    pub fn address(&self) -> String {
        format!("unix:{}", self.folder.path().join("api.sock").display())
    }

    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// Every request so far: `METHOD path?query body`.
    pub fn asked(&self) -> Vec<String> {
        lock(&self.known.asked).clone()
    }

    pub fn lose_keeper(&self) {
        *lock(&self.known.keeper) = false;
    }

    /// The first instance becomes this one between the announcement and the blow.
    pub fn change_on_announce(&self, instance: InstanceView) {
        *lock(&self.known.on_announce) = Some(instance);
    }

    pub fn happened(&self, event: EventView) {
        lock(&self.known.past).push(event);
    }

    pub fn happens(&self, event: EventView) {
        self.known.events.send(event).expect("somebody follows");
    }

    pub fn followers(&self) -> usize {
        self.known.events.receiver_count()
    }

    /// Keeps a real process for each instance, and starts another one `after` its end; `None`: never.
    pub fn keep_alive(&self, after: Option<Duration>) {
        let count = lock(&self.known.instances).len();
        for at in 0..count {
            let (started, seen) = std::sync::mpsc::channel();
            self.runtime.spawn(supervise(Arc::clone(&self.known), at, after, started));
            seen.recv_timeout(Duration::from_secs(10)).expect("the process starts");
        }
    }
}

async fn supervise(
    known: Arc<Known>,
    at: usize,
    after: Option<Duration>,
    started: std::sync::mpsc::Sender<()>,
) {
    loop {
        let mut child = tokio::process::Command::new("sleep")
            .arg("1000")
            .kill_on_drop(true)
            .spawn()
            .expect("sleep starts");
        let (id, run) = {
            let mut all = lock(&known.instances);
            let instance = &mut all[at];
            instance.run = instance.run.map(|run| run + 1000);
            instance.pid = child.id().map(|pid| pid as i32);
            instance.state = "ready".to_owned();
            (instance.instance.to_string(), instance.run)
        };
        for kind in ["started", "ready"] {
            known.events.send(event(&id, run, kind, None)).ok();
        }
        started.send(()).ok();
        child.wait().await.expect("it ends");
        lock(&known.instances)[at].state = "starting".to_owned();
        known.events.send(event(&id, run, "exited", Some("signal"))).ok();
        match after {
            Some(after) => tokio::time::sleep(after).await,
            None => return,
        }
    }
}

pub fn event(instance: &str, run: Option<u64>, kind: &str, cause: Option<&str>) -> EventView {
    static SEQ: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    EventView {
        seq: SEQ.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
        at: humantime_now(),
        host: "alpha".parse().expect("a host"),
        instance: Some(instance.parse().expect("an instance")),
        run,
        kind: kind.to_owned(),
        cause: cause.map(str::to_owned),
        detail: None,
        number: None,
    }
}

fn humantime_now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no test panics while it holds this")
}

type Fields = std::collections::HashMap<String, String>;

fn router(known: Arc<Known>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/instances", get(instances))
        .route("/v1/instances/{id}/logs", get(logs))
        .route("/v1/instances/{id}/hang-report", get(async || "3 threads in futex_wait\n"))
        .route("/v1/events", get(events))
        .route("/v1/apply", post(apply))
        .route("/v1/restart", post(restart))
        .route("/v1/stop", post(stop))
        .route("/v1/start", post(start))
        .route("/v1/scale", post(scale))
        .route("/v1/launch", post(async || Json(json!({ "instance": "dungeon.7" }))))
        .route("/v1/announce", post(announce))
        .route("/v1/reload", post(async || Json(json!({ "detail": "2 keys changed" }))))
        .layer(middleware::from_fn_with_state(Arc::clone(&known), write_down))
        .with_state(known)
}

async fn write_down(State(known): State<Arc<Known>>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
    let text = String::from_utf8_lossy(&bytes);
    lock(&known.asked).push(format!("{} {} {text}", parts.method, parts.uri).trim_end().to_owned());
    next.run(Request::from_parts(parts, bytes.into())).await
}

async fn status(State(known): State<Arc<Known>>) -> Json<Value> {
    let keeper = lock(&known.keeper).then(|| json!({ "pid": 7, "version": "0.1.0", "cgroups": "none" }));
    Json(json!({
        "cluster": "pirates", "host": "alpha", "primary": "alpha", "term": 0, "index": 9, "quorum": true,
        "revision": 3, "spec_drift": null, "version": "0.1.0", "started_at": humantime_now(),
        "starting": null, "keeper": keeper, "instances": { "ready": lock(&known.instances).len() },
    }))
}

async fn instances(State(known): State<Arc<Known>>, Query(q): Query<Fields>) -> Json<Vec<InstanceView>> {
    let meant = |i: &&InstanceView| {
        q.get("process").is_none_or(|p| i.process.as_str() == p)
            && q.get("instance").is_none_or(|id| i.instance.to_string() == *id)
    };
    Json(lock(&known.instances).iter().filter(meant).cloned().collect())
}

async fn logs(Path(id): Path<String>, Query(q): Query<Fields>) -> String {
    format!("{id} {} {}\nlast line", q["stream"], q["lines"])
}

async fn events(State(known): State<Arc<Known>>, Query(q): Query<Fields>) -> Response {
    if !q.contains_key("follow") {
        return Json(lock(&known.past).clone()).into_response();
    }
    // The past comes again on the stream, as it may with an agent: it must be shown once.
    let past: Vec<EventView> = lock(&known.past).clone();
    let new = BroadcastStream::new(known.events.subscribe()).filter_map(Result::ok);
    let pieces = tokio_stream::iter(past).chain(new).map(|event| {
        let data = serde_json::to_string(&event).expect("an event");
        Ok::<_, std::convert::Infallible>(format!(": beat\n\nid: {}\ndata: {data}\n\n", event.seq))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], axum::body::Body::from_stream(pieces)).into_response()
}

async fn apply(Query(q): Query<Fields>, text: String) -> Response {
    if q.get("expected_revision").is_some_and(|r| r != "3") {
        return problem(
            "revision",
            "cannot apply",
            "the spec has revision 3, not 2: look at `bigbrother plan`",
        );
    }
    let added = if text.contains("[process.new]") { vec!["new"] } else { vec![] };
    let plan = json!({ "revision": 3, "added": added, "removed": [], "changed": [], "scaled": {} });
    Json(json!({ "revision": 4, "plan": plan })).into_response()
}

/// Does something to each targeted instance.
fn change(known: &Known, body: &Value, mut how: impl FnMut(&mut InstanceView)) -> Json<Value> {
    let target = &body["target"];
    for i in lock(&known.instances).iter_mut() {
        if *target == "all"
            || target["process"] == i.process.as_str()
            || target["instance"] == i.instance.to_string()
        {
            how(i);
        }
    }
    Json(json!({}))
}

async fn restart(State(known): State<Arc<Known>>, Json(body): Json<Value>) -> Json<Value> {
    let (mut instances, mut runs) = (Vec::new(), serde_json::Map::new());
    let _ = change(&known, &body, |i| {
        instances.push(i.instance.to_string());
        if i.pid.is_none() {
            return;
        }
        // One that was asked for with a key was replaced long since.
        let again = body["key"].is_string();
        let run = i.run.expect("a run") - u64::from(again);
        i.run = Some(run + 1);
        runs.insert(i.instance.to_string(), run.into());
    });
    Json(json!({ "instances": instances, "runs": runs }))
}

async fn stop(State(known): State<Arc<Known>>, Json(body): Json<Value>) -> Json<Value> {
    change(&known, &body, |i| (i.state, i.pid) = ("paused".to_owned(), None))
}

async fn start(State(known): State<Arc<Known>>, Json(body): Json<Value>) -> Json<Value> {
    // zone.9 never gets ready.
    change(&known, &body, |i| {
        i.state = if i.instance.to_string() == "zone.9" { "starting" } else { "ready" }.to_owned();
    })
}

async fn announce(State(known): State<Arc<Known>>) -> Json<Value> {
    if let Some(changed) = lock(&known.on_announce).take() {
        lock(&known.instances)[0] = changed;
    }
    Json(json!({}))
}

async fn scale(Json(body): Json<Value>) -> Response {
    if body["process"] == "logd" {
        return problem("not-counted", "cannot scale logd", "logd has no count");
    }
    Json(json!({})).into_response()
}

fn problem(kind: &str, title: &str, detail: &str) -> Response {
    let problem =
        Problem { kind: kind.to_owned(), title: title.to_owned(), status: 409, detail: detail.to_owned() };
    (StatusCode::CONFLICT, Json(problem)).into_response()
}
