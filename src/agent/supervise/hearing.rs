//! What the loop hears of the processes and the probes. Turned into happenings, no more.

use std::time::Duration;

use serde_json::{Map, Value};

use super::Supervisor;
use crate::agent::probe::{ProbeError, ProbeResult};
use crate::host::Happening;
use crate::host::hang::Answer;
use crate::metrics::SocketFault;
use crate::process_api::notify::{Notice, Watchdog};
use crate::process_api::rpc::Call;
use crate::process_api::socket::{Said, SocketEvent};
use crate::spec::InstanceId;

impl Supervisor {
    /// Takes what waits on the sockets. True: more waits.
    pub(super) fn hear_sockets(&mut self) -> bool {
        let mut events = std::mem::take(&mut self.events);
        let round = self.sockets_ready.begin();
        let more = self.sockets.poll(&mut events);
        if !more {
            round.empty();
        }
        self.hear_said(events.drain(..));
        self.events = events;
        more
    }

    /// Hears all that waits on the sockets of one instance, before something is decided about its run.
    pub(super) fn hear_waiting(&mut self, instance: &InstanceId) {
        let events = self.sockets.drain(instance);
        self.hear_said(events);
    }

    pub(super) fn hear_event(&mut self, event: SocketEvent) {
        let instance = &event.instance;
        let happening = match event.said {
            Said::Notice(notice) => return self.hear_notice(instance, notice, event.pid),
            // Dropping it answers the barrier: all that came before has been heard.
            Said::Connected | Said::Barrier(_) => return,
            Said::Rejected(stranger) => {
                tracing::warn!(%instance, %stranger, "turned away from the process socket");
                return;
            }
            Said::Disconnected => return self.hear_goodbye(instance, event.conn),
            Said::Request(request) => match request.call {
                Call::Heartbeat => Happening::Beat,
                Call::Ready => Happening::Ready,
                Call::Draining => Happening::Draining,
                Call::Stopping => Happening::Stopping,
                Call::Status(status) => {
                    self.has_said(instance);
                    Happening::Status(as_map(&*status))
                }
                call => return self.hear_question(instance, event.conn, request.id, call),
            },
        };
        let actions = self.host.on(instance, happening, self.now());
        self.carry_out(actions);
    }

    fn hear_notice(&mut self, instance: &InstanceId, notice: Notice, _pid: i32) {
        let mut happenings = Vec::new();
        if let Some(pid) = notice.main_pid {
            happenings.push(Happening::MainPid(pid));
        }
        if let Some(usec) = notice.watchdog_usec {
            happenings.push(Happening::Timeout(Duration::from_micros(usec)));
        }
        if let Some(usec) = notice.extend_timeout_usec {
            happenings.push(Happening::Extend(Duration::from_micros(usec)));
        }
        if let Some(text) = notice.line_for_people() {
            self.has_said(instance);
            happenings.push(Happening::Text(text));
        }
        match notice.watchdog {
            Some(Watchdog::Alive) => happenings.push(Happening::Beat),
            Some(Watchdog::Trigger) => happenings.push(Happening::Trigger),
            None => {}
        }
        if notice.ready {
            happenings.push(Happening::Ready);
        }
        if notice.stopping {
            happenings.push(Happening::Stopping);
        }
        for happening in happenings {
            let actions = self.host.on(instance, happening, self.now());
            self.carry_out(actions);
        }
    }

    pub(super) fn count_socket_faults(&mut self) {
        let now = *self.sockets.counters();
        let before = std::mem::replace(&mut self.counted, now);
        let faults = [
            (
                SocketFault::Malformed,
                now.malformed_lines + now.malformed_notices,
                before.malformed_lines + before.malformed_notices,
            ),
            (SocketFault::Oversized, now.oversized_lines, before.oversized_lines),
            (SocketFault::Stranger, now.strangers, before.strangers),
            (
                SocketFault::Flooded,
                now.coalesced_beats + now.busy_answers,
                before.coalesced_beats + before.busy_answers,
            ),
            (
                SocketFault::Refused,
                now.refused_connections + now.accept_failures,
                before.refused_connections + before.accept_failures,
            ),
        ];
        for (fault, now, before) in faults {
            for _ in before..now {
                self.parts.metrics.socket_refused(fault);
            }
        }
    }

    pub(super) fn hear_answer(&mut self, result: ProbeResult) {
        let (answer, status) = match result.outcome {
            Ok(answer) => (Answer::Alive, answer.status()),
            Err(ProbeError::Refused { .. }) => (Answer::Refused, Map::new()),
            Err(error) => (Answer::Failed(error.reason()), Map::new()),
        };
        if answer == Answer::Refused && !self.far.remove(&result.run) {
            let host = &self.host;
            self.far.retain(|run| host.instance_of(*run).is_some());
            self.far.insert(result.run);
        }
        if !status.is_empty() {
            self.has_said(&result.instance);
        }
        if answer != Answer::Alive {
            self.parts.metrics.probe_failed(result.mode);
        }
        self.happens(result.run, Happening::Probed { asked: result.asked, answer, status });
    }
}

fn as_map(status: &impl serde::Serialize) -> Map<String, Value> {
    match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        // A status is an object by its type.
        _ => Map::new(),
    }
}
