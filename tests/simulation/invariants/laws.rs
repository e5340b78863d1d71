//! What must always be true of the replicated state: placements, entries and claims belong to hosts that are up, and
//! the rest of `state/check.rs`. After every entry of the log.
//!
//! That an instance has at most one placement is in the type: a map by instance.

use bigbrother::state::State;
use bigbrother::state::check::violations;

use crate::faults::Fault;

pub fn check(state: &State) -> Result<(), String> {
    match violations(state).into_iter().next() {
        Some(violation) => Err(format!("{violation} at index {}", state.index)),
        None => Ok(()),
    }
}

#[test]
fn a_directory_that_keeps_what_a_lost_host_ran() {
    crate::catches(Fault::LostHostListed, "directory entries belong to hosts that are up");
}

#[test]
fn placements_that_a_lost_host_keeps() {
    crate::catches(Fault::LostHostPlaced, "placements are on hosts that are up");
}
