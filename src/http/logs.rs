//! `GET /v1/instances/{id}/logs`: what an instance wrote, as text.

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::names::{Id, Names};
use super::problem::Refusal;
use super::router::Api;
use super::server::stopped;
use super::tail::Tail;
use crate::spec::{InstanceId, Logs};

/// How often a follower looks for new bytes.
const LOOK: Duration = Duration::from_millis(100);

/// Which lines.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    #[serde(default)]
    stream: Stream,
    #[serde(default = "hundred")]
    lines: usize,
    #[serde(default)]
    follow: bool,
}

fn hundred() -> usize {
    100
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Stream {
    #[default]
    Stdout,
    Stderr,
}

/// `GET /v1/instances/{id}/logs?stream=stdout|stderr&lines=100&follow=`. Logs may outlive the instance.
pub(super) async fn read(
    api: State<Api>,
    Id(id): Id,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(Wanted { stream, lines, follow }) = wanted?;
    let folder = api.handle.logs.join(id.to_string());
    if !folder.is_dir() {
        Names::read(&api).await?.instance(&id)?;
        elsewhere(&api, &id)?;
    }
    let place = if follow { Some(api.follow()?) } else { None };
    let newest = folder.join(match stream {
        Stream::Stdout => "stdout.log",
        Stream::Stderr => "stderr.log",
    });
    let shown = newest.display().to_string();
    let tail = blocking(move || Tail::open(&newest, lines, follow))
        .await
        .map_err(|e| Refusal::internal(format!("cannot read {shown}: {e}")))?;

    let (chunks, body) = mpsc::channel(2);
    // It ends with the files, with its reader (who drops `body`), or with the agent.
    tokio::spawn(copy(tail, chunks, place, api.shutdown.clone()));
    let text = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    Ok((text, Body::from_stream(ReceiverStream::new(body))).into_response())
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
