//! Orders for new runs: from the core's word to the message for the keeper.
//!
//! Owns the orders that cannot go yet: one waits for a look-up ([`crate::agent::lookup`]), for the keeper, or for its
//! turn: thousands that are wanted at once are not to keep the loop from all else. What was looked up before goes at
//! once. An order that waits holds up no other; it fails when its look-up takes too long, and is withdrawn when its
//! run is to end.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::{Supervisor, moment};
use crate::agent::book::{NoPort, is_taken};
use crate::agent::keeper_link::LinkError;
use crate::agent::lookup::{Answer, Errand, Found, LookUpError, Lookups};
use crate::agent::replica::wall_ms;
use crate::agent::resolve::{Order, ResolveError, Subject};
use crate::host::instance::Note;
use crate::host::{Action, Happening, Instance, Moment, Ports};
use crate::keeper::fault::{self, Point};
use crate::keeper::protocol::{Account, MAX_NOTE, Request, RunId, SpawnStep};
use crate::metrics::SpawnFault;
use crate::process_api::socket::{Identity, door};
use crate::spec::{HeartbeatMode, InstanceId, Probe, Process, ReadyMode};

mod queue;
mod waiting;

use queue::Queue;
use waiting::{LONGEST_LOOK_UP, Waiting, Waitings};

/// How long one turn of the loop may give orders: between two, what was looked up for the first of them goes to the keeper,
/// which starts those beside the next.
const TURN: Duration = Duration::from_millis(2);
/// Names the command of the run itself among those of its instance.
pub(super) const COMMAND: &str = "command";
/// Names the command of its probe.
pub(super) const PROBE: &str = "command of the probe";

/// Why a run could not even be ordered from the keeper.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    #[error(transparent)]
    Port(#[from] NoPort),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error(transparent)]
    LookUp(#[from] LookUpError),
    #[error("{0} does not come back ({LONGEST_LOOK_UP:?} waited)")]
    Stuck(String),
    #[error("its sockets: {0}")]
    Sockets(#[from] crate::process_api::socket::OpenError),
    #[error("its sockets' folder {0}: {1}")]
    Folder(PathBuf, std::io::Error),
    #[error("{0}")]
    Link(#[from] LinkError),
    #[error("not wanted any more")]
    Unwanted,
}

impl OrderError {
    fn fault(&self) -> SpawnFault {
        match self {
            OrderError::Port(_) => SpawnFault::Port,
            OrderError::Resolve(ResolveError::Template { .. }) => SpawnFault::Template,
            OrderError::LookUp(error) => match error {
                LookUpError::NoUser(_) | LookUpError::NoGroup(_) | LookUpError::Lookup(..) => {
                    SpawnFault::Account
                }
                LookUpError::Policy(_) => SpawnFault::Policy,
                LookUpError::NoProgram(_) => SpawnFault::Step(SpawnStep::Exec),
                LookUpError::Folder { .. } => SpawnFault::Files,
            },
            OrderError::Stuck(_) => SpawnFault::Stuck,
            OrderError::Sockets(_) | OrderError::Folder(..) => SpawnFault::Files,
            // Neither is the run's fault, and both are over with the next order.
            OrderError::Link(_) | OrderError::Unwanted => SpawnFault::Step(SpawnStep::Fork),
        }
    }
}

/// Orders that wait.
pub(super) struct Orders {
    lookups: Lookups,
    /// For a look-up.
    waiting: Waitings,
    /// For the keeper, or for their turn.
    queue: Queue,
    /// When the present turn has given orders for long enough.
    until: Moment,
}

impl Orders {
    pub(super) fn new(lookups: Lookups) -> Self {
        Orders { lookups, waiting: Waitings::default(), queue: Queue::default(), until: Moment(u64::MAX) }
    }

    /// Another turn of the loop begins.
    pub(super) fn begin_turn(&mut self, now: Moment) {
        self.until = now.after(TURN);
    }

    /// Runs that no keeper has heard of yet.
    pub(super) fn unsent(&self) -> BTreeSet<RunId> {
        self.waiting.runs().chain(self.queue.runs()).copied().collect()
    }

    /// No keeper has heard of it yet.
    fn has(&self, run: RunId) -> bool {
        self.waiting.has(run) || self.queue.has(run)
    }

    /// Some could go in the next turn, were the keeper there.
    pub(super) fn has_queue(&self) -> bool {
        !self.queue.is_empty()
    }

    /// When [`Supervisor::tend_orders`] is next needed.
    pub(super) fn next_due(&self) -> Option<Moment> {
        self.waiting.next_due().into_iter().chain(self.lookups.next_due()).min()
    }
}

impl Supervisor {
    pub(super) fn spawn(&mut self, instance: &InstanceId, run: RunId) -> Vec<Action> {
        if self.succession.has_begun(run) {
            self.take_over(instance, run);
            return Vec::new();
        }
        if self.orders.until <= moment() {
            self.queue(instance, run);
            return Vec::new();
        }
        match self.order(instance, run) {
            Ok(()) => Vec::new(),
            Err(error) => self.cannot_spawn(run, &error),
        }
    }

    fn queue(&mut self, instance: &InstanceId, run: RunId) {
        let missed = self.host.instance(instance).is_some_and(Instance::is_missed);
        self.orders.queue.put(run, instance.clone(), missed);
    }

    fn cannot_spawn(&mut self, run: RunId, error: &OrderError) -> Vec<Action> {
        self.parts.metrics.spawn_failed(error.fault());
        let now = self.now();
        self.host.on_run(run, Happening::SpawnFailed(error.to_string()), now)
    }

    fn order(&mut self, instance: &InstanceId, run: RunId) -> Result<(), OrderError> {
        let want = self.host.instance(instance).and_then(|i| i.want.clone()).ok_or(OrderError::Unwanted)?;
        self.parts.book.use_run(run.0);
        let ports = self.ports_for(instance, run, &want.process)?;
        let subject = Subject { instance, want: &want, ports: &ports };
        let errand = self.parts.resolver.errand(subject, &want.process.command, COMMAND)?;
        self.prepare_probe(subject);
        let Some(found) = self.looked_up(&errand) else {
            self.orders.waiting.put(run, instance.clone(), errand, moment());
            return Ok(());
        };
        // Before the table of a new connection is complete, a run that it cannot hold would pass for lost; before the
        // gate is open nobody knows whether it is wanted here.
        if !self.met || !self.open {
            self.queue(instance, run);
            return Ok(());
        }
        // Not before: in a start of hundreds somebody is sent for all of them first.
        let sockets = self.socket_folder(instance)?;
        let note = self.note(instance).unwrap_or_default();
        let order = Order { subject, run, sockets: &sockets, note };
        let spawn = self.parts.resolver.spawn(order, found)?;
        let new = self.open_sockets(instance, spawn.account.as_ref())?;
        // The time in which it must get ready begins here.
        self.host.put_off(&[run].into(), moment());
        if let Some(link) = &mut self.link {
            fault::pass(Point::AgentBeforeOrder);
            let spawn = Request::Spawn(Box::new(spawn));
            match self.sockets.descriptors(instance).filter(|_| new) {
                Some(descriptors) => {
                    link.send_with(&hold(instance), &descriptors, Some(&spawn))?;
                    fault::pass(Point::AgentAfterHold);
                }
                None => link.send(&spawn)?,
            }
            link.flush()?;
            fault::pass(Point::AgentAfterOrder);
        }
        Ok(())
    }

    /// The ports of a new run. One that is moved is told of, since clients may know the old one; so is one that is not
    /// to be moved and that somebody else has, since its program will hardly say so.
    fn ports_for(&mut self, instance: &InstanceId, run: RunId, process: &Process) -> Result<Ports, NoPort> {
        let known = self.host.instance(instance).and_then(|i| i.run.as_ref());
        if !known.is_some_and(|run| run.cold) || process.ports.is_empty() {
            return self.parts.book.assign(instance, &process.ports, false);
        }
        let before = self.parts.book.ports(instance);
        let ports = self.parts.book.assign(instance, &process.ports, true)?;
        for (name, request) in &process.ports {
            let port @ (protocol, number) = ports[name];
            let news = match (request.fixed, before.get(name)) {
                (Some(_), _) if is_taken(port) => Some(("port-taken", number, String::new())),
                (None, Some((held, old))) if *held == protocol && *old != number => {
                    Some(("port-moved", *old, format!("; from now on {name} is {number}")))
                }
                _ => None,
            };
            if let Some((kind, taken, then)) = news {
                let detail = format!("another program has {taken}/{protocol} ({name}){then}");
                tracing::warn!(%instance, "{detail}");
                self.parts.chronicle.port(instance.clone(), run.0, kind, detail, wall_ms());
            }
        }
        Ok(ports)
    }

    /// What is known for an errand; where nothing is, somebody is sent.
    pub(super) fn looked_up(&mut self, errand: &Errand) -> Option<Found> {
        let now = moment();
        let found = self.parts.resolver.found(errand, now);
        if found.is_none() {
            self.orders.lookups.send(errand.clone(), now);
        }
        found
    }

    /// The first question comes soon: what its command needs is looked up beside what the run's own does.
    fn prepare_probe(&mut self, subject: Subject<'_>) {
        let process = &subject.want.process;
        for probe in [
            if let ReadyMode::Probe(probe) = &process.ready.mode { Some(probe) } else { None },
            if let HeartbeatMode::Probe(probe) = &process.heartbeat.mode { Some(probe) } else { None },
        ] {
            if let Some(Probe::Exec { command }) = probe
                && let Ok(errand) = self.parts.resolver.errand(subject, command, PROBE)
            {
                self.looked_up(&errand);
            }
        }
    }

    /// Somebody came back: the orders that waited for it go.
    pub(super) fn hear_look_up(&mut self, Answer { errand, result }: Answer) {
        self.orders.lookups.came_back(&errand, moment());
        if self.parts.resolver.learn(&errand, result.as_ref(), moment()) {
            self.revoke_successors();
        }
        let failed = result.err().map(OrderError::LookUp);
        for (run, Waiting { instance, .. }) in self.orders.waiting.take(&errand) {
            // It may be over by now.
            if self.host.instance_of(run).is_none() {
                continue;
            }
            let actions = match &failed {
                Some(error) => self.cannot_spawn(run, error),
                None => self.spawn(&instance, run),
            };
            self.carry_out(actions);
        }
    }

    /// What waited for the keeper or for its turn goes, as far as this turn allows.
    pub(super) fn send_orders(&mut self) {
        // Whatever has taken up this turn, players are not to wait for another.
        if self.orders.queue.is_urgent() {
            self.orders.begin_turn(moment());
        }
        while self.met && self.open && self.orders.until > moment() {
            let Some((run, instance)) = self.orders.queue.pop() else { break };
            if self.host.instance_of(run).is_some() {
                let actions = self.spawn(&instance, run);
                self.carry_out(actions);
            }
        }
    }

    /// The run is to end and was never ordered. `None`: it was.
    pub(super) fn withdraw(&mut self, run: RunId) -> Option<Vec<Action>> {
        let waiting = self.orders.waiting.remove(run).map(|waiting| waiting.instance);
        waiting.or_else(|| self.orders.queue.remove(run))?;
        let why = "it was stopped before it was started".to_owned();
        let now = self.now();
        Some(self.host.on_run(run, Happening::SpawnFailed(why), now))
    }

    /// What is due: look-ups that take too long, and the next thread for those that nobody has taken.
    pub(super) fn tend_orders(&mut self, now: Moment) {
        self.orders.lookups.tend(now);
        while let Some((run, waiting)) = self.orders.waiting.take_overdue(now) {
            if self.host.instance_of(run).is_some() {
                let step = self.orders.lookups.whereabouts(&waiting.errand);
                let actions = self.cannot_spawn(run, &OrderError::Stuck(step));
                self.carry_out(actions);
            }
        }
    }

    /// Whoever waits to be ordered is not late. Only those that would be judged now are looked for: thousands may wait.
    pub(super) fn put_off_unsent(&mut self, now: Moment) {
        let mut unsent = self.host.late(now);
        unsent.retain(|run| self.orders.has(*run));
        self.host.put_off(&unsent, now);
    }

    /// What was found long ago is looked up again, so that no restart has to wait for it.
    pub(super) fn look_up_again(&mut self, now: Moment) {
        for errand in self.parts.resolver.aged(now) {
            self.orders.lookups.send(errand, now);
        }
    }

    /// Where an instance's sockets lie, or the folder that they have to themselves there.
    pub(super) fn socket_base(&self, instance: &InstanceId) -> PathBuf {
        self.parts.runtime_dir.join("i").join(instance.to_string())
    }

    /// The folder of an instance's sockets; looked for once.
    pub(super) fn socket_folder(&mut self, instance: &InstanceId) -> Result<PathBuf, OrderError> {
        if let Some(folder) = self.folders.get(instance) {
            return Ok(folder.clone());
        }
        let base = self.socket_base(instance);
        let folder = door(&base, &self.identity(None)).map_err(|e| OrderError::Folder(base, e))?;
        self.folders.insert(instance.clone(), folder.clone());
        Ok(folder)
    }

    /// Makes the sockets on the first run, which the keeper is then to hold (true); later runs find them, cleared of what
    /// was said before.
    pub(super) fn open_sockets(
        &mut self,
        instance: &InstanceId,
        account: Option<&Account>,
    ) -> Result<bool, OrderError> {
        let folder = self.socket_folder(instance)?;
        let identity = self.identity(account);
        self.forget_listeners(instance);
        if self.sockets.descriptors(instance).is_some() {
            self.sockets.reset(instance);
            self.sockets.identify(instance, identity);
            return Ok(false);
        }
        self.sockets.open(instance, &folder, identity)?;
        Ok(true)
    }

    /// Who may speak on an instance's sockets until its process is known.
    pub(super) fn identity(&self, account: Option<&Account>) -> Identity {
        let (uid, gid) = match account {
            Some(account) => (account.uid, account.gid),
            None => (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()),
        };
        Identity { uid, gid, main_pid: 0, known_by: self.games.of_ordered() }
    }

    /// What the next agent is to know of a run. Its ports are in it because the book may not be on disk yet; where
    /// they are too many for a note they are in the book alone.
    pub(super) fn note(&self, instance: &InstanceId) -> Option<Vec<u8>> {
        self.encode_note(instance, &self.host.instance(instance)?.note()?)
    }

    pub(super) fn encode_note(&self, instance: &InstanceId, note: &Note) -> Option<Vec<u8>> {
        let encode = |ports: Ports| bincode::serde::encode_to_vec((note, ports), bincode::config::standard());
        let whole = encode(self.parts.book.ports(instance)).ok()?;
        if whole.len() <= MAX_NOTE { Some(whole) } else { encode(Ports::new()).ok() }
    }
}

impl Supervisor {
    /// Gives the keeper the sockets of an instance again: a new keeper has none.
    pub(super) fn hold_again(&mut self, instance: &InstanceId) -> Result<(), LinkError> {
        match (self.link.as_mut(), self.sockets.descriptors(instance)) {
            (Some(link), Some(descriptors)) => link.send_with(&hold(instance), &descriptors, None),
            _ => Ok(()),
        }
    }
}

fn hold(instance: &InstanceId) -> Request {
    Request::Hold { instance: instance.clone() }
}
