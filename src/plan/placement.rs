//! Which host an instance goes to: fitness, then the strategy.

use std::collections::{BTreeMap, BTreeSet};

use crate::spec::{HostName, InstanceId, InstanceKey, Process, Protocol, Strategy};
use crate::state::{Host, State};

/// What is placed where while a plan is made.
pub(super) struct Board<'a> {
    state: &'a State,
    hosts: BTreeMap<&'a HostName, Load>,
}

/// What a host carries.
#[derive(Default)]
struct Load {
    instances: BTreeSet<InstanceId>,
}

impl<'a> Board<'a> {
    pub(super) fn new(state: &'a State) -> Self {
        let hosts = state.hosts.keys().map(|host| (host, Load::default())).collect();
        let mut board = Board { state, hosts };
        // Where not all can stay, the first ordinals do. What fits beside more fits beside less, so the
        // placements that come out of a plan all stay in the next.
        for (id, placement) in state.placements.iter().filter(|(id, _)| state.wants(id)) {
            let process = state.spec.processes.get(&id.process);
            if process.is_some_and(|process| board.unfit(id, process, &placement.host).is_none()) {
                board.note(id, &placement.host);
            }
        }
        board
    }

    pub(super) fn note(&mut self, instance: &InstanceId, host: &HostName) {
        if let Some(load) = self.hosts.get_mut(host) {
            load.instances.insert(instance.clone());
        }
    }

    /// True when the instance goes on where it is.
    pub(super) fn stays(&self, instance: &InstanceId, host: &HostName) -> bool {
        self.hosts.get(host).is_some_and(|load| load.instances.contains(instance))
    }

    /// The best fit host, or why none fits.
    pub(super) fn choose(&self, instance: &InstanceId, process: &Process) -> Result<HostName, String> {
        let mut reasons = Vec::new();
        let mut best: Option<((usize, usize), &HostName)> = None;
        for host in self.hosts.keys() {
            if let Some(reason) = self.unfit(instance, process, host) {
                reasons.push(format!("{host}: {reason}"));
                continue;
            }
            let rank = self.rank(instance, process, host);
            if best.as_ref().is_none_or(|(lowest, _)| rank < *lowest) {
                best = Some((rank, host));
            }
        }
        match best {
            Some((_, host)) => Ok((*host).clone()),
            None if reasons.is_empty() => Err("no host has joined".to_owned()),
            None => Err(format!("fits on no host ({})", reasons.join("; "))),
        }
    }

    /// Lower is better. Spread: few of this process, then few of all. Pack: many of all.
    fn rank(&self, instance: &InstanceId, process: &Process, host: &HostName) -> (usize, usize) {
        let load = &self.hosts[host];
        let all = load.instances.len();
        let own = load.instances.iter().filter(|id| id.process == instance.process).count();
        match process.placement.strategy {
            Strategy::Spread => (own, all),
            Strategy::Pack => (usize::MAX - all, 0),
        }
    }

    /// Why the host cannot have the instance; `None` when it can.
    fn unfit(&self, instance: &InstanceId, process: &Process, name: &HostName) -> Option<String> {
        let Some(host) = self.state.hosts.get(name) else { return Some("has not joined".to_owned()) };
        if let InstanceKey::Host(own) = &instance.key
            && own != name
        {
            return Some("is another host's instance".to_owned());
        }
        if !host.up {
            return Some("is down".to_owned());
        }
        if host.drained {
            return Some("is drained".to_owned());
        }
        self.lacks(process, host).or_else(|| self.taken(instance, process, name, host))
    }

    fn lacks(&self, process: &Process, host: &Host) -> Option<String> {
        let wanted = &process.placement.labels;
        if let Some((key, value)) = wanted.iter().find(|(k, v)| host.facts.labels.get(*k) != Some(*v)) {
            return Some(format!("has no label {key} = {value:?}"));
        }
        let limits = &process.limits;
        let asked = [
            ("memory", limits.memory.is_some()),
            ("cpu", limits.cpu_milli.is_some()),
            ("pids", limits.pids.is_some()),
        ];
        let cannot = |(name, asked): &&(&str, bool)| *asked && !host.facts.enforces.iter().any(|e| e == name);
        match asked.iter().find(cannot) {
            Some((name, _)) if limits.required => Some(format!("cannot enforce limits.{name}")),
            _ => None,
        }
    }

    fn taken(
        &self,
        instance: &InstanceId,
        process: &Process,
        name: &HostName,
        host: &Host,
    ) -> Option<String> {
        let others = || self.hosts[name].instances.iter().filter(|id| *id != instance);
        if let Some(max) = process.placement.max_per_host
            && others().filter(|id| id.process == instance.process).count() >= max as usize
        {
            return Some(format!("has max_per_host = {max} already"));
        }
        let processes = &self.state.spec.processes;
        let needs = &process.placement.needs;
        for (resource, capacity) in &host.facts.capacity {
            let used: u64 =
                others().filter_map(|id| processes.get(&id.process)?.placement.needs.get(resource)).sum();
            let need = needs.get(resource).copied().unwrap_or(0);
            if need > 0 && used + need > *capacity {
                return Some(format!("has {used} of {capacity} {resource} in use"));
            }
        }
        let wanted: BTreeSet<(Protocol, u16)> = process.fixed_ports().collect();
        let holder = others().find(|id| {
            processes.get(&id.process).is_some_and(|p| p.fixed_ports().any(|port| wanted.contains(&port)))
        });
        holder.map(|id| format!("has its fixed port in use by {id}"))
    }
}
