//! Asking other hosts: whose business a request is, and having the agent there answer it.
//!
//! Owns nothing. A request that came from another agent is answered here or refused, never passed on. Called by
//! the routes that are about one instance, one host or all of them.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use super::auth::{self, CALLER};
use super::names;
use super::problem::Refusal;
use super::router::{Api, Transport};
use crate::cluster::tunnel::{self, Answered, Asked};
use crate::cluster::wire::Target;
use crate::http::view::Problem;
use crate::spec::{HostName, InstanceId};
use crate::state::State;

/// How long one host is waited for when all are asked.
const BRIEFLY: Duration = Duration::from_secs(1);
/// How long the host is waited for that a request is about: less than the request may take.
pub(super) const PATIENTLY: Duration = Duration::from_secs(9);
/// How long one question waits for something new to come.
pub(super) const WAIT: Duration = Duration::from_secs(2);
/// Before a host that does not answer, or may have nothing new, is asked again.
pub(super) const AGAIN: Duration = Duration::from_millis(500);

/// Where a request is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Here,
    There(HostName),
}

/// The host that an instance is on, by the replicated state: where it belongs, else where it runs.
pub(super) fn host_of(state: &State, id: &InstanceId) -> Option<HostName> {
    let placed = state.placements.get(id).map(|placement| &placement.host);
    placed.or_else(|| state.directory.get(id).map(|entry| &entry.host)).cloned()
}

/// What all other hosts said, or why they did not.
pub(super) type Heard<T> = Vec<(HostName, Result<T, String>)>;

impl Api {
    /// True when other agents may be asked.
    pub(super) fn reaches(&self) -> bool {
        self.transport != Transport::Tunnel && self.handle.ring.exchange().is_some()
    }

    /// Where what is about a host is answered; no host named: here.
    pub(super) fn place_of_host(&self, host: Option<&HostName>) -> Result<Place, Refusal> {
        let Some(host) = host.filter(|host| **host != self.handle.host) else { return Ok(Place::Here) };
        if self.transport == Transport::Tunnel {
            return Err(Refusal::not_here(&self.handle.host, host));
        }
        let state = self.handle.state.borrow().clone();
        names::host(&state, &self.handle.host, host)?;
        Ok(Place::There(host.clone()))
    }

    /// Where what is about an instance is answered, unless a host is named.
    pub(super) fn place_of(&self, id: &InstanceId, host: Option<&HostName>) -> Result<Place, Refusal> {
        if host.is_some() {
            return self.place_of_host(host);
        }
        if !self.reaches() {
            return Ok(Place::Here);
        }
        let placed = host_of(&self.handle.state.borrow(), id).filter(|host| *host != self.handle.host);
        Ok(placed.map_or(Place::Here, Place::There))
    }

    /// Every other host that is up.
    pub(super) fn others(&self) -> BTreeSet<HostName> {
        if !self.reaches() {
            return BTreeSet::new();
        }
        let state = self.handle.state.borrow();
        let others = state.hosts.iter().filter(|(name, host)| host.up && **name != self.handle.host);
        others.map(|(name, _)| name.clone()).collect()
    }

    /// The answer of another host's agent, whatever it is.
    pub(super) async fn ask(
        &self,
        host: &HostName,
        asked: &Asked,
        ttl: Duration,
    ) -> Result<Answered, Refusal> {
        let address = self.handle.state.borrow().hosts.get(host).map(|known| known.facts.agent.clone());
        let address = address.filter(|address| !address.is_empty());
        let (Some(exchange), Some(address)) = (self.handle.ring.exchange(), address) else {
            return Err(Refusal::unreachable(host, "it has not said where its agent listens"));
        };
        let to = Target { host: host.clone(), id: None, address };
        let mut asked = asked.clone();
        // That it may, this agent has seen to; who it is, the other one writes down.
        let caller = auth::asking().and_then(|caller| serde_json::to_string(&caller).ok());
        asked.headers.extend(caller.map(|caller| (CALLER.to_owned(), caller)));
        let answered = tunnel::ask(exchange, &to, &asked, ttl).await;
        answered.map_err(|error| Refusal::unreachable(host, &error.to_string()))
    }

    /// Asks for what comes after a place (`path` names it in its query), and waits there until something does, unless
    /// too many wait already: then a moment is waited here.
    pub(super) async fn ask_for_more(&self, host: &HostName, path: &str) -> Result<Answered, Refusal> {
        let slot = self.waiting.clone().try_acquire_owned().ok();
        let wait = if slot.is_some() { WAIT } else { Duration::ZERO };
        if slot.is_none() {
            tokio::time::sleep(AGAIN).await;
        }
        let asked = Asked::get(format!("{path}&wait_ms={}", wait.as_millis()));
        self.ask(host, &asked, PATIENTLY).await
    }

    /// Has another host's agent answer a `GET` in place of this one.
    pub(super) async fn pass_on_get(&self, host: &HostName, path: &str) -> Result<Response, Refusal> {
        self.pass_on_get_unless_seen(host, path, &HeaderMap::new()).await
    }

    /// The same of an answer that has an `ETag`: with what the asker has seen of it.
    pub(super) async fn pass_on_get_unless_seen(
        &self,
        host: &HostName,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Response, Refusal> {
        let seen = headers.get(header::IF_NONE_MATCH).and_then(|seen| seen.to_str().ok());
        let seen = seen.map(|seen| (header::IF_NONE_MATCH.to_string(), seen.to_owned()));
        let asked = Asked { headers: seen.into_iter().collect(), ..Asked::get(path) };
        response(self.ask(host, &asked, PATIENTLY).await?)
    }

    /// A `POST` of JSON to another host's agent; its answer, or its refusal.
    pub(super) async fn tell<T: DeserializeOwned>(
        &self,
        host: &HostName,
        path: &str,
        headers: &[(&str, &str)],
        body: &impl Serialize,
    ) -> Result<T, Refusal> {
        let body =
            serde_json::to_vec(body).map_err(|error| Refusal::internal(format!("no JSON: {error}")))?;
        let json = ("content-type", "application/json");
        let headers = headers.iter().chain([&json]).map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let asked =
            Asked { method: "POST".to_owned(), path: path.to_owned(), headers: headers.collect(), body };
        read(host, &self.ask(host, &asked, PATIENTLY).await?)
    }

    /// Asks several hosts at once, each for a moment only.
    pub(super) async fn ask_each<T>(&self, hosts: BTreeSet<HostName>, path: &str) -> Heard<T>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let mut asking = JoinSet::new();
        for host in hosts {
            let (api, asked) = (self.clone(), Asked::get(path));
            asking.spawn(async move {
                let answered = api.ask(&host, &asked, BRIEFLY).await;
                let read = answered.and_then(|answered| read(&host, &answered));
                (host, read.map_err(|refusal| refusal.detail().to_owned()))
            });
        }
        let mut heard = asking.join_all().await;
        heard.sort_by(|a, b| a.0.cmp(&b.0));
        heard
    }
}

/// An answer as it goes on to whoever asked this agent.
fn response(answered: Answered) -> Result<Response, Refusal> {
    let mut response = Response::builder().status(answered.status);
    for (name, value) in &answered.headers {
        response = response.header(name, value);
    }
    let made = response.body(Body::from(answered.body));
    made.map_err(|error| Refusal::internal(format!("the answer of another host is none: {error}")))
}

/// What a successful answer holds; another one is that host's refusal.
pub(super) fn read<T: DeserializeOwned>(host: &HostName, answered: &Answered) -> Result<T, Refusal> {
    if StatusCode::from_u16(answered.status).is_ok_and(|status| status.is_success()) {
        return serde_json::from_slice(&answered.body)
            .map_err(|error| Refusal::unreachable(host, &format!("its answer is not understood: {error}")));
    }
    Err(refusal(host, answered))
}

/// Another host's refusal.
pub(super) fn refusal(host: &HostName, answered: &Answered) -> Refusal {
    match serde_json::from_slice::<Problem>(&answered.body) {
        Ok(problem) => Refusal::of_another(host, problem),
        Err(_) => Refusal::unreachable(host, &String::from_utf8_lossy(&answered.body)),
    }
}
