//! Who is in the cluster: joining, leaving without a word, draining, being forgotten.

use std::collections::BTreeSet;

use super::{Host, HostFacts, Rejected, Response, State};
use crate::spec::{HostName, InstanceId, InstanceKey};

/// How long a host that is down is remembered, milliseconds.
pub const FORGET_HOST_MS: u64 = 7 * 24 * 3_600_000;
/// How long the end of a launched instance is remembered, milliseconds.
pub const FORGET_FINISHED_MS: u64 = 3_600_000;
/// How often it is looked for what can be forgotten, milliseconds.
pub const FORGET_EVERY_MS: u64 = 60_000;

impl State {
    pub(super) fn join_host(&mut self, name: &HostName, facts: &HostFacts) -> Result<Response, Rejected> {
        let before = self.hosts.get(name);
        let other = |id: &str| !id.is_empty() && id != facts.machine_id;
        if before.is_some_and(|host| host.up && other(&host.facts.machine_id)) {
            return Err(Rejected::CloneOf(name.clone()));
        }
        if facts.version < self.version {
            return Err(Rejected::Version { needed: self.version, found: facts.version });
        }
        self.incarnations += 1;
        let host = Host {
            incarnation: self.incarnations,
            facts: facts.clone(),
            up: true,
            planned: false,
            drained: before.is_some_and(|host| host.drained),
            last_seq: 0,
            down_ms: before.map_or(0, |host| host.down_ms),
        };
        self.hosts.insert(name.clone(), host);
        self.basis += 1;
        Ok(Response::Incarnation(self.incarnations))
    }

    /// A cluster of one host begins anew. What ran before says nothing about now: the host's inventory does. A
    /// host whose /etc/machine-id was made anew is welcome to its own data, and one that has another name now
    /// leaves no host behind that keeps its instances.
    pub fn begin_alone(&mut self, own: &HostName) {
        self.directory.clear();
        self.superseded.clear();
        self.leaders.clear();
        let others = self.hosts.iter().filter(|(name, host)| host.up && *name != own);
        let others: Vec<_> = others.map(|(name, host)| (name.clone(), host.incarnation)).collect();
        for (name, incarnation) in others {
            // Cannot be refused: it is the one in force.
            let _ = self.host_down(&name, incarnation);
        }
        if let Some(host) = self.hosts.get_mut(own) {
            host.facts.machine_id.clear();
        }
    }

    /// The host's runs are over or beyond reach: with it go its entries, its placements and its claims.
    pub(super) fn host_down(&mut self, name: &HostName, incarnation: u64) -> Result<Response, Rejected> {
        let now_ms = self.now_ms;
        let host = self.hosts.get_mut(name).filter(|host| host.incarnation == incarnation);
        let host = host.ok_or_else(|| Rejected::OldIncarnation(name.clone()))?;
        if !std::mem::take(&mut host.up) {
            return Ok(Response::Done);
        }
        host.down_ms = now_ms;
        self.placements.retain(|_, placement| placement.host != *name);
        self.rests.retain(|id, _| self.placements.contains_key(id));
        self.claims.retain(|_, claim| claim.host != *name);
        let mut touched = BTreeSet::new();
        self.directory.retain(|id, entry| {
            let lost = entry.host == *name;
            if lost {
                touched.insert(id.process.clone());
            }
            !lost
        });
        self.superseded.retain(|_, entries| {
            entries.remove(name);
            !entries.is_empty()
        });
        self.elect(&touched);
        self.forget_unwanted();
        self.basis += 1;
        Ok(Response::Done)
    }

    pub(super) fn drain_host(&mut self, name: &HostName, drained: bool) -> Result<Response, Rejected> {
        let host = self.hosts.get_mut(name).ok_or_else(|| Rejected::NoHost(name.clone()))?;
        if host.drained != drained {
            host.drained = drained;
            self.basis += 1;
        }
        Ok(Response::Done)
    }

    /// Drops what has been remembered for long enough. A proposer's clock that is wrong costs such records
    /// and nothing else.
    pub(super) fn forget(&mut self, before_ms: u64) {
        let now_ms = self.now_ms;
        if now_ms / FORGET_EVERY_MS == before_ms / FORGET_EVERY_MS {
            return;
        }
        self.forget_tokens();
        self.finished.retain(|_, finished| now_ms.saturating_sub(finished.at_ms) < FORGET_FINISHED_MS);
        let old = |host: &Host| !host.up && now_ms.saturating_sub(host.down_ms) >= FORGET_HOST_MS;
        let gone: BTreeSet<HostName> =
            self.hosts.iter().filter(|(_, host)| old(host)).map(|(name, _)| name.clone()).collect();
        if gone.is_empty() {
            return;
        }
        self.hosts.retain(|name, _| !gone.contains(name));
        let on_gone = |id: &InstanceId| matches!(&id.key, InstanceKey::Host(host) if gone.contains(host));
        self.paused.instances.retain(|id| !on_gone(id));
        self.paused.except.retain(|id| !on_gone(id));
        self.failed.retain(|id, hosts| {
            hosts.retain(|host| !gone.contains(host));
            !hosts.is_empty() && !on_gone(id)
        });
        self.basis += 1;
    }
}
