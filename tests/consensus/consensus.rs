//! openraft itself in virtual time, with the cluster's own state machine, under faults.
//!
//! Three or five peers on `openraft-rt-sim`: links that lose, double, delay and part, peers that die and come back
//! with what their disks had, disks that take nothing any more, leadership handed over. Clients change the
//! spec, scale, tell the directory of runs and read; their histories must be linearizable. `tests/simulation.rs` has
//! the rest of the cluster over a smaller log. A seed decides all, and a run that fails prints it:
//! `BIGBROTHER_SEED=7 cargo test --test consensus one_seed` is that one again, `BIGBROTHER_SEEDS=20000 cargo test
//! --test consensus seeds` tries more.

#![allow(clippy::unwrap_used)]

mod client;
mod disk;
mod history;
mod life;
mod network;
mod peer;
mod record;

use life::live;

/// What is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// A disk tells that it has written what it has not.
    DiskLies,
    /// A write that has failed is taken for one that has not.
    ErrorsPassedOver,
    /// A peer answers reads from its own copy, without asking the primary for the index.
    StaleReads,
    /// A change that is asked for again is applied again.
    NoKeys,
    /// A peer's own clock enters its state.
    OwnClock,
}

/// The tests that share the seeds, so that all processors have work.
const SHARES: u64 = 8;
const SEEDS: u64 = 1_000;
/// The seeds in which a planted fault must be caught.
const PLANTED: u64 = 20;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")))
}

fn share(which: u64) {
    let seeds = number("BIGBROTHER_SEEDS").unwrap_or(SEEDS);
    for seed in (which..seeds).step_by(SHARES as usize) {
        if let Err(what) = live(seed, Fault::None) {
            panic!("seed {seed}: {what}\nagain: BIGBROTHER_SEED={seed} cargo test --test consensus one_seed");
        }
    }
}

macro_rules! shares {
    ($($name:ident $which:literal)*) => { $(#[test] fn $name() { share($which); })* };
}

shares! {
    seeds_0 0  seeds_1 1  seeds_2 2  seeds_3 3  seeds_4 4  seeds_5 5  seeds_6 6  seeds_7 7
}

#[test]
fn one_seed() {
    let seed = number("BIGBROTHER_SEED").unwrap_or(0);
    let summary = live(seed, Fault::None).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    println!("seed {seed}: {summary:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let runs = [live(3, Fault::None), live(3, Fault::None), live(4, Fault::None)];
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

#[track_caller]
fn catches(fault: Fault, law: &str) {
    let mut others = Vec::new();
    for seed in 0..PLANTED {
        match live(seed, fault) {
            Err(what) if what.contains(law) => return println!("{fault:?} was caught with seed {seed}"),
            Err(what) => others.push(what),
            Ok(_) => {}
        }
    }
    panic!("{fault:?} was not caught by its invariant, only by {others:#?}");
}

#[test]
fn a_disk_that_tells_of_more_than_it_has() {
    catches(Fault::DiskLies, record::LOST);
}

#[test]
fn errors_of_a_disk_that_are_passed_over() {
    catches(Fault::ErrorsPassedOver, record::LOST);
}

#[test]
fn reads_from_a_peers_own_copy() {
    catches(Fault::StaleReads, history::LAW);
}

#[test]
fn changes_without_a_key_that_are_asked_for_again() {
    catches(Fault::NoKeys, record::TWICE);
}

#[test]
fn a_state_that_depends_on_its_peer() {
    catches(Fault::OwnClock, record::DIFFER);
}
