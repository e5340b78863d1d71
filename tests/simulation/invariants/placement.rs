//! Once a plan is in force nothing is placed on a host that is down, drained or unfit, or has no room.

use bigbrother::plan::laws::violations;
use bigbrother::state::{Command, State};

use crate::faults::Fault;

pub fn check(after: &State, command: &Command) -> Result<(), String> {
    if !matches!(command, Command::Place { .. }) {
        return Ok(());
    }
    match violations(after).into_iter().next() {
        Some(violation) => Err(format!("{violation} at index {}", after.index)),
        None => Ok(()),
    }
}

#[test]
fn a_plan_that_does_not_look_whether_hosts_are_drained() {
    crate::catches(Fault::DrainIgnored, "nothing is placed on a drained or unfit host");
}

#[test]
fn a_plan_that_does_not_look_how_much_a_host_may_carry() {
    crate::catches(Fault::RoomIgnored, "no host carries more than it may");
}
