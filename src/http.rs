//! The HTTP API of an agent: `/v1/...` JSON and `/metrics`, over the Unix socket and loopback TCP.
//!
//! Owns routes, their shapes ([`view`]) and the mapping of errors to statuses. Never decides anything:
//! it asks the agent through [`crate::agent::Handle`]. Served on the agent's second runtime, so that no
//! request delays a heartbeat. A request comes in through `server`, is routed by `router`, answered by
//! `instances`, `events`, `logs`, `spec` or `operate`, and refused only by `problem`.

pub mod view;

mod directory;
mod elsewhere;
mod entrance;
pub(crate) mod events;
mod hosts;
mod idempotency;
mod instances;
mod listen;
mod logs;
mod muster;
mod names;
mod news;
mod openapi;
mod operate;
mod peers;
mod piece;
mod problem;
mod prometheus;
mod reading;
mod router;
mod said;
mod server;
mod snapshots;
mod spec;
mod status;
mod strike;
mod tail;
mod trail;
mod watchers;

pub use listen::{ListenError, Listeners};
pub use server::{ServeError, serve};
