//! Bad input and a bad world: each gets a clear error and a metric, and the other instances never notice.
//!
//! The real program as agent and keeper, with small processes that misbehave. Needs root (users, mounts). Not
//! here: an exec that never comes back (a dead network file system), which needs a FUSE server to make one.

// Helpers of tests, which clippy does not take for tests.
#![allow(clippy::unwrap_used)]

#[path = "death/host.rs"]
mod host;

#[path = "bad_input/lookups.rs"]
mod lookups;
#[path = "bad_input/neighbours.rs"]
mod neighbours;
#[path = "bad_input/processes.rs"]
mod processes;
#[path = "bad_input/sockets.rs"]
mod sockets;
#[path = "bad_input/world.rs"]
mod world;
