//! Real programs under a real agent, from cluster.toml to the game's own answer. Needs root, and the packages
//! that a failing test names.

#[path = "support/agent.rs"]
mod agent;

#[path = "real/games.rs"]
mod games;
#[path = "real/notify.rs"]
mod notify;
