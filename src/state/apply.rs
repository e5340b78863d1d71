//! Applying commands: the one place where the replicated state changes.
//!
//! Every branch is total: a command that cannot be carried out is refused and changes nothing.

use std::collections::BTreeMap;

use super::{
    Command, Envelope, Launch, Pauses, Rejected, Response, Scale, State, Target, Version, of_process,
};
use crate::spec::fingerprint::spec_hash;
use crate::spec::{InstanceId, InstanceKey, Population, Process, ProcessName, Spec};

impl Command {
    /// The version of the cluster from which on every program knows the command.
    pub fn since(&self) -> Version {
        match self {
            Command::ApplySpec { .. }
            | Command::Scale { .. }
            | Command::Pause { .. }
            | Command::Resume { .. }
            | Command::JoinHost { .. }
            | Command::Place { .. }
            | Command::Events { .. }
            | Command::Launch { .. }
            | Command::Inventory { .. }
            | Command::Roll { .. }
            | Command::HostDown { .. }
            | Command::DrainHost { .. }
            | Command::Settings { .. }
            | Command::Settle { .. }
            | Command::Upgrade { .. }
            | Command::TokenCreate { .. }
            | Command::TokenRevoke { .. }
            | Command::Recover => Version(1),
        }
    }
}

impl State {
    /// Applies a command. A refused command changes nothing but `index`, `now_ms` and what is forgotten by now.
    pub fn apply(&mut self, envelope: &Envelope) -> Result<Response, Rejected> {
        self.index += 1;
        let before_ms = self.now_ms;
        self.now_ms = self.now_ms.max(envelope.stamp_ms);
        self.forget(before_ms);
        let (needed, found) = (envelope.command.since(), self.version);
        if needed > found {
            return Err(Rejected::Version { needed, found });
        }
        match &envelope.command {
            Command::ApplySpec { spec, expected_revision } => self.apply_spec(spec, *expected_revision),
            Command::Scale { process, count } => self.scale(process, *count),
            Command::Pause { target } => self.pause(target),
            Command::Resume { target } => self.resume(target),
            Command::JoinHost { host, facts } => self.join_host(host, facts),
            Command::Place { based_on, changes } => self.place(*based_on, changes),
            Command::Events { host, incarnation, first_seq, events } => {
                self.take_events(host, *incarnation, *first_seq, events)
            }
            Command::Launch { process, args, key } => self.launch(process, args, key.as_deref()),
            Command::Inventory { host, incarnation, seq, runs, rests } => {
                self.take_inventory(host, *incarnation, *seq, runs, rests)
            }
            Command::Roll { process, epoch } => self.roll(process, *epoch),
            Command::HostDown { host, incarnation } => self.host_down(host, *incarnation),
            Command::DrainHost { host, drained } => self.drain_host(host, *drained),
            Command::Settings { settings } => self.take_settings(*settings),
            Command::Settle { since } => self.settle(*since),
            Command::Upgrade { to } => self.upgrade(*to),
            Command::TokenCreate { name, role, hash, expires_ms } => {
                self.create_token(name, *role, *hash, *expires_ms)
            }
            Command::TokenRevoke { name } => self.revoke_token(name),
            Command::Recover => Ok(self.recover(envelope.stamp_ms)),
        }
    }

    /// The number of instances that a counted process is meant to have.
    pub fn count_of(&self, process: &ProcessName) -> Option<u32> {
        let declared = match self.spec.processes.get(process)?.population {
            Population::Count(n) => n,
            _ => return None,
        };
        Some(self.scales.get(process).map_or(declared, |scale| scale.count))
    }

    /// True when the desired set holds this instance (paused or not).
    pub fn wants(&self, instance: &InstanceId) -> bool {
        let Some(process) = self.spec.processes.get(&instance.process) else { return false };
        match (&process.population, &instance.key) {
            (Population::Count(_), InstanceKey::Number(n)) => {
                self.count_of(&instance.process).is_some_and(|count| *n < u64::from(count))
            }
            (Population::PerHost, InstanceKey::Host(host)) => self.hosts.contains_key(host),
            (Population::OnDemand { .. }, InstanceKey::Number(_)) => self.launches.contains_key(instance),
            _ => false,
        }
    }

    fn apply_spec(&mut self, spec: &Spec, expected: Option<u64>) -> Result<Response, Rejected> {
        if let Some(expected) = expected.filter(|revision| *revision != self.revision) {
            return Err(Rejected::Revision { expected, found: self.revision });
        }
        if self.revision > 0 && *spec == self.spec {
            return Ok(Response::Revision(self.revision));
        }
        self.note_changes(spec);
        self.spec = spec.clone();
        self.revision += 1;
        self.basis += 1;
        let processes = &self.spec.processes;
        self.scales.retain(|name, scale| scale.lasts(processes.get(name).map(|process| &**process)));
        self.launches.retain(|id, _| {
            processes.get(&id.process).is_some_and(|p| matches!(p.population, Population::OnDemand { .. }))
        });
        self.paused.processes.retain(|name| processes.contains_key(name));
        self.forget_unwanted();
        self.claim_anew();
        Ok(Response::Revision(self.revision))
    }

    /// From now on a rollout's `deadline` counts.
    fn note_changes(&mut self, new: &Spec) {
        self.changed_ms.retain(|name, _| new.processes.contains_key(name));
        self.epochs.retain(|name, _| new.processes.contains_key(name));
        // A changed program may do better where the old one was given up.
        let before = &self.spec.processes;
        self.failed.retain(|id, _| new.processes.get(&id.process) == before.get(&id.process));
        for (name, process) in &new.processes {
            let before = self.spec.processes.get(name);
            let fewer = |before: &Process| match (&before.population, &process.population) {
                (Population::Count(before), Population::Count(after)) => after < before,
                _ => false,
            };
            if before.is_some_and(|before| fewer(before) || spec_hash(before) != spec_hash(process)) {
                self.changed_ms.insert(name.clone(), self.now_ms);
            }
        }
    }

    fn scale(&mut self, process: &ProcessName, count: Option<u32>) -> Result<Response, Rejected> {
        let entry = self.spec.processes.get(process).ok_or_else(|| Rejected::NoProcess(process.clone()))?;
        let Population::Count(declared) = entry.population else {
            return Err(Rejected::NotCounted(process.clone()));
        };
        if count.unwrap_or(declared) < self.count_of(process).unwrap_or(0) {
            self.changed_ms.insert(process.clone(), self.now_ms);
        }
        match count.filter(|count| *count != declared) {
            Some(count) => self.scales.insert(process.clone(), Scale { count, declared }),
            None => self.scales.remove(process),
        };
        self.forget_unwanted();
        self.basis += 1;
        Ok(Response::Done)
    }

    /// What was said of instances that are neither wanted nor placed any more; of a placed one it is forgotten with
    /// its placement.
    pub(super) fn forget_unwanted(&mut self) {
        let mut paused = std::mem::take(&mut self.paused.instances);
        let mut except = std::mem::take(&mut self.paused.except);
        let mut failed = std::mem::take(&mut self.failed);
        let stays = |id: &InstanceId| self.placements.contains_key(id) || self.wants(id);
        paused.retain(&stays);
        except.retain(&stays);
        failed.retain(|id, _| stays(id));
        (self.paused.instances, self.paused.except, self.failed) = (paused, except, failed);
    }

    fn known(&self, target: &Target) -> Result<(), Rejected> {
        match target {
            Target::All => Ok(()),
            Target::Process(name) if self.spec.processes.contains_key(name) => Ok(()),
            Target::Process(name) => Err(Rejected::NoProcess(name.clone())),
            Target::Instance(id) if self.wants(id) => Ok(()),
            Target::Instance(id) => Err(Rejected::NoInstance(id.clone())),
        }
    }

    fn pause(&mut self, target: &Target) -> Result<Response, Rejected> {
        self.known(target)?;
        let paused = &mut self.paused;
        match target {
            Target::All => *paused = Pauses { all: true, ..Pauses::default() },
            Target::Process(name) => {
                paused.processes.insert(name.clone());
                paused.instances.retain(|id| id.process != *name);
                paused.except.retain(|id| id.process != *name);
            }
            Target::Instance(id) => {
                paused.except.remove(id);
                if !paused.holds(id) {
                    paused.instances.insert(id.clone());
                }
            }
        }
        self.basis += 1;
        Ok(Response::Done)
    }

    fn resume(&mut self, target: &Target) -> Result<Response, Rejected> {
        self.known(target)?;
        let paused = &mut self.paused;
        match target {
            Target::All => *paused = Pauses::default(),
            Target::Process(name) => {
                if std::mem::take(&mut paused.all) {
                    paused.processes = self.spec.processes.keys().cloned().collect();
                }
                paused.processes.remove(name);
                paused.instances.retain(|id| id.process != *name);
                paused.except.retain(|id| id.process != *name);
            }
            Target::Instance(id) => {
                paused.instances.remove(id);
                if paused.holds(id) {
                    paused.except.insert(id.clone());
                }
            }
        }
        // A new generation tells the hosts to forget back-off and give-up.
        let index = self.index;
        let meant = |id: &InstanceId| match target {
            Target::All => true,
            Target::Process(name) => id.process == *name,
            Target::Instance(instance) => id == instance,
        };
        let resumed: Vec<InstanceId> = match target {
            Target::Instance(id) => vec![id.clone()],
            Target::Process(name) => of_process(&self.placements, name).map(|(id, _)| id.clone()).collect(),
            Target::All => self.placements.keys().cloned().collect(),
        };
        for id in &resumed {
            if let Some(placement) = self.placements.get_mut(id) {
                placement.generation = index;
            }
        }
        self.rests.retain(|id, _| !meant(id));
        self.failed.retain(|id, _| !meant(id));
        self.basis += 1;
        Ok(Response::Done)
    }

    fn launch(
        &mut self,
        name: &ProcessName,
        args: &BTreeMap<String, String>,
        key: Option<&str>,
    ) -> Result<Response, Rejected> {
        let process = self.spec.processes.get(name).ok_or_else(|| Rejected::NoProcess(name.clone()))?;
        let Population::OnDemand { max } = process.population else {
            return Err(Rejected::NotOnDemand(name.clone()));
        };
        if let Some(missing) = process.arguments().into_iter().find(|wanted| !args.contains_key(wanted)) {
            return Err(Rejected::NoArgument { process: name.clone(), missing });
        }
        let live = of_process(&self.launches, name);
        let same = |(_, launch): &(&InstanceId, &Launch)| key.is_some() && launch.key.as_deref() == key;
        if let Some((id, launch)) = live.clone().find(same) {
            let (key, instance) = (key.unwrap_or_default().to_owned(), id.clone());
            return match launch.args == *args {
                true => Ok(Response::Launched(instance)),
                false => Err(Rejected::OtherLaunch { key, instance }),
            };
        }
        if live.count() >= max as usize {
            return Err(Rejected::Full { process: name.clone(), max });
        }
        let counter = self.counters.entry(name.clone()).or_insert(0);
        *counter += 1;
        let id = InstanceId::numbered(name.clone(), *counter);
        let launch = Launch { args: args.clone(), key: key.map(str::to_owned), at_ms: self.now_ms };
        self.launches.insert(id.clone(), launch);
        self.basis += 1;
        Ok(Response::Launched(id))
    }
}
