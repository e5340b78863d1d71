//! The peers' copies agree: at each index the same entry is committed everywhere, and the same state follows.

use std::sync::Arc;

use bigbrother::state::State;

use crate::faults::Fault;

const LAW: &str = "the copies of two peers differ";

/// Entries by term and name.
pub fn same_entry(at: usize, known: (u64, u64), entry: (u64, u64)) -> Result<(), String> {
    match known == entry {
        true => Ok(()),
        false => Err(format!("{LAW}: {known:?} was committed at {at}, and now {entry:?}")),
    }
}

pub fn same_state(peer: usize, applied: usize, known: &Arc<State>, state: &Arc<State>) -> Result<(), String> {
    match known == state {
        true => Ok(()),
        false => Err(format!("{LAW}: peer {peer} after {applied} entries")),
    }
}

#[test]
fn a_disk_that_tells_of_more_than_it_has() {
    crate::catches(Fault::DiskLies, LAW);
}

#[test]
fn a_peer_that_applies_an_entry_again() {
    crate::catches(Fault::AppliedTwice, LAW);
}
