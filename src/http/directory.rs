//! Reading the directory: which runs live where, from this host's own copy of the replicated state.
//!
//! Owns the answers' shapes. It is answered at memory speed and also without a quorum; how old the copy may be is
//! told by `bigbrother-index`, the last change that it has (`reading`).

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::Bound;

use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use super::names::{self, Id, Name};
use super::problem::Refusal;
use super::reading::{Copy, Label, Part, Switch, link_next};
use super::router::Api;
use super::said::Said;
use super::tables::{Table, Wait};
use crate::http::view::{DirectoryView, LeaderView, PortView, Problem, ProcessView};
use crate::spec::{HostName, InstanceId, Population, ProcessName};
use crate::state::{self, Entry};

/// What the directory may be narrowed to.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// Of this process.
    process: Option<ProcessName>,
    /// On this host.
    host: Option<HostName>,
    /// Only those that are ready, or only those that are not.
    ready: Option<bool>,
    /// `KEY=VALUE`: with this label, of the process or of those that the run says it has.
    #[param(value_type = Option<String>, pattern = "^[^=]*=")]
    label: Option<Label>,
    /// With what the runs say about themselves.
    #[serde(default)]
    status: bool,
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
    /// Long poll: answered when something has changed after this index, or after `wait`.
    index: Option<u64>,
    /// How long that waits, such as `30s`; at most and by default a minute.
    #[param(value_type = Option<String>)]
    wait: Option<Wait>,
}

/// How a run is read.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct How {
    /// With what the run says about itself.
    #[serde(default)]
    status: bool,
    /// Answered when the copy has all that was committed anywhere before; needs a quorum.
    #[serde(default)]
    #[param(value_type = bool)]
    consistent: Switch,
}

/// A copy of the directory, with what runs say about themselves where the answer depends on it.
pub(super) struct Shown {
    copy: Copy,
    said: Option<Said>,
    /// It is shown.
    status: bool,
}

impl FromRequestParts<Api> for Shown {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refusal> {
        let how: Result<Query<How>, QueryRejection> = Query::from_request_parts(parts, api).await;
        let Query(how) = how?;
        Shown::get(api, &how, how.status, &parts.headers).await
    }
}

impl Shown {
    async fn get(api: &Api, how: &How, said: bool, headers: &HeaderMap) -> Result<Shown, Refusal> {
        let said = if said { Some(Said::read(api).await) } else { None };
        Ok(Shown { copy: Copy::get(api, how.consistent, headers).await?, said, status: how.status })
    }

    /// The entry as it is shown.
    fn view(&self, id: &InstanceId, entry: &Entry) -> DirectoryView {
        let plain = view(&self.copy.state, id, entry);
        match self.said.as_ref().filter(|_| self.status) {
            Some(said) => said.add_to(plain),
            None => plain,
        }
    }

    fn answer<T: Serialize>(
        &self,
        body: impl FnOnce(&state::State) -> Result<T, Refusal>,
    ) -> Result<Response, Refusal> {
        match &self.said {
            // With ages it is like no other.
            Some(_) if self.status => self.copy.answer_once(body),
            // Each host has heard of other things, in another order.
            Some(_) => self.copy.answer_with(&body(&self.copy.state)?),
            None => self.copy.answer(body),
        }
    }
}

/// The runs that live
///
/// From this host's own copy of the replicated state, also without a quorum.
#[utoipa::path(get, path = "/v1/directory", tag = "Directory", params(Filter),
    responses((status = 200, description = "in order of their names", body = Vec<DirectoryView>)))]
pub(super) async fn list(
    api: State<Api>,
    headers: HeaderMap,
    uri: Uri,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(filter) = filter?;
    api.tables.poll(Table::Directory, filter.index, filter.wait).await;
    let part = Part::of::<DirectoryView>(filter.limit, filter.fields.clone())?;
    let status = filter.status || filter.fields.is_some() && part.shows("status");
    let how = How { status, consistent: filter.consistent };
    let shown = Shown::get(&api, &how, status || filter.label.is_some(), &headers).await?;
    let mut next = None;
    let mut response = shown.answer(|state| {
        let rows = filter.take(state, shown.said.as_ref()).map(|(id, entry)| shown.view(id, entry));
        let (page, more) = part.cut(rows, |row| &row.instance);
        next = page.last().filter(|_| more).map(|last| last.instance.to_string());
        part.project(page)
    })?;
    link_next(&mut response, &uri, next.as_deref());
    Ok(response)
}

impl Filter {
    /// What is wanted of the directory, in order.
    fn take<'a>(
        &'a self,
        state: &'a state::State,
        said: Option<&'a Said>,
    ) -> impl Iterator<Item = (&'a InstanceId, &'a Entry)> + use<'a> {
        let after = self.after.as_ref();
        let all: Box<dyn Iterator<Item = _>> = match &self.process {
            Some(name) => {
                let all = state::of_process(&state.directory, name);
                Box::new(all.filter(move |(id, _)| after.is_none_or(|after| *id > after)))
            }
            None => {
                let behind = after.map_or(Bound::Unbounded, Bound::Excluded);
                Box::new(state.directory.range((behind, Bound::Unbounded)))
            }
        };
        all.filter(move |(id, entry)| {
            self.host.as_ref().is_none_or(|host| entry.host == *host)
                && self.ready.is_none_or(|ready| entry.ready.is_some() == ready)
                && self.label.as_ref().is_none_or(|label| {
                    let run = (&entry.host, *id, entry.run);
                    labels(state, id).is_some_and(|labels| label.is_among(labels))
                        || said.is_some_and(|said| said.has(run, &label.key, &label.value))
                })
        })
    }
}

/// A run
///
/// The living run of an instance.
#[utoipa::path(get, path = "/v1/directory/{id}", tag = "Directory",
    params(("id" = InstanceId, Path, description = "such as zone.3"), How),
    responses((status = 200, description = "the run", body = DirectoryView),
        (status = 404, description = "none lives", body = Problem)))]
pub(super) async fn one(Id(id): Id, shown: Shown) -> Result<Response, Refusal> {
    shown.answer(|state| {
        let entry = state.directory.get(&id);
        entry
            .map(|entry| shown.view(&id, entry))
            .ok_or_else(|| Refusal::nothing_there(format!("no run of {id} lives")))
    })
}

/// The leader of a process
///
/// The run that speaks for it: the eldest that was ready when the last one ceased to be, with its fencing token.
#[utoipa::path(get, path = "/v1/directory/{id}/leader", tag = "Directory",
    params(("id" = ProcessName, Path, description = "a process, such as zone"), How),
    responses((status = 200, description = "the run", body = LeaderView),
        (status = 404, description = "none is ready, or there is no such process", body = Problem)))]
pub(super) async fn leader(Name(process): Name, shown: Shown) -> Result<Response, Refusal> {
    shown.answer(|state| {
        let leader = state.leaders.get(&process);
        let led = leader.and_then(|leader| Some((leader, state.directory.get(&leader.instance)?)));
        match led {
            Some((leader, entry)) => {
                Ok(LeaderView { token: leader.token, entry: shown.view(&leader.instance, entry) })
            }
            None => {
                names::process(state, &process)?;
                Err(Refusal::nothing_there(format!("no run of {process} is ready, so none leads")))
            }
        }
    })
}

/// What the declared processes may be narrowed to.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Declared {
    /// This one.
    process: Option<ProcessName>,
    /// `KEY=VALUE`: with this label.
    #[param(value_type = Option<String>, pattern = "^[^=]*=")]
    label: Option<Label>,
    /// With a run on this host.
    host: Option<HostName>,
    /// Only those of which a run is ready, or only those of which none is.
    ready: Option<bool>,
    /// Only these fields, with commas between.
    fields: Option<String>,
    /// At most so many; the header `Link` names the next page.
    #[param(value_type = Option<u32>, minimum = 1)]
    limit: Option<NonZeroU32>,
    /// Those behind this one, in order.
    after: Option<ProcessName>,
    /// Answered when the copy has all that was committed anywhere before; needs a quorum.
    #[serde(default)]
    #[param(value_type = bool)]
    consistent: Switch,
    /// Long poll: answered when something has changed after this index, or after `wait`.
    index: Option<u64>,
    /// How long that waits, such as `30s`; at most and by default a minute.
    #[param(value_type = Option<String>)]
    wait: Option<Wait>,
}

/// The declared processes
#[utoipa::path(get, path = "/v1/processes", tag = "Directory", params(Declared),
    responses((status = 200, description = "in order of their names", body = Vec<ProcessView>)))]
pub(super) async fn processes(
    api: State<Api>,
    headers: HeaderMap,
    uri: Uri,
    wanted: Result<Query<Declared>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(wanted) = wanted?;
    api.tables.poll(Table::Processes, wanted.index, wanted.wait).await;
    let copy = Copy::get(&api, wanted.consistent, &headers).await?;
    let part = Part::of::<ProcessView>(wanted.limit, wanted.fields.clone())?;
    let mut next = None;
    let mut response = copy.answer(|state| {
        let names = state.spec.processes.keys();
        let names = names.filter(|name| wanted.after.as_ref().is_none_or(|after| *name > after));
        let rows = names.filter_map(|name| process(state, name).filter(|view| wanted.takes(state, view)));
        let (page, more) = part.cut(rows, |row| &row.process);
        next = page.last().filter(|_| more).map(|last| last.process.to_string());
        part.project(page)
    })?;
    link_next(&mut response, &uri, next.as_deref());
    Ok(response)
}

impl Declared {
    fn takes(&self, state: &state::State, view: &ProcessView) -> bool {
        let on = |host: &HostName| {
            state::of_process(&state.directory, &view.process).any(|(_, entry)| entry.host == *host)
        };
        self.process.as_ref().is_none_or(|name| view.process == *name)
            && self.label.as_ref().is_none_or(|label| label.is_among(&view.labels))
            && self.ready.is_none_or(|ready| (view.ready > 0) == ready)
            && self.host.as_ref().is_none_or(on)
    }
}

fn process(state: &state::State, name: &ProcessName) -> Option<ProcessView> {
    let process = state.spec.processes.get(name)?;
    let population = match process.population {
        Population::Count(_) => "count",
        Population::PerHost => "per_host",
        Population::OnDemand { .. } => "on_demand",
    };
    let (mut running, mut ready) = (0, 0);
    for (_, entry) in state::of_process(&state.directory, name) {
        running += 1;
        ready += u64::from(entry.ready.is_some());
    }
    Some(ProcessView {
        process: name.clone(),
        population: population.to_owned(),
        count: state.count_of(name),
        placed: state::of_process(&state.placements, name).count() as u64,
        running,
        ready,
        paused: state.paused.all || state.paused.processes.contains(name),
        labels: process.labels.clone(),
        leader: state.leaders.get(name).map(|leader| leader.instance.clone()),
    })
}

fn labels<'a>(state: &'a state::State, id: &InstanceId) -> Option<&'a BTreeMap<String, String>> {
    state.spec.processes.get(&id.process).map(|process| &process.labels)
}

pub(super) fn view(state: &state::State, instance: &InstanceId, entry: &Entry) -> DirectoryView {
    let ports = entry.ports.iter();
    let ports = ports.map(|(name, (protocol, port))| (name.to_owned(), PortView { protocol, port }));
    DirectoryView {
        instance: instance.clone(),
        process: instance.process.clone(),
        host: entry.host.clone(),
        run: entry.run.0,
        address: entry.address.clone(),
        ports: ports.collect(),
        ready: entry.ready.is_some(),
        started: entry.started,
        labels: labels(state, instance).cloned().unwrap_or_default(),
        status: None,
    }
}
