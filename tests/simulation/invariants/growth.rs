//! Generations, incarnations, tokens and the other counts only grow. From each entry of the log to the next.

use bigbrother::state::State;
use bigbrother::state::check::shrunk;

use crate::faults::Fault;

pub fn check(before: &State, after: &State) -> Result<(), String> {
    match shrunk(before, after).into_iter().next() {
        Some(violation) => Err(format!("{violation} at index {}", after.index)),
        None => Ok(()),
    }
}

#[test]
fn a_host_that_gets_an_old_incarnation() {
    crate::catches(Fault::OldIncarnation, "the incarnation of a host only grows");
}

#[test]
fn a_leader_with_the_token_of_the_one_before() {
    crate::catches(Fault::OldToken, "the token of a process only grows");
}

#[test]
fn a_placement_that_begins_anew() {
    crate::catches(Fault::OldGeneration, "the generation of a placement only grows");
}
