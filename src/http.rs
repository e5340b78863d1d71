//! The HTTP API of an agent: `/v1/...` JSON and `/metrics`, over the Unix socket and TCP.
//!
//! Owns routes, their shapes ([`view`]) and the mapping of errors to statuses. Never decides anything:
//! it asks the agent through [`crate::agent::Handle`]. Served on the agent's second runtime, so that no
//! request delays a heartbeat. A request comes in through `server`, is routed by `router`, let in by `auth`, answered by
//! `instances`, `events`, `logs`, `spec` or `operate`, refused only by `problem`, and written down by `audit`.

pub mod view;

mod audit;
mod auth;
mod connection;
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
mod pace;
mod patience;
mod peers;
mod piece;
mod problem;
mod prometheus;
mod reading;
mod rights;
mod router;
mod said;
mod server;
mod snapshots;
mod spec;
mod sse;
mod status;
mod strike;
mod tables;
mod tail;
mod tls;
mod tokens;
mod trail;
mod watchers;
mod whole;

pub use audit::Audit;
pub use listen::{ListenError, Listeners};
pub use rights::{RIGHTS, Right};
pub use server::{ServeError, serve};
pub use tls::Shown;
