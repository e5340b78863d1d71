//! The invariants of the replicated state, after every command.

use bigbrother::state::State;
use bigbrother::state::check::{shrunk, violations};

pub const LAW: &str = "the state breaks";

pub fn check(before: &State, after: &State) -> Result<(), String> {
    match violations(after).into_iter().chain(shrunk(before, after)).next() {
        Some(violation) => Err(format!("{LAW} {violation} at index {}", after.index)),
        None => Ok(()),
    }
}

#[test]
fn a_directory_that_keeps_what_a_lost_host_ran() {
    crate::catches(crate::Fault::LostHostStays, LAW);
}
