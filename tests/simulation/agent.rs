//! An agent: the real host core and fence, its link to the keeper, and what it hears and tells.
//!
//! Owns what dies with it. What it decides, the cores decide; this carries their actions out, as
//! `agent/supervise` does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bigbrother::cluster::raft::Outcome;
use bigbrother::host::fence::Duty;
use bigbrother::host::{Action, Fence, Grounds, Happening, Host, Now, wants};
use bigbrother::keeper::protocol::RunId;
use bigbrother::plan::liveness::Confirm;
use bigbrother::spec::InstanceId;
use bigbrother::state::{Event, EventKind, State};

use crate::faults::Fault;
use crate::keeper::Request;
use crate::reporter::Reporter;
use crate::session::Up;
use crate::site::Machine;

/// A turn that comes this much too late was a stall, milliseconds.
const STALL: u64 = 300;

/// What is wanted was last compared with what is there: by this state, with this right to exclusive runs.
type Compared = (Grounds, bool, u64);

pub struct Agent {
    pub fleet: Host,
    pub fence: Fence,
    /// The state that it goes by.
    pub view: Arc<State>,
    pub reporter: Reporter,
    /// The life of the keeper that it has met.
    keeper: Option<u64>,
    /// Orders for the keeper that is to come.
    unsent: Vec<(InstanceId, RunId)>,
    compared: Option<Compared>,
    /// From then on it goes by the state on its disk, when it has not heard of a newer one.
    opens: u64,
    open: bool,
    acted: u64,
}

impl Agent {
    pub fn new(machine: &mut Machine, view: Arc<State>, life: u64, opens: u64) -> Agent {
        let fleet = Host::new(machine.reserve_runs());
        let fence = Fence::new(machine.name.clone(), machine.keeper.fence_ns);
        let reporter = Reporter::new(machine.name.clone(), life);
        let (keeper, unsent, compared) = (None, Vec::new(), None);
        Agent { fleet, fence, view, reporter, keeper, unsent, compared, opens, open: false, acted: 0 }
    }

    pub fn hear_state(&mut self, state: &Arc<State>) {
        if state.index > self.view.index {
            self.view = state.clone();
        }
    }

    /// Its loop, once round. Gives what goes towards the primary.
    pub fn act(&mut self, machine: &mut Machine, now: u64, fault: Fault, rng: &mut fastrand::Rng) -> Vec<Up> {
        let time = machine.time(now, rng);
        let late = now - std::mem::replace(&mut self.acted, now).clamp(1, now);
        if late >= STALL && late < now {
            let actions = self.fleet.stalled(Duration::from_millis(late), time);
            self.obey(machine, actions, now, time);
        }
        let mut ups = Vec::new();
        for duty in self.fence.tick(machine.boot(now)) {
            match duty {
                Duty::Report(report) => ups.push(Up::Report(report)),
                Duty::Kill if fault != Fault::FenceIgnored => self.kill_exclusive(machine, now),
                _ => {}
            }
        }
        self.meet_keeper(machine, now, time);
        if self.keeper.is_some() {
            for (run, happening) in machine.keeper.replies() {
                let actions = self.fleet.on_run(run, happening, time);
                self.obey(machine, actions, now, time);
            }
            self.desire(machine, now, time, fault);
            let actions = self.fleet.tick(time);
            self.obey(machine, actions, now, time);
            self.give_back(machine, fault);
        }
        let settled = self.reporter.settled();
        self.obey(machine, settled, now, time);
        let stamp_ms = machine.wall_ms(now);
        ups.extend(self.reporter.speak(&self.view, &self.fleet, &machine.facts, now, stamp_ms, fault));
        ups
    }

    /// Its word counts for the keeper as well, in case that one is late.
    fn kill_exclusive(&self, machine: &mut Machine, now: u64) {
        let exclusive = machine.keeper.living().filter(|(_, held)| held.exclusive);
        let runs: Vec<RunId> = exclusive.map(|(run, _)| run).collect();
        runs.into_iter().for_each(|run| self.request(machine, Request::Kill { run }, now));
    }

    fn meet_keeper(&mut self, machine: &mut Machine, now: u64, time: Now) {
        if !machine.keeper.works(now) {
            self.keeper = None;
        }
        if self.keeper == Some(machine.keeper.life) || !machine.keeper.works(now) {
            return;
        }
        self.keeper = Some(machine.keeper.life);
        // The table tells what they tell.
        machine.keeper.replies();
        let mut wanted = wants(&self.view, &machine.name);
        self.fence.trim(&mut wanted, &self.view, &self.fleet, machine.boot(now));
        let unsent = self.unsent.iter().map(|(_, run)| *run).collect();
        let actions = self.fleet.meet(machine.keeper.table(), &wanted, &unsent, time);
        if let Some(deadline) = self.fence.deadline().filter(|held| held.0 > machine.keeper.fence_ns) {
            self.request(machine, Request::Fence { deadline_ns: deadline.0 }, now);
        }
        let orders = std::mem::take(&mut self.unsent);
        self.obey(machine, actions, now, time);
        for (instance, run) in orders {
            self.spawn(machine, instance, run, now);
        }
        self.reporter.list_anew();
        self.compared = None;
    }

    fn desire(&mut self, machine: &mut Machine, now: u64, time: Now, fault: Fault) {
        let known = self.view.hosts.get(&machine.name).map(|host| host.incarnation);
        self.open |=
            self.reporter.is_listed() && known == Some(self.fence.incarnation()) || now >= self.opens;
        let holds = self.fence.holds(machine.boot(now));
        let compared = (Grounds::of(&self.view), holds, self.fence.incarnation());
        if !self.open || self.compared.as_ref() == Some(&compared) {
            return;
        }
        self.compared = Some(compared);
        let mut wanted = wants(&self.view, &machine.name);
        match fault {
            Fault::StaleStart => wanted.retain(|_, want| holds || !want.process.exclusive()),
            _ => self.fence.trim(&mut wanted, &self.view, &self.fleet, machine.boot(now)),
        }
        if fault == Fault::OldRunsGoOn {
            let living = self.fleet.instances().filter(|i| i.run.is_some());
            let kept = living.filter_map(|i| Some((i.id.clone(), i.want.clone()?)));
            kept.for_each(|(id, want)| _ = wanted.entry(id).or_insert(want));
        }
        let actions = self.fleet.desire(wanted, time);
        self.obey(machine, actions, now, time);
    }

    fn give_back(&mut self, machine: &Machine, fault: Fault) {
        if fault == Fault::NoRelease || self.compared.is_none() {
            return;
        }
        let mut releases = self.fence.releases(&self.view, &self.fleet);
        if fault == Fault::EagerRelease {
            let mine = self.view.claims.iter().filter(|(_, claim)| claim.host == machine.name);
            let placed = |id| self.view.placements.get(id).is_some_and(|held| held.host == machine.name);
            releases = mine
                .filter(|(id, _)| !placed(id))
                .map(|(id, claim)| Event {
                    instance: id.clone(),
                    run: RunId(0),
                    kind: EventKind::Released { generation: claim.generation },
                })
                .collect();
        }
        releases.into_iter().for_each(|event| self.reporter.tell_once(event));
    }

    fn obey(&mut self, machine: &mut Machine, actions: Vec<Action>, now: u64, time: Now) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Spawn { instance, run } => self.spawn(machine, instance, run, now),
                Action::Kill { run } | Action::Ask { run, .. } if self.withdraws(run) => {
                    let why = Happening::SpawnFailed("it was stopped before it was started".to_owned());
                    actions.extend(self.fleet.on_run(run, why, time));
                }
                Action::Kill { run } => self.request(machine, Request::Kill { run }, now),
                Action::Ask { run, .. } => self.request(machine, Request::Ask { run }, now),
                Action::Acknowledge { run } => self.request(machine, Request::Acknowledge { run }, now),
                Action::Remember { instance, run } => {
                    if let Some(note) = self.fleet.instance(&instance).and_then(|known| known.note()) {
                        self.request(machine, Request::Note { run, note }, now);
                    }
                }
                Action::Tell { instance, run, kind } => self.reporter.tell(Event { instance, run, kind }),
                _ => {}
            }
        }
    }

    pub fn confirmed(&mut self, machine: &mut Machine, mut confirm: Confirm, now: u64, fault: Fault) {
        if fault == Fault::HoldTooLong {
            confirm.hold += Duration::from_secs(5);
        }
        if let Some(Duty::Tell { deadline_ns }) = self.fence.confirmed(&confirm, machine.boot(now)) {
            self.request(machine, Request::Fence { deadline_ns }, now);
        }
    }

    pub fn answered(&mut self, number: u64, outcome: Outcome) {
        let given = self.reporter.answered(number, outcome);
        if let Some(incarnation) = given.filter(|given| *given > self.fence.incarnation()) {
            self.fence.joined(incarnation);
        }
    }

    /// To the keeper that it has met; another hears what it must at the meeting.
    fn request(&self, machine: &mut Machine, request: Request, now: u64) {
        if self.keeper == Some(machine.keeper.life) {
            machine.keeper.request(request, now);
        }
    }

    fn withdraws(&mut self, run: RunId) -> bool {
        let before = self.unsent.len();
        self.unsent.retain(|(_, held)| *held != run);
        self.unsent.len() < before
    }

    fn spawn(&mut self, machine: &mut Machine, instance: InstanceId, run: RunId, now: u64) {
        machine.use_run(run.0);
        if self.keeper != Some(machine.keeper.life) || !machine.keeper.works(now) {
            self.unsent.push((instance, run));
            return;
        }
        let Some(known) = self.fleet.instance(&instance) else { return };
        let exclusive = known.process.as_ref().is_some_and(|process| process.exclusive());
        let note = known.note();
        machine.keeper.request(Request::Spawn { run, instance, exclusive, note }, now);
    }
}
