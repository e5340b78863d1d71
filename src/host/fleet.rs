//! The whole host: its instances, their runs, and what is due when.
//!
//! Owns the map of instances and the schedule. Every public call takes the time and gives the actions that
//! follow, in order. Called by the supervision loop only.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::instance::{Leaving, Note, Ports, Run};
use super::lifecycle::{Happening, Step};
use super::{Action, Instance, Measure, Moment, Now, Occurrence, Phase, Story, Want, hang::Watch};
use crate::keeper::protocol::{RunId, Stage};
use crate::spec::InstanceId;
use crate::state::{Rest, RunFact};

mod desire;
mod succession;

/// As many instances are looked at in one tick; the others are still due after it.
const AT_ONCE: usize = 1_000;

/// A run in the keeper's table, with what the agent has found out about it.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its instance.
    pub instance: InstanceId,
    /// Its number.
    pub run: RunId,
    /// Its main process.
    pub pid: i32,
    /// How far it is.
    pub stage: Stage,
    /// What the agent before wrote down; `None` when that cannot be read.
    pub note: Option<Note>,
    /// Its ports.
    pub ports: Ports,
    /// When it was spawned, milliseconds since 1970.
    pub spawned_ms: u64,
}

impl Found {
    /// Nothing of it is left.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Gone { .. } | Stage::SpawnFailed { .. })
    }
}

/// All instances of this host.
#[derive(Debug, Default)]
pub struct Host {
    instances: BTreeMap<InstanceId, Instance>,
    runs: BTreeMap<RunId, InstanceId>,
    /// When instances are next looked at; an entry may be too early, never too late.
    schedule: BTreeSet<(Moment, InstanceId)>,
    scheduled: BTreeMap<InstanceId, Moment>,
    last_run: u64,
}

impl Host {
    /// A host whose run numbers go on after `last_run`.
    pub fn new(last_run: u64) -> Self {
        Host { last_run, ..Host::default() }
    }

    /// The last run number used.
    pub fn last_run(&self) -> u64 {
        self.last_run
    }

    /// Every instance, in order.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values()
    }

    /// One instance.
    pub fn instance(&self, id: &InstanceId) -> Option<&Instance> {
        self.instances.get(id)
    }

    /// The instance of a run that is not over.
    pub fn instance_of(&self, run: RunId) -> Option<&Instance> {
        self.instances.get(self.runs.get(&run)?)
    }

    /// Something happened to an instance.
    pub fn on(&mut self, id: &InstanceId, happening: Happening, now: Now) -> Vec<Action> {
        let mut out = Vec::new();
        self.step(id, happening, now, &mut out);
        out
    }

    /// Something happened to a run. An end of a run that is not known (any more) is acknowledged.
    pub fn on_run(&mut self, run: RunId, happening: Happening, now: Now) -> Vec<Action> {
        let current = self.runs.get(&run).cloned();
        match (current, &happening) {
            (Some(id), _) => self.on(&id, happening, now),
            (None, Happening::Gone { .. } | Happening::SpawnFailed(_)) => vec![Action::Acknowledge { run }],
            (None, _) => Vec::new(),
        }
    }

    /// Instances that will count as hung at the next [`Host::tick`] unless they are heard of before.
    pub fn overdue(&self, now: Moment) -> Vec<InstanceId> {
        let due = self.schedule.iter().take_while(|(at, _)| *at <= now);
        let silent = |id: &&InstanceId| self.instances.get(*id).is_some_and(|i| i.is_silent(now));
        due.map(|(_, id)| id).filter(silent).cloned().collect()
    }

    /// Runs of which no process is known, and that will count as not ready at the next [`Host::tick`].
    pub fn late(&self, now: Moment) -> BTreeSet<RunId> {
        let due = self.schedule.iter().take_while(|(at, _)| *at <= now);
        due.filter_map(|(_, id)| self.instances.get(id)?.late_run(now)).collect()
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now) -> Vec<Action> {
        let mut out = Vec::new();
        let due = self.schedule.iter().take_while(|(at, _)| *at <= now.at).map(|(_, id)| id);
        let urgent = |instance: &Instance| instance.is_missed() || instance.is_silent(now.at);
        // Players wait for these: not behind thousands that find no room. Who is looked at twice is not due then.
        let first = due.clone().filter(|id| self.instances.get(*id).is_some_and(urgent));
        let due: Vec<InstanceId> = first.take(AT_ONCE).chain(due.take(AT_ONCE)).cloned().collect();
        for id in due {
            self.unschedule(&id);
            self.step(&id, Happening::Tick, now, &mut out);
        }
        out
    }

    /// When [`Host::tick`] is next needed.
    pub fn next_due(&self) -> Option<Moment> {
        self.schedule.first().map(|(at, _)| *at)
    }

    /// These runs wait for the agent, to be ordered at all: the time in which they must get ready has not begun.
    pub fn put_off(&mut self, unsent: &BTreeSet<RunId>, now: Moment) {
        for run in unsent {
            if let Some(instance) = self.runs.get(run).and_then(|id| self.instances.get_mut(id)) {
                instance.put_off(now);
            }
        }
    }

    /// The agent stood still for this long: no silence counts that it could not have heard.
    pub fn stalled(&mut self, by: Duration, now: Now) -> Vec<Action> {
        let mut out = Vec::new();
        let all: Vec<InstanceId> = self.instances.keys().cloned().collect();
        for id in all {
            self.unschedule(&id);
            self.step(&id, Happening::Stalled(by), now, &mut out);
        }
        out
    }

    /// The keeper's table, after the agent or the keeper began anew: what is there is taken over, what is
    /// missing has ended unseen, unless no keeper was told of it yet. [`Host::desire`] with the same wants follows.
    pub fn meet(
        &mut self,
        table: Vec<Found>,
        wants: &BTreeMap<InstanceId, Want>,
        unsent: &BTreeSet<RunId>,
        now: Now,
    ) -> Vec<Action> {
        let mut out = Vec::new();
        let table = self.meet_successors(table, now, &mut out);
        let listed: BTreeSet<RunId> = table.iter().map(|found| found.run).collect();
        // Before a run that is ordered below, which cannot be listed.
        let held = |run: &RunId| listed.contains(run) || unsent.contains(run);
        self.put_off(unsent, now.at);
        let lost: Vec<RunId> = self.runs.keys().filter(|run| !held(run)).copied().collect();
        // First of all, since what follows the end of one run may be another run of a new number.
        self.last_run = listed.last().map_or(self.last_run, |run| self.last_run.max(run.0));
        // The living first: the end of an older run of theirs must not start another.
        let (over, living): (Vec<Found>, Vec<Found>) = table.into_iter().partition(Found::is_over);
        for found in living.into_iter().chain(over) {
            match self.runs.get(&found.run) {
                Some(_) => self.meet_known(&found, now, &mut out),
                None => self.meet_unknown(found, wants, now, &mut out),
            }
        }
        for run in lost {
            let end = crate::keeper::protocol::End::Unknown;
            out.extend(self.on_run(run, Happening::Gone { end, fenced: false }, now));
        }
        out
    }

    fn meet_known(&mut self, found: &Found, now: Now, out: &mut Vec<Action>) {
        let spawned =
            self.instance_of(found.run).is_some_and(|i| i.run.as_ref().is_some_and(|r| r.pid.is_some()));
        if let Some(pid) = executing(found).filter(|_| !spawned) {
            let happening = Happening::Spawned { pid, ports: found.ports.clone() };
            out.extend(self.on_run(found.run, happening, now));
        }
        if let Some(happening) = stage(found) {
            out.extend(self.on_run(found.run, happening, now));
        }
        // A kill that was ordered may have been lost with the old keeper.
        let killed = |i: &Instance| matches!(i.phase, Phase::Stopping { until: None, .. });
        if self.instance_of(found.run).is_some_and(killed) {
            out.push(Action::Kill { run: found.run });
        }
        // So may a note; a new agent would then wait for a sign that was given long ago.
        let Some(id) = self.runs.get(&found.run).cloned() else { return };
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let note = instance.note();
        if note != found.note {
            if note.map(|note| note.leaving) != found.note.as_ref().map(|note| note.leaving) {
                instance.ask_again(&mut Step { now, last_run: &mut self.last_run, out });
            }
            out.push(Action::Remember { instance: id, run: found.run });
        }
    }

    fn meet_unknown(
        &mut self,
        found: Found,
        wants: &BTreeMap<InstanceId, Want>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let over = found.is_over();
        let held = self.instances.get(&found.instance);
        let taken = held.is_some_and(|instance| instance.run.is_some());
        // Listed again because the acknowledgement was lost.
        let counted = held.is_some_and(|instance| instance.last_run >= Some(found.run));
        // It is acknowledged when the replicated state holds that nothing follows it; the inventory says so.
        let rests = held.and_then(Instance::rest).is_some_and(|rest| rest.run == found.run);
        let want = wants.get(&found.instance);
        if taken || (over && (counted || want.is_none())) {
            // The keeper holds one living run an instance, so an unknown second one is over or must go.
            let run = found.run;
            if over && taken && !counted {
                self.note_end(&found, now);
            }
            match over {
                true if rests => {}
                true => out.push(Action::Acknowledge { run }),
                false => out.push(Action::Kill { run }),
            }
            return;
        }
        let id = found.instance.clone();
        let held_nothing = held.is_none();
        let instance = self.instances.entry(id.clone()).or_insert_with(|| Instance::new(id.clone()));
        instance.process = want.map(|want| want.process.clone());
        // What follows its end, now or before the next `desire`, depends on what is wanted.
        instance.want = want.cloned();
        instance.unheeded = true;
        if held_nothing && let Some(note) = &found.note {
            instance.failures = note.failures.clone();
        }
        let run = adopted(&found, now);
        self.runs.insert(found.run, id.clone());
        let leaving = found.note.as_ref().map_or(Leaving::No, |note| note.leaving);
        instance.adopt(run, leaving, !over, &mut Step { now, last_run: &mut self.last_run, out });
        if matches!(leaving, Leaving::Stopping { until: None, .. }) && !over {
            // With the keeper before this one, it may have been lost.
            out.push(Action::Kill { run: found.run });
        }
        if let Some(happening) = stage(&found) {
            self.step(&id, happening, now, out);
        }
        self.settle(&id);
    }

    /// Every live run, for the directory.
    pub fn inventory(&self) -> BTreeMap<InstanceId, RunFact> {
        let live = self.instances.values().filter_map(|instance| Some((instance, instance.run.as_ref()?)));
        live.filter(|(_, run)| run.pid.is_some())
            .map(|(instance, run)| {
                let ready = instance.phase == Phase::Ready;
                let fact = RunFact { run: run.id, hash: run.hash, ports: run.ports.clone(), ready };
                (instance.id.clone(), fact)
            })
            .collect()
    }

    /// Every instance of which no run follows by itself.
    pub fn rests(&self) -> BTreeMap<InstanceId, Rest> {
        self.instances.values().filter_map(|instance| Some((instance.id.clone(), instance.rest()?))).collect()
    }

    /// A new keeper has killed leftovers of these instances.
    pub fn strays(&self, instances: Vec<InstanceId>) -> Vec<Action> {
        let told = |instance| {
            let occurrence = Occurrence { instance, run: None, story: Story::Strays };
            [Action::Narrate(occurrence), Action::Measure(Measure::Strays)]
        };
        instances.into_iter().flat_map(told).collect()
    }

    fn step(&mut self, id: &InstanceId, happening: Happening, now: Now, out: &mut Vec<Action>) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        let before = instance.run.as_ref().map(|run| run.id);
        instance.step(happening, &mut Step { now, last_run: &mut self.last_run, out });
        let after = instance.run.as_ref().map(|run| run.id);
        if before != after {
            if let Some(run) = before {
                self.runs.remove(&run);
            }
            if let Some(run) = after {
                self.runs.insert(run, id.clone());
            }
        }
        self.settle(id);
    }

    /// Drops an instance that is over, schedules one that is not.
    fn settle(&mut self, id: &InstanceId) {
        let Some(instance) = self.instances.get(id) else { return };
        if instance.want.is_none() && instance.phase == Phase::Stopped {
            self.unschedule(id);
            self.instances.remove(id);
            return;
        }
        let due = instance.next_due();
        let held = self.scheduled.get(id).copied();
        // A later moment needs no work now: the early look finds nothing due and schedules anew.
        if let Some(due) = due.filter(|due| held.is_none_or(|held| *due < held)) {
            self.unschedule(id);
            self.scheduled.insert(id.clone(), due);
            self.schedule.insert((due, id.clone()));
        }
    }

    fn unschedule(&mut self, id: &InstanceId) {
        if let Some(at) = self.scheduled.remove(id) {
            self.schedule.remove(&(at, id.clone()));
        }
    }
}

/// Its main process, if it executes, or has executed, its program: before that the keeper has still to say
/// `Spawned` or `SpawnFailed`.
fn executing(found: &Found) -> Option<i32> {
    let begun = !matches!(found.stage, Stage::Spawning | Stage::SpawnFailed { .. });
    Some(found.pid).filter(|pid| *pid > 0 && begun)
}

fn stage(found: &Found) -> Option<Happening> {
    match found.stage {
        Stage::Spawning | Stage::Running => None,
        Stage::Exited(end) => Some(Happening::Exited(end)),
        Stage::Gone { end, fenced } => Some(Happening::Gone { end, fenced }),
        Stage::SpawnFailed { step, errno } => {
            Some(Happening::SpawnFailed(crate::keeper::protocol::describe_failure(step, errno)))
        }
    }
}

fn adopted(found: &Found, now: Now) -> Run {
    let mut watch = Watch::default();
    let note = found.note.clone();
    if let Some(note) = &note {
        watch.own_timeout = note.own_timeout_ms.map(Duration::from_millis);
        watch.last = note.armed.then_some(now.at);
    }
    let ready = note.as_ref().is_some_and(|note| note.ready);
    let expected = note.as_ref().is_some_and(|note| note.native);
    Run {
        id: found.run,
        pid: executing(found),
        spawned: now.at,
        spawned_ms: found.spawned_ms,
        hash: note.as_ref().map(|note| note.hash).unwrap_or_default(),
        stop: note
            .map(|note| note.stop)
            .unwrap_or(crate::spec::Stop { signal: 15, timeout: Duration::from_secs(10) }),
        ports: found.ports.clone(),
        cold: false,
        early: false,
        ready: ready.then_some(now.at),
        ready_ms: ready.then_some(now.wall_ms),
        watch,
        native: false,
        expected,
        followed: false,
        unarmed_told: false,
        announced: None,
        exited: None,
    }
}
