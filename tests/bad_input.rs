//! Bad input and a bad world: each gets a clear error and a metric, and the other instances never notice.
//!
//! The real program as agent and keeper, with small processes that misbehave. Needs root (users, mounts) and /dev/fuse.

// Helpers of tests, which clippy does not take for tests.
#![allow(clippy::unwrap_used)]

#[path = "support/host.rs"]
mod host;

#[path = "bad_input/crowd.rs"]
mod crowd;
#[path = "bad_input/file_server.rs"]
mod file_server;
#[path = "bad_input/full_disk.rs"]
mod full_disk;
#[path = "bad_input/lookups.rs"]
mod lookups;
#[path = "bad_input/neighbours.rs"]
mod neighbours;
#[path = "bad_input/processes.rs"]
mod processes;
#[path = "bad_input/sockets.rs"]
mod sockets;
#[path = "bad_input/stuck_exec.rs"]
mod stuck_exec;
#[path = "bad_input/world.rs"]
mod world;
