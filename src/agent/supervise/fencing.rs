//! The fence at work: reports go out, deadlines go to the keeper, and what may not run here any more ends.
//!
//! Owns the fence core ([`crate::host::fence`] decides) and what it has set off. A host alone has no deadline: nobody
//! else could run what runs there. The keeper kills by itself when the deadline passes; this loop does so
//! a moment later, for a keeper that could not or stands still.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Supervisor, moment};
use crate::agent::reporter::Report;
use crate::agent::strike;
use crate::host::fence::{Boot, Duty};
use crate::host::{Fence, Instance, Moment, Want};
use crate::keeper::process::boottime_ns;
use crate::keeper::protocol::{Request, RunId};
use crate::plan::liveness::{Attendance, Confirm};
use crate::spec::InstanceId;
use crate::state::{EventKind, State};

/// How long the keeper has for what the deadline asks of it.
const BACKSTOP: Duration = Duration::from_millis(200);
/// How soon a claim that is still in the state is given back again.
const REPEAT: Duration = Duration::from_secs(2);
/// How many reports leave out the players when these are the same.
const QUIET: u64 = 8;

/// Why what is exclusive does not run on a host that is cut off.
const FENCED: &str =
    "fenced: no primary confirms this host, so another one may run it; it starts when one does again";
/// Why nothing new is started on one that has just come back.
const UNSEEN: &str = "waits until the cluster's state shows that this host is back";

/// What is guarded.
#[derive(Default)]
pub(super) struct Guard {
    /// `None`: no keeper was met yet, or this host is alone.
    fence: Option<Fence>,
    /// Exclusive runs might live when it was last looked.
    held: bool,
    /// When those that the keeper has left are killed.
    kill_at: Option<Moment>,
    /// Claims that were given back: which generation, and when.
    released: BTreeMap<InstanceId, (u64, Moment)>,
    /// An instance is over since it was last looked for claims.
    look: bool,
    /// What is placed here and may not run, and why.
    withheld: BTreeMap<InstanceId, &'static str>,
    /// The players that were told last.
    told: BTreeMap<InstanceId, u32>,
}

impl Supervisor {
    /// A keeper was met. Its deadline may come from the agent before this one; one that has lost its own learns it.
    pub(super) fn meet_guard(&mut self, keeper_ns: u64) {
        let name = self.parts.name.clone();
        if self.is_alone() {
            self.guard.fence.get_or_insert_with(|| Fence::new(name, 0));
            if keeper_ns != 0 {
                self.send(&Request::Fence { deadline_ns: 0 });
            }
            return self.take_incarnation();
        }
        let fence = self.guard.fence.get_or_insert_with(|| Fence::new(name, keeper_ns));
        if let Some(deadline) = fence.deadline().filter(|deadline| deadline.0 != keeper_ns) {
            self.send(&Request::Fence { deadline_ns: deadline.0 });
        }
        self.take_incarnation();
    }

    /// Nobody else could run what runs here.
    fn is_alone(&self) -> bool {
        self.parts.attended.reports.is_none()
    }

    /// This host has joined (again): the state is to know what runs in this life of it.
    pub(super) fn joined(&mut self) {
        self.take_incarnation();
        if self.met {
            self.report_inventory();
        }
        self.grounds = None;
        self.desire();
    }

    fn take_incarnation(&mut self) {
        let incarnation = *self.parts.attended.incarnations.borrow_and_update();
        if let Some(fence) = self.guard.fence.as_mut().filter(|fence| fence.incarnation() != incarnation) {
            fence.joined(incarnation);
        }
    }

    pub(super) fn hear_confirm(&mut self, confirm: &Confirm) {
        let Some(fence) = &mut self.guard.fence else { return };
        // Before the spawn that it allows, on the same socket.
        if let Some(Duty::Tell { deadline_ns }) = fence.confirmed(confirm, Boot(boottime_ns())) {
            self.send(&Request::Fence { deadline_ns });
            self.guard.kill_at = None;
            self.stand_guard();
        }
    }

    /// When [`Supervisor::stand_guard`] is next needed.
    pub(super) fn guard_due(&self, now: Moment) -> Option<Moment> {
        if self.is_alone() {
            return None;
        }
        let boot = boottime_ns();
        let fence = self.guard.fence.as_ref().and_then(Fence::next_due);
        let fence = fence.map(|due| now.after(Duration::from_nanos(due.0.saturating_sub(boot))));
        fence.into_iter().chain(self.guard.kill_at).min()
    }

    /// Does what the fence asks for now.
    pub(super) fn stand_guard(&mut self) {
        if !self.is_alone() {
            self.heed_fence();
        }
        if std::mem::take(&mut self.guard.look) {
            self.give_back();
        }
    }

    fn heed_fence(&mut self) {
        let Some(fence) = &mut self.guard.fence else { return };
        let now = Boot(boottime_ns());
        let duties = fence.tick(now);
        let holds = fence.holds(now);
        for duty in duties {
            match duty {
                Duty::Report(report) => {
                    let players = self.players(report.seq);
                    // One that does not fit is as one that was lost on the way.
                    let to = self.parts.attended.reports.as_ref();
                    to.map(|to| to.try_send(Attendance { report, players }));
                }
                Duty::Tell { deadline_ns } => self.send(&Request::Fence { deadline_ns }),
                Duty::Kill => self.guard.kill_at = Some(moment().after(BACKSTOP)),
            }
        }
        if std::mem::replace(&mut self.guard.held, holds) != holds {
            if !holds {
                tracing::warn!("no primary has confirmed this host in time: its exclusive runs end");
            }
            self.grounds = None;
            self.desire();
        }
        if self.guard.kill_at.is_some_and(|at| at <= moment()) {
            self.guard.kill_at = None;
            self.kill_exclusive();
        }
    }

    /// Those that outlived the deadline: by the keeper, and, since it may stand still, from here, too.
    fn kill_exclusive(&mut self) {
        let exclusive = self
            .host
            .instances()
            .filter(|instance| instance.process.as_ref().is_some_and(|process| process.exclusive()));
        let lives = |instance: &Instance| {
            let run = instance.run.as_ref()?;
            Some((instance.id.clone(), run.id, run.pid))
        };
        let runs: Vec<(InstanceId, RunId, Option<i32>)> = exclusive.filter_map(lives).collect();
        for (instance, run, pid) in runs {
            tracing::warn!(%instance, %run, "it outlived the fence's deadline");
            self.send(&Request::Kill { run });
            if let Some(pid) = pid {
                self.parts.main_runtime.spawn_blocking(move || strike::run(&instance, pid));
            }
        }
    }

    /// What may run here of what is wanted.
    pub(super) fn may_run(
        &mut self,
        mut wants: BTreeMap<InstanceId, Want>,
        state: &State,
    ) -> BTreeMap<InstanceId, Want> {
        self.guard.look = true;
        self.guard.withheld.clear();
        let Some(fence) = self.guard.fence.as_ref().filter(|_| !self.is_alone()) else { return wants };
        let now = Boot(boottime_ns());
        let why = |want: &Want| if want.process.exclusive() && !fence.holds(now) { FENCED } else { UNSEEN };
        let mut withheld: BTreeMap<InstanceId, &str> =
            wants.iter().map(|(id, want)| (id.clone(), why(want))).collect();
        if !fence.is_planned_in(state) {
            fence.hold_back(&mut wants, state, &self.host);
            let held = self.host.instances().filter_map(|i| Some((i.id.clone(), i.want.clone()?)));
            for (id, want) in held.filter(|(_, want)| !want.process.exclusive()) {
                wants.entry(id).or_insert(want);
            }
        }
        fence.trim(&mut wants, state, &self.host, now);
        withheld.retain(|id, _| !wants.contains_key(id));
        self.guard.withheld = withheld;
        wants
    }

    /// What is placed here and may not run here now, with the reason, for people.
    pub(super) fn withheld(&self) -> impl Iterator<Item = (&InstanceId, &str)> {
        self.guard.withheld.iter().map(|(id, why)| (id, *why))
    }

    /// Of what runs here, that of which nobody knows yet whether it is wanted: the last plan does not know of this life
    /// of the host.
    pub(super) fn spared(&self, wants: &BTreeMap<InstanceId, Want>, state: &State) -> BTreeSet<InstanceId> {
        let planned = |fence: &Fence| self.is_alone() || fence.is_planned_in(state);
        if self.guard.fence.as_ref().is_none_or(planned) {
            return BTreeSet::new();
        }
        let exclusive =
            |instance: &Instance| instance.process.as_ref().is_some_and(|process| process.exclusive());
        let unknown = self.host.instances().filter(|instance| {
            instance.run.is_some() && !exclusive(instance) && !wants.contains_key(&instance.id)
        });
        unknown.map(|instance| instance.id.clone()).collect()
    }

    /// An instance is over: perhaps a claim on it can be given back.
    pub(super) fn look_for_claims(&mut self) {
        self.guard.look = true;
    }

    /// Gives back the claims on what neither runs here nor is to run here.
    fn give_back(&mut self) {
        let (Some(fence), true) = (&self.guard.fence, self.open && self.met) else { return };
        let state = self.parts.states.borrow().clone();
        let now = moment();
        let events = fence.releases(&state, &self.host);
        self.guard.released.retain(|id, _| events.iter().any(|event| event.instance == *id));
        for event in events {
            let EventKind::Released { generation } = event.kind else { continue };
            let said = self.guard.released.get(&event.instance);
            if said.is_some_and(|(known, at)| *known == generation && now.since(*at) < REPEAT) {
                continue;
            }
            self.guard.released.insert(event.instance.clone(), (generation, now));
            self.report(Report::Event(event));
        }
        // One that the state still shows is said again.
        self.guard.look = !self.guard.released.is_empty();
    }

    /// The players of this host's runs; `None`: as told before.
    fn players(&mut self, seq: u64) -> Option<BTreeMap<InstanceId, u32>> {
        let players = self.counted_players();
        let same = players == self.guard.told && seq % QUIET != 1;
        (!same).then(|| {
            self.guard.told.clone_from(&players);
            players
        })
    }
}
