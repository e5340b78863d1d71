//! The primary's watch over all hosts: it confirms that they live, and declares down those that are silent.
//!
//! Owns the [`Roll`] of a term, the rounds with a quorum behind each confirm, and what hosts tell beside the
//! state. What it declares it writes into the log of its own term or not at all: another primary, or this one in
//! another term, may have confirmed the host since. On a peer that is not the primary it answers nothing. Called over
//! the wire and by this peer's own agent; the rules are [`crate::plan::liveness`]'s.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::impls::OneshotResponder;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::{NotPrimary, Peer, Primary, Shared};
use crate::agent::supervise::moment;
use crate::cluster::raft::{Change, LeaderId};
use crate::cluster::wire::{Kind, Purpose, decode, encode};
use crate::plan::Liveness;
use crate::plan::liveness::{Attendance, Confirm, Report, Roll, Round, Verdict};
use crate::spec::{HostName, InstanceId};
use crate::state::{Command, Envelope};

/// Questions that wait; more hosts than that do not report at once.
pub(super) const QUEUE: usize = 2048;
/// How often it is looked who is silent, and how long a report waits for others to share its round.
const PACE: Duration = Duration::from_millis(50);
/// How long a round with a quorum may take: a confirm that comes later is worth little.
const ROUND: Duration = Duration::from_secs(1);
/// How long a report waits for its confirm.
const WAIT: Duration = Duration::from_millis(700);
/// Before a peer that cannot reach a quorum tries again.
const AGAIN: Duration = Duration::from_millis(20);
/// How often the planner hears of players.
const TELL: Duration = Duration::from_millis(500);

/// What the watch is asked.
pub(super) enum Ask {
    /// A host lives.
    Report(Attendance, oneshot::Sender<Confirm>),
    /// An operator gives a silent host up.
    GiveUp(HostName, oneshot::Sender<()>),
    /// How the hosts stand.
    Look(oneshot::Sender<Watched>),
}

/// How the hosts stand, as the primary sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// For how long each host that is up was not heard, in milliseconds.
    pub silent_ms: BTreeMap<HostName, u64>,
    /// So many are silent at once that none is declared down: these.
    pub brake: Vec<HostName>,
}

impl Peer {
    /// Tells the primary that a host lives; its answer, if there is one within the time.
    pub async fn report(&self, attendance: Attendance, ttl: Duration) -> Option<Confirm> {
        self.shared.report(attendance, ttl).await
    }

    /// Lets the primary declare a host down although the brake holds, once it was silent for `host_timeout`.
    pub async fn give_up(&self, host: &HostName, ttl: Duration) -> Result<(), NotPrimary> {
        self.shared.ask_primary(Kind::GiveUp, encode(host).ok(), ttl).await
    }

    /// How the hosts stand, by the primary.
    pub async fn watched(&self, ttl: Duration) -> Result<Watched, NotPrimary> {
        self.shared.ask_primary(Kind::Roll, Some(Vec::new()), ttl).await
    }
}

impl Shared {
    /// Gives a report to the primary as it is.
    pub(super) async fn report(&self, attendance: Attendance, ttl: Duration) -> Option<Confirm> {
        let primary = self.primary()?;
        if primary.host == self.settings.host {
            return tokio::time::timeout(ttl, self.reported(attendance)).await.ok()?;
        }
        let body = encode(&attendance).ok()?;
        let answer = self.exchange.call(&primary, Purpose::Urgent, Kind::Report, body, ttl).await;
        decode::<Option<Confirm>>(&answer.ok()?).ok()?
    }

    async fn ask_primary<T: serde::de::DeserializeOwned>(
        &self,
        kind: Kind,
        body: Option<Vec<u8>>,
        ttl: Duration,
    ) -> Result<T, NotPrimary> {
        let answer = self.pass_on(kind, body.unwrap_or_default(), ttl).await;
        answer.and_then(|answer| decode(&answer).map_err(|error| error.to_string())).map_err(NotPrimary)
    }

    /// Has the primary answer one of the vigil's questions.
    pub(super) async fn pass_on(&self, kind: Kind, body: Vec<u8>, ttl: Duration) -> Result<Vec<u8>, String> {
        let primary = self.primary().ok_or("no primary is known")?;
        if primary.host == self.settings.host {
            let asked = tokio::time::timeout(ttl, self.answer_vigil(kind, &body)).await;
            return asked.map_err(|_| "the primary does not answer".to_owned())?;
        }
        let answer = self.exchange.call(&primary, Purpose::Bulk, kind, body, ttl).await;
        answer.map_err(|error| error.to_string())
    }

    /// Answers a question of another host to the primary.
    pub(super) async fn answer_vigil(&self, kind: Kind, body: &[u8]) -> Result<Vec<u8>, String> {
        let words = |error: &dyn std::fmt::Display| error.to_string();
        let encoded = match kind {
            Kind::Report => encode(&self.reported(decode(body).map_err(|e| words(&e))?).await),
            Kind::GiveUp => {
                let host = decode(body).map_err(|e| words(&e))?;
                encode(&self.asked(|reply| Ask::GiveUp(host, reply)).await.ok_or("not the primary")?)
            }
            Kind::Roll => encode(&self.asked(Ask::Look).await.ok_or("not the primary")?),
            _ => return Err(format!("{kind:?} is no question to the primary")),
        };
        encoded.map_err(|e| words(&e))
    }

    /// An answer comes in any case: the line that brought the report would else be taken for dead.
    async fn reported(&self, attendance: Attendance) -> Option<Confirm> {
        tokio::time::timeout(WAIT, self.asked(|reply| Ask::Report(attendance, reply))).await.ok()?
    }

    async fn asked<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.vigil.try_send(question(reply)).ok()?;
        answer.await.ok()
    }
}

/// Watches in each term of which this peer is the primary.
pub(super) async fn watch(shared: Arc<Shared>, mut asks: mpsc::Receiver<Ask>) {
    let mut led = shared.led.subscribe();
    let mut last: Option<(u64, Roll)> = None;
    loop {
        tokio::select! {
            // Whoever asks hears that this is not the primary by its question being dropped.
            ask = asks.recv() => if ask.is_none() {
                return;
            },
            leads = led.wait_for(Option::is_some) => if leads.is_err() {
                return;
            }
        }
        if led.borrow().is_none() {
            continue;
        }
        match shared.ensure_primary().await {
            // The round waited for the first entry of the term to be committed and applied.
            Ok(primary) => {
                let same = last.take().filter(|(term, _)| *term == primary.term);
                let roll = same.map_or_else(|| Roll::new(moment()), |(_, roll)| roll);
                let mut vigil = Vigil::new(shared.clone(), primary.term, roll);
                vigil.lead(&mut asks).await;
                last = Some((primary.term, vigil.roll));
                shared.liveness.send_replace(Arc::default());
            }
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

type Rounds = JoinSet<(Round, Result<Primary, NotPrimary>)>;

/// One term.
struct Vigil {
    shared: Arc<Shared>,
    term: u64,
    roll: Roll,
    waiting: BTreeMap<Report, oneshot::Sender<Confirm>>,
    players: BTreeMap<HostName, BTreeMap<InstanceId, u32>>,
    /// What was told of players is not what is known.
    untold: bool,
    brake: Vec<HostName>,
    rounds: Rounds,
    writes: JoinSet<()>,
}

impl Vigil {
    fn new(shared: Arc<Shared>, term: u64, roll: Roll) -> Vigil {
        Vigil {
            shared,
            term,
            roll,
            waiting: BTreeMap::new(),
            players: BTreeMap::new(),
            untold: false,
            brake: Vec::new(),
            rounds: JoinSet::new(),
            writes: JoinSet::new(),
        }
    }

    async fn lead(&mut self, asks: &mut mpsc::Receiver<Ask>) {
        let this = self.term;
        let mut led = self.shared.led.subscribe();
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tell = tokio::time::interval(TELL);
        tell.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = led.wait_for(|led| led.is_none_or(|(term, _)| term != this)) => return,
                ask = asks.recv() => match ask {
                    Some(ask) => self.hear(ask),
                    None => return,
                },
                Some(Ok((round, result))) = self.rounds.join_next() => match result {
                    Ok(primary) if primary.term == self.term => self.confirm(round),
                    Ok(_) => return,
                    Err(error) => tracing::debug!(%error, "no confirms"),
                },
                Some(_) = self.writes.join_next() => {}
                _ = pace.tick() => self.judge(),
                _ = tell.tick() => self.tell(),
            }
        }
    }

    fn hear(&mut self, ask: Ask) {
        match ask {
            Ask::Report(Attendance { report, players }, reply) => {
                if let Some(players) = players {
                    let before = self.players.insert(report.host.clone(), players);
                    self.untold |= before.as_ref() != self.players.get(&report.host);
                }
                self.roll.report(report.clone(), moment());
                self.waiting.insert(report, reply);
            }
            Ask::GiveUp(host, reply) => {
                self.roll.give_up(host);
                let _ = reply.send(());
            }
            Ask::Look(reply) => {
                let state = self.shared.states.borrow().clone();
                let silences = self.roll.silences(&state, moment()).into_iter();
                let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
                let silent_ms = silences.map(|(host, span)| (host.clone(), ms(span))).collect();
                let _ = reply.send(Watched { silent_ms, brake: self.brake.clone() });
            }
        }
    }

    /// Who is silent for too long is declared down; who was heard is confirmed after a round.
    fn judge(&mut self) {
        let (state, quorum) = (self.shared.states.borrow().clone(), *self.shared.quorum.borrow());
        if let Some(verdict) = self.roll.tick(&state, quorum, moment()) {
            self.carry_out(verdict);
        }
        if self.rounds.is_empty() {
            let round = self.roll.begin_round();
            if !round.is_empty() {
                let shared = self.shared.clone();
                self.rounds.spawn(async move { (round, shared.ensure_primary().await) });
            }
        }
    }

    fn carry_out(&mut self, verdict: Verdict) {
        let brake: Vec<HostName> = verdict.brake.into_iter().collect();
        if brake != self.brake {
            self.tell_of_the_brake(&brake);
            self.brake = brake;
        }
        // Said again until the state shows it, so one attempt at a time will do.
        if self.writes.is_empty() {
            for command in verdict.commands {
                if let Command::HostDown { host, .. } = &command {
                    tracing::warn!(%host, "silent for host_timeout: declared down");
                }
                self.write(command);
            }
        }
    }

    fn tell_of_the_brake(&self, brake: &[HostName]) {
        match brake.is_empty() {
            true => tracing::info!("the brake is released"),
            false => {
                let hosts = brake.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                tracing::warn!(
                    "so many hosts are silent at once that none is declared down: {hosts}; if they are lost, \
                     `bigbrother hosts declare-down HOST`"
                );
            }
        }
    }

    /// Into the log of this very term: see the module. What waits in Raft's queue may be taken up in a later one.
    fn write(&mut self, command: Command) {
        let (Some(raft), Some(node_id)) = (self.shared.raft(), self.shared.ours.borrow().id) else { return };
        let leader = LeaderId { term: self.term, node_id };
        let change = Change::State(Arc::new(Envelope { stamp_ms: self.shared.now_ms(), command }));
        self.writes.spawn(async move {
            let (responder, answer) = OneshotResponder::new_pair();
            let write = async {
                raft.write(change)
                    .with_leader(leader)
                    .responder(responder)
                    .await
                    .map_err(|e| e.to_string())?;
                let answer = answer.await.map_err(|_| "Raft has ended".to_owned())?;
                answer.map(drop).map_err(|error| error.to_string())
            };
            match tokio::time::timeout(ROUND, write).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(error, "not written"),
                Err(_) => tracing::debug!("not written in time"),
            }
        });
    }

    fn confirm(&mut self, round: Round) {
        let state = self.shared.states.borrow().clone();
        for confirm in self.roll.confirm(round, &state) {
            if let Some(reply) = self.waiting.remove(&confirm.report) {
                let _ = reply.send(confirm);
            }
        }
        // Askers whose time is over are gone.
        self.waiting.retain(|_, reply| !reply.is_closed());
    }

    fn tell(&mut self) {
        if !std::mem::take(&mut self.untold) {
            return;
        }
        let state = self.shared.states.borrow().clone();
        self.players.retain(|host, _| state.hosts.get(host).is_some_and(|host| host.up));
        let players = self.players.values().flatten().map(|(id, players)| (id.clone(), *players)).collect();
        self.shared.liveness.send_replace(Arc::new(Liveness { players }));
    }
}
