//! The life of an instance as one total function of (phase, happening, now).
//!
//! ```text
//!  waiting ─▶ starting ─▶ ready ─▶ draining ─▶ stopping ─▶ (nothing left) ─▶ restart::judge
//!                │          │          │          ▲                              │
//!                └──────────┴──────────┴── hang, stop, update, removal           ├─▶ starting
//!                                                                                ├─▶ backoff ─▶ starting
//!  paused ◀── stop        start ──▶ starting                                     ├─▶ failed
//!                                                                                └─▶ stopped
//! ```
//!
//! Pure. The parts: this file is the table and what is wanted, `beginning` a run's way to ready, `signs` what
//! is heard of it, `ending` how it ends and what follows. [`super::fleet`] calls [`Instance::step`]; what it pushes into [`Step::out`] is carried out by the
//! supervision loop. A happening that means nothing in a phase changes nothing.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::hang::Answer;
use super::instance::{Ports, Run};
use super::{Action, Cause, Instance, Now, Occurrence, Phase, StopReason, Story, Want};
use crate::keeper::protocol::{End, RunId};
use crate::spec::{HeartbeatMode, Process};
use crate::state::EventKind;

/// What happens to an instance.
#[derive(Clone, Debug, PartialEq)]
pub enum Happening {
    /// What is wanted of it (again); `None`: it is to go.
    Wanted(Option<Want>),
    /// Its run is being executed.
    Spawned {
        /// The main process.
        pid: i32,
        /// The ports that it was given.
        ports: Ports,
    },
    /// Its run could not be started; nothing of it is left.
    SpawnFailed(String),
    /// The exec does not come back.
    SpawnStuck,
    /// The main process ended; others are left.
    Exited(End),
    /// Nothing of the run is left.
    Gone {
        /// How the main process ended.
        end: End,
        /// The fence deadline killed it.
        fenced: bool,
    },
    /// The process says that it is ready.
    Ready,
    /// The process says that it is alive.
    Beat,
    /// The process takes no new players and will end.
    Draining,
    /// The process is ending.
    Stopping,
    /// The process wants to be hung (WATCHDOG=trigger).
    Trigger,
    /// The process needs this long from now.
    Extend(Duration),
    /// The process changes its own heartbeat timeout.
    Timeout(Duration),
    /// The process names another main process.
    MainPid(i32),
    /// The process said hello on its socket, or its last such connection closed.
    Connected(bool),
    /// What the process says about itself, all of it.
    Status(Map<String, Value>),
    /// What the process says about itself in one line.
    Text(String),
    /// A question was answered, or not.
    Probed {
        /// Which question.
        asked: u64,
        /// What came.
        answer: Answer,
        /// What the answer says about the run.
        status: Map<String, Value>,
    },
    /// An operator wants a new run.
    Restart,
    /// An operator is about to kill or hang it.
    Announced,
    /// The agent stood still for this long.
    Stalled(Duration),
    /// Time has passed.
    Tick,
}

/// What a step is given besides the happening, and where its actions go.
pub struct Step<'a> {
    /// Time and chance.
    pub now: Now,
    /// The last run number used.
    pub last_run: &'a mut u64,
    /// What is to be done.
    pub out: &'a mut Vec<Action>,
}

impl Instance {
    /// Takes one happening.
    pub fn step(&mut self, happening: Happening, cx: &mut Step<'_>) {
        let succession = self.begin_step(&happening, cx.out.len());
        let before = self.run.as_ref().map(|run| run.id).zip(self.note());
        self.take(happening, cx);
        self.end_step(&succession, cx.out);
        let after = self.run.as_ref().map(|run| run.id).zip(self.note());
        // After all else: see `Note::leaving`.
        if let (Some((run, note)), Some((same, now))) = (before, after)
            && run == same
            && note != now
        {
            cx.out.push(Action::Remember { instance: self.id.clone(), run });
        }
    }

    fn take(&mut self, happening: Happening, cx: &mut Step<'_>) {
        match happening {
            Happening::Wanted(want) => self.wanted(want, cx),
            Happening::Spawned { pid, ports } => self.spawned(pid, ports, cx),
            Happening::SpawnFailed(why) => self.spawn_failed(why, cx),
            Happening::SpawnStuck => {
                self.reason = Some("spawn-stuck: the exec does not come back".to_owned());
                self.tell_people(Story::SpawnStuck, cx);
            }
            Happening::Exited(end) => self.exited(end, cx),
            Happening::Gone { end, fenced } => self.gone(end, fenced, cx),
            Happening::Ready => self.says_ready(cx),
            Happening::Beat => self.beats(cx),
            Happening::Draining => self.drains(cx),
            Happening::Stopping => self.says_stopping(cx),
            Happening::Trigger => self.hang("asked for it (WATCHDOG=trigger)".to_owned(), cx.now.at, cx),
            Happening::Extend(by) => self.extend(by, cx),
            Happening::Timeout(timeout) => self.with_run(|run| run.watch.own_timeout = Some(timeout)),
            Happening::MainPid(pid) => self.follow(pid, cx),
            Happening::Connected(native) => self.connected(native, cx),
            Happening::Status(status) => self.status = status,
            Happening::Text(text) => drop(self.status.insert("text".to_owned(), Value::from(text))),
            Happening::Probed { asked, answer, status } => self.probed(asked, answer, status, cx),
            Happening::Restart => self.operator_restart(cx),
            Happening::Announced => self.with_run(|run| run.announced = Some(cx.now.at)),
            Happening::Stalled(by) => self.stalled(by),
            Happening::Tick => self.tick(cx),
        }
    }

    pub(super) fn with_run(&mut self, change: impl FnOnce(&mut Run)) {
        if let Some(run) = &mut self.run {
            change(run);
        }
    }

    pub(super) fn tell_people(&self, story: Story, cx: &mut Step<'_>) {
        let run = self.run.as_ref().map(|run| run.id);
        cx.out.push(Action::Narrate(Occurrence { instance: self.id.clone(), run, story }));
    }

    pub(super) fn tell_directory(&self, run: RunId, kind: EventKind, cx: &mut Step<'_>) {
        cx.out.push(Action::Tell { instance: self.id.clone(), run, kind });
    }

    pub(super) fn wanted(&mut self, want: Option<Want>, cx: &mut Step<'_>) {
        let before = std::mem::replace(&mut self.want, want);
        let Some(want) = self.want.clone() else {
            self.not_wanted(cx);
            return;
        };
        self.unheeded = false;
        self.take_process(&want.process, cx);
        if want.paused {
            self.pause(cx);
            return;
        }
        let renewed = before.as_ref().is_some_and(|b| b.generation != want.generation);
        match self.phase {
            Phase::Paused => {
                self.tell_people(Story::Resumed, cx);
                self.failures.clear();
                // It takes its turn in the order of starts.
                self.phase = Phase::Waiting;
                self.start(cx);
            }
            Phase::Waiting => match want.rest.filter(|_| before.is_none()) {
                Some(rest) => self.go_on_resting(rest),
                None => self.start(cx),
            },
            Phase::Backoff { .. } | Phase::Failed | Phase::Stopped if renewed => self.start_anew(cx),
            Phase::Stopped if before.is_none() => self.start(cx),
            Phase::Starting { .. } | Phase::Ready | Phase::Draining { .. }
                if want.replace && self.run.as_ref().is_some_and(|run| run.hash != want.hash) =>
            {
                self.end(StopReason::Update, Cause::Stop, cx);
            }
            _ => {}
        }
    }

    /// What needs no new run applies to the living one at once.
    fn take_process(&mut self, process: &Arc<Process>, cx: &mut Step<'_>) {
        let Some(before) = self.process.replace(process.clone()) else {
            self.watch(cx);
            return;
        };
        let Some(run) = &mut self.run else { return };
        if before.limits != process.limits {
            cx.out.push(Action::Limit { instance: self.id.clone(), run: run.id });
        }
        if before.logs != process.logs {
            cx.out.push(Action::Logs { instance: self.id.clone(), run: run.id });
        }
        if before.exclusive() != process.exclusive() {
            cx.out.push(Action::Exclusive { instance: self.id.clone(), run: run.id });
        }
        match &mut self.phase {
            Phase::Starting { until } if before.ready != process.ready => {
                *until = run.spawned.after(process.ready.timeout);
                run.watch.starting(cx.now.at, &process.ready.mode);
            }
            Phase::Ready | Phase::Draining { .. } if before.heartbeat.mode != process.heartbeat.mode => {
                run.watch.changed(cx.now.at, &process.heartbeat.mode);
            }
            // It beats as its WATCHDOG_USEC tells it, which it read when it began.
            _ if process.heartbeat.mode == HeartbeatMode::Notify
                && process.heartbeat.timeout < before.heartbeat.timeout =>
            {
                run.watch.own_timeout.get_or_insert(before.heartbeat.timeout);
            }
            _ => {}
        }
    }

    pub(super) fn not_wanted(&mut self, cx: &mut Step<'_>) {
        match self.phase {
            Phase::Starting { .. } | Phase::Ready | Phase::Draining { .. } => {
                self.end(StopReason::Remove, Cause::Stop, cx);
            }
            // A stop under way goes on; what follows it is decided when nothing is left.
            Phase::Stopping { .. } => {}
            _ => self.retire(cx),
        }
    }

    pub(super) fn retire(&mut self, cx: &mut Step<'_>) {
        self.phase = Phase::Stopped;
        cx.out.push(Action::Release { instance: self.id.clone() });
    }

    pub(super) fn pause(&mut self, cx: &mut Step<'_>) {
        match self.phase {
            Phase::Starting { .. } | Phase::Ready | Phase::Draining { .. } => {
                self.ask_to_stop(StopReason::Stop, Some(Cause::Stop), cx);
            }
            Phase::Stopping { .. } | Phase::Paused => {}
            _ => self.be_paused(cx),
        }
    }

    pub(super) fn be_paused(&mut self, cx: &mut Step<'_>) {
        self.phase = Phase::Paused;
        self.reason = None;
        self.ended = None;
        self.tell_people(Story::Paused, cx);
    }

    pub(super) fn operator_restart(&mut self, cx: &mut Step<'_>) {
        match self.phase {
            Phase::Starting { .. } | Phase::Ready | Phase::Draining { .. } => {
                self.ask_to_stop(StopReason::Restart, Some(Cause::Operator), cx);
            }
            Phase::Backoff { .. } | Phase::Failed | Phase::Stopped if self.want.is_some() => {
                self.start_anew(cx);
            }
            _ => {}
        }
    }
}
