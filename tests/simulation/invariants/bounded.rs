//! The state stays as small as what is declared and what the cluster consists of, however long it is troubled.

use bigbrother::spec::InstanceId;
use bigbrother::state::State;

use crate::faults::Fault;

const LAW: &str = "the state has grown too large";

/// Jobs that are done are remembered for an hour, and the operators of this world are not that fast.
const FINISHED: usize = 100;

pub fn check(state: &State, machines: usize) -> Result<(), String> {
    let placed = state.placements.len();
    // What ran before a smaller spec came is listed until its host has ended it.
    let most = 3 * (placed + machines) + 60;
    let sizes = [
        ("hosts", state.hosts.len(), machines),
        ("directory", state.directory.len(), most),
        ("superseded", state.superseded.len(), most),
        ("claims", state.claims.len(), most),
        ("rests", state.rests.len(), placed),
        ("failed", state.failed.len(), most),
        ("launches", state.launches.len(), 10),
        ("finished", state.finished.len(), FINISHED),
        ("paused", state.paused.instances.len() + state.paused.except.len(), most),
        ("leaders", state.leaders.len(), 10),
    ];
    match sizes.into_iter().find(|(_, size, most)| size > most) {
        Some((what, size, most)) => Err(format!("{LAW}: {size} {what}, at most {most}")),
        None => Ok(()),
    }
}

/// At rest nothing is left of what was.
pub fn check_rest(state: &State) -> Result<(), String> {
    let exclusive = |id: &&InstanceId| state.spec.processes.get(&id.process).is_some_and(|p| p.exclusive());
    let claimed = state.placements.keys().filter(exclusive);
    if !claimed.eq(state.claims.keys()) {
        return Err(format!("{LAW}: claimed are {:?}", state.claims.keys().collect::<Vec<_>>()));
    }
    let gone = |id: &&InstanceId| !state.wants(id);
    let left = state.failed.keys().chain(&state.paused.instances).chain(&state.paused.except);
    match left.chain(state.rests.keys()).find(gone) {
        Some(id) => Err(format!("{LAW}: {id} is not wanted and not forgotten")),
        None => Ok(()),
    }
}

#[test]
fn claims_that_outlive_their_instances() {
    crate::catches(Fault::ClaimsStay, LAW);
}

#[test]
fn records_that_are_never_forgotten() {
    crate::catches(Fault::NothingForgotten, "what is remembered is bounded");
}
