//! The end of a run: hang, stop ladder, what is left, and what follows.

use std::time::Duration;

use serde_json::Map;

use super::instance::LastExit;
use super::lifecycle::Step;
use super::restart::{Ending, Verdict};
use super::{Action, Cause, Instance, Measure, Moment, Phase, StopReason, Story};
use crate::keeper::protocol::End;
use crate::spec::OnHang;
use crate::state::{Ended, EventKind};

/// An announcement (kill-test) explains an end that comes this soon after it.
const ANNOUNCED_FOR: Duration = Duration::from_secs(60);

/// SIGTERM, for a run whose process nobody knows.
const DEFAULT_SIGNAL: i32 = 15;

impl Instance {
    pub(super) fn stop_timeout(&self) -> Duration {
        let process = self.process.as_ref().map(|process| process.stop.timeout);
        process.or_else(|| self.run.as_ref().map(|run| run.stop.timeout)).unwrap_or_default()
    }

    pub(super) fn hang(&mut self, finding: String, deadline: Moment, cx: &mut Step<'_>) {
        if !matches!(self.phase, Phase::Starting { .. } | Phase::Ready | Phase::Draining { .. }) {
            return;
        }
        self.unready(cx);
        let Some(id) = self.run.as_ref().map(|run| run.id) else { return };
        self.hung = Some(deadline);
        let instance = self.id.clone();
        cx.out.push(Action::Measure(Measure::HangKill(cx.now.at.since(deadline))));
        cx.out.push(Action::Evidence { instance, run: id, finding: finding.clone() });
        self.tell_people(Story::Hang(finding.clone()), cx);
        self.reason = Some(format!("hang: {finding}"));
        let heartbeat = self.process.as_ref().map(|process| &process.heartbeat);
        match heartbeat.filter(|heartbeat| heartbeat.on_hang == OnHang::Abort) {
            Some(heartbeat) => {
                let until = Some(cx.now.at.after(heartbeat.abort_timeout));
                self.phase = Phase::Stopping { cause: Some(Cause::Hang), until };
                cx.out.push(Action::Abort { run: id });
            }
            None => self.kill(Some(Cause::Hang), cx),
        }
    }

    pub(super) fn kill(&mut self, cause: Option<Cause>, cx: &mut Step<'_>) {
        self.phase = Phase::Stopping { cause, until: None };
        if let Some(run) = &self.run {
            cx.out.push(Action::Kill { run: run.id });
        }
    }

    /// Ends a run for the spec's sake: one that can drain is let drain first.
    pub(super) fn end(&mut self, reason: StopReason, cause: Cause, cx: &mut Step<'_>) {
        if let Phase::Draining { cause: own, .. } = &mut self.phase {
            // It drains already; now there is a reason that outlives its end.
            own.get_or_insert(cause);
            return;
        }
        let speaks = self.run.as_ref().is_some_and(|run| run.native || run.expected);
        let can_drain = self.phase == Phase::Ready && speaks;
        let (true, Some(process), Some(run)) = (can_drain, self.process.clone(), &self.run) else {
            self.ask_to_stop(reason, Some(cause), cx);
            return;
        };
        let within = process.drain.timeout;
        cx.out.push(Action::Ask { instance: self.id.clone(), run: run.id, reason, within, signal: None });
        self.tell_directory(run.id, EventKind::Unready, cx);
        self.tell_people(Story::Draining, cx);
        self.phase = Phase::Draining {
            until: cx.now.at.after(within),
            cause: Some(cause),
            confirm: Some(cx.now.at.after(process.stop.timeout)),
        };
    }

    pub(super) fn ask_to_stop(&mut self, reason: StopReason, cause: Option<Cause>, cx: &mut Step<'_>) {
        self.unready(cx);
        let within = self.stop_timeout();
        self.phase = Phase::Stopping { cause, until: Some(cx.now.at.after(within)) };
        let Some(run) = &self.run else { return };
        let signal = Some(self.stop_signal());
        cx.out.push(Action::Ask { instance: self.id.clone(), run: run.id, reason, within, signal });
        self.tell_people(Story::Stopping(cause.unwrap_or(Cause::Exit)), cx);
    }

    /// Why a run that is to end is to end, in the words of the message.
    pub(super) fn stop_reason(&self, cause: Cause) -> StopReason {
        match (&self.want, cause) {
            (None, _) => StopReason::Remove,
            (_, Cause::Operator) => StopReason::Restart,
            (Some(want), _) if want.paused => StopReason::Stop,
            _ => StopReason::Update,
        }
    }

    /// Asks once more, within what is left of the time: a keeper that has no note of it has not heard it.
    pub(super) fn ask_again(&mut self, cx: &mut Step<'_>) {
        let Some(run) = &self.run else { return };
        let (until, cause, signal) = match self.phase {
            Phase::Stopping { until: Some(_), cause: Some(Cause::Hang) } => {
                cx.out.push(Action::Abort { run: run.id });
                return;
            }
            Phase::Stopping { until: Some(until), cause: Some(cause) } => {
                (until, cause, Some(self.stop_signal()))
            }
            Phase::Draining { until, cause: Some(cause), confirm: Some(_) } => (until, cause, None),
            _ => return,
        };
        let (reason, within) = (self.stop_reason(cause), until.since(cx.now.at));
        cx.out.push(Action::Ask { instance: self.id.clone(), run: run.id, reason, within, signal });
    }

    fn stop_signal(&self) -> i32 {
        let process = self.process.as_ref().map(|process| process.stop.signal);
        process.or_else(|| self.run.as_ref().map(|run| run.stop.signal)).unwrap_or(DEFAULT_SIGNAL)
    }

    pub(super) fn exited(&mut self, end: End, cx: &mut Step<'_>) {
        let Some(run) = &mut self.run else { return };
        run.exited = Some(end);
        let cause = match self.phase {
            Phase::Stopping { cause, .. } => cause,
            Phase::Draining { cause, .. } => cause,
            _ => None,
        };
        self.unready(cx);
        // The keeper is ending what is left of the run.
        self.phase = Phase::Stopping { cause, until: None };
        self.reason.get_or_insert_with(|| "its main process has ended, others are being killed".to_owned());
    }

    pub(super) fn gone(&mut self, end: End, fenced: bool, cx: &mut Step<'_>) {
        let Some(run) = &self.run else { return };
        let id = run.id;
        let announced = run.announced.is_some_and(|at| cx.now.at.since(at) <= ANNOUNCED_FOR);
        let asked = match self.phase {
            Phase::Stopping { cause, .. } | Phase::Draining { cause, .. } => cause,
            _ => None,
        };
        let cause = match asked {
            _ if fenced => Cause::Fence,
            None | Some(Cause::Hang) if announced => Cause::Operator,
            Some(cause) => cause,
            None => Cause::of(end),
        };
        let detail = self.reason.take();
        self.tell_people(Story::Exited(cause, end), cx);
        self.after_end(cause, end, detail, cx);
        let rest = self.rest();
        let done = rest.as_ref().is_some_and(|rest| rest.failed.is_none());
        self.tell_directory(id, EventKind::Stopped(Ended { end, done }), cx);
        if let Some(rest) = rest {
            self.tell_directory(id, EventKind::Rests(rest), cx);
        }
        if self.want.is_none() {
            self.retire(cx);
        }
    }

    /// Decides what follows a run of which nothing is left. One that nothing follows is acknowledged when the
    /// replicated state holds that, so that no agent's death makes it start again.
    pub(super) fn after_end(&mut self, cause: Cause, end: End, detail: Option<String>, cx: &mut Step<'_>) {
        let run = self.run.take();
        let acknowledge = run.as_ref().map(|run| Action::Acknowledge { run: run.id });
        self.last_run = run.as_ref().map(|run| run.id).max(self.last_run);
        let ready = run.as_ref().and_then(|run| run.ready);
        let healthy_for = ready.map_or(Duration::ZERO, |ready| cx.now.at.since(ready));
        self.last_exit = Some(LastExit { cause, end, at_ms: cx.now.wall_ms, detail: detail.clone() });
        self.status = Map::new();
        self.reason = None;
        self.ended = Some((self.hung.take().unwrap_or(cx.now.at), cause));
        let Some(want) = self.want.clone() else {
            // It may be wanted on another host now.
            self.phase = Phase::Stopped;
            cx.out.extend(acknowledge);
            return;
        };
        if want.paused {
            cx.out.extend(acknowledge);
            self.be_paused(cx);
            return;
        }
        let ending = Ending { cause, end, healthy_for };
        let verdict = self.failures.judge(&want.process.restart, ending, cx.now);
        if matches!(verdict, Verdict::Again | Verdict::Wait(_)) {
            cx.out.extend(acknowledge);
        }
        match verdict {
            Verdict::Again => self.start(cx),
            Verdict::Wait(wait) => {
                self.phase = Phase::Backoff { until: cx.now.at.after(wait) };
                self.reason = detail.or_else(|| Some(describe(end)));
                self.tell_people(Story::Backoff(wait), cx);
            }
            Verdict::GiveUp => {
                self.phase = Phase::Failed;
                let why = detail.unwrap_or_else(|| describe(end));
                let times = self.failures.consecutive();
                let why = format!("gave up after {times} failures in a row; the last: {why}");
                self.reason = Some(why.clone());
                self.tell_people(Story::Failed(why), cx);
            }
            Verdict::Done => {
                self.phase = Phase::Stopped;
                self.reason = Some(format!("done: {}", describe(end)));
                self.tell_people(Story::Stopped(describe(end)), cx);
            }
        }
    }
}

/// An end in words.
pub fn describe(end: End) -> String {
    match end {
        End::Code(code) => format!("exit code {code}"),
        End::Signal { signal, core: false } => format!("killed by signal {signal}"),
        End::Signal { signal, core: true } => format!("killed by signal {signal}, core left"),
        End::Unknown => "nobody could watch it end".to_owned(),
    }
}
