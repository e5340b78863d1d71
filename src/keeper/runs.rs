//! The life of a run in the loop: forked, executing, ended, killed, gone.
//!
//! Owns no state of its own: it moves the table, the ledger and the watches together, and tells the agent.
//! The rule of the ledger: it is written before the agent is told, so that what was told is never forgotten.

use std::os::fd::AsFd;

use nix::sys::epoll::EpollFlags;

use super::cgroup::Cgroup;
use super::descent;
use super::fault::{self, Point};
use super::ledger::{Intent, LedgerError, Phase, Place, Slot};
use super::poll::Source;
use super::process::{self, boottime_ns};
use super::protocol::{End, LogTarget, Reply, RunId, RunRecord, Spawn, SpawnStep, Stage};
use super::spawn::{self, Outputs};
use super::succession::Ahead;
use super::table::Run;
use super::{Keeper, Pending, logs};

/// A run that ends this soon after its spawn may not have executed a single instruction of its program.
const BIRTH_NS: u64 = 50_000_000;

type Failure = (SpawnStep, i32);

pub(super) fn unwritten(error: LedgerError) -> Failure {
    (SpawnStep::Ledger, error.errno())
}

fn errno(step: SpawnStep) -> impl Fn(std::io::Error) -> Failure {
    move |e| (step, e.raw_os_error().unwrap_or(libc::EIO))
}

impl Keeper {
    /// Starts a run, or tells why not.
    pub(super) fn spawn(&mut self, spawn: &Spawn) {
        self.spawn_prepared(spawn, None);
    }

    /// The same; what can be prepared ahead may be there already.
    pub(super) fn spawn_prepared(&mut self, spawn: &Spawn, ahead: Option<Ahead>) {
        if let Err((step, errno)) = self.try_spawn(spawn, ahead) {
            self.tell_succession(spawn.run);
            self.link.send(&Reply::SpawnFailed { run: spawn.run, step, errno });
        }
    }

    fn try_spawn(&mut self, spawn: &Spawn, ahead: Option<Ahead>) -> Result<(), Failure> {
        self.refuse_busy(spawn)?;
        self.enter_cgroup(spawn)?;
        let outputs = self.outputs(spawn)?;
        let in_cgroup = self.cgroups.root().is_some();
        let Ahead { prepared, place } = ahead.map_or_else(|| self.prepare(spawn), Ok)?;
        let spawned_ns = boottime_ns();
        let slot = self.intend(spawn, &place, in_cgroup, spawned_ns)?;
        fault::pass(Point::AfterIntent);
        self.calm_ns = Some(spawned_ns + super::CALM_NS);
        let words = self.ledger.slot(slot).child_words();
        let cgroup = self.instances.get(&spawn.instance).and_then(|i| i.cgroup.as_ref());
        match spawn::fork(spawn, prepared, outputs, words, cgroup, &mut self.surroundings) {
            Ok((pid, birth)) => {
                fault::pass(Point::AfterClone);
                self.table.forked(spawn.run, pid);
                let look_ns = spawned_ns + super::LOOK_NS;
                let pending = Pending { pid, birth, forked_ns: spawned_ns, look_ns, stuck: false };
                self.pending.insert(spawn.run, pending);
            }
            Err((step, errno)) => {
                // Somebody may have removed it: the next run gets a fresh one.
                let cgroup = self.instances.get_mut(&spawn.instance).and_then(|i| i.cgroup.as_mut());
                if let Some(cgroup) = cgroup.filter(|_| step == SpawnStep::Cgroup) {
                    cgroup.spend();
                }
                self.ledger.slot(slot).set_phase(Phase::SpawnFailed(step, errno));
                if let Some(reply) = self.table.unforked(spawn.run, step, errno) {
                    self.tell_succession(spawn.run);
                    self.link.send(&reply);
                }
            }
        }
        Ok(())
    }

    /// Never two runs of an instance, none after the fence, none while the keeper ends.
    fn refuse_busy(&self, spawn: &Spawn) -> Result<(), Failure> {
        let busy = |errno| Err((SpawnStep::Busy, errno));
        if self.table.knows(spawn.run) {
            return busy(libc::EEXIST);
        }
        if self.table.live(&spawn.instance).is_some() {
            return busy(libc::EBUSY);
        }
        if self.shutdown {
            return busy(libc::ESHUTDOWN);
        }
        let fence = self.ledger.fence_ns();
        if spawn.exclusive && fence != 0 && boottime_ns() >= fence {
            return busy(libc::ETIME);
        }
        Ok(())
    }

    /// An empty cgroup with the limits asked for.
    fn enter_cgroup(&mut self, spawn: &Spawn) -> Result<(), Failure> {
        let instance = self.instances.make(&spawn.instance);
        if instance.cgroup.is_none() {
            instance.cgroup = self.cgroups.open(&spawn.instance).map_err(errno(SpawnStep::Cgroup))?;
        }
        let failed = match &mut instance.cgroup {
            Some(cgroup) => {
                // One that is not spent was left empty by its last run.
                if cgroup.is_spent() && cgroup.populated().map_err(errno(SpawnStep::Cgroup))? {
                    let _ = cgroup.kill();
                    return Err((SpawnStep::Busy, libc::EBUSY));
                }
                cgroup.renew().map_err(errno(SpawnStep::Cgroup))?;
                cgroup.limit(&spawn.limits)
            }
            None => spawn.limits.iter().map(|(file, _)| (file.clone(), libc::EOPNOTSUPP)).collect(),
        };
        match failed.first() {
            Some((_, errno)) if spawn.limits_required => return Err((SpawnStep::Limit, *errno)),
            Some(_) => {
                self.tell_succession(spawn.run);
                let files = failed.into_iter().map(|(file, _)| file).collect();
                self.link.send(&Reply::Unenforced { run: spawn.run, files });
            }
            None => {}
        }
        Ok(())
    }

    fn outputs(&mut self, spawn: &Spawn) -> Result<Outputs, Failure> {
        let failed = errno(SpawnStep::Logs);
        match &spawn.logs {
            LogTarget::Null => Ok(Outputs::Null),
            LogTarget::Journald => {
                logs::connect_journal(&spawn.instance).map(Outputs::Stream).map_err(failed)
            }
            LogTarget::Files { .. } => {
                let owner = spawn.account.as_ref().map(|a| (a.uid, a.gid));
                let fifos = &mut self.instances.make(&spawn.instance).fifos;
                fifos.ready(&mut self.copier, &spawn.logs, owner).map_err(&failed)?;
                let (out, err) = fifos.paths().map_err(failed)?;
                Ok(Outputs::Fifos(out, err))
            }
        }
    }

    /// Writes the intent into ledger and table.
    fn intend(
        &mut self,
        spawn: &Spawn,
        place: &Place,
        in_cgroup: bool,
        spawned_ns: u64,
    ) -> Result<usize, Failure> {
        let Spawn { run, exclusive, ref note, .. } = *spawn;
        let keeper_pid = self.surroundings.keeper_pid;
        let intent = Intent { run, exclusive, in_cgroup, place, note, keeper_pid, intent_ns: spawned_ns };
        let slot = self.ledger.enter(&intent).map_err(unwritten)?;
        let (instance, note) = (spawn.instance.clone(), note.clone());
        let stage = Stage::Spawning;
        let record = RunRecord { run, instance, pid: 0, spawned_ns, stage, exclusive, note };
        self.table.enter(Run::new(record, slot, in_cgroup));
        Ok(slot)
    }

    /// Which children execute their programs by now? Tells of those whose exec does not come back.
    pub(super) fn look_at_births(&mut self, now: u64) {
        // One that has ended without that stays until it is reaped, so that no upgrade comes before its end is known.
        let over = |(id, pending): &(&RunId, &Pending)| {
            let slot = self.table.get(**id).map(|run| self.ledger.slot(run.slot));
            pending.birth.is_over(pending.pid) && slot.is_some_and(Slot::came_through)
        };
        let over: Vec<RunId> = self.pending.iter().filter(over).map(|(id, _)| *id).collect();
        for id in over {
            self.born(id);
        }
        for (id, pending) in &mut self.pending {
            let age = now.saturating_sub(pending.forked_ns);
            if now >= pending.look_ns {
                self.successors.tell(*id, &mut self.link);
                pending.look_ns = now + (age / 4).clamp(super::LOOK_NS, 125 * super::LOOK_NS);
            }
            if !pending.stuck && age >= super::STUCK_NS {
                pending.stuck = true;
                self.link.send(&Reply::SpawnStuck { run: *id });
            }
        }
    }

    /// A child executes its program, or has ended on the way to it.
    fn born(&mut self, id: RunId) {
        let Some(pending) = self.pending.remove(&id) else { return };
        self.tell_succession(id);
        self.surroundings.born(pending.birth);
        self.tell_birth(id);
    }

    /// What the ledger says of a child that has left for its program, into the table and to the agent.
    pub(super) fn tell_birth(&mut self, id: RunId) {
        let Some(slot) = self.table.get(id).map(|run| run.slot) else { return };
        if let Some((step, errno)) = self.ledger.slot(slot).failure() {
            self.table.exec_failed(id, step, errno);
            return;
        }
        fault::pass(Point::BeforeSpawned);
        if let Some(reply) = self.table.executing(id) {
            self.link.send(&reply);
        }
    }

    /// SIGCHLD names a child. Only that one is looked at now, and the agent told: a look at all children
    /// takes longer than the rest of a restart. Signals coalesce, so that look follows with the next signal, or
    /// soon.
    pub(super) fn on_child(&mut self, pid: i32) {
        if self.sweep_ns.is_some() {
            self.reap();
            return;
        }
        self.sweep_ns = Some(boottime_ns() + super::SWEEP_NS);
        if self.succeed_at_once(pid) {
            return;
        }
        if let Some((pid, status)) = process::take_status(pid) {
            self.reaped(pid, status);
        }
    }

    /// Looks at all children.
    pub(super) fn reap(&mut self) {
        self.sweep_ns = None;
        self.take_ends();
        // An orphan's end may have been the last of a run.
        for run in self.leftovers.clone() {
            self.settle(run);
        }
    }

    /// Takes the exit statuses of all children that have ended, then tells of them: no zombie of a run is left
    /// when it is told to be gone.
    fn take_ends(&mut self) {
        let ended: Vec<(i32, i32)> = std::iter::from_fn(|| process::take_status(-1)).collect();
        for (pid, status) in ended {
            self.reaped(pid, status);
        }
    }

    /// A child's exit status was taken. Others than main processes are orphans of some run that came to us;
    /// taking their status is all they need.
    fn reaped(&mut self, pid: i32, status: i32) {
        if let Some(run) = self.table.of_main(pid) {
            fault::pass(Point::AfterReap);
            self.main_ended(run, process::end_of_status(status));
        }
    }

    /// The main process of a run that is not our child has ended.
    pub(super) fn on_stranger_end(&mut self, id: RunId) {
        if let Some(child) = self.unborn.get_mut(&id) {
            child.look_ns = 0;
            self.look_at_unborn(boottime_ns());
        }
        let (Some(pidfd), Some(run)) = (self.strangers.get(&id), self.table.get(id)) else { return };
        let pid = run.record.pid;
        // A followed process may have become our child, as an orphan: then only we can take its status.
        let end = match process::take_status(pid) {
            Some((_, status)) => process::end_of_status(status),
            None => process::end_of_stranger(pidfd.as_fd(), pid),
        };
        self.main_ended(id, end);
    }

    /// The main process of a run has ended.
    pub(super) fn main_ended(&mut self, id: RunId, end: End) {
        // First whether it came to its program: an exec that failed must not look like a program that ended.
        self.born(id);
        self.strangers.remove(&id);
        if !self.table.ended(id, end) {
            return;
        }
        let Some(slot) = self.table.get(id).map(|run| run.slot) else { return };
        self.calm_ns = Some(boottime_ns() + super::CALM_NS);
        self.ledger.slot(slot).set_phase(Phase::Exited(end));
        self.distrust(id, end);
        if self.is_empty(id) {
            // A kill may have ended others with it, which are our children now.
            if self.table.get(id).is_some_and(|run| run.killing) {
                self.take_ends();
            }
            self.gone(id);
            return;
        }
        if let Some(reply) = self.table.exited_reply(id) {
            self.hand_over_last_words(id);
            self.link.send(&reply);
        }
        self.leftovers.insert(id);
        self.watch_cgroup(id);
        self.kill(id, false);
        self.settle(id);
    }

    /// A run that SIGKILL ends at birth may be the work of its cgroup (see `Cgroup`), which somebody else has
    /// killed as a whole: the next run gets a fresh one.
    fn distrust(&mut self, id: RunId, end: End) {
        let Some(run) = self.table.get(id) else { return };
        let young = boottime_ns().saturating_sub(run.record.spawned_ns) < BIRTH_NS;
        let killed = matches!(end, End::Signal { signal: libc::SIGKILL, .. });
        if !young || !killed {
            return;
        }
        let instance = self.instances.get_mut(&run.record.instance);
        if let Some(cgroup) = instance.and_then(|instance| instance.cgroup.as_mut()) {
            cgroup.spend();
        }
    }

    /// Begins to watch the run's cgroup; whoever calls looks at `populated` afterwards.
    fn watch_cgroup(&mut self, id: RunId) {
        let Some(cgroup) = self.cgroup_of(id) else { return };
        let watch = |events| self.poll.add(events, Source::Cgroup(id), EpollFlags::EPOLLPRI);
        if let Err(error) = cgroup.events().and_then(watch) {
            tracing::warn!(%error, run = %id, "cannot watch a cgroup; looking again and again instead");
            self.repeat_soon(id);
        }
    }

    pub(super) fn cgroup_of(&self, id: RunId) -> Option<&Cgroup> {
        let run = self.table.get(id).filter(|run| run.in_cgroup)?;
        self.instances.get(&run.record.instance)?.cgroup.as_ref()
    }

    /// If nothing is left of a run whose main process has ended, it is gone.
    pub(super) fn settle(&mut self, id: RunId) {
        if self.leftovers.contains(&id) && self.is_empty(id) {
            self.take_ends();
            self.gone(id);
        }
    }

    /// No process of the run is left, its main process having ended.
    fn is_empty(&mut self, id: RunId) -> bool {
        let Some(run) = self.table.get(id) else { return false };
        if run.in_cgroup {
            let cgroup = self.instances.get(&run.record.instance).and_then(|i| i.cgroup.as_ref());
            return match cgroup.map(Cgroup::populated) {
                Some(Ok(populated)) => !populated,
                Some(Err(error)) => {
                    tracing::warn!(%error, run = %id, "cannot read cgroup.events");
                    self.repeat_soon(id);
                    false
                }
                None => true,
            };
        }
        // What is left of a run is our child, or descends from one.
        (run.child && !descent::has_orphans(|pid| self.table.of_main(pid).is_some()))
            || self.members(id).is_empty()
    }

    fn gone(&mut self, id: RunId) {
        fault::pass(Point::BeforeGone);
        self.hand_over_last_words(id);
        if self.leftovers.remove(&id)
            && let Some(Ok(events)) = self.cgroup_of(id).map(Cgroup::events)
        {
            self.poll.remove(events);
        }
        self.repeats.remove(&id);
        let (Some(slot), Some(reply)) = (self.table.get(id).map(|r| r.slot), self.table.emptied(id)) else {
            return;
        };
        self.ledger.slot(slot).set_phase(match reply {
            Reply::SpawnFailed { step, errno, .. } => Phase::SpawnFailed(step, errno),
            Reply::Gone { end, .. } => Phase::Gone(end),
            _ => return,
        });
        fault::pass(Point::AfterGone);
        match reply {
            Reply::Gone { run, end, fenced } => self.succeed(run, end, fenced),
            failed => self.link.send(&failed),
        }
    }
}
