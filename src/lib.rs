//! Big Brother keeps the declared processes of a game cluster running.
//!
//! Data goes one way round:
//!
//! ```text
//! cluster.toml ─ config ─▶ spec ─┐
//!                                ▼
//!                             state  ◀────────── events (started, ready, stopped)
//!                                │                        ▲
//!                         plan (pure)                     │
//!                                ▼                        │
//!                           placements ─▶ host (pure): reconcile, lifecycle ─▶ actions ─▶ keeper
//! ```
//!
//! The cores ([`spec`], `state`, `plan`, `host`, the codecs) are pure and total: time and randomness are
//! arguments. The shells (`agent`, `keeper`, `http`, `cli`) carry out and hold no policy. docs/architecture.md
//! has the reasons.

#[cfg(feature = "client")]
pub mod client;
pub mod spec;

#[cfg(feature = "host")]
pub mod agent;
#[cfg(feature = "host")]
pub mod alarm;
#[cfg(feature = "host")]
pub mod cli;
#[cfg(feature = "host")]
pub mod cluster;
#[cfg(feature = "host")]
pub mod config;
#[cfg(feature = "host")]
pub mod descriptors;
#[cfg(feature = "host")]
pub mod host;
#[cfg(feature = "host")]
pub mod http;
#[cfg(feature = "host")]
pub mod keeper;
#[cfg(feature = "host")]
pub mod lock;
#[cfg(feature = "host")]
pub mod metrics;
#[cfg(feature = "host")]
pub mod plan;
#[cfg(feature = "host")]
pub mod process_api;
#[cfg(feature = "host")]
pub mod state;
#[cfg(feature = "host")]
pub mod status;
#[cfg(feature = "host")]
pub mod systemd;
