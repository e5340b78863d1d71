//! Sending a snapshot: a connection of its own, in parts, so that it can be broken off at any moment and
//! nothing else waits behind it. It is broken off, too, when a CA counts no more: whoever may still have it is sent it
//! again. Owns nothing that lasts. Called by `raft::network`.

use std::time::Duration;

use super::dial::{Dialer, Target};
use super::frame::{Frame, Kind};
use super::hello::Purpose;
use super::line::CallError;
use super::serve::distrust;

/// Bytes of one part.
const PART: usize = 256 * 1024;

/// Sends head and bytes and waits for the answer; `ttl` is for each step.
pub async fn send(
    dialer: &Dialer,
    target: &Target,
    head: Vec<u8>,
    bytes: &[u8],
    ttl: Duration,
) -> Result<Vec<u8>, CallError> {
    // From before it is dialled: what counts no more by the end of that is seen, too.
    let mut distrusts = dialer.tls().map(|tls| tls.distrusts());
    tokio::select! {
        sent = carry(dialer, target, head, bytes, ttl) => sent,
        () = distrust(&mut distrusts) => Err(CallError::Broken),
    }
}

async fn carry(
    dialer: &Dialer,
    target: &Target,
    head: Vec<u8>,
    bytes: &[u8],
    ttl: Duration,
) -> Result<Vec<u8>, CallError> {
    let dialled = dialer.dial(target, Purpose::Snapshot).await;
    let (mut reader, mut writer, _) = dialled.map_err(|error| CallError::Unreachable(error.to_string()))?;
    let ttl_ms = u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX);
    let frame = |kind, body| Frame { kind, request: 1, ttl_ms, body };
    let parts = bytes.chunks(PART).map(|part| frame(Kind::SnapshotPart, part.to_vec()));
    let last = [frame(Kind::SnapshotPart, Vec::new())];
    for frame in [frame(Kind::SnapshotHead, head)].into_iter().chain(parts).chain(last) {
        let sent = tokio::time::timeout(ttl, writer.send(&[frame])).await;
        sent.map_err(|_| CallError::Late(ttl))?.map_err(|_| CallError::Broken)?;
    }
    let answer = tokio::time::timeout(ttl, reader.next()).await.map_err(|_| CallError::Late(ttl))?;
    match answer.map_err(|_| CallError::Broken)? {
        Frame { kind: Kind::Answer, body, .. } => Ok(body),
        Frame { body, .. } => Err(CallError::Failed(String::from_utf8_lossy(&body).into_owned())),
    }
}
