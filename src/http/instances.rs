//! Reading instances: all of the cluster, one, its last hang report, who plays there.

use std::num::NonZeroU32;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use super::elsewhere::Place;
use super::muster::{Filter, concerned, muster};
use super::names::{Id, Names};
use super::problem::Refusal;
use super::reading::{Copy, Label, Part, Switch, link_next};
use super::router::Api;
use crate::agent::handle::HostRequest;
use crate::http::view::{InstanceView, PlayersView, Problem};
use crate::spec::{HostName, InstanceId, ProcessName};
use crate::state;

/// The path of a request with its query.
pub(super) fn path_of(uri: &Uri) -> String {
    uri.path_and_query().map_or_else(|| uri.path().to_owned(), |path| path.as_str().to_owned())
}

/// What the instances may be narrowed to.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Of this process.
    process: Option<ProcessName>,
    /// This one.
    instance: Option<InstanceId>,
    /// What this host says, and no other.
    host: Option<HostName>,
    /// In this state, such as `failed`.
    state: Option<String>,
    /// Only those that are ready, or only those that are not.
    ready: Option<bool>,
    /// `KEY=VALUE`: of processes with this label.
    #[param(value_type = Option<String>, pattern = "^[^=]*=")]
    label: Option<Label>,
    /// Only these fields, with commas between.
    fields: Option<String>,
    /// At most so many; the header `Link` names the next page.
    #[param(value_type = Option<u32>, minimum = 1)]
    limit: Option<NonZeroU32>,
    /// Those behind this one, in order.
    after: Option<InstanceId>,
    /// Answered when the copy has all that was committed anywhere before; needs a quorum.
    #[serde(default)]
    #[param(value_type = bool)]
    consistent: Switch,
}

impl Wanted {
    fn takes(&self, state: &state::State, view: &InstanceView) -> bool {
        let labels = || state.spec.processes.get(&view.process).map(|process| &process.labels);
        self.state.as_ref().is_none_or(|wanted| view.state == *wanted)
            && self.ready.is_none_or(|ready| (view.state == READY) == ready)
            && self.label.as_ref().is_none_or(|label| labels().is_some_and(|l| label.is_among(l)))
            && self.after.as_ref().is_none_or(|after| view.instance > *after)
    }
}

/// The state of an instance that is ready.
const READY: &str = "ready";

/// The instances
///
/// Of all hosts: each is asked, a second at most. What belongs to one that does not answer is `unreachable`, with what
/// the directory knows of it; a run that does not belong where it is any more is `superseded`, and comes second.
#[utoipa::path(get, path = "/v1/instances", tag = "Instances", params(Wanted),
    responses((status = 200, description = "in order of their names", body = Vec<InstanceView>),
        (status = 404, description = "there is no such process, instance or host", body = Problem)))]
pub(super) async fn list(
    api: State<Api>,
    headers: HeaderMap,
    uri: Uri,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(wanted) = wanted?;
    if let Place::There(host) = api.place_of_host(wanted.host.as_ref())? {
        return api.pass_on_get_unless_seen(&host, &path_of(&uri), &headers).await;
    }
    let part = Part::of::<InstanceView>(wanted.limit, wanted.fields.clone())?;
    let copy = Copy::get(&api, wanted.consistent, &headers).await?;
    let Wanted { process, instance, host, .. } = &wanted;
    let filter = Filter { process: process.clone(), instance: instance.clone(), host: host.clone() };
    let all = everywhere(&api, &filter).await?;
    let rows = all.into_iter().filter(|view| wanted.takes(&copy.state, view));
    let (page, more) = part.cut(rows, |row| &row.instance);
    let next = page.last().filter(|_| more).map(|last| last.instance.to_string());
    let mut response = copy.answer_with(&part.project(page)?)?;
    link_next(&mut response, &uri, next.as_deref());
    Ok(response)
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
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct On {
    /// What this host says of it.
    pub(super) host: Option<HostName>,
}

/// The `{id}` of a path, of this host. What is asked about an instance of another host is passed on there, and the answer
/// that comes back takes the place of the route's.
pub(super) struct Here(InstanceId);

impl FromRequestParts<Api> for Here {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Response> {
        match Here::or_there(parts, api).await {
            Ok(found) => found,
            Err(refusal) => Err(refusal.into_response()),
        }
    }
}

impl Here {
    async fn or_there(parts: &mut Parts, api: &Api) -> Result<Result<Here, Response>, Refusal> {
        let Id(id) = Id::from_request_parts(parts, api).await?;
        let Query(On { host }) = Query::from_request_parts(parts, api).await?;
        match api.place_of(&id, host.as_ref())? {
            Place::Here => Ok(Ok(Here(id))),
            Place::There(host) => api.pass_on_get(&host, &path_of(&parts.uri)).await.map(Err),
        }
    }
}

/// An instance
///
/// From the host that it belongs to.
#[utoipa::path(get, path = "/v1/instances/{id}", tag = "Instances",
    params(("id" = InstanceId, Path, description = "such as zone.3"), On),
    responses((status = 200, description = "the instance", body = InstanceView),
        (status = 404, description = "there is none, or no such host", body = Problem)))]
pub(super) async fn one(api: State<Api>, Here(id): Here) -> Result<Response, Refusal> {
    let snapshot = api.snapshots.get().await?;
    if let Some(view) = snapshot.instances.iter().find(|view| view.instance == id) {
        return Ok(Json(view.clone()).into_response());
    }
    Names::of(&api.handle.state.borrow(), &snapshot).instance(&id)?;
    Err(Refusal::nothing_there(format!("{id} is placed, but this host does not know it yet: try again")))
}

/// A hang report
///
/// What was found out when it last hung: state, wait channel and kernel stack of every thread, the last log lines. May
/// outlive the instance.
#[utoipa::path(get, path = "/v1/instances/{id}/hang-report", tag = "Instances",
    params(("id" = InstanceId, Path, description = "such as zone.3"), On),
    responses((status = 200, description = "the report", body = String, content_type = "text/plain; charset=utf-8"),
        (status = 404, description = "there is none", body = Problem)))]
pub(super) async fn hang_report(api: State<Api>, Here(id): Here) -> Result<Response, Refusal> {
    let report = api.handle.ask(|reply| HostRequest::HangReport(id.clone(), reply)).await?;
    if let Some(report) = report {
        return Ok(report.into_response());
    }
    Names::read(&api).await?.instance(&id)?;
    Err(Refusal::nothing_there(format!("{id} was not seen to hang: there is no report")))
}

/// Who plays there
///
/// The list stays with the host of the run, which is asked for it.
#[utoipa::path(get, path = "/v1/instances/{id}/players", tag = "Instances",
    params(("id" = InstanceId, Path, description = "such as zone.3"), On),
    responses((status = 200, description = "the players", body = PlayersView),
        (status = 404, description = "there is no such instance or host, or it does not run", body = Problem)))]
pub(super) async fn players(api: State<Api>, Here(id): Here) -> Result<Response, Refusal> {
    let players = api.handle.ask(|reply| HostRequest::Players(id.clone(), reply)).await?;
    if let Some(players) = players {
        return Ok(Json(players).into_response());
    }
    Names::read(&api).await?.instance(&id)?;
    Err(Refusal::nothing_there(format!("{id} does not run, so nobody plays there")))
}
