//! Chance against a keeper in memory: whatever is wanted, says, dies or gets lost, an instance never has
//! two runs, what is over is acknowledged, and in the end there is what is wanted.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::host::instance::Note;

/// A keeper without processes: it holds runs until they are acknowledged, and its orders may get lost.
#[derive(Default)]
struct Keeper {
    runs: BTreeMap<RunId, Held>,
    used: BTreeSet<RunId>,
    linked: bool,
    /// Heard by nobody yet.
    news: Vec<(RunId, Happening)>,
    /// What follows a crash at once.
    successors: BTreeMap<RunId, (RunId, Option<Note>)>,
    /// Those that have begun that way, and of which the core has not been told.
    begun: BTreeSet<RunId>,
}

#[derive(Clone)]
struct Held {
    instance: InstanceId,
    stage: Stage,
    note: Option<Note>,
}

impl Keeper {
    fn living(&self, id: &InstanceId) -> Vec<RunId> {
        let lives = |held: &Held| held.instance == *id && !matches!(held.stage, Stage::Gone { .. });
        self.runs.iter().filter(|(_, held)| lives(held)).map(|(run, _)| *run).collect()
    }

    fn end(&mut self, run: RunId, end: End) {
        let Some(held) = self.runs.get_mut(&run) else { return };
        if matches!(held.stage, Stage::Gone { .. }) {
            return;
        }
        held.stage = Stage::Gone { end, fenced: false };
        let instance = held.instance.clone();
        let successor = self.successors.remove(&run).filter(|_| end == CRASHED && self.linked);
        self.news.push((run, Happening::Gone { end, fenced: false }));
        if let Some((by, note)) = successor {
            // The loop carries the core's order for it out by doing nothing.
            self.begun.insert(by);
            self.begin(instance, by, note);
        }
    }

    fn begin(&mut self, instance: InstanceId, run: RunId, note: Option<Note>) {
        assert_eq!(self.living(&instance), [], "{run} begins beside a living run of {instance}");
        assert!(self.used.insert(run), "the number {run} is used twice");
        self.runs.insert(run, Held { instance, stage: Stage::Running, note });
        self.news.push((run, Happening::Spawned { pid: run.0 as i32 + 1, ports: Ports::new() }));
    }

    fn obey(&mut self, action: &Action, host: &Host) {
        if !self.linked {
            return;
        }
        match action {
            Action::Spawn { run, .. } if self.begun.remove(run) => {}
            Action::Spawn { instance, run } => {
                self.begin(instance.clone(), *run, host.instance(instance).and_then(Instance::note));
            }
            Action::Revoke { run } => drop(self.successors.remove(run)),
            Action::Kill { run } | Action::Ask { run, .. } | Action::Abort { run }
                if self.successors.contains_key(run) =>
            {
                panic!("{action:?}, and its successor stands");
            }
            Action::Kill { run } => self.end(*run, KILLED),
            Action::Ask { run, signal: Some(_), .. } if run.0 % 3 != 0 => self.end(*run, End::Code(0)),
            Action::Abort { run } if run.0 % 2 == 0 => self.end(*run, CRASHED),
            Action::Remember { instance, run } => {
                if let Some(held) = self.runs.get_mut(run) {
                    held.note = host.instance(instance).and_then(Instance::note);
                }
            }
            Action::Acknowledge { run } => {
                let gone = |held: &Held| matches!(held.stage, Stage::Gone { .. });
                assert!(self.runs.get(run).is_none_or(gone), "{run} is acknowledged alive");
                self.runs.remove(run);
            }
            _ => {}
        }
    }

    fn table(&self) -> Vec<Found> {
        let found = |(run, held): (&RunId, &Held)| Found {
            instance: held.instance.clone(),
            run: *run,
            pid: run.0 as i32 + 1,
            stage: held.stage,
            note: held.note.clone(),
            ports: Ports::new(),
            spawned_ms: 0,
        };
        self.runs.iter().map(found).collect()
    }
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Move {
    Want { which: usize, process: usize, replace: bool, paused: bool },
    Renew(usize),
    Unwant(usize),
    Say { which: usize, what: Word },
    Die { which: usize, end: End },
    Appoint(usize),
    Wait(u64),
    Stall(u64),
    LoseLink,
    NewKeeper,
    NewAgent,
    Link,
}

#[derive(Clone, Debug)]
enum Word {
    Ready,
    Beat,
    Draining,
    Stopping,
    Trigger,
    Hello(bool),
    Extend(u64),
    Timeout(u64),
    Answer(u64),
    Restart,
    Announced,
    Exited,
}

impl Word {
    fn happening(&self) -> Happening {
        match self {
            Word::Ready => Happening::Ready,
            Word::Beat => Happening::Beat,
            Word::Draining => Happening::Draining,
            Word::Stopping => Happening::Stopping,
            Word::Trigger => Happening::Trigger,
            Word::Hello(connected) => Happening::Connected(*connected),
            Word::Extend(by) => Happening::Extend(ms(*by)),
            Word::Timeout(timeout) => Happening::Timeout(ms(*timeout)),
            Word::Answer(asked) => alive(*asked),
            Word::Restart => Happening::Restart,
            Word::Announced => Happening::Announced,
            Word::Exited => Happening::Exited(CRASHED),
        }
    }
}

fn word() -> impl Strategy<Value = Word> {
    prop_oneof![
        Just(Word::Ready),
        Just(Word::Beat),
        Just(Word::Draining),
        Just(Word::Stopping),
        Just(Word::Trigger),
        any::<bool>().prop_map(Word::Hello),
        (0..60_000u64).prop_map(Word::Extend),
        (0..60_000u64).prop_map(Word::Timeout),
        (0..5u64).prop_map(Word::Answer),
        Just(Word::Restart),
        Just(Word::Announced),
        Just(Word::Exited),
    ]
}

fn a_move() -> impl Strategy<Value = Move> {
    let end = prop_oneof![Just(End::Code(0)), Just(CRASHED), Just(End::Unknown)];
    prop_oneof![
        3 => (0..2usize, 0..PROCESSES.len(), any::<bool>(), any::<bool>())
            .prop_map(|(which, process, replace, paused)| Move::Want { which, process, replace, paused }),
        1 => (0..2usize).prop_map(Move::Renew),
        1 => (0..2usize).prop_map(Move::Unwant),
        6 => (0..2usize, word()).prop_map(|(which, what)| Move::Say { which, what }),
        3 => (0..2usize, end).prop_map(|(which, end)| Move::Die { which, end }),
        4 => (0..2usize).prop_map(Move::Appoint),
        4 => (0..20_000u64).prop_map(Move::Wait),
        1 => (0..60_000u64).prop_map(Move::Stall),
        1 => Just(Move::LoseLink),
        1 => Just(Move::NewKeeper),
        1 => Just(Move::NewAgent),
        2 => Just(Move::Link),
    ]
}

const PROCESSES: [&str; 4] = [
    "heartbeat = { mode = \"native\", interval = \"1s\", timeout = \"5s\" }\ndrain = { timeout = \"60s\" }\nrestart = { give_up = false }",
    "ports = { game = \"tcp\" }\nready = { mode = \"tcp\" }\nheartbeat = { mode = \"native\", interval = \"1s\", timeout = \"5s\", on_hang = \"abort\" }\ndrain = { timeout = \"60s\" }\nrestart = { give_up = false, backoff = false }",
    "ports = { game = \"tcp\" }\nready = { mode = \"tcp\" }\nheartbeat = { mode = \"tcp\", interval = \"1s\", timeout = \"5s\" }\ndrain = { timeout = \"60s\" }\nrestart = { give_up = false }\nbuild = \"2\"",
    "ready = { mode = \"spawned\", after = \"3s\" }\ndrain = { timeout = \"60s\" }\nrestart = { give_up = false }",
];

struct World {
    host: Host,
    keeper: Keeper,
    wants: BTreeMap<InstanceId, Want>,
    processes: Vec<Arc<Process>>,
    at: Moment,
}

fn instances() -> [InstanceId; 2] {
    ["zone.0".parse().unwrap(), "zone.1".parse().unwrap()]
}

impl World {
    fn new(processes: Vec<Arc<Process>>) -> World {
        let keeper = Keeper { linked: true, ..Keeper::default() };
        World { host: Host::new(0), keeper, wants: BTreeMap::new(), processes, at: Moment(1) }
    }

    fn now(&self) -> Now {
        Now { at: self.at, wall_ms: 0, chance: 7 }
    }

    /// Carries out, and lets the keeper tell what came of it, until both are quiet.
    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut rounds = 0;
        let mut actions = actions;
        loop {
            for action in &actions {
                self.keeper.obey(action, &self.host);
            }
            if !self.keeper.linked || self.keeper.news.is_empty() {
                break;
            }
            rounds += 1;
            assert!(rounds < 1000, "core and keeper do not come to rest");
            let (run, happening) = self.keeper.news.remove(0);
            actions = self.host.on_run(run, happening, self.now());
        }
    }

    fn desire(&mut self) {
        let actions = self.host.desire(self.wants.clone(), self.now());
        self.carry_out(actions);
        assert_eq!(self.host.desire(self.wants.clone(), self.now()), [], "said again, it is nothing new");
    }

    fn link(&mut self) {
        self.keeper.linked = true;
        self.keeper.successors.clear();
        self.keeper.begun = self.keeper.runs.keys().copied().collect();
        self.keeper.news.clear();
        let table = self.keeper.table();
        let actions = self.host.meet(table, &self.wants, &BTreeSet::new(), self.now());
        self.carry_out(actions);
        self.desire();
    }

    fn wait(&mut self, span: Duration) {
        let until = self.at.after(span);
        let mut idle = 0;
        while let Some(due) = self.host.next_due().filter(|due| *due <= until) {
            self.at = self.at.max(due);
            let actions = self.host.tick(self.now());
            idle = if actions.is_empty() && self.host.next_due().is_some_and(|due| due <= self.at) {
                idle + 1
            } else {
                0
            };
            assert!(idle < 3, "the core asks to be woken and does nothing: {:?}", self.host);
            self.carry_out(actions);
        }
        self.at = until;
    }

    fn make(&mut self, step: &Move) {
        let ids = instances();
        match step {
            Move::Want { which, process, replace, paused } => {
                let generation =
                    self.wants.get(&ids[*which]).map_or(1, |want| want.generation + u64::from(!paused));
                let new = Want {
                    replace: *replace,
                    paused: *paused,
                    generation,
                    ..want(&self.processes[*process])
                };
                self.wants.insert(ids[*which].clone(), new);
            }
            Move::Renew(which) => {
                self.wants
                    .entry(ids[*which].clone())
                    .and_modify(|w| w.generation += 1)
                    .or_insert_with(|| want(&self.processes[0]))
                    .paused = false
            }
            Move::Unwant(which) => drop(self.wants.remove(&ids[*which])),
            Move::Say { which, what } => {
                let actions = self.host.on(&ids[*which], what.happening(), self.now());
                self.carry_out(actions);
            }
            Move::Die { which, end } => {
                for run in self.keeper.living(&ids[*which]) {
                    self.keeper.end(run, *end);
                }
                self.carry_out(Vec::new());
            }
            Move::Appoint(which) => {
                let note = self.host.instance(&ids[*which]).and_then(Instance::next_note);
                if let Some((run, by)) =
                    self.host.appoint(&ids[*which], self.now()).filter(|_| self.keeper.linked)
                {
                    self.keeper.successors.insert(run, (by, note));
                }
            }
            Move::Wait(span) => self.wait(ms(*span)),
            Move::Stall(span) => {
                self.at = self.at.after(ms(*span));
                let actions = self.host.stalled(ms(*span), self.now());
                self.carry_out(actions);
            }
            Move::LoseLink => {
                self.keeper.linked = false;
                self.keeper.successors.clear();
            }
            Move::NewKeeper => {
                // What it could not record for certain is gone; the living are adopted.
                self.keeper.runs.retain(|run, held| run.0 % 4 != 0 || !matches!(held.stage, Stage::Running));
                self.link();
            }
            Move::NewAgent => {
                self.host = Host::new(self.host.last_run());
                self.link();
            }
            Move::Link => self.link(),
        }
        self.desire();
        self.check();
    }

    fn check(&self) {
        let runs = instances().map(|id| self.keeper.living(&id));
        assert!(runs.iter().all(|runs| runs.len() <= 1), "two runs of an instance: {runs:?}");
        let next = self.host.next_due();
        let deadlines = self.host.instances().filter_map(Instance::next_due).min();
        assert!(
            deadlines.is_none() || next.is_some_and(|next| Some(next) <= deadlines),
            "{next:?} misses {deadlines:?}"
        );
        if self.keeper.linked {
            let over = |held: &Held| matches!(held.stage, Stage::Gone { .. });
            let left: Vec<_> =
                self.keeper.runs.iter().filter(|(_, held)| over(held)).map(|(run, _)| run).collect();
            assert!(left.is_empty(), "not acknowledged: {left:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_there_is_one_run_of_what_is_wanted(moves in proptest::collection::vec(a_move(), 1..60)) {
        let mut world = World::new(PROCESSES.iter().map(|lines| process(lines)).collect());
        for step in &moves {
            world.make(step);
        }
        world.link();
        // Long enough for every drain, stop, abort and back-off.
        for _ in 0..20 {
            world.wait(s(60));
        }
        world.check();
        for id in instances() {
            let living = world.keeper.living(&id);
            match world.wants.get(&id) {
                Some(want) if !want.paused => prop_assert!(
                    living.len() == 1 || matches!(world.host.instance(&id).unwrap().phase, Phase::Backoff { .. }),
                    "{id} has {living:?}: {:?}", world.host.instance(&id)
                ),
                _ => prop_assert!(living.is_empty(), "{id} is not wanted and has {living:?}"),
            }
        }
    }
}
