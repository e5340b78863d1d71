//! Many hosts: what the loss of one takes along, whose entry counts, who leads, what is forgotten.

use std::time::Duration;

use super::*;
use crate::state::hosts::{FORGET_EVERY_MS, FORGET_FINISHED_MS, FORGET_HOST_MS};

/// Alpha, beta and gamma.
fn three() -> State {
    let mut state = ready();
    state.join("beta");
    state.join("gamma");
    state
}

fn ready_event(instance: &str, run: u64) -> Event {
    event(instance, run, EventKind::Ready)
}

#[test]
fn a_lost_host_takes_its_entries_placements_and_claims_along_and_no_others() {
    let mut state = three();
    state.put("login.0", "alpha").unwrap();
    state.put("zone.0", "alpha").unwrap();
    state.put("zone.1", "beta").unwrap();
    state.events_of("alpha", 1, vec![event("login.0", 1, started()), event("zone.0", 2, started())]).unwrap();
    state.events_of("beta", 1, vec![event("zone.1", 1, started())]).unwrap();
    assert_eq!(state.put("login.0", "beta"), Err(Rejected::StillRuns(id("login.0"))));
    let old = state.hosts[&host("alpha")].incarnation;
    state.down("alpha").unwrap();
    assert_eq!(violations(&state), []);
    assert_eq!(state.placements.keys().collect::<Vec<_>>(), [&id("zone.1")]);
    assert_eq!(state.directory.keys().collect::<Vec<_>>(), [&id("zone.1")]);
    assert!(state.claims.is_empty());
    state.put("login.0", "beta").unwrap();

    let before = content(&state);
    state.down("alpha").unwrap();
    assert_eq!(content(&state), before, "said again, it is nothing new");
    let late = vec![event("login.0", 3, started())];
    assert_eq!(state.events_of("alpha", 3, late), Err(Rejected::OldIncarnation(host("alpha"))));
    assert_eq!(state.put("zone.0", "alpha"), Err(Rejected::NotUp(host("alpha"))));
    assert!(state.join("alpha") > old);
    let stale = Command::HostDown { host: host("alpha"), incarnation: old };
    assert_eq!(state.take(stale), Err(Rejected::OldIncarnation(host("alpha"))), "it is not that life");
    assert!(state.hosts[&host("alpha")].up);
}

#[test]
fn incarnations_grow_also_for_a_host_that_was_forgotten() {
    let mut state = three();
    let old = state.hosts[&host("beta")].incarnation;
    state.down("beta").unwrap();
    let after = |state: &mut State, ms| {
        let command = Command::DrainHost { host: host("alpha"), drained: false };
        state.apply(&Envelope { stamp_ms: ms, command }).unwrap();
    };
    after(&mut state, 5 + FORGET_HOST_MS - FORGET_EVERY_MS);
    assert!(state.hosts.contains_key(&host("beta")));
    after(&mut state, 5 + FORGET_HOST_MS + FORGET_EVERY_MS);
    assert!(!state.hosts.contains_key(&host("beta")), "{:?}", state.hosts);
    assert!(state.hosts.contains_key(&host("gamma")), "it is up");
    assert_eq!(violations(&state), []);
    assert!(state.join("beta") > old);
}

#[test]
fn the_end_of_a_launched_instance_is_known_for_an_hour() {
    let mut state = ready();
    let first = state.launch_one(None).unwrap();
    let ended = Event { instance: first.clone(), run: RunId(1), kind: stopped(true) };
    state.events(1, vec![ended]).unwrap();
    assert_eq!(state.finished[&first].end, End::Code(0));
    for (ms, known) in
        [(FORGET_FINISHED_MS - FORGET_EVERY_MS, true), (FORGET_FINISHED_MS + FORGET_EVERY_MS, false)]
    {
        let command = Command::DrainHost { host: host("alpha"), drained: false };
        state.apply(&Envelope { stamp_ms: ms, command }).unwrap();
        assert_eq!(state.finished.contains_key(&first), known, "after {ms} ms");
    }
}

#[test]
fn the_placed_hosts_run_counts_and_the_other_is_superseded_until_it_ends() {
    let mut state = three();
    state.put("zone.0", "alpha").unwrap();
    state.events_of("alpha", 1, vec![event("zone.0", 1, started())]).unwrap();
    state.put("zone.0", "beta").unwrap();
    assert_eq!(state.directory[&id("zone.0")].host, host("alpha"), "nothing runs on beta yet");
    state.events_of("beta", 1, vec![event("zone.0", 7, started())]).unwrap();
    assert_eq!(state.directory[&id("zone.0")].host, host("beta"));
    assert_eq!(state.superseded[&id("zone.0")][&host("alpha")].run, RunId(1));
    // What it says goes on to be heard.
    state.events_of("alpha", 2, vec![ready_event("zone.0", 1)]).unwrap();
    assert!(state.superseded[&id("zone.0")][&host("alpha")].ready.is_some());
    assert_eq!(state.directory[&id("zone.0")].ready, None);
    assert_eq!(violations(&state), []);
    // An older host that is back does not take the place of the one that it is placed on.
    state.join("alpha");
    let fact = |run| RunFact { run: RunId(run), hash: SpecHash(1), ports: BTreeMap::new(), ready: true };
    let runs = BTreeMap::from([(id("zone.0"), fact(1))]);
    let incarnation = state.hosts[&host("alpha")].incarnation;
    state
        .take(Command::Inventory { host: host("alpha"), incarnation, seq: 0, runs, rests: BTreeMap::new() })
        .unwrap();
    assert_eq!(state.directory[&id("zone.0")].host, host("beta"));
    // Placed there again, its run counts again.
    state.put("zone.0", "alpha").unwrap();
    assert_eq!(state.directory[&id("zone.0")].host, host("alpha"));
    assert_eq!(state.superseded[&id("zone.0")].keys().collect::<Vec<_>>(), [&host("beta")]);
    assert_eq!(violations(&state), []);
    state.events_of("beta", 2, vec![event("zone.0", 7, stopped(false))]).unwrap();
    assert!(state.superseded.is_empty());
    assert_eq!(state.directory[&id("zone.0")].run, RunId(1));
}

#[test]
fn an_inventory_that_is_older_than_the_events_changes_nothing() {
    let mut state = ready();
    state.events(1, vec![event("zone.0", 1, started()), event("zone.1", 2, started())]).unwrap();
    let inventory = |seq, runs| Command::Inventory {
        host: host("alpha"),
        incarnation: 1,
        seq,
        runs,
        rests: BTreeMap::new(),
    };
    let before = content(&state);
    state.take(inventory(1, BTreeMap::new())).unwrap();
    assert_eq!(content(&state), before);
    state.take(inventory(9, BTreeMap::new())).unwrap();
    assert!(state.directory.is_empty());
    let late = event("zone.0", 1, EventKind::Ready);
    assert_eq!(state.events(3, vec![late]), Ok(Response::Done), "the list held it already");
    assert_eq!(state.hosts[&host("alpha")].last_seq, 9);
    state.events(10, vec![event("zone.0", 3, started())]).unwrap();
    assert!(state.directory.contains_key(&id("zone.0")));
}

#[test]
fn the_leader_is_the_eldest_ready_run_and_stays_while_it_is_ready() {
    let mut state = three();
    let leader = |state: &State| state.leaders.get(&name("zone")).map(|l| (l.instance.to_string(), l.token));
    state.events_of("alpha", 1, vec![event("zone.2", 1, started()), event("zone.0", 2, started())]).unwrap();
    state.events_of("beta", 1, vec![event("zone.1", 1, started()), ready_event("zone.1", 1)]).unwrap();
    let first = state.index;
    assert_eq!(leader(&state), Some(("zone.1".into(), first)), "it alone is ready");
    let both = vec![ready_event("zone.0", 2), ready_event("zone.2", 1)];
    state.events_of("alpha", 3, both).unwrap();
    assert_eq!(leader(&state), Some(("zone.1".into(), first)), "an elder run does not take it away");
    state.events_of("beta", 3, vec![event("zone.1", 1, EventKind::Unready)]).unwrap();
    let second = state.index;
    assert_eq!(
        leader(&state),
        Some(("zone.2".into(), second)),
        "started in one command, with the lower number"
    );
    state.events_of("beta", 4, vec![ready_event("zone.1", 1)]).unwrap();
    assert_eq!(leader(&state), Some(("zone.2".into(), second)));
    state.down("alpha").unwrap();
    assert_eq!(leader(&state), Some(("zone.1".into(), state.index)));
    state.down("beta").unwrap();
    assert_eq!(leader(&state), None);
    assert_eq!(violations(&state), []);
}

#[test]
fn a_copy_that_is_put_back_gives_no_token_again() {
    let mut state = three();
    state.events_of("alpha", 1, vec![event("zone.0", 1, started()), ready_event("zone.0", 1)]).unwrap();
    let token = |state: &State| state.leaders[&name("zone")].token;
    let elect = |state: &mut State, seq| {
        state.events_of("alpha", seq, vec![event("zone.0", 1, EventKind::Unready)]).unwrap();
        state.events_of("alpha", seq + 1, vec![ready_event("zone.0", 1)]).unwrap();
    };
    let mut back = state.clone();
    // After the copy was made there were other leaders.
    [3, 5, 7, 9].into_iter().for_each(|seq| elect(&mut state, seq));
    back.take(Command::Recover).unwrap();
    elect(&mut back, 3);
    assert!(token(&back) > token(&state), "{} after {}", token(&back), token(&state));
    assert_eq!(violations(&back), []);
}

/// The last fencing token, generation and incarnation that a state has given out.
fn given(state: &State) -> [u64; 3] {
    [state.leaders[&name("zone")].token, state.placements[&id("zone.0")].generation, state.incarnations]
}

/// Gives out one of each.
fn give(state: &mut State) {
    state.join("alpha");
    state.take(Command::Resume { target: Target::Instance(id("zone.0")) }).unwrap();
    let again = [event("zone.0", 1, EventKind::Unready), ready_event("zone.0", 1)];
    (1..).zip(again).for_each(|(seq, event)| drop(state.events_of("alpha", seq, vec![event]).unwrap()));
}

proptest::proptest! {
    /// The same one, an older one, or one of a life that began with a copy itself.
    #[test]
    fn no_copy_that_is_put_back_gives_a_number_again(
        lives in proptest::collection::vec((any::<proptest::sample::Index>(), 1..9, 1..100_000u64), 1..9)
    ) {
        let mut state = three();
        state.put("zone.0", "alpha").unwrap();
        let first = vec![event("zone.0", 1, started()), ready_event("zone.0", 1)];
        state.events_of("alpha", 1, first).unwrap();
        let (mut last, mut copies, mut now_ms) = (given(&state), vec![state], 1_800_000_000_000);
        for (copy, changes, until_then) in lives {
            now_ms += until_then;
            let mut state = copy.get(&copies).clone();
            state.apply(&Envelope { stamp_ms: now_ms, command: Command::Recover }).unwrap();
            for _ in 0..changes {
                give(&mut state);
                let now = given(&state);
                prop_assert!(now.iter().zip(&last).all(|(now, last)| now > last), "{now:?} after {last:?}");
                prop_assert!(now.iter().all(|number| *number < 1 << 53), "{now:?}");
                prop_assert_eq!(violations(&state), []);
                last = now;
                copies.push(state.clone());
            }
        }
    }
}

#[test]
fn one_command_elects_once_so_that_no_token_is_given_twice() {
    let mut state = ready();
    let batch = vec![
        event("zone.0", 1, started()),
        ready_event("zone.0", 1),
        event("zone.0", 1, stopped(false)),
        event("zone.1", 2, started()),
        ready_event("zone.1", 2),
    ];
    state.events(1, batch).unwrap();
    let leader = &state.leaders[&name("zone")];
    assert_eq!((leader.run, leader.token), (RunId(2), state.index));
}

#[test]
fn where_an_instance_failed_is_known_until_it_is_resumed_or_changed() {
    let spec = |text: &str| Command::ApplySpec { spec: spec(text), expected_revision: None };
    let forgive: [Command; 2] =
        [Command::Resume { target: Target::Process(name("zone")) }, spec(&SPEC.replace("/bin/zone", "/z"))];
    for command in forgive {
        let mut state = three();
        state.put("zone.0", "beta").unwrap();
        let basis = state.basis;
        state.events_of("beta", 1, vec![event("zone.0", 1, EventKind::Rests(gave_up(1)))]).unwrap();
        assert_eq!(state.failed[&id("zone.0")], BTreeSet::from([host("beta")]));
        assert!(state.basis > basis, "the plan may move it");
        state.events_of("alpha", 1, vec![event("zone.0", 1, EventKind::Rests(gave_up(1)))]).unwrap();
        assert_eq!(state.failed[&id("zone.0")].len(), 1, "it does not belong to alpha");
        state.take(command.clone()).unwrap();
        assert!(state.failed.is_empty(), "{command:?}");
    }
}

#[test]
fn a_process_that_becomes_exclusive_is_claimed_where_it_is() {
    let mut state = three();
    state.put("zone.0", "beta").unwrap();
    assert!(state.claims.is_empty());
    let text = SPEC.replace("count = 3", "count = 3\non_partition = \"stop\"");
    state.take(Command::ApplySpec { spec: spec(&text), expected_revision: None }).unwrap();
    assert_eq!(violations(&state), []);
    assert_eq!(state.put("zone.0", "alpha"), Err(Rejected::StillRuns(id("zone.0"))));
    state.take(Command::ApplySpec { spec: spec(SPEC), expected_revision: None }).unwrap();
    state.put("zone.0", "alpha").unwrap();
}

#[test]
fn shorter_settings_wait_and_longer_ones_hold_at_once() {
    let mut state = ready();
    let span = |fence_after, fence_kill, host_timeout| Settings {
        fence_after: Duration::from_secs(fence_after),
        fence_kill: Duration::from_secs(fence_kill),
        host_timeout: Duration::from_secs(host_timeout),
        max_lost: None,
    };
    let set = |settings| Command::Settings { settings };
    assert_eq!(state.take(set(span(5, 2, 7))), Err(Rejected::Unsafe));
    assert_eq!(state.take(set(span(0, 2, 7))), Err(Rejected::Unsafe));
    assert_eq!(state.settings, Settings::default());
    state.take(set(span(9, 1, 12))).unwrap();
    assert_eq!((state.settings, state.pending), (span(9, 1, 12), None));
    state.take(set(span(3, 1, 5))).unwrap();
    assert_eq!(state.settings, span(9, 1, 12), "hosts may hold confirms of nine seconds");
    assert_eq!(state.hold(), Duration::from_secs(3));
    let since = state.pending.unwrap().since;
    state.take(Command::Settle { since: since + 1 }).unwrap();
    assert!(state.pending.is_some(), "somebody waited for something else");
    state.take(Command::Settle { since }).unwrap();
    assert_eq!((state.settings, state.pending), (span(3, 1, 5), None));
}

#[test]
fn a_version_is_reached_only_when_every_host_that_is_up_has_it() {
    let mut state = State::default();
    let facts = |name: &str, version| HostFacts {
        machine_id: name.to_owned(),
        version: Version(version),
        ..HostFacts::default()
    };
    let join = |name: &str, version| Command::JoinHost { host: host(name), facts: facts(name, version) };
    state.take(join("alpha", 2)).unwrap();
    state.take(join("beta", 1)).unwrap();
    let up = Command::Upgrade { to: Version(2) };
    assert_eq!(state.take(up.clone()), Err(Rejected::Version { needed: Version(2), found: Version(1) }));
    state.take(join("beta", 2)).unwrap();
    state.take(up).unwrap();
    assert_eq!(state.version, Version(2));
    state.take(Command::Upgrade { to: Version(1) }).unwrap();
    assert_eq!(state.version, Version(2), "it only grows");
    let old = Rejected::Version { needed: Version(2), found: Version(1) };
    assert_eq!(state.take(join("gamma", 1)), Err(old), "it would not understand the log");
}
