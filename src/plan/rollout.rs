//! Rolling updates: how many instances may be taken down now for a changed spec.
//!
//! An instance that is not ready counts as down, whichever spec it has: new runs that do not get ready
//! use up the budget, so a bad rollout stops by itself.

use std::collections::BTreeSet;

use crate::spec::fingerprint::SpecHash;
use crate::spec::{InstanceId, Process, ProcessName};
use crate::state::State;

/// What a plan may still take down of one process.
pub(super) struct Budget {
    left: usize,
    /// Instances that are down anyway: updating them costs nothing.
    free: BTreeSet<InstanceId>,
}

impl Budget {
    /// True when the instance may be updated now.
    pub(super) fn take(&mut self, instance: &InstanceId) -> bool {
        if self.free.contains(instance) {
            return true;
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

/// The budget of a process at this moment.
pub(super) fn budget(state: &State, name: &ProcessName, process: &Process, wanted: SpecHash) -> Budget {
    let mut free = BTreeSet::new();
    let mut down = 0;
    for (id, placement) in state.placements.iter().filter(|(id, _)| id.process == *name) {
        let entry = state.directory.get(id);
        let ready = entry.is_some_and(|entry| entry.ready.is_some() && entry.hash == placement.hash);
        if ready {
            continue;
        }
        if placement.hash != wanted {
            free.insert(id.clone());
        }
        // An operator's pause is no failure of the rollout.
        if !state.paused.holds(id) {
            down += 1;
        }
    }
    Budget { left: (process.update.max_unavailable as usize).saturating_sub(down), free }
}
