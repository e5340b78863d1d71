//! The planner's task: runs the pure plan whenever the state asks for one, and proposes what comes out.
//!
//! Owns the list of instances that fit nowhere. What the planner remembers between two plans saves time and
//! changes none of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::handle::{AskError, Handle};
use super::replica::wall_ms;
use super::supervise::moment;
use crate::plan::{Liveness, Planner};
use crate::spec::InstanceId;
use crate::state::{Clock, Rejected};

/// Instances that fit nowhere, and why.
pub type Unplaced = Arc<BTreeMap<InstanceId, String>>;

/// How often is planned again what waits: updates for players, a plan that was not carried out for its next attempt.
const PATIENCE: Duration = Duration::from_secs(1);

/// While this host is the primary: plans until nothing is left to do, then again whenever the state's basis moves.
/// A plan of a primary that is none any more is refused, because its basis is not that of the state.
pub async fn run(
    handle: Handle,
    liveness: watch::Receiver<Arc<Liveness>>,
    unplaced: watch::Sender<Unplaced>,
) {
    let mut states = handle.state.clone();
    let mut leads = handle.ring.leads();
    let mut planning = Planning::default();
    loop {
        if let Some(leads) = &mut leads {
            // What fits nowhere only the primary says; what it said before is soon true no more.
            if !*leads.borrow() {
                unplaced.send_replace(Unplaced::default());
            }
            if leads.wait_for(|leads| *leads).await.is_err() {
                return;
            }
        }
        let Settled { basis, waits } = settle(&handle, &mut planning, &liveness, &unplaced).await;
        let moved = states.wait_for(|state| state.basis != basis);
        tokio::select! {
            moved = moved => if moved.is_err() {
                return;
            },
            () = tokio::time::sleep(PATIENCE), if waits => {}
            () = lost(&mut leads) => {}
        }
    }
}

/// Until this host is not the primary any more.
async fn lost(leads: &mut Option<watch::Receiver<bool>>) {
    match leads {
        Some(leads) => drop(leads.wait_for(|leads| !*leads).await),
        None => std::future::pending().await,
    }
}

/// What one plan leaves for the next.
#[derive(Default)]
struct Planning {
    planner: Planner,
    clock: Clock,
}

/// Of what the last plan was made.
struct Settled {
    /// The state's basis.
    basis: u64,
    /// See [`crate::plan::Plan::waits`]; or it was not carried out.
    waits: bool,
}

/// Plans until a plan is empty, for a host that is alone.
pub async fn settle_once(
    handle: &Handle,
    liveness: &watch::Receiver<Arc<Liveness>>,
    unplaced: &watch::Sender<Unplaced>,
) {
    settle(handle, &mut Planning::default(), liveness, unplaced).await;
}

/// Plans until a plan is empty, or the cluster does not take one.
async fn settle(
    handle: &Handle,
    planning: &mut Planning,
    liveness: &watch::Receiver<Arc<Liveness>>,
    unplaced: &watch::Sender<Unplaced>,
) -> Settled {
    loop {
        let state = handle.state.borrow().clone();
        let soft = liveness.borrow().clone();
        let began = Instant::now();
        let now_ms = planning.clock.now_ms(state.now_ms, wall_ms(), moment());
        let plan = planning.planner.plan(&state, &soft, now_ms);
        handle.metrics.planned(began.elapsed());
        let settled = Settled { basis: state.basis, waits: plan.waits };
        unplaced.send_if_modified(|held| {
            let changed = **held != plan.unplaced;
            if changed {
                *held = Arc::new(plan.unplaced);
            }
            changed
        });
        if plan.commands.is_empty() {
            return settled;
        }
        for command in plan.commands {
            match handle.propose(command).await {
                Ok(_) | Err(AskError::Rejected(Rejected::StalePlan { .. })) => {}
                Err(AskError::Stopping) => return settled,
                // Nothing changes by itself then: neither the basis, nor perhaps who is the primary.
                Err(AskError::Unanswered(error)) => {
                    tracing::warn!(%error, "a plan was not carried out; it is made again");
                    return Settled { waits: true, ..settled };
                }
                Err(error) => tracing::warn!(%error, "a plan was refused"),
            }
        }
        // The reply may overtake the new state on the watch.
        let mut states = handle.state.clone();
        let moved = states.wait_for(|now| now.basis != state.basis);
        if tokio::time::timeout(PATIENCE, moved).await.is_ok_and(|moved| moved.is_err()) {
            return settled;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::agent::handle::Proposal;
    use crate::cluster::node::ProposeError;
    use crate::cluster::wire::EncodeError;
    use crate::config::{Context, parse};
    use crate::state::{Command, Envelope, HostFacts, State};

    /// One instance and a host for it.
    fn state() -> State {
        let context = Context { hostname: "alpha".to_owned(), host_override: None };
        let spec = parse("[process.zone]\ncommand = [\"/z\"]\n", "cluster.toml", &context).unwrap().spec;
        let mut state = State::default();
        let join = Command::JoinHost { host: "alpha".parse().unwrap(), facts: HostFacts::default() };
        for command in [Command::ApplySpec { spec, expected_revision: None }, join] {
            state.apply(&Envelope { stamp_ms: 1, command }).unwrap();
        }
        state
    }

    #[tokio::test]
    async fn a_plan_that_is_not_carried_out_is_made_again_although_nothing_has_changed() {
        let (to, mut proposals) = mpsc::channel(1);
        let (_state, states) = watch::channel(Arc::new(state()));
        let (_liveness, liveness) = watch::channel(Arc::default());
        let (unplaced, _shown) = watch::channel(Arc::default());
        let _planner = tokio::spawn(run(Handle::of_test(to, states), liveness, unplaced));
        for error in [
            ProposeError::Unknown(PATIENCE),
            ProposeError::NoPrimary(PATIENCE),
            EncodeError::TooLarge(usize::MAX).into(),
            Rejected::NotUp("alpha".parse().unwrap()).into(),
            ProposeError::Unknown(PATIENCE),
        ] {
            let asked = tokio::time::timeout(10 * PATIENCE, proposals.recv()).await;
            let Proposal { command, reply } = asked.expect("it plans no more").expect("it has ended");
            assert!(matches!(command, Command::Place { .. }), "{command:?}");
            reply.send(Err(error)).unwrap();
        }
    }
}
