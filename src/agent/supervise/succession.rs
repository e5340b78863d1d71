//! What is ordered ahead: the run that the keeper starts at once when another one crashes.
//!
//! Owns which of them have begun before the core has judged, and what they may have said by then. Who may have one is the
//! core's to say ([`crate::host::Host::appoint`]), and so is what follows an end: it is told of the end as of every other,
//! and a run that has begun and does not follow from its judgement is ended here. One that was revoked too late is ended
//! first: until nothing of it is left, the run before counts as not yet over, so that there are never two.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::orders::COMMAND;
use super::{Supervisor, moment};
use crate::agent::resolve::{Order, Subject};
use crate::host::fleet::Found;
use crate::host::{Happening, Moment, Now};
use crate::keeper::fault::{self, Point};
use crate::keeper::process;
use crate::keeper::protocol::{End, Request, RunId, Spawn, Stage};
use crate::process_api::socket::SocketEvent;
use crate::spec::InstanceId;

/// Runs that have become ready are given one this often.
const PAUSE: Duration = Duration::from_secs(1);
/// As many in one go, and the next ones so much later.
const AT_ONCE: usize = 64;
const PIECES: Duration = Duration::from_millis(20);
/// As much of what was said by who knows which run waits for the keeper's word.
const MOST_HELD: usize = 4_096;

/// See the module.
#[derive(Default)]
pub(super) struct Succession {
    /// Runs that have begun, while the core judges the ends of those before.
    begun: BTreeSet<RunId>,
    /// Runs that were revoked too late and are being ended; and the run before, with its end, which is judged then.
    unwanted: BTreeMap<RunId, (RunId, End)>,
    /// Said by a run that nobody has told of yet, or by what is left of the one before.
    held: Vec<SocketEvent>,
    /// When it is looked again whether a run has none.
    look_at: Moment,
    /// Up to here that was done; `None`: everywhere.
    seen: Option<InstanceId>,
}

impl Succession {
    /// The keeper has started it already.
    pub(super) fn has_begun(&self, run: RunId) -> bool {
        self.begun.contains(&run)
    }

    /// When those that are left are to be given theirs.
    pub(super) fn next_due(&self) -> Option<Moment> {
        self.seen.as_ref().map(|_| self.look_at)
    }

    /// The keeper is lost: the next one's table says what there is. What was said stays said.
    pub(super) fn forget(&mut self) {
        self.begun.clear();
        self.unwanted.clear();
    }
}

/// Ordering ahead.
impl Supervisor {
    /// Orders ahead what has none: a piece of it. Of another keeper than this version's nobody knows whether it understands
    /// that, and what else of the packet it would throw away.
    pub(super) fn appoint_successors(&mut self, at: Moment) {
        if at < self.succession.look_at || !self.open {
            return;
        }
        let own = self.keeper.as_ref().is_some_and(|keeper| keeper.version == env!("CARGO_PKG_VERSION"));
        if !own {
            return;
        }
        let (behind, now) = (self.succession.seen.take(), self.now());
        let without = self.host.without_successor(behind.as_ref(), now).take(AT_ONCE);
        let without: Vec<InstanceId> = without.map(|instance| instance.id.clone()).collect();
        for id in &without {
            self.appoint(id, now);
        }
        self.succession.seen = without.into_iter().nth(AT_ONCE - 1);
        self.succession.look_at = at.after(if self.succession.seen.is_some() { PIECES } else { PAUSE });
    }

    fn appoint(&mut self, id: &InstanceId, now: Now) {
        // The number that it gets; one whose order must wait for something uses up none.
        let Some(order) = self.order_ahead(id, RunId(self.host.last_run() + 1)) else { return };
        let Some((run, successor)) = self.host.appoint(id, now) else { return };
        self.parts.book.use_run(successor.0);
        self.send(&Request::Appoint { run, successor: Box::new(Spawn { run: successor, ..order }) });
    }

    /// The order for the next run, as it would be given now; `None` when that would have to wait for something.
    fn order_ahead(&mut self, id: &InstanceId, run: RunId) -> Option<Spawn> {
        let instance = self.host.instance(id)?;
        let (want, note) = (instance.want.clone()?, self.encode_note(id, &instance.next_note()?)?);
        let (ports, sockets) = (self.parts.book.ports(id), self.socket_folder(id).ok()?);
        let subject = Subject { instance: id, want: &want, ports: &ports };
        let errand = self.parts.resolver.errand(subject, &want.process.command, COMMAND).ok()?;
        let found = self.looked_up(&errand)?;
        self.parts.resolver.spawn(Order { subject, run, sockets: &sockets, note }, found).ok()
    }

    /// Something has changed that is in their orders.
    pub(super) fn revoke_successors(&mut self) {
        let revoked = self.host.revoke_all();
        self.carry_out(revoked);
    }
}

/// Hearing what came of it.
impl Supervisor {
    /// A run has crashed, and its successor has begun.
    pub(super) fn hear_succeeded(&mut self, run: RunId, end: End, ago: Duration, by: RunId) {
        let instance = self.host.instance_of(run).filter(|instance| instance.successor == Some(by));
        let Some(instance) = instance.map(|instance| instance.id.clone()) else {
            self.succession.unwanted.insert(by, (run, end));
            self.send(&Request::Kill { run: by });
            return;
        };
        fault::pass(Point::AgentAfterGone);
        self.parts.metrics.succeeded();
        // By as much earlier as the keeper has told later.
        let ended = Now { at: moment().before(ago), ..self.now() };
        self.succession.begun.insert(by);
        let actions = self.host.on_run(run, Happening::Gone { end, fenced: false }, ended);
        self.carry_out(actions);
        self.succession.begun.clear();
        if self.host.instance_of(by).is_none() {
            self.send(&Request::Kill { run: by });
        }
        for event in self.take_held(&instance) {
            self.hear_event(event);
        }
    }

    /// Nothing is left of a run, or it could not be started. One that nobody wanted makes way for what is.
    pub(super) fn hear_over(&mut self, run: RunId, happening: Happening) {
        if let Some(instance) = self.host.instance_of(run).map(|instance| instance.id.clone()) {
            drop(self.take_held(&instance));
        }
        self.happens(run, happening);
        if let Some((before, end)) = self.succession.unwanted.remove(&run) {
            self.hear_over(before, Happening::Gone { end, fenced: false });
        }
    }

    /// The core wants the run that has begun: what its order does not do by itself.
    pub(super) fn take_over(&mut self, instance: &InstanceId, run: RunId) {
        self.forget_listeners(instance);
        let held = self.take_held(instance);
        let said = self.sockets.pass_on(instance, held);
        self.succession.held.extend(said);
        // The failure of the run before is not in the note that it began with. Together with the acknowledgement of that end.
        if let Some(note) = self.note(instance) {
            self.send(&Request::Note { run, note });
        }
    }

    /// A keeper's table: its runs have begun, whoever has judged. Of a run whose end is listed beside an unwanted one that
    /// lives, the end waits until that is ended; gives those, and takes them out of the table.
    pub(super) fn meet_begun(&mut self, table: &mut Vec<Found>) -> BTreeSet<RunId> {
        self.succession.begun = table.iter().map(|found| found.run).collect();
        let unwanted = table.iter().filter(|found| !found.is_over()).filter_map(|found| {
            let instance = self.host.instance(&found.instance)?;
            let before = instance.run.as_ref()?.id;
            let strange = before != found.run && instance.successor != Some(found.run);
            let listed = table.iter().find(|listed| listed.run == before).filter(|_| strange)?;
            let Stage::Gone { end, .. } = listed.stage else { return None };
            Some((found.run, (before, end)))
        });
        self.succession.unwanted = unwanted.collect();
        let waiting: BTreeSet<RunId> = self.succession.unwanted.values().map(|(before, _)| *before).collect();
        table.retain(|found| !waiting.contains(&found.run));
        waiting
    }

    /// The table was met: from now on the core's orders are to be carried out, and what was said by whom is known.
    pub(super) fn met_begun(&mut self) {
        self.succession.begun.clear();
        for event in std::mem::take(&mut self.succession.held) {
            if event.is_of_the_living() {
                self.hear_event(event);
            }
        }
    }

    /// Hears what was read from the sockets. A run may have begun of which the keeper has not told yet: what may be its
    /// word waits for that.
    pub(super) fn hear_said(&mut self, events: impl IntoIterator<Item = SocketEvent>) {
        for event in events {
            match self.may_be_of_the_next(&event) {
                false => self.hear_event(event),
                true if self.succession.held.len() < MOST_HELD => self.succession.held.push(event),
                true => {}
            }
        }
    }

    /// As long as the main process lives there is no other run.
    fn may_be_of_the_next(&self, event: &SocketEvent) -> bool {
        let Some(instance) = self.host.instance(&event.instance) else { return false };
        let main = instance.successor.and(instance.run.as_ref()).and_then(|run| run.pid);
        main.is_some_and(|main| main != event.pid && !process::lives(main))
    }

    fn take_held(&mut self, instance: &InstanceId) -> Vec<SocketEvent> {
        let held = &mut self.succession.held;
        held.extract_if(.., |event| *event.instance == *instance).collect()
    }
}
