//! `GET /v1/events`: the last events of this host, and with `follow` those that come, as they come.

use std::convert::Infallible;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::wrappers::{BroadcastStream, WatchStream};
use tokio_stream::{Stream, StreamExt};

use super::names::Names;
use super::problem::Refusal;
use super::router::Api;
use crate::agent::handle::HostRequest;
use crate::http::view::EventView;
use crate::spec::InstanceId;

/// Which events.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    instance: Option<InstanceId>,
    #[serde(default)]
    follow: bool,
}

/// `GET /v1/events?instance=&follow=`
pub(super) async fn read(
    api: State<Api>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(wanted) = wanted?;
    let place = if wanted.follow { Some(api.follow()?) } else { None };
    // Listen first and ask then, so that nothing falls between; what is in both is told once.
    let live = api.handle.events.subscribe();
    let recent = api.handle.ask(|reply| HostRequest::Events(wanted.instance.clone(), reply)).await?;
    if let (Some(id), true) = (&wanted.instance, recent.is_empty()) {
        Names::read(&api).await?.instance(id)?;
    }
    Ok(match place {
        None => Json(recent).into_response(),
        Some(place) => Sse::new(follow(&api, wanted.instance, recent, live, place))
            .keep_alive(KeepAlive::default())
            .into_response(),
    })
}

/// The recent events, then live ones until the agent stops; `reset` where some were missed.
fn follow(
    api: &Api,
    instance: Option<InstanceId>,
    recent: Vec<EventView>,
    live: broadcast::Receiver<EventView>,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<sse::Event, Infallible>> + use<> {
    let told = recent.last().map(|event| event.seq);
    let live = BroadcastStream::new(live).filter_map(move |event| match event {
        Ok(event) if told.is_some_and(|told| event.seq <= told) => None,
        Ok(event) if instance.as_ref().is_some_and(|id| event.instance != *id) => None,
        Ok(event) => Some(line(&event)),
        Err(BroadcastStreamRecvError::Lagged(missed)) => {
            Some(sse::Event::default().event("reset").data(format!("{{\"missed\":{missed}}}")))
        }
    });
    let stop = WatchStream::new(api.shutdown.clone()).filter(|stop| *stop).map(|_| None);
    let recent: Vec<sse::Event> = recent.iter().map(line).collect();
    tokio_stream::iter(recent).chain(live).map(Some).merge(stop).map_while(move |event| {
        // Held here, given back when the reader is gone.
        let _ = &place;
        event.map(Ok)
    })
}

fn line(event: &EventView) -> sse::Event {
    // Strings and numbers always become JSON.
    sse::Event::default().data(serde_json::to_string(event).unwrap_or_default())
}
