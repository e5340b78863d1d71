//! The beginning of a run: the order to spawn, its way to ready, and taking over one that lives already.

use serde_json::Map;

use super::ending::describe;
use super::hang::Watch;
use super::instance::{LastExit, Leaving, Ports, Run};
use super::lifecycle::Step;
use super::{Action, Cause, Instance, Measure, Moment, Phase, Story};
use crate::keeper::protocol::{End, RunId};
use crate::spec::ReadyMode;
use crate::state::{EventKind, Rest};

/// When a run counts as hung of which it is not known yet how long its start may take.
const UNKNOWN: Moment = Moment(u64::MAX);

impl Instance {
    pub(super) fn start(&mut self, cx: &mut Step<'_>) {
        let Some(want) = self.want.clone() else { return };
        if let Some(name) = want.waits_for.as_ref().filter(|_| self.phase == Phase::Waiting) {
            self.reason = Some(format!("waits for {name} to be ready"));
            return;
        }
        // The keeper may have begun it already.
        let run = self.successor.take().unwrap_or_else(|| {
            *cx.last_run += 1;
            RunId(*cx.last_run)
        });
        self.restarts += u64::from(self.ended.is_some());
        self.reason = None;
        self.status = Map::new();
        let cold = self.is_down();
        self.phase = Phase::Starting { until: cx.now.at.after(want.process.ready.timeout) };
        self.run = Some(Run {
            id: run,
            pid: None,
            spawned: cx.now.at,
            spawned_ms: cx.now.wall_ms,
            hash: want.hash,
            stop: want.process.stop.clone(),
            ports: Ports::new(),
            cold,
            early: false,
            ready: None,
            ready_ms: None,
            watch: Watch::default(),
            native: false,
            expected: false,
            followed: false,
            unarmed_told: false,
            announced: None,
            exited: None,
        });
        cx.out.push(Action::Spawn { instance: self.id.clone(), run });
    }

    /// Its run is ordered now at the earliest.
    pub(super) fn put_off(&mut self, now: Moment) {
        if let (Phase::Starting { until }, Some(process), Some(run)) =
            (&mut self.phase, &self.process, &mut self.run)
            && run.pid.is_none()
        {
            run.spawned = now;
            *until = now.after(process.ready.timeout);
        }
    }

    /// Its run, when that has no process and the time is over in which it must get ready.
    pub(super) fn late_run(&self, now: Moment) -> Option<RunId> {
        let over = matches!(self.phase, Phase::Starting { until } if until <= now);
        self.run.as_ref().filter(|run| over && run.pid.is_none()).map(|run| run.id)
    }

    /// It has no run and is not about to have one at once.
    fn is_down(&self) -> bool {
        matches!(self.phase, Phase::Waiting | Phase::Backoff { .. } | Phase::Failed | Phase::Stopped)
    }

    /// A start that somebody asked for: what went wrong before does not count. The time that a resting instance
    /// waited for it is none that a restart took.
    pub(super) fn start_anew(&mut self, cx: &mut Step<'_>) {
        self.failures.clear();
        if matches!(self.phase, Phase::Failed | Phase::Stopped) {
            self.restarts += u64::from(self.ended.take().is_some());
        }
        self.start(cx);
    }

    /// A new agent's instance, of which the agent before started no further run.
    pub(super) fn go_on_resting(&mut self, rest: Rest) {
        let cause = Cause::of(rest.end);
        self.last_run = Some(rest.run);
        self.last_exit = Some(LastExit { cause, end: rest.end, at_ms: rest.at_ms, detail: None });
        self.phase = if rest.failed.is_some() { Phase::Failed } else { Phase::Stopped };
        self.reason = rest.failed.or_else(|| Some(format!("done: {}", describe(rest.end))));
    }

    pub(super) fn spawned(&mut self, pid: i32, ports: Ports, cx: &mut Step<'_>) {
        let Some(run) = &mut self.run else { return };
        if run.pid.replace(pid).is_some() {
            // It has named another main process, and the keeper follows that.
            return;
        }
        run.ports = ports;
        let id = run.id;
        if let (Phase::Starting { .. }, Some(process)) = (&self.phase, &self.process) {
            run.watch.starting(cx.now.at, &process.ready.mode);
        }
        let kind = EventKind::Started { hash: run.hash, ports: run.ports.clone() };
        self.tell_directory(id, kind, cx);
        self.tell_people(Story::Started { pid }, cx);
        if let Some((ended, cause)) = self.ended.take() {
            cx.out.push(Action::Measure(Measure::Restarted { cause, took: cx.now.at.since(ended) }));
        }
        self.ripen(cx);
        if self.run.as_ref().is_some_and(|run| run.early) {
            self.become_ready(cx);
        }
    }

    /// Ready by age alone.
    pub(super) fn ripen(&mut self, cx: &mut Step<'_>) {
        if self.ripe_at().is_some_and(|at| at <= cx.now.at) {
            self.become_ready(cx);
        }
    }

    /// When a starting run gets ready by age alone.
    pub(super) fn ripe_at(&self) -> Option<Moment> {
        let run = self.run.as_ref().filter(|run| run.pid.is_some())?;
        match (&self.phase, self.process.as_ref().map(|p| &p.ready.mode)) {
            (Phase::Starting { .. }, Some(ReadyMode::Spawned { after })) => Some(run.spawned.after(*after)),
            _ => None,
        }
    }

    pub(super) fn says_ready(&mut self, cx: &mut Step<'_>) {
        let mode = self.process.as_ref().map(|process| &process.ready.mode);
        if !matches!(mode, None | Some(ReadyMode::Native | ReadyMode::Notify)) {
            return;
        }
        match &mut self.run {
            // The directory is told of the start before it is told that the run is ready; and whether its own word
            // counts may not be known yet.
            Some(run) if run.pid.is_none() || mode.is_none() => run.early = true,
            _ => self.become_ready(cx),
        }
    }

    pub(super) fn become_ready(&mut self, cx: &mut Step<'_>) {
        let (Phase::Starting { .. }, Some(process), Some(run)) =
            (&self.phase, self.process.clone(), &mut self.run)
        else {
            return;
        };
        run.ready = Some(cx.now.at);
        run.ready_ms = Some(cx.now.wall_ms);
        run.watch.ready(cx.now.at, &process.heartbeat);
        let (id, after) = (run.id, cx.now.at.since(run.spawned));
        self.phase = Phase::Ready;
        self.reason = None;
        self.tell_directory(id, EventKind::Ready, cx);
        self.tell_people(Story::Ready { after }, cx);
    }

    pub(super) fn spawn_failed(&mut self, why: String, cx: &mut Step<'_>) {
        let Some(run) = self.run.as_ref().map(|run| run.id) else { return };
        self.tell_people(Story::SpawnFailed(why.clone()), cx);
        let cause = match self.phase {
            Phase::Stopping { cause: Some(cause), .. } => cause,
            _ => Cause::Spawn,
        };
        let end = End::Unknown;
        self.after_end(cause, end, Some(why), cx);
        // The directory never heard of this run, but of the instance that it was for.
        if let Some(rest) = self.rest() {
            self.tell_directory(run, EventKind::Rests(rest), cx);
        }
        if self.want.is_none() {
            self.retire(cx);
        }
    }

    /// A run of the keeper's table is taken over: one that this agent has not ordered itself.
    pub(super) fn adopt(&mut self, run: Run, leaving: Leaving, alive: bool, cx: &mut Step<'_>) {
        let ready = run.ready.is_some();
        let pid = run.pid;
        self.phase = match leaving.phase() {
            Some(phase) => phase,
            None if ready => Phase::Ready,
            None => Phase::Starting { until: UNKNOWN },
        };
        self.run = Some(run);
        self.watch(cx);
        if let Some(pid) = pid.filter(|_| alive) {
            self.tell_people(Story::Adopted { pid }, cx);
        }
    }

    /// A run that was taken over is watched from the moment on at which it is known how: an agent without a copy of the
    /// state hears that later than it meets the run.
    pub(super) fn watch(&mut self, cx: &mut Step<'_>) {
        let Some((process, run)) = self.process.clone().zip(self.run.as_mut()) else { return };
        if let Phase::Starting { until } = &mut self.phase {
            *until = cx.now.at.after(process.ready.timeout);
        }
        match run.ready {
            Some(_) => run.watch.ready(cx.now.at, &process.heartbeat),
            None => run.watch.starting(cx.now.at, &process.ready.mode),
        }
        if std::mem::take(&mut run.early) {
            self.says_ready(cx);
        }
    }
}
