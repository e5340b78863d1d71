//! An exclusive instance never has two live runs, in true time.

use std::collections::BTreeMap;

use crate::world::{Fault, World};

pub const LAW: &str = "an exclusive instance has two runs";

pub fn check(world: &World) -> Result<(), String> {
    let mut living = BTreeMap::new();
    for site in &world.sites {
        for (run, held) in site.living().filter(|(_, held)| held.exclusive) {
            if let Some(other) = living.insert(&held.instance, (&site.name, run)) {
                return Err(format!(
                    "{LAW}: {} on {} ({run}) and {other:?} at {} ms",
                    held.instance, site.name, world.now
                ));
            }
        }
    }
    Ok(())
}

#[test]
fn a_keeper_that_does_not_kill() {
    crate::catches(Fault::KeeperIgnoresFence, LAW);
}

#[test]
fn a_deadline_that_counts_from_the_answer() {
    crate::catches(Fault::HoldTooLong, LAW);
}

#[test]
fn a_confirm_without_a_read_index_round() {
    crate::catches(Fault::NoReadIndex, LAW);
}

#[test]
fn a_new_primary_that_does_not_wait() {
    crate::catches(Fault::NoWait, LAW);
}
