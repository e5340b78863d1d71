//! What its host starts no further run of: done, or given up.
//!
//! Owns [`State::rests`], the fact that a host tells, and what follows from it: a launched instance that is done is
//! finished, and the plan looks for another host for one that was given up. Only the host that an instance is
//! placed on is believed. Called as events and inventories are applied.

use super::{Finished, Rest, State};
use crate::keeper::protocol::End;
use crate::spec::{HostName, InstanceId};

impl State {
    /// True when a plan or what hosts want depends on it.
    pub(super) fn rest(&mut self, host: &HostName, id: &InstanceId, rest: &Rest) -> bool {
        let done = rest.failed.is_none() && self.finish(host, id, rest.end);
        let lives = self.directory.get(id).is_some_and(|entry| entry.host == *host);
        // A host that lists everything says again what is known; it must not bring back what was forgiven since.
        if lives || !self.is_placed_on(id, host) || self.rests.get(id) == Some(rest) {
            return done;
        }
        self.rests.insert(id.clone(), rest.clone());
        if rest.failed.is_some() {
            self.failed.entry(id.clone()).or_default().insert(host.clone());
        }
        true
    }

    /// A run of the instance lives on the host. True when that ends a rest.
    pub(super) fn rest_no_more(&mut self, host: &HostName, id: &InstanceId) -> bool {
        if !self.is_placed_on(id, host) || self.rests.remove(id).is_none() {
            return false;
        }
        if let Some(hosts) = self.failed.get_mut(id) {
            hosts.remove(host);
            if hosts.is_empty() {
                self.failed.remove(id);
            }
        }
        true
    }

    /// A launched instance is done. True the first time.
    pub(super) fn finish(&mut self, host: &HostName, id: &InstanceId, end: End) -> bool {
        let launched = self.launches.remove(id).is_some();
        if launched {
            let finished = Finished { host: host.clone(), end, at_ms: self.now_ms };
            self.finished.insert(id.clone(), finished);
        }
        launched
    }
}
