//! What was looked up, and for how long it holds.

use super::*;
use crate::config::{Context, parse};
use crate::spec::fingerprint::SpecHash;

const FILE: &str = "[process.zone]\ncommand = [\"zone\"]\nuser = \"games\"\n";

/// A resolver, and the errand of a run of `zone.0`.
fn resolver() -> (Resolver, Errand) {
    let context = Context { hostname: "alpha".to_owned(), host_override: None };
    let config = parse(FILE, "test.toml", &context).unwrap();
    let process = config.spec.processes.into_values().next().unwrap();
    let command = process.command.clone();
    let want = Want {
        process,
        hash: SpecHash(0),
        replace: true,
        generation: 1,
        paused: false,
        waits_for: None,
        args: BTreeMap::new(),
        rest: None,
    };
    let (instance, ports) = (zone(), Ports::new());
    let subject = Subject { instance: &instance, want: &want, ports: &ports };
    let mut resolver = Resolver::new(config.host);
    let errand = resolver.errand(subject, &command, "command").unwrap();
    assert!(
        errand.folder.as_ref().is_some_and(|folder| Path::new(folder).ends_with("data/zone.0")),
        "{errand:?}"
    );
    resolver.learn(&errand, Ok(&found(60)), at(0));
    let again = resolver.errand(subject, &command, "command").unwrap();
    assert_eq!(again, Errand { folder: None, ..errand }, "the folder is there");
    (resolver, again)
}

fn zone() -> InstanceId {
    "zone.0".parse().unwrap()
}

fn at(seconds: u64) -> Moment {
    Moment(seconds * 1_000_000_000)
}

fn found(gid: u32) -> Found {
    let account = Account { uid: 5, gid, groups: vec![gid] };
    Found { account: Some((account, "/usr/games".to_owned())), program: "/usr/bin/zone".to_owned() }
}

#[test]
fn what_was_found_holds_and_is_asked_again_on_the_side() {
    let (mut resolver, errand) = resolver();
    assert_eq!(resolver.aged(at(29)), []);
    assert_eq!(resolver.found(&errand, at(29)), Some(found(60)));
    assert_eq!(resolver.aged(at(30)), std::slice::from_ref(&errand));
    assert_eq!(resolver.aged(at(31)), [], "somebody is under way");
    assert_eq!(resolver.found(&errand, at(31)), Some(found(60)), "no restart waits for that");
    resolver.learn(&errand, Ok(&found(61)), at(32));
    assert_eq!(resolver.found(&errand, at(33)), Some(found(61)), "another group within a minute");
}

#[test]
fn what_was_found_last_holds_while_nobody_answers_and_no_longer() {
    let (mut resolver, errand) = resolver();
    assert_eq!(resolver.found(&errand, at(60)), None, "nobody asked again: it may be anything by now");
    assert_eq!(resolver.aged(at(60)), std::slice::from_ref(&errand));
    assert_eq!(resolver.found(&errand, at(3600)), Some(found(60)));
    resolver.learn(&errand, Err(&LookUpError::NoUser("games".to_owned())), at(3601));
    assert_eq!(resolver.found(&errand, at(3601)), None);
}

#[test]
fn a_run_that_could_not_be_started_and_a_changed_policy_look_again() {
    let (mut resolver, errand) = resolver();
    resolver.distrust(&zone());
    assert_eq!(resolver.found(&errand, at(1)), None);
    resolver.learn(&errand, Ok(&found(60)), at(2));
    let policy = HostPolicy { users: vec!["games".to_owned()], programs: Vec::new() };
    resolver.set(HostSettings { policy, ..resolver.settings.clone() });
    assert_eq!(resolver.found(&errand, at(2)), None);
    resolver.learn(&errand, Ok(&found(60)), at(3));
    assert_eq!(resolver.found(&errand, at(3)), None, "an answer under the old policy");
}

#[test]
fn what_nobody_needs_any_more_is_not_asked_again() {
    let (mut resolver, errand) = resolver();
    resolver.forget(&zone());
    assert_eq!(resolver.aged(at(30)), []);
    assert_eq!(resolver.found(&errand, at(30)), None);
}
