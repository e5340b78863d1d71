//! `GET /v1/directory/watch`: the directory, and every change of it as it comes, as server-sent events.
//!
//! Owns what a watcher has seen. It is told a `snapshot`, then each change in order and once: `put`, `gone`, `leader`.
//! The id of an event is a place in the cluster's history, `HISTORY:INDEX:OFFSET`, and means the same on every host,
//! so that a watcher goes on where it was on any of them (`Last-Event-ID`). What cannot be told step by step is a
//! `reset` and a new snapshot. Watchers share the changes and read them at their own pace: one that is slow falls out
//! of the ring and is reset, and holds up nobody.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use super::directory::view;
use super::problem::Refusal;
use super::router::Api;
use super::said::Hearer;
use crate::cluster::feed::{At, END, Feed, Newest};
use crate::spec::ProcessName;
use crate::state::{self, Change, Changed};

/// The longest that a long poll waits.
pub(super) const LONGEST: Duration = Duration::from_secs(60);
/// How long a host whose copy is behind the watcher may take to get there.
const BEHIND: Duration = Duration::from_secs(5);
/// Events that wait for a watcher to read them; after these it is behind.
const AHEAD: usize = 64;
/// So that a connection that is gone is noticed.
const ALIVE: Duration = Duration::from_secs(15);

/// Whom a watcher is interested in.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Of this process.
    process: Option<ProcessName>,
    /// As `Last-Event-ID`, for those who cannot set headers.
    after: Option<String>,
    /// And what the runs say about themselves.
    #[serde(default)]
    status: bool,
}

/// A place that a watcher has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    history: u64,
    at: At,
}

impl Seen {
    fn parse(text: &str) -> Option<Seen> {
        let mut parts = text.split(':');
        let (history, index, offset) = (parts.next()?, parts.next()?, parts.next()?);
        let history = u64::from_str_radix(history, 16).ok()?;
        let seen = Seen { history, at: (index.parse().ok()?, offset.parse().ok()?) };
        parts.next().is_none().then_some(seen)
    }

    fn id(self) -> String {
        format!("{:x}:{}:{}", self.history, self.at.0, self.at.1)
    }
}

/// A watch of the directory
///
/// Server-sent events that do not end: a `snapshot` (a list as of `/v1/directory`), then each change in order and once:
/// `put` (a run), `gone` (`{instance, process}`), `leader` (`{process, instance, token}`). The id of an event is
/// `HISTORY:INDEX:OFFSET` and means the same on every host: with `Last-Event-ID` a watcher goes on where it was, on any
/// of them. What cannot be told step by step is a `reset` (`{reason}`) and a new snapshot. With `status=true` there are
/// events `status`, too (a list of `{instance, host, run, status}`), of each run at most once a second, without ids.
#[utoipa::path(get, path = "/v1/directory/watch", tag = "Directory",
    params(Wanted, ("Last-Event-ID" = Option<String>, Header, description = "the last event that was seen",
        pattern = "^[0-9a-f]{1,16}:[0-9]{1,19}:[0-9]{1,9}$")),
    responses((status = 200, description = "the stream", body = String, content_type = "text/event-stream")))]
pub(super) async fn follow(
    State(api): State<Api>,
    headers: HeaderMap,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(Wanted { process, after, status }) = wanted?;
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok().map(str::to_owned)).or(after);
    let seen = last.map(|text| {
        Seen::parse(&text)
            .ok_or_else(|| Refusal::query(format!("{text:?} is no id of an event of this stream")))
    });
    let seen = seen.transpose()?;
    let (feed, history) = (api.handle.ring.feed(), api.handle.ring.history());
    if let Some(seen) = seen.filter(|seen| seen.history == history) {
        reach(&feed, seen.at.0).await?;
    }
    let place = api.watch()?;
    let (to, events) = mpsc::channel(AHEAD);
    let hearer = status.then(|| Hearer::new(api.handle.ring.statuses().clone(), process.clone()));
    let watcher = Watcher { api, feed, process, to, _place: place };
    tokio::spawn(watcher.run(seen, hearer));
    let events = ReceiverStream::new(events).map(Ok::<_, Infallible>);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE)).into_response())
}

/// Waits until this host's copy is as new as what was seen elsewhere.
async fn reach(feed: &Feed, index: u64) -> Result<(), Refusal> {
    let mut newest = feed.newest();
    let reached = tokio::time::timeout(BEHIND, newest.wait_for(|newest| newest.index >= index)).await;
    match reached {
        Ok(Ok(_)) => Ok(()),
        _ => Err(Refusal::behind(index)),
    }
}

/// Waits until something of the directory has changed after an index; at most so long, and a little less, so that
/// those who asked at once do not come back at once.
pub(super) async fn poll(feed: &Feed, index: u64, wait: Duration) {
    let wait = wait.min(LONGEST);
    let jitter = wait.mul_f64(f64::from(fastrand::u8(..)) / 4096.0);
    let mut newest = feed.newest();
    let _ = tokio::time::timeout(wait - jitter, newest.wait_for(|newest| newest.modified > index)).await;
}

/// Waits until a watcher may be told what runs say; for ever where it does not want to know.
async fn said(hearer: &mut Option<Hearer>) -> &mut Hearer {
    match hearer {
        Some(hearer) => {
            hearer.due().await;
            hearer
        }
        None => std::future::pending().await,
    }
}

/// The watcher is gone, or the agent ends.
struct Gone;

struct Watcher {
    api: Api,
    feed: Feed,
    process: Option<ProcessName>,
    to: mpsc::Sender<Event>,
    _place: OwnedSemaphorePermit,
}

impl Watcher {
    async fn run(self, seen: Option<Seen>, hearer: Option<Hearer>) {
        let mut stop = self.api.shutdown.clone();
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            () = self.to.closed() => {}
            _ = self.tell_all(seen, hearer) => {}
        }
    }

    async fn tell_all(&self, seen: Option<Seen>, mut hearer: Option<Hearer>) -> Result<(), Gone> {
        let mut newest = self.feed.newest();
        let mut at = match seen {
            Some(seen) if seen.history == self.api.handle.ring.history() => seen.at,
            Some(_) => self.reset("another history of the cluster", &mut newest).await?,
            None => self.snapshot(&mut newest).await?,
        };
        loop {
            newest.mark_unchanged();
            match self.feed.after(at) {
                Some(changes) => {
                    for change in changes {
                        at = (change.index, change.offset);
                        self.tell(&change).await?;
                    }
                }
                None => {
                    at = self.reset("what came in between is not known here any more", &mut newest).await?;
                    continue;
                }
            }
            tokio::select! {
                changed = newest.changed() => changed.map_err(|_| Gone)?,
                hearer = said(&mut hearer) => hearer.tell(&self.to),
            }
        }
    }

    async fn reset(&self, why: &str, newest: &mut watch::Receiver<Newest>) -> Result<At, Gone> {
        self.send(Event::default().event("reset").data(json!({ "reason": why }).to_string())).await?;
        self.snapshot(newest).await
    }

    /// All that the directory has, and the place from which on changes follow it.
    async fn snapshot(&self, newest: &mut watch::Receiver<Newest>) -> Result<At, Gone> {
        let state = self.api.handle.state.borrow().clone();
        // The state goes out before its changes do.
        let index = state.index;
        let reached = newest.wait_for(|newest| newest.index >= index);
        let _ = tokio::time::timeout_at(Instant::now() + BEHIND, reached).await;
        let at = (index, END);
        let entries: Vec<_> = match &self.process {
            Some(name) => {
                state::of_process(&state.directory, name).map(|(id, e)| view(&state, id, e)).collect()
            }
            None => state.directory.iter().map(|(id, entry)| view(&state, id, entry)).collect(),
        };
        let data = serde_json::to_string(&entries).unwrap_or_default();
        self.send(Event::default().event("snapshot").id(self.id(at)).data(data)).await?;
        Ok(at)
    }

    async fn tell(&self, change: &Arc<Change>) -> Result<(), Gone> {
        let process = match &change.what {
            Changed::Entry(id, _) => &id.process,
            Changed::Leader(name, _) => name,
        };
        if self.process.as_ref().is_some_and(|wanted| wanted != process) {
            return Ok(());
        }
        let state = self.api.handle.state.borrow().clone();
        let (kind, data) = match &change.what {
            Changed::Entry(id, Some(entry)) => ("put", json!(view(&state, id, entry))),
            Changed::Entry(id, None) => ("gone", json!({ "instance": id, "process": process })),
            Changed::Leader(name, leader) => {
                let leader = leader.as_ref();
                let (instance, token) = (leader.map(|l| &l.instance), leader.map(|l| l.token));
                ("leader", json!({ "process": name, "instance": instance, "token": token }))
            }
        };
        let id = self.id((change.index, change.offset));
        self.send(Event::default().event(kind).id(id).data(data.to_string())).await
    }

    fn id(&self, at: At) -> String {
        Seen { history: self.api.handle.ring.history(), at }.id()
    }

    async fn send(&self, event: Event) -> Result<(), Gone> {
        self.to.send(event).await.map_err(|_| Gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_an_event_is_read_as_it_was_written() {
        let seen = Seen { history: 0xbeef, at: (17, END) };
        assert_eq!(seen.id(), "beef:17:4294967295");
        assert_eq!(Seen::parse(&seen.id()), Some(seen));
        for wrong in ["", "beef:17", "beef:17:0:1", "x:1:2", "1:-1:2", "1:1:4294967296"] {
            assert_eq!(Seen::parse(wrong), None, "{wrong}");
        }
    }
}
