//! Rolling updates: how many instances may be taken down now for a changed spec.
//!
//! An instance that is not ready counts as down, whichever spec it has: new runs that do not get ready
//! use up the budget, so a bad rollout stops by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Liveness;
use crate::spec::fingerprint::SpecHash;
use crate::spec::{InstanceId, Process, ProcessName};
use crate::state::{Placement, State};

#[cfg(test)]
mod tests;

/// Whose turn it is: with `update.when_empty` an instance that has players waits, until the deadline.
pub(super) struct Turn<'a> {
    players: Option<&'a BTreeMap<InstanceId, u32>>,
}

impl<'a> Turn<'a> {
    pub(super) fn new(
        state: &State,
        name: &ProcessName,
        process: &Process,
        liveness: &'a Liveness,
        now_ms: u64,
    ) -> Self {
        let since = state.changed_ms.get(name).copied().unwrap_or(now_ms);
        let waited = Duration::from_millis(now_ms.saturating_sub(since));
        let late = process.update.deadline.is_some_and(|deadline| waited >= deadline);
        let careful = process.update.when_empty && !late;
        Turn { players: careful.then_some(&liveness.players) }
    }

    /// True when nobody would be thrown out. A run that tells nothing of players counts as full.
    pub(super) fn has_come(&self, instance: &InstanceId) -> bool {
        self.players.is_none_or(|players| players.get(instance) == Some(&0))
    }

    /// True when the instance has an old spec and its turn has not come.
    pub(super) fn waits(&self, state: &State, instance: &InstanceId, wanted: SpecHash) -> bool {
        let old = state.placements.get(instance).is_some_and(|placement| placement.hash != wanted);
        old && !self.has_come(instance)
    }
}

/// What a plan may still take down of one process.
pub(super) struct Budget {
    left: usize,
    /// Instances that are down anyway, or have the new spec: updating them costs nothing.
    free: BTreeSet<InstanceId>,
}

impl Budget {
    /// The budget of a process at this moment; `staying`: its placements that this plan neither
    /// moves nor removes, and those that were given up where they are.
    pub(super) fn new<'a>(
        state: &State,
        process: &Process,
        wanted: SpecHash,
        staying: impl Iterator<Item = (&'a InstanceId, &'a Placement)>,
    ) -> Budget {
        let mut free = BTreeSet::new();
        let mut down = 0;
        for (id, placement) in staying {
            let ready = state.directory.get(id).filter(|entry| entry.ready.is_some()).map(|entry| entry.hash);
            // A run that was restarted meanwhile has the new spec before its turn.
            let done = ready == Some(wanted);
            let ready = done || ready == Some(placement.hash);
            // An operator's pause is no failure of the rollout, and what is paused is not taken down by it,
            // although its run may not have ended yet.
            let paused = state.paused.holds(id);
            if placement.hash != wanted && (done || paused || !ready) {
                free.insert(id.clone());
            }
            down += usize::from(!ready && !paused);
        }
        Budget { left: (process.update.max_unavailable as usize).saturating_sub(down), free }
    }

    /// True when the instance may be updated now.
    pub(super) fn take(&mut self, instance: &InstanceId, turn: &Turn<'_>) -> bool {
        if self.free.contains(instance) {
            return true;
        }
        if self.left == 0 || !turn.has_come(instance) {
            return false;
        }
        self.left -= 1;
        true
    }
}
