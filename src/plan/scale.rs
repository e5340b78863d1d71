//! Which instances a process is meant to have, and when one too many goes.
//!
//! The highest ordinals go, whoever plays where: what is wanted is known without soft facts. With
//! `update.when_empty` one of those that has players stays until it is empty or `update.deadline` is over.

use super::rollout::Turn;
use crate::spec::{InstanceId, InstanceKey, Population, Process, ProcessName};
use crate::state::{State, of_process};

/// The wanted instances of a process, in order.
pub fn instances(state: &State, name: &ProcessName, process: &Process) -> Vec<InstanceId> {
    match process.population {
        Population::Count(_) => {
            let count = state.count_of(name).unwrap_or(0);
            (0..u64::from(count)).map(|n| InstanceId::numbered(name.clone(), n)).collect()
        }
        Population::PerHost => {
            state.hosts.keys().map(|host| InstanceId::on_host(name.clone(), host.clone())).collect()
        }
        Population::OnDemand { .. } => of_process(&state.launches, name).map(|(id, _)| id.clone()).collect(),
    }
}

/// Says of placed instances of one process, in order, whether they are wanted.
pub(super) struct Wanted<'a> {
    state: &'a State,
    /// Ordinals below this are.
    count: u64,
    population: &'a Population,
}

impl<'a> Wanted<'a> {
    pub(super) fn new(state: &'a State, name: &ProcessName, process: &'a Process) -> Self {
        let count = state.count_of(name).unwrap_or(0).into();
        Wanted::of_count(state, count, &process.population)
    }

    /// The same, where the count is known.
    pub(super) fn of_count(state: &'a State, count: u64, population: &'a Population) -> Self {
        Wanted { state, count, population }
    }

    /// Ordinals below this are wanted, where instances are counted.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn has(&self, id: &InstanceId) -> bool {
        match (self.population, &id.key) {
            (Population::Count(_), InstanceKey::Number(n)) => *n < self.count,
            (Population::PerHost, InstanceKey::Host(host)) => self.state.hosts.contains_key(host),
            (Population::OnDemand { .. }, InstanceKey::Number(_)) => self.state.launches.contains_key(id),
            _ => false,
        }
    }

    /// True when one that is not wanted any more waits for its players to leave.
    pub(super) fn lingers(&self, id: &InstanceId, turn: &Turn<'_>) -> bool {
        let counted = matches!((self.population, &id.key), (Population::Count(_), InstanceKey::Number(_)));
        counted && self.state.directory.contains_key(id) && !turn.has_come(id)
    }

    /// The wanted instances that are not among these, in order.
    pub(super) fn missing<'b>(
        &self,
        name: &ProcessName,
        process: &Process,
        placed: impl Iterator<Item = &'b InstanceId>,
    ) -> Vec<InstanceId> {
        let mut placed = placed.peekable();
        let mut absent = |id: &InstanceId| {
            while placed.next_if(|held| **held < *id).is_some() {}
            placed.peek().is_none_or(|held| **held != *id)
        };
        match process.population {
            // Names are made for those only that are missing: there may be very many of the others.
            Population::Count(_) => {
                let mut id = InstanceId::numbered(name.clone(), 0);
                let mut out = Vec::new();
                for number in 0..self.count {
                    id.key = InstanceKey::Number(number);
                    if absent(&id) {
                        out.push(id.clone());
                    }
                }
                out
            }
            _ => instances(self.state, name, process).into_iter().filter(absent).collect(),
        }
    }
}
