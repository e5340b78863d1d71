//! Pauses, also against a naive model, and the rests of instances that ended by themselves.

use std::collections::BTreeMap;

use super::*;

#[test]
fn what_fits_nowhere_for_a_while_stays_paused() {
    let mut state = ready();
    state.take(Command::Pause { target: Target::Instance(id("zone.0")) }).unwrap();
    let remove = |instance: &str| PlaceChange::Remove { instance: id(instance) };
    let changes = vec![remove("zone.0")];
    state.take(Command::Place { based_on: state.basis, changes }).unwrap();
    assert!(state.paused.holds(&id("zone.0")), "it is still wanted, and an operator stopped it");
    state.take(Command::Scale { process: name("zone"), count: Some(0) }).unwrap();
    let changes = vec![remove("zone.0")];
    state.take(Command::Place { based_on: state.basis, changes }).unwrap();
    assert!(!state.paused.holds(&id("zone.0")), "it is not wanted any more");
}

#[test]
fn what_was_said_of_an_instance_goes_with_it() {
    let pause = || Command::Pause { target: Target::Instance(id("zone.2")) };
    let fewer = || Command::Scale { process: name("zone"), count: Some(2) };
    let mut state = ready();
    state.take(pause()).unwrap();
    state.take(fewer()).unwrap();
    assert!(state.paused.instances.is_empty(), "it was placed nowhere");

    let mut state = ready();
    state.put("zone.2", "alpha").unwrap();
    state.take(pause()).unwrap();
    state.take(fewer()).unwrap();
    assert!(!state.paused.instances.is_empty(), "its run may not have ended");
    state.down("alpha").unwrap();
    assert!(state.paused.instances.is_empty(), "it went with its host");
}

#[test]
fn a_refused_target_pauses_nothing() {
    let mut state = ready();
    let before = content(&state);
    for (target, rejected) in [
        (Target::Process(name("nothing")), Rejected::NoProcess(name("nothing"))),
        (Target::Instance(id("zone.3")), Rejected::NoInstance(id("zone.3"))),
        (Target::Instance(id("dungeon.1")), Rejected::NoInstance(id("dungeon.1"))),
    ] {
        assert_eq!(state.take(Command::Pause { target: target.clone() }), Err(rejected.clone()));
        assert_eq!(state.take(Command::Resume { target }), Err(rejected));
    }
    assert_eq!(content(&state), before);
}

const ALL: [&str; 6] = ["zone.0", "zone.1", "zone.2", "login.0", "logd.alpha", "dungeon.1"];

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        1 => Just(Target::All),
        2 => prop_oneof![Just("zone"), Just("login"), Just("dungeon")].prop_map(|p| Target::Process(name(p))),
        4 => (0..ALL.len()).prop_map(|which| Target::Instance(id(ALL[which]))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pauses_hold_exactly_what_was_paused_last(steps in proptest::collection::vec((any::<bool>(), target()), 0..30)) {
        let mut state = ready();
        state.launch_one(None).unwrap();
        // The model: of each instance, and of later ones of each process, what was said last.
        let mut paused: BTreeMap<InstanceId, bool> = ALL.iter().map(|i| (id(i), false)).collect();
        let mut later: BTreeMap<ProcessName, bool> =
            state.spec.processes.keys().map(|name| (name.clone(), false)).collect();
        for (pause, target) in steps {
            let meant = |id: &InstanceId| match &target {
                Target::All => true,
                Target::Process(name) => id.process == *name,
                Target::Instance(instance) => id == instance,
            };
            paused.iter_mut().filter(|(id, _)| meant(id)).for_each(|(_, held)| *held = pause);
            match &target {
                Target::All => later.values_mut().for_each(|held| *held = pause),
                Target::Process(name) => drop(later.insert(name.clone(), pause)),
                Target::Instance(_) => {}
            }
            let command = if pause { Command::Pause { target } } else { Command::Resume { target } };
            prop_assert_eq!(state.take(command), Ok(Response::Done));
            for (id, held) in &paused {
                prop_assert_eq!(state.paused.holds(id), *held, "{} with {:?}", id, &state.paused);
            }
            for (process, held) in &later {
                let new = InstanceId::numbered(process.clone(), 99);
                prop_assert_eq!(state.paused.holds(&new), *held, "a later {} with {:?}", process, &state.paused);
            }
        }
    }

    #[test]
    fn what_grows_never_shrinks_and_the_same_commands_give_the_same_state(
        steps in proptest::collection::vec((0..9u8, 0..4u64, any::<bool>()), 0..40)
    ) {
        let mut state = ready();
        let mut twin = ready();
        let mut seq = 1;
        for (kind, number, flag) in steps {
            let before = state.clone();
            let command = match kind {
                0 => Command::ApplySpec { spec: spec(&SPEC.replace("count = 3", &format!("count = {}", number + 1))), expected_revision: flag.then_some(number) },
                1 => Command::Scale { process: name("zone"), count: flag.then_some(number as u32) },
                2 => Command::Pause { target: Target::Instance(id(&format!("zone.{number}"))) },
                3 => Command::Resume { target: Target::All },
                4 => {
                    let facts = HostFacts { machine_id: if flag { "alpha" } else { "x" }.to_owned(), ..HostFacts::default() };
                    Command::JoinHost { host: host("alpha"), facts }
                }
                5 => {
                    let change = PlaceChange::Put { instance: id(&format!("zone.{number}")), host: host("alpha"), hash: SpecHash(number) };
                    Command::Place { based_on: state.basis - u64::from(flag), changes: vec![change] }
                }
                6 => {
                    seq += 1;
                    let incarnation = state.hosts[&host("alpha")].incarnation;
                    let first_seq = state.hosts[&host("alpha")].last_seq + 1;
                    let kind = if flag { started() } else { stopped(number == 0) };
                    Command::Events { host: host("alpha"), incarnation, first_seq, events: vec![event(&format!("dungeon.{number}"), seq, kind)] }
                }
                7 => Command::Roll { process: name("zone"), epoch: number },
                _ => Command::Launch { process: name("dungeon"), args: BTreeMap::new(), key: flag.then(|| number.to_string()) },
            };
            let result = state.take(command.clone());
            prop_assert_eq!(&result, &twin.take(command));
            prop_assert_eq!(&state, &twin);
            prop_assert_eq!(state.index, before.index + 1);
            prop_assert_eq!(shrunk(&before, &state), []);
            prop_assert_eq!(violations(&state), []);
            prop_assert!(state.basis >= before.basis && state.revision >= before.revision);
            if result.is_err() {
                prop_assert_eq!(content(&state), content(&before), "a refused command changed something");
            }
            for (id, placement) in &before.placements {
                let now = state.placements.get(id).map(|now| now.generation);
                prop_assert!(now.is_none_or(|now| now >= placement.generation));
            }
            for (name, epoch) in &before.epochs {
                prop_assert!(state.epochs[name] >= *epoch);
            }
            for (name, counter) in &before.counters {
                prop_assert!(state.counters[name] >= *counter);
            }
            prop_assert!(state.hosts[&host("alpha")].incarnation >= before.hosts[&host("alpha")].incarnation);
        }
    }
}

#[test]
fn a_rest_is_ended_by_a_run_a_start_or_a_new_placement_and_told_by_event_and_inventory_alike() {
    let id: InstanceId = "zone.0".parse().unwrap();
    let rest = gave_up(1);
    let placed = |host: &str| Placement { host: host.parse().unwrap(), generation: 1, hash: SpecHash(0) };
    let mut state = State::default();
    state.placements.insert(id.clone(), placed("alpha"));
    let alpha: HostName = "alpha".parse().unwrap();
    let facts = HostFacts::default();
    let apply = |state: &mut State, command| state.apply(&Envelope { stamp_ms: 0, command }).unwrap();
    apply(&mut state, Command::JoinHost { host: alpha.clone(), facts: facts.clone() });
    apply(&mut state, Command::JoinHost { host: host("beta"), facts });
    let mut seq = 0;
    let mut tell = |kind| {
        seq += 1;
        let events = vec![Event { instance: "zone.0".parse().unwrap(), run: RunId(1), kind }];
        Command::Events { host: "alpha".parse().unwrap(), incarnation: 1, first_seq: seq, events }
    };
    let basis = state.basis;
    apply(&mut state, tell(EventKind::Rests(rest.clone())));
    assert_eq!(state.rests.get(&id), Some(&rest));
    assert!(state.basis > basis, "wants depend on it");
    apply(&mut state, tell(EventKind::Started { hash: SpecHash(0), ports: BTreeMap::new() }));
    assert!(state.rests.is_empty());
    let rests = BTreeMap::from([(id.clone(), rest.clone())]);
    let inventory = Command::Inventory { host: alpha, incarnation: 1, seq: 2, runs: BTreeMap::new(), rests };
    apply(&mut state, inventory.clone());
    assert_eq!(state.rests.get(&id), Some(&rest));
    apply(&mut state, Command::Resume { target: Target::All });
    assert!(state.rests.is_empty());
    apply(&mut state, inventory.clone());
    let changes =
        vec![PlaceChange::Put { instance: id.clone(), host: "beta".parse().unwrap(), hash: SpecHash(1) }];
    let based_on = state.basis;
    apply(&mut state, Command::Place { based_on, changes });
    assert!(state.rests.is_empty());
    apply(&mut state, inventory);
    assert!(state.rests.is_empty(), "it is another host's now");
}
