//! Who may run what: placements, and the claims that keep an exclusive instance from running twice.
//!
//! A claim begins with the placement and ends with the word of its host ([`super::EventKind::Released`]) or
//! with the host itself ([`super::Command::HostDown`]), never with a plan: whoever was told to run an
//! instance may be about to, although nothing was heard of a run yet. The host's word names the generation
//! that it gives back, so a word from before a new placement releases nothing.

use std::collections::BTreeSet;

use super::{Claim, PlaceChange, Placement, Rejected, Response, State};
use crate::spec::fingerprint::SpecHash;
use crate::spec::{HostName, InstanceId, ProcessName};

impl State {
    pub(super) fn place(&mut self, based_on: u64, changes: &[PlaceChange]) -> Result<Response, Rejected> {
        if based_on != self.basis {
            return Err(Rejected::StalePlan { based_on, basis: self.basis });
        }
        for change in changes {
            let PlaceChange::Put { instance, host, .. } = change else { continue };
            if !self.hosts.get(host).is_some_and(|host| host.up) {
                return Err(Rejected::NotUp(host.clone()));
            }
            if !self.may_put(instance, host) {
                return Err(Rejected::StillRuns(instance.clone()));
            }
        }
        let mut touched = BTreeSet::new();
        for change in changes {
            let (PlaceChange::Put { instance, .. } | PlaceChange::Remove { instance }) = change;
            self.rests.remove(instance);
            match change {
                PlaceChange::Put { instance, host, hash } => {
                    self.assign(instance, host, *hash);
                    if self.put_first(instance, host) {
                        touched.insert(instance.process.clone());
                    }
                }
                PlaceChange::Remove { instance } => {
                    self.placements.remove(instance);
                    // One that only fits nowhere for now stays paused.
                    if !self.wants(instance) {
                        self.paused.instances.remove(instance);
                        self.paused.except.remove(instance);
                        self.failed.remove(instance);
                    }
                }
            }
        }
        let waits = self.hosts.iter().filter(|(_, host)| host.up && !host.planned);
        let waits: Vec<HostName> = waits.map(|(name, _)| name.clone()).collect();
        for name in &waits {
            if let Some(host) = self.hosts.get_mut(name) {
                host.planned = true;
            }
        }
        self.elect(&touched);
        self.basis += 1;
        Ok(Response::Done)
    }

    fn assign(&mut self, instance: &InstanceId, host: &HostName, hash: SpecHash) {
        let generation = self.index;
        if self.is_exclusive(&instance.process) {
            self.claims.insert(instance.clone(), Claim { host: host.clone(), generation });
        }
        self.placements.insert(instance.clone(), Placement { host: host.clone(), generation, hash });
    }

    /// False for an exclusive instance that another host may run. It may not be put even where it is placed already:
    /// that would start a run anew beside the other one.
    pub fn may_put(&self, instance: &InstanceId, host: &HostName) -> bool {
        !self.is_exclusive(&instance.process) || self.is_free(instance, host)
    }

    /// True when no other host may run the instance.
    fn is_free(&self, instance: &InstanceId, host: &HostName) -> bool {
        let claimed = self.claims.get(instance).is_some_and(|claim| claim.host != *host);
        let lives = self.directory.get(instance).is_some_and(|entry| entry.host != *host);
        let beside = self.superseded.get(instance).is_some_and(|runs| runs.keys().any(|other| other != host));
        !claimed && !lives && !beside
    }

    pub(super) fn is_exclusive(&self, name: &ProcessName) -> bool {
        self.spec.processes.get(name).is_some_and(|process| process.exclusive())
    }

    /// The host gives a claim back. True when it was the one that holds.
    pub(super) fn release(&mut self, host: &HostName, instance: &InstanceId, generation: u64) -> bool {
        let holds = self
            .claims
            .get(instance)
            .is_some_and(|claim| claim.host == *host && claim.generation == generation);
        let gives_back = holds && !self.is_placed_on(instance, host);
        if gives_back {
            self.claims.remove(instance);
        }
        gives_back
    }

    /// True when it belongs to that host.
    pub fn is_placed_on(&self, instance: &InstanceId, host: &HostName) -> bool {
        self.placements.get(instance).is_some_and(|placement| placement.host == *host)
    }

    /// A process that becomes exclusive is claimed by those that run it, one that is no more by nobody.
    pub(super) fn claim_anew(&mut self) {
        let placements = &self.placements;
        let processes = &self.spec.processes;
        let exclusive = |name: &ProcessName| processes.get(name).is_some_and(|process| process.exclusive());
        // What is not declared any more still runs until its host has ended it.
        self.claims.retain(|id, _| !processes.contains_key(&id.process) || exclusive(&id.process));
        for (id, placement) in placements.iter().filter(|(id, _)| exclusive(&id.process)) {
            let claim = Claim { host: placement.host.clone(), generation: placement.generation };
            self.claims.get_or_insert_with(id.clone(), || claim);
        }
    }
}
