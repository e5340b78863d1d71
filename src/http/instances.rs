//! Reading the host: status, instances, hang reports.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::Deserialize;

use super::names::{Id, Names};
use super::problem::Refusal;
use super::router::Api;
use crate::agent::handle::HostRequest;
use crate::cluster::node::Standing;
use crate::http::view::{InstanceView, StatusView};
use crate::spec::{InstanceId, ProcessName};

/// `GET /v1/status`. One host alone: it is its own primary and always has a quorum.
pub(super) async fn status(api: State<Api>) -> Result<Json<StatusView>, Refusal> {
    let snapshot = api.snapshots.get().await?;
    let state = api.handle.state.borrow().clone();
    let alone = || Standing { primary: Some(api.handle.host.clone()), quorum: true, ..Standing::default() };
    let standing = api.handle.ring.standing().unwrap_or_else(alone);
    let mut instances = BTreeMap::new();
    for view in &snapshot.instances {
        *instances.entry(view.state.clone()).or_insert(0) += 1;
    }
    Ok(Json(StatusView {
        cluster: api.handle.cluster.clone(),
        host: api.handle.host.clone(),
        primary: standing.primary,
        term: standing.term,
        index: state.index,
        quorum: standing.quorum,
        revision: state.revision,
        spec_drift: snapshot.spec_drift.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: api.handle.started_at.clone(),
        starting: api.starting.borrow().clone(),
        keeper: snapshot.keeper.clone(),
        instances,
    }))
}

/// What `GET /v1/instances` may be narrowed to.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    process: Option<ProcessName>,
    instance: Option<InstanceId>,
}

/// `GET /v1/instances?process=&instance=`
pub(super) async fn list(
    api: State<Api>,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Json<Vec<InstanceView>>, Refusal> {
    let Query(filter) = filter?;
    let snapshot = api.snapshots.get().await?;
    let names = Names::of(&api.handle.state.borrow(), &snapshot);
    filter.process.as_ref().map_or(Ok(()), |name| names.process(name))?;
    filter.instance.as_ref().map_or(Ok(()), |id| names.instance(id))?;
    let wanted = |view: &&InstanceView| {
        filter.process.as_ref().is_none_or(|name| view.process == *name)
            && filter.instance.as_ref().is_none_or(|id| view.instance == *id)
    };
    Ok(Json(snapshot.instances.iter().filter(wanted).cloned().collect()))
}

/// `GET /v1/instances/{id}`
pub(super) async fn one(api: State<Api>, Id(id): Id) -> Result<Json<InstanceView>, Refusal> {
    let snapshot = api.snapshots.get().await?;
    if let Some(view) = snapshot.instances.iter().find(|view| view.instance == id) {
        return Ok(Json(view.clone()));
    }
    Names::of(&api.handle.state.borrow(), &snapshot).instance(&id)?;
    Err(Refusal::nothing_there(format!("{id} is placed, but this host does not know it yet: try again")))
}

/// `GET /v1/instances/{id}/hang-report`, as text. The report may outlive the instance.
pub(super) async fn hang_report(api: State<Api>, Id(id): Id) -> Result<String, Refusal> {
    let report = api.handle.ask(|reply| HostRequest::HangReport(id.clone(), reply)).await?;
    if let Some(report) = report {
        return Ok(report);
    }
    Names::read(&api).await?.instance(&id)?;
    Err(Refusal::nothing_there(format!("{id} was not seen to hang: there is no report")))
}
