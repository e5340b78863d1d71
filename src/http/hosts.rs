//! Hosts: which there are, emptying one, giving one up.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Deserialize;

use super::names;
use super::peers;
use super::problem::Refusal;
use super::router::Api;
use super::status::PRIMARY;
use crate::http::view::{DoneView, HostView, PeerView};
use crate::spec::HostName;
use crate::state::Command;

/// How long the primary is waited for when a host is given up.
const GIVE_UP: Duration = Duration::from_secs(3);

/// What another agent says of its program: `GET /v1/healthz`.
#[derive(Deserialize)]
struct Health {
    version: String,
}

/// `GET /v1/hosts`
pub(super) async fn list(api: State<Api>) -> Result<Json<Vec<HostView>>, Refusal> {
    let ring = &api.handle.ring;
    let (watched, versions, peers) = tokio::join!(
        ring.watched(PRIMARY),
        api.ask_each::<Health>(api.others(), "/v1/healthz"),
        peers::known(&api)
    );
    let silent = watched.map(|watched| watched.silent_ms).unwrap_or_default();
    let versions = versions.into_iter().filter_map(|(host, health)| Some((host, health.ok()?.version)));
    let own = (api.handle.host.clone(), env!("CARGO_PKG_VERSION").to_owned());
    let versions: BTreeMap<HostName, String> = versions.chain([own]).collect();
    let state = api.handle.state.borrow().clone();
    let mut placed: BTreeMap<&HostName, u64> = BTreeMap::new();
    for placement in state.placements.values() {
        *placed.entry(&placement.host).or_default() += 1;
    }
    let view = |(name, host): (&HostName, &crate::state::Host)| HostView {
        host: name.clone(),
        up: host.up,
        drained: host.drained,
        incarnation: host.incarnation,
        role: role(name, &peers, ring.is_alone()).to_owned(),
        address: host.facts.address.clone(),
        agent: host.facts.agent.clone(),
        labels: host.facts.labels.clone(),
        capacity: host.facts.capacity.clone(),
        instances: placed.get(name).copied().unwrap_or(0),
        silent_ms: silent.get(name).copied().or(ring.is_alone().then_some(0)).filter(|_| host.up),
        version: versions.get(name).cloned(),
    };
    Ok(Json(state.hosts.iter().map(view).collect()))
}

fn role(host: &HostName, peers: &[PeerView], alone: bool) -> &'static str {
    match peers.iter().find(|peer| peer.host == *host) {
        _ if alone => "primary",
        Some(peer) if peer.primary => "primary",
        Some(peer) if peer.role == "learner" => "learner",
        Some(_) => "peer",
        None => "attached",
    }
}

/// A host as a path names it.
pub(super) type Named = Result<Path<String>, PathRejection>;

/// One that there is.
pub(super) fn named(api: &Api, name: Named) -> Result<HostName, Refusal> {
    let host = name?.0.parse()?;
    let state = api.handle.state.borrow().clone();
    names::host(&state, &api.handle.host, &host)?;
    Ok(host)
}

/// `POST /v1/hosts/{host}/drain`
pub(super) async fn drain(api: State<Api>, name: Named) -> Result<Json<DoneView>, Refusal> {
    let host = named(&api, name)?;
    api.handle.propose(Command::DrainHost { host: host.clone(), drained: true }).await?;
    let detail = format!("the instances of {host} go elsewhere, and none comes to it until `undrain`");
    Ok(Json(DoneView { detail }))
}

/// `POST /v1/hosts/{host}/undrain`
pub(super) async fn undrain(api: State<Api>, name: Named) -> Result<Json<DoneView>, Refusal> {
    let host = named(&api, name)?;
    api.handle.propose(Command::DrainHost { host: host.clone(), drained: false }).await?;
    let detail = format!("instances may come to {host} again; what runs elsewhere stays there");
    Ok(Json(DoneView { detail }))
}

/// `POST /v1/hosts/{host}/declare-down`
pub(super) async fn declare_down(api: State<Api>, name: Named) -> Result<Json<DoneView>, Refusal> {
    let host = named(&api, name)?;
    let state = api.handle.state.borrow().clone();
    if state.hosts.get(&host).is_some_and(|known| !known.up) {
        return Err(Refusal::down_already(&host));
    }
    let ring = &api.handle.ring;
    // A primary that has lost its quorum takes note of it, and can do nothing.
    if ring.standing().is_some_and(|standing| !standing.quorum) {
        return Err(Refusal::no_quorum());
    }
    ring.give_up(&host, GIVE_UP).await?;
    let timeout = state.settings.host_timeout;
    let shown = humantime::format_duration(timeout);
    let silent = api.handle.ring.watched(PRIMARY).await.ok();
    let silent = silent.and_then(|watched| watched.silent_ms.get(&host).copied()).map(Duration::from_millis);
    let detail = match silent {
        Some(silent) if silent >= timeout => {
            format!("{host} is declared down now, whatever the brake says: its instances go elsewhere")
        }
        Some(silent) => format!(
            "{host} was heard {silent:.1?} ago: it is declared down once it has been silent for {shown}, whatever the \
             brake says; if it is heard before that, it stays up"
        ),
        None => {
            format!("{host} is declared down once it has been silent for {shown}, whatever the brake says")
        }
    };
    Ok(Json(DoneView { detail }))
}
