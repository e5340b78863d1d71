//! The supervision loop: the one place where this host's instances are watched and acted upon.
//!
//! Owns the host core, the keeper link, the process sockets, the prober, the book of ports and the
//! chronicle; runs on a thread of its own. It turns what it hears into happenings (`meeting`, `hearing`), carries
//! out the actions that follow (`effects`) and answers questions (`answers`). What is to be done is
//! decided in [`crate::host`], never here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, oneshot, watch};

use super::attendance::Attended;
use super::book::Book;
use super::chronicle::Chronicle;
use super::evidence::Evidence;
use super::handle::HostRequest;
use super::keeper_link::{Early, KeeperSource, Link};
use super::lookup::{self, Lookups};
use super::planner::Unplaced;
use super::probe::{ProbeResult, Prober};
use super::readiness::Readiness;
use super::replica::wall_ms;
use super::reporter::Report;
use super::resolve::Resolver;
use crate::cluster::statuses::Statuses;
use crate::host::{Action, Grounds, Host, Moment, Now, wants};
use crate::http::Audit;
use crate::http::view::KeeperView;
use crate::keeper::protocol::{AGENT_SILENCE_MS, CgroupSupport, RunId};
use crate::metrics::Metrics;
use crate::plan::Liveness;
use crate::process_api::socket::{ConnId, Games, SocketEvent, Sockets};
use crate::spec::{HostName, InstanceId};
use crate::state::State;
use crate::systemd::Systemd;

mod answers;
mod bell;
mod effects;
mod fencing;
mod hearing;
mod meeting;
mod orders;
mod reporting;
mod saying;
mod succession;
mod wake;
mod watchers;

use bell::Bell;
use wake::Wake;
pub use watchers::{LaunchDone, LaunchOrder, carry_launches};

/// The loop turns at least this often while anything runs: it feeds the watchdog, shows the keeper that the
/// agent lives, and bounds what a stall of the agent can hide.
const TURN: Duration = Duration::from_secs(1);
/// A turn that comes this much too late was a stall.
const STALL: Duration = Duration::from_millis(250);
/// How soon after a long stall the keeper has handed over what it took meanwhile.
const HANDED_OVER: Duration = Duration::from_millis(250);
/// Messages of the keeper taken in one turn.
const KEEPER_BATCH: usize = 64;
/// How long what only tells of a start may wait for the next turn.
const LATER: Duration = Duration::from_millis(2);
/// How long starts may put off the rest of the turns: deadlines, sockets, the watchdog.
const PUT_OFF: Duration = Duration::from_millis(20);
/// How often a keeper that is not there is looked for.
const RECONNECT: Duration = Duration::from_millis(20);
/// The same for a keeper that this agent has started.
const STARTING: Duration = Duration::from_micros(500);
/// One that was started less long ago is still beginning: it is waited for, and if it ends no other is started.
const BEGUN: Duration = Duration::from_millis(200);

/// What the loop is given.
pub struct Parts {
    /// This host.
    pub name: HostName,
    /// Sockets and ledger.
    pub runtime_dir: PathBuf,
    /// Logs, ports and state.
    pub data_dir: PathBuf,
    /// Where the keeper comes from.
    pub keeper: KeeperSource,
    /// One that was started just now.
    pub early: Early,
    /// Ports and run numbers.
    pub book: Book,
    /// Accounts, programs, folders.
    pub resolver: Resolver,
    /// Events for people.
    pub chronicle: Chronicle,
    /// To the primary and back.
    pub attended: Attended,
    /// Where measurements go.
    pub metrics: Arc<Metrics>,
    /// To the replicated state.
    pub reports: mpsc::Sender<Report>,
    /// Last runs of instances of which the replicated state holds that they rest.
    pub settled: mpsc::Receiver<RunId>,
    /// From the replicated state.
    pub states: watch::Receiver<Arc<State>>,
    /// Instances that fit nowhere.
    pub unplaced: watch::Receiver<Unplaced>,
    /// What runs say about themselves.
    pub statuses: Statuses,
    /// Soft facts for the planner.
    pub liveness: watch::Sender<Arc<Liveness>>,
    /// The difference between file and cluster, if any.
    pub drift: watch::Receiver<Option<String>>,
    /// Questions of the API.
    pub requests: mpsc::Receiver<HostRequest>,
    /// Reloads are done elsewhere.
    pub reloads: mpsc::Sender<oneshot::Sender<Result<String, String>>>,
    /// The address and labels changed by a reload.
    pub settings: watch::Receiver<Arc<crate::config::HostSettings>>,
    /// Launches asked for over process sockets.
    pub launches: mpsc::Sender<LaunchOrder>,
    /// Answers to those.
    pub launched: mpsc::Receiver<LaunchDone>,
    /// Where it is written down what may not be launched.
    pub audit: Audit,
    /// The other runtime, where probes run.
    pub main_runtime: tokio::runtime::Handle,
    /// The powers of the keeper that was met last, for joining and for what this host says of itself.
    pub met: watch::Sender<Option<CgroupSupport>>,
    /// Opens when the state holds a plan for this host: nothing is started or stopped before.
    pub gate: oneshot::Receiver<()>,
    /// True: end.
    pub shutdown: watch::Receiver<bool>,
}

/// The loop's own state.
pub struct Supervisor {
    parts: Parts,
    host: Host,
    /// Of what is wanted; `None`: it is to be compared with what is there.
    grounds: Option<Grounds>,
    bell: Bell,
    link: Option<Link>,
    keeper: Option<KeeperView>,
    cgroups: CgroupSupport,
    games: Games,
    guard: fencing::Guard,
    listing: meeting::Listing,
    orders: orders::Orders,
    /// Instances whose sockets the keeper held when it was met: those that are not here any more are let go.
    unclaimed: BTreeSet<InstanceId>,
    found: mpsc::Receiver<lookup::Answer>,
    child: Option<Child>,
    connect_at: Moment,
    start_at: Moment,
    sockets: Sockets,
    sockets_ready: Readiness,
    /// Where the sockets of instances lie.
    folders: BTreeMap<InstanceId, PathBuf>,
    events: Vec<SocketEvent>,
    watchers: BTreeMap<(InstanceId, ConnId), watchers::Watches>,
    greeted: BTreeMap<InstanceId, BTreeSet<ConnId>>,
    prober: Prober,
    answers: mpsc::Receiver<ProbeResult>,
    evidence: Evidence,
    /// Runs that answer on the host's address and not on loopback.
    far: BTreeSet<RunId>,
    saying: saying::Saying,
    succession: succession::Succession,
    open: bool,
    met: bool,
    reports_lost: bool,
    /// What is told when the children have started.
    later: VecDeque<Action>,
    later_at: Option<Moment>,
    turned: Moment,
    /// When those who are not the keeper were heard in any case.
    attended: Moment,
    /// When the present turn is over at the latest.
    expected: Moment,
    pinged: Moment,
    counted: crate::process_api::socket::Counters,
    systemd: Systemd,
}

impl Supervisor {
    /// A loop that has heard nothing yet. Must be called within its own runtime.
    pub fn new(mut parts: Parts) -> std::io::Result<Supervisor> {
        let (results, answers) = mpsc::channel(1024);
        let (finds, found) = mpsc::channel(1024);
        let sockets = Sockets::new()?;
        let sockets_ready = Readiness::new(std::os::fd::AsFd::as_fd(&sockets))?;
        let now = moment();
        let child = parts.early.take();
        Ok(Supervisor {
            host: Host::new(parts.book.last_run()),
            grounds: None,
            bell: Bell::new()?,
            link: None,
            keeper: None,
            cgroups: CgroupSupport::None,
            games: Games::None,
            guard: fencing::Guard::default(),
            listing: meeting::Listing::default(),
            orders: orders::Orders::new(Lookups::new(finds)),
            unclaimed: BTreeSet::new(),
            found,
            connect_at: now,
            start_at: if child.is_some() { now.after(BEGUN) } else { now },
            child,
            sockets,
            sockets_ready,
            folders: BTreeMap::new(),
            events: Vec::new(),
            watchers: BTreeMap::new(),
            greeted: BTreeMap::new(),
            prober: Prober::new(parts.main_runtime.clone(), results),
            answers,
            evidence: Evidence::default(),
            far: BTreeSet::new(),
            saying: saying::Saying::default(),
            succession: Default::default(),
            open: false,
            met: false,
            reports_lost: false,
            later: VecDeque::new(),
            later_at: None,
            turned: now,
            attended: now,
            expected: now,
            pinged: now,
            counted: Default::default(),
            systemd: Systemd::from_environment(),
            parts,
        })
    }

    /// Supervises until the end. The games stay.
    pub async fn run(mut self) {
        let mut more = false;
        let mut put_off_since = None;
        loop {
            self.expected = if more { moment() } else { self.next_due() };
            let wake = self.wake(self.expected).await;
            self.orders.begin_turn(moment());
            self.catch_up();
            match wake {
                Wake::End => {
                    // What was put off is not lost; a keeper that does not read hears it from the next agent.
                    let _ = self.link.as_mut().map(Link::flush);
                    return;
                }
                Wake::Keeper(Ok(())) => self.hear_keeper(),
                Wake::Keeper(Err(error)) => self.lose_keeper(&error),
                Wake::Probed(result) => self.hear_answer(result),
                Wake::LookedUp(answer) => {
                    self.hear_look_up(answer);
                    for _ in 0..KEEPER_BATCH {
                        let Ok(answer) = self.found.try_recv() else { break };
                        self.hear_look_up(answer);
                    }
                }
                Wake::State => self.desire(),
                Wake::Settings => self.take_settings(),
                Wake::Joined => self.joined(),
                Wake::Confirmed(confirm) => self.hear_confirm(&confirm),
                Wake::Settled(run) => self.carry_out(vec![Action::Acknowledge { run }]),
                Wake::Asked(request) => self.answer(request),
                Wake::Launched(done) => self.launched(done),
                Wake::Gate => self.open_gate(),
                Wake::Sockets | Wake::Time => {}
            }
            self.attend_others();
            self.go_on();
            // Runs were started: they get the processors, and the rest its turn. Not for ever: where programs
            // end at once and are started again, there is a start in every turn.
            let now = moment();
            if self.later_at.is_some() && now.since(*put_off_since.get_or_insert(now)) < PUT_OFF {
                continue;
            }
            put_off_since = None;
            self.notice_stall();
            more = self.hear_sockets();
            self.pass_time();
            more |= self.is_behind();
            self.parts.book.publish();
            if more {
                // Else the runtime would hardly look whether the keeper says something while sockets are flooded.
                tokio::task::yield_now().await;
            }
        }
    }

    /// When this thread itself stood still, silence of the processes proves nothing.
    fn notice_stall(&mut self) {
        let now = moment();
        let late = now.since(self.expected);
        self.turned = now;
        if late < STALL {
            return;
        }
        tracing::warn!(?late, "the agent stood still; heartbeat deadlines move by as much");
        self.parts.metrics.stalled(late);
        // A keeper that missed this agent has taken the beats meanwhile, and hands them over once it hears of it.
        let missed = now.since(self.pinged) >= Duration::from_millis(AGENT_SILENCE_MS);
        let by = if missed { late + HANDED_OVER } else { late };
        let actions = self.host.stalled(by, self.now());
        self.carry_out(actions);
        // Who has ended meanwhile is not to be judged as one that does not end.
        self.hear_keeper();
    }

    fn pass_time(&mut self) {
        let now = moment();
        if self.link.is_none() && self.connect_at <= now {
            self.connect(now);
        }
        if now.since(self.pinged) >= TURN {
            self.pinged = now;
            self.send(&crate::keeper::protocol::Request::Ping);
            if self.systemd.beat_ns.is_some() {
                self.systemd.tell("WATCHDOG=1");
            }
            self.count_socket_faults();
            self.tell_planner();
            self.strike_out_ended();
            self.repeat_lost_reports();
            self.own_keeper_lives();
            self.look_up_again(now);
            self.tend_chronicle();
        }
        self.tell_status(now);
        self.stand_guard();
        if !self.met {
            return;
        }
        self.put_off_unsent(now);
        // What waits on its sockets may show that a silent run is alive.
        for instance in self.host.overdue(now) {
            self.hear_waiting(&instance);
        }
        let actions = self.host.tick(Now { at: now, ..self.now() });
        self.carry_out(actions);
        self.tend_orders(now);
        self.appoint_successors(now);
    }

    /// Compares what is wanted with what is there.
    fn desire(&mut self) {
        if !self.open || !self.met {
            return;
        }
        let state = self.parts.states.borrow_and_update().clone();
        self.parts.chronicle.follow(&state, wall_ms());
        let grounds = Grounds::of(&state);
        // Most changes are this host's own events, after which nothing else is wanted.
        if self.grounds.as_ref() != Some(&grounds) {
            self.parts.book.keep_off(state.spec.fixed_ports().collect());
            let wants = self.may_run(wants(&state, &self.parts.name), &state);
            let spared = self.spared(&wants, &state);
            let (actions, more) = self.host.desire_but(wants, &spared, self.now());
            self.grounds = (!more).then_some(grounds);
            self.carry_out(actions);
        }
        // Before all that is wanted is in the fleet, one that is not there may be yet to come.
        let unclaimed = self.grounds.is_some().then(|| std::mem::take(&mut self.unclaimed));
        for instance in unclaimed.into_iter().flatten() {
            if self.host.instance(&instance).is_none() {
                self.carry_out(vec![Action::Release { instance }]);
            }
        }
        self.tell_watchers(&state);
    }

    fn take_settings(&mut self) {
        let settings = self.parts.settings.borrow_and_update().clone();
        self.parts.book.set_range(settings.ports);
        self.parts.resolver.set((*settings).clone());
        self.revoke_successors();
    }

    fn now(&self) -> Now {
        Now { at: moment(), wall_ms: wall_ms(), chance: fastrand::u32(..) }
    }
}

/// CLOCK_MONOTONIC now.
pub fn moment() -> Moment {
    // Every kernel has this clock; a zero would only make everything due.
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    Moment(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}
