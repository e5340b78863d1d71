//! `GET /v1/status`: this host, and how the cluster stands as seen from it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::Uri;
use axum::response::{IntoResponse, Response};

use super::elsewhere::Place;
use super::instances::{On, path_of};
use super::peers;
use super::problem::Refusal;
use super::router::Api;
use crate::agent::replica::wall_ms;
use crate::cluster::node::{Standing, Watched};
use crate::http::view::{HostCounts, Problem, SILENT_MS, StatusView};
use crate::plan::{Liveness, plan};
use crate::spec::{HostName, InstanceId};
use crate::state;

/// How long the primary is waited for.
pub(super) const PRIMARY: Duration = Duration::from_millis(500);

/// A host, and how the cluster stands as seen from it
///
/// Answered while the agent is starting, too.
#[utoipa::path(get, path = "/v1/status", tag = "Observing", params(On),
    responses((status = 200, description = "the status", body = StatusView),
        (status = 404, description = "there is no such host", body = Problem)))]
pub(super) async fn read(
    api: State<Api>,
    uri: Uri,
    on: Result<Query<On>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(on) = on?;
    if let Place::There(host) = api.place_of_host(on.host.as_ref())? {
        return api.pass_on_get(&host, &path_of(&uri)).await;
    }
    let snapshot = api.snapshots.get().await?;
    let state = api.handle.state.borrow().clone();
    let ring = &api.handle.ring;
    let standing = ring.standing().unwrap_or_else(|| alone(&api, &state));
    let (watched, missing) = tokio::join!(ring.watched(PRIMARY), missing(&api, standing.quorum));
    let watched = watched.ok();
    let mut instances = BTreeMap::new();
    for view in &snapshot.instances {
        *instances.entry(view.state.clone()).or_insert(0) += 1;
    }
    let view = StatusView {
        cluster: api.handle.cluster.clone(),
        host: api.handle.host.clone(),
        primary: standing.primary,
        term: standing.term,
        index: standing.index,
        quorum: standing.quorum,
        role: ring.role().to_owned(),
        peer: ring.served_by(),
        hosts: count(&state, watched.as_ref(), ring.is_alone()),
        brake: watched.map(|watched| watched.brake).unwrap_or_default(),
        missing,
        superseded: state.superseded.values().map(|runs| runs.len() as u64).sum(),
        unplaced: unplaced(state.clone()).await?,
        broken: standing.broken,
        apart: ring.unsettled().borrow().clone(),
        revision: state.revision,
        spec_drift: snapshot.spec_drift.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: api.handle.started_at.clone(),
        starting: api.starting.borrow().clone(),
        keeper: snapshot.keeper.clone(),
        instances,
    };
    Ok(Json(view).into_response())
}

/// The peers that do not answer, where that may be why nothing can be changed.
async fn missing(api: &Api, quorum: bool) -> Vec<HostName> {
    if quorum {
        return Vec::new();
    }
    let peers = peers::known(api).await;
    peers.into_iter().filter(|peer| peer.unreachable.is_some()).map(|peer| peer.host).collect()
}

/// A host alone is its own primary and always has a quorum.
pub(super) fn alone(api: &Api, state: &state::State) -> Standing {
    let primary = Some(api.handle.host.clone());
    Standing { primary, index: state.index, quorum: true, ..Standing::default() }
}

pub(super) fn count(state: &state::State, watched: Option<&Watched>, alone: bool) -> HostCounts {
    let up = state.hosts.values().filter(|host| host.up).count() as u64;
    let silent =
        watched.map(|watched| watched.silent_ms.values().filter(|ms| **ms > SILENT_MS).count() as u64);
    HostCounts { up, down: state.hosts.len() as u64 - up, silent: if alone { Some(0) } else { silent } }
}

/// What fits nowhere, as a plan made now would find. Every host can tell, not only the primary.
async fn unplaced(state: Arc<state::State>) -> Result<BTreeMap<InstanceId, String>, Refusal> {
    let planned = tokio::task::spawn_blocking(move || plan(&state, &Liveness::default(), wall_ms()).unplaced);
    planned.await.map_err(|error| Refusal::internal(format!("no plan could be made: {error}")))
}
