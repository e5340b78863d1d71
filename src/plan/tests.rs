//! Who may go where, and that nothing moves without need.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::config::{Context, parse};
use crate::keeper::protocol::{End, RunId};
use crate::spec::fingerprint::spec_hash;
use crate::spec::{HostName, Protocol, Spec};
use crate::state::{Ended, Entry, Envelope, Event, EventKind, HostFacts, Response, Rest, Target};

pub(super) mod histories;
mod rollouts;

/// A port named pN is the fixed port N: a file of one host may not say so of several instances.
pub(super) fn spec(text: &str) -> Spec {
    let context = Context { hostname: "a".to_owned(), host_override: None };
    let config = parse(text, "test.toml", &context);
    let mut spec = config.unwrap_or_else(|faults| panic!("{}", faults.render(false))).spec;
    for process in spec.processes.values_mut() {
        for (name, port) in &mut Arc::make_mut(process).ports {
            port.fixed = name.strip_prefix('p').and_then(|number| number.parse().ok());
        }
    }
    spec
}

fn zone(lines: &str) -> String {
    format!("[process.zone]\ncommand = [\"/bin/zone\"]\n{lines}\n")
}

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

fn id(name: &str) -> InstanceId {
    name.parse().unwrap()
}

impl State {
    fn accept(&mut self, command: Command) -> Response {
        self.apply(&Envelope { stamp_ms: 1, command }).unwrap()
    }

    fn declare(&mut self, text: &str) {
        self.accept(Command::ApplySpec { spec: spec(text), expected_revision: None });
    }

    fn join_with(&mut self, name: &str, change: impl FnOnce(&mut HostFacts)) {
        let mut facts = HostFacts { machine_id: name.to_owned(), ..HostFacts::default() };
        change(&mut facts);
        self.accept(Command::JoinHost { host: host(name), facts });
    }

    /// Carries a plan out, and holds it to converge at once.
    fn plan_out(&mut self) -> Plan {
        let before = plan(self, &Liveness::default(), 0);
        for command in before.commands.clone() {
            self.accept(command);
        }
        assert_eq!(laws::violations(self), []);
        let again = plan(self, &Liveness::default(), 0);
        assert_eq!(again.commands, [], "a plan of the planned state");
        // The words say what is in the way, and more may be by now.
        assert!(again.unplaced.keys().eq(before.unplaced.keys()), "{again:?} after {before:?}");
        before
    }

    fn on(&self, name: &str) -> Vec<String> {
        let mine = self.placements.iter().filter(|(_, p)| p.host == host(name));
        mine.map(|(id, _)| id.to_string()).collect()
    }

    /// The runs follow the placements, except those of `bad` hashes, which never get ready.
    fn run_all(&mut self, bad: Option<SpecHash>) {
        let index = self.index;
        for (id, placement) in self.placements.clone() {
            let held = self.directory.get(&id);
            if held.is_some_and(|entry| entry.hash == placement.hash) {
                continue;
            }
            let entry = Entry {
                host: placement.host.clone(),
                run: RunId(index + 1),
                hash: placement.hash,
                address: String::new(),
                ports: Default::default(),
                started: index,
                ready: (Some(placement.hash) != bad).then_some(index),
            };
            self.directory.insert(id, entry);
        }
        self.basis += 1;
    }

    fn roll_out(&mut self, process: &str) {
        let process: ProcessName = process.parse().unwrap();
        let epoch = self.epochs.get(&process).copied().unwrap_or(0) + 1;
        self.accept(Command::Roll { process, epoch });
    }

    fn unready(&self) -> usize {
        let up = |id: &InstanceId| {
            let entry = self.directory.get(id);
            entry.is_some_and(|e| {
                e.ready.is_some() && self.placements.get(id).is_some_and(|p| p.hash == e.hash)
            })
        };
        self.placements.keys().filter(|id| !up(id)).count()
    }
}

fn cluster(text: &str, hosts: &[&str]) -> State {
    let mut state = State::default();
    state.declare(text);
    hosts.iter().for_each(|name| state.join_with(name, |_| {}));
    state
}

/// What a plan places or removes.
fn changes(plan: &Plan) -> Vec<PlaceChange> {
    let placed = plan.commands.iter().filter_map(|command| match command {
        Command::Place { changes, .. } => Some(changes.clone()),
        _ => None,
    });
    placed.flatten().collect()
}

#[test]
fn spread_is_even_and_pack_uses_few_hosts() {
    let mut state = cluster(&zone("count = 6"), &["a", "b", "c"]);
    state.plan_out();
    assert_eq!(["a", "b", "c"].map(|name| state.on(name).len()), [2, 2, 2]);
    let mut state =
        cluster(&zone("count = 6\nplacement = { strategy = \"pack\", max_per_host = 4 }"), &["a", "b", "c"]);
    state.plan_out();
    assert_eq!(["a", "b", "c"].map(|name| state.on(name).len()), [4, 2, 0]);
}

#[test]
fn without_a_host_everything_says_why_it_is_nowhere() {
    let mut state = cluster(&zone("count = 2"), &[]);
    let plan = state.plan_out();
    assert_eq!(plan.unplaced.get(&id("zone.1")).map(String::as_str), Some("no host has joined"));
}

#[test]
fn nobody_goes_to_a_host_that_is_down_drained_or_unlike_its_labels() {
    let text = zone("count = 4\nplacement = { labels = { region = \"eu\" } }");
    let mut state = cluster(&text, &["a"]);
    for (name, region) in [("b", "us"), ("c", "eu"), ("d", "eu"), ("e", "eu")] {
        state.join_with(name, |facts| drop(facts.labels.insert("region".to_owned(), region.to_owned())));
    }
    state.hosts.get_mut(&host("d")).unwrap().up = false;
    state.hosts.get_mut(&host("e")).unwrap().drained = true;
    state.plan_out();
    assert_eq!(state.on("c").len(), 4);
    state.hosts.get_mut(&host("c")).unwrap().drained = true;
    state.hosts.get_mut(&host("e")).unwrap().drained = false;
    state.plan_out();
    assert_eq!((state.on("c").len(), state.on("e").len()), (0, 4), "what cannot stay moves");
    state.hosts.get_mut(&host("e")).unwrap().up = false;
    let plan = state.plan_out();
    assert_eq!(plan.unplaced.len(), 4);
    let why = &plan.unplaced[&id("zone.0")];
    for part in ["a: has no label region", "b: has no label region", "c: is drained", "d: is down"] {
        assert!(why.contains(part), "{part:?} is not in {why:?}");
    }
    assert!(state.placements.is_empty());
}

#[test]
fn a_host_that_never_joined_is_no_place() {
    let mut state = cluster(&zone("count = 1"), &["a"]);
    state.plan_out();
    state.placements.get_mut(&id("zone.0")).unwrap().host = host("ghost");
    state.basis += 1;
    state.plan_out();
    assert_eq!(state.on("a"), ["zone.0"]);
}

#[test]
fn required_limits_go_only_where_they_are_enforced() {
    let limits = |required| zone(&format!("limits = {{ memory = \"1GiB\", required = {required} }}"));
    let mut state = cluster(&limits(true), &["a"]);
    assert!(state.plan_out().unplaced[&id("zone.0")].contains("cannot enforce limits.memory"));
    state.join_with("b", |facts| facts.enforces = vec!["memory".to_owned()]);
    state.plan_out();
    assert_eq!(state.on("b"), ["zone.0"]);
    let mut state = cluster(&limits(false), &["a"]);
    state.plan_out();
    assert_eq!(state.on("a"), ["zone.0"]);
}

#[test]
fn capacity_and_max_per_host_are_kept_and_the_first_ordinals_stay_when_they_shrink() {
    let text = zone("count = 5\nplacement = { needs = { slots = 10 } }");
    let mut state = State::default();
    state.declare(&text);
    let slots = |n: u64| move |facts: &mut HostFacts| facts.capacity.extend([("slots".to_owned(), n)]);
    state.join_with("a", slots(35));
    let plan = state.plan_out();
    assert_eq!(state.on("a"), ["zone.0", "zone.1", "zone.2"]);
    assert!(plan.unplaced[&id("zone.3")].contains("30 of 35 slots in use, and it needs 10"), "{plan:?}");
    state.hosts.get_mut(&host("a")).unwrap().facts.capacity.insert("slots".to_owned(), 20);
    state.plan_out();
    assert_eq!(state.on("a"), ["zone.0", "zone.1"]);
    let mut state = cluster(&zone("count = 5\nplacement = { max_per_host = 2 }"), &["a", "b"]);
    assert_eq!(state.plan_out().unplaced.len(), 1);
    assert_eq!((state.on("a").len(), state.on("b").len()), (2, 2));
}

#[test]
fn one_stays_when_the_one_in_its_way_must_go_anyway() {
    let text = "[process.big]\ncommand = [\"/b\"]\nplacement = { needs = { slots = 10 } }
[process.a]\ncommand = [\"/a\"]\nplacement = { needs = { slots = 5 } }";
    let mut state = State::default();
    state.declare(text);
    let slots = |n: u64| move |facts: &mut HostFacts| facts.capacity.extend([("slots".to_owned(), n)]);
    state.join_with("a", slots(15));
    state.plan_out();
    let before = state.placements[&id("a.0")].clone();
    state.hosts.get_mut(&host("a")).unwrap().facts.capacity.insert("slots".to_owned(), 9);
    state.plan_out();
    assert_eq!(state.on("a"), ["a.0"]);
    assert_eq!(state.placements[&id("a.0")], before);
}

#[test]
fn fixed_ports_are_one_to_a_host() {
    let text = format!(
        "{}[process.login]\ncommand = [\"/l\"]\nports = {{ p7777 = \"udp\", p80 = \"tcp\" }}\n",
        zone("count = 2\nports = { p7777 = \"udp\" }")
    );
    let mut state = cluster(&text, &["a", "b"]);
    let plan = state.plan_out();
    assert_eq!(plan.unplaced.len(), 1);
    assert!(plan.unplaced.values().all(|why| why.contains("fixed port in use by")), "{plan:?}");
    state.join_with("c", |_| {});
    assert_eq!(state.plan_out().unplaced.len(), 0);
    let mut state = cluster(&zone("count = 3\nports = { game = \"udp\" }"), &["a"]);
    assert_eq!(state.plan_out().unplaced.len(), 0, "a port of the range is no resource");
}

#[test]
fn scaling_and_new_hosts_move_nobody_and_the_highest_ordinals_go_first() {
    let mut state = cluster(&zone("count = 4"), &["a", "b"]);
    state.plan_out();
    let before = state.placements.clone();
    state.join_with("c", |_| {});
    assert_eq!(changes(&state.plan_out()), [], "the new host hears only that it was thought of");
    assert_eq!(state.plan_out().commands, []);
    let scale = |count| Command::Scale { process: "zone".parse().unwrap(), count: Some(count) };
    state.accept(scale(7));
    state.plan_out();
    assert!(before.iter().all(|(id, placement)| state.placements[id] == *placement));
    assert_eq!(["a", "b", "c"].map(|name| state.on(name).len()), [3, 2, 2]);
    state.accept(scale(2));
    state.plan_out();
    let left: Vec<String> = state.placements.keys().map(ToString::to_string).collect();
    assert_eq!(left, ["zone.0", "zone.1"]);
    assert_eq!(state.placements[&id("zone.1")], before[&id("zone.1")]);
}

#[test]
fn per_host_instances_live_on_their_host_alone() {
    let mut state = cluster(&zone("per_host = true"), &["a", "b"]);
    state.plan_out();
    assert_eq!((state.on("a"), state.on("b")), (vec!["zone.a".to_owned()], vec!["zone.b".to_owned()]));
    state.hosts.get_mut(&host("b")).unwrap().drained = true;
    state.plan_out();
    assert_eq!((state.on("a").len(), state.on("b").len()), (1, 0));
}

#[test]
fn what_was_given_up_goes_elsewhere_and_stays_where_there_is_nowhere_better() {
    let mut state = cluster(&zone("count = 2"), &["a", "b"]);
    state.plan_out();
    let failed = |state: &mut State, on: &str, instance: &str| {
        let known = &state.hosts[&host(on)];
        let (incarnation, first_seq) = (known.incarnation, known.last_seq + 1);
        let rest = Rest { run: RunId(1), end: End::Code(1), at_ms: 0, failed: Some("gave up".to_owned()) };
        let event = Event { instance: id(instance), run: RunId(1), kind: EventKind::Rests(rest) };
        state.accept(Command::Events { host: host(on), incarnation, first_seq, events: vec![event] });
    };
    failed(&mut state, "a", "zone.0");
    state.plan_out();
    assert_eq!(state.on("b"), ["zone.0", "zone.1"]);
    failed(&mut state, "b", "zone.0");
    assert_eq!(state.plan_out().commands, [], "it was given up everywhere");
    state.join_with("c", |_| {});
    state.plan_out();
    assert_eq!(state.on("c"), ["zone.0"]);
}

#[test]
fn an_exclusive_instance_is_withdrawn_first_and_placed_when_it_is_given_up() {
    let mut state = cluster(&zone("count = 1\non_partition = \"stop\""), &["a", "b"]);
    state.plan_out();
    state.accept(Command::DrainHost { host: host("a"), drained: true });
    let plan = state.plan_out();
    assert!(plan.unplaced[&id("zone.0")].contains("has not given it up"), "{plan:?}");
    assert!(state.placements.is_empty());
    let generation = state.claims[&id("zone.0")].generation;
    let kind = EventKind::Released { generation };
    let events = vec![Event { instance: id("zone.0"), run: RunId(1), kind }];
    let basis = state.basis;
    state.accept(Command::Events { host: host("a"), incarnation: 1, first_seq: 1, events });
    assert!(state.basis > basis, "there is something to plan");
    state.plan_out();
    assert_eq!(state.on("b"), ["zone.0"]);
    // Drained and undrained before it was given up, it goes back to where it may still live.
    state.accept(Command::DrainHost { host: host("a"), drained: false });
    state.accept(Command::DrainHost { host: host("b"), drained: true });
    state.plan_out();
    state.accept(Command::DrainHost { host: host("b"), drained: false });
    state.plan_out();
    assert_eq!(state.on("b"), ["zone.0"]);
}

/// It was cut off while the process was no exclusive one, and is back with its run.
#[test]
fn one_that_may_live_elsewhere_waits_and_stops_nobody_else() {
    let mut state = cluster(&zone("count = 2"), &["a", "b", "c"]);
    state.plan_out();
    let old = state.placements[&id("zone.0")].host.clone();
    let down = Command::HostDown { host: old.clone(), incarnation: state.hosts[&old].incarnation };
    state.accept(down);
    state.plan_out();
    state.run_all(None);
    state.join_with(&old.to_string(), |_| {});
    let incarnation = state.hosts[&old].incarnation;
    let tell = |first_seq, kind| {
        let events = vec![Event { instance: id("zone.0"), run: RunId(1), kind }];
        Command::Events { host: old.clone(), incarnation, first_seq, events }
    };
    state.accept(tell(1, EventKind::Started { hash: Default::default(), ports: Default::default() }));
    assert!(state.superseded.contains_key(&id("zone.0")), "{:?}", state.directory);
    let exclusive =
        zone("count = 2\nbuild = \"2\"\non_partition = \"stop\"\nupdate = { max_unavailable = 2 }");
    state.declare(&format!("{exclusive}[process.login]\ncommand = [\"/l\"]\n"));
    let wanted = state.hash_of(&"zone".parse().unwrap()).unwrap();
    let held = state.placements[&id("zone.0")].clone();
    state.plan_out();
    assert!(state.placements.contains_key(&id("login.0")), "what is new has a place");
    assert_eq!(state.placements[&id("zone.1")].hash, wanted, "the others are updated");
    assert_eq!(state.placements[&id("zone.0")], held, "a run of it lives on {old}");
    state.failed.insert(id("zone.0"), state.hosts.keys().cloned().collect());
    state.basis += 1;
    state.plan_out();
    assert_eq!(state.placements[&id("zone.0")], held, "there is nowhere better to go");
    let basis = state.basis;
    state.accept(tell(2, EventKind::Stopped(Ended { end: End::Code(0), done: false })));
    assert!(state.basis > basis, "there is something to plan");
    state.plan_out();
    assert_eq!(state.placements[&id("zone.0")].hash, wanted);
}

#[test]
fn one_too_many_with_players_stays_until_it_is_empty_or_late() {
    let text = zone("count = 3\nupdate = { when_empty = true, deadline = \"1m\" }");
    let mut state = cluster(&text, &["a"]);
    state.plan_out();
    state.run_all(None);
    state.accept(Command::Scale { process: "zone".parse().unwrap(), count: Some(1) });
    let players = |of_1, of_2| Liveness { players: [(id("zone.1"), of_1), (id("zone.2"), of_2)].into() };
    let remove = |name: &str| PlaceChange::Remove { instance: id(name) };
    let full = plan(&state, &players(3, 3), 2);
    assert!(full.waits && changes(&full).is_empty(), "{full:?}");
    assert_eq!(changes(&plan(&state, &players(0, 3), 2)), [remove("zone.1")]);
    let late = plan(&state, &players(3, 3), 60_001);
    assert_eq!((changes(&late), late.waits), (vec![remove("zone.1"), remove("zone.2")], false));
}

#[test]
fn launched_instances_are_placed_and_go_when_done() {
    let mut state = cluster(&zone("on_demand = { max = 3 }"), &["a"]);
    assert_eq!(changes(&state.plan_out()), []);
    let command = Command::Launch { process: "zone".parse().unwrap(), args: Default::default(), key: None };
    state.accept(command);
    state.plan_out();
    assert_eq!(state.on("a"), ["zone.1"]);
    let kind = EventKind::Stopped(Ended { end: End::Code(0), done: true });
    let event = Event { instance: id("zone.1"), run: RunId(1), kind };
    state.accept(Command::Events { host: host("a"), incarnation: 1, first_seq: 1, events: vec![event] });
    state.plan_out();
    assert!(state.placements.is_empty());
}
