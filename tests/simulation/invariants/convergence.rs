//! When all is quiet, exactly what is declared runs, where it is placed, and nothing is left to plan.

use std::collections::{BTreeMap, BTreeSet};

use bigbrother::plan::{Liveness, instances, laws, plan};
use bigbrother::spec::{HostName, InstanceId, InstanceKey};
use bigbrother::state::State;

use crate::faults::Fault;
use crate::world::World;

const LAW: &str = "it does not come to rest";

pub fn check(world: &World) -> Result<(), String> {
    let state = world.state();
    let rest = plan(state, &Liveness::default(), 0);
    // Not every wish can be granted: there may be too few hosts with a label or a free port.
    let unplaced: BTreeSet<&InstanceId> = rest.unplaced.keys().collect();
    if !rest.commands.is_empty() || unplaced.iter().any(|id| fits_somewhere(state, id)) {
        return Err(format!("{LAW}: {rest:?}"));
    }
    if let Some(violation) = laws::violations(state).into_iter().next() {
        return Err(format!("{LAW}: {violation}"));
    }
    let mut declared = BTreeSet::new();
    for (name, process) in &state.spec.processes {
        declared.extend(instances(state, name, process).into_iter().filter(|id| !unplaced.contains(id)));
    }
    if !declared.iter().eq(state.placements.keys()) {
        return Err(format!(
            "{LAW}: declared {declared:?}, placed {:?}",
            state.placements.keys().collect::<Vec<_>>()
        ));
    }
    let mut running: BTreeMap<&InstanceId, Vec<&HostName>> = BTreeMap::new();
    for site in &world.sites {
        for (_, held) in site.machine.keeper.living() {
            running.entry(&held.instance).or_default().push(&site.machine.name);
        }
    }
    for (id, placement) in &state.placements {
        let rests = state.paused.holds(id) || state.rests.contains_key(id);
        let meant = if rests { Vec::new() } else { vec![&placement.host] };
        let found = running.remove(id).unwrap_or_default();
        if found != meant {
            return Err(format!("{LAW}: {id} runs on {found:?}, not on {meant:?}"));
        }
    }
    match running.first_key_value() {
        Some((id, hosts)) => Err(format!("{LAW}: {id} runs on {hosts:?} and is not declared")),
        None => Ok(()),
    }
}

/// These have no need that some host could lack.
fn fits_somewhere(state: &State, id: &InstanceId) -> bool {
    let simple = |process: &bigbrother::spec::Process| {
        process.placement.labels.is_empty() && process.placement.max_per_host.is_none()
    };
    matches!(id.key, InstanceKey::Number(_))
        && state.spec.processes.get(&id.process).is_some_and(|p| simple(p))
}

#[test]
fn claims_that_are_never_given_back() {
    crate::catches(Fault::NoRelease, LAW);
}

#[test]
fn a_host_that_goes_on_with_what_is_placed_elsewhere_now() {
    crate::catches(Fault::OldRunsGoOn, LAW);
}
