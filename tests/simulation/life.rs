//! The life of a world: a beginning, trouble, quiet.

use bigbrother::spec::Spec;
use bigbrother::state::{Command, Target};

use crate::faults::Fault;
use crate::invariants::{bounded, convergence, directory};
use crate::operator::{self, Wish};
use crate::world::World;

/// How long it is troubled, milliseconds.
const TROUBLE: u64 = 50_000;
/// How long it may take to come to rest.
const QUIET: u64 = 60_000;
/// Between two looks whether it has.
const LOOK: u64 = 3_000;

/// The first invariant that breaks, or what names this life.
pub fn live(seed: u64, fault: Fault) -> Result<u64, String> {
    let mut chance = fastrand::Rng::with_seed(!seed);
    let hosts = if chance.u32(0..20) == 0 { chance.usize(20..=50) } else { chance.usize(5..=9) };
    let mut world = World::new(seed, hosts, TROUBLE, fault);
    begin(&mut world, &Wish::any(&mut chance).spec())?;
    world.live_until(TROUBLE)?;
    world.heal();
    rest(&mut world)?;
    Ok(world.digest())
}

/// 50 hosts with 100 instances each, some of which are lost and come back.
pub fn live_large() -> Result<u64, String> {
    let mut world = World::new(50, 50, 0, Fault::None);
    world.shares = true;
    let spec = operator::zones(5_000);
    begin(&mut world, &spec)?;
    world.live_until(15_000)?;
    let now = world.now;
    let running =
        |world: &World| world.sites.iter().map(|s| s.machine.keeper.living().count()).sum::<usize>();
    if running(&world) != 5_000 {
        return Err(format!("{} of 5000 run after {now} ms", running(&world)));
    }
    for n in [0, 7, 31] {
        world.sites[n].lose_power(now + 20_000, now, Fault::None);
    }
    for n in [1, 40] {
        world.sites[n].lose_agent(now + 3_000, now, Fault::None);
    }
    world.network.strand(&[12, 33], 50);
    world.live_until(now + 20_000)?;
    world.heal();
    rest(&mut world)?;
    match running(&world) {
        5_000 => Ok(world.digest()),
        some => Err(format!("{some} of 5000 run in the end")),
    }
}

/// The first spec, once there is somebody to take it.
fn begin(world: &mut World, spec: &Spec) -> Result<(), String> {
    while world.state().revision == 0 && world.now < TROUBLE {
        world.live_until(world.now + 500)?;
        world.ask(Command::ApplySpec { spec: spec.clone(), expected_revision: None });
    }
    Ok(())
}

/// Until everything is as it should be.
fn rest(world: &mut World) -> Result<(), String> {
    let end = world.now + QUIET;
    calm_down(world);
    loop {
        world.live_until(world.now + LOOK)?;
        let looks = [directory::check(world), convergence::check(world), bounded::check_rest(world.state())];
        let found: Vec<String> = looks.into_iter().filter_map(Result::err).collect();
        let granted = calm_down(world);
        if found.is_empty() && granted {
            return Ok(());
        }
        if world.now >= end {
            return Err(found.join("\n"));
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
