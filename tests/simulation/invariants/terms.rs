//! A term has one primary.

use crate::faults::Fault;

const LAW: &str = "a term has two primaries";

pub fn check(term: u64, known: usize, peer: usize) -> Result<(), String> {
    match known == peer {
        true => Ok(()),
        false => Err(format!("{LAW}: {known} and {peer} in term {term}")),
    }
}

#[test]
fn a_peer_that_forgets_its_vote() {
    crate::catches(Fault::VoteForgotten, LAW);
}
