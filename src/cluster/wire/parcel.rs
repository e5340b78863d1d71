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

/// So many bytes a second the other side takes in at least: it reads them, writes them to its disk, and may have to wait
/// for a snapshot of its own that is under way.
const TAKEN_IN: u64 = 2 << 20;

/// Sends head and bytes and waits for the answer; `ttl` is for each step, the last of which takes the longer the more there
/// is to take in.
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
    let taken_in = ttl + Duration::from_millis(bytes.len() as u64 * 1000 / TAKEN_IN);
    let answer = tokio::time::timeout(taken_in, reader.next()).await;
    match answer.map_err(|_| CallError::Late(taken_in))?.map_err(|_| CallError::Broken)? {
        Frame { kind: Kind::Answer, body, .. } => Ok(body),
        Frame { body, .. } => Err(CallError::Failed(String::from_utf8_lossy(&body).into_owned())),
    }
}
