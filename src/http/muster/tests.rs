//! What is shown of the whole cluster, case by case.

use super::*;
use crate::cli::render::sample;
use crate::keeper::protocol::RunId;
use crate::state::Placement;

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

fn view(id: &str, on: &str, state: &str, run: Option<u64>) -> InstanceView {
    InstanceView { host: host(on), run, pid: run.map(|_| 5), ..sample::instance(id, state) }
}

fn entry(on: &str, run: u64, ready: bool) -> Entry {
    Entry {
        host: host(on),
        run: RunId(run),
        hash: Default::default(),
        address: "10.0.0.2".to_owned(),
        ports: (&BTreeMap::from([("game".to_owned(), (crate::spec::Protocol::Udp, 20_001))])).into(),
        started: 9,
        ready: ready.then_some(10),
    }
}

fn state(placed: &[(&str, &str)], running: &[(&str, Entry)]) -> State {
    let placement = |on: &str| Placement { host: host(on), generation: 1, hash: Default::default() };
    State {
        placements: placed.iter().map(|(id, on)| (id.parse().unwrap(), placement(on))).collect(),
        directory: running.iter().map(|(id, entry)| (id.parse().unwrap(), entry.clone())).collect(),
        ..State::default()
    }
}

fn shown(views: &[InstanceView]) -> Vec<String> {
    let run = |view: &InstanceView| view.run.map_or("-".to_owned(), |run| run.to_string());
    views.iter().map(|v| format!("{} {} {} {}", v.instance, v.host, v.state, run(v))).collect()
}

#[test]
fn hosts_that_answer_are_shown_as_they_say() {
    let state = state(&[("zone.0", "alpha"), ("zone.1", "beta")], &[]);
    let own = vec![view("zone.0", "alpha", "ready", Some(3))];
    let beta = vec![view("zone.1", "beta", "backoff", Some(7))];
    let all = muster(&state, &Filter::default(), own, vec![(host("beta"), Ok(beta))]);
    assert_eq!(shown(&all), ["zone.0 alpha ready 3", "zone.1 beta backoff 7"]);
}

#[test]
fn a_host_that_does_not_answer_is_filled_in_from_the_directory() {
    let running = [("zone.1", entry("beta", 7, true)), ("zone.3", entry("beta", 8, false))];
    let state =
        state(&[("zone.1", "beta"), ("zone.2", "beta"), ("zone.0", "alpha"), ("zone.3", "beta")], &running);
    let silent = || vec![(host("beta"), Err("no answer".to_owned()))];
    let all = muster(&state, &Filter::default(), vec![], silent());
    assert_eq!(
        shown(&all),
        ["zone.1 beta unreachable 7", "zone.2 beta unreachable -", "zone.3 beta unreachable 8"]
    );
    assert_eq!(all[0].ports["game"].port, 20_001);
    assert_eq!(all[0].reason.as_deref(), Some("ready when last heard; no answer"));
    assert_eq!(all[1].reason.as_deref(), Some("not running when last heard; no answer"));
    assert_eq!(all[2].reason.as_deref(), Some("starting when last heard; no answer"));
    let wanted = Filter { instance: Some("zone.2".parse().unwrap()), ..Filter::default() };
    assert_eq!(shown(&muster(&state, &wanted, vec![], silent())), ["zone.2 beta unreachable -"]);
}

#[test]
fn a_run_beside_the_one_that_belongs_is_superseded_and_comes_second() {
    let state = state(&[("zone.0", "gamma")], &[]);
    let own = vec![view("zone.0", "alpha", "ready", Some(3))];
    let beta = vec![view("zone.0", "beta", "stopping", Some(9))];
    let gamma = vec![view("zone.0", "gamma", "starting", Some(1))];
    let all =
        muster(&state, &Filter::default(), own, vec![(host("beta"), Ok(beta)), (host("gamma"), Ok(gamma))]);
    assert_eq!(
        shown(&all),
        ["zone.0 gamma starting 1", "zone.0 alpha superseded 3", "zone.0 beta superseded 9"]
    );
    assert_eq!(all[1].reason.as_deref(), Some("it belongs to gamma now"));
    assert_eq!(all[2].reason.as_deref(), Some("it belongs to gamma now; stopping"));
}

#[test]
fn a_run_that_belongs_nowhere_is_as_its_host_says() {
    let own = vec![view("zone.5", "alpha", "stopping", Some(3))];
    assert_eq!(
        shown(&muster(&state(&[], &[]), &Filter::default(), own, vec![])),
        ["zone.5 alpha stopping 3"]
    );
}

#[test]
fn what_fits_nowhere_is_shown_once_and_not_when_it_has_a_place_after_all() {
    let waits = |on| vec![view("zone.5", on, "waiting", None)];
    let both = |state: &State| {
        shown(&muster(state, &Filter::default(), waits("alpha"), vec![(host("beta"), Ok(waits("beta")))]))
    };
    assert_eq!(both(&state(&[], &[])), ["zone.5 alpha waiting -"]);
    assert_eq!(both(&state(&[("zone.5", "gamma")], &[])), [""; 0]);
    assert_eq!(both(&state(&[("zone.5", "beta")], &[])), ["zone.5 beta waiting -"]);
}

#[test]
fn only_hosts_that_may_know_are_asked() {
    let running = [("zone.0", entry("beta", 7, true))];
    let mut state = state(&[("zone.0", "alpha"), ("login.0", "delta")], &running);
    state.superseded.insert("zone.1".parse().unwrap(), [(host("gamma"), entry("gamma", 1, true))].into());
    let others = || ["alpha", "beta", "gamma", "delta", "epsilon"].map(host).into();
    let asked = |wanted: &Filter, primary: Option<&str>| {
        let primary = primary.map(host);
        let asked = concerned(&state, wanted, primary.as_ref(), others());
        asked.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let zone = Filter { process: Some("zone".parse().unwrap()), ..Filter::default() };
    let one = Filter { instance: Some("zone.1".parse().unwrap()), ..Filter::default() };
    assert_eq!(asked(&Filter::default(), None).len(), 5);
    assert_eq!(asked(&zone, None), ["alpha", "beta", "gamma"]);
    assert_eq!(asked(&one, Some("epsilon")), ["epsilon", "gamma"]);
}
