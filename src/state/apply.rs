//! Applying commands: the one place where the replicated state changes.
//!
//! Every branch is total: a command that cannot be carried out is refused and changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::command::{EventKind, RunFact};
use super::{
    Command, Entry, Envelope, Event, Host, HostFacts, Launch, Pauses, PlaceChange, Placement, Rejected,
    Response, Rest, Scale, State, Target,
};
use crate::spec::fingerprint::spec_hash;
use crate::spec::{HostName, InstanceId, InstanceKey, Population, ProcessName, Spec};

impl State {
    /// Applies a command. A refused command changes nothing but `index` and `now_ms`.
    pub fn apply(&mut self, envelope: &Envelope) -> Result<Response, Rejected> {
        self.index += 1;
        self.now_ms = self.now_ms.max(envelope.stamp_ms);
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
            Command::Inventory { host, incarnation, runs, rests } => {
                self.take_inventory(host, *incarnation, runs, rests)
            }
            Command::Roll { process, epoch } => self.roll(process, *epoch),
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
        self.scales.retain(|name, scale| {
            processes.get(name).is_some_and(|p| p.population == Population::Count(scale.declared))
        });
        self.launches.retain(|id, _| {
            processes.get(&id.process).is_some_and(|p| matches!(p.population, Population::OnDemand { .. }))
        });
        self.paused.processes.retain(|name| processes.contains_key(name));
        self.paused.instances.retain(|id| processes.contains_key(&id.process));
        self.paused.except.retain(|id| processes.contains_key(&id.process));
        Ok(Response::Revision(self.revision))
    }

    /// From now on a rollout's `deadline` counts.
    fn note_changes(&mut self, new: &Spec) {
        self.changed_ms.retain(|name, _| new.processes.contains_key(name));
        self.epochs.retain(|name, _| new.processes.contains_key(name));
        for (name, process) in &new.processes {
            let before = self.spec.processes.get(name);
            if before.is_some_and(|before| spec_hash(before) != spec_hash(process)) {
                self.changed_ms.insert(name.clone(), self.now_ms);
            }
        }
    }

    fn scale(&mut self, process: &ProcessName, count: Option<u32>) -> Result<Response, Rejected> {
        let entry = self.spec.processes.get(process).ok_or_else(|| Rejected::NoProcess(process.clone()))?;
        let Population::Count(declared) = entry.population else {
            return Err(Rejected::NotCounted(process.clone()));
        };
        match count.filter(|count| *count != declared) {
            Some(count) => self.scales.insert(process.clone(), Scale { count, declared }),
            None => self.scales.remove(process),
        };
        self.basis += 1;
        Ok(Response::Done)
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
        for (id, placement) in &mut self.placements {
            let meant = match target {
                Target::All => true,
                Target::Process(name) => id.process == *name,
                Target::Instance(instance) => id == instance,
            };
            if meant {
                placement.generation = index;
                self.rests.remove(id);
            }
        }
        self.basis += 1;
        Ok(Response::Done)
    }

    fn join_host(&mut self, name: &HostName, facts: &HostFacts) -> Result<Response, Rejected> {
        let before = self.hosts.get(name);
        if before.is_some_and(|host| host.up && host.facts.machine_id != facts.machine_id) {
            return Err(Rejected::CloneOf(name.clone()));
        }
        let incarnation = before.map_or(1, |host| host.incarnation + 1);
        let drained = before.is_some_and(|host| host.drained);
        let host = Host { incarnation, facts: facts.clone(), up: true, drained, last_seq: 0 };
        self.hosts.insert(name.clone(), host);
        self.basis += 1;
        Ok(Response::Incarnation(incarnation))
    }

    fn place(&mut self, based_on: u64, changes: &[PlaceChange]) -> Result<Response, Rejected> {
        if based_on != self.basis {
            return Err(Rejected::StalePlan { based_on, basis: self.basis });
        }
        for change in changes {
            self.check_exclusive(change)?;
        }
        for change in changes {
            let (PlaceChange::Put { instance, .. } | PlaceChange::Remove { instance }) = change;
            self.rests.remove(instance);
            match change {
                PlaceChange::Put { instance, host, hash } => {
                    let placement = Placement { host: host.clone(), generation: self.index, hash: *hash };
                    self.placements.insert(instance.clone(), placement);
                }
                // One that only fits nowhere for now stays paused.
                PlaceChange::Remove { instance } if self.wants(instance) => {
                    self.placements.remove(instance);
                }
                PlaceChange::Remove { instance } => {
                    self.placements.remove(instance);
                    self.paused.instances.remove(instance);
                    self.paused.except.remove(instance);
                }
            }
        }
        self.basis += 1;
        Ok(Response::Done)
    }

    /// An exclusive instance leaves its host only after its run is known to have stopped.
    fn check_exclusive(&self, change: &PlaceChange) -> Result<(), Rejected> {
        let PlaceChange::Put { instance, host, .. } = change else { return Ok(()) };
        let exclusive = self.spec.processes.get(&instance.process).is_some_and(|p| p.exclusive());
        let lives_elsewhere = self.directory.get(instance).is_some_and(|entry| entry.host != *host);
        if exclusive && lives_elsewhere {
            return Err(Rejected::StillRuns(instance.clone()));
        }
        Ok(())
    }

    fn current(&mut self, name: &HostName, incarnation: u64) -> Result<&mut Host, Rejected> {
        self.hosts
            .get_mut(name)
            .filter(|host| host.up && host.incarnation == incarnation)
            .ok_or_else(|| Rejected::OldIncarnation(name.clone()))
    }

    fn take_events(
        &mut self,
        name: &HostName,
        incarnation: u64,
        first_seq: u64,
        events: &[Event],
    ) -> Result<Response, Rejected> {
        let host = self.current(name, incarnation)?;
        let next = host.last_seq + 1;
        if first_seq > next {
            return Err(Rejected::Gap { host: name.clone(), first_seq, next });
        }
        let seen = usize::try_from(next - first_seq).unwrap_or(usize::MAX);
        let Some(new) = events.get(seen..).filter(|new| !new.is_empty()) else {
            return Ok(Response::Done);
        };
        host.last_seq += new.len() as u64;
        let address = host.facts.address.clone();
        for event in new {
            self.take_event(name, &address, event);
        }
        let touched: BTreeSet<&ProcessName> = new.iter().map(|event| &event.instance.process).collect();
        self.basis += u64::from(touched.into_iter().any(|process| self.rolls_out(process)));
        Ok(Response::Done)
    }

    fn take_event(&mut self, host: &HostName, address: &str, event: &Event) {
        let index = self.index;
        match &event.kind {
            EventKind::Started { hash, ports } => {
                let entry = Entry {
                    host: host.clone(),
                    run: event.run,
                    hash: *hash,
                    address: address.to_owned(),
                    ports: ports.clone(),
                    started: index,
                    ready: None,
                };
                self.directory.insert(event.instance.clone(), entry);
                self.rest_no_more(&event.instance);
            }
            EventKind::Ready => self.mark(host, event, Some(index)),
            EventKind::Unready => self.mark(host, event, None),
            EventKind::Stopped(ended) => {
                if self.directory.get(&event.instance).is_some_and(|e| e.host == *host && e.run == event.run)
                {
                    self.directory.remove(&event.instance);
                }
                if ended.done {
                    self.conclude_launch(&event.instance);
                }
            }
            EventKind::Rests(rest) => self.rest(host, &event.instance, rest),
        }
    }

    fn rest(&mut self, host: &HostName, instance: &InstanceId, rest: &Rest) {
        if rest.failed.is_none() {
            self.conclude_launch(instance);
        }
        let placed = self.placements.get(instance).is_some_and(|placement| placement.host == *host);
        if placed && self.rests.insert(instance.clone(), rest.clone()).as_ref() != Some(rest) {
            self.basis += 1;
        }
    }

    fn rest_no_more(&mut self, instance: &InstanceId) {
        self.basis += u64::from(self.rests.remove(instance).is_some());
    }

    fn conclude_launch(&mut self, instance: &InstanceId) {
        self.basis += u64::from(self.launches.remove(instance).is_some());
    }

    fn mark(&mut self, host: &HostName, event: &Event, ready: Option<u64>) {
        if let Some(entry) = self.directory.get_mut(&event.instance)
            && entry.host == *host
            && entry.run == event.run
        {
            entry.ready = ready;
        }
    }

    /// A plan depends on which runs are ready only while some instance has an old spec.
    fn rolls_out(&self, name: &ProcessName) -> bool {
        let Some(wanted) = self.hash_of(name) else { return false };
        self.placements.iter().any(|(id, placement)| id.process == *name && placement.hash != wanted)
    }

    fn take_inventory(
        &mut self,
        name: &HostName,
        incarnation: u64,
        runs: &BTreeMap<InstanceId, RunFact>,
        rests: &BTreeMap<InstanceId, Rest>,
    ) -> Result<Response, Rejected> {
        let address = self.current(name, incarnation)?.facts.address.clone();
        self.directory
            .retain(|id, entry| entry.host != *name || runs.get(id).is_some_and(|r| r.run == entry.run));
        let index = self.index;
        for (id, rest) in rests {
            self.rest(name, id, rest);
        }
        for (id, fact) in runs {
            self.rests.remove(id);
            let ready = fact.ready.then_some(index);
            let entry = self.directory.entry(id.clone()).or_insert_with(|| Entry {
                host: name.clone(),
                run: fact.run,
                hash: fact.hash,
                address: address.clone(),
                ports: fact.ports.clone(),
                started: index,
                ready,
            });
            if entry.host == *name && entry.ready.is_some() != fact.ready {
                entry.ready = ready;
            }
        }
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
        let live = self.launches.iter().filter(|(id, _)| id.process == *name);
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
