//! The plan: where every instance belongs, from the replicated state alone.
//!
//! Owns the placing of instances on hosts and the pace of rolling updates. Pure, deterministic and
//! level-triggered: it looks at what is, never at what happened, and planning its own result gives
//! nothing. Called by the primary's planner task whenever [`State::basis`] changes.

use std::collections::BTreeMap;

use crate::spec::fingerprint::{SpecHash, spec_hash};
use crate::spec::{InstanceId, Population, Process, ProcessName};
use crate::state::{Command, PlaceChange, State};

mod placement;
mod rollout;

use placement::Board;

/// What the planner proposes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Commands for the state, in order.
    pub commands: Vec<Command>,
    /// Instances that fit nowhere, and why.
    pub unplaced: BTreeMap<InstanceId, String>,
}

/// Plans the whole desired set.
pub fn plan(state: &State) -> Plan {
    let mut board = Board::new(state);
    let mut changes = Vec::new();
    let mut unplaced = BTreeMap::new();
    for instance in state.placements.keys().filter(|id| !state.wants(id)) {
        changes.push(PlaceChange::Remove { instance: instance.clone() });
    }
    for (name, process) in &state.spec.processes {
        let hash = spec_hash(process);
        let mut budget = rollout::budget(state, name, process, hash);
        for instance in instances(state, name, process) {
            match place(state, &board, &instance, process, hash, &mut budget) {
                Ok(None) => {}
                Ok(Some(change)) => {
                    if let PlaceChange::Put { instance, host, .. } = &change {
                        board.note(instance, host);
                    }
                    changes.push(change);
                }
                Err(reason) => {
                    if state.placements.contains_key(&instance) {
                        changes.push(PlaceChange::Remove { instance: instance.clone() });
                    }
                    unplaced.insert(instance, reason);
                }
            }
        }
    }
    let commands = match changes.is_empty() {
        true => Vec::new(),
        false => vec![Command::Place { based_on: state.basis, changes }],
    };
    Plan { commands, unplaced }
}

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
        Population::OnDemand { .. } => {
            state.launches.keys().filter(|id| id.process == *name).cloned().collect()
        }
    }
}

fn place(
    state: &State,
    board: &Board<'_>,
    instance: &InstanceId,
    process: &Process,
    hash: SpecHash,
    budget: &mut rollout::Budget,
) -> Result<Option<PlaceChange>, String> {
    let put = |host: &crate::spec::HostName, hash| {
        Some(PlaceChange::Put { instance: instance.clone(), host: host.clone(), hash })
    };
    if let Some(now) = state.placements.get(instance)
        && board.stays(instance, &now.host)
    {
        let update = now.hash != hash && budget.take(instance);
        return Ok(if update { put(&now.host, hash) } else { None });
    }
    let host = board.choose(instance, process)?;
    Ok(put(&host, hash))
}

#[cfg(test)]
mod tests;
