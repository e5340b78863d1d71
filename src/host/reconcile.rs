//! From the replicated state to what this host should run.
//!
//! Pure. [`wants`] reads placements; [`super::Host::desire`] compares the result with what is there. It
//! never looks at what was wanted before, so a lost message costs nothing: the next state says it again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::spec::fingerprint::SpecHash;
use crate::spec::{HostName, InstanceId, Process, ProcessName};
use crate::state::{Rest, State, of_process};

/// What is wanted of one instance on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Its process.
    pub process: Arc<Process>,
    /// What a new run is spawned with.
    pub hash: SpecHash,
    /// The living run is to be replaced when it has another hash: its turn in the rollout has come.
    pub replace: bool,
    /// Grows when the instance is placed anew or resumed.
    pub generation: u64,
    /// An operator has stopped it.
    pub paused: bool,
    /// Its first run waits for this process to be ready.
    pub waits_for: Option<ProcessName>,
    /// Values of `{arg.NAME}`.
    pub args: BTreeMap<String, String>,
    /// An agent before this one has started no further run of it. Counts for the first look at it only.
    pub rest: Option<Rest>,
}

/// What [`wants`] depends on: states with equal grounds give equal wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grounds {
    /// Moves with spec, placements, pauses and launches.
    basis: u64,
    /// Instances wait for these.
    ready: BTreeSet<ProcessName>,
}

impl Grounds {
    /// Those of a state.
    pub fn of(state: &State) -> Self {
        Grounds { basis: state.basis, ready: ready_processes(state).into_iter().cloned().collect() }
    }
}

/// Everything that is wanted on a host.
pub fn wants(state: &State, host: &HostName) -> BTreeMap<InstanceId, Want> {
    let hashes: BTreeMap<&ProcessName, SpecHash> =
        state.spec.processes.keys().filter_map(|name| Some((name, state.hash_of(name)?))).collect();
    let ready = ready_processes(state);
    let mine = state.placements.iter().filter(|(_, placement)| placement.host == *host);
    mine.filter_map(|(id, placement)| {
        let process = state.spec.processes.get(&id.process)?;
        let hash = *hashes.get(&id.process)?;
        let waits_for = process.after.iter().find(|name| !ready.contains(*name)).cloned();
        let want = Want {
            process: process.clone(),
            hash,
            replace: placement.hash == hash,
            generation: placement.generation,
            paused: state.paused.holds(id),
            waits_for,
            args: state.launches.get(id).map(|launch| launch.args.clone()).unwrap_or_default(),
            rest: state.rests.get(id).cloned(),
        };
        Some((id.clone(), want))
    })
    .collect()
}

/// Processes with at least one ready run, of those that others wait for: of each the first such run is enough.
fn ready_processes(state: &State) -> BTreeSet<&ProcessName> {
    let waited_for: BTreeSet<&ProcessName> =
        state.spec.processes.values().flat_map(|process| &process.after).collect();
    let is_ready =
        |name: &&ProcessName| of_process(&state.directory, name).any(|(_, entry)| entry.ready.is_some());
    waited_for.into_iter().filter(is_ready).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Context, parse};
    use crate::keeper::protocol::{End, RunId};
    use crate::plan::{Liveness, plan};
    use crate::state::{Command, Ended, Envelope, Event, EventKind, HostFacts, Target};

    const FILE: &str = "[process.login]\ncommand = [\"/bin/login\"]\n\
                        [process.zone]\ncommand = [\"/bin/zone\"]\ncount = 2\nafter = [\"login\"]\n\
                        [process.dungeon]\ncommand = [\"/bin/dungeon\"]\non_demand = { max = 3 }\n";

    fn event(instance: &str, run: u64, kind: EventKind) -> Event {
        Event { instance: instance.parse().unwrap(), run: RunId(run), kind }
    }

    /// Everything that changes a state, some of it twice.
    fn commands() -> Vec<Command> {
        let host: HostName = "alpha".parse().unwrap();
        let context = Context { hostname: "alpha".into(), host_override: None };
        let spec = parse(FILE, "cluster.toml", &context).unwrap().spec;
        let facts = HostFacts {
            machine_id: "m".into(),
            address: "127.0.0.1".into(),
            labels: BTreeMap::new(),
            capacity: BTreeMap::new(),
            ..HostFacts::default()
        };
        let started = || EventKind::Started { hash: SpecHash(0), ports: BTreeMap::new() };
        let stopped = EventKind::Stopped(Ended { end: End::Code(0), done: true });
        let rest = Rest { run: RunId(4), end: End::Code(1), at_ms: 0, failed: Some("gave up".into()) };
        let mut seq = 0;
        let mut tell = |event: Event| {
            seq += 1;
            Command::Events { host: host.clone(), incarnation: 1, first_seq: seq, events: vec![event] }
        };
        let target = |name: &str| Target::Process(name.parse().unwrap());
        vec![
            Command::JoinHost { host: host.clone(), facts },
            Command::ApplySpec { spec, expected_revision: None },
            tell(event("zone.0", 1, started())),
            tell(event("zone.0", 1, EventKind::Ready)),
            tell(event("login.0", 2, started())),
            tell(event("login.0", 2, EventKind::Ready)),
            tell(event("login.0", 2, EventKind::Unready)),
            Command::Launch { process: "dungeon".parse().unwrap(), args: BTreeMap::new(), key: None },
            tell(event("dungeon.1", 3, started())),
            tell(event("dungeon.1", 3, stopped)),
            tell(event("zone.1", 4, EventKind::Rests(rest))),
            tell(event("zone.1", 5, started())),
            Command::Pause { target: target("zone") },
            Command::Resume { target: target("zone") },
            Command::Scale { process: "zone".parse().unwrap(), count: Some(1) },
            Command::Roll { process: "login".parse().unwrap(), epoch: 1 },
        ]
    }

    fn apply(state: &mut State, command: Command) {
        state.apply(&Envelope { stamp_ms: 0, command }).unwrap();
    }

    /// After each command, and each that the primary has for it.
    fn states(commands: Vec<Command>) -> Vec<State> {
        let mut state = State::default();
        let mut seen = vec![state.clone()];
        for command in commands {
            // What does not fit is refused, and changes nothing.
            let _ = state.apply(&Envelope { stamp_ms: 0, command });
            seen.push(state.clone());
            for command in plan(&state, &Liveness::default(), 0).commands {
                apply(&mut state, command);
                seen.push(state.clone());
            }
        }
        seen
    }

    /// Of how many pairs the directory differs and the wants do not.
    fn check(seen: &[State]) -> usize {
        let host: HostName = "alpha".parse().unwrap();
        let mut equal = 0;
        for state in seen {
            let wanted = wants(state, &host);
            let placed = state.placements.iter().filter(|(_, placement)| placement.host == host);
            assert!(wanted.keys().eq(placed.map(|(id, _)| id)), "what is placed here, and nothing else");
            for (id, want) in &wanted {
                assert_eq!(want.process, state.spec.processes[&id.process]);
                assert_eq!(want.paused, state.paused.holds(id), "{id}");
            }
        }
        for (a, b) in seen.iter().flat_map(|a| seen.iter().map(move |b| (a, b))) {
            if Grounds::of(a) == Grounds::of(b) {
                assert_eq!(wants(a, &host), wants(b, &host), "index {} and {}", a.index, b.index);
                equal += usize::from(a.directory != b.directory);
            }
        }
        equal
    }

    #[test]
    fn states_with_equal_grounds_give_equal_wants() {
        let equal = check(&states(commands()));
        assert!(equal > 0, "an event that changes no want must not change the grounds either");
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            cases: 64, failure_persistence: None, ..Default::default()
        })]

        #[test]
        fn so_they_do_in_whatever_order_it_comes(order in proptest::collection::vec(0..16_usize, 1..24)) {
            let all = commands();
            // Without a host and a spec there is nothing to want.
            let begin = all[..2].iter().cloned();
            check(&states(begin.chain(order.into_iter().map(|at| all[at].clone())).collect()));
        }
    }
}
