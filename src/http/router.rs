//! Which path is answered by what, and what holds for all of them: time, size, counting, no web pages.

use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::audit;
use super::auth::{self, Gate};
use super::idempotency::Keys;
use super::problem::Refusal;
use super::server::Limits;
use super::snapshots::Snapshots;
use super::tables::{LONGEST, Tables};
use super::whole::Whole;
use super::{
    directory, events, hosts, instances, logs, openapi, operate, peers, prometheus, reading, spec, status,
    strike, tokens, watchers,
};
use crate::agent::Handle;
use crate::http::view::HealthView;

/// The largest request body, in bytes.
pub(super) const MAX_BODY: usize = 1024 * 1024;

/// Readers that follow events or logs at once.
const MAX_FOLLOWERS: usize = 64;

/// Readers that watch the directory at once.
const MAX_WATCHERS: usize = 6_000;

/// Questions of this agent that wait at other hosts at once: less than one connection takes, so that others pass.
const MAX_WAITING: usize = 32;

/// What every route may use. Each layer of each request has one of its own, so it is cheap to clone.
#[derive(Clone)]
pub(super) struct Api(Arc<Parts>);

impl Deref for Api {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// Of an [`Api`].
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) handle: Handle,
    /// How its requests come.
    pub(super) transport: Transport,
    /// From a request's head to its answer's head.
    patience: Duration,
    pub(super) snapshots: Snapshots,
    /// When what was changed.
    pub(super) tables: Tables,
    /// What a starting agent waits for; `None`: it is at work.
    pub(super) starting: watch::Receiver<Option<String>>,
    /// What was asked with a key.
    pub(super) keys: Keys,
    /// What this host has done of what was asked of several with a key.
    pub(super) shares: Keys,
    /// How often what is asked.
    pub(super) gate: Arc<Gate>,
    /// True: streams end.
    pub(super) shutdown: watch::Receiver<bool>,
    followers: Arc<Semaphore>,
    watchers: Arc<Semaphore>,
    /// What those are told who begin to watch.
    pub(super) whole: Whole,
    /// Questions to other hosts that wait there for something to come.
    pub(super) waiting: Arc<Semaphore>,
}

impl Api {
    pub(super) fn new(
        handle: Handle,
        snapshots: Snapshots,
        tables: Tables,
        starting: watch::Receiver<Option<String>>,
        shutdown: watch::Receiver<bool>,
        gate: Gate,
    ) -> Self {
        let followers = Arc::new(Semaphore::new(MAX_FOLLOWERS));
        let watchers = Arc::new(Semaphore::new(MAX_WATCHERS));
        let waiting = Arc::new(Semaphore::new(MAX_WAITING));
        let (transport, patience) = (Transport::Unix, Duration::ZERO);
        let (keys, shares) = (Keys::default(), Keys::default());
        let gate = Arc::new(gate);
        let whole = Whole::new(handle.state.clone(), handle.ring.clone());
        Api(Arc::new(Parts {
            handle,
            transport,
            patience,
            snapshots,
            tables,
            starting,
            keys,
            shares,
            gate,
            shutdown,
            followers,
            watchers,
            whole,
            waiting,
        }))
    }

    /// A place among those who watch the directory, held while the permit lives.
    pub(super) fn watch(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        self.watchers.clone().try_acquire_owned().map_err(|_| Refusal::too_many_watchers(MAX_WATCHERS))
    }

    /// A place among those who follow, held while the permit lives.
    pub(super) fn follow(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        self.followers.clone().try_acquire_owned().map_err(|_| Refusal::too_many_followers(MAX_FOLLOWERS))
    }
}

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// Guarded by the mode of the socket's file.
    Unix,
    /// Open to all on this machine, web browsers included.
    Tcp,
    /// Open to whoever reaches it.
    Tls,
    /// From another agent, which shows a certificate of the cluster's CA and may do what the Unix socket allows. Not
    /// passed on to a third one.
    Tunnel,
}

/// All routes.
pub(super) fn router(api: Api, transport: Transport, limits: Limits) -> Router {
    let api = Api(Arc::new(Parts { transport, patience: limits.request, ..(*api.0).clone() }));
    Router::new()
        .route("/metrics", get(prometheus::scrape))
        .route("/v1/healthz", get(healthz))
        .route("/v1/openapi.json", get(openapi::read))
        .route("/v1/status", get(status::read))
        .route("/v1/directory", get(directory::list))
        .route("/v1/directory/watch", get(watchers::follow))
        .route("/v1/directory/{id}", get(directory::one))
        .route("/v1/directory/{id}/leader", get(directory::leader))
        .route("/v1/processes", get(directory::processes))
        .route("/v1/instances", get(instances::list))
        .route("/v1/instances/{id}", get(instances::one))
        .route("/v1/instances/{id}/hang-report", get(instances::hang_report))
        .route("/v1/instances/{id}/players", get(instances::players))
        .route("/v1/instances/{id}/logs", get(logs::read))
        .route("/v1/hosts", get(hosts::list))
        .route("/v1/hosts/{host}/drain", post(hosts::drain))
        .route("/v1/hosts/{host}/undrain", post(hosts::undrain))
        .route("/v1/hosts/{host}/declare-down", post(hosts::declare_down))
        .route("/v1/hosts/{host}/strike", post(strike::host))
        .route("/v1/strike", post(strike::run))
        .route("/v1/hosts/{host}/metrics", get(prometheus::of_host))
        .route("/v1/prometheus/targets", get(prometheus::targets))
        .route("/v1/peers", get(peers::list))
        .route("/v1/peers/add", post(peers::add))
        .route("/v1/peers/remove", post(peers::remove))
        .route("/v1/peers/promote", post(peers::promote))
        .route("/v1/events", get(events::read))
        .route("/v1/spec", get(spec::current))
        .route("/v1/apply", post(spec::apply))
        .route("/v1/restart", post(operate::restart))
        .route("/v1/stop", post(operate::stop))
        .route("/v1/start", post(operate::start))
        .route("/v1/scale", post(operate::scale))
        .route("/v1/launch", post(operate::launch))
        .route("/v1/announce", post(operate::announce))
        .route("/v1/reload", post(operate::reload))
        .route("/v1/tokens", get(tokens::list).post(tokens::create))
        .route("/v1/tokens/{name}", delete(tokens::revoke))
        .route("/v1/audit", get(audit::list))
        .fallback(async |uri: Uri| Refusal::no_route(uri.path()))
        .layer(middleware::from_fn_with_state(api.clone(), pass))
        .with_state(api)
}

/// What every request goes through: one layer, because each costs as much as a read.
///
/// ```text
/// counted ─▶ of this site? ─▶ may it? ([`auth::admit`]) ─▶ a change: written down ([`audit::recorded`]) ─▶ [`answer`]
/// ```
async fn pass(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    DefaultBodyLimit::max(MAX_BODY).apply(&mut request);
    // Who shows a token in a header, or comes by a file or another agent, is no web page of others.
    let foreign = (api.transport == Transport::Tcp).then(|| foreign(request.headers())).flatten();
    let response = match foreign {
        Some(refusal) => refusal.into_response(),
        None => auth::admit(&api, request, next).await,
    };
    // By the route's pattern, so that the labels are closed.
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    api.handle.metrics.request_served(route, response.status().as_u16(), began.elapsed());
    response
}

/// What the route says, in time, and how new that is.
pub(super) async fn answer(api: &Api, request: Request, next: Next) -> Response {
    // A long poll waits as it was asked to, or as long as any may.
    let long = |query: &str| query.contains("wait=") || query.contains("index=");
    let waits = request.uri().query().is_some_and(long);
    let allowed = if waits { api.patience + LONGEST } else { api.patience };
    // An agent that has not met its keeper yet knows nothing of its instances, and can change nothing: who asks is
    // told so at once, and what it waits for.
    let starting = api.starting.borrow().clone();
    if let Some(waits) = starting.filter(|_| !while_starting(request.uri().path())) {
        return Refusal::starting(&waits).into_response();
    }
    // Every read says how new it is: at least as new as this host's copy was when it was asked.
    let index = (*request.method() == Method::GET).then(|| api.handle.state.borrow().index);
    let answered = tokio::time::timeout(allowed, next.run(request)).await;
    // Of no state is it said that it was read where nothing was.
    let Ok(mut response) = answered else { return Refusal::timeout().into_response() };
    if let Some(index) = index {
        response.headers_mut().entry(reading::INDEX).or_insert_with(|| HeaderValue::from(index));
    }
    response
}

/// What an agent can tell before it is at work. Not what there is to be scraped: of an empty list Prometheus would
/// forget the hosts, of none it keeps them.
fn while_starting(path: &str) -> bool {
    let metrics = path.starts_with("/v1/hosts/") && path.ends_with("/metrics");
    metrics || ["/v1/status", "/v1/peers", "/v1/healthz", "/v1/openapi.json", "/metrics"].contains(&path)
}

/// A web page can make its reader's browser send requests to loopback: directly, which shows in `Origin`,
/// or through a name of its own that it points there, which shows in `Host`. Neither may look.
fn foreign(headers: &HeaderMap) -> Option<Refusal> {
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    if !names_loopback(host) {
        return Some(Refusal::foreign(format!("the request is for {host:?}: use 127.0.0.1 or localhost")));
    }
    let origin = headers.get(header::ORIGIN)?.to_str().unwrap_or_default();
    let own = origin.strip_prefix("http://") == Some(host);
    (!own).then(|| Refusal::foreign(format!("the request comes from a page of {origin:?}")))
}

fn names_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// The API answers
///
/// And of which version the program is. Answered while the agent is starting, too.
#[utoipa::path(get, path = "/v1/healthz", tag = "Observing",
    responses((status = 200, description = "it does", body = HealthView)))]
pub(super) async fn healthz() -> Json<HealthView> {
    Json(HealthView { ok: true, version: env!("CARGO_PKG_VERSION").to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        foreign(&headers).is_some()
    }

    #[test]
    fn every_route_is_documented() {
        let doc = include_str!("../../docs/api.md");
        let routes =
            include_str!("router.rs").split(".route(\"").skip(1).filter_map(|rest| rest.split_once('"'));
        let routes: Vec<&str> = routes.map(|(path, _)| path).filter(|path| path.starts_with('/')).collect();
        assert!(routes.len() >= 17, "{routes:?}");
        for path in routes {
            assert!(doc.contains(&format!(" {path}`")), "docs/api.md says nothing about {path}");
        }
    }

    #[test]
    fn web_pages_of_others_are_refused() {
        for host in ["127.0.0.1:7610", "localhost:7610", "[::1]:7610", "127.0.0.1"] {
            assert!(!refused(host, None), "{host}");
            assert!(!refused(host, Some(&format!("http://{host}"))), "{host}");
            assert!(refused(host, Some("https://evil.example")), "{host}");
            assert!(refused(host, Some("null")), "{host}");
        }
        assert!(refused("evil.example:7610", None));
        assert!(refused("127.0.0.1.evil.example", None));
        assert!(refused("", None));
    }
}
