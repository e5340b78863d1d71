//! This host's place in the cluster: alone, one of the peers, or attached to one.
//!
//! Owns nothing: it is how the rest of the agent reaches the replicated state, whichever way this host does.
//! [`copy`] opens the way and owns its tasks. Cheap to clone; called by whoever has a [`super::Handle`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot, watch};

use super::handle::{AskError, Proposal};
use super::replica::Begins;
use crate::cluster::feed::{self, Feed};
use crate::cluster::node::{NotPrimary, Peer, PeersError, ProposeError, Standing, Watched};
use crate::cluster::raft::PeerId;
use crate::cluster::raft::membership::Member;
use crate::cluster::session::Attached;
use crate::cluster::statuses::Statuses;
use crate::cluster::tls::Tls;
use crate::cluster::wire::{EncodeError, Exchange, Kind, decode, encode};
use crate::plan::Liveness;
use crate::plan::liveness::{Attendance, Confirm};
use crate::spec::HostName;
use crate::state::{Command, Response};

pub mod copy;

/// See the module.
#[derive(Clone)]
pub enum Ring {
    /// No other host: the state is this host's own.
    Alone(Alone),
    /// One of the peers.
    Peer(Peer),
    /// Attached to a peer.
    Attached(Attached),
}

/// The way to the state of a host alone.
#[derive(Clone)]
pub struct Alone {
    /// Into the replica.
    pub proposals: mpsc::Sender<Proposal>,
    /// To the replica, too.
    pub begins: Begins,
    /// The last changes of the directory.
    pub feed: Feed,
    /// Names this life of the agent: what a host alone knows of runs does not outlive it.
    pub history: u64,
    /// What runs say about themselves.
    pub statuses: Statuses,
}

impl Alone {
    /// A way that leads to whoever takes these proposals; nothing changes in the directory of this host.
    pub fn to(proposals: mpsc::Sender<Proposal>, host: HostName) -> Alone {
        let begins = mpsc::channel(1).0;
        Alone { proposals, begins, feed: feed::feed().1, history: 0, statuses: Statuses::new(host) }
    }
}

/// Why the cluster did not answer.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// There is no cluster.
    #[error("this host is alone: its cluster.toml has no `peers`")]
    Alone,
    /// Nobody who may.
    #[error(transparent)]
    NotPrimary(#[from] NotPrimary),
    /// The peers stay as they are.
    #[error(transparent)]
    Peers(#[from] PeersError),
}

impl Ring {
    /// Applies a command to the replicated state. When it returns, this host's own copy has the change.
    pub async fn propose(&self, command: Command) -> Result<Response, AskError> {
        match self {
            Ring::Alone(alone) => {
                let (reply, answer) = oneshot::channel();
                alone.proposals.try_send(Proposal { command, reply })?;
                Ok(answer.await.map_err(|_| AskError::Stopping)??)
            }
            Ring::Peer(peer) => Ok(peer.propose(command).await?),
            Ring::Attached(attached) => Ok(attached.propose(command).await?),
        }
    }

    /// This host's beginning is over: when it returns, what that has changed is on disk. Among several hosts it is
    /// already, by each answer.
    pub async fn begun(&self) {
        let Ring::Alone(alone) = self else { return };
        let (reply, kept) = oneshot::channel();
        // A replica that is gone ends with the agent.
        if alone.begins.send(reply).await.is_ok() {
            let _ = kept.await;
        }
    }

    /// Tells the primary that this host lives; its answer, if there is one within the time.
    pub async fn report(&self, attendance: Attendance, ttl: Duration) -> Option<Confirm> {
        match self {
            Ring::Alone(_) => None,
            Ring::Peer(peer) => peer.report(attendance, ttl).await,
            Ring::Attached(attached) => attached.report(&attendance, ttl).await,
        }
    }

    /// The lines to other agents; `None`: there are none.
    pub fn exchange(&self) -> Option<&Exchange> {
        match self {
            Ring::Alone(_) => None,
            Ring::Peer(peer) => Some(peer.exchange()),
            Ring::Attached(attached) => Some(attached.exchange()),
        }
    }

    /// The certificates between agents; `None`: there are none.
    pub fn tls(&self) -> Option<&Arc<Tls>> {
        self.exchange()?.dialer().tls()
    }

    /// What this host is in the cluster: `alone`, `peer` or `attached`.
    pub fn role(&self) -> &'static str {
        match self {
            Ring::Alone(_) => "alone",
            Ring::Peer(_) => "peer",
            Ring::Attached(_) => "attached",
        }
    }

    /// The peer that serves this host, which is none itself.
    pub fn served_by(&self) -> Option<HostName> {
        match self {
            Ring::Alone(_) | Ring::Peer(_) => None,
            Ring::Attached(attached) => attached.served_by().borrow().clone(),
        }
    }

    /// Why this host has no part in a cluster now, in words; `None`: nothing keeps it.
    pub fn unsettled(&self) -> watch::Receiver<Option<String>> {
        match self {
            Ring::Alone(_) => watch::channel(None).1,
            Ring::Peer(peer) => peer.unsettled(),
            Ring::Attached(attached) => attached.trouble(),
        }
    }

    /// How many hosts are attached to this one.
    pub fn attached_here(&self) -> u64 {
        match self {
            Ring::Alone(_) | Ring::Attached(_) => 0,
            Ring::Peer(peer) => peer.attached(),
        }
    }

    /// The peers, as far as this host knows; `None`: only peers know.
    pub fn peers(&self) -> Option<Vec<Member>> {
        match self {
            Ring::Alone(_) | Ring::Attached(_) => None,
            Ring::Peer(peer) => Some(peer.peers()),
        }
    }

    /// The other peers that do not answer this one, and why; only a peer finds that out.
    pub async fn missing(&self) -> BTreeMap<PeerId, String> {
        match self {
            Ring::Alone(_) | Ring::Attached(_) => BTreeMap::new(),
            Ring::Peer(peer) => peer.missing().await,
        }
    }

    /// The voters that are dead for long and that an operator is to replace, as the primary knows; elsewhere none.
    pub fn to_replace(&self) -> BTreeSet<PeerId> {
        match self {
            Ring::Alone(_) | Ring::Attached(_) => BTreeSet::new(),
            Ring::Peer(peer) => peer.to_replace(),
        }
    }

    /// Lets a host become a peer that is not in the founders' file.
    pub async fn add_peer(&self, host: HostName, address: String) -> Result<(), RingError> {
        match self {
            Ring::Alone(_) => Err(RingError::Alone),
            Ring::Peer(peer) => Ok(peer.add_peer(host, address).await?),
            Ring::Attached(attached) => Ok(attached.add_peer(host, address).await?),
        }
    }

    /// Takes a host out of the peers.
    pub async fn remove_peer(&self, host: HostName) -> Result<(), RingError> {
        match self {
            Ring::Alone(_) => Err(RingError::Alone),
            Ring::Peer(peer) => Ok(peer.remove_peer(host).await?),
            Ring::Attached(attached) => Ok(attached.remove_peer(host).await?),
        }
    }

    /// Lets a peer vote.
    pub async fn promote_peer(&self, host: HostName) -> Result<(), RingError> {
        match self {
            Ring::Alone(_) => Err(RingError::Alone),
            Ring::Peer(peer) => Ok(peer.promote_peer(host).await?),
            Ring::Attached(attached) => Ok(attached.promote_peer(host).await?),
        }
    }

    /// True when no other host can run what runs here.
    pub fn is_alone(&self) -> bool {
        matches!(self, Ring::Alone(_))
    }

    /// Which life of this host it is, for the handshakes from now on.
    pub fn set_incarnation(&self, incarnation: u64) {
        match self {
            Ring::Alone(_) => {}
            Ring::Peer(peer) => peer.set_incarnation(incarnation),
            Ring::Attached(attached) => attached.set_incarnation(incarnation),
        }
    }

    /// True while this host is the primary, with a quorum; `None`: it always is.
    pub fn leads(&self) -> Option<watch::Receiver<bool>> {
        match self {
            Ring::Alone(_) => None,
            Ring::Peer(peer) => Some(peer.leads()),
            // It never is.
            Ring::Attached(_) => Some(watch::channel(false).1),
        }
    }

    /// What all hosts tell the primary beside the state; `None`: only this host tells.
    pub fn liveness(&self) -> Option<watch::Receiver<Arc<Liveness>>> {
        match self {
            Ring::Alone(_) => None,
            Ring::Peer(peer) => Some(peer.liveness()),
            Ring::Attached(_) => Some(watch::channel(Arc::default()).1),
        }
    }

    /// The last changes of the directory, on this host's copy.
    pub fn feed(&self) -> Feed {
        match self {
            Ring::Alone(alone) => alone.feed.clone(),
            Ring::Peer(peer) => peer.feed(),
            Ring::Attached(attached) => attached.feed(),
        }
    }

    /// Names what the numbers of changes belong to; 0: nothing yet.
    pub fn history(&self) -> u64 {
        match self {
            Ring::Alone(alone) => alone.history,
            Ring::Peer(peer) => peer.history().unwrap_or(0),
            Ring::Attached(attached) => attached.history().unwrap_or(0),
        }
    }

    /// What runs say about themselves.
    pub fn statuses(&self) -> &Statuses {
        match self {
            Ring::Alone(alone) => &alone.statuses,
            Ring::Peer(peer) => peer.statuses(),
            Ring::Attached(attached) => attached.statuses(),
        }
    }

    /// How the cluster stands; `None`: this host is alone.
    pub fn standing(&self) -> Option<Standing> {
        self.standings().map(|standing| standing.borrow().clone())
    }

    /// The same, and how it changes.
    pub fn standings(&self) -> Option<watch::Receiver<Standing>> {
        match self {
            Ring::Alone(_) => None,
            Ring::Peer(peer) => Some(peer.standing()),
            Ring::Attached(attached) => Some(attached.standing()),
        }
    }

    /// Waits until this host's copy has all that was committed anywhere when this was called.
    pub async fn catch_up(&self) -> Result<(), NotPrimary> {
        match self {
            Ring::Alone(_) => Ok(()),
            Ring::Peer(peer) => peer.catch_up().await,
            Ring::Attached(attached) => attached.catch_up().await,
        }
    }

    /// How the hosts stand, by the primary.
    pub async fn watched(&self, ttl: Duration) -> Result<Watched, RingError> {
        match self {
            Ring::Alone(_) => Err(RingError::Alone),
            Ring::Peer(peer) => Ok(peer.watched(ttl).await?),
            Ring::Attached(attached) => passed(attached, Kind::Roll, Ok(Vec::new()), ttl).await,
        }
    }

    /// Lets the primary declare a host down although the brake holds, once it was silent for `host_timeout`.
    pub async fn give_up(&self, host: &HostName, ttl: Duration) -> Result<(), RingError> {
        match self {
            Ring::Alone(_) => Err(RingError::Alone),
            Ring::Peer(peer) => Ok(peer.give_up(host, ttl).await?),
            Ring::Attached(attached) => passed(attached, Kind::GiveUp, encode(host), ttl).await,
        }
    }
}

/// A question that the peer passes on to the primary.
async fn passed<T: DeserializeOwned>(
    attached: &Attached,
    kind: Kind,
    body: Result<Vec<u8>, EncodeError>,
    ttl: Duration,
) -> Result<T, RingError> {
    let words = |error: &dyn std::fmt::Display| RingError::NotPrimary(NotPrimary(error.to_string()));
    let answer = attached.call(kind, body.map_err(|error| words(&error))?, ttl).await;
    decode(&answer.map_err(|error| words(&error))?).map_err(|error| words(&error))
}

impl From<ProposeError> for AskError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Rejected(rejected) => AskError::Rejected(rejected),
            error => AskError::Unanswered(error),
        }
    }
}
