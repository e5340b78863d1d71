//! Through any history: a planner that remembers plans what one plans that does not, and nothing that the state refuses.

use proptest::prelude::*;

use super::super::tests::histories::{AnyHost, any_host, any_spec, take_host};
use super::super::tests::spec;
use super::super::{Liveness, Planner, plan};
use super::*;
use crate::keeper::protocol::{End, RunId};
use crate::spec::OnPartition;
use crate::state::{Command, Ended, Envelope, Event, EventKind, Rest, RunFact, Target};

/// What may happen to a cluster. Numbers choose among what is there.
#[derive(Clone, Debug)]
enum Step {
    Declare(String),
    Host(AnyHost),
    Down(u8),
    /// A host says what it runs: those of the placed instances that the bits choose, wherever they are placed.
    Lists(u8, u32),
    /// A process becomes exclusive or is so no more.
    Partition(usize),
    Build(usize, u8),
    Drain(u8, bool),
    Carry,
    /// Each placed instance runs, and is ready.
    Run,
    Tell(usize, u8),
    Launch,
    Scale(u32),
    Roll,
    Pause(bool),
    /// Nothing is planned: the next plan sees more of a change.
    Wait,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => any_text().prop_map(Step::Declare),
        3 => any_host().prop_map(Step::Host),
        3 => (0..4u8).prop_map(Step::Down),
        3 => (0..4u8, any::<u32>()).prop_map(|(host, which)| Step::Lists(host, which)),
        1 => any::<usize>().prop_map(Step::Partition),
        1 => (any::<usize>(), 0..3u8).prop_map(|(which, build)| Step::Build(which, build)),
        1 => (0..4u8, any::<bool>()).prop_map(|(host, drained)| Step::Drain(host, drained)),
        8 => Just(Step::Carry),
        3 => Just(Step::Run),
        4 => (any::<usize>(), 0..4u8).prop_map(|(which, what)| Step::Tell(which, what)),
        4 => Just(Step::Launch),
        1 => (0..5u32).prop_map(Step::Scale),
        1 => Just(Step::Roll),
        1 => any::<bool>().prop_map(Step::Pause),
        3 => Just(Step::Wait),
    ]
}

/// Any processes, one that is launched and one that is exclusive.
fn any_text() -> impl Strategy<Value = String> {
    any_spec().prop_map(|text| {
        format!(
            "{text}[process.dungeon]\ncommand = [\"/d\"]\non_demand = {{ max = 4 }}\n\
             [process.vault]\ncommand = [\"/v\"]\ncount = 2\non_partition = \"stop\"\n"
        )
    })
}

fn try_on(state: &mut State, command: Command) {
    // What is refused has changed nothing.
    let _ = state.apply(&Envelope { stamp_ms: 1, command });
}

fn tell(state: &mut State, name: &HostName, events: Vec<Event>) {
    let Some(host) = state.hosts.get(name) else { return };
    let (incarnation, first_seq) = (host.incarnation, host.last_seq + 1);
    try_on(state, Command::Events { host: name.clone(), incarnation, first_seq, events });
}

/// One placed instance ends for good, gives up, starts, or is given back.
fn tell_of(state: &mut State, which: usize, what: u8) {
    let count = state.placements.len().max(1);
    let Some((id, placement)) = state.placements.iter().nth(which % count) else { return };
    let (instance, host, run) = (id.clone(), placement.host.clone(), RunId(state.index));
    let kind = match what {
        0 => EventKind::Stopped(Ended { end: End::Code(0), done: true }),
        1 => EventKind::Rests(Rest { run, end: End::Code(1), at_ms: 0, failed: Some("gave up".into()) }),
        2 => EventKind::Started { hash: placement.hash, ports: BTreeMap::new() },
        _ => EventKind::Released { generation: placement.generation },
    };
    tell(state, &host, vec![Event { instance, run, kind }]);
}

/// What a host brings back that was cut off: also what is placed on others by now.
fn list(state: &mut State, name: &HostName, which: u32) {
    let Some(host) = state.hosts.get(name) else { return };
    let (incarnation, seq) = (host.incarnation, host.last_seq);
    let chosen = state.placements.iter().enumerate().filter(|(n, _)| which & (1 << (n % 32)) != 0);
    let fact = |hash| RunFact { run: RunId(state.index), hash, ports: BTreeMap::new(), ready: true };
    let runs = chosen.map(|(_, (id, placement))| (id.clone(), fact(placement.hash))).collect();
    let inventory = Command::Inventory { host: name.clone(), incarnation, seq, runs, rests: BTreeMap::new() };
    try_on(state, inventory);
}

fn edit(state: &mut State, which: usize, change: impl FnOnce(&mut Process)) {
    let mut spec = state.spec.clone();
    let count = spec.processes.len().max(1);
    if let Some(process) = spec.processes.values_mut().nth(which % count) {
        change(Arc::make_mut(process));
    }
    try_on(state, Command::ApplySpec { spec, expected_revision: None });
}

fn run_all(state: &mut State) {
    for (instance, placement) in state.placements.clone() {
        let run = RunId(state.index);
        let event = |kind| Event { instance: instance.clone(), run, kind };
        let started = EventKind::Started { hash: placement.hash, ports: BTreeMap::new() };
        tell(state, &placement.host, vec![event(started), event(EventKind::Ready)]);
    }
}

fn take(state: &mut State, step: Step) {
    let named = |number: u8| format!("h{number}").parse::<HostName>().unwrap();
    let first = || "p0".parse().unwrap();
    match step {
        Step::Declare(text) => {
            try_on(state, Command::ApplySpec { spec: spec(&text), expected_revision: None });
        }
        Step::Host(host) => take_host(state, host),
        Step::Down(host) => {
            let incarnation = state.hosts.get(&named(host)).map_or(0, |host| host.incarnation);
            try_on(state, Command::HostDown { host: named(host), incarnation });
        }
        Step::Lists(host, which) => list(state, &named(host), which),
        Step::Partition(which) => edit(state, which, |process| {
            process.on_partition = if process.exclusive() { OnPartition::Keep } else { OnPartition::Stop };
        }),
        Step::Build(which, build) => edit(state, which, |process| process.build = Some(build.to_string())),
        Step::Drain(host, drained) => try_on(state, Command::DrainHost { host: named(host), drained }),
        Step::Carry => {
            for command in plan(state, &Liveness::default(), 1).commands {
                try_on(state, command);
            }
        }
        Step::Run => run_all(state),
        Step::Tell(which, what) => tell_of(state, which, what),
        Step::Launch => {
            let process = "dungeon".parse().unwrap();
            try_on(state, Command::Launch { process, args: BTreeMap::new(), key: None });
        }
        Step::Scale(count) => try_on(state, Command::Scale { process: first(), count: Some(count) }),
        Step::Roll => {
            let epoch = state.epochs.get(&first()).copied().unwrap_or(0) + 1;
            try_on(state, Command::Roll { process: first(), epoch });
        }
        Step::Pause(stop) => {
            let target = Target::Process(first());
            try_on(state, if stop { Command::Pause { target } } else { Command::Resume { target } });
        }
        Step::Wait => {}
    }
}

fn begun(text: String, hosts: Vec<AnyHost>) -> State {
    let mut state = State::default();
    take(&mut state, Step::Declare(text));
    hosts.into_iter().for_each(|host| take_host(&mut state, host));
    state
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_it_remembers_changes_no_plan(
        text in any_text(),
        hosts in proptest::collection::vec(any_host(), 1..4),
        steps in proptest::collection::vec(any_step(), 1..40),
    ) {
        let (mut state, mut planner) = (begun(text, hosts), Planner::default());
        for step in steps {
            let waits = matches!(step, Step::Wait);
            take(&mut state, step);
            if !waits {
                let fresh = plan(&state, &Liveness::default(), 1);
                prop_assert_eq!(planner.plan(&state, &Liveness::default(), 1), fresh);
            }
        }
    }

    /// One thing that is refused would be in the way of all others, and be planned again for ever.
    #[test]
    fn nothing_that_is_planned_is_refused(
        text in any_text(),
        hosts in proptest::collection::vec(any_host(), 1..4),
        steps in proptest::collection::vec(any_step(), 1..40),
    ) {
        let mut state = begun(text, hosts);
        for step in steps {
            take(&mut state, step);
            let mut planned = state.clone();
            for command in plan(&state, &Liveness::default(), 1).commands {
                let answer = planned.apply(&Envelope { stamp_ms: 1, command });
                prop_assert!(answer.is_ok(), "{answer:?}");
            }
        }
    }
}

/// The law above would also hold of a planner that always plans anew.
#[test]
fn a_host_that_is_lost_is_planned_from_what_is_remembered() {
    let mut state = State::default();
    let text = "[process.zone]\ncommand = [\"/z\"]\ncount = 9\nplacement = { needs = { slots = 2 } }\n";
    take(&mut state, Step::Declare(text.to_owned()));
    (0..3).for_each(|number| take(&mut state, Step::Host((number, true, 10, true, false))));
    let mut ledger = Ledger::default();
    for step in [Step::Carry, Step::Run, Step::Down(1), Step::Carry, Step::Host((1, true, 10, true, false))] {
        ledger.follow(&state);
        assert!(ledger.all_stay(&state), "before {step:?}");
        assert_eq!(ledger.fill(&state), plan(&state, &Liveness::default(), 1), "before {step:?}");
        take(&mut state, step);
    }
    take(&mut state, Step::Drain(0, true));
    ledger.follow(&state);
    assert!(!ledger.all_stay(&state));
}
