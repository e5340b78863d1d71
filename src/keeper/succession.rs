//! Starting what is to follow a crash without asking.
//!
//! Owns the orders that the agent has given ahead, one for a run at most. The agent has judged; here it is only seen
//! whether its case has come: the main process has crashed by itself, nothing else is left of the run, and nobody has
//! asked anything of it since. An order goes with its run, with whatever the agent asks of that run, and with the agent:
//! whoever comes next judges anew. The new run comes first, and the word of the end two milliseconds later: told at once, the
//! agent's work would take from the processor what the program needs to begin. Called by the loop.

use std::collections::BTreeMap;

use super::cgroup::Cgroup;
use super::descent;
use super::ledger::Place;
use super::link::Link;
use super::process::{self, boottime_ns};
use super::protocol::{End, Reply, RunId, Spawn, SpawnStep};
use super::runs::unwritten;
use super::spawn::{self, Prepared};
use super::{CROWD, Keeper};

/// The orders; see the module.
#[derive(Default)]
pub struct Successors {
    /// By the run that they follow.
    standing: BTreeMap<RunId, Successor>,
    /// Runs that have begun, and the ends that they follow.
    untold: BTreeMap<RunId, Untold>,
    /// One of them, just now.
    just_begun: bool,
}

/// An order, with its strings prepared; in `spawn` they are empty.
pub struct Successor {
    spawn: Box<Spawn>,
    ahead: Ahead,
}

/// What of a spawn can be made ready before its time.
pub struct Ahead {
    pub(super) prepared: Prepared,
    /// For the ledger.
    pub(super) place: Place,
}

/// The end of a run of which the agent has not been told yet.
struct Untold {
    run: RunId,
    end: End,
    at_ns: u64,
    /// Its main process, where that is a zombie still.
    zombie: Option<i32>,
}

impl Successors {
    /// Takes what was to follow the run.
    pub fn take(&mut self, of: RunId) -> Option<Successor> {
        self.standing.remove(&of)
    }

    /// A run has followed another at once since the last call.
    pub fn take_just_begun(&mut self) -> bool {
        std::mem::take(&mut self.just_begun)
    }

    /// Tells what a run follows, if that has not been told yet.
    pub fn tell(&mut self, run: RunId, link: &mut Link) {
        if let Some(Untold { run: before, end, at_ns, zombie }) = self.untold.remove(&run) {
            zombie.and_then(process::take_status);
            let ago_ns = boottime_ns().saturating_sub(at_ns);
            link.send(&Reply::Succeeded { run: before, end, ago_ns, by: run });
        }
    }

    /// The agent is gone. Whoever comes next reads the table.
    pub fn clear(&mut self) {
        *self = Successors::default();
    }
}

impl Keeper {
    /// Makes ready what can be before its time: all but the cgroup, the outputs and the intent.
    pub(super) fn prepare(&self, spawn: &Spawn) -> Result<Ahead, (SpawnStep, i32)> {
        let in_cgroup = self.cgroups.root().is_some();
        let cookie = (!in_cgroup).then(|| descent::cookie(&self.hash, spawn.run, &spawn.instance));
        let prepared = spawn::prepare(spawn, cookie.as_deref(), &self.surroundings)?;
        let place = Place::of(&spawn.instance, &spawn.logs).map_err(unwritten)?;
        Ok(Ahead { prepared, place })
    }

    /// Takes an order for what is to follow a run; one for a run that does not live has come too late.
    pub(super) fn appoint(&mut self, of: RunId, mut spawn: Box<Spawn>) {
        let Some(run) = self.table.get(of).filter(|run| run.lives() && !run.killing) else { return };
        if run.record.instance != spawn.instance || spawn.exclusive {
            let reason = "a successor is of the same instance, and not exclusive";
            self.link.send(&Reply::Refused { run: Some(of), reason: reason.to_owned() });
            return;
        }
        // One that cannot be prepared fails when it is ordered without haste.
        let Ok(ahead) = self.prepare(&spawn) else { return };
        (spawn.args, spawn.env) = Default::default();
        // The end of the run is not to wait for this.
        let _ = self.cgroup_of(of).map(Cgroup::events);
        self.successors.standing.insert(of, Successor { spawn, ahead });
        self.calm_ns = Some(boottime_ns() + super::CALM_NS);
    }

    /// The main process of a run has ended that has a successor: only looks at how, and goes on. To clean up after it takes
    /// the kernel longer than all that follows here, and is done when that is told. False: nothing was done.
    pub(super) fn succeed_at_once(&mut self, pid: i32) -> bool {
        // Who belongs to a run is asked of its cgroup, where a zombie does not count.
        let Some(run) = self.table.of_main(pid).and_then(|id| self.table.get(id)) else { return false };
        let id = run.record.run;
        // For a limit of processes it does.
        let limited = |spawn: &Spawn| spawn.limits.iter().any(|(file, _)| file.starts_with("pids."));
        if !run.in_cgroup || self.successors.standing.get(&id).is_none_or(|order| limited(&order.spawn)) {
            return false;
        }
        let Some(end) = process::end_of_child(pid) else { return false };
        self.main_ended(id, end);
        match self.successors.untold.values_mut().find(|untold| untold.run == id) {
            Some(untold) => {
                untold.zombie = Some(pid);
                self.successors.just_begun = true;
            }
            None => drop(process::take_status(pid)),
        }
        true
    }

    /// Nothing of a run is left: starts what is to follow, or tells that nothing does.
    pub(super) fn succeed(&mut self, id: RunId, end: End, fenced: bool) {
        let killed = self.table.get(id).is_none_or(|run| run.killing);
        let successor = self.successors.take(id).filter(|_| {
            // A crowd is the agent's to hold back, an upgrade waits until nothing is on its way, and the end takes up its
            // slot until the agent knows.
            let free = self.young(boottime_ns()) < CROWD && self.upgrade.is_none() && self.ledger.has_room();
            is_crash(end) && !killed && free
        });
        match successor {
            Some(Successor { spawn, ahead }) => {
                let untold = Untold { run: id, end, at_ns: boottime_ns(), zombie: None };
                self.successors.untold.insert(spawn.run, untold);
                self.spawn_prepared(&spawn, Some(ahead));
            }
            None => self.link.send(&Reply::Gone { run: id, end, fenced }),
        }
    }

    /// Before anything else is told of a run.
    pub(super) fn tell_succession(&mut self, run: RunId) {
        self.successors.tell(run, &mut self.link);
    }
}

/// What a program that is done does not do; and what nobody has seen is no crash.
fn is_crash(end: End) -> bool {
    !matches!(end, End::Code(0) | End::Unknown)
}
