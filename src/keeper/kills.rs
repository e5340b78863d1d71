//! Ending runs: signals, kills that are repeated until nothing is left, and the fence.
//!
//! Owns no state of its own, as `runs`. That nothing is left is found out there.

use std::os::fd::AsFd;

use super::descent::{self, Marks};
use super::fault::{self, Point};
use super::process::{self, boottime_ns};
use super::protocol::{RunId, Stage};
use super::{Keeper, Repeat};

/// The first and the longest pause between looks at a kill that has to be repeated.
const PAUSE_NS: (u64, u64) = (2_000_000, 200_000_000);

impl Keeper {
    /// Every live process of a run without a cgroup.
    pub(super) fn members(&self, id: RunId) -> Vec<i32> {
        let Some(run) = self.table.get(id) else { return Vec::new() };
        let cookie = descent::cookie(&self.hash, id, &run.record.instance);
        let alive = matches!(run.record.stage, Stage::Spawning | Stage::Running);
        let main = if alive { run.record.pid } else { 0 };
        descent::members(&Marks { main, group: run.group, cookie: &cookie })
    }

    /// Ends a run and all that it started.
    pub(super) fn kill(&mut self, id: RunId, fenced: bool) {
        let Some(run) = self.table.get(id).filter(|run| run.lives()) else { return };
        let slot = run.slot;
        if fenced {
            self.ledger.slot(slot).set_fenced();
        }
        self.table.killing(id, fenced);
        fault::pass(Point::BeforeKill);
        self.kill_once(id);
        fault::pass(Point::AfterKill);
    }

    fn kill_once(&mut self, id: RunId) {
        let Some(run) = self.table.get(id) else { return };
        if run.in_cgroup {
            let instance = run.record.instance.clone();
            let cgroup = self.instances.get_mut(&instance).and_then(|i| i.cgroup.as_mut());
            match cgroup.map(super::cgroup::Cgroup::kill) {
                Some(Ok(true)) => return,
                Some(Ok(false)) => {}
                Some(Err(error)) => {
                    tracing::error!(%error, run = %id, "cannot kill a cgroup; killing the main process");
                    self.signal_main(id, libc::SIGKILL);
                }
                None => self.signal_main(id, libc::SIGKILL),
            }
        } else {
            for pid in self.members(id) {
                // SAFETY: kill touches no memory.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
        self.repeat_soon(id);
    }

    pub(super) fn repeat_soon(&mut self, id: RunId) {
        let repeat = self.repeats.entry(id).or_insert(Repeat { at_ns: 0, pause_ns: PAUSE_NS.0 });
        repeat.at_ns = boottime_ns() + repeat.pause_ns;
        repeat.pause_ns = (repeat.pause_ns * 2).min(PAUSE_NS.1);
    }

    /// Repeats the kills that one step cannot do.
    pub(super) fn repeat_kills(&mut self, now: u64) {
        let due: Vec<RunId> =
            self.repeats.iter().filter(|(_, r)| now >= r.at_ns).map(|(id, _)| *id).collect();
        for id in due {
            self.settle(id);
            match self.table.get(id) {
                Some(run) if run.lives() => self.kill_once(id),
                _ => drop(self.repeats.remove(&id)),
            }
            // `kill_once` asked for the next round, unless the kernel has killed the cgroup in one step.
            if self.repeats.get(&id).is_some_and(|r| r.at_ns <= now) {
                self.repeat_soon(id);
            }
        }
    }

    /// Sends a signal to the main process, if it lives.
    pub(super) fn signal_main(&self, id: RunId, signal: i32) {
        let Some(run) = self.table.get(id) else { return };
        if !matches!(run.record.stage, Stage::Spawning | Stage::Running) {
            return;
        }
        match self.strangers.get(&id) {
            Some(pidfd) => drop(process::signal(pidfd.as_fd(), signal)),
            // Our child, not reaped: the number is its.
            // SAFETY: kill touches no memory.
            None => drop(unsafe { libc::kill(run.record.pid, signal) }),
        }
    }

    /// Kills the exclusive runs once the deadline has passed.
    pub(super) fn fence(&mut self, now: u64) {
        let deadline = self.ledger.fence_ns();
        if self.fence_fired || deadline == 0 || now < deadline {
            return;
        }
        self.fence_fired = true;
        let exclusive: Vec<RunId> =
            self.table.living().filter(|r| r.record.exclusive).map(|r| r.record.run).collect();
        if !exclusive.is_empty() {
            tracing::warn!(
                runs = exclusive.len(),
                "the fence deadline has passed: killing the exclusive runs"
            );
        }
        for id in exclusive {
            self.kill(id, true);
        }
    }
}
