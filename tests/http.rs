//! The HTTP API over a real Unix socket, with a pretended agent behind the handle.

// clippy's leave for tests does not reach the helpers of a file that is all test.
#![allow(clippy::unwrap_used)]

#[path = "http/pretended.rs"]
mod pretended;
#[path = "http/server.rs"]
mod server;

#[path = "http/changing.rs"]
mod changing;
#[path = "http/directory.rs"]
mod directory;
#[path = "http/elsewhere.rs"]
mod elsewhere;
#[path = "http/following.rs"]
mod following;
#[path = "http/metrics.rs"]
mod metrics;
#[path = "http/monitoring.rs"]
mod monitoring;
#[path = "http/reading.rs"]
mod reading;
#[path = "http/refusals.rs"]
mod refusals;
#[path = "http/saying.rs"]
mod saying;
#[path = "http/watching.rs"]
mod watching;
