//! The life of a world: a beginning, trouble, quiet.

use bigbrother::state::{Command, Target};

use crate::faults::Fault;
use crate::invariants::{bounded, convergence, directory};
use crate::operator::Wish;
use crate::world::World;

/// How long it is troubled, milliseconds.
const TROUBLE: u64 = 60_000;
/// How long it may take to come to rest.
const QUIET: u64 = 60_000;
/// Between two looks whether it has.
const LOOK: u64 = 3_000;

/// The first invariant that breaks, or what names this life.
pub fn live(seed: u64, fault: Fault) -> Result<u64, String> {
    let mut chance = fastrand::Rng::with_seed(!seed);
    let hosts = if seed % 20 == 19 { chance.usize(20..=50) } else { chance.usize(5..=9) };
    let mut world = World::new(seed, hosts, TROUBLE, fault);
    begin(&mut world, &Wish::any(&mut chance))?;
    world.live_until(TROUBLE)?;
    world.heal();
    rest(&mut world)?;
    Ok(world.digest())
}

/// The first spec, once there is somebody to take it.
pub fn begin(world: &mut World, wish: &Wish) -> Result<(), String> {
    let spec = wish.spec();
    while world.state().revision == 0 && world.now < TROUBLE {
        world.live_until(world.now + 500)?;
        world.ask(Command::ApplySpec { spec: spec.clone(), expected_revision: None });
    }
    Ok(())
}

/// Until everything is as it should be.
pub fn rest(world: &mut World) -> Result<(), String> {
    let end = world.now + QUIET;
    loop {
        calm_down(world);
        world.live_until(world.now + LOOK)?;
        let rested = directory::check(world).and_then(|()| convergence::check(world));
        match rested.and_then(|()| bounded::check_rest(world.state())) {
            Err(what) if world.now >= end => return Err(what),
            Err(_) => {}
            Ok(()) if calm_down(world) => return Ok(()),
            Ok(()) => {}
        }
    }
}

/// The last wishes: one host stays drained, so that what it has must move; whatever failed is tried again. True
/// when all are granted.
fn calm_down(world: &mut World) -> bool {
    let state = world.state().clone();
    let last = state.hosts.keys().next_back().cloned();
    let odd = state.hosts.iter().filter(|(host, known)| known.drained != (Some(*host) == last.as_ref()));
    let odd: Vec<_> = odd.map(|(host, _)| host.clone()).collect();
    let rested = state.failed.is_empty() && state.rests.values().all(|rest| rest.failed.is_none());
    let granted = odd.is_empty() && rested;
    for host in odd {
        let drained = Some(&host) == last.as_ref();
        world.ask(Command::DrainHost { host, drained });
    }
    if !rested {
        world.ask(Command::Resume { target: Target::All });
    }
    granted
}
