//! `GET /v1/directory/watch`: the directory, and every change of it as it comes, as server-sent events.
//!
//! Owns what a watcher has seen. It is told a `snapshot`, then each change in order and once: `put`, `gone`, `leader`.
//! The id of an event is a place in the cluster's history, `HISTORY:INDEX:OFFSET`, and means the same on every host,
//! so that a watcher goes on where it was on any of them (`Last-Event-ID`). What cannot be told step by step is a
//! `reset` and a new snapshot. A watcher has neither a task nor a queue of its own: whoever writes to its connection
//! asks for the next event when there is room for it, and takes what all watchers share. So one that is slow falls
//! out of the ring and is reset, and holds up nobody.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, Sleep, sleep_until};
use utoipa::IntoParams;

use super::directory::view;
use super::problem::Refusal;
use super::router::Api;
use super::said::Hearer;
use super::server::is_stopped;
use super::sse::{Seen, event};
use crate::cluster::feed::{At, BATCH, Feed, Told};
use crate::spec::ProcessName;
use crate::state::{Change, Changed};

/// How long a host whose copy is behind the watcher may take to get there.
const BEHIND: Duration = Duration::from_secs(5);
/// So that a connection that is gone is noticed.
const ALIVE: Duration = Duration::from_secs(15);
/// Says nothing.
const COMMENT: &[u8] = b":\n\n";

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
    let hearer = status.then(|| Hearer::new(api.handle.ring.statuses().clone(), process.clone()));
    let next = match seen {
        Some(seen) if seen.history == history => Next::After(seen.at),
        Some(_) => Next::Reset("another history of the cluster"),
        None => Next::Snapshot,
    };
    let mut watcher = Watcher {
        modified: feed.modified(),
        behind: true,
        api,
        feed,
        process,
        hearer,
        next,
        taken: VecDeque::new(),
        alive: Box::pin(sleep_until(Instant::now() + ALIVE)),
        alive_at: Instant::now() + ALIVE,
        _place: place,
    };
    let events = async_stream::stream! {
        while let Some(event) = watcher.next().await {
            watcher.alive_at = Instant::now() + ALIVE;
            yield Ok::<_, Infallible>(event);
        }
    };
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    Ok((headers, Body::from_stream(events)).into_response())
}

/// Waits until this host's copy is as new as what was seen elsewhere.
async fn reach(feed: &Feed, index: u64) -> Result<(), Refusal> {
    let mut newest = feed.newest();
    let reached = tokio::time::timeout(BEHIND, newest.wait_for(|newest| *newest >= index)).await;
    match reached {
        Ok(Ok(_)) => Ok(()),
        _ => Err(Refusal::behind(index)),
    }
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

/// What a watcher is told next.
enum Next {
    Snapshot,
    /// For this reason.
    Reset(&'static str),
    /// What came after this place.
    After(At),
}

struct Watcher {
    api: Api,
    feed: Feed,
    /// The index of the directory's last change.
    modified: watch::Receiver<u64>,
    /// Since the ring was last looked at there may be a change; else nobody need look.
    behind: bool,
    process: Option<ProcessName>,
    hearer: Option<Hearer>,
    next: Next,
    /// Changes that were taken and not told yet.
    taken: VecDeque<Arc<Told>>,
    /// Fires at `alive_at` or before. Made once: a wait costs each of thousands what it has to prepare.
    alive: Pin<Box<Sleep>>,
    /// When it is told that nothing has happened, unless something does before.
    alive_at: Instant,
    _place: OwnedSemaphorePermit,
}

impl Watcher {
    /// The next event once there is one; `None`: the agent ends.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if is_stopped(&self.api.shutdown) {
                return None;
            }
            if let Some(told) = self.taken.pop_front() {
                self.next = Next::After(told.at());
                if self.wants(&told.change) {
                    return Some(told.text(|change| self.write(change)));
                }
                continue;
            }
            match self.next {
                Next::Reset(why) => {
                    self.next = Next::Snapshot;
                    return Some(event("reset", None, &json!({ "reason": why })));
                }
                Next::Snapshot => return Some(self.snapshot().await),
                Next::After(_) if !self.behind => {
                    if let Some(said) = self.wait().await {
                        return Some(said);
                    }
                }
                Next::After(at) => {
                    self.modified.mark_unchanged();
                    if self.feed.take(at, &mut self.taken) {
                        self.behind = self.taken.len() >= BATCH;
                    } else {
                        self.next = Next::Reset("what came in between is not known here any more");
                    }
                }
            }
        }
    }

    /// Waits until there may be a change, or for something else that is to be told.
    async fn wait(&mut self) -> Option<Bytes> {
        let shutdown = &self.api.shutdown;
        let ended = poll_fn(|_| if is_stopped(shutdown) { Poll::Ready(()) } else { Poll::Pending });
        tokio::select! {
            // Whoever tells of changes is gone when the agent ends.
            Ok(()) = self.modified.changed() => {
                self.behind = true;
                None
            }
            // Whoever serves the connection is woken then, and asks again: nobody has to wait for it once more.
            () = ended => None,
            hearer = said(&mut self.hearer) => hearer.news().map(|said| event("status", None, &said)),
            () = &mut self.alive => {
                let late = Instant::now() >= self.alive_at;
                self.alive.as_mut().reset(if late { Instant::now() + ALIVE } else { self.alive_at });
                late.then_some(Bytes::from_static(COMMENT))
            }
        }
    }

    /// All that the directory has; changes follow from there on.
    async fn snapshot(&mut self) -> Bytes {
        let (at, text) = self.api.whole.read(&self.process).await;
        // The state goes out before its changes do.
        let _ = reach(&self.feed, at.0).await;
        (self.next, self.behind) = (Next::After(at), true);
        text
    }

    fn wants(&self, change: &Change) -> bool {
        let process = match &change.what {
            Changed::Entry(id, _) => &id.process,
            Changed::Leader(name, _) => name,
        };
        self.process.as_ref().is_none_or(|wanted| wanted == process)
    }

    /// As it is told to all.
    fn write(&self, change: &Change) -> Bytes {
        let state = self.api.handle.state.borrow().clone();
        let at = (change.index, change.offset);
        let id = Some(Seen { history: self.api.handle.ring.history(), at });
        match &change.what {
            Changed::Entry(instance, Some(entry)) => event("put", id, &view(&state, instance, entry)),
            Changed::Entry(instance, None) => {
                event("gone", id, &json!({ "instance": instance, "process": instance.process }))
            }
            Changed::Leader(name, leader) => {
                let leader = leader.as_ref();
                let (instance, token) = (leader.map(|l| &l.instance), leader.map(|l| l.token));
                event("leader", id, &json!({ "process": name, "instance": instance, "token": token }))
            }
        }
    }
}
