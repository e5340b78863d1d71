//! A plan that was carried out changes nothing when it is made again.

use bigbrother::plan::{Liveness, plan};
use bigbrother::state::{Command, State};

use crate::faults::Fault;

const LAW: &str = "a plan carried out is not the last";

pub fn check(after: &State, command: &Command) -> Result<(), String> {
    if !matches!(command, Command::Place { .. }) {
        return Ok(());
    }
    let again = plan(after, &Liveness::default(), 0).commands;
    match again.into_iter().find(|command| matches!(command, Command::Place { .. })) {
        Some(more) => Err(format!("{LAW}: {more:?} after {command:?} at index {}", after.index)),
        None => Ok(()),
    }
}

#[test]
fn a_plan_that_forgets_its_last_change() {
    crate::catches(Fault::HalfAPlan, LAW);
}
