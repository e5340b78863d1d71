//! `GET /v1/events`: the last events of all hosts, and with `follow` those that come, as they come.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderName, Uri};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream, WatchStream};
use tokio_stream::{Stream, StreamExt};
use utoipa::IntoParams;

use super::elsewhere::Place;
use super::instances::path_of;
use super::names::Names;
use super::news::{self, Told};
use super::piece::{NEXT, Wait};
use super::problem::Refusal;
use super::router::Api;
use crate::agent::handle::HostRequest;
use crate::http::view::{EventView, Problem};
use crate::spec::{HostName, InstanceId};

/// Names the hosts that did not answer, of which no events are told.
pub(crate) const UNREACHABLE: &str = "bigbrother-unreachable";

/// How many events that all hosts tell are remembered for each answer: more than lie between the words of two hosts.
const ONCE: usize = 1_000;

/// Which events.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Of this instance.
    instance: Option<InstanceId>,
    /// Those that come, too, as server-sent events.
    #[serde(default)]
    follow: bool,
    /// Of this host.
    host: Option<HostName>,
    /// Agents among themselves: those of this host that follow a place, which an answer names in `bigbrother-next`.
    after: Option<String>,
    /// With `after`: how long to wait for one.
    #[serde(default)]
    #[param(value_type = u64)]
    wait_ms: Wait,
}

/// What happened
///
/// The last events of all hosts, by the times of their clocks. With `follow=true` a stream of server-sent events that
/// does not end: the past, then each event as it comes, as `data`; an event named `reset` where some were missed.
#[utoipa::path(get, path = "/v1/events", tag = "Observing", params(Wanted),
    responses(
        (status = 200, description = "the events; or the stream", content(
            (Vec<EventView> = "application/json"), (String = "text/event-stream")),
            headers(("bigbrother-unreachable" = Option<String>, description = "hosts that did not answer"))),
        (status = 404, description = "there is no such instance or host", body = Problem)))]
pub(super) async fn read(
    State(api): State<Api>,
    uri: Uri,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(wanted) = wanted?;
    if let Some(after) = &wanted.after {
        return piece(&api, &wanted, after).await;
    }
    match api.place_of_host(wanted.host.as_ref())? {
        Place::There(host) if wanted.follow => {
            stream(&api, tokio_stream::empty(), wanted.instance, Some(host))
        }
        Place::There(host) => api.pass_on_get(&host, &path_of(&uri)).await,
        Place::Here if wanted.follow => {
            let only = wanted.host.clone();
            // Listen first and ask then, so that nothing falls between; what is in both is told once.
            let live = api.handle.events.subscribe();
            let recent = recent(&api, wanted.instance.as_ref()).await?;
            known(&api, wanted.instance.as_ref(), recent.is_empty()).await?;
            let own = own_stream(live, recent, wanted.instance.clone());
            stream(&api, own, wanted.instance, only)
        }
        Place::Here => all(&api, &wanted).await,
    }
}

async fn recent(api: &Api, instance: Option<&InstanceId>) -> Result<Vec<EventView>, Refusal> {
    Ok(api.handle.ask(|reply| HostRequest::Events(instance.cloned(), reply)).await?)
}

/// Refuses an instance that nobody knows, when there are no events of it.
async fn known(api: &Api, instance: Option<&InstanceId>, none: bool) -> Result<(), Refusal> {
    match instance {
        Some(id) if none => Names::read(api).await?.instance(id),
        _ => Ok(()),
    }
}

/// The last events: of this host, or of every host, in the order of their times.
async fn all(api: &Api, wanted: &Wanted) -> Result<Response, Refusal> {
    let mut events = recent(api, wanted.instance.as_ref()).await?;
    let others = if wanted.host.is_none() { api.others() } else { Default::default() };
    let instance = wanted.instance.as_ref().map(|id| format!("?instance={id}")).unwrap_or_default();
    let mut missing = Vec::new();
    for (host, said) in api.ask_each::<Vec<EventView>>(others, &format!("/v1/events{instance}")).await {
        match said {
            Ok(said) => events.extend(said),
            Err(_) => missing.push(host.to_string()),
        }
    }
    known(api, wanted.instance.as_ref(), events.is_empty()).await?;
    events.sort_by(|a, b| (&a.at, &a.host, a.seq).cmp(&(&b.at, &b.host, b.seq)));
    let mut once = Once::default();
    events.retain(|event| once.is_new(event));
    let missing = Some(missing.join(", ")).filter(|missing| !missing.is_empty());
    let told = missing.map(|missing| [(HeaderName::from_static(UNREACHABLE), missing)]);
    Ok(match told {
        Some(told) => (told, Json(events)).into_response(),
        None => Json(events).into_response(),
    })
}

/// What happened here after a place, and the place after it: `SEQ@LIFE`, where the life is this agent's.
async fn piece(api: &Api, wanted: &Wanted, after: &str) -> Result<Response, Refusal> {
    let life = &api.handle.started_at;
    let seen = after.split_once('@').filter(|(_, known)| known == life);
    let seen: u64 = seen.and_then(|(seq, _)| seq.parse().ok()).unwrap_or(0);
    let deadline = Instant::now() + wanted.wait_ms.span();
    loop {
        let mut live = api.handle.events.subscribe();
        let mut events = recent(api, wanted.instance.as_ref()).await?;
        events.retain(|event| event.seq > seen);
        if !events.is_empty() || Instant::now() >= deadline {
            let last = events.last().map_or(seen, |event| event.seq);
            let next = [(HeaderName::from_static(NEXT), format!("{last}@{life}"))];
            return Ok((next, Json(events)).into_response());
        }
        // Something happens, or nothing does in time; a lag is something, too.
        let _ = tokio::time::timeout_at(deadline, live.recv()).await;
    }
}

/// This host's events, and those of the others, until the agent stops.
fn stream(
    api: &Api,
    own: impl Stream<Item = Told> + Send + 'static,
    instance: Option<InstanceId>,
    only: Option<HostName>,
) -> Result<Response, Refusal> {
    let place = api.follow()?;
    let others = ReceiverStream::new(news::of_others(api.clone(), instance, only));
    let stop = WatchStream::new(api.shutdown.clone()).filter(|stop| *stop).map(|_| None);
    let mut once = Once::default();
    let told = own.merge(others).filter_map(move |told| match told {
        Told::Event(event) => once.is_new(&event).then(|| line(&event)),
        Told::Missed(missed) => Some(reset(missed)),
    });
    let all = told.map(Some).merge(stop).map_while(move |event| {
        // Held here, given back when the reader is gone.
        let _ = &place;
        event.map(Ok::<_, Infallible>)
    });
    Ok(Sse::new(all).keep_alive(KeepAlive::default()).into_response())
}

/// The recent events of this host, then live ones; `reset` where some were missed.
fn own_stream(
    live: broadcast::Receiver<Arc<EventView>>,
    recent: Vec<EventView>,
    instance: Option<InstanceId>,
) -> impl Stream<Item = Told> + use<> {
    let told = recent.last().map(|event| event.seq);
    let live = BroadcastStream::new(live).filter_map(move |event| match event {
        Ok(event) if told.is_some_and(|told| event.seq <= told) => None,
        Ok(event) if instance.is_some() && event.instance != instance => None,
        Ok(event) => Some(Told::Event(Arc::unwrap_or_clone(event))),
        Err(BroadcastStreamRecvError::Lagged(missed)) => Some(Told::Missed(missed)),
    });
    tokio_stream::iter(recent.into_iter().map(Told::Event)).chain(live)
}

/// What every host tells is passed on once. Knows the last ones, oldest first.
#[derive(Default)]
struct Once(VecDeque<(HostName, u64, String)>);

impl Once {
    fn is_new(&mut self, event: &EventView) -> bool {
        if event.number.is_none() {
            return true;
        }
        let mark = event.mark();
        if self.0.contains(&mark) {
            return false;
        }
        if self.0.len() == ONCE {
            self.0.pop_front();
        }
        self.0.push_back(mark);
        true
    }
}

fn line(event: &EventView) -> sse::Event {
    // Strings and numbers always become JSON.
    sse::Event::default().data(serde_json::to_string(event).unwrap_or_default())
}

fn reset(missed: u64) -> sse::Event {
    sse::Event::default().event("reset").data(format!("{{\"missed\":{missed}}}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_hosts_tell_is_passed_on_once_and_the_rest_always() {
        let event = |kind: &str, seq, number| EventView {
            seq,
            at: format!("2026-01-02T03:04:05.{seq:03}Z"),
            host: "alpha".parse().unwrap(),
            instance: None,
            run: None,
            kind: kind.to_owned(),
            cause: None,
            detail: None,
            number,
        };
        let mut once = Once::default();
        let mut is_new = |kind, seq, number| once.is_new(&event(kind, seq, number));
        assert!(is_new("primary", 7, Some(2)));
        assert!(!is_new("primary", 9, Some(2)), "another host's word");
        assert!(is_new("primary", 9, Some(3)) && is_new("host-down", 9, Some(3)));
        assert!(is_new("started", 9, None) && is_new("started", 9, None));
        for number in 0..2 * ONCE as u64 {
            is_new("host-up", 1, Some(number));
        }
        assert_eq!(once.0.len(), ONCE);
    }
}
