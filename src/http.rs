//! The HTTP API of an agent: `/v1/...` JSON and `/metrics`, over the Unix socket and loopback TCP.
//!
//! Owns routes, their shapes ([`view`]) and the mapping of errors to statuses. Never decides anything:
//! it asks the agent through [`crate::agent::Handle`]. Served on the agent's second runtime, so that no
//! request delays a heartbeat.

pub mod view;
