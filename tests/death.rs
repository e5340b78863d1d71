//! Death of agent and keeper: the games go on, nobody runs twice, nobody is lost.
//!
//! The real program as agent and keeper, with small processes. Needs root (cgroups, mounts).

// Helpers of tests, which clippy does not take for tests.
#![allow(clippy::unwrap_used)]

#[path = "support/host.rs"]
mod host;

#[path = "death/adoption.rs"]
mod adoption;
#[path = "death/agent_fault_points.rs"]
mod agent_fault_points;
#[path = "death/fault_points.rs"]
mod fault_points;
#[path = "death/frozen.rs"]
mod frozen;
#[path = "death/ledger.rs"]
mod ledger;
#[path = "death/leftovers.rs"]
mod leftovers;
#[path = "death/rests.rs"]
mod rests;
#[path = "death/rounds.rs"]
mod rounds;
#[path = "death/succession.rs"]
mod succession;
