//! The plan: where every instance belongs, from the replicated state alone.
//!
//! Owns the placing of instances on hosts and the pace of rolling updates. Pure, deterministic and
//! level-triggered: it looks at what is, never at what happened, and planning its own result gives
//! nothing. Called by the primary's planner task whenever [`State::basis`] changes.

use std::collections::BTreeMap;

use crate::spec::fingerprint::SpecHash;
use crate::spec::{InstanceId, Population, Process, ProcessName};
use crate::state::{Command, PlaceChange, State};

mod placement;
mod rollout;

use placement::Board;

/// What a plan looks at besides the state: soft facts, which may be old or missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Liveness {
    /// The players of runs that tell of them.
    pub players: BTreeMap<InstanceId, u32>,
}

/// What the planner proposes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Commands for the state, in order.
    pub commands: Vec<Command>,
    /// Instances that fit nowhere, and why.
    pub unplaced: BTreeMap<InstanceId, String>,
    /// Updates wait for players to leave or a deadline to pass: plan again soon, although the state is the same.
    pub waits: bool,
}

/// Plans the whole desired set; `now_ms` is milliseconds since 1970.
pub fn plan(state: &State, liveness: &Liveness, now_ms: u64) -> Plan {
    let mut board = Board::new(state);
    let mut changes = Vec::new();
    let mut unplaced = BTreeMap::new();
    let mut waits = false;
    for instance in state.placements.keys().filter(|id| !state.wants(id)) {
        changes.push(PlaceChange::Remove { instance: instance.clone() });
    }
    for (name, process) in &state.spec.processes {
        let Some(hash) = state.hash_of(name) else { continue };
        let mut budget = rollout::Budget::new(state, name, process, hash);
        let turn = rollout::Turn::new(state, name, process, liveness, now_ms);
        for instance in instances(state, name, process) {
            waits |= turn.waits(state, &instance, hash);
            match place(state, &board, &instance, process, hash, &turn, &mut budget) {
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
    Plan { commands, unplaced, waits }
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
    turn: &rollout::Turn<'_>,
    budget: &mut rollout::Budget,
) -> Result<Option<PlaceChange>, String> {
    let put = |host: &crate::spec::HostName, hash| {
        Some(PlaceChange::Put { instance: instance.clone(), host: host.clone(), hash })
    };
    if let Some(now) = state.placements.get(instance)
        && board.stays(instance, &now.host)
    {
        let update = now.hash != hash && budget.take(instance, turn);
        return Ok(if update { put(&now.host, hash) } else { None });
    }
    let host = board.choose(instance, process)?;
    Ok(put(&host, hash))
}

#[cfg(test)]
mod tests;
