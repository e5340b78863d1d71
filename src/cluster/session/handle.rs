//! What the agent of an attached host uses: the copy, and what goes to the cluster.
//!
//! Owns the copy of the state and the lines to the peers. How something is asked of them is in `asking`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

mod asking;

use super::Settings;
use super::kept::Kept;
use super::message::{Members, Place, Sight};
use crate::cluster::feed::{self, Feed};
use crate::cluster::node::Standing;
use crate::cluster::statuses::Statuses;
use crate::cluster::tls::Tls;
use crate::cluster::wire::hello::Ours;
use crate::cluster::wire::{CallError, Dialer, Exchange, Kind, Purpose, Target};
use crate::spec::HostName;
use crate::state::{Change as Told, State};

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Attached(Arc<Shared>);

struct Shared {
    settings: Settings,
    ours: watch::Sender<Ours>,
    exchange: Exchange,
    states: watch::Sender<Arc<State>>,
    /// The state once more, with its place; goes out after it.
    copy: watch::Sender<(Place, Arc<State>)>,
    standing: watch::Sender<Standing>,
    members: watch::Sender<Members>,
    /// The peer that serves this host now.
    peer: watch::Sender<Option<Target>>,
    served_by: watch::Sender<Option<HostName>>,
    trouble: watch::Sender<Option<String>>,
    /// The last changes of the directory; locked by the one task that follows the peer.
    recorder: Mutex<feed::Recorder>,
    feed: Feed,
    statuses: Statuses,
    /// When the peer was last heard, whatever it said.
    heard: Mutex<Instant>,
    /// With `number`: the key of a proposal. Random per life of this session.
    origin: u64,
    number: AtomicU64,
    /// Whole states taken.
    wholes: AtomicU64,
}

/// Tells that something changed that is kept on disk.
pub(super) struct Changes {
    copy: watch::Receiver<(Place, Arc<State>)>,
    members: watch::Receiver<Members>,
    ours: watch::Receiver<Ours>,
}

impl Changes {
    /// Comes back when something has.
    pub(super) async fn changed(&mut self) {
        tokio::select! {
            _ = self.copy.changed() => {}
            _ = self.members.changed() => {}
            _ = self.ours.changed() => {}
        }
        self.copy.mark_unchanged();
        self.members.mark_unchanged();
        self.ours.mark_unchanged();
    }
}

impl Attached {
    pub(super) fn new(settings: Settings, tls: Option<Arc<Tls>>, kept: Kept) -> Attached {
        let (cluster, host) = (settings.cluster.clone(), settings.host.clone());
        let ours = Ours { cluster, host, incarnation: 0, history: kept.history, id: None };
        let (ours, seen) = watch::channel(ours);
        // Nobody waits to hear that a peer can be reached again: it is asked.
        let (connected, _) = mpsc::channel(1);
        let standing = Standing { index: kept.place.index, ..Standing::default() };
        let (mut recorder, feed) = feed::feed();
        let statuses = Statuses::attached(settings.host.clone());
        recorder.begin_anew(&kept.state);
        Attached(Arc::new(Shared {
            settings,
            ours,
            exchange: Exchange::new(Dialer::new(seen, tls), connected),
            states: watch::channel(kept.state.clone()).0,
            copy: watch::channel((kept.place, kept.state)).0,
            standing: watch::channel(standing).0,
            members: watch::channel(kept.members).0,
            peer: watch::channel(None).0,
            served_by: watch::channel(None).0,
            trouble: watch::channel(None).0,
            recorder: Mutex::new(recorder),
            feed,
            statuses,
            heard: Mutex::new(Instant::now()),
            origin: fastrand::u64(..),
            number: AtomicU64::new(0),
            wholes: AtomicU64::new(0),
        }))
    }

    /// This host's copy of the replicated state, newest first; at the beginning that of the disk.
    pub fn states(&self) -> watch::Receiver<Arc<State>> {
        self.0.states.subscribe()
    }

    /// The last changes of the directory.
    pub fn feed(&self) -> Feed {
        self.0.feed.clone()
    }

    /// Which founding of the cluster this host follows; `None`: none yet.
    pub fn history(&self) -> Option<u64> {
        self.0.ours.borrow().history
    }

    /// How the cluster stands, as the peer tells it; `index` is that of this host's copy.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.0.standing.subscribe()
    }

    /// Which peer serves this host now.
    pub fn served_by(&self) -> watch::Receiver<Option<HostName>> {
        self.0.served_by.subscribe()
    }

    /// Why no peer serves this host, in words; `None` while one does.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.0.trouble.subscribe()
    }

    /// How often this host has taken the whole state, since it missed more than its peer could tell step by step.
    pub fn wholes(&self) -> u64 {
        self.0.wholes.load(Ordering::Relaxed)
    }

    /// The peers and their addresses, as far as they are known.
    pub fn members(&self) -> Vec<(HostName, String)> {
        self.0.members.borrow().peers.clone()
    }

    /// Which life of the host this is, for the handshakes from now on; `JoinHost` tells it.
    pub fn set_incarnation(&self, incarnation: u64) {
        self.0.ours.send_modify(|ours| ours.incarnation = incarnation);
        self.0.statuses.begin(incarnation);
    }

    /// What runs say about themselves: those of other hosts only while somebody reads.
    pub fn statuses(&self) -> &Statuses {
        &self.0.statuses
    }
}

/// For the tasks of the session.
impl Attached {
    pub(super) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// The lines to other agents.
    pub fn exchange(&self) -> &Exchange {
        &self.0.exchange
    }

    /// Whom a hello is held against.
    pub fn greets_as(&self) -> watch::Receiver<Ours> {
        self.0.ours.subscribe()
    }

    pub(super) fn ours(&self) -> Ours {
        self.0.ours.borrow().clone()
    }

    pub(super) fn peer(&self) -> Option<Target> {
        self.0.peer.borrow().clone()
    }

    pub(super) fn known(&self) -> Members {
        self.0.members.borrow().clone()
    }

    pub(super) fn copy(&self) -> (Place, Arc<State>) {
        self.0.copy.borrow().clone()
    }

    /// The copy is this now.
    pub(super) fn take(&self, place: Place, state: Arc<State>, changes: Vec<Told>) {
        let mut recorder = self.0.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        recorder.note(changes);
        self.go_out(place, state, |recorder, state| recorder.tell(state), recorder);
    }

    fn go_out(
        &self,
        place: Place,
        state: Arc<State>,
        tell: impl FnOnce(&mut feed::Recorder, &State),
        mut recorder: MutexGuard<'_, feed::Recorder>,
    ) {
        self.0.states.send_replace(state.clone());
        tell(&mut recorder, &state);
        self.0.standing.send_modify(|standing| standing.index = place.index);
        self.0.copy.send_replace((place, state));
    }

    /// The copy is this now, whatever it was before.
    pub(super) fn take_whole(&self, place: Place, state: Arc<State>) {
        self.0.wholes.fetch_add(1, Ordering::Relaxed);
        let recorder = self.0.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        self.go_out(place, state, |recorder, state| recorder.begin_anew(state), recorder);
    }

    /// What the peer says of the cluster.
    pub(super) fn told(&self, sight: Sight, members: Option<Members>) {
        self.0.standing.send_if_modified(|standing| {
            let before = standing.clone();
            (standing.primary, standing.term, standing.quorum) = (sight.primary, sight.term, sight.quorum);
            *standing != before
        });
        if let Some(members) = members {
            self.0.members.send_if_modified(|known| {
                let changed = *known != members;
                *known = members;
                changed
            });
        }
    }

    /// This peer serves the host from now on.
    pub(super) fn arrived(&self, peer: &Target, history: u64) {
        self.0.ours.send_if_modified(|ours| ours.history.replace(history) != Some(history));
        *self.0.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.peer.send_replace(Some(peer.clone()));
        self.0.served_by.send_replace(Some(peer.host.clone()));
        self.0.trouble.send_replace(None);
    }

    /// Nobody serves the host.
    pub(super) fn left(&self) {
        self.0.peer.send_replace(None);
        self.0.served_by.send_replace(None);
        self.0.standing.send_modify(|standing| (standing.primary, standing.quorum) = (None, false));
    }

    /// Why nobody does.
    pub(super) fn set_trouble(&self, why: String) {
        self.0.trouble.send_replace(Some(why));
    }

    pub(super) fn kept(&self) -> Kept {
        let (place, state) = self.copy();
        let (cluster, history) = (self.0.settings.cluster.clone(), self.0.ours.borrow().history);
        Kept { cluster, history, place, members: self.known(), state }
    }

    pub(super) fn changes(&self) -> Changes {
        Changes {
            copy: self.0.copy.subscribe(),
            members: self.0.members.subscribe(),
            ours: self.0.ours.subscribe(),
        }
    }

    /// Asks a peer; whatever the one that serves this host answers, it lives.
    pub(super) async fn call_peer(
        &self,
        peer: &Target,
        purpose: Purpose,
        kind: Kind,
        body: Vec<u8>,
        ttl: Duration,
    ) -> Result<Vec<u8>, CallError> {
        let answer = self.0.exchange.call(peer, purpose, kind, body, ttl).await;
        if matches!(answer, Ok(_) | Err(CallError::Failed(_))) && self.0.peer.borrow().as_ref() == Some(peer)
        {
            *self.0.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        answer
    }

    pub(super) fn heard(&self) -> Instant {
        *self.0.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
