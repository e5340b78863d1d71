//! What runs: events and inventories of hosts, each applied once.
//!
//! Owns the directory and the entries beside it. Where two hosts run an instance (one was cut off and is
//! back), the entry of the host that it is placed on is the directory's, the other is superseded; of two that
//! are not placed the newer counts. A host's word is taken for what it is: it never moves a placement.

use std::collections::{BTreeMap, BTreeSet};

use super::command::{EventKind, RunFact};
use super::{Entry, Event, Host, Rejected, Response, Rest, State, of_process};
use crate::spec::{HostName, InstanceId, ProcessName};

impl State {
    fn current(&mut self, name: &HostName, incarnation: u64) -> Result<&mut Host, Rejected> {
        self.hosts
            .get_mut(name)
            .filter(|host| host.up && host.incarnation == incarnation)
            .ok_or_else(|| Rejected::OldIncarnation(name.clone()))
    }

    pub(super) fn take_events(
        &mut self,
        name: &HostName,
        incarnation: u64,
        first_seq: u64,
        events: &[Event],
    ) -> Result<Response, Rejected> {
        let host = self.current(name, incarnation)?;
        let next = host.last_seq + 1;
        if first_seq > next {
            return Err(Rejected::Gap { host: name.clone(), first_seq, next });
        }
        let seen = usize::try_from(next - first_seq).unwrap_or(usize::MAX);
        let Some(new) = events.get(seen..).filter(|new| !new.is_empty()) else {
            return Ok(Response::Done);
        };
        host.last_seq += new.len() as u64;
        let address = host.facts.address.clone();
        let freed = new.iter().filter(|event| self.take_event(name, &address, event)).count();
        let touched: BTreeSet<ProcessName> = new.iter().map(|event| event.instance.process.clone()).collect();
        self.elect(&touched);
        let rolls_out = touched.iter().any(|process| self.rolls_out(process));
        self.basis += u64::from(freed > 0 || rolls_out);
        Ok(Response::Done)
    }

    /// True when a plan depends on it, whatever is being rolled out.
    fn take_event(&mut self, host: &HostName, address: &str, event: &Event) -> bool {
        let (id, index) = (&event.instance, self.index);
        match &event.kind {
            EventKind::Started { hash, ports } => {
                let entry = Entry {
                    host: host.clone(),
                    run: event.run,
                    hash: *hash,
                    address: address.to_owned(),
                    ports: ports.into(),
                    started: index,
                    ready: None,
                };
                self.list(id, entry);
                self.rest_no_more(host, id)
            }
            EventKind::Ready => self.mark(host, event, Some(index)),
            EventKind::Unready => self.mark(host, event, None),
            EventKind::Stopped(ended) => {
                let awaited = self.unlist(host, event);
                let done = ended.done && self.finish(host, id, ended.end);
                awaited || done
            }
            EventKind::Rests(rest) => self.rest(host, id, rest),
            EventKind::Released { generation } => self.release(host, id, *generation),
        }
    }

    /// Enters a run where it belongs.
    fn list(&mut self, id: &InstanceId, entry: Entry) {
        let placed = self.placements.get(id).map(|placement| &placement.host);
        let held = self.directory.get(id).map(|held| &held.host).filter(|held| **held != entry.host);
        if held.is_some() && held == placed {
            self.superseded.entry(id.clone()).or_default().insert(entry.host.clone(), entry);
            return;
        }
        self.unlist_beside(id, &entry.host.clone());
        if let Some(older) = self.directory.insert(id.clone(), entry)
            && self.directory[id].host != older.host
        {
            self.superseded.entry(id.clone()).or_default().insert(older.host.clone(), older);
        }
    }

    /// The placed host's run goes before the others. True when that changed the directory.
    pub(super) fn put_first(&mut self, id: &InstanceId, host: &HostName) -> bool {
        let entry = self.superseded.get(id).and_then(|beside| beside.get(host)).cloned();
        let found = entry.is_some();
        entry.into_iter().for_each(|entry| self.list(id, entry));
        found
    }

    fn unlist_beside(&mut self, id: &InstanceId, host: &HostName) {
        if let Some(beside) = self.superseded.get_mut(id) {
            beside.remove(host);
            if beside.is_empty() {
                self.superseded.remove(id);
            }
        }
    }

    /// True when an exclusive instance may have waited for this end.
    fn unlist(&mut self, host: &HostName, event: &Event) -> bool {
        let id = &event.instance;
        let same = |entry: &Entry| entry.host == *host && entry.run == event.run;
        if self.directory.get(id).is_some_and(same) {
            self.directory.remove(id);
        }
        if self.superseded.get(id).is_some_and(|beside| beside.get(host).is_some_and(same)) {
            self.unlist_beside(id, host);
        }
        !self.is_placed_on(id, host) && self.is_exclusive(&id.process)
    }

    /// False: a plan looks at this only while something is rolled out.
    fn mark(&mut self, host: &HostName, event: &Event, ready: Option<u64>) -> bool {
        let same = |entry: &&mut Entry| entry.host == *host && entry.run == event.run;
        let beside = self.superseded.get_mut(&event.instance).and_then(|beside| beside.get_mut(host));
        let entries = self.directory.get_mut(&event.instance).into_iter().chain(beside);
        entries.filter(same).for_each(|entry| entry.ready = ready);
        false
    }

    /// A plan depends on which runs are ready only while some instance has an old spec.
    fn rolls_out(&self, name: &ProcessName) -> bool {
        let Some(wanted) = self.hash_of(name) else { return false };
        of_process(&self.placements, name).any(|(_, placement)| placement.hash != wanted)
    }

    pub(super) fn take_inventory(
        &mut self,
        name: &HostName,
        incarnation: u64,
        seq: u64,
        runs: &BTreeMap<InstanceId, RunFact>,
        rests: &BTreeMap<InstanceId, Rest>,
    ) -> Result<Response, Rejected> {
        let host = self.current(name, incarnation)?;
        if seq < host.last_seq {
            return Ok(Response::Done);
        }
        host.last_seq = seq;
        let address = host.facts.address.clone();
        let mut touched: BTreeSet<ProcessName> = runs.keys().map(|id| id.process.clone()).collect();
        let over = |id: &InstanceId, entry: &Entry| runs.get(id).is_none_or(|fact| fact.run != entry.run);
        self.directory.retain(|id, entry| {
            let stays = entry.host != *name || !over(id, entry);
            if !stays {
                touched.insert(id.process.clone());
            }
            stays
        });
        self.superseded.retain(|id, beside| {
            beside.retain(|host, entry| host != name || !over(id, entry));
            !beside.is_empty()
        });
        for (id, rest) in rests {
            self.rest(name, id, rest);
        }
        for (id, fact) in runs {
            self.agree(name, &address, id, fact);
            self.rest_no_more(name, id);
        }
        self.elect(&touched);
        self.basis += 1;
        Ok(Response::Done)
    }

    fn agree(&mut self, host: &HostName, address: &str, id: &InstanceId, fact: &RunFact) {
        let index = self.index;
        let listed = self.directory.get_mut(id).filter(|entry| entry.host == *host);
        let beside = self.superseded.get_mut(id).and_then(|beside| beside.get_mut(host));
        let ready = fact.ready.then_some(index);
        match listed.or(beside) {
            Some(entry) if entry.ready.is_some() != fact.ready => entry.ready = ready,
            Some(_) => {}
            None => {
                let entry = Entry {
                    host: host.clone(),
                    run: fact.run,
                    hash: fact.hash,
                    address: address.to_owned(),
                    ports: (&fact.ports).into(),
                    started: index,
                    ready,
                };
                self.list(id, entry);
            }
        }
    }
}
