//! Tests of the annals: what is told of two states, whatever lay between them.

use super::*;
use crate::config::{Context, parse};
use crate::spec::fingerprint::SpecHash;
use crate::state::{Command, Envelope, HostFacts, PlaceChange};

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

fn take(state: &mut State, stamp_ms: u64, command: Command) {
    state.apply(&Envelope { stamp_ms, command }).unwrap();
}

fn join(state: &mut State, stamp_ms: u64, name: &str) {
    take(state, stamp_ms, Command::JoinHost { host: host(name), facts: HostFacts::default() });
}

fn down(state: &mut State, stamp_ms: u64, name: &str) {
    let incarnation = state.hosts[&host(name)].incarnation;
    take(state, stamp_ms, Command::HostDown { host: host(name), incarnation });
}

fn place(state: &mut State, stamp_ms: u64, id: &str, on: Option<&str>) {
    let instance: InstanceId = id.parse().unwrap();
    let change = match on {
        Some(on) => PlaceChange::Put { instance, host: host(on), hash: SpecHash(1) },
        None => PlaceChange::Remove { instance },
    };
    take(state, stamp_ms, Command::Place { based_on: state.basis, changes: vec![change] });
}

/// Two zones, on alpha and on beta.
fn cluster() -> State {
    let context = Context { hostname: "alpha".to_owned(), host_override: None };
    let spec =
        parse("[process.zone]\ncommand = [\"/bin/zone\"]\ncount = 2\n", "t.toml", &context).unwrap().spec;
    let mut state = State::default();
    take(&mut state, 1_000, Command::ApplySpec { spec, expected_revision: None });
    for name in ["alpha", "beta", "gamma"] {
        join(&mut state, 1_000, name);
    }
    place(&mut state, 1_000, "zone.0", Some("alpha"));
    place(&mut state, 1_000, "zone.1", Some("beta"));
    state
}

fn told(tidings: &[Tiding]) -> Vec<String> {
    let about = |t: &Tiding| t.instance.as_ref().map_or(t.host.to_string(), ToString::to_string);
    let number = |t: &Tiding| t.number.map(|number| format!(" #{number}")).unwrap_or_default();
    tidings.iter().map(|t| format!("{} {}{}: {}", about(t), t.kind, number(t), t.detail)).collect()
}

#[test]
fn a_lost_host_its_return_and_what_moved_are_told_step_by_step_or_at_once() {
    let (gone, back) = (
        "alpha host-down #1: not heard for 8s (host_timeout); what may run elsewhere goes there",
        "alpha host-up #4: 20s after it was declared down",
    );
    let moves = "zone.0 moved: from alpha to gamma: alpha was lost";
    let mut state = cluster();
    let annals = |own| Annals::new(host(own), &cluster());
    let (mut gamma, mut beta, mut late) = (annals("gamma"), annals("beta"), annals("gamma"));
    assert_eq!(gamma.look(&state), []);
    down(&mut state, 9_000, "alpha");
    let lost = gamma.look(&state);
    assert_eq!(told(&lost), [gone]);
    place(&mut state, 9_500, "zone.0", Some("gamma"));
    let moved = gamma.look(&state);
    assert_eq!((told(&moved), moved[0].cause), (vec![moves.to_owned()], Some("host-down")));
    join(&mut state, 29_000, "alpha");
    assert_eq!(told(&gamma.look(&state)), [back]);
    assert_eq!(gamma.look(&state), []);
    // Who looks but once is told the same; what moved is told where it went.
    assert_eq!(told(&beta.look(&state)), [gone, back]);
    assert_eq!(told(&late.look(&state)), [gone, back, moves]);
}

#[test]
fn an_agent_that_starts_anew_in_time_is_no_loss_and_a_new_host_is_not_back() {
    let mut state = cluster();
    let mut annals = Annals::new(host("beta"), &state);
    join(&mut state, 2_000, "alpha");
    join(&mut state, 2_000, "delta");
    assert_eq!(annals.look(&state), []);
}

#[test]
fn why_an_instance_moved_is_told() {
    let mut state = cluster();
    let mut annals = Annals::new(host("gamma"), &state);
    take(&mut state, 2_000, Command::DrainHost { host: host("alpha"), drained: true });
    annals.look(&state);
    place(&mut state, 2_000, "zone.0", Some("gamma"));
    assert_eq!(told(&annals.look(&state)), ["zone.0 moved: from alpha to gamma: alpha is drained"]);
    state.failed.insert("zone.1".parse().unwrap(), [host("beta")].into());
    place(&mut state, 2_000, "zone.1", Some("gamma"));
    assert_eq!(told(&annals.look(&state)), ["zone.1 moved: from beta to gamma: it was given up on beta"]);
    place(&mut state, 2_000, "zone.1", None);
    assert_eq!(annals.look(&state), []);
    place(&mut state, 2_000, "zone.1", Some("beta"));
    assert_eq!(annals.look(&state), [], "that is for beta to tell");
    place(&mut state, 2_000, "zone.1", Some("gamma"));
    let unfit = "zone.1 moved: from beta to gamma: it was given up on beta";
    assert_eq!(told(&annals.look(&state)), [unfit]);
    state.failed.clear();
    place(&mut state, 2_000, "zone.1", Some("beta"));
    annals.look(&state);
    place(&mut state, 2_000, "zone.1", Some("gamma"));
    let unfit = "zone.1 moved: from beta to gamma: it does not fit on beta any more";
    assert_eq!(told(&annals.look(&state)), [unfit]);
    // The same place again, for another spec.
    place(&mut state, 2_000, "zone.1", Some("gamma"));
    assert_eq!(annals.look(&state), []);
}

#[test]
fn what_is_wanted_no_more_is_not_waited_for() {
    let mut state = cluster();
    let mut annals = Annals::new(host("gamma"), &state);
    down(&mut state, 2_000, "alpha");
    annals.look(&state);
    assert_eq!(annals.astray.len(), 1);
    let process = "zone".parse().unwrap();
    take(&mut state, 2_000, Command::Scale { process, count: Some(0) });
    annals.look(&state);
    assert!(annals.astray.is_empty());
}

#[test]
fn a_primary_is_told_once_a_term() {
    let mut annals = Annals::new(host("gamma"), &State::default());
    let (alpha, beta) = (host("alpha"), host("beta"));
    assert_eq!(annals.stands(None, 1), None);
    let first: Vec<_> = annals.stands(Some(&alpha), 1).into_iter().collect();
    assert_eq!(told(&first), ["alpha primary #1: term 1"]);
    assert_eq!(annals.stands(Some(&alpha), 1), None);
    assert_eq!(annals.stands(None, 2), None);
    let next: Vec<_> = annals.stands(Some(&beta), 3).into_iter().collect();
    assert_eq!(told(&next), ["beta primary #3: in place of alpha, term 3"]);
    assert_eq!(annals.stands(Some(&alpha), 2), None, "that is over");
}
