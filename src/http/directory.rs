//! Reading the directory: which runs live where, from this host's own copy of the replicated state.
//!
//! Owns the answers' shapes. It is answered at memory speed and also without a quorum; how old the copy may be is
//! told by `bigbrother-index`, the last change that it has. `?consistent` waits until the copy has all that was
//! committed anywhere.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::names::{Id, Name};
use super::problem::Refusal;
use super::router::Api;
use super::said::Said;
use super::watchers;
use crate::http::view::{DirectoryView, LeaderView, PortView, ProcessView};
use crate::spec::{HostName, InstanceId, Population, ProcessName};
use crate::state::{self, Entry};

/// The state index of the copy that answered.
pub(super) const INDEX: HeaderName = HeaderName::from_static("bigbrother-index");

/// What `GET /v1/directory` may be narrowed to.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    process: Option<ProcessName>,
    host: Option<HostName>,
    ready: Option<bool>,
    /// `key=value` of the labels of the process, or of those that the run says it has.
    label: Option<String>,
    /// Names of fields, with commas between.
    fields: Option<String>,
    limit: Option<usize>,
    /// Those behind this instance, in order.
    after: Option<InstanceId>,
    consistent: Option<String>,
    /// Answered when something has changed after this index, or after `wait`.
    index: Option<u64>,
    wait: Option<String>,
    /// With what the runs say about themselves.
    #[serde(default)]
    status: bool,
}

/// Whether the copy has to be as new as any.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Consistent {
    consistent: Option<String>,
}

/// How a run is read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct How {
    /// The copy has to be as new as any.
    consistent: Option<String>,
    /// With what the run says about itself.
    #[serde(default)]
    status: bool,
}

/// The state that answers, and what the asker has seen already.
struct Copy {
    state: Arc<state::State>,
    /// What runs say about themselves, where the answer depends on it.
    said: Option<Said>,
    /// `None`: an answer with ages is like no other.
    tag: Option<String>,
    seen: bool,
}

impl Copy {
    async fn get(api: &Api, how: &How, headers: &HeaderMap) -> Result<Copy, Refusal> {
        Copy::with(api, how, headers, how.status).await
    }

    async fn with(api: &Api, how: &How, headers: &HeaderMap, said: bool) -> Result<Copy, Refusal> {
        if how.consistent.as_ref().is_some_and(|word| word != "false") {
            api.handle.ring.catch_up().await.map_err(|_| Refusal::no_quorum())?;
        }
        let said = if said { Some(Said::read(api).await) } else { None };
        let state = api.handle.state.borrow().clone();
        let tag = (!how.status).then(|| tag_of(&state, said.as_ref()));
        let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
        let seen = known.zip(tag.as_deref());
        let seen = seen.is_some_and(|(known, tag)| known.split(',').any(|one| one.trim() == tag));
        Ok(Copy { state, said, tag, seen })
    }

    /// The entry as it is shown.
    fn view(&self, how: &How, id: &InstanceId, entry: &Entry) -> DirectoryView {
        let plain = view(&self.state, id, entry);
        match self.said.as_ref().filter(|_| how.status) {
            Some(said) => said.add_to(plain),
            None => plain,
        }
    }

    fn answer<T: Serialize>(
        &self,
        body: impl FnOnce(&state::State) -> Result<T, Refusal>,
    ) -> Result<Response, Refusal> {
        let mut response = match self.seen {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false => Json(body(&self.state)?).into_response(),
        };
        let headers = response.headers_mut();
        headers.insert(INDEX, HeaderValue::from(self.state.index));
        // Digits between quotes are a legal value.
        let tag = self.tag.as_ref().and_then(|tag| HeaderValue::from_str(tag).ok());
        headers.extend(tag.map(|tag| (header::ETAG, tag)));
        Ok(response)
    }
}

/// Answers to one question differ only when the state does, or what runs say.
fn tag_of(state: &state::State, said: Option<&Said>) -> String {
    match said {
        Some(said) => format!("\"{}.{}\"", state.index, said.version()),
        None => format!("\"{}\"", state.index),
    }
}

/// `GET /v1/directory?process=&host=&ready=&label=&fields=&limit=&after=&status=&consistent`
pub(super) async fn list(
    api: State<Api>,
    headers: HeaderMap,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(filter) = filter?;
    let label = filter.label.as_deref().map(parse_label).transpose()?;
    let fields = filter.fields.as_deref().map(parse_fields).transpose()?;
    if let Some(index) = filter.index {
        let wait = filter.wait.as_deref().map_or(Ok(watchers::LONGEST), parse_wait)?;
        watchers::poll(&api.handle.ring.feed(), index, wait).await;
    }
    let status = filter.status || fields.as_ref().is_some_and(|fields| fields.contains(&"status"));
    let how = How { consistent: filter.consistent.clone(), status };
    let copy = Copy::with(&api, &how, &headers, status || label.is_some()).await?;
    let mut next = None;
    let mut response = copy.answer(|state| {
        let wanted = |(id, entry): &(&InstanceId, &Entry)| {
            filter.host.as_ref().is_none_or(|host| entry.host == *host)
                && filter.ready.is_none_or(|ready| entry.ready.is_some() == ready)
                && filter.after.as_ref().is_none_or(|after| *id > after)
                && label.is_none_or(|(key, value)| {
                    let declared = labels(state, id).and_then(|labels| labels.get(key));
                    let run = (&entry.host, *id, entry.run);
                    declared.is_some_and(|declared| declared == value)
                        || copy.said.as_ref().is_some_and(|said| said.has(run, key, value))
                })
        };
        let all: Box<dyn Iterator<Item = _>> = match &filter.process {
            Some(name) => Box::new(state::of_process(&state.directory, name)),
            None => Box::new(state.directory.iter()),
        };
        let limit = filter.limit.unwrap_or(usize::MAX);
        let mut page: Vec<DirectoryView> = Vec::new();
        for (id, entry) in all.filter(wanted) {
            if page.len() == limit {
                next = page.last().map(|last| last.instance.clone());
                break;
            }
            page.push(copy.view(&how, id, entry));
        }
        project(page, fields.as_deref())
    })?;
    if let Some(next) =
        next.and_then(|id| HeaderValue::from_str(&format!("</v1/directory?after={id}>; rel=\"next\"")).ok())
    {
        response.headers_mut().insert(header::LINK, next);
    }
    Ok(response)
}

/// `GET /v1/directory/{id}?status=&consistent`
pub(super) async fn one(
    api: State<Api>,
    Id(id): Id,
    headers: HeaderMap,
    how: Result<Query<How>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(how) = how?;
    let copy = Copy::get(&api, &how, &headers).await?;
    copy.answer(|state| {
        let entry = state.directory.get(&id);
        entry
            .map(|entry| copy.view(&how, &id, entry))
            .ok_or_else(|| Refusal::nothing_there(format!("no run of {id} lives")))
    })
}

/// `GET /v1/directory/{id}/leader?status=&consistent`
pub(super) async fn leader(
    api: State<Api>,
    Name(process): Name,
    headers: HeaderMap,
    how: Result<Query<How>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(how) = how?;
    let copy = Copy::get(&api, &how, &headers).await?;
    copy.answer(|state| {
        let leader = state.leaders.get(&process);
        let led = leader.and_then(|leader| Some((leader, state.directory.get(&leader.instance)?)));
        match led {
            Some((leader, entry)) => {
                Ok(LeaderView { token: leader.token, entry: copy.view(&how, &leader.instance, entry) })
            }
            None => Err(Refusal::nothing_there(format!("no run of {process} is ready, so none leads"))),
        }
    })
}

/// `GET /v1/processes?consistent`
pub(super) async fn processes(
    api: State<Api>,
    headers: HeaderMap,
    how: Result<Query<Consistent>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(Consistent { consistent }) = how?;
    let copy = Copy::get(&api, &How { consistent, status: false }, &headers).await?;
    copy.answer(|state| {
        Ok(state.spec.processes.keys().filter_map(|name| process(state, name)).collect::<Vec<_>>())
    })
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

const FIELDS: &[&str] =
    &["instance", "process", "host", "run", "address", "ports", "ready", "started", "labels", "status"];

fn parse_label(text: &str) -> Result<(&str, &str), Refusal> {
    text.split_once('=').ok_or_else(|| Refusal::query(format!("label={text}: it is written label=KEY=VALUE")))
}

fn parse_wait(text: &str) -> Result<Duration, Refusal> {
    text.parse::<humantime::Duration>().map(Into::into).map_err(|_| {
        Refusal::query(format!(
            "wait={text}: a time such as 30s, at most {}",
            humantime::format_duration(watchers::LONGEST)
        ))
    })
}

fn parse_fields(text: &str) -> Result<Vec<&str>, Refusal> {
    let fields: Vec<&str> = text.split(',').collect();
    match fields.iter().find(|field| !FIELDS.contains(field)) {
        Some(unknown) => {
            Err(Refusal::query(format!("there is no field {unknown:?}; there are {}", FIELDS.join(", "))))
        }
        None => Ok(fields),
    }
}

/// Only what was asked for.
fn project(page: Vec<DirectoryView>, fields: Option<&[&str]>) -> Result<Value, Refusal> {
    let whole = serde_json::to_value(page).map_err(|error| Refusal::query(error.to_string()))?;
    let (Some(fields), Value::Array(rows)) = (fields, &whole) else { return Ok(whole) };
    let narrow = |row: &Value| -> Value {
        let kept = fields.iter().map(|field| ((*field).to_owned(), row[*field].clone()));
        Value::Object(kept.collect())
    };
    Ok(rows.iter().map(narrow).collect())
}
