//! A peer of the cluster, as the rest of the agent uses it.
//!
//! Owns all tasks of a peer: the listener, the finding of the others, Raft, and what watches over it. States
//! go out by `watch`, changes come in by [`Peer::propose`], which reaches the primary from any peer. Whoever
//! is about to do something that only the primary may do asks [`Peer::ensure_primary`] right before:
//! [`Standing`] is for showing. Called by the agent; the state itself is `state`'s.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

mod hosts;
pub mod identity;
mod missing;
mod opening;
mod others;
mod peerage;
mod propose;
pub mod recover;
mod seat;
mod service;
mod settings;
mod settle;
mod soft;
mod standing;
mod vigil;

pub use opening::OpenError;
pub(in crate::cluster) use propose::bytes_of;
pub use propose::{NotPrimary, PeersError, Primary, ProposeError};
pub use settings::Settings;
pub use standing::Standing;
pub use vigil::Watched;

use super::feed::{self, Feed};
use super::raft::log_store::Disk;
use super::raft::machine::{Applied, DiskShelf};
use super::raft::membership::{Member, Raft, members};
use super::session::desk::Desk;
use super::session::message::Members;
use super::session::trail::{self, Recorder};
use super::statuses::Statuses;
use super::tls::Tls;
use super::tunnel::Entrance;
use super::wire::hello::Ours;
use super::wire::{Dialer, Exchange, Server, Target};
use crate::agent::replica::wall_ms;
use crate::agent::supervise::moment;
use crate::plan::Liveness;
use crate::state::{Clock, State};
use identity::Identity;
use settle::Settler;

/// What was heard of the primary last.
#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Instant,
    /// The primary is heard by a quorum.
    quorum: bool,
}

/// What all tasks of a peer share.
struct Shared {
    settings: Settings,
    disk: Arc<Disk>,
    identity: watch::Sender<Identity>,
    ours: watch::Sender<Ours>,
    exchange: Exchange,
    raft: watch::Sender<Option<Raft>>,
    /// Why this host is no member of a founded cluster yet; `None`: nothing keeps it, as far as it knows.
    unsettled: watch::Sender<Option<String>>,
    states: watch::Receiver<Arc<State>>,
    /// Stamps what this peer puts into the log.
    clock: Mutex<Clock>,
    applies: watch::Receiver<Applied>,
    feed: Feed,
    standing: watch::Sender<Standing>,
    /// The peers, for attached hosts.
    known: watch::Sender<Members>,
    /// The number is nobody's any more.
    removed: watch::Sender<bool>,
    /// Serves attached hosts.
    desk: Desk,
    heard: watch::Sender<Option<Heard>>,
    /// This peer, as primary, is heard by a quorum.
    quorum: watch::Sender<bool>,
    /// In which term and since when this peer is the primary.
    led: watch::Sender<Option<(u64, Instant)>>,
    /// Into the watch over all hosts, which runs on the primary.
    vigil: mpsc::Sender<vigil::Ask>,
    /// What hosts tell the primary beside the state.
    liveness: watch::Sender<Arc<Liveness>>,
    /// What runs say about themselves.
    statuses: Statuses,
    /// Where requests of other agents go; empty: the API is not up yet.
    tunnel: OnceLock<Entrance>,
    /// One change of the peers at a time.
    changing: tokio::sync::Mutex<()>,
    /// With `number`: the key of a proposal. Random per life of this peer.
    origin: u64,
    number: AtomicU64,
}

/// A peer. Dropping it ends all its tasks at once, as a crash would; [`Node::close`] takes leave.
pub struct Node {
    peer: Peer,
    tasks: JoinSet<()>,
    address: Option<SocketAddr>,
}

/// What the rest of the agent asks of a peer. Cheap to clone; it outlives the [`Node`], and then answers nothing.
#[derive(Clone)]
pub struct Peer {
    shared: Arc<Shared>,
}

impl std::ops::Deref for Node {
    type Target = Peer;

    fn deref(&self) -> &Peer {
        &self.peer
    }
}

/// The ends that the state machine takes when it is made.
struct Outlets {
    states: watch::Sender<Arc<State>>,
    applies: watch::Sender<Applied>,
    trail: Recorder,
    feed: feed::Recorder,
}

impl Node {
    /// Opens the log, listens, and begins to look for the others. Returns at once: a cluster that is not
    /// formed yet forms in the background ([`Peer::standing`] shows it).
    pub async fn open(settings: Settings) -> Result<Node, OpenError> {
        let (mut node, settler) = Node::begin(settings).await?;
        // A peer that has its number is up when this returns; a newcomer looks around first.
        match settler.resume().await {
            Ok(None) => Ok(node),
            Ok(Some(settler)) => {
                node.tasks.spawn(settler.run());
                Ok(node)
            }
            Err(OpenError::Void { id }) => {
                let settings = node.shared.settings.clone();
                node.tasks.shutdown().await;
                drop(node);
                opening::set_aside(&settings.data_dir.join("raft"), id)?;
                Box::pin(Node::open(settings)).await
            }
            Err(error) => Err(error),
        }
    }

    async fn begin(settings: Settings) -> Result<(Node, Settler), OpenError> {
        let tls = Tls::if_any(settings.tls.as_ref(), &settings.host)?;
        let folder = settings.data_dir.join("raft");
        let disk = {
            let folder = folder.clone();
            let opened = tokio::task::spawn_blocking(move || Disk::open(&folder)).await;
            Arc::new(opened.map_err(|error| OpenError::Identity(error.into()))??)
        };
        let identity = settle::identity(&disk).await.map_err(OpenError::Identity)?;
        let server = match settings.peers.len() {
            0 => None,
            _ => {
                let address = settings.listen.clone();
                let bound = Server::bind(&address, tls.clone()).await;
                Some(bound.map_err(|source| OpenError::Listen { address, source })?)
            }
        };
        let address = server.as_ref().and_then(|server| server.address().ok());
        let (ours, ours_seen) = watch::channel(ours_of(&settings, &identity));
        let (connected, connections) = mpsc::channel(64);
        let (vigil, asks) = mpsc::channel(vigil::QUEUE);
        let (states, states_seen) = watch::channel(Arc::default());
        let (applies, applies_seen) = watch::channel(Applied::default());
        let (trail, trail_seen) = trail::trail();
        let (recorder, feed) = feed::feed();
        let shared = Arc::new(Shared {
            exchange: Exchange::new(Dialer::new(ours_seen, tls), connected),
            statuses: Statuses::new(settings.host.clone()),
            settings,
            disk,
            identity: watch::channel(identity).0,
            ours,
            raft: watch::channel(None).0,
            unsettled: watch::channel(None).0,
            states: states_seen,
            clock: Mutex::default(),
            applies: applies_seen,
            feed,
            standing: watch::channel(Standing::default()).0,
            known: watch::channel(Members::default()).0,
            removed: watch::channel(false).0,
            desk: Desk::new(trail_seen),
            heard: watch::channel(None).0,
            quorum: watch::channel(false).0,
            led: watch::channel(None).0,
            vigil,
            liveness: watch::channel(Arc::default()).0,
            tunnel: OnceLock::new(),
            changing: tokio::sync::Mutex::default(),
            origin: fastrand::u64(..),
            number: AtomicU64::new(0),
        });
        let peer = Peer { shared: shared.clone() };
        let mut node = Node { peer, tasks: JoinSet::new(), address };
        if let Some(server) = server {
            node.tasks.spawn(server.run(Arc::new(service::Answers { shared: shared.clone() })));
        }
        node.tasks.spawn(standing::watch(shared.clone()));
        node.tasks.spawn(standing::reconnect(shared.clone(), connections));
        node.tasks.spawn(standing::tidy(shared.clone()));
        node.tasks.spawn(seat::watch(shared.clone()));
        node.tasks.spawn(soft::hear_peers(shared.clone()));
        node.tasks.spawn(vigil::watch(shared.clone(), asks));
        let settler = Settler::new(shared, Outlets { states, applies, trail, feed: recorder });
        Ok((node, settler))
    }

    /// Where it listens; `None`: a host alone.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// For the rest of the agent.
    pub fn peer(&self) -> Peer {
        self.peer.clone()
    }

    /// Takes leave: hands over if this is the primary, then ends all tasks.
    pub async fn close(mut self) {
        if let Err(error) = self.hand_over().await {
            tracing::warn!(%error, "leaving without a hand-over");
        }
        if let Some(raft) = self.shared.raft() {
            let _ = raft.shutdown().await;
        }
        self.tasks.shutdown().await;
    }
}

impl Peer {
    /// This host's copy of the replicated state, newest first.
    pub fn states(&self) -> watch::Receiver<Arc<State>> {
        self.shared.states.clone()
    }

    /// How the cluster stands, as far as this peer knows.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.shared.standing.subscribe()
    }

    /// Why this host is no member of a founded cluster yet, in words; `None`: nothing keeps it.
    pub fn unsettled(&self) -> watch::Receiver<Option<String>> {
        self.shared.unsettled.subscribe()
    }

    /// The last changes of the directory.
    pub fn feed(&self) -> Feed {
        self.shared.feed.clone()
    }

    /// Which founding of the cluster this peer belongs to; `None`: none yet.
    pub fn history(&self) -> Option<u64> {
        self.shared.ours.borrow().history
    }

    /// This peer's number; `None` until it has one.
    pub fn id(&self) -> Option<u64> {
        self.shared.ours.borrow().id
    }

    /// Which life of the host this is, for the handshakes from now on; `JoinHost` tells it.
    pub fn set_incarnation(&self, incarnation: u64) {
        self.shared.ours.send_modify(|ours| ours.incarnation = incarnation);
        self.shared.statuses.begin(incarnation);
    }

    /// What the runs of all hosts say about themselves.
    pub fn statuses(&self) -> &Statuses {
        &self.shared.statuses
    }

    /// How many hosts that are no peers are attached to this one.
    pub fn attached(&self) -> u64 {
        self.shared.desk.hosts()
    }

    /// The peers as this one knows them; only the primary knows who answers.
    pub fn peers(&self) -> Vec<Member> {
        self.shared.raft().map(|raft| self.shared.members(&raft)).unwrap_or_default()
    }

    /// Lets other agents into the API of this one from now on; the first entrance is the only one.
    pub fn open_tunnel(&self, entrance: Entrance) {
        let _ = self.shared.tunnel.set(entrance);
    }

    /// The lines to other agents.
    pub fn exchange(&self) -> &Exchange {
        &self.shared.exchange
    }

    /// True while this peer is the primary and a quorum hears it.
    pub fn leads(&self) -> watch::Receiver<bool> {
        self.shared.quorum.subscribe()
    }

    /// What hosts tell the primary beside the state; empty elsewhere.
    pub fn liveness(&self) -> watch::Receiver<Arc<Liveness>> {
        self.shared.liveness.subscribe()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Raft's own tasks end when they are told to; the others are aborted with the set.
        if let (Some(raft), Ok(runtime)) = (self.shared.raft(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { drop(raft.shutdown().await) });
        }
    }
}

impl Shared {
    fn raft(&self) -> Option<Raft> {
        self.raft.borrow().clone()
    }

    /// The time for stamps.
    fn now_ms(&self) -> u64 {
        let state_ms = self.states.borrow().now_ms;
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        clock.now_ms(state_ms, wall_ms(), moment())
    }

    /// The primary as Raft knows it; it may be one no more.
    fn primary(&self) -> Option<Target> {
        let raft = self.raft()?;
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let id = metrics.current_leader?;
        super::raft::network::target(id, metrics.membership_config.membership().get_node(&id)?)
    }

    fn members(&self, raft: &Raft) -> Vec<Member> {
        members(raft, self.led.borrow().map(|(_, since)| since.elapsed()))
    }

    fn shelf(&self) -> DiskShelf {
        DiskShelf::new(&self.settings.data_dir.join("raft"), self.disk.clone())
    }
}

fn ours_of(settings: &Settings, identity: &Identity) -> Ours {
    let (id, history) = match identity {
        Identity::Fresh { .. } => (None, None),
        Identity::Peer { id, history, .. } => (Some(*id), Some(*history)),
    };
    Ours { cluster: settings.cluster.clone(), host: settings.host.clone(), incarnation: 0, history, id }
}
