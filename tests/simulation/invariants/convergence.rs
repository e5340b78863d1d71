//! When all is quiet, exactly what is declared runs, where it is placed, and nothing is left to plan.

use std::collections::BTreeSet;

use bigbrother::plan::{Liveness, instances, laws, plan};
use bigbrother::spec::{InstanceId, InstanceKey};
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
        return Err(format!("{LAW}: declared {declared:?}, placed {:?}", state.placements.keys()));
    }
    for (id, placement) in &state.placements {
        let wanted = usize::from(!state.paused.holds(id) && !state.rests.contains_key(id));
        for site in &world.sites {
            let runs = site.machine.keeper.living().filter(|(_, held)| held.instance == *id).count();
            let here = if site.machine.name == placement.host { wanted } else { 0 };
            if runs != here {
                let known = site.agent.as_ref().and_then(|agent| agent.fleet.instance(id));
                let name = &site.machine.name;
                return Err(format!(
                    "{LAW}: {id} has {runs} runs on {name}, not {here}, which knows {known:?}"
                ));
            }
        }
    }
    Ok(())
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
