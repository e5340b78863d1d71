//! The planner's task: runs the pure plan whenever the state asks for one, and proposes what comes out.
//!
//! Owns the list of instances that fit nowhere. It keeps nothing else between two plans.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use super::handle::{AskError, Handle};
use crate::plan::plan;
use crate::spec::InstanceId;
use crate::state::Rejected;

/// Instances that fit nowhere, and why.
pub type Unplaced = Arc<BTreeMap<InstanceId, String>>;

/// Plans until nothing is left to do, then again whenever the state's basis moves.
pub async fn run(handle: Handle, unplaced: watch::Sender<Unplaced>) {
    let mut states = handle.state.clone();
    loop {
        let basis = settle(&handle, &unplaced).await;
        let moved = states.wait_for(|state| state.basis != basis).await;
        if moved.is_err() {
            return;
        }
    }
}

/// Plans until a plan is empty; gives the basis of that plan.
pub async fn settle(handle: &Handle, unplaced: &watch::Sender<Unplaced>) -> u64 {
    loop {
        let state = handle.state.borrow().clone();
        let plan = plan(&state);
        unplaced.send_if_modified(|held| {
            let changed = **held != plan.unplaced;
            if changed {
                *held = Arc::new(plan.unplaced);
            }
            changed
        });
        if plan.commands.is_empty() {
            return state.basis;
        }
        for command in plan.commands {
            match handle.propose(command).await {
                Ok(_) | Err(AskError::Rejected(Rejected::StalePlan { .. })) => {}
                Err(AskError::Stopping) => return state.basis,
                Err(error) => tracing::warn!(%error, "a plan was refused"),
            }
        }
        // The reply may overtake the new state on the watch.
        let mut states = handle.state.clone();
        if states.wait_for(|now| now.basis != state.basis).await.is_err() {
            return state.basis;
        }
    }
}
