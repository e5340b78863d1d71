//! Taking over from a keeper that was killed, or from the program before an upgrade.
//!
//! Owns nothing: it turns the ledger into a table. What is certain (the process of the record, by the
//! identity rule of [`super::process`]) is adopted and watched; everything else that lies in our cgroups or
//! carries our mark is killed and confirmed gone before the agent is told anything. Called once, before the
//! socket is there; it may wait, up to five seconds.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::epoll::EpollFlags;

use super::Keeper;
use super::ledger::{Entry, Phase};
use super::poll::Source;
use super::process::{self, Stat, boottime_ns, started_within, tick_ns};
use super::protocol::{End, Reply, RunId, RunRecord, Stage};
use super::table::Run;
use crate::spec::InstanceId;

/// How long to wait for the killed to be gone; what is not (a process in D state) is waited for by the loop.
const PATIENCE_NS: u64 = 5_000_000_000;

/// How long to wait for those that the fence kills.
const FENCE_PATIENCE_NS: u64 = 2_000_000_000;

/// How often it is looked whether an exec of before has come back.
const LOOK_NS: u64 = 250_000_000;

/// A child of the keeper before whose exec has not come back.
pub(super) struct Unborn {
    pid: i32,
    forked_ns: u64,
    /// When it is looked again.
    pub(super) look_ns: u64,
    /// It was told that it is stuck.
    pub(super) stuck: bool,
}

/// The main process of a record, certainly.
struct Certain {
    stat: Stat,
    pidfd: OwnedFd,
}

/// The record's process, if it is there, dead or alive.
fn certain(entry: &Entry) -> Option<Certain> {
    let followed = entry.followed.and_then(|(pid, ticks)| found(pid, |s| s.start_ticks == ticks));
    followed.or_else(|| {
        let (from, to) = (entry.intent_ns, entry.child_ns);
        found(entry.pid, |s| started_within(s.start_ticks, tick_ns(), from, to))
    })
}

/// Opens first, looks afterwards: what was looked at is what is held.
fn found(pid: i32, is_it: impl Fn(&Stat) -> bool) -> Option<Certain> {
    if pid <= 0 {
        return None;
    }
    let pidfd = process::open(pid).ok()?;
    let stat = process::stat(pid).filter(is_it)?;
    Some(Certain { stat, pidfd })
}

impl Keeper {
    pub(super) fn take_over(&mut self) {
        let entries = self.ledger.entries();
        self.fence_before_all(&entries);
        self.wait_for_the_old_keeper();
        self.sign_ledger();
        let mut over = Vec::new();
        // What the old keeper's children wrote until its end counts.
        for (at, entry) in self.ledger.entries() {
            match entry.phase {
                Phase::Gone(end) => self.enter(at, &entry, Stage::Gone { end, fenced: entry.fenced }),
                Phase::SpawnFailed(step, errno) => {
                    self.enter(at, &entry, Stage::SpawnFailed { step, errno });
                }
                Phase::Live => match certain(&entry) {
                    Some(main) => self.adopt(at, &entry, main),
                    None => over.push((at, entry, End::Unknown)),
                },
                Phase::Exited(end) => over.push((at, entry, end)),
                Phase::Free => {}
            }
        }
        self.sweep(&over);
        for (at, entry, end) in over {
            self.conclude(at, &entry, end);
        }
    }

    /// Past the deadline, the exclusive runs die before anything else happens.
    fn fence_before_all(&self, entries: &[(usize, Entry)]) {
        let deadline = self.ledger.fence_ns();
        if deadline == 0 || boottime_ns() < deadline {
            return;
        }
        let mut dying = Vec::new();
        for (at, entry) in entries.iter().filter(|(_, e)| e.record.exclusive && e.phase == Phase::Live) {
            if let Some(main) = certain(entry) {
                self.ledger.slot(*at).set_fenced();
                let _ = process::signal(main.pidfd.as_fd(), libc::SIGKILL);
                dying.push(main.pidfd);
            }
            if entry.record.in_cgroup
                && let Ok(Some(mut cgroup)) = self.cgroups.open(&entry.record.instance)
            {
                let _ = cgroup.kill();
            }
        }
        // Nobody is to be told of the runs before they are dead; one in D state is not waited for.
        let until = boottime_ns() + FENCE_PATIENCE_NS;
        for pidfd in &dying {
            let left_ms = until.saturating_sub(boottime_ns()) / 1_000_000;
            let mut wait = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut wait, u16::try_from(left_ms).unwrap_or(u16::MAX));
        }
    }

    /// The lock is free before the old keeper's children have another parent; a child that has not yet
    /// written its pid is only sure to give up once they have.
    fn wait_for_the_old_keeper(&self) {
        let (pid, ticks) = self.ledger.keeper();
        if pid == self.surroundings.keeper_pid {
            return;
        }
        let Some(old) = found(pid, |s| s.start_ticks == ticks) else { return };
        let mut wait = [PollFd::new(old.pidfd.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut wait, 10_000_u16), Ok(1)) {
            tracing::error!(pid, "the keeper before this one does not end");
        }
    }

    fn enter(&mut self, at: usize, entry: &Entry, stage: Stage) {
        let record = RunRecord {
            run: entry.record.run,
            instance: entry.record.instance.clone(),
            pid: entry.pid,
            spawned_ns: entry.intent_ns,
            stage,
            exclusive: entry.record.exclusive,
            note: entry.record.note.clone(),
        };
        let mut run = Run::new(record, at, entry.record.in_cgroup);
        run.fenced = entry.fenced;
        if !self.table.enter(run) {
            tracing::error!(run = %entry.record.run, "the ledger has a run twice; the second is dropped");
            self.ledger.leave(at);
            return;
        }
        // A child that could not go on has said so, whoever heard it.
        if let Some((step, errno)) = self.ledger.slot(at).failure() {
            self.table.exec_failed(entry.record.run, step, errno);
        }
    }

    fn adopt(&mut self, at: usize, entry: &Entry, main: Certain) {
        let id = entry.record.run;
        if main.stat.executed {
            self.enter(at, entry, Stage::Running);
        } else {
            self.enter(at, entry, Stage::Spawning);
            let child = Unborn { pid: entry.pid, forked_ns: entry.intent_ns, look_ns: 0, stuck: false };
            self.unborn.insert(id, child);
        }
        let ours = main.stat.parent == self.surroundings.keeper_pid;
        if main.stat.pid != entry.pid || !ours {
            self.table.follow(id, main.stat.pid, ours);
        }
        if !ours {
            if let Err(error) = self.poll.add(&main.pidfd, Source::Process(id), EpollFlags::EPOLLIN) {
                tracing::error!(%error, run = %id, "cannot watch an adopted process");
            }
            self.strangers.insert(id, main.pidfd);
        }
        let instance = self.instances.make(&entry.record.instance);
        if entry.record.in_cgroup {
            instance.cgroup = self.cgroups.open(&entry.record.instance).unwrap_or_else(|error| {
                tracing::error!(%error, run = %id, "cannot open the cgroup of an adopted run");
                None
            });
        }
        if let Err(error) = instance.fifos.ready(&mut self.copier, &entry.record.logs, None) {
            tracing::error!(%error, run = %id, "cannot go on copying the logs of an adopted run");
        }
        tracing::info!(run = %id, instance = %entry.record.instance, pid = main.stat.pid, "adopted");
    }

    /// Do they execute their programs by now? Tells of those that do not for long.
    pub(super) fn look_at_unborn(&mut self, now: u64) {
        let due: Vec<RunId> =
            self.unborn.iter().filter(|(_, child)| now >= child.look_ns).map(|(id, _)| *id).collect();
        for id in due {
            let Some(child) = self.unborn.get_mut(&id) else { continue };
            if process::stat(child.pid).is_some_and(|stat| !stat.executed && stat.alive()) {
                child.look_ns = now + LOOK_NS;
                if !child.stuck && now.saturating_sub(child.forked_ns) >= super::STUCK_NS {
                    child.stuck = true;
                    self.link.send(&Reply::SpawnStuck { run: id });
                }
                continue;
            }
            self.unborn.remove(&id);
            self.tell_birth(id);
        }
    }

    /// Kills whatever is left of runs that were not adopted, and waits until it is gone.
    fn sweep(&mut self, over: &[(usize, Entry, End)]) {
        let until = boottime_ns() + PATIENCE_NS;
        let mut strays = BTreeSet::new();
        loop {
            let found = self.kill_strays(over);
            if found.is_empty() {
                break;
            }
            strays.extend(found);
            if boottime_ns() > until {
                tracing::error!("leftovers of earlier runs do not die");
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.strays = strays.into_iter().collect();
    }

    /// One round; gives the instances of which something was alive.
    fn kill_strays(&mut self, over: &[(usize, Entry, End)]) -> BTreeSet<InstanceId> {
        let mut found = BTreeSet::new();
        for id in self.cgroups.instances().unwrap_or_default() {
            if self.table.live(&id).and_then(|run| self.table.get(run)).is_some_and(|run| run.in_cgroup) {
                continue;
            }
            let Ok(Some(mut cgroup)) = self.cgroups.open(&id) else { continue };
            if cgroup.populated().unwrap_or(false) {
                let _ = cgroup.kill();
                found.insert(id);
            } else {
                // Nobody's any more; it is made again for the next run of the instance.
                let _ = cgroup.remove();
            }
        }
        let without_cgroup = over.iter().filter(|(_, entry, _)| !entry.record.in_cgroup);
        let over: BTreeSet<RunId> = without_cgroup.map(|(_, entry, _)| entry.record.run).collect();
        let unmarked = self.cgroups.root().is_some() && over.is_empty();
        for (pid, run, id) in if unmarked { Vec::new() } else { self.marked() } {
            if self.table.get(run).is_none_or(|run| !run.lives()) {
                // SAFETY: kill touches no memory.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                found.insert(id);
            }
        }
        found
    }

    /// A run that is over: gone, or (when something of it does not die) left to the loop.
    fn conclude(&mut self, at: usize, entry: &Entry, end: End) {
        let id = entry.record.run;
        self.enter(at, entry, Stage::Running);
        if entry.record.in_cgroup {
            let cgroup = self.cgroups.open(&entry.record.instance);
            self.instances.make(&entry.record.instance).cgroup = cgroup.ok().flatten();
        }
        self.main_ended(id, end);
    }
}
