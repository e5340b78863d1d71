//! The HTTP API over a real Unix socket, with a pretended agent behind the handle.

// clippy's leave for tests does not reach the helpers of a file that is all test.
#![allow(clippy::unwrap_used)]

#[path = "http/pretended.rs"]
mod pretended;
#[path = "support/promtool.rs"]
mod promtool;
#[path = "http/server.rs"]
mod server;

#[path = "http/secured.rs"]
mod secured;

#[path = "http/access.rs"]
mod access;
#[path = "http/audit.rs"]
mod audit;
#[path = "http/bad_input.rs"]
mod bad_input;
#[path = "http/changing.rs"]
mod changing;
#[path = "http/directory.rs"]
mod directory;
#[path = "http/elsewhere.rs"]
mod elsewhere;
#[path = "http/floods.rs"]
mod floods;
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
