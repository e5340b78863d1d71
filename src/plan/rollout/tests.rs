//! Whose turn it is in an update that is careful of players.

use std::sync::Arc;

use crate::config::{Context, parse};
use crate::keeper::protocol::RunId;
use crate::plan::{Liveness, Plan, instances, plan};
use crate::spec::fingerprint::spec_hash;
use crate::spec::{InstanceId, Process, Spec};
use crate::state::{Command, Envelope, Event, EventKind, HostFacts, PlaceChange, State, Target};

fn spec(build: u32) -> Spec {
    let text = format!(
        "[process.zone]\ncommand = [\"/zone\"]\ncount = 3\nbuild = \"{build}\"\n\
         update = {{ max_unavailable = 2, when_empty = true, deadline = \"1h\" }}"
    );
    let context = Context { hostname: "alpha".to_owned(), host_override: None };
    parse(&text, "test.toml", &context).unwrap_or_else(|faults| panic!("{}", faults.render(false))).spec
}

fn apply(state: &mut State, stamp_ms: u64, command: Command) {
    state.apply(&Envelope { stamp_ms, command }).unwrap();
}

fn id(number: u64) -> InstanceId {
    InstanceId::numbered("zone".parse().unwrap(), number)
}

/// Three ready instances of build 1, and build 2 wanted since `changed_ms`.
fn updating(changed_ms: u64) -> State {
    let mut state = State::default();
    let host: crate::spec::HostName = "alpha".parse().unwrap();
    apply(&mut state, 0, Command::JoinHost { host: host.clone(), facts: HostFacts::default() });
    apply(&mut state, 0, Command::ApplySpec { spec: spec(1), expected_revision: None });
    for command in plan(&state, &Liveness::default(), 0).commands {
        apply(&mut state, 0, command);
    }
    let hash = spec_hash(&state.spec.processes[&"zone".parse().unwrap()]);
    let mut events = Vec::new();
    for number in 0..3 {
        let event = |kind| Event { instance: id(number), run: RunId(number + 1), kind };
        events.push(event(EventKind::Started { hash, ports: Default::default() }));
        events.push(event(EventKind::Ready));
    }
    apply(&mut state, 0, Command::Events { host, incarnation: 1, first_seq: 1, events });
    apply(&mut state, changed_ms, Command::ApplySpec { spec: spec(2), expected_revision: None });
    state
}

fn updated(plan: &Plan) -> Vec<InstanceId> {
    let changes = plan.commands.iter().flat_map(|command| match command {
        Command::Place { changes, .. } => changes.clone(),
        _ => Vec::new(),
    });
    changes
        .filter_map(|change| match change {
            PlaceChange::Put { instance, .. } => Some(instance),
            PlaceChange::Remove { .. } => None,
        })
        .collect()
}

#[test]
fn empty_runs_are_updated_first_and_the_others_wait_until_the_deadline() {
    let state = updating(1_000);
    let players = [(id(0), 5), (id(1), 0)].into();
    let liveness = Liveness { players };
    let now = plan(&state, &liveness, 2_000);
    assert_eq!(updated(&now), [id(1)], "zone.0 has players, and of zone.2 nobody knows");
    assert!(now.waits);
    let hour = 3_600_000;
    assert_eq!(updated(&plan(&state, &liveness, 1_000 + hour - 1)), [id(1)]);
    let late = plan(&state, &liveness, 1_000 + hour);
    assert_eq!(updated(&late), [id(0), id(1)], "two may be down at once");
    assert!(!late.waits);
}

#[test]
fn a_run_that_is_down_anyway_does_not_wait() {
    let mut state = updating(0);
    state.directory.remove(&id(0));
    let players = [(id(0), 5), (id(1), 5), (id(2), 5)].into();
    assert_eq!(updated(&plan(&state, &Liveness { players }, 1)), [id(0)]);
}

#[test]
fn the_planned_state_needs_no_plan() {
    let mut state = State::default();
    apply(&mut state, 0, Command::ApplySpec { spec: spec(1), expected_revision: None });
    let host: crate::spec::HostName = "alpha".parse().unwrap();
    apply(&mut state, 0, Command::JoinHost { host, facts: HostFacts::default() });
    for command in plan(&state, &Liveness::default(), 0).commands {
        apply(&mut state, 0, command);
    }
    assert_eq!(plan(&state, &Liveness::default(), 0), Plan::default());
    let process: Arc<Process> = state.spec.processes[&"zone".parse().unwrap()].clone();
    assert_eq!(state.placements.len(), instances(&state, &"zone".parse().unwrap(), &process).len());
}

fn after(mut state: State, plan: &Plan) -> State {
    plan.commands.iter().for_each(|command| apply(&mut state, 0, command.clone()));
    state
}

/// Nobody has players, so that only the budget holds the update back.
fn empty() -> Liveness {
    Liveness { players: (0..3).map(|number| (id(number), 0)).collect() }
}

#[test]
fn what_is_paused_takes_nothing_of_the_budget_although_it_still_runs() {
    let mut state = updating(0);
    apply(&mut state, 0, Command::Pause { target: Target::Instance(id(0)) });
    let first = plan(&state, &empty(), 1);
    assert_eq!(updated(&first), [id(0), id(1), id(2)]);
    assert_eq!(updated(&plan(&after(state, &first), &empty(), 1)), []);
}

#[test]
fn a_run_that_came_back_with_the_new_spec_before_its_turn_is_not_down() {
    let mut state = updating(0);
    let hash = spec_hash(&state.spec.processes[&"zone".parse().unwrap()]);
    state.directory.get_mut(&id(0)).unwrap().hash = hash;
    let first = plan(&state, &empty(), 1);
    assert_eq!(updated(&first), [id(0), id(1), id(2)], "zone.0 costs nothing, two may be down");
    assert_eq!(updated(&plan(&after(state, &first), &empty(), 1)), []);
}

#[test]
fn one_that_is_to_go_is_not_down() {
    let mut state = updating(0);
    state.directory.remove(&id(2));
    apply(&mut state, 0, Command::Scale { process: "zone".parse().unwrap(), count: Some(2) });
    let first = plan(&state, &empty(), 1);
    assert_eq!(updated(&first), [id(0), id(1)]);
    assert_eq!(updated(&plan(&after(state, &first), &empty(), 1)), []);
}

#[test]
fn one_that_was_given_up_where_it_is_holds_the_update_up() {
    let mut state = updating(0);
    let text = "[process.zone]\ncommand = [\"/zone\"]\ncount = 3\nbuild = \"2\"\nupdate.max_unavailable = 1";
    let context = Context { hostname: "alpha".to_owned(), host_override: None };
    let spec =
        parse(text, "test.toml", &context).unwrap_or_else(|faults| panic!("{}", faults.render(false))).spec;
    apply(&mut state, 1, Command::ApplySpec { spec, expected_revision: None });
    let first = plan(&state, &Liveness::default(), 1);
    assert_eq!(updated(&first), [id(0)]);
    let mut state = after(state, &first);
    // Its new run is no good, and there is no other host.
    let rest = crate::state::Rest {
        run: RunId(9),
        end: crate::keeper::protocol::End::Code(2),
        at_ms: 1,
        failed: Some("gave up".to_owned()),
    };
    let ended = crate::state::Ended { end: crate::keeper::protocol::End::Code(2), done: false };
    let event = |run, kind| Event { instance: id(0), run: RunId(run), kind };
    let events = vec![event(1, EventKind::Stopped(ended)), event(9, EventKind::Rests(rest))];
    let host = "alpha".parse().unwrap();
    apply(&mut state, 1, Command::Events { host, incarnation: 1, first_seq: 7, events });
    let next = plan(&state, &Liveness::default(), 1);
    assert!(!updated(&next).contains(&id(1)), "it goes on: {next:?}");
    assert!(!updated(&plan(&after(state, &next), &Liveness::default(), 1)).contains(&id(1)));
}
