//! An exclusive instance never has two live runs: in the keepers' tables, in true time, at every step.

use std::collections::BTreeMap;

use crate::faults::Fault;
use crate::world::World;

const LAW: &str = "an exclusive instance has two runs";

pub fn check(world: &World) -> Result<(), String> {
    let mut living = BTreeMap::new();
    for site in &world.sites {
        let name = &site.machine.name;
        for (run, held) in site.machine.keeper.living().filter(|(_, held)| held.exclusive) {
            if let Some(other) = living.insert(&held.instance, (name, run)) {
                return Err(format!(
                    "{LAW}: {} on {name} ({run}) and {other:?} at {} ms",
                    held.instance, world.now
                ));
            }
        }
    }
    Ok(())
}

#[test]
fn a_keeper_that_does_not_kill() {
    crate::catches(Fault::FenceIgnored, LAW);
}

#[test]
fn a_deadline_that_counts_from_the_answer() {
    crate::catches(Fault::HoldTooLong, LAW);
}

#[test]
fn a_confirm_without_a_round_with_a_quorum() {
    crate::catches(Fault::NoReadIndex, LAW);
}

#[test]
fn a_new_primary_that_does_not_wait() {
    crate::catches(Fault::NoWait, LAW);
}

#[test]
fn a_primary_that_gives_up_for_good() {
    crate::catches(Fault::GivenUpForGood, LAW);
}

#[test]
fn a_claim_that_is_given_back_while_its_run_ends() {
    crate::catches(Fault::EagerRelease, LAW);
}

#[test]
fn an_agent_that_starts_by_an_old_state() {
    crate::catches(Fault::StaleStart, LAW);
}
