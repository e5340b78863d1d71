//! What the agent of an attached host uses: the copy, and what goes to the cluster.
//!
//! Owns the copy of the state and the lines to the peers. Everything that is asked waits for a peer, until its
//! deadline; what is asked while the peer changes is asked again of the next one. Only [`Attached::report`] is
//! asked once: it is worthless later.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::Settings;
use super::kept::Kept;
use super::message::{Members, Place, Proposed, Sight};
use crate::agent::replica::wall_ms;
use crate::cluster::feed::{self, Feed};
use crate::cluster::node::{NotPrimary, ProposeError, Standing};
use crate::cluster::raft::{Change, Outcome};
use crate::cluster::statuses::Statuses;
use crate::cluster::tls::Tls;
use crate::cluster::wire::hello::Ours;
use crate::cluster::wire::{CallError, Dialer, Exchange, Kind, Purpose, Target, decode, encode};
use crate::plan::liveness::{Attendance, Confirm};
use crate::spec::HostName;
use crate::state::{Change as Told, Command, Envelope, Response, State};

/// How long a change is tried, as on a peer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one attempt may take. The peer itself tries for as long.
const ATTEMPT: Duration = Duration::from_millis(2000);
/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(10);

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

    /// Applies a command, whoever is the primary. When it returns, this host's own copy has the change.
    pub async fn propose(&self, command: Command) -> Result<Response, ProposeError> {
        let envelope = Arc::new(Envelope { stamp_ms: wall_ms(), command });
        let number = self.0.number.fetch_add(1, Ordering::Relaxed);
        let body = encode(&Change::of(envelope, (self.0.origin, number)))?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let asked = self.ask(Kind::Propose, &body, deadline).await;
            if let Some(Proposed::Applied(outcome, index)) = asked {
                // The own copy may be behind for long: the change holds all the same.
                let _ = tokio::time::timeout_at(deadline.into(), self.applied(index)).await;
                return match outcome {
                    Outcome::State(outcome) => Ok(outcome?),
                    // A command has no other outcome.
                    _ => Err(ProposeError::NoPrimary(PATIENCE)),
                };
            }
            tokio::time::sleep(AGAIN).await;
        }
        Err(ProposeError::NoPrimary(PATIENCE))
    }

    /// Waits until this host's own copy has all that was committed anywhere when this was called.
    pub async fn catch_up(&self) -> Result<(), NotPrimary> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(index) = self.ask(Kind::ReadIndex, &[], deadline).await {
                let applied = tokio::time::timeout_at(deadline.into(), self.applied(index)).await;
                return applied.map_err(|_| NotPrimary("this host's copy is behind".to_owned()));
            }
            tokio::time::sleep(AGAIN).await;
        }
        Err(NotPrimary("no primary answers".to_owned()))
    }

    /// Tells the primary that this host lives, and waits for its answer for at most `ttl`. Never behind anything
    /// large, and never asked twice. The answer on the wire is an `Option<Confirm>`.
    pub async fn report(&self, attendance: &Attendance, ttl: Duration) -> Option<Confirm> {
        let peer = self.peer()?;
        let body = encode(attendance).ok()?;
        let answer = self.call_peer(&peer, Purpose::Host, Kind::Report, body, ttl).await;
        decode::<Option<Confirm>>(&answer.ok()?).ok()?
    }

    /// Asks the peer something beside the log, once.
    pub async fn call(&self, kind: Kind, body: Vec<u8>, ttl: Duration) -> Result<Vec<u8>, CallError> {
        let deadline = Instant::now() + ttl;
        let nobody = |_| CallError::Unreachable("no peer serves this host".to_owned());
        let peer = tokio::time::timeout(ttl, self.some_peer()).await.map_err(nobody)?;
        let rest = deadline.saturating_duration_since(Instant::now());
        let soft = matches!(kind, Kind::Status | Kind::Statuses);
        let purpose = if soft { Purpose::Status } else { Purpose::HostBulk };
        self.call_peer(&peer, purpose, kind, body, rest).await
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        kind: Kind,
        body: &[u8],
        deadline: Instant,
    ) -> Option<T> {
        self.ask_for(kind, body, deadline, ATTEMPT).await
    }

    /// One attempt with whoever serves this host; it ends early when that is somebody else.
    pub(super) async fn ask_for<T: serde::de::DeserializeOwned>(
        &self,
        kind: Kind,
        body: &[u8],
        deadline: Instant,
        attempt: Duration,
    ) -> Option<T> {
        let peer = tokio::time::timeout_at(deadline.into(), self.some_peer()).await.ok()?;
        let ttl = attempt.min(deadline.saturating_duration_since(Instant::now()));
        let mut peers = self.0.peer.subscribe();
        let purpose = if kind == Kind::ReadIndex { Purpose::Host } else { Purpose::HostBulk };
        let answer = tokio::select! {
            answer = self.call_peer(&peer, purpose, kind, body.to_vec(), ttl) => answer,
            _ = peers.wait_for(|now| now.as_ref() != Some(&peer)) => return None,
        };
        decode(&answer.ok()?).ok()
    }

    /// Until this host's copy has the entry.
    async fn applied(&self, index: u64) {
        let _ = self.0.copy.subscribe().wait_for(|(place, _)| place.index >= index).await;
    }

    async fn some_peer(&self) -> Target {
        let mut peers = self.0.peer.subscribe();
        // The sender is here; it cannot be gone.
        match peers.wait_for(Option::is_some).await.ok().and_then(|peer| peer.clone()) {
            Some(peer) => peer,
            None => std::future::pending().await,
        }
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
