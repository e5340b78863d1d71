//! What the agent asks, carried out one by one.
//!
//! Owns no state: it turns a request into changes of the table, the instances and the runs. Also the
//! agent's coming and going, which begins and ends the draining of the notify sockets.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::epoll::EpollFlags;

use super::fault::{self, Point};
use super::link::{Link, Received};
use super::notify;
use super::poll::Source;
use super::process::{self, boottime_ns};
use super::protocol::{LogTarget, Reply, Request, RunId, Stage, Target};
use super::{Keeper, descent};
use crate::spec::InstanceId;

/// Packets read in one go, so that a flood delays no reap.
const MAX_ROUND: usize = 64;

impl Keeper {
    pub(super) fn on_connection(&mut self) {
        if !self.link.accept() {
            return;
        }
        self.successors.clear();
        self.interest = EpollFlags::EPOLLIN;
        if let Some(agent) = self.link.agent()
            && let Err(error) = self.poll.add(agent, Source::Agent, EpollFlags::EPOLLIN)
        {
            tracing::error!(%error, "cannot watch the agent's connection");
            self.link.close();
        }
    }

    pub(super) fn on_agent(&mut self) {
        for _ in 0..MAX_ROUND {
            if !self.listens(boottime_ns()) {
                return;
            }
            match self.link.receive() {
                Received::Nothing => return,
                Received::Closed => {
                    self.link.close();
                    self.lose_agent();
                    return;
                }
                Received::Bad(error) => {
                    let reason = format!("not a request: {error}");
                    tracing::warn!(%error, "the agent sent something that is no request");
                    self.link.send(&Reply::Refused { run: None, reason });
                }
                Received::Requests(requests, mut descriptors) => {
                    self.heard();
                    for request in requests {
                        self.obey(request, std::mem::take(&mut descriptors));
                    }
                }
            }
        }
    }

    fn obey(&mut self, request: Request, descriptors: Vec<OwnedFd>) {
        match &request {
            Request::Signal { run, .. }
            | Request::Kill { run }
            | Request::Follow { run, .. }
            | Request::Limit { run, .. }
            | Request::Logs { run, .. }
            | Request::Exclusive { run, .. } => drop(self.successors.take(*run)),
            _ => {}
        }
        match request {
            Request::Hello { agent } => self.welcome(&agent),
            _ if !self.link.greeted() => {}
            Request::Ping => {}
            Request::Hold { instance } => self.hold(&instance, descriptors),
            Request::Release { instance } => self.release(&instance),
            Request::Spawn(spawn) => self.spawn(&spawn),
            Request::Appoint { run, successor } => self.appoint(run, successor),
            Request::Revoke { run } => drop(self.successors.take(run)),
            Request::Signal { run, signal, to } => self.signal(run, signal, to),
            Request::Kill { run } => self.kill(run, false),
            Request::Acknowledge { run } => {
                if let Some(slot) = self.table.acknowledge(run) {
                    self.ledger.leave(slot);
                    fault::pass(Point::AfterAcknowledge);
                }
            }
            Request::Follow { run, pid } => self.follow(run, pid),
            Request::Note { run, note } => self.note(run, note),
            Request::Limit { run, limits } => self.limit(run, &limits),
            Request::Logs { run, logs } => self.redirect(run, &logs),
            Request::Exclusive { run, exclusive } => {
                if let Some(slot) = self.table.set_exclusive(run, exclusive) {
                    self.ledger.slot(slot).set_exclusive(exclusive);
                    // One that becomes so past the deadline does not outlive it.
                    self.fence_fired &= !exclusive;
                }
            }
            Request::Fence { deadline_ns } => {
                self.ledger.set_fence_ns(deadline_ns);
                self.fence_fired = false;
            }
            Request::Upgrade { program } => self.begin_upgrade(Some(PathBuf::from(program))),
            Request::Shutdown => {
                self.shutdown = true;
                let living: Vec<RunId> = self.table.living().map(|r| r.record.run).collect();
                for run in living {
                    self.kill(run, false);
                }
            }
        }
    }

    /// Has a living run's output copied elsewhere. A run that writes to the journal or nowhere has no FIFOs.
    fn redirect(&mut self, id: RunId, logs: &LogTarget) {
        let instance = self.table.get(id).filter(|run| run.lives()).map(|run| run.record.instance.clone());
        let Some(instance) = instance.and_then(|instance| self.instances.get_mut(&instance)) else { return };
        if let Err(error) = instance.fifos.redirect(&mut self.copier, logs) {
            self.refuse(Some(id), format!("cannot copy its output elsewhere: {error}"));
        }
    }

    fn refuse(&mut self, run: Option<RunId>, reason: impl Into<String>) {
        self.link.send(&Reply::Refused { run, reason: reason.into() });
    }

    /// Tells a new agent everything.
    fn welcome(&mut self, agent: &str) {
        tracing::info!(agent, "an agent has connected");
        self.link.greet();
        self.report_due = true;
        self.link.send(&Reply::Welcome {
            keeper: env!("CARGO_PKG_VERSION").to_owned(),
            pid: self.surroundings.keeper_pid,
            cgroups: self.cgroups.support().clone(),
            fence_deadline_ns: self.ledger.fence_ns(),
        });
        for (id, instance) in self.instances.iter() {
            let Some((listener, socket)) = &instance.held else { continue };
            match (listener.try_clone(), socket.try_clone()) {
                (Ok(listener), Ok(socket)) => {
                    self.link.send_with(&Reply::Held { instance: id.clone() }, vec![listener, socket]);
                }
                (Err(error), _) | (_, Err(error)) => {
                    tracing::error!(%error, instance = %id, "cannot hand over the sockets");
                }
            }
        }
        for run in self.table.iter() {
            self.link.send(&Reply::Run(run.record.clone()));
        }
        self.hand_over_datagrams();
        let strays = std::mem::take(&mut self.strays);
        self.link.send(&Reply::Listed { strays });
        let unborn = self.unborn.iter().filter(|(_, child)| child.stuck).map(|(run, _)| run);
        let pending = self.pending.iter().filter(|(_, pending)| pending.stuck).map(|(run, _)| run);
        for run in pending.chain(unborn) {
            self.link.send(&Reply::SpawnStuck { run: *run });
        }
    }

    fn hold(&mut self, id: &InstanceId, descriptors: Vec<OwnedFd>) {
        let Ok([listener, socket]) = <[OwnedFd; 2]>::try_from(descriptors) else {
            self.refuse(None, format!("hold {id}: it takes two descriptors, listener and notify socket"));
            return;
        };
        let instance = self.instances.make(id);
        if let Some((_, old)) = &instance.held {
            self.poll.remove(old);
        }
        instance.held = Some((listener, socket));
        if self.draining {
            self.watch_notify(id);
        }
    }

    fn release(&mut self, id: &InstanceId) {
        if let Some(run) = self.table.live(id) {
            self.refuse(Some(run), format!("release {id}: it has a run"));
            return;
        }
        let Some(mut instance) = self.instances.remove(id) else { return };
        if let Some((_, socket)) = &instance.held {
            self.poll.remove(socket);
        }
        instance.fifos.remove(&mut self.copier);
        // It had no run with this keeper: the one before has made the cgroup.
        let cgroup = instance.cgroup.map_or_else(|| self.cgroups.open(id), |cgroup| Ok(Some(cgroup)));
        if let Err(error) = cgroup.and_then(|cgroup| cgroup.map_or(Ok(()), |cgroup| cgroup.remove())) {
            tracing::warn!(%error, instance = %id, "cannot remove the cgroup");
        }
    }

    fn signal(&mut self, id: RunId, signal: i32, to: Target) {
        let Some(run) = self.table.get(id).filter(|run| run.lives()) else {
            self.refuse(Some(id), "signal: no such run, or it is gone");
            return;
        };
        let main_lives = matches!(run.record.stage, Stage::Spawning | Stage::Running);
        let group = run.group;
        match to {
            Target::Main => self.signal_main(id, signal),
            // While the leader is not reaped the group's number is its own; afterwards every process is meant.
            Target::Group if main_lives && run.record.pid == group && group > 0 => {
                // SAFETY: kill touches no memory.
                unsafe { libc::kill(-group, signal) };
            }
            Target::Group | Target::All => {
                let cgroup = self.instances.get(&run.record.instance).and_then(|i| i.cgroup.as_ref());
                let pids = match cgroup.filter(|_| run.in_cgroup) {
                    Some(cgroup) => cgroup.pids(),
                    None => self.members(id),
                };
                for pid in pids {
                    // SAFETY: kill touches no memory.
                    unsafe { libc::kill(pid, signal) };
                }
            }
        }
    }

    fn follow(&mut self, id: RunId, pid: i32) {
        let Some(run) = self.table.get(id).filter(|r| r.record.stage == Stage::Running) else { return };
        if run.record.pid == pid {
            return;
        }
        let cgroup = self.instances.get(&run.record.instance).and_then(|i| i.cgroup.as_ref());
        let belongs = |pid| match cgroup.filter(|_| run.in_cgroup) {
            Some(cgroup) => cgroup.holds(pid),
            None => self.members(id).contains(&pid),
        };
        // The descriptor first: what is checked then is what is followed.
        let Some((pidfd, stat)) = process::open(pid).ok().zip(process::stat(pid)) else { return };
        if !belongs(pid) || process::stat(pid).is_none_or(|again| again.start_ticks != stat.start_ticks) {
            self.refuse(Some(id), format!("follow: process {pid} does not belong to the run"));
            return;
        }
        let slot = run.slot;
        if let Err(error) = self.poll.add(&pidfd, Source::Process(id), EpollFlags::EPOLLIN) {
            self.refuse(Some(id), format!("follow: cannot watch process {pid}: {error}"));
            return;
        }
        self.ledger.slot(slot).set_followed(pid, stat.start_ticks);
        self.strangers.insert(id, pidfd);
        self.table.follow(id, pid, false);
        self.link.send(&Reply::Spawned { run: id, pid });
    }

    fn note(&mut self, id: RunId, note: Vec<u8>) {
        let Some(run) = self.table.get(id) else { return };
        if note.len() > super::protocol::MAX_NOTE {
            self.refuse(Some(id), "note: too long");
            return;
        }
        self.ledger.slot(run.slot).set_note(&note);
        self.table.set_note(id, note);
    }

    fn limit(&mut self, id: RunId, limits: &[(String, String)]) {
        let Some(run) = self.table.get(id).filter(|run| run.lives()) else { return };
        let instance = self.instances.get_mut(&run.record.instance);
        let files: Vec<String> = match instance.and_then(|i| i.cgroup.as_mut()) {
            Some(cgroup) => cgroup.limit(limits).into_iter().map(|(file, _)| file).collect(),
            None => limits.iter().map(|(file, _)| file.clone()).collect(),
        };
        if !files.is_empty() {
            self.link.send(&Reply::Unenforced { run: id, files });
        }
    }

    /// The agent has said something.
    fn heard(&mut self) {
        self.heard_ns = boottime_ns();
        if self.draining {
            self.draining = false;
            for (_, instance) in self.instances.iter() {
                if let Some((_, socket)) = &instance.held {
                    self.poll.remove(socket);
                }
            }
            self.hand_over_datagrams();
        }
    }

    /// Nobody decides any more, and nobody listens.
    pub(super) fn lose_agent(&mut self) {
        self.successors.clear();
        self.start_draining();
    }

    /// Nobody reads the notify sockets any more: we do.
    pub(super) fn start_draining(&mut self) {
        self.draining = true;
        let held: Vec<InstanceId> =
            self.instances.iter().filter(|(_, i)| i.held.is_some()).map(|(id, _)| id.clone()).collect();
        for id in held {
            self.watch_notify(&id);
        }
    }

    fn watch_notify(&self, id: &InstanceId) {
        let Some(instance) = self.instances.get(id) else { return };
        if let Some((_, socket)) = &instance.held {
            // Already watched is fine.
            let _ = self.poll.add(socket.as_fd(), Source::Notify(instance.number), EpollFlags::EPOLLIN);
        }
    }

    pub(super) fn on_notify(&mut self, number: u64) {
        if !self.draining {
            return;
        }
        if let Some(instance) = self.instances.numbered(number)
            && let Some((_, socket)) = &instance.held
        {
            notify::drain(socket.as_fd(), &mut instance.kept);
        }
    }

    /// Hands the drained datagrams over, to an agent that has said hello.
    fn hand_over_datagrams(&mut self) {
        if !self.link.greeted() {
            return;
        }
        for (id, instance) in self.instances.iter_mut() {
            hand_over(id, &mut instance.kept, &mut self.link);
        }
    }

    /// What a run has said while nobody read it is told before its end, behind which it would be the next one's words.
    pub(super) fn hand_over_last_words(&mut self, run: RunId) {
        if !self.draining || !self.link.greeted() {
            return;
        }
        let Some(id) = self.table.get(run).map(|run| run.record.instance.clone()) else { return };
        let Some(instance) = self.instances.get_mut(&id) else { return };
        if let Some((_, socket)) = &instance.held {
            notify::drain(socket.as_fd(), &mut instance.kept);
        }
        hand_over(&id, &mut instance.kept, &mut self.link);
    }

    /// The mark of this keeper's runs on hosts without cgroups.
    pub(super) fn marked(&self) -> Vec<(i32, RunId, InstanceId)> {
        descent::marked(&self.hash)
    }
}

fn hand_over(id: &InstanceId, kept: &mut notify::Kept, link: &mut Link) {
    for notify::Datagram { pid, data } in kept.take() {
        link.send(&Reply::Datagram { instance: id.clone(), pid, data });
    }
}
