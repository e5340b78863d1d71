//! The keeper, as the loop hears it: connecting, its table, what it tells of runs.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::process::Child;
use std::time::Duration;

use super::{BEGUN, KEEPER_BATCH, RECONNECT, STARTING, Supervisor};
use crate::agent::keeper_link::{KeeperSource, Link, LinkError, Received, start_keeper};
use crate::agent::replica::wall_ms;
use crate::host::fleet::Found;
use crate::host::instance::Note;
use crate::host::{Action, Happening, Moment, Ports};
use crate::http::view::KeeperView;
use crate::keeper::fault::{self, Point};
use crate::keeper::process::boottime_ns;
use crate::keeper::protocol::{
    Account, CgroupSupport, Reply, Request, RunId, RunRecord, SpawnStep, Stage, describe_failure,
};
use crate::metrics::SpawnFault;
use crate::process_api::socket::{Games, Identity, KnownBy};
use crate::spec::{InstanceId, Logs};

/// What a keeper has said about its table so far.
#[derive(Default)]
pub(super) struct Listing {
    runs: Vec<RunRecord>,
    held: Vec<(InstanceId, [OwnedFd; 2])>,
    datagrams: Vec<(InstanceId, i32, Vec<u8>)>,
}

impl Supervisor {
    /// Looks for a keeper, and starts one where that is this agent's task.
    pub(super) fn connect(&mut self, now: Moment) {
        self.connect_at = now.after(RECONNECT);
        if let Ok(mut link) = Link::connect(&self.parts.runtime_dir) {
            let agent = env!("CARGO_PKG_VERSION").to_owned();
            if link.send(&Request::Hello { agent }).is_ok() {
                self.listing = Listing::default();
                self.link = Some(link);
                // Nothing is decided until its table is complete.
                self.met = false;
                return;
            }
        }
        if self.own_keeper_lives() {
            if now < self.start_at {
                // It has only just been started, and nothing goes on before it listens.
                self.connect_at = now.after(STARTING);
            }
            return;
        }
        if now < self.start_at {
            return;
        }
        let KeeperSource::Own { program, cgroup } = &self.parts.keeper else { return };
        // A keeper that ends at once must not be started in a tight loop.
        self.start_at = now.after(BEGUN);
        match start_keeper(program, &self.parts.runtime_dir, &self.parts.data_dir, cgroup.as_deref()) {
            Ok(child) => {
                self.child = Some(child);
                self.connect_at = now.after(STARTING);
            }
            Err(error) => tracing::error!(%error, program = %program.display(), "cannot start a keeper"),
        }
    }

    /// Whether the keeper that this agent has started lives. One that has ended, although another may be there by now,
    /// is told of and no zombie from here on.
    pub(super) fn own_keeper_lives(&mut self) -> bool {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(None)) => true,
            Some(Ok(Some(status))) => {
                let log = self.parts.data_dir.join("keeper.log");
                tracing::error!(%status, "the keeper has ended; {} says why", log.display());
                self.child = None;
                false
            }
            _ => false,
        }
    }

    pub(super) fn lose_keeper(&mut self, error: &LinkError) {
        if self.link.take().is_some() {
            tracing::warn!(error = error as &dyn std::error::Error, "lost the keeper");
            self.parts.metrics.keeper_lost();
        }
        self.succession.forget();
        self.met = false;
        self.keeper = None;
    }

    pub(super) fn hear_keeper(&mut self) {
        let mut heard = 0;
        while heard < KEEPER_BATCH {
            let Some(link) = &mut self.link else { return };
            match link.receive() {
                Ok(received) if received.is_empty() => return,
                Ok(received) => {
                    // What follows from them goes out before it is looked whether there are more.
                    heard += received.len();
                    received.into_iter().for_each(|message| self.hear_reply(message));
                }
                Err(error) => return self.lose_keeper(&error),
            }
        }
    }

    fn hear_reply(&mut self, Received { reply, descriptors }: Received) {
        match reply {
            Reply::Welcome { keeper, pid, cgroups, fence_deadline_ns } => {
                self.hear_welcome(keeper, pid, cgroups);
                self.meet_guard(fence_deadline_ns);
            }
            Reply::Held { instance } => {
                if let Ok(pair) = <[OwnedFd; 2]>::try_from(descriptors) {
                    self.listing.held.push((instance, pair));
                }
            }
            Reply::Run(record) => self.listing.runs.push(record),
            Reply::Datagram { instance, pid, data } => {
                self.listing.datagrams.push((instance, pid, data));
                if self.met && self.keeper.is_some() {
                    self.hear_datagrams();
                }
            }
            Reply::Listed { strays } => self.meet(strays),
            Reply::Spawned { run, pid } => self.hear_spawned(run, pid),
            Reply::SpawnFailed { run, step, errno } => {
                self.parts.metrics.spawn_failed(SpawnFault::Step(step));
                if let Some(known) = self.host.instance_of(run) {
                    self.parts.resolver.distrust(&known.id);
                }
                let why = self.explain(run, step, describe_failure(step, errno));
                self.hear_over(run, Happening::SpawnFailed(why));
            }
            Reply::SpawnStuck { run } => {
                self.parts.metrics.spawn_failed(SpawnFault::Stuck);
                self.happens(run, Happening::SpawnStuck);
            }
            Reply::Exited { run, end } => {
                self.hear_last_words(run, false);
                self.happens(run, Happening::Exited(end));
            }
            Reply::Gone { run, end, fenced } => {
                fault::pass(Point::AgentAfterGone);
                self.hear_last_words(run, true);
                self.hear_over(run, Happening::Gone { end, fenced });
            }
            Reply::Succeeded { run, end, ago_ns, by } => {
                self.hear_succeeded(run, end, Duration::from_nanos(ago_ns), by);
            }
            Reply::Unenforced { run, files } => {
                self.parts.metrics.limits_unenforced(&files);
                if let Some(instance) = self.host.instance_of(run).map(|instance| instance.id.clone()) {
                    self.parts.chronicle.unenforced(instance, run.0, &files, wall_ms());
                }
            }
            Reply::Refused { run, reason } => {
                tracing::warn!(run = run.map(|run| run.0), reason, "the keeper refused a request");
            }
            Reply::LogBytes { kept, dropped } => self.parts.metrics.logged(kept, dropped),
        }
    }

    /// What its processes said before they ended still waits where the keeper was heard first. `gone`: none is left.
    fn hear_last_words(&mut self, run: RunId, gone: bool) {
        let Some(instance) = self.host.instance_of(run).map(|instance| instance.id.clone()) else { return };
        if gone {
            // That they do not listen any more goes without saying.
            self.forget_listeners(&instance);
        }
        self.hear_waiting(&instance);
    }

    pub(super) fn happens(&mut self, run: RunId, happening: Happening) {
        let actions = self.host.on_run(run, happening, self.now());
        self.carry_out(actions);
    }

    fn hear_welcome(&mut self, version: String, pid: i32, cgroups: CgroupSupport) {
        let words = match &cgroups {
            CgroupSupport::Full { .. } => "full",
            CgroupSupport::KillOnly => "kill-only",
            CgroupSupport::None => "none",
        };
        tracing::info!(pid, version, cgroups = words, "met the keeper");
        self.keeper = Some(KeeperView { pid, version, cgroups: words.to_owned() });
        self.games = Games::of(&cgroups);
        self.cgroups = cgroups;
    }

    /// The keeper's table is complete: from here on it and the core agree.
    fn meet(&mut self, strays: Vec<InstanceId>) {
        for instance in &strays {
            tracing::warn!(%instance, "the keeper killed leftovers without a certain record");
        }
        self.carry_out(self.host.strays(strays));
        let listing = std::mem::take(&mut self.listing);
        self.unclaimed.extend(listing.held.iter().map(|(instance, _)| instance.clone()));
        self.adopt_sockets(listing.held, &listing.runs);
        let marks: Vec<(RunId, bool)> = listing.runs.iter().map(|r| (r.run, r.exclusive)).collect();
        let table: Vec<Found> = listing.runs.into_iter().map(|record| self.found(record)).collect();
        self.listing.datagrams = listing.datagrams;
        self.met_table(table);
        self.mark_again(marks);
        // The agent's start waits for this and for the inventory.
        let powers = Some(self.cgroups.clone());
        self.parts.met.send_if_modified(|met| std::mem::replace(met, powers.clone()) != powers);
    }

    fn met_table(&mut self, mut table: Vec<Found>) {
        let state = self.parts.states.borrow().clone();
        let wants = self.may_run(crate::host::wants(&state, &self.parts.name), &state);
        // What an ended run has said is not to count for the one that follows it.
        let alive = |id: &InstanceId| {
            table.iter().any(|f| f.instance == *id && matches!(f.stage, Stage::Spawning | Stage::Running))
        };
        self.listing.datagrams.retain(|(id, _, _)| alive(id));
        let mut held = self.orders.unsent();
        held.extend(self.meet_begun(&mut table));
        let pids: Vec<(InstanceId, i32)> = table.iter().map(|f| (f.instance.clone(), f.pid)).collect();
        let actions = self.host.meet(table, &wants, &held, self.now());
        self.met = true;
        self.carry_out(actions);
        self.met_begun();
        if self.open {
            self.send_orders();
        }
        for (instance, pid) in pids.into_iter().filter(|(_, pid)| *pid > 0) {
            self.open_lost_sockets(&instance);
            let known_by = self.games.of_found(pid);
            self.identify(&instance, pid, known_by);
        }
        self.hear_datagrams();
        self.change_again();
        self.report_inventory();
        self.grounds = None;
        self.desire();
    }

    /// Limits and logs that were changed while no keeper or no agent was there are in force from now on. A new keeper
    /// knows of a run's logs what they were when it was spawned.
    fn change_again(&mut self) {
        let limited = matches!(self.cgroups, CgroupSupport::Full { .. });
        let living = self.host.instances().filter_map(|instance| {
            let run = instance.run.as_ref().filter(|run| run.pid.is_some())?;
            let limit = limited.then(|| Action::Limit { instance: instance.id.clone(), run: run.id });
            let logs = Action::Logs { instance: instance.id.clone(), run: run.id };
            Some([Some(logs), limit].into_iter().flatten())
        });
        let changes = living.flatten().collect();
        self.carry_out(changes);
    }

    /// The same of whom the keeper's fence is for.
    fn mark_again(&mut self, marks: Vec<(RunId, bool)>) {
        let other = |(run, marked): (RunId, bool)| {
            let instance = self.host.instance_of(run)?;
            let exclusive = instance.process.as_ref()?.exclusive();
            (exclusive != marked).then(|| Action::Exclusive { instance: instance.id.clone(), run })
        };
        let actions = marks.into_iter().filter_map(other).collect();
        self.carry_out(actions);
    }

    fn hear_datagrams(&mut self) {
        for (instance, pid, data) in std::mem::take(&mut self.listing.datagrams) {
            if let Some(event) = self.sockets.replay(&instance, pid, &data) {
                self.hear_said(vec![event]);
            }
        }
    }

    /// Sockets that the keeper held while there was no agent; a new keeper is given ours.
    fn adopt_sockets(&mut self, held: Vec<(InstanceId, [OwnedFd; 2])>, runs: &[RunRecord]) {
        let mut known: Vec<InstanceId> = Vec::new();
        for (instance, [listener, notify]) in held {
            known.push(instance.clone());
            if self.sockets.descriptors(&instance).is_some() {
                continue;
            }
            let account = self.account(&instance);
            let identity = self.identity(account.as_ref());
            if let Err(error) = self.sockets.adopt(&instance, listener, notify, identity) {
                tracing::error!(%instance, %error, "cannot take over its sockets");
            }
        }
        let missing: Vec<InstanceId> = self
            .host
            .instances()
            .map(|instance| instance.id.clone())
            .chain(runs.iter().map(|record| record.instance.clone()))
            .filter(|id| !known.contains(id))
            .collect();
        for instance in missing {
            if let Err(error) = self.hold_again(&instance) {
                tracing::error!(%instance, %error, "the keeper cannot hold its sockets");
            }
        }
    }

    /// Sockets that died with the agent and the keeper before: the run finds new ones at the same path.
    fn open_lost_sockets(&mut self, instance: &InstanceId) {
        if self.sockets.descriptors(instance).is_some() {
            return;
        }
        let account = self.account(instance);
        let opened = self.open_sockets(instance, account.as_ref());
        if let Err(error) = opened.and_then(|_| Ok(self.hold_again(instance)?)) {
            tracing::error!(%instance, %error, "cannot open the sockets of an adopted run");
        }
    }

    /// The account of an instance's run, by the files of its sockets: they are its own from its spawn on, and lie
    /// on tmpfs, which always answers. `None`: the agent's own.
    fn account(&mut self, instance: &InstanceId) -> Option<Account> {
        let folder = self.socket_folder(instance).ok()?;
        let file = std::fs::metadata(folder.join("api.sock")).ok()?;
        Some(Account { uid: file.uid(), gid: file.gid(), groups: Vec::new() })
    }

    fn found(&mut self, record: RunRecord) -> Found {
        let note =
            bincode::serde::decode_from_slice::<(Note, Ports), _>(&record.note, bincode::config::standard());
        let (note, ports) = note.map_or((None, Ports::new()), |((note, ports), _)| (Some(note), ports));
        self.parts.book.learn(&record.instance, ports);
        let age = Moment(boottime_ns()).since(Moment(record.spawned_ns));
        Found {
            ports: self.parts.book.ports(&record.instance),
            instance: record.instance,
            run: record.run,
            pid: record.pid,
            stage: record.stage,
            note,
            spawned_ms: wall_ms().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(0)),
        }
    }

    fn hear_spawned(&mut self, run: RunId, pid: i32) {
        fault::pass(Point::AgentAfterSpawned);
        let Some(instance) = self.host.instance_of(run).map(|instance| instance.id.clone()) else { return };
        let ports = self.parts.book.ports(&instance);
        self.happens(run, Happening::Spawned { pid, ports });
        // One that was found in the keeper's table before its exec was known, and may be another keeper's, is known already.
        let known = self.sockets.identity(&instance).filter(|known| known.main_pid == pid);
        let known_by = known.map(|known| known.known_by.clone());
        let known_by = known_by.unwrap_or_else(|| self.games.of_started(&instance, pid));
        self.identify(&instance, pid, known_by);
    }

    /// From now on only the run's own processes may speak on its sockets; what they have said already is heard.
    fn identify(&mut self, instance: &InstanceId, pid: i32, known_by: KnownBy) {
        let Some(known) = self.sockets.identity(instance) else { return };
        let identity = Identity { uid: known.uid, gid: known.gid, main_pid: pid, known_by };
        self.sockets.identify(instance, identity);
        self.hear_waiting(instance);
    }

    /// Adds to a failed step what it was about.
    fn explain(&self, run: RunId, step: SpawnStep, why: String) -> String {
        let process = self.host.instance_of(run).and_then(|instance| instance.process.as_ref());
        let Some(process) = process else { return why };
        let about = match step {
            SpawnStep::Exec => process.command.first().cloned(),
            SpawnStep::WorkingDir => process.working_dir.clone(),
            SpawnStep::Logs if process.logs == Logs::Journald => {
                Some("logs = \"journald\": does systemd-journald run here?".to_owned())
            }
            _ => None,
        };
        about.map_or(why.clone(), |about| format!("{why} ({about})"))
    }
}
