//! Five hosts in network namespaces of their own, with certificates: three peers and two attached hosts. They are
//! killed, stopped, cut off and switched off; exclusive instances never run twice, and in the end all runs as
//! declared. Needs root, iproute2 and nftables.
//!
//! `BIGBROTHER_ROUNDS=500 BIGBROTHER_SEED=7 cargo nextest run --test network random` tries more.
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "support/host/cgroups.rs"]
mod cgroups;
#[path = "network/cuts.rs"]
mod cuts;
#[path = "network/deaths.rs"]
mod deaths;
#[path = "network/disk.rs"]
mod disk;
#[path = "network/fleet.rs"]
mod fleet;
#[path = "network/lan.rs"]
mod lan;
#[path = "network/random.rs"]
mod random;
#[path = "network/steady.rs"]
mod steady;
#[path = "network/upgrade.rs"]
mod upgrade;
#[path = "network/witness.rs"]
mod witness;
