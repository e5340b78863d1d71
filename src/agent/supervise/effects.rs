//! Carrying out the host core's actions.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::orders::PROBE;
use super::{LATER, Supervisor, moment};
use crate::agent::keeper_link::Link;
use crate::agent::probe::{ExecRequest, ProbeTarget, Question};
use crate::agent::replica::wall_ms;
use crate::agent::reporter::Report;
use crate::agent::resolve::{Order, Subject, cgroup_limits};
use crate::client::message::Shutdown;
use crate::host::{Action, Happening, Measure, Ports, StopReason};
use crate::keeper::fault::{self, Point};
use crate::keeper::protocol::{Request, RunId, Target};
use crate::process_api::rpc::Outgoing;
use crate::spec::{InstanceId, Probe};
use crate::state::Event;

impl Supervisor {
    /// Carries out actions in order; what fails at once comes back as a happening. Where runs are started, what
    /// only tells of something waits until the children have their processors.
    pub(super) fn carry_out(&mut self, actions: Vec<Action>) {
        // Ends of hundreds come with words, of which none is a reason to tell now what waits.
        if self.later_at.is_some() && actions.iter().all(Action::is_telling) {
            self.later.extend(actions);
            return;
        }
        // Those go to the keeper together, when the loop has heard what there is to hear.
        let notes = |action: &Action| matches!(action, Action::Remember { .. }) || action.is_telling();
        let only_notes = actions.iter().all(notes) && self.later.is_empty();
        let telling = |action: &Action| !action.is_start();
        if actions.iter().any(Action::is_start) && actions.iter().all(|a| a.is_start() || a.is_telling()) {
            let (later, starts): (Vec<_>, Vec<_>) = actions.into_iter().partition(telling);
            self.later.extend(later);
            for start in starts {
                let failed = self.act(start);
                self.later.extend(failed);
            }
            self.later_at.get_or_insert(moment().after(LATER));
        } else {
            self.later.extend(actions);
            self.catch_up();
        }
        if !only_notes && let Some(Err(error)) = self.link.as_mut().map(Link::flush) {
            self.lose_keeper(&error);
        }
    }

    /// Carries out what had to wait.
    pub(super) fn catch_up(&mut self) {
        self.later_at = None;
        while let Some(action) = self.later.pop_front() {
            let followed = self.act(action);
            self.later.extend(followed);
        }
    }

    fn act(&mut self, action: Action) -> Vec<Action> {
        match action {
            Action::Spawn { instance, run } => return self.spawn(&instance, run),
            Action::Ask { instance, run, reason, within, signal } => {
                if let Some(actions) = self.withdraw(run) {
                    return actions;
                }
                fault::pass(Point::AgentBeforeAsk);
                self.ask(&instance, run, reason, within, signal);
                fault::pass(Point::AgentAfterAsk);
            }
            // One that is not connected any more is judged by its silence.
            Action::Ping { instance } => drop(self.sockets.broadcast(&instance, &Outgoing::Ping)),
            Action::Abort { run } => {
                self.send(&Request::Signal { run, signal: libc::SIGABRT, to: Target::Main });
                self.send(&Request::Signal { run, signal: libc::SIGCONT, to: Target::Main });
            }
            Action::Kill { run } => {
                if let Some(actions) = self.withdraw(run) {
                    return actions;
                }
                fault::pass(Point::AgentBeforeKill);
                self.send(&Request::Kill { run });
                fault::pass(Point::AgentAfterKill);
            }
            Action::Probe { instance, run, asked, probe, timeout } => {
                self.probe(&instance, run, asked, &probe, timeout);
            }
            Action::Evidence { instance, run, finding } => self.collect(&instance, run, &finding),
            Action::Revoke { run } => self.send(&Request::Revoke { run }),
            Action::Acknowledge { run } => {
                fault::pass(Point::AgentBeforeAcknowledge);
                self.send(&Request::Acknowledge { run });
                fault::pass(Point::AgentAfterAcknowledge);
            }
            Action::Follow { run, pid } => self.send(&Request::Follow { run, pid }),
            Action::Limit { instance, run } => {
                let process = self.host.instance(&instance).and_then(|known| known.process.as_ref());
                if let Some(limits) = process.map(|process| cgroup_limits(&process.limits)) {
                    self.send(&Request::Limit { run, limits });
                }
            }
            Action::Exclusive { instance, run } => {
                let process = self.host.instance(&instance).and_then(|known| known.process.as_ref());
                if let Some(exclusive) = process.map(|process| process.exclusive()) {
                    self.send(&Request::Exclusive { run, exclusive });
                }
            }
            Action::Logs { instance, run } => {
                let process = self.host.instance(&instance).and_then(|known| known.process.clone());
                if let Some(process) = process {
                    let logs = self.parts.resolver.log_target(&instance, &process.logs);
                    self.send(&Request::Logs { run, logs });
                }
            }
            Action::Remember { instance, run } => {
                if let Some(note) = self.note(&instance) {
                    self.send(&Request::Note { run, note });
                    fault::pass(Point::AgentAfterNote);
                }
            }
            Action::Release { instance } => self.release(&instance),
            Action::Tell { instance, run, kind } => self.report(Report::Event(Event { instance, run, kind })),
            Action::Narrate(occurrence) => self.parts.chronicle.write(occurrence, wall_ms()),
            Action::Measure(measure) => self.measure(measure),
        }
        Vec::new()
    }

    /// The message where somebody listens, the signal where nobody does.
    fn ask(
        &mut self,
        instance: &InstanceId,
        run: RunId,
        reason: StopReason,
        within: Duration,
        signal: Option<i32>,
    ) {
        let deadline_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let shutdown = Shutdown { reason: reason.as_str().to_owned(), deadline_ms };
        let heard = self.sockets.broadcast(instance, &Outgoing::Shutdown(shutdown));
        if let (0, Some(signal)) = (heard, signal) {
            self.send(&Request::Signal { run, signal, to: Target::Group });
            // A stopped process takes no signal but this one.
            self.send(&Request::Signal { run, signal: libc::SIGCONT, to: Target::Group });
        }
    }

    fn probe(&mut self, instance: &InstanceId, run: RunId, asked: u64, probe: &Probe, timeout: Duration) {
        let target = self.target(instance, run, probe);
        match target {
            Ok(probe) => {
                let instance = instance.clone();
                self.prober.ask(Question { instance, run, asked, probe, timeout });
            }
            Err(why) => {
                let answer = crate::host::hang::Answer::Failed(why);
                let happening = Happening::Probed { asked, answer, status: Default::default() };
                let now = self.now();
                let actions = self.host.on_run(run, happening, now);
                self.carry_out(actions);
            }
        }
    }

    fn target(&mut self, instance: &InstanceId, run: RunId, probe: &Probe) -> Result<ProbeTarget, String> {
        let known = self.host.instance(instance).ok_or("the instance is gone")?;
        let ports = known.run.as_ref().map(|run| run.ports.clone()).unwrap_or_default();
        match probe {
            Probe::Query { protocol, port } => {
                Ok(ProbeTarget::Query { protocol: *protocol, address: self.address(run, &ports, port)? })
            }
            Probe::Tcp { port } => Ok(ProbeTarget::Tcp { address: self.address(run, &ports, port)? }),
            Probe::Exec { command } => {
                let want = known.want.clone().ok_or("the instance is not wanted")?;
                let sockets = self.socket_folder(instance).map_err(|e| e.to_string())?;
                let subject = Subject { instance, want: &want, ports: &ports };
                let words = |error: &dyn std::fmt::Display| error.to_string();
                let errand = self.parts.resolver.errand(subject, command, PROBE).map_err(|e| words(&e))?;
                let found = self.looked_up(&errand).ok_or("its program is being looked up")?;
                let order = Order { subject, run, sockets: &sockets, note: Vec::new() };
                let resolver = &self.parts.resolver;
                let resolved = resolver.command(&order, command, PROBE, found).map_err(|e| words(&e))?;
                Ok(ProbeTarget::Exec(ExecRequest {
                    command: resolved.args,
                    env: resolved.env,
                    working_dir: resolved.working_dir,
                    account: resolved.account,
                    nice: resolved.nice,
                }))
            }
        }
    }

    /// Where a port of a run is asked: on loopback, and when nobody listens there on the host's address (which
    /// may be one that this machine does not have, behind a NAT).
    fn address(&self, run: RunId, ports: &Ports, port: &str) -> Result<SocketAddr, String> {
        let (_, number) = ports.get(port).ok_or_else(|| format!("it has no port {port}"))?;
        let own: Option<IpAddr> = self.parts.settings.borrow().address.parse().ok();
        let far = own.filter(|ip| self.far.contains(&run) && !ip.is_unspecified());
        Ok(SocketAddr::new(far.unwrap_or(IpAddr::from([127, 0, 0, 1])), *number))
    }

    fn collect(&mut self, instance: &InstanceId, run: RunId, finding: &str) {
        let pid = self.host.instance(instance).and_then(|i| i.run.as_ref()).and_then(|run| run.pid);
        let at = crate::agent::chronicle::rfc3339(wall_ms());
        let title = format!("{instance} run {run}: {finding} ({at})");
        let logs = self.parts.resolver.logs();
        self.evidence.collect(instance, &title, pid, &logs);
        tracing::warn!(%instance, %run, finding, "hang");
    }

    /// Nobody is connected any more who said hello or watched.
    pub(super) fn forget_listeners(&mut self, instance: &InstanceId) {
        self.watchers.retain(|(id, _), _| id != instance);
        self.greeted.remove(instance);
    }

    fn release(&mut self, instance: &InstanceId) {
        self.send(&Request::Release { instance: instance.clone() });
        self.look_for_claims();
        self.sockets.close(instance);
        self.folders.remove(instance);
        self.forget_listeners(instance);
        self.parts.book.release(instance);
        self.parts.resolver.forget(instance);
        self.evidence.forget(instance);
        // It holds the two socket files at most; one that stays is replaced by the next run's.
        let _ = std::fs::remove_dir_all(self.socket_base(instance));
    }

    fn measure(&self, measure: Measure) {
        let metrics = &self.parts.metrics;
        match measure {
            Measure::Restarted { cause, took } => metrics.restarted(cause.as_str(), took),
            Measure::Strays => metrics.strays_killed(),
            Measure::HangKill(late) => metrics.hang_killed(late),
            Measure::LateBeat(late) => metrics.beat(late, Duration::ZERO),
        }
    }

    /// Sends to the keeper. While none is connected the order is dropped: its table decides on the next meeting.
    pub(super) fn send(&mut self, request: &Request) {
        let Some(link) = &mut self.link else { return };
        if let Err(error) = link.send(request) {
            self.lose_keeper(&error);
        }
    }
}
