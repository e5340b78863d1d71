//! When all is quiet, the directory is what the keepers' tables hold.

use std::collections::BTreeMap;

use crate::faults::Fault;
use crate::world::World;

const LAW: &str = "the directory is not what runs";

pub fn check(world: &World) -> Result<(), String> {
    let state = world.state();
    let listed: BTreeMap<_, _> =
        state.directory.iter().map(|(id, entry)| (id.clone(), (entry.host.clone(), entry.run))).collect();
    let mut runs = BTreeMap::new();
    for site in &world.sites {
        for (run, held) in site.machine.keeper.living() {
            runs.insert(held.instance.clone(), (site.machine.name.clone(), run));
        }
    }
    if listed != runs || !state.superseded.is_empty() {
        return Err(format!("{LAW}: listed {listed:?}, runs {runs:?}, beside {:?}", state.superseded));
    }
    Ok(())
}

#[test]
fn events_that_get_lost_on_the_host() {
    crate::catches(Fault::EventsLost, LAW);
}
