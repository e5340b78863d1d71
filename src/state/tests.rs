//! Tests of the replicated state: what is guarded, what happens once, what only grows.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::check::{shrunk, violations};
use super::*;
use crate::config::{Context, parse};
use crate::keeper::protocol::End;

mod cluster;
mod pauses;

const SPEC: &str = "[process.zone]\ncommand = [\"/bin/zone\"]\ncount = 3
[process.login]\ncommand = [\"/bin/login\"]\non_partition = \"stop\"
[process.logd]\ncommand = [\"/bin/logd\"]\nper_host = true
[process.dungeon]\ncommand = [\"/bin/dungeon\"]\non_demand = { max = 2 }";

fn spec(text: &str) -> Spec {
    let context = Context { hostname: "alpha".to_owned(), host_override: None };
    parse(text, "test.toml", &context).unwrap_or_else(|faults| panic!("{}", faults.render(false))).spec
}

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

fn id(name: &str) -> InstanceId {
    name.parse().unwrap()
}

fn name(name: &str) -> ProcessName {
    name.parse().unwrap()
}

fn gave_up(run: u64) -> Rest {
    Rest { run: RunId(run), end: End::Code(1), at_ms: 5, failed: Some("gave up".to_owned()) }
}

impl State {
    fn take(&mut self, command: Command) -> Result<Response, Rejected> {
        self.apply(&Envelope { stamp_ms: 5, command })
    }

    fn join(&mut self, name: &str) -> u64 {
        let facts =
            HostFacts { machine_id: name.to_owned(), address: "10.0.0.1".to_owned(), ..HostFacts::default() };
        match self.take(Command::JoinHost { host: host(name), facts }) {
            Ok(Response::Incarnation(incarnation)) => incarnation,
            other => panic!("{other:?}"),
        }
    }

    fn put(&mut self, instance: &str, on: &str) -> Result<Response, Rejected> {
        let change = PlaceChange::Put { instance: id(instance), host: host(on), hash: SpecHash(1) };
        self.take(Command::Place { based_on: self.basis, changes: vec![change] })
    }

    fn remove(&mut self, instance: &str) -> Result<Response, Rejected> {
        let change = PlaceChange::Remove { instance: id(instance) };
        self.take(Command::Place { based_on: self.basis, changes: vec![change] })
    }

    fn events_of(&mut self, name: &str, first_seq: u64, events: Vec<Event>) -> Result<Response, Rejected> {
        let incarnation = self.hosts[&host(name)].incarnation;
        self.take(Command::Events { host: host(name), incarnation, first_seq, events })
    }

    fn down(&mut self, name: &str) -> Result<Response, Rejected> {
        let incarnation = self.hosts[&host(name)].incarnation;
        self.take(Command::HostDown { host: host(name), incarnation })
    }

    fn events(&mut self, first_seq: u64, events: Vec<Event>) -> Result<Response, Rejected> {
        self.take(Command::Events { host: host("alpha"), incarnation: 1, first_seq, events })
    }

    fn launch_one(&mut self, key: Option<&str>) -> Result<InstanceId, Rejected> {
        let key = key.map(str::to_owned);
        let command = Command::Launch { process: name("dungeon"), args: BTreeMap::new(), key };
        self.take(command).map(|response| match response {
            Response::Launched(id) => id,
            other => panic!("{other:?}"),
        })
    }
}

/// One host, the spec above, nothing placed.
fn ready() -> State {
    let mut state = State::default();
    state.take(Command::ApplySpec { spec: spec(SPEC), expected_revision: None }).unwrap();
    assert_eq!(state.join("alpha"), 1);
    state
}

fn event(instance: &str, run: u64, kind: EventKind) -> Event {
    Event { instance: id(instance), run: RunId(run), kind }
}

fn started() -> EventKind {
    EventKind::Started { hash: SpecHash(1), ports: BTreeMap::new() }
}

fn stopped(done: bool) -> EventKind {
    EventKind::Stopped(Ended { end: End::Code(0), done })
}

/// Everything but the two fields that every command moves.
fn content(state: &State) -> State {
    State { index: 0, now_ms: 0, ..state.clone() }
}

#[test]
fn events_are_applied_once_and_in_order() {
    let mut state = ready();
    let batch = vec![event("zone.0", 1, started()), event("zone.0", 1, EventKind::Ready)];
    assert_eq!(state.events(1, batch.clone()), Ok(Response::Done));
    let entry = state.directory[&id("zone.0")].clone();
    assert!(entry.ready.is_some());
    assert_eq!(entry.address, "10.0.0.1");

    let before = content(&state);
    assert_eq!(state.events(1, batch.clone()), Ok(Response::Done));
    assert_eq!(content(&state), before, "a batch sent again changes nothing");

    let mut longer = batch.clone();
    longer.push(event("zone.1", 2, started()));
    state.events(1, longer).unwrap();
    assert_eq!(state.directory[&id("zone.0")], entry, "only what is new counts");
    assert_eq!(state.hosts[&host("alpha")].last_seq, 3);

    let gap = Rejected::Gap { host: host("alpha"), first_seq: 9, next: 4 };
    let before = content(&state);
    assert_eq!(state.events(9, vec![event("zone.0", 1, stopped(false))]), Err(gap));
    assert_eq!(content(&state), before);
}

#[test]
fn events_of_another_run_do_not_touch_the_entry() {
    let mut state = ready();
    let batch = vec![
        event("zone.0", 1, started()),
        event("zone.0", 2, started()),
        event("zone.0", 1, EventKind::Ready),
        event("zone.0", 1, stopped(false)),
    ];
    state.events(1, batch).unwrap();
    let entry = &state.directory[&id("zone.0")];
    assert_eq!((entry.run, entry.ready), (RunId(2), None));
    state.events(5, vec![event("zone.0", 2, EventKind::Ready)]).unwrap();
    assert_eq!(state.directory[&id("zone.0")].ready, Some(state.index));
    state.events(6, vec![event("zone.0", 2, EventKind::Unready)]).unwrap();
    assert_eq!(state.directory[&id("zone.0")].ready, None);
}

#[test]
fn an_older_life_of_a_host_is_refused_and_a_new_one_counts_anew() {
    let mut state = ready();
    state.events(1, vec![event("zone.0", 1, started())]).unwrap();
    assert_eq!(state.join("alpha"), 2);
    let old = Err(Rejected::OldIncarnation(host("alpha")));
    assert_eq!(state.events(2, vec![event("zone.0", 1, EventKind::Ready)]), old);
    let inventory = |incarnation| Command::Inventory {
        host: host("alpha"),
        incarnation,
        seq: 0,
        runs: BTreeMap::new(),
        rests: BTreeMap::new(),
    };
    assert_eq!(state.take(inventory(1)), old);
    assert_eq!(state.hosts[&host("alpha")].last_seq, 0);
    assert_eq!(state.take(inventory(2)), Ok(Response::Done));
    assert!(state.directory.is_empty());
}

#[test]
fn a_clone_of_a_living_host_is_refused() {
    let mut state = ready();
    let facts = HostFacts { machine_id: "other".to_owned(), ..HostFacts::default() };
    let command = Command::JoinHost { host: host("alpha"), facts };
    let before = content(&state);
    assert_eq!(state.take(command), Err(Rejected::CloneOf(host("alpha"))));
    assert_eq!(content(&state), before);
}

#[test]
fn revisions_and_plans_are_guarded() {
    let mut state = ready();
    let again = |expected_revision| Command::ApplySpec { spec: spec(SPEC), expected_revision };
    assert_eq!(state.take(again(Some(1))), Ok(Response::Revision(1)), "the same spec is no new revision");
    let stale = Rejected::Revision { expected: 0, found: 1 };
    let before = content(&state);
    assert_eq!(state.take(again(Some(0))), Err(stale));
    assert_eq!(content(&state), before);
    let changed = Command::ApplySpec {
        spec: spec(&SPEC.replace("/bin/zone", "/bin/zone2")),
        expected_revision: Some(1),
    };
    assert_eq!(state.take(changed), Ok(Response::Revision(2)));

    let basis = state.basis;
    state.put("zone.0", "alpha").unwrap();
    let change = PlaceChange::Remove { instance: id("zone.0") };
    let command = Command::Place { based_on: basis, changes: vec![change] };
    assert!(matches!(state.take(command), Err(Rejected::StalePlan { .. })));
    assert!(state.placements.contains_key(&id("zone.0")));
}

#[test]
fn an_exclusive_instance_moves_only_when_its_run_has_stopped() {
    let mut state = ready();
    state.join("beta");
    state.put("login.0", "alpha").unwrap();
    state.events(1, vec![event("login.0", 1, started())]).unwrap();
    assert_eq!(state.put("login.0", "beta"), Err(Rejected::StillRuns(id("login.0"))));
    assert_eq!(state.placements[&id("login.0")].host, host("alpha"));
    state.put("login.0", "alpha").unwrap();
    state.events(2, vec![event("login.0", 1, stopped(false))]).unwrap();
    assert_eq!(
        state.put("login.0", "beta"),
        Err(Rejected::StillRuns(id("login.0"))),
        "a restart may be under way"
    );
    let generation = state.claims[&id("login.0")].generation;
    let released = |generation| event("login.0", 1, EventKind::Released { generation });
    state.events(3, vec![released(generation)]).unwrap();
    assert!(state.claims.contains_key(&id("login.0")), "it is placed there");
    state.remove("login.0").unwrap();
    state.events(4, vec![released(generation - 1)]).unwrap();
    assert_eq!(state.put("login.0", "beta"), Err(Rejected::StillRuns(id("login.0"))), "an older placement");
    state.events(5, vec![released(generation)]).unwrap();
    state.put("login.0", "beta").unwrap();
    assert_eq!(state.placements[&id("login.0")].host, host("beta"));
    assert_eq!(violations(&state), []);
}

#[test]
fn a_scale_lasts_until_the_files_own_count_changes() {
    let mut state = ready();
    let zone = name("zone");
    let scale = |count| Command::Scale { process: name("zone"), count };
    state.take(scale(Some(7))).unwrap();
    let apply = |text: &str| Command::ApplySpec { spec: spec(text), expected_revision: None };
    state.take(apply(&SPEC.replace("/bin/zone", "/bin/zone2"))).unwrap();
    assert_eq!(state.count_of(&zone), Some(7), "another change of the file leaves it");
    assert!(state.wants(&id("zone.6")) && !state.wants(&id("zone.7")));
    state.take(apply(&SPEC.replace("count = 3", "count = 4"))).unwrap();
    assert_eq!(state.count_of(&zone), Some(4));
    state.take(scale(Some(9))).unwrap();
    state.take(scale(None)).unwrap();
    assert_eq!(state.count_of(&zone), Some(4));
    let not = Command::Scale { process: name("logd"), count: Some(2) };
    assert_eq!(state.take(not), Err(Rejected::NotCounted(name("logd"))));
    let none = Command::Scale { process: name("nothing"), count: Some(2) };
    assert_eq!(state.take(none), Err(Rejected::NoProcess(name("nothing"))));
}

#[test]
fn a_roll_that_is_sent_again_rolls_once_and_one_on_old_ground_is_refused() {
    let mut state = ready();
    let roll = |epoch| Command::Roll { process: name("zone"), epoch };
    let before = state.hash_of(&name("zone")).unwrap();
    assert_eq!(state.take(roll(1)), Ok(Response::Done));
    let first = state.hash_of(&name("zone")).unwrap();
    assert_ne!(first, before);
    let rolled = content(&state);
    assert_eq!(state.take(roll(1)), Ok(Response::Done));
    assert_eq!(content(&state), rolled, "sent again it changes nothing");
    assert_eq!(state.take(roll(3)), Err(Rejected::Epoch { process: name("zone"), expected: 2, found: 1 }));
    assert_eq!(state.take(roll(0)), Err(Rejected::Epoch { process: name("zone"), expected: 0, found: 1 }));
    let nobody = Command::Roll { process: name("nobody"), epoch: 1 };
    assert_eq!(state.take(nobody), Err(Rejected::NoProcess(name("nobody"))));
    assert_eq!(content(&state), rolled);
    assert_eq!(state.changed_ms[&name("zone")], 5, "the deadline of `update` counts from the roll");
    // A changed spec keeps the epoch; one without the process forgets it.
    state
        .take(Command::ApplySpec {
            spec: spec(&SPEC.replace("/bin/zone", "/bin/new")),
            expected_revision: None,
        })
        .unwrap();
    assert_eq!(state.epochs, [(name("zone"), 1)].into());
    state.take(Command::ApplySpec { spec: spec(""), expected_revision: None }).unwrap();
    assert!(state.epochs.is_empty());
}

#[test]
fn a_launch_has_every_argument_and_the_same_key_the_same_ones() {
    let mut state = ready();
    let text = SPEC
        .replace("[\"/bin/dungeon\"]", "[\"/bin/dungeon\", \"{arg.map}\"]\nenv = { SEED = \"x{arg.seed}\" }");
    state.take(Command::ApplySpec { spec: spec(&text), expected_revision: None }).unwrap();
    let mut launch = |args: &[(&str, &str)]| {
        let args = args.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        state.take(Command::Launch { process: name("dungeon"), args, key: Some("k".to_owned()) })
    };
    let missing =
        |argument: &str| Err(Rejected::NoArgument { process: name("dungeon"), missing: argument.into() });
    assert_eq!(launch(&[]), missing("map"));
    assert_eq!(launch(&[("map", "cave")]), missing("seed"));
    let cave = [("map", "cave"), ("seed", "7")];
    assert_eq!(launch(&cave), Ok(Response::Launched(id("dungeon.1"))));
    assert_eq!(launch(&cave), Ok(Response::Launched(id("dungeon.1"))));
    let other = Rejected::OtherLaunch { key: "k".to_owned(), instance: id("dungeon.1") };
    assert_eq!(launch(&[("map", "pit"), ("seed", "7")]), Err(other));
}

#[test]
fn launches_are_bounded_found_again_by_key_and_never_numbered_twice() {
    let mut state = ready();
    let first = state.launch_one(Some("a")).unwrap();
    assert_eq!(state.launch_one(Some("a")), Ok(first.clone()));
    let second = state.launch_one(None).unwrap();
    assert_ne!(first, second);
    assert_eq!(state.launch_one(None), Err(Rejected::Full { process: name("dungeon"), max: 2 }));
    assert_eq!(state.launch_one(Some("a")), Ok(first.clone()), "also when full");
    let mut seen = BTreeSet::from([first.clone(), second]);
    let mut last = first;
    for seq in 0..10 {
        let ended = Event { instance: last.clone(), run: RunId(seq), kind: stopped(true) };
        state.events(seq + 1, vec![ended]).unwrap();
        assert!(!state.wants(&last), "done is done");
        last = state.launch_one(Some("a")).unwrap();
        assert!(seen.insert(last.clone()), "{last} was used before");
    }
    let basis = state.basis;
    let restarts = Event { instance: last.clone(), run: RunId(99), kind: stopped(false) };
    state.events(11, vec![restarts]).unwrap();
    assert!(state.wants(&last), "an end that is followed by another run is not done");
    assert_eq!(state.basis, basis);
    let wrong = Command::Launch { process: name("zone"), args: BTreeMap::new(), key: None };
    assert_eq!(state.take(wrong), Err(Rejected::NotOnDemand(name("zone"))));
}

#[test]
fn an_inventory_makes_the_directory_agree_with_the_host() {
    let mut state = ready();
    state.join("beta");
    let old = ["zone.0", "zone.1", "zone.2"].map(|instance| event(instance, 1, started()));
    state.events(1, old.to_vec()).unwrap();
    state.events_of("beta", 1, vec![event("logd.beta", 4, started())]).unwrap();
    let fact = |run, ready| RunFact { run: RunId(run), hash: SpecHash(1), ports: BTreeMap::new(), ready };
    let runs = BTreeMap::from([
        (id("zone.0"), fact(1, true)),
        (id("zone.1"), fact(2, false)),
        (id("logd.alpha"), fact(3, true)),
    ]);
    let command = Command::Inventory {
        host: host("alpha"),
        incarnation: 1,
        seq: 3,
        runs: runs.clone(),
        rests: BTreeMap::new(),
    };
    state.take(command.clone()).unwrap();
    let seen: BTreeMap<InstanceId, RunFact> = state
        .directory
        .iter()
        .filter(|(_, e)| e.host == host("alpha"))
        .map(|(id, e)| (id.clone(), fact(e.run.0, e.ready.is_some())))
        .collect();
    assert_eq!(seen, runs);
    assert!(state.directory.contains_key(&id("logd.beta")), "another host's runs stay");
    let directory = state.directory.clone();
    state.take(command).unwrap();
    assert_eq!(state.directory, directory, "said again, it is nothing new");
}

#[test]
fn start_renews_the_generation_and_generations_only_grow() {
    let mut state = ready();
    state.put("zone.0", "alpha").unwrap();
    state.put("zone.1", "alpha").unwrap();
    let generation = |state: &State, instance: &str| state.placements[&id(instance)].generation;
    let before = (generation(&state, "zone.0"), generation(&state, "zone.1"));
    state.take(Command::Resume { target: Target::Instance(id("zone.0")) }).unwrap();
    assert!(generation(&state, "zone.0") > before.0);
    assert_eq!(generation(&state, "zone.1"), before.1);
    state.put("zone.1", "alpha").unwrap();
    assert!(generation(&state, "zone.1") > before.1);
}
