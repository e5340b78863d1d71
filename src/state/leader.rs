//! Who speaks for a process: one ready run, for as long as it is ready.
//!
//! Owns the election, which is part of applying a command: no votes, no time. The leader is sticky; when its
//! run ends or is ready no more, the eldest ready run follows (by the index of its start, then by its number:
//! what one command starts is one host's, and its run numbers grow). The fencing token is the index of the
//! electing command. A command elects at most once, after all else of it: were a run elected and over within
//! one command, its successor would get the same token.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{State, of_process};
use crate::keeper::protocol::RunId;
use crate::spec::{HostName, InstanceId, ProcessName};

/// The run that speaks for a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// Which instance.
    pub instance: InstanceId,
    /// Where.
    pub host: HostName,
    /// Which life.
    pub run: RunId,
    /// Grows with each election in the cluster: who holds a smaller one is leader no more.
    pub token: u64,
}

impl State {
    /// Elects where the leader is gone. `touched`: processes of which some run began, ended or changed.
    pub(super) fn elect(&mut self, touched: &BTreeSet<ProcessName>) {
        for name in touched {
            if self.leaders.get(name).is_some_and(|leader| self.leads_on(leader)) {
                continue;
            }
            let ready = of_process(&self.directory, name).filter(|(_, entry)| entry.ready.is_some());
            let eldest = ready.min_by_key(|(_, entry)| (entry.started, entry.run));
            let leader = eldest.map(|(id, entry)| Leader {
                instance: id.clone(),
                host: entry.host.clone(),
                run: entry.run,
                token: self.index,
            });
            match leader {
                Some(leader) => drop(self.leaders.insert(name.clone(), leader)),
                None => drop(self.leaders.remove(name)),
            }
        }
    }

    pub(super) fn leads_on(&self, leader: &Leader) -> bool {
        self.directory.get(&leader.instance).is_some_and(|entry| {
            entry.ready.is_some() && entry.host == leader.host && entry.run == leader.run
        })
    }
}
