//! Agents, keepers and whole hosts die or stand still, the primary among them.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::fleet::{Fleet, HOSTS, PEERS, send};
use crate::witness;

#[test]
fn whoever_dies_or_stands_still_all_runs_as_declared_in_the_end() {
    let mut fleet = Fleet::start();
    let before = fleet.running();
    let primary = fleet.primary();
    let peer = PEERS.into_iter().find(|peer| *peer != primary).unwrap();
    for host in [primary, peer, "delta"] {
        send(fleet.agent(host), Signal::SIGKILL);
        fleet.settle(&format!("the death of the agent of {host}"));
    }
    assert_eq!(fleet.running(), before, "a dead agent moves and restarts nothing");
    for host in [fleet.primary(), "epsilon"] {
        send(fleet.keeper(host).expect("a keeper"), Signal::SIGKILL);
        fleet.settle(&format!("the death of the keeper of {host}"));
    }
    assert_eq!(fleet.running(), before, "nor does a dead keeper");
    // Short stand-stills change nothing either; long ones are a death, and the host comes back.
    for host in [fleet.primary(), "delta"] {
        stand_still(&mut fleet, host, 2);
    }
    assert_eq!(fleet.running(), before, "nor does one that stands still for a moment");
    for number in 0..2 {
        let host = if number == 0 { fleet.primary() } else { home(&fleet, "arena.0") };
        let exclusive = fleet.exclusive(host);
        let runs = witness::runs(&fleet.shared());
        stand_still(&mut fleet, host, 9);
        let moved = witness::runs(&fleet.shared()) - runs;
        assert!(moved >= exclusive, "{host} had {exclusive} exclusive ones, {moved} were started elsewhere");
    }
    let keeper = fleet.keeper("beta").expect("a keeper");
    send(keeper, Signal::SIGSTOP);
    fleet.pass(Duration::from_secs(6));
    send(keeper, Signal::SIGCONT);
    fleet.settle("the keeper of beta stood still for 6 s");
}

fn stand_still(fleet: &mut Fleet, host: &'static str, seconds: u64) {
    let agent = fleet.agent(host);
    send(agent, Signal::SIGSTOP);
    fleet.pass(Duration::from_secs(seconds));
    send(agent, Signal::SIGCONT);
    fleet.settle(&format!("the agent of {host} stood still for {seconds} s"));
}

/// Where an instance runs.
fn home(fleet: &Fleet, instance: &str) -> &'static str {
    let running = fleet.running();
    let on = |host: &&str| running[instance].iter().any(|(at, _)| at == *host);
    HOSTS.into_iter().find(on).expect("it runs")
}

#[test]
fn what_a_lost_host_ran_runs_elsewhere_and_all_hosts_may_lose_power_at_once() {
    let mut fleet = Fleet::start();
    for host in ["delta", fleet.primary()] {
        fleet.switch_off(host);
        let took = fleet.settle(&format!("{host} was switched off"));
        assert!(took < Duration::from_secs(30), "{took:?}");
        fleet.switch_on(host);
        fleet.settle(&format!("{host} was switched on again"));
    }
    HOSTS.iter().for_each(|host| fleet.switch_off(host));
    HOSTS.iter().for_each(|host| fleet.switch_on(host));
    fleet.settle("all hosts lost power");
}
