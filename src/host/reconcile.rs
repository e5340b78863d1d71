//! From the replicated state to what this host should run.
//!
//! Pure. [`wants`] reads placements; [`super::Host::desire`] compares the result with what is there. It
//! never looks at what was wanted before, so a lost message costs nothing: the next state says it again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::spec::fingerprint::{SpecHash, spec_hash};
use crate::spec::{HostName, InstanceId, Process, ProcessName};
use crate::state::State;

/// What is wanted of one instance on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Its process.
    pub process: Arc<Process>,
    /// What a new run is spawned with.
    pub hash: SpecHash,
    /// The living run is to be replaced when it has another hash: its turn in the rollout has come.
    pub replace: bool,
    /// Grows when the instance is placed anew or resumed.
    pub generation: u64,
    /// An operator has stopped it.
    pub paused: bool,
    /// Its first run waits for this process to be ready.
    pub waits_for: Option<ProcessName>,
    /// Values of `{arg.NAME}`.
    pub args: BTreeMap<String, String>,
}

/// Everything that is wanted on a host.
pub fn wants(state: &State, host: &HostName) -> BTreeMap<InstanceId, Want> {
    let hashes: BTreeMap<&ProcessName, SpecHash> =
        state.spec.processes.iter().map(|(name, process)| (name, spec_hash(process))).collect();
    let ready = ready_processes(state);
    let mine = state.placements.iter().filter(|(_, placement)| placement.host == *host);
    mine.filter_map(|(id, placement)| {
        let process = state.spec.processes.get(&id.process)?;
        let hash = *hashes.get(&id.process)?;
        let waits_for = process.after.iter().find(|name| !ready.contains(*name)).cloned();
        let want = Want {
            process: process.clone(),
            hash,
            replace: placement.hash == hash,
            generation: placement.generation,
            paused: state.paused.holds(id),
            waits_for,
            args: state.launches.get(id).map(|launch| launch.args.clone()).unwrap_or_default(),
        };
        Some((id.clone(), want))
    })
    .collect()
}

/// Processes with at least one ready run.
fn ready_processes(state: &State) -> BTreeSet<&ProcessName> {
    let ready = state.directory.iter().filter(|(_, entry)| entry.ready.is_some());
    ready.map(|(id, _)| &id.process).collect()
}
