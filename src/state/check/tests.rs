//! Each invariant is broken once, and must be the one that is found.

use std::collections::BTreeMap;

use super::super::*;
use super::{shrunk, violations};
use crate::config::{Context, parse};

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

fn id(name: &str) -> InstanceId {
    name.parse().unwrap()
}

/// Two hosts that are up, one that is not; zone.0 and login.0 placed and ready on alpha.
fn sound() -> State {
    let text = "[process.zone]\ncommand = [\"/z\"]\ncount = 2
[process.login]\ncommand = [\"/l\"]\non_partition = \"stop\"";
    let context = Context { hostname: "alpha".to_owned(), host_override: None };
    let spec =
        parse(text, "test.toml", &context).unwrap_or_else(|faults| panic!("{}", faults.render(false))).spec;
    let mut state = State::default();
    let mut take = |command| state.apply(&Envelope { stamp_ms: 5, command }).unwrap();
    take(Command::ApplySpec { spec, expected_revision: None });
    for name in ["alpha", "beta", "lost"] {
        take(Command::JoinHost { host: host(name), facts: HostFacts::default() });
    }
    take(Command::HostDown { host: host("lost"), incarnation: 3 });
    let put = |name: &str| PlaceChange::Put { instance: id(name), host: host("alpha"), hash: SpecHash(1) };
    let changes = vec![put("zone.0"), put("login.0")];
    let based_on = state.basis;
    let mut take = |command| state.apply(&Envelope { stamp_ms: 5, command }).unwrap();
    take(Command::Place { based_on, changes });
    let mut events = Vec::new();
    for (run, name) in [(1, "zone.0"), (2, "login.0")] {
        let event = |kind| Event { instance: id(name), run: RunId(run), kind };
        events.push(event(EventKind::Started { hash: SpecHash(1), ports: BTreeMap::new() }));
        events.push(event(EventKind::Ready));
    }
    take(Command::Events { host: host("alpha"), incarnation: 1, first_seq: 1, events });
    assert_eq!(violations(&state), []);
    state
}

#[track_caller]
fn finds(law: &str, plant: impl FnOnce(&mut State)) {
    let mut state = sound();
    plant(&mut state);
    let found = violations(&state);
    assert!(found.iter().any(|violation| violation.law == law), "{law}: {found:?}");
}

#[test]
fn a_placement_on_a_lost_host() {
    let law = "placements are on hosts that are up";
    finds(law, |s| s.placements.get_mut(&id("zone.0")).unwrap().host = host("lost"));
    finds(law, |s| s.placements.get_mut(&id("zone.0")).unwrap().host = host("nobody"));
}

#[test]
fn an_entry_of_a_lost_host() {
    let law = "directory entries belong to hosts that are up";
    finds(law, |s| s.directory.get_mut(&id("zone.0")).unwrap().host = host("lost"));
    finds(law, |s| {
        let entry = Entry { host: host("lost"), ..s.directory[&id("zone.0")].clone() };
        s.superseded.entry(id("zone.0")).or_default().insert(host("lost"), entry);
    });
}

#[test]
fn an_entry_that_supersedes_itself() {
    finds("a superseded run stands beside another host's", |s| {
        let entry = s.directory[&id("zone.0")].clone();
        s.superseded.entry(id("zone.0")).or_default().insert(host("alpha"), entry);
    });
}

#[test]
fn an_exclusive_placement_without_its_claim() {
    let law = "a placed exclusive instance is claimed by its host and no other";
    finds(law, |s| drop(s.claims.remove(&id("login.0"))));
    finds(law, |s| s.claims.get_mut(&id("login.0")).unwrap().host = host("beta"));
    finds(law, |s| s.claims.get_mut(&id("login.0")).unwrap().generation += 100);
    finds(law, |s| {
        let claim = Claim { host: host("lost"), generation: 1 };
        s.claims.insert(id("zone.1"), claim);
    });
}

#[test]
fn a_rest_of_what_is_not_placed_and_of_what_runs() {
    let law = "what rests is placed, and no run of it lives there";
    let rest = || Rest { run: RunId(1), end: End::Code(0), at_ms: 5, failed: None };
    finds(law, |s| drop(s.rests.insert(id("zone.1"), rest())));
    finds(law, |s| drop(s.rests.insert(id("zone.0"), rest())));
    finds(law, |s| {
        let entry = s.directory.remove(&id("zone.0")).unwrap();
        s.superseded.entry(id("zone.0")).or_default().insert(host("alpha"), entry);
        s.rests.insert(id("zone.0"), rest());
    });
}

#[test]
fn a_launch_that_is_done() {
    finds("an instance is launched or done", |s| {
        let finished = Finished { host: host("alpha"), end: End::Code(0), at_ms: 5 };
        s.finished.insert(id("zone.7"), finished);
        s.launches.insert(id("zone.7"), Launch { args: BTreeMap::new(), key: None, at_ms: 5 });
    });
}

#[test]
fn an_epoch_of_nothing_and_one_that_says_nothing() {
    let law = "an epoch is that of a declared process";
    finds(law, |s| _ = s.epochs.insert("nobody".parse().unwrap(), 1));
    finds(law, |s| _ = s.epochs.insert(id("zone.0").process, 0));
}

#[test]
fn a_leader_that_is_not_ready_and_none_where_one_could_be() {
    let law = "a leader is ready, and a process with a ready run has one";
    finds(law, |s| s.directory.get_mut(&id("zone.0")).unwrap().ready = None);
    finds(law, |s| s.directory.get_mut(&id("zone.0")).unwrap().run = RunId(9));
    finds(law, |s| drop(s.directory.remove(&id("zone.0"))));
    finds(law, |s| s.leaders.clear());
}

#[test]
fn a_token_from_the_future() {
    finds("no token is from the future", |s| {
        s.leaders.get_mut(&id("zone.0").process).unwrap().token = s.index + 1;
    });
}

#[test]
fn records_that_should_be_forgotten() {
    let law = "what is remembered is bounded";
    finds(law, |s| {
        let finished = Finished { host: host("alpha"), end: End::Code(0), at_ms: 5 };
        s.finished.insert(id("zone.7"), finished);
        s.now_ms = 5 + 3_700_000;
    });
    finds(law, |s| s.now_ms = 5 + 8 * 24 * 3_600_000);
    finds(law, |s| drop(s.failed.insert(id("zone.0"), [host("nobody")].into())));
}

#[test]
fn what_shrinks() {
    type Plant = fn(&mut State);
    let laws: [(&str, &[Plant]); 5] = [
        (
            "index, basis, revision and incarnations only grow",
            &[|s| s.index -= 1, |s| s.basis -= 1, |s| s.revision -= 1, |s| s.incarnations -= 1],
        ),
        (
            "the incarnation of a host only grows",
            &[
                |s| s.hosts.get_mut(&host("beta")).unwrap().incarnation -= 1,
                |s| {
                    let host_again = s.hosts[&host("beta")].clone();
                    s.hosts.insert(host("delta"), host_again);
                },
            ],
        ),
        (
            "the generation of a placement only grows",
            &[
                |s| s.placements.get_mut(&id("zone.0")).unwrap().generation -= 1,
                |s| s.placements.get_mut(&id("zone.0")).unwrap().host = host("beta"),
                |s| {
                    let again = s.placements[&id("zone.0")].clone();
                    s.placements.insert(id("zone.1"), again);
                },
            ],
        ),
        (
            "the token of a process only grows",
            &[
                |s| s.leaders.get_mut(&id("zone.0").process).unwrap().token -= 1,
                |s| s.leaders.get_mut(&id("zone.0").process).unwrap().run = RunId(9),
            ],
        ),
        (
            "the epoch of a declared process only grows",
            &[
                |s| _ = s.epochs.insert(id("zone.0").process, 1),
                |s| _ = s.epochs.remove(&id("zone.0").process),
            ],
        ),
    ];
    for (law, plants) in laws {
        for (n, plant) in plants.iter().enumerate() {
            let mut before = sound();
            before.epochs.insert(id("zone.0").process, 2);
            let mut after = before.clone();
            plant(&mut after);
            let found = shrunk(&before, &after);
            assert!(found.iter().any(|violation| violation.law == law), "{law}, fault {n}: {found:?}");
        }
    }
}
