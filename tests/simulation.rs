//! A whole cluster of the pure cores in one process, under everything that goes wrong.
//!
//! The real state, plan, liveness, fence and host cores over a simulated network, clocks and keepers, and a
//! replicated log that is linearizable by definition. A seed decides all; a run that fails prints it.
//! `BIGBROTHER_SEEDS=10000 cargo test --test simulation` tries more, `BIGBROTHER_SEED=7` one again.

#![allow(clippy::unwrap_used)]

/// What must hold, one file each; every file plants a fault that it catches.
#[path = "simulation/invariants"]
mod invariants {
    pub mod convergence;
    pub mod directory;
    pub mod exclusive;
    pub mod replicated;
}
#[path = "simulation/primary.rs"]
mod primary;
#[path = "simulation/site.rs"]
mod site;
#[path = "simulation/world.rs"]
mod world;

use world::{Fault, World};

fn seeds(default: u64) -> u64 {
    match std::env::var("BIGBROTHER_SEEDS") {
        Ok(text) => text.parse().expect("BIGBROTHER_SEEDS is a number"),
        Err(_) => default,
    }
}

/// What the first seed that breaks something breaks, with its seed.
fn first_violation(fault: Fault, seeds: u64) -> Option<(u64, String)> {
    (0..seeds).find_map(|seed| World::new(seed, fault).live().err().map(|what| (seed, what)))
}

#[test]
fn whatever_fails_the_invariants_hold() {
    if let Ok(seed) = std::env::var("BIGBROTHER_SEED") {
        World::new(seed.parse().expect("BIGBROTHER_SEED is a number"), Fault::None).live().unwrap();
    }
    if let Some((seed, what)) = first_violation(Fault::None, seeds(60)) {
        panic!("seed {seed}: {what}");
    }
}

/// The invariant must be the one that catches the fault that is planted for it.
#[track_caller]
fn catches(fault: Fault, law: &str) {
    match first_violation(fault, 400) {
        Some((seed, what)) => {
            println!("{fault:?} was caught with seed {seed}");
            assert!(what.contains(law), "{fault:?} was caught by {what}");
        }
        None => panic!("{fault:?} was not caught"),
    }
}
