//! The signs of a run: what its process says, what questions bring, and what time shows.

use std::time::Duration;

use serde_json::{Map, Value};

use super::hang::{Answer, Pace};
use super::lifecycle::Step;
use super::{Action, Cause, Instance, Measure, Moment, Phase, StopReason, Story};
use crate::spec::{HeartbeatMode, Probe, Process, ReadyMode};
use crate::state::EventKind;

impl Instance {
    pub(super) fn beats(&mut self, cx: &mut Step<'_>) {
        let Some((process, run)) = self.process.as_ref().zip(self.run.as_mut()) else { return };
        if !matches!(process.heartbeat.mode, HeartbeatMode::Native | HeartbeatMode::Notify) {
            return;
        }
        if let Some(late) = run.watch.beat(cx.now.at, process.heartbeat.interval) {
            cx.out.push(Action::Measure(Measure::LateBeat(late)));
        }
    }

    pub(super) fn drains(&mut self, cx: &mut Step<'_>) {
        let Some(process) = self.process.clone() else { return };
        match &mut self.phase {
            Phase::Starting { .. } | Phase::Ready => {
                self.unready(cx);
                let until = cx.now.at.after(process.drain.timeout);
                self.phase = Phase::Draining { until, cause: None, confirm: None };
                self.tell_people(Story::Draining, cx);
            }
            Phase::Draining { confirm, .. } => *confirm = None,
            _ => {}
        }
    }

    pub(super) fn says_stopping(&mut self, cx: &mut Step<'_>) {
        let cause = match self.phase {
            Phase::Starting { .. } | Phase::Ready => None,
            Phase::Draining { cause, .. } => cause,
            _ => return,
        };
        self.unready(cx);
        let until = Some(cx.now.at.after(self.stop_timeout()));
        self.phase = Phase::Stopping { cause, until };
        self.tell_people(Story::Stopping(cause.unwrap_or(Cause::Exit)), cx);
    }

    pub(super) fn unready(&mut self, cx: &mut Step<'_>) {
        let Some(run) = &self.run else { return };
        let id = run.id;
        if self.phase == Phase::Ready {
            self.tell_directory(id, EventKind::Unready, cx);
        }
    }

    pub(super) fn extend(&mut self, by: Duration, cx: &mut Step<'_>) {
        let later = cx.now.at.after(by);
        match &mut self.phase {
            // One that has hung is given the time that it was given to leave its core, and no more.
            Phase::Stopping { cause: Some(Cause::Hang), .. } => {}
            Phase::Starting { until } | Phase::Stopping { until: Some(until), .. } => {
                *until = (*until).max(later);
            }
            _ => self.with_run(|run| run.watch.extend(later)),
        }
    }

    /// A process that says hello while it is to end has not heard the message: nobody was connected then.
    pub(super) fn connected(&mut self, native: bool, cx: &mut Step<'_>) {
        let Some(run) = &mut self.run else { return };
        let before = std::mem::replace(&mut run.native, native);
        run.expected = false;
        let (until, cause) = match self.phase {
            Phase::Stopping { until: Some(until), cause: Some(cause) } if cause != Cause::Hang => {
                (until, cause)
            }
            Phase::Draining { until, cause: Some(cause), confirm: Some(_) } => (until, cause),
            _ => return,
        };
        if native && !before {
            let (instance, run, within) = (self.id.clone(), run.id, until.since(cx.now.at));
            let reason = self.stop_reason(cause);
            cx.out.push(Action::Ask { instance, run, reason, within, signal: None });
        }
    }

    pub(super) fn follow(&mut self, pid: i32, cx: &mut Step<'_>) {
        let Some(run) = &mut self.run else { return };
        if run.pid != Some(pid) && pid > 0 {
            run.followed = true;
            cx.out.push(Action::Follow { run: run.id, pid });
        }
    }

    pub(super) fn pace(&self, process: &Process) -> Pace {
        match self.phase {
            Phase::Starting { .. } => Pace::Starting,
            _ => Pace::Beating { interval: process.heartbeat.interval, timeout: process.heartbeat.timeout },
        }
    }

    /// The question that this phase asks.
    pub(super) fn probe(&self, process: &Process) -> Option<Probe> {
        match (&self.phase, &process.ready.mode, &process.heartbeat.mode) {
            (Phase::Starting { .. }, ReadyMode::Probe(probe), _) => Some(probe.clone()),
            (Phase::Ready | Phase::Draining { .. }, _, HeartbeatMode::Probe(probe)) => Some(probe.clone()),
            _ => None,
        }
    }

    pub(super) fn ask(&mut self, cx: &mut Step<'_>) {
        let Some(process) = self.process.clone() else { return };
        let (Some(probe), pace) = (self.probe(&process), self.pace(&process)) else { return };
        let Some(run) = &mut self.run else { return };
        if let Some(question) = run.watch.question(cx.now.at, &probe, pace) {
            cx.out.push(Action::Probe {
                instance: self.id.clone(),
                run: run.id,
                asked: question.asked,
                probe: question.probe,
                timeout: question.timeout,
            });
        }
    }

    pub(super) fn probed(
        &mut self,
        asked: u64,
        answer: Answer,
        status: Map<String, Value>,
        cx: &mut Step<'_>,
    ) {
        let Some(process) = self.process.clone() else { return };
        let (Some(probe), pace) = (self.probe(&process), self.pace(&process)) else { return };
        let Some(run) = &mut self.run else { return };
        if !run.watch.answered(cx.now.at, asked, &probe, pace, &answer) {
            return;
        }
        if answer != Answer::Alive {
            return;
        }
        self.status.extend(status);
        if pace == Pace::Starting {
            self.become_ready(cx);
        } else if let Some(late) = run.watch.beat(cx.now.at, process.heartbeat.interval) {
            cx.out.push(Action::Measure(Measure::LateBeat(late)));
        }
    }

    /// Only what waits for a sign of the process is put off: how long it may take to end is its own time, and an
    /// agent that is starved for long must not put off a kill for as long.
    pub(super) fn stalled(&mut self, by: Duration) {
        match &mut self.phase {
            Phase::Starting { until } | Phase::Draining { confirm: Some(until), .. } => {
                *until = until.after(by)
            }
            _ => {}
        }
        self.with_run(|run| run.watch.stalled(by));
    }

    pub(super) fn tick(&mut self, cx: &mut Step<'_>) {
        let now = cx.now.at;
        self.ripen(cx);
        match self.phase {
            Phase::Starting { until } if until <= now => {
                let waited = self.run.as_ref().map_or(Duration::ZERO, |run| now.since(run.spawned));
                self.hang(format!("not ready after {waited:.1?}"), until, cx);
            }
            Phase::Ready | Phase::Draining { .. } if self.is_silent(now) => {
                let run = self.run.as_ref();
                let silence =
                    run.and_then(|run| run.watch.last).map_or(Duration::ZERO, |last| now.since(last));
                let complaint = run.and_then(|run| run.watch.complaint.clone());
                let complaint = complaint.map(|c| format!(" (last answer: {c})")).unwrap_or_default();
                let deadline = self.silent_since().unwrap_or(now);
                self.hang(format!("no heartbeat for {silence:.2?}{complaint}"), deadline, cx);
            }
            Phase::Draining { until, confirm, cause } => {
                if until <= now {
                    self.ask_to_stop(StopReason::DrainTimeout, cause.or(Some(Cause::Stop)), cx);
                } else if confirm.is_some_and(|confirm| confirm <= now) {
                    let reason = self.stop_reason(cause.unwrap_or(Cause::Stop));
                    self.ask_to_stop(reason, cause, cx);
                }
            }
            Phase::Stopping { until: Some(until), cause } if until <= now => {
                // The kill is ours: one that said it was ending and did not is hung.
                let cause = cause.or_else(|| {
                    self.reason = Some("said that it was ending and did not end".to_owned());
                    Some(Cause::Hang)
                });
                self.kill(cause, cx);
            }
            Phase::Backoff { until } if until <= now => self.start(cx),
            _ => {}
        }
        self.ask(cx);
        self.ping(cx);
        self.warn_unarmed(cx);
    }

    /// When a silent run that is connected is asked for a beat.
    fn ping_at(&self) -> Option<Moment> {
        let (process, run) = self.process.as_ref().zip(self.run.as_ref().filter(|run| run.native))?;
        match self.phase {
            Phase::Ready | Phase::Draining { .. } => run.watch.ping_at(&process.heartbeat),
            _ => None,
        }
    }

    fn ping(&mut self, cx: &mut Step<'_>) {
        if self.ping_at().is_some_and(|at| at <= cx.now.at) {
            self.with_run(|run| run.watch.pinged());
            cx.out.push(Action::Ping { instance: self.id.clone() });
        }
    }

    /// When a ready run counts as hung.
    pub(super) fn silent_since(&self) -> Option<Moment> {
        let (process, run) = self.process.as_ref().zip(self.run.as_ref())?;
        match self.phase {
            Phase::Ready | Phase::Draining { .. } => run.watch.deadline(&process.heartbeat),
            _ => None,
        }
    }

    pub(super) fn is_silent(&self, now: Moment) -> bool {
        self.silent_since().is_some_and(|deadline| deadline <= now)
    }

    /// When it is worth telling that a ready run was never heard of.
    pub(super) fn unarmed_at(&self) -> Option<Moment> {
        let (process, run) = self.process.as_ref().zip(self.run.as_ref())?;
        let watched = matches!(process.heartbeat.mode, HeartbeatMode::Native | HeartbeatMode::Notify);
        let silent = self.phase == Phase::Ready && run.watch.last.is_none() && !run.unarmed_told;
        if watched && silent { Some(run.ready?.after(process.heartbeat.timeout)) } else { None }
    }

    pub(super) fn warn_unarmed(&mut self, cx: &mut Step<'_>) {
        if self.unarmed_at().is_some_and(|at| at <= cx.now.at) {
            self.with_run(|run| run.unarmed_told = true);
            self.tell_people(Story::Unarmed, cx);
        }
    }

    /// When this instance must next be looked at.
    pub(super) fn next_due(&self) -> Option<Moment> {
        let phase = match self.phase {
            Phase::Starting { until } | Phase::Backoff { until } => Some(until),
            Phase::Draining { until, confirm, .. } => {
                Some(confirm.map_or(until, |confirm| confirm.min(until)))
            }
            Phase::Stopping { until, .. } => until,
            _ => None,
        };
        // A question that this phase does not put must not be waited for: its moment would never pass.
        let asks = self.process.as_ref().is_some_and(|process| self.probe(process).is_some());
        let question = self.run.as_ref().filter(|_| asks).and_then(|run| run.watch.next_question());
        let dues = [phase, question, self.silent_since(), self.ping_at(), self.unarmed_at(), self.ripe_at()];
        dues.into_iter().flatten().min()
    }
}
