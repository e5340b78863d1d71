//! The audit trail: which changes were asked for, by whom, from where, and what came of them.
//!
//! ```text
//! change ─▶ body read ─▶ carried out, whether or not anybody waits ─▶ written down ─▶ answer
//! ```
//!
//! Owns what stands in an entry ([`AuditView`]) and the answer of `GET /v1/audit`; the file is [`file`]'s. It is on the
//! host whose agent was asked, so that it is written without a quorum, too. What an agent passes on is written down on
//! both: there in the name of whom it was asked for, with the agent that passed it on. Called by `auth`, and by the agent
//! for what is asked of it in other ways: by game processes and by a signal.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{MatchedPath, Query, Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::IntoParams;

use super::auth::{self, Caller};
use super::events::UNREACHABLE;
use super::pace::Pace;
use super::problem::Refusal;
use super::router::{self, Api, MAX_BODY};
use crate::agent::chronicle::rfc3339;
use crate::agent::handle::AskError;
use crate::agent::replica::wall_ms;
use crate::client::message::Launch;
use crate::http::view::{AuditView, Problem, ScaleRequest};
use crate::metrics::Metrics;
use crate::spec::{HostName, InstanceId};
use crate::state;

mod file;

use file::Ledger;

/// How long a body may take to come: as long as a request may.
const BODY: Duration = Duration::from_secs(10);
/// The largest answer of a change that is looked into.
const MAX_ANSWER: usize = 8 << 20;
/// The largest body, and the largest change, that is written down as it is.
const MAX_WRITTEN: usize = 8 * 1024;
/// The longest reason, in characters.
const MAX_WHY: usize = 512;
/// Entries that are shown unless fewer are asked for.
const MOST: usize = 1_000;

/// Where entries go. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    ledger: Ledger,
    refusals: Arc<Pace<()>>,
    /// Those that were refused, of each instance.
    launches: Arc<Pace<InstanceId>>,
    missed: Arc<AtomicU64>,
}

impl Audit {
    /// The trail in this file and older ones with `.1`, `.2` … behind it, and the work of writing it, which ends with the
    /// last clone.
    pub fn open(path: PathBuf, metrics: Arc<Metrics>) -> (Audit, impl Future<Output = ()> + Send) {
        let (ledger, writing) = file::open(path, metrics);
        let (refusals, launches) = (Arc::new(Pace::new(50, 1)), Arc::new(Pace::new(100, 5)));
        (Audit { ledger, refusals, launches, missed: Arc::default() }, writing)
    }

    /// Comes back when all is on disk that was written down before, or the disk takes too long.
    pub async fn settled(&self) {
        self.ledger.settled().await;
    }

    /// What a game process has launched; comes back when that is written down. The replicated state bounds it.
    pub async fn launched(&self, host: &HostName, by: &InstanceId, launch: &Launch) {
        self.write(launching(host, by, launch), StatusCode::CREATED, None, None).await;
    }

    /// What a game process may not launch, or cannot. Nobody waits for that, and a crowd of refusals fills no disk: some
    /// are counted only.
    pub fn not_launched(&self, host: &HostName, by: &InstanceId, launch: &Launch, refused: AskError) {
        if !self.launches.allows(by, Instant::now()) {
            self.missed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let refusal = Refusal::from(refused);
        self.note(launching(host, by, launch), &refusal);
    }

    /// SIGHUP, and what came of it.
    pub async fn reloaded(&self, host: &HostName, outcome: &Result<String, String>) {
        let asked = Asked::beside(host, "SIGHUP".to_owned(), "reload", None);
        let (status, refused, change) = match outcome {
            Ok(said) => (StatusCode::OK, None, Some(json!(said))),
            Err(why) => (StatusCode::UNPROCESSABLE_ENTITY, Some(why.chars().take(MAX_WHY).collect()), None),
        };
        self.write(asked, status, refused, change).await;
    }

    /// Somebody was turned away. A crowd of them fills no disk: some are counted only.
    pub(super) fn refused(&self, host: &HostName, caller: &Caller, request: &Request, refusal: &Refusal) {
        if !self.refusals.allows(&(), Instant::now()) {
            self.missed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let what = format!("{} {}", request.method(), request.uri().path());
        self.note(Asked { host: host.clone(), caller: caller.clone(), what, request: None }, refusal);
    }

    /// Something was refused; nobody waits for that to be written down.
    fn note(&self, asked: Asked, refusal: &Refusal) {
        let entry = asked.entry(refusal.status().as_u16(), Some(refusal.said()), None, self.missed());
        self.count(&entry, self.ledger.note(&entry));
    }

    /// Something was carried out, or refused; comes back when that is written down.
    async fn write(&self, asked: Asked, status: StatusCode, refused: Option<String>, change: Option<Value>) {
        let entry = asked.entry(status.as_u16(), refused, change, self.missed());
        self.count(&entry, self.ledger.write(&entry).await);
    }

    fn missed(&self) -> u64 {
        self.missed.swap(0, Ordering::Relaxed)
    }

    /// An entry that found no room is missed itself, with those that it was to tell of.
    fn count(&self, entry: &AuditView, taken: bool) {
        if !taken {
            self.missed.fetch_add(entry.missed + 1, Ordering::Relaxed);
        }
    }
}

/// What is known of a request before it is carried out.
struct Asked {
    host: HostName,
    caller: Caller,
    what: String,
    request: Option<Value>,
}

impl Asked {
    /// Beside the API, on this machine.
    fn beside(host: &HostName, who: String, what: &str, request: Option<Value>) -> Asked {
        let caller = Caller { who, from: "local".to_owned(), via: None };
        Asked { host: host.clone(), caller, what: what.to_owned(), request }
    }

    fn entry(self, status: u16, refused: Option<String>, change: Option<Value>, missed: u64) -> AuditView {
        let Asked { host, caller: Caller { who, from, via }, what, request } = self;
        // A path is of the asker's making.
        let what = what.chars().take(256).collect();
        AuditView {
            at: rfc3339(wall_ms()),
            host,
            who,
            from,
            via,
            what,
            request,
            status,
            refused,
            change,
            missed,
        }
    }
}

fn launching(host: &HostName, by: &InstanceId, launch: &Launch) -> Asked {
    let request = serde_json::to_vec(launch).ok().and_then(|json| readable(&json.into()));
    Asked::beside(host, format!("instance {by}"), "launch", request)
}

/// Carries a change out and writes down what came of it, also when the asker goes away meanwhile.
pub(super) async fn recorded(api: Api, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let what = format!("{} {}", head.method, head.uri);
    let body = match tokio::time::timeout(BODY, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return unread(&api, what, Refusal::too_large()).await,
        Err(_) => return unread(&api, what, Refusal::timeout()).await,
    };
    let route = head.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    // What else stands in that query is refused by the route.
    let dry = |query: &str| query.contains("dry_run=true");
    let shown = route == "/v1/apply" && head.uri.query().is_some_and(dry);
    let asking = auth::asking();
    let request = Request::from_parts(head, Body::from(body.clone()));
    if shown {
        return router::answer(&api, request, next).await;
    }
    let Some(caller) = asking.clone() else { return router::answer(&api, request, next).await };
    let work = auth::on_behalf(asking, async move {
        let asked = Asked { host: api.handle.host.clone(), caller, what, request: readable(&body) };
        let before = scaled(&route, &body, &api.handle.state.borrow());
        let (response, answer) = whole(router::answer(&api, request, next).await).await;
        let refused = (!response.status().is_success()).then(|| said(&answer));
        let change = match refused {
            None => change(&route, before, &answer),
            Some(_) => None,
        };
        api.handle.audit.write(asked, response.status(), refused, change).await;
        response
    });
    let carried_out = tokio::spawn(work).await;
    carried_out.unwrap_or_else(|error| {
        Refusal::internal(format!("the request was not carried out: {error}")).into_response()
    })
}

/// A change of which not all came is none.
async fn unread(api: &Api, what: String, refusal: Refusal) -> Response {
    if let Some(caller) = auth::asking() {
        let asked = Asked { host: api.handle.host.clone(), caller, what, request: None };
        api.handle.audit.write(asked, refusal.status(), Some(refusal.said()), None).await;
    }
    refusal.into_response()
}

/// The answer, and what it says.
async fn whole(response: Response) -> (Response, Bytes) {
    let (head, body) = response.into_parts();
    match to_bytes(body, MAX_ANSWER).await {
        Ok(bytes) => (Response::from_parts(head, Body::from(bytes.clone())), bytes),
        Err(error) => {
            let refusal = Refusal::internal(format!("the answer is too large to be written down: {error}"));
            (refusal.into_response(), Bytes::new())
        }
    }
}

fn readable(body: &Bytes) -> Option<Value> {
    let small = Some(body).filter(|body| body.len() <= MAX_WRITTEN);
    small.and_then(|body| serde_json::from_slice(body).ok()).filter(|value: &Value| !value.is_null())
}

fn said(answer: &Bytes) -> String {
    match serde_json::from_slice::<Problem>(answer) {
        Ok(problem) => {
            format!("{}: {}", problem.kind, problem.detail.chars().take(MAX_WHY).collect::<String>())
        }
        Err(_) => "without a reason".to_owned(),
    }
}

/// The process that is to be scaled, and how many of it there were to be.
fn scaled(route: &str, body: &Bytes, state: &state::State) -> Option<Value> {
    let request: ScaleRequest = serde_json::from_slice(body).ok().filter(|_| route == "/v1/scale")?;
    Some(json!({ "from": state.count_of(&request.process), "to": request.count }))
}

/// What was changed, of those changes that do not say so themselves; of a reload what it says.
fn change(route: &str, scaled: Option<Value>, answer: &Bytes) -> Option<Value> {
    if route != "/v1/apply" && route != "/v1/reload" {
        return scaled;
    }
    let answer: Value = serde_json::from_slice(answer).ok()?;
    if let Some(said) = answer.get("detail") {
        return Some(said.clone());
    }
    let (revision, plan) = (answer.get("revision")?, answer.get("plan")?);
    let whole = json!({ "revision": revision, "plan": plan });
    if whole.to_string().len() <= MAX_WRITTEN {
        return Some(whole);
    }
    let names = |key: &str| plan.get(key).cloned().unwrap_or_default();
    let changed = names("changed").as_array().map_or(0, Vec::len);
    let count = |key: &str| names(key).as_array().map_or(0, Vec::len);
    Some(
        json!({ "revision": revision, "too_large": true, "added": count("added"), "removed": count("removed"), "changed": changed }),
    )
}

/// Which entries.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Not older than this, RFC 3339 UTC.
    #[param(
        pattern = "^20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$"
    )]
    since: Option<String>,
    /// The newest so many; 1000 at most.
    #[param(value_type = Option<u64>)]
    limit: Option<usize>,
}

/// The audit trail
///
/// Which changes were asked for, by whom, from where, and what came of them: of all hosts, by time.
#[utoipa::path(get, path = "/v1/audit", tag = "Access", params(Wanted),
    responses((status = 200, description = "the entries", body = Vec<AuditView>,
        headers(("bigbrother-unreachable" = Option<String>, description = "hosts that did not answer")))))]
pub(super) async fn list(
    State(api): State<Api>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(Wanted { since, limit }) = wanted?;
    let most = limit.unwrap_or(MOST).min(MOST);
    let since = match since {
        Some(text) => {
            let time = humantime::parse_rfc3339(&text);
            let time =
                time.map_err(|error| Refusal::query(format!("since: {text:?} is no time: {error}")))?;
            humantime::format_rfc3339_millis(time).to_string()
        }
        None => String::new(),
    };
    let ledger = api.handle.audit.ledger.clone();
    let of_here = since.clone();
    let own = tokio::task::spawn_blocking(move || ledger.read(&of_here, most)).await;
    let own = own.map_err(|error| Refusal::internal(error.to_string()))?;
    let mut entries =
        own.map_err(|error| Refusal::internal(format!("the audit trail cannot be read: {error}")))?;
    let since = if since.is_empty() { since } else { format!("&since={since}") };
    let mut missing = Vec::new();
    let path = format!("/v1/audit?limit={most}{since}");
    for (host, said) in api.ask_each::<Vec<AuditView>>(api.others(), &path).await {
        match said {
            Ok(said) => entries.extend(said),
            Err(_) => missing.push(host.to_string()),
        }
    }
    entries.sort_by(|a, b| (&a.at, &a.host).cmp(&(&b.at, &b.host)));
    let entries = entries.split_off(entries.len().saturating_sub(most));
    let mut response = (StatusCode::OK, [(header::CACHE_CONTROL, "no-store")], Json(entries)).into_response();
    if let Some(missing) = missing.join(", ").parse().ok().filter(|_| !missing.is_empty()) {
        response.headers_mut().insert(HeaderName::from_static(UNREACHABLE), missing);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_finds_no_room_in_the_queue_is_counted_as_missed() {
        let dir = tempfile::tempdir().unwrap();
        // Nobody writes.
        let (audit, _work) = Audit::open(dir.path().join("audit.jsonl"), Arc::default());
        let audit = Audit { refusals: Arc::new(Pace::new(10_000, 1)), ..audit };
        audit.missed.store(7, Ordering::Relaxed);
        let (host, request) = ("alpha".parse().unwrap(), Request::new(Body::empty()));
        let caller = Caller { who: "nobody".into(), from: "local".into(), via: None };
        let turn_away = || audit.refused(&host, &caller, &request, &Refusal::timeout());
        turn_away();
        assert_eq!(audit.missed.load(Ordering::Relaxed), 0, "the first one tells of those before");
        for _ in 1..file::NOTES + 3 {
            turn_away();
        }
        assert_eq!(audit.missed.load(Ordering::Relaxed), 3);
    }
}
