//! Reading instances: all of the cluster, one, its last hang report, who plays there.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::elsewhere::Place;
use super::muster::{Filter, concerned, muster};
use super::names::{Id, Names};
use super::problem::Refusal;
use super::router::Api;
use crate::agent::handle::HostRequest;
use crate::http::view::InstanceView;
use crate::spec::HostName;

/// The path of a request with its query.
pub(super) fn path_of(uri: &Uri) -> String {
    uri.path_and_query().map_or_else(|| uri.path().to_owned(), |path| path.as_str().to_owned())
}

/// `GET /v1/instances?process=&instance=&host=`
pub(super) async fn list(
    api: State<Api>,
    uri: Uri,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(filter) = filter?;
    if let Place::There(host) = api.place_of_host(filter.host.as_ref())? {
        return api.pass_on_get(&host, &path_of(&uri)).await;
    }
    Ok(Json(everywhere(&api, &filter).await?).into_response())
}

/// Every instance that the filter takes: of the whole cluster, unless it names a host or another agent asks.
pub(super) async fn everywhere(api: &Api, filter: &Filter) -> Result<Vec<InstanceView>, Refusal> {
    let snapshot = api.snapshots.get().await?;
    let state = api.handle.state.borrow().clone();
    let names = Names::of(&state, &snapshot);
    filter.process.as_ref().map_or(Ok(()), |name| names.process(name))?;
    filter.instance.as_ref().map_or(Ok(()), |id| names.instance(id))?;
    let own = snapshot.instances.iter().filter(|view| filter.takes(&view.instance)).cloned().collect();
    if !api.reaches() || filter.host.is_some() {
        return Ok(own);
    }
    let primary = api.handle.ring.standing().and_then(|standing| standing.primary);
    let asked = concerned(&state, filter, primary.as_ref(), api.others());
    let heard = api.ask_each(asked, &filter.path()).await;
    // What was placed meanwhile is as it is now, not as it was before they were asked.
    let state = api.handle.state.borrow().clone();
    Ok(muster(&state, filter, own, heard))
}

/// On which host it is looked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct On {
    pub(super) host: Option<HostName>,
}

/// `GET /v1/instances/{id}?host=`
pub(super) async fn one(
    api: State<Api>,
    Id(id): Id,
    uri: Uri,
    on: Result<Query<On>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(On { host }) = on?;
    if let Place::There(host) = api.place_of(&id, host.as_ref())? {
        return api.pass_on_get(&host, &path_of(&uri)).await;
    }
    let snapshot = api.snapshots.get().await?;
    if let Some(view) = snapshot.instances.iter().find(|view| view.instance == id) {
        return Ok(Json(view.clone()).into_response());
    }
    Names::of(&api.handle.state.borrow(), &snapshot).instance(&id)?;
    Err(Refusal::nothing_there(format!("{id} is placed, but this host does not know it yet: try again")))
}

/// `GET /v1/instances/{id}/hang-report?host=`, as text. The report may outlive the instance.
pub(super) async fn hang_report(
    api: State<Api>,
    Id(id): Id,
    uri: Uri,
    on: Result<Query<On>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(On { host }) = on?;
    if let Place::There(host) = api.place_of(&id, host.as_ref())? {
        return api.pass_on_get(&host, &path_of(&uri)).await;
    }
    let report = api.handle.ask(|reply| HostRequest::HangReport(id.clone(), reply)).await?;
    if let Some(report) = report {
        return Ok(report.into_response());
    }
    Names::read(&api).await?.instance(&id)?;
    Err(Refusal::nothing_there(format!("{id} was not seen to hang: there is no report")))
}

/// `GET /v1/instances/{id}/players?host=`: the list stays with the host of the run.
pub(super) async fn players(
    api: State<Api>,
    Id(id): Id,
    uri: Uri,
    on: Result<Query<On>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(On { host }) = on?;
    if let Place::There(host) = api.place_of(&id, host.as_ref())? {
        return api.pass_on_get(&host, &path_of(&uri)).await;
    }
    let players = api.handle.ask(|reply| HostRequest::Players(id.clone(), reply)).await?;
    if let Some(players) = players {
        return Ok(Json(players).into_response());
    }
    Names::read(&api).await?.instance(&id)?;
    Err(Refusal::nothing_there(format!("{id} does not run, so nobody plays there")))
}
