//! Tests of the host core. This file is their rig: one host, a clock that the test turns, and what a run
//! would say; `table` is every phase against every happening, `stories` are lives, `hanging` those that fall
//! silent, `succession` is what is ordered ahead, `fenced` what the fence lets be wanted, `meeting` the keeper's table, `model` chance against a keeper
//! in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::fleet::Found;
use super::hang::Answer;
use super::*;
use crate::config::{Context, parse};
use crate::keeper::protocol::{End, RunId, Stage};
use crate::spec::fingerprint::spec_hash;
use crate::spec::{InstanceId, Process};
use crate::state::{Ended, EventKind};

mod fenced;
mod hanging;
mod meeting;
mod model;
mod stories;
mod succession;
mod table;

pub(super) const KILLED: End = End::Signal { signal: 9, core: false };
pub(super) const CRASHED: End = End::Signal { signal: 11, core: false };

/// `[process.zone]` with these further lines.
pub(super) fn process(lines: &str) -> Arc<Process> {
    let text = format!("[process.zone]\ncommand = [\"/bin/zone\"]\n{lines}\n");
    let context = Context { hostname: "alpha".to_owned(), host_override: None };
    let config =
        parse(&text, "test.toml", &context).unwrap_or_else(|faults| panic!("{}", faults.render(false)));
    config.spec.processes.into_values().next().unwrap()
}

pub(super) fn want(process: &Arc<Process>) -> Want {
    Want {
        process: process.clone(),
        hash: spec_hash(process),
        replace: true,
        generation: 1,
        paused: false,
        waits_for: None,
        args: BTreeMap::new(),
        rest: None,
    }
}

pub(super) fn zone() -> InstanceId {
    "zone.0".parse().unwrap()
}

pub(super) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(super) fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A host with at most one instance.
pub(super) struct Rig {
    pub host: Host,
    pub at: Moment,
    pub want: Want,
}

impl Rig {
    /// Nothing is wanted yet.
    pub fn idle(lines: &str) -> Rig {
        Rig { host: Host::new(0), at: Moment(1_000_000_000), want: want(&process(lines)) }
    }

    /// The instance is wanted, its first run ordered.
    pub fn ordered(lines: &str) -> Rig {
        let mut rig = Rig::idle(lines);
        assert_eq!(rig.heed(), [Action::Spawn { instance: zone(), run: RunId(1) }]);
        rig
    }

    /// Its first run is executed.
    pub fn started(lines: &str) -> Rig {
        let mut rig = Rig::ordered(lines);
        rig.spawned();
        rig
    }

    /// Its first run is ready, by whatever makes it so.
    pub fn ready(lines: &str) -> Rig {
        let mut rig = Rig::started(lines);
        rig.make_ready();
        rig
    }

    pub fn now(&self) -> Now {
        Now { at: self.at, wall_ms: self.at.0 / 1_000_000, chance: u32::MAX }
    }

    /// What is in `want` is wanted.
    pub fn heed(&mut self) -> Vec<Action> {
        let wants = BTreeMap::from([(zone(), self.want.clone())]);
        self.host.desire(wants, self.now())
    }

    pub fn pause(&mut self, paused: bool) -> Vec<Action> {
        self.want.paused = paused;
        self.want.generation += u64::from(!paused);
        self.heed()
    }

    /// Another command: another hash.
    pub fn update(&mut self, lines: &str) -> Vec<Action> {
        self.want.process = process(lines);
        self.want.hash = spec_hash(&self.want.process);
        self.want.generation += 1;
        self.heed()
    }

    pub fn remove(&mut self) -> Vec<Action> {
        self.host.desire(BTreeMap::new(), self.now())
    }

    pub fn on(&mut self, happening: Happening) -> Vec<Action> {
        self.host.on(&zone(), happening, self.now())
    }

    pub fn spawned(&mut self) -> Vec<Action> {
        let pid = 100 + self.run().0 as i32;
        self.on(Happening::Spawned { pid, ports: Ports::new() })
    }

    pub fn make_ready(&mut self) {
        self.on(Happening::Ready);
        for _ in 0..20 {
            if self.phase() == Phase::Ready {
                return;
            }
            if let Some(asked) = question(&self.next()) {
                self.on(alive(asked));
            }
        }
        panic!("it does not get ready: {:?}", self.host.instance(&zone()));
    }

    /// Ticks on to the next question, and gives its number.
    pub fn wait_for_question(&mut self) -> u64 {
        for _ in 0..20 {
            if let Some(asked) = question(&self.next()) {
                return asked;
            }
        }
        panic!("nothing was asked: {:?}", self.host.instance(&zone()));
    }

    pub fn gone(&mut self, end: End) -> Vec<Action> {
        self.on(Happening::Gone { end, fenced: false })
    }

    /// Time passes, tick by tick as the loop would.
    pub fn wait(&mut self, span: Duration) -> Vec<Action> {
        let until = self.at.after(span);
        let mut out = Vec::new();
        while let Some(due) = self.host.next_due().filter(|due| *due <= until) {
            self.at = self.at.max(due);
            out.extend(self.host.tick(self.now()));
            assert!(out.len() < 10_000, "the core spins: {:?}", self.host.instance(&zone()));
        }
        self.at = until;
        out.extend(self.host.tick(self.now()));
        out
    }

    /// The next thing that is due.
    pub fn next(&mut self) -> Vec<Action> {
        let due = self.host.next_due().expect("nothing is due");
        self.at = self.at.max(due);
        self.host.tick(self.now())
    }

    /// The agent stood still.
    pub fn stall(&mut self, span: Duration) {
        self.at = self.at.after(span);
        let now = self.now();
        assert_eq!(orders(self.host.stalled(span, now)), []);
    }

    pub fn instance(&self) -> &Instance {
        self.host.instance(&zone()).expect("the instance is not there")
    }

    pub fn phase(&self) -> Phase {
        self.instance().phase.clone()
    }

    pub fn run(&self) -> RunId {
        self.instance().run.as_ref().expect("no run").id
    }
}

pub(super) fn alive(asked: u64) -> Happening {
    Happening::Probed { asked, answer: Answer::Alive, status: Default::default() }
}

pub(super) fn question(actions: &[Action]) -> Option<u64> {
    actions.iter().find_map(|action| match action {
        Action::Probe { asked, .. } => Some(*asked),
        _ => None,
    })
}

/// What is ordered from the keeper, without what is told.
pub(super) fn orders(actions: Vec<Action>) -> Vec<Action> {
    let told = |action: &Action| {
        matches!(
            action,
            Action::Tell { .. }
                | Action::Narrate(_)
                | Action::Measure(_)
                | Action::Evidence { .. }
                | Action::Remember { .. }
        )
    };
    actions.into_iter().filter(|action| !told(action)).collect()
}

pub(super) fn told(actions: &[Action]) -> Vec<EventKind> {
    let kinds = actions.iter().filter_map(|action| match action {
        Action::Tell { kind, .. } => Some(kind.clone()),
        _ => None,
    });
    kinds.collect()
}

pub(super) fn kill(run: u64) -> Action {
    Action::Kill { run: RunId(run) }
}

pub(super) fn spawn(run: u64) -> Action {
    Action::Spawn { instance: zone(), run: RunId(run) }
}

pub(super) fn ack(run: u64) -> Action {
    Action::Acknowledge { run: RunId(run) }
}

pub(super) fn ask(run: u64, reason: StopReason, within: Duration, signal: Option<i32>) -> Action {
    Action::Ask { instance: zone(), run: RunId(run), reason, within, signal }
}

pub(super) fn stopped(end: End, done: bool) -> EventKind {
    EventKind::Stopped(Ended { end, done })
}
