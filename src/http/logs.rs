//! `GET /v1/instances/{id}/logs`: what an instance wrote, as text.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::{IntoParams, ToSchema};

use super::elsewhere::Place;
use super::names::{Id, Names};
use super::piece::{NEXT, START, Wait};
use super::problem::Refusal;
use super::router::Api;
use super::server::stopped;
use super::tail::{GAP, Tail};
use super::trail::Trail;
use crate::http::view::Problem;
use crate::spec::{HostName, InstanceId, Logs};

/// How often a follower looks for new bytes.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes of a piece, about.
pub(super) const PIECE: usize = 1 << 20;
const TEXT: &str = "text/plain; charset=utf-8";

/// Which lines.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Which of the two.
    #[serde(default)]
    #[param(inline)]
    pub(super) stream: Stream,
    /// The last so many lines; 100 if nothing is said.
    #[serde(default = "hundred")]
    #[param(value_type = u64)]
    pub(super) lines: usize,
    /// And what is written from now on, on the next host, too, when it moves.
    #[serde(default)]
    pub(super) follow: bool,
    /// What it wrote on this host.
    pub(super) host: Option<HostName>,
    /// Agents among themselves: what follows a place, which an answer names in `bigbrother-next`.
    pub(super) after: Option<String>,
    /// With `after`: how long to wait for something.
    #[serde(default)]
    #[param(value_type = u64)]
    wait_ms: Wait,
}

impl Wanted {
    /// The piece after a place, waiting for something to come for so long.
    pub(super) fn piece(&self, after: &str, wait: Duration) -> Wanted {
        Wanted { after: Some(after.to_owned()), wait_ms: wait.into(), ..self.clone() }
    }
}

fn hundred() -> usize {
    100
}

#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Stream {
    #[default]
    Stdout,
    Stderr,
}

impl Stream {
    pub(super) fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// What an instance wrote
///
/// May outlive the instance. With `follow=true` the text does not end.
#[utoipa::path(get, path = "/v1/instances/{id}/logs", tag = "Instances",
    params(("id" = InstanceId, Path, description = "such as zone.3"), Wanted),
    responses((status = 200, description = "the lines", body = String, content_type = "text/plain; charset=utf-8"),
        (status = 404, description = "there is no such instance or host, or its output goes elsewhere", body = Problem)))]
pub(super) async fn read(
    State(api): State<Api>,
    Id(id): Id,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(wanted) = wanted?;
    if wanted.after.is_some() {
        let (bytes, next) = piece(&api, &id, &wanted).await?;
        return Ok(([(header::CONTENT_TYPE.as_str(), TEXT), (NEXT, next.as_str())], bytes).into_response());
    }
    let place = api.place_of(&id, wanted.host.as_ref())?;
    let permit = if wanted.follow { Some(api.follow()?) } else { None };
    let shutdown = api.shutdown.clone();
    let (chunks, body) = mpsc::channel(2);
    match place {
        // It may go to another host, and is followed there.
        Place::Here if wanted.follow && api.reaches() => {
            let own = api.handle.host.clone();
            let (trail, first) = Trail::begin(api, own, id, wanted).await?;
            tokio::spawn(trail.follow(first, chunks, permit, shutdown));
        }
        Place::Here => {
            let newest = files(&api, &id, wanted.stream).await?;
            let shown = newest.display().to_string();
            let tail = blocking(move || Tail::open(&newest, wanted.lines, wanted.follow))
                .await
                .map_err(|e| Refusal::internal(format!("cannot read {shown}: {e}")))?;
            // It ends with the files, with its reader (who drops `body`), or with the agent.
            tokio::spawn(copy(tail, chunks, permit, shutdown));
        }
        Place::There(host) => {
            let (trail, first) = Trail::begin(api, host, id, wanted).await?;
            tokio::spawn(trail.follow(first, chunks, permit, shutdown));
        }
    }
    Ok(([(header::CONTENT_TYPE, TEXT)], Body::from_stream(ReceiverStream::new(body))).into_response())
}

/// The newest file of a stream; it may not be there yet.
async fn files(api: &Api, id: &InstanceId, stream: Stream) -> Result<PathBuf, Refusal> {
    let folder = api.handle.logs.join(id.to_string());
    if !folder.is_dir() {
        Names::read(api).await?.instance(id)?;
        elsewhere(api, id)?;
    }
    Ok(folder.join(format!("{}.log", stream.name())))
}

/// What this host has after a place, and the place after it.
pub(super) async fn piece(api: &Api, id: &InstanceId, wanted: &Wanted) -> Result<(Vec<u8>, String), Refusal> {
    let newest = files(api, id, wanted.stream).await?;
    let mut after = wanted.after.clone().unwrap_or_else(|| START.to_owned());
    let mut lines = Some(wanted.lines).filter(|_| after == START);
    let deadline = Instant::now() + wanted.wait_ms.span();
    loop {
        let (path, from) = (newest.clone(), after.clone());
        let read = blocking(move || one_piece(path, &from, lines)).await;
        let (bytes, next) =
            read.map_err(|e| Refusal::internal(format!("cannot read {}: {e}", newest.display())))?;
        if let Some(next) = next {
            (after, lines) = (next, None);
        }
        if !bytes.is_empty() || Instant::now() >= deadline {
            return Ok((bytes, after));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn one_piece(newest: PathBuf, after: &str, lines: Option<usize>) -> io::Result<(Vec<u8>, Option<String>)> {
    let (mut tail, lost) = match lines {
        Some(lines) => (Tail::open(&newest, lines, true)?, false),
        None => Tail::resume(&newest, after)?,
    };
    let mut bytes = if lost { GAP.to_vec() } else { Vec::new() };
    while bytes.len() < PIECE
        && let Some(chunk) = tail.next()?
    {
        bytes.extend(chunk);
    }
    Ok((bytes, tail.place()))
}

/// Refuses an instance whose output does not go into files.
fn elsewhere(api: &Api, id: &InstanceId) -> Result<(), Refusal> {
    let state = api.handle.state.borrow();
    match state.spec.processes.get(&id.process).map(|process| &process.logs) {
        Some(Logs::Journald) => Err(Refusal::nothing_there(format!(
            "{} has logs = \"journald\": look with journalctl",
            id.process
        ))),
        Some(Logs::Null) => {
            Err(Refusal::nothing_there(format!("{} has logs = \"null\": nothing is kept", id.process)))
        }
        Some(Logs::Files { .. }) | None => Ok(()),
    }
}

/// Sends what the tail yields; `place` is held as long.
async fn copy(
    mut tail: Tail,
    chunks: mpsc::Sender<io::Result<Vec<u8>>>,
    place: Option<OwnedSemaphorePermit>,
    mut shutdown: watch::Receiver<bool>,
) {
    loop {
        let read = blocking(move || {
            let chunk = tail.next()?;
            Ok((tail, chunk))
        });
        let chunk = match read.await {
            Ok((same, chunk)) => {
                tail = same;
                chunk
            }
            Err(error) => {
                // The reader sees a broken body; a reader that is gone sees nothing.
                let _: Result<(), _> = chunks.send(Err(error)).await;
                return;
            }
        };
        match chunk {
            Some(chunk) => {
                if chunks.send(Ok(chunk)).await.is_err() {
                    return;
                }
            }
            None if place.is_none() => return,
            None => tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = chunks.closed() => return,
                () = stopped(&mut shutdown) => return,
            },
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
