//! Following a peer: what was applied since, or the whole state, becomes this host's copy.
//!
//! Owns a whole state while it comes in parts. One question at a time: the next one says what the host has by
//! then, so nothing is lost, and nothing applied twice, whatever becomes of an answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::handle::Attached;
use super::message::{self, Follow, Followed, News, Place};
use super::search::{End, Found};
use crate::cluster::node::Standing;
use crate::cluster::wire::codec::decode_front;
use crate::cluster::wire::serve::MAX_SNAPSHOT;
use crate::cluster::wire::{CallError, Kind, Purpose, decode, encode};
use crate::state::{Envelope, State};

/// How long an answer may take; a peer with no news answers sooner.
const QUESTION: Duration = Duration::from_secs(10);
/// Between two questions after one that was not answered.
const AGAIN: Duration = Duration::from_millis(50);
/// After as many answers in a row that cannot be used the peer is left.
const FAULTS: u32 = 20;

/// A whole state that is coming.
struct Incoming {
    of: Place,
    bytes: Vec<u8>,
}

/// Why an answer cannot be used.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("it cannot be read: {0}")]
    Garbled(String),
    #[error("its parts do not fit together")]
    Parts,
    #[error("it does not know this host any more")]
    Gone,
}

fn garbled(error: impl std::fmt::Display) -> Fault {
    Fault::Garbled(error.to_string())
}

struct Follower<'a> {
    attached: &'a Attached,
    peer: &'a Found,
    incoming: Option<Incoming>,
    /// The copy is not gone on from: what came for it could not be used.
    anew: bool,
}

/// Until the peer is of no use; `unreachable` shows whether there is a connection.
pub(super) async fn run(attached: &Attached, peer: &Found, unreachable: watch::Sender<bool>) -> End {
    let mut follower = Follower { attached, peer, incoming: None, anew: false };
    let mut faults = 0;
    loop {
        let answer = follower.ask().await;
        unreachable.send_replace(matches!(answer, Err(CallError::Unreachable(_))));
        let fault = match answer {
            Ok(body) => match follower.take(&body).await {
                Ok(()) => {
                    faults = 0;
                    continue;
                }
                Err(Fault::Gone) => return End::Forgotten,
                Err(fault) => {
                    follower.anew = true;
                    follower.incoming = None;
                    fault.to_string()
                }
            },
            Err(CallError::Failed(why)) => why,
            // Whether it lives is the pulse's to say.
            Err(_) => {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        faults += 1;
        if faults >= FAULTS {
            return End::Left(fault);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

impl Follower<'_> {
    async fn ask(&self) -> Result<Vec<u8>, CallError> {
        let Standing { primary, term, quorum, .. } = self.attached.standing().borrow().clone();
        // No entry has this place, so that the whole state comes.
        let nowhere = Place { index: 0, term: u64::MAX };
        let asked = Follow {
            session: self.peer.session,
            history: self.peer.history,
            have: if self.anew { nowhere } else { self.attached.copy().0 },
            sight: message::Sight { primary, term, quorum },
            members: self.attached.known().at,
            part: self.incoming.as_ref().map(|incoming| (incoming.of, incoming.bytes.len() as u64)),
        };
        let body = encode(&asked).map_err(|error| CallError::Unreachable(error.to_string()))?;
        self.attached.call_peer(&self.peer.target, Purpose::HostBulk, Kind::Follow, body, QUESTION).await
    }

    async fn take(&mut self, body: &[u8]) -> Result<(), Fault> {
        let (head, raw) = message::open::<Followed>(body).map_err(garbled)?;
        self.attached.told(head.sight, head.members);
        match head.news {
            News::Nothing => Ok(()),
            News::Gone => Err(Fault::Gone),
            News::Changes { to, count } => self.apply(to, count, raw),
            News::Part { of, total, offset } => self.gather(of, total, offset, raw).await,
        }
    }

    fn apply(&mut self, to: Place, count: u64, mut raw: &[u8]) -> Result<(), Fault> {
        let mut envelopes = Vec::new();
        for _ in 0..count {
            let (envelope, used) = decode_front::<Envelope>(raw).map_err(garbled)?;
            envelopes.push(envelope);
            raw = &raw[used..];
        }
        if !raw.is_empty() {
            return Err(garbled("something is left over"));
        }
        let (_, mut next) = self.attached.copy();
        let mut changes = Vec::new();
        if !envelopes.is_empty() {
            // What is out stays as it is for whoever reads it; a copy shares all that does not change.
            let state = Arc::make_mut(&mut next);
            for envelope in &envelopes {
                changes.extend(state.apply_and_tell(envelope).1);
            }
        }
        self.attached.take(to, next, changes);
        Ok(())
    }

    async fn gather(&mut self, of: Place, total: u64, offset: u64, raw: &[u8]) -> Result<(), Fault> {
        let total = usize::try_from(total).ok().filter(|total| *total <= MAX_SNAPSHOT).ok_or(Fault::Parts)?;
        if offset == 0 {
            self.incoming = Some(Incoming { of, bytes: Vec::with_capacity(total) });
        }
        let incoming = self.incoming.as_mut().filter(|incoming| incoming.of == of);
        let incoming = incoming.filter(|i| i.bytes.len() as u64 == offset).ok_or(Fault::Parts)?;
        if raw.is_empty() || incoming.bytes.len() + raw.len() > total {
            return Err(Fault::Parts);
        }
        incoming.bytes.extend_from_slice(raw);
        if incoming.bytes.len() < total {
            return Ok(());
        }
        let bytes = self.incoming.take().map(|incoming| incoming.bytes).unwrap_or_default();
        let state = tokio::task::spawn_blocking(move || decode::<State>(&bytes)).await;
        let state = state.map_err(garbled)?.map_err(garbled)?;
        self.anew = false;
        self.attached.take_whole(of, Arc::new(state));
        Ok(())
    }
}
