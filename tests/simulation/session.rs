//! Between a host and the primary: attaching to a peer, relaying, and what is carried.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bigbrother::cluster::raft::{Change, Outcome};
use bigbrother::plan::liveness::{Confirm, Report};
use bigbrother::state::State;

use crate::log;

/// A peer that says nothing for so long has gone, milliseconds.
const SILENCE: u64 = 1_000;
/// How often a host shows its peer that it is there.
const PULSE: u64 = 400;
/// A host that shows itself no more is not served any more.
const GONE: u64 = 5_000;

#[derive(Clone)]
pub enum Message {
    Raft(log::Message),
    /// From a host to the peer it attaches to.
    Attach,
    /// The newest state of a peer.
    Push(Arc<State>),
    /// From a host towards the primary, unchanged.
    Up {
        origin: usize,
        body: Up,
        hops: u8,
    },
    /// From the primary to a host, unchanged.
    Down {
        target: usize,
        body: Down,
    },
}

#[derive(Clone)]
pub enum Up {
    Report(Report),
    Propose(u64, Rc<Change>),
}

#[derive(Clone)]
pub enum Down {
    Confirm(Confirm),
    Answer(u64, Outcome),
}

/// A host's session with a peer.
#[derive(Default)]
pub struct Session {
    peer: Option<usize>,
    heard: u64,
    pulsed: u64,
}

impl Session {
    pub fn peer(&self) -> Option<usize> {
        self.peer
    }

    pub fn heard(&mut self, from: usize, now: u64) {
        if self.peer == Some(from) {
            self.heard = now;
        }
    }

    /// To whom it says that it is there, when that is due.
    pub fn tick(&mut self, peers: usize, now: u64, rng: &mut fastrand::Rng) -> Option<usize> {
        if self.peer.is_none() || now > self.heard + SILENCE {
            let before = self.peer;
            let others: Vec<usize> = (0..peers).filter(|peer| Some(*peer) != before).collect();
            (self.peer, self.heard, self.pulsed) = (rng.choice(others), now, 0);
        }
        if self.pulsed > 0 && now < self.pulsed + PULSE {
            return None;
        }
        self.pulsed = now;
        self.peer
    }
}

/// The hosts that are attached to a peer, and when each was heard.
#[derive(Default)]
pub struct Attached(BTreeMap<usize, u64>);

impl Attached {
    pub fn heard(&mut self, host: usize, now: u64) {
        self.0.insert(host, now);
    }

    pub fn served(&mut self, now: u64) -> Vec<usize> {
        self.0.retain(|_, heard| now < *heard + GONE);
        self.0.keys().copied().collect()
    }
}
