//! Rolling restarts: how often the instances of a process were asked for anew.
//!
//! The epoch enters the hash of a process's runs, and a changed hash is rolled out by the plan as that of a
//! changed spec is: at the pace of `update`, and stopped by runs that do not get ready. Instances that rest get
//! another try.

use super::{Rejected, Response, State};
use crate::spec::ProcessName;
use crate::spec::fingerprint::{SpecHash, spec_hash};

impl State {
    /// What the runs of a process are meant to have: its spec, and the epoch of its last rolling restart.
    pub fn hash_of(&self, process: &ProcessName) -> Option<SpecHash> {
        let spec = spec_hash(self.spec.processes.get(process)?);
        Some(spec.at_epoch(self.epochs.get(process).copied().unwrap_or(0)))
    }

    pub(super) fn roll(&mut self, name: &ProcessName, epoch: u64) -> Result<Response, Rejected> {
        if !self.spec.processes.contains_key(name) {
            return Err(Rejected::NoProcess(name.clone()));
        }
        let found = self.epochs.get(name).copied().unwrap_or(0);
        if found == epoch {
            return Ok(Response::Done);
        }
        if found.checked_add(1) != Some(epoch) {
            return Err(Rejected::Epoch { process: name.clone(), expected: epoch.saturating_sub(1), found });
        }
        self.epochs.insert(name.clone(), epoch);
        self.changed_ms.insert(name.clone(), self.now_ms);
        // The new binary may do better where the old one was given up.
        self.failed.retain(|id, _| id.process != *name);
        self.basis += 1;
        Ok(Response::Done)
    }
}
