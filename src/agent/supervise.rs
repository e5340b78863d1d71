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

use super::book::Book;
use super::chronicle::Chronicle;
use super::evidence::Evidence;
use super::handle::HostRequest;
use super::keeper_link::{KeeperSource, Link, LinkError};
use super::lookup::{self, Lookups};
use super::planner::Unplaced;
use super::probe::{ProbeResult, Prober};
use super::readiness::Readiness;
use super::replica::wall_ms;
use super::reporter::Report;
use super::resolve::Resolver;
use crate::host::{Action, Grounds, Host, Moment, Now, wants};
use crate::http::view::KeeperView;
use crate::keeper::protocol::{CgroupSupport, RunId};
use crate::metrics::Metrics;
use crate::plan::Liveness;
use crate::process_api::socket::{ConnId, SocketEvent, Sockets};
use crate::spec::{HostName, InstanceId};
use crate::state::State;
use crate::systemd::Systemd;

mod answers;
mod effects;
mod hearing;
mod meeting;
mod orders;
mod reporting;
mod watchers;

pub use watchers::{LaunchDone, LaunchOrder, carry_launches};

/// The loop turns at least this often while anything runs: it feeds the watchdog, shows the keeper that the
/// agent lives, and bounds what a stall of the agent can hide.
const TURN: Duration = Duration::from_secs(1);
/// A turn that comes this much too late was a stall.
const STALL: Duration = Duration::from_millis(250);
/// How soon after a stall the keeper has handed over what it took meanwhile.
const HANDED_OVER: Duration = Duration::from_millis(250);
/// Messages of the keeper taken in one turn.
const KEEPER_BATCH: usize = 64;
/// How long what only tells of a start may wait for the next turn.
const LATER: Duration = Duration::from_millis(2);
/// How often a keeper that is not there is looked for.
const RECONNECT: Duration = Duration::from_millis(20);
/// The same for a keeper that this agent has started.
const STARTING: Duration = Duration::from_micros(500);

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
    /// Ports and run numbers.
    pub book: Book,
    /// Accounts, programs, folders.
    pub resolver: Resolver,
    /// Events for people.
    pub chronicle: Chronicle,
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
    /// The other runtime, where probes run.
    pub main_runtime: tokio::runtime::Handle,
    /// The first keeper's powers, for joining.
    pub met: Option<oneshot::Sender<CgroupSupport>>,
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
    link: Option<Link>,
    keeper: Option<KeeperView>,
    cgroups: CgroupSupport,
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
    open: bool,
    met: bool,
    reports_lost: bool,
    /// What is told when the children have started.
    later: VecDeque<Action>,
    later_at: Option<Moment>,
    turned: Moment,
    /// When the present turn is over at the latest.
    expected: Moment,
    pinged: Moment,
    counted: crate::process_api::socket::Counters,
    systemd: Systemd,
}

/// What woke the loop.
enum Wake {
    Keeper(Result<(), LinkError>),
    Sockets,
    Probed(ProbeResult),
    LookedUp(lookup::Answer),
    State,
    Settings,
    Settled(RunId),
    Asked(HostRequest),
    Launched(LaunchDone),
    Gate,
    Time,
    End,
}

impl Supervisor {
    /// A loop that has heard nothing yet. Must be called within its own runtime.
    pub fn new(parts: Parts) -> std::io::Result<Supervisor> {
        let (results, answers) = mpsc::channel(1024);
        let (finds, found) = mpsc::channel(1024);
        let sockets = Sockets::new()?;
        let sockets_ready = Readiness::new(std::os::fd::AsFd::as_fd(&sockets))?;
        let now = moment();
        Ok(Supervisor {
            host: Host::new(parts.book.last_run()),
            grounds: None,
            link: None,
            keeper: None,
            cgroups: CgroupSupport::None,
            listing: meeting::Listing::default(),
            orders: orders::Orders::new(Lookups::new(finds)),
            unclaimed: BTreeSet::new(),
            found,
            child: None,
            connect_at: now,
            start_at: now,
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
            open: false,
            met: false,
            reports_lost: false,
            later: VecDeque::new(),
            later_at: None,
            turned: now,
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
        loop {
            let wait = if more { Duration::ZERO } else { self.wait() };
            self.expected = moment().after(wait);
            let wake = self.wake(wait).await;
            self.catch_up();
            match wake {
                Wake::End => return,
                Wake::Keeper(Ok(())) => self.hear_keeper(),
                Wake::Keeper(Err(error)) => self.lose_keeper(&error),
                Wake::Probed(result) => self.hear_answer(result),
                Wake::LookedUp(answer) => self.hear_look_up(answer),
                Wake::State => self.desire(),
                Wake::Settings => self.take_settings(),
                Wake::Settled(run) => self.carry_out(vec![Action::Acknowledge { run }]),
                Wake::Asked(request) => self.answer(request),
                Wake::Launched(done) => self.launched(done),
                Wake::Gate => {
                    self.open = true;
                    self.desire();
                }
                Wake::Sockets | Wake::Time => {}
            }
            if self.later_at.is_some() {
                // Runs were started: they get the processors, and the rest its turn.
                continue;
            }
            self.notice_stall();
            more = self.hear_sockets();
            self.pass_time();
        }
    }

    async fn wake(&mut self, wait: Duration) -> Wake {
        let Parts { states, requests, shutdown, gate, settings, launched, settled, .. } = &mut self.parts;
        let link = self.link.as_mut();
        tokio::select! {
            biased;
            _ = shutdown.wait_for(|end| *end) => Wake::End,
            heard = keeper_ready(link) => Wake::Keeper(heard),
            _ = self.sockets_ready.readable() => Wake::Sockets,
            Some(answer) = self.found.recv() => Wake::LookedUp(answer),
            Some(result) = self.answers.recv() => Wake::Probed(result),
            Ok(()) = states.changed() => Wake::State,
            Ok(()) = settings.changed() => Wake::Settings,
            Some(run) = settled.recv() => Wake::Settled(run),
            // Closed without a word means that the agent is ending; `shutdown` says so, too.
            Ok(()) = gate, if !self.open => Wake::Gate,
            Some(done) = launched.recv() => Wake::Launched(done),
            Some(request) = requests.recv() => Wake::Asked(request),
            () = tokio::time::sleep(wait) => Wake::Time,
        }
    }

    /// How long nothing is due.
    fn wait(&self) -> Duration {
        let now = moment();
        let mut next = self.turned.after(TURN);
        // Without a keeper nothing can be carried out, so nothing falls due.
        for due in [self.host.next_due(), self.orders.next_due()].into_iter().flatten().filter(|_| self.met) {
            next = next.min(due);
        }
        if self.link.is_none() {
            next = next.min(self.connect_at);
        }
        next = self.later_at.map_or(next, |later| next.min(later));
        next.since(now)
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
        // The keeper may have taken beats meanwhile, which it hands over once it hears of this agent again.
        let actions = self.host.stalled(late + HANDED_OVER, self.now());
        self.carry_out(actions);
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
            self.repeat_lost_reports();
            self.look_up_again(now);
        }
        if !self.met {
            return;
        }
        // What waits on its sockets may show that a silent run is alive.
        for instance in self.host.overdue(now) {
            let events = self.sockets.drain(&instance);
            self.hear_said(events);
        }
        let actions = self.host.tick(self.now());
        self.carry_out(actions);
        self.tend_orders(now);
    }

    /// Compares what is wanted with what is there.
    fn desire(&mut self) {
        if !self.open || !self.met {
            return;
        }
        let state = self.parts.states.borrow_and_update().clone();
        let grounds = Grounds::of(&state);
        // Most changes are this host's own events, after which nothing else is wanted.
        if self.grounds.as_ref() != Some(&grounds) {
            self.grounds = Some(grounds);
            self.parts.book.keep_off(state.spec.fixed_ports().collect());
            let actions = self.host.desire(wants(&state, &self.parts.name), self.now());
            self.carry_out(actions);
        }
        for instance in std::mem::take(&mut self.unclaimed) {
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
    }

    fn now(&self) -> Now {
        Now { at: moment(), wall_ms: wall_ms(), chance: fastrand::u32(..) }
    }
}

async fn keeper_ready(link: Option<&mut Link>) -> Result<(), LinkError> {
    match link {
        Some(link) => link.ready().await,
        None => std::future::pending().await,
    }
}

/// CLOCK_MONOTONIC now.
pub fn moment() -> Moment {
    // Every kernel has this clock; a zero would only make everything due.
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    Moment(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}
