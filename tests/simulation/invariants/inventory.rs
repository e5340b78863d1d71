//! After anti-entropy the directory lists of a host what the host lists, no more and no less.

use std::collections::BTreeMap;

use bigbrother::state::{Command, State};

use crate::faults::Fault;

const LAW: &str = "the directory does not agree with a host's list";

pub fn check(after: &State, command: &Command) -> Result<(), String> {
    let Command::Inventory { host, seq, runs, .. } = command else { return Ok(()) };
    // An older list than what is known is ignored.
    if after.hosts.get(host).is_none_or(|known| known.last_seq != *seq) {
        return Ok(());
    }
    let beside =
        after.superseded.iter().flat_map(|(id, beside)| beside.values().map(move |entry| (id, entry)));
    let listed: BTreeMap<_, _> = (after.directory.iter().chain(beside))
        .filter(|(_, entry)| entry.host == *host)
        .map(|(id, entry)| (id, entry.run))
        .collect();
    match runs.iter().map(|(id, fact)| (id, fact.run)).eq(listed.iter().map(|(id, run)| (*id, *run))) {
        true => Ok(()),
        false => Err(format!("{LAW}: {host} has {runs:?}, listed are {listed:?} at index {}", after.index)),
    }
}

#[test]
fn a_list_that_only_adds() {
    crate::catches(Fault::ListOnlyAdds, LAW);
}
