//! Answers to the API's questions, from what the loop knows.

use std::sync::Arc;

use super::{Supervisor, moment};
use crate::agent::chronicle::rfc3339;
use crate::agent::handle::{HostRequest, HostSnapshot};
use crate::agent::replica::wall_ms;
use crate::host::instance::LastExit;
use crate::host::{Happening, Instance, Moment};
use crate::http::view::{ExitView, HeartbeatView, InstanceView, PortView};
use crate::keeper::protocol::End;
use crate::spec::{HeartbeatMode, HostName, InstanceId, Probe, Process};
use crate::status::PLAYER_LIST;

impl Supervisor {
    pub(super) fn answer(&mut self, request: HostRequest) {
        // Who asked may have gone away; then the answer is of no use.
        match request {
            HostRequest::Snapshot(reply) => drop(reply.send(Arc::new(self.snapshot()))),
            HostRequest::Events(instance, reply) => {
                drop(reply.send(self.parts.chronicle.last(instance.as_ref())));
            }
            HostRequest::Restart(instances, reply) => {
                for instance in instances {
                    let actions = self.host.on(&instance, Happening::Restart, self.now());
                    self.carry_out(actions);
                }
                let _ = reply.send(());
            }
            HostRequest::Announce(instance, text, reply) => {
                let actions = self.host.on(&instance, Happening::Announced, self.now());
                self.carry_out(actions);
                self.parts.chronicle.announce(instance, text, wall_ms());
                let _ = reply.send(());
            }
            HostRequest::Players(instance, reply) => drop(reply.send(self.players_of(&instance))),
            HostRequest::HangReport(instance, reply) => drop(reply.send(self.evidence.report(&instance))),
            HostRequest::Reload(reply) => {
                if let Err(refused) = self.parts.reloads.try_send(reply) {
                    let reply = refused.into_inner();
                    let _ = reply.send(Err("a reload is under way already".to_owned()));
                }
            }
        }
    }

    fn snapshot(&self) -> HostSnapshot {
        let now = moment();
        let mut instances: Vec<InstanceView> =
            self.host.instances().map(|instance| view(instance, &self.parts.name, now)).collect();
        let nowhere = self.parts.unplaced.borrow();
        let nowhere = nowhere.iter().map(|(id, reason)| (id, reason.as_str()));
        for (id, reason) in self.withheld().chain(nowhere) {
            if self.host.instance(id).is_none() {
                instances.push(waiting(id, reason, &self.parts.name));
            }
        }
        instances.sort_by(|a, b| a.instance.cmp(&b.instance));
        HostSnapshot {
            instances,
            keeper: self.keeper.clone(),
            successors: self.host.instances().filter(|instance| instance.successor.is_some()).count(),
            spec_drift: self.parts.drift.borrow().clone(),
        }
    }
}

fn waiting(id: &InstanceId, reason: &str, host: &HostName) -> InstanceView {
    let mut instance = Instance::new(id.clone());
    instance.reason = Some(reason.to_owned());
    view(&instance, host, Moment(0))
}

fn view(instance: &Instance, host: &HostName, now: Moment) -> InstanceView {
    let run = instance.run.as_ref();
    let age = |last: Moment| u64::try_from(now.since(last).as_millis()).unwrap_or(u64::MAX);
    let ports = run.map(|run| &run.ports).into_iter().flatten();
    InstanceView {
        instance: instance.id.clone(),
        process: instance.id.process.clone(),
        host: host.clone(),
        state: instance.phase.as_str().to_owned(),
        reason: instance.reason.clone(),
        pid: run.and_then(|run| run.pid),
        run: run.map(|run| run.id.0),
        restarts: instance.restarts,
        started_at: run.map(|run| rfc3339(run.spawned_ms)),
        ready_at: run.and_then(|run| run.ready_ms).map(rfc3339),
        last_exit: instance.last_exit.as_ref().map(exit),
        ports: ports
            .map(|(name, (protocol, port))| (name.clone(), PortView { protocol: *protocol, port: *port }))
            .collect(),
        heartbeat: HeartbeatView {
            mode: instance.process.as_deref().map_or("none", mode).to_owned(),
            age_ms: run.and_then(|run| run.watch.last).map(age),
        },
        status: instance.status.iter().filter(|(name, _)| *name != PLAYER_LIST).map(pair).collect(),
    }
}

fn pair((name, value): (&String, &serde_json::Value)) -> (String, serde_json::Value) {
    (name.clone(), value.clone())
}

fn exit(last: &LastExit) -> ExitView {
    let (code, signal) = match last.end {
        End::Code(code) => (Some(code), None),
        End::Signal { signal, .. } => (None, Some(signal_name(signal))),
        End::Unknown => (None, None),
    };
    let cause = last.cause.as_str().to_owned();
    ExitView { cause, code, signal, at: rfc3339(last.at_ms), detail: last.detail.clone() }
}

fn signal_name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(known) => known.as_str().to_owned(),
        Err(_) => format!("SIG{signal}"),
    }
}

fn mode(process: &Process) -> &'static str {
    match &process.heartbeat.mode {
        HeartbeatMode::Native => "native",
        HeartbeatMode::Notify => "notify",
        HeartbeatMode::Probe(Probe::Query { .. }) => "query",
        HeartbeatMode::Probe(Probe::Tcp { .. }) => "tcp",
        HeartbeatMode::Probe(Probe::Exec { .. }) => "exec",
        HeartbeatMode::None => "none",
    }
}
