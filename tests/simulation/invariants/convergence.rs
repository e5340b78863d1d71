//! When all is quiet, exactly what is declared runs, where it is placed, and nothing is left to plan.

use bigbrother::plan::{Liveness, instances, laws, plan};
use bigbrother::spec::{InstanceId, InstanceKey};

use crate::world::{Fault, World};

pub const LAW: &str = "it does not come to rest";

pub fn check(world: &World) -> Result<(), String> {
    let state = world.latest();
    let rest = plan(&state, &Liveness::default(), 0);
    let movable = |id: &&InstanceId| matches!(id.key, InstanceKey::Number(_));
    if !rest.commands.is_empty() || rest.unplaced.keys().any(|id| movable(&id)) {
        return Err(format!("{LAW}: {rest:?}"));
    }
    if let Some(violation) = laws::violations(&state).into_iter().next() {
        return Err(format!("{LAW}: {violation}"));
    }
    for (name, process) in &state.spec.processes {
        for id in instances(&state, name, process) {
            // A host that is drained has not even its own.
            let Some(placement) = state.placements.get(&id) else { continue };
            let host = &placement.host;
            let site = world.sites.iter().find(|site| site.name == *host).unwrap();
            let runs = site.living().filter(|(_, held)| held.instance == id).count();
            if runs != 1 {
                let known = site.agent.as_ref().unwrap().fleet.instance(&id);
                return Err(format!("{LAW}: {id} has {runs} runs on {host}, which knows {known:?}"));
            }
        }
    }
    Ok(())
}

#[test]
fn claims_that_are_never_given_back() {
    crate::catches(Fault::NoRelease, LAW);
}
