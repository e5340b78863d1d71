//! The replicated spans of time, and the version that gates new commands.
//!
//! Owns the rule that keeps two hosts from running one exclusive instance (docs/architecture.md, fencing):
//! the file's check and [`super::State::apply`] both ask here. Longer settings hold at once: a host's
//! deadline never comes from a confirm of a primary that does not know them. Shorter ones wait in
//! [`Pending`] until the primary has seen the older span pass, since hosts may hold confirms that count
//! on it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Rejected, Response, State};

/// What lies between the kill of a cut-off host's exclusive runs and the start of their successors, for
/// clocks that run at different speeds and for a busy host.
pub const MARGIN: Duration = Duration::from_secs(1);

/// The spans of time that all hosts go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// How long a confirm holds.
    pub fence_after: Duration,
    /// How long the kill of exclusive runs may take.
    pub fence_kill: Duration,
    /// Silence after which a host is declared down.
    pub host_timeout: Duration,
    /// While more hosts are silent at once, none is declared down; `None`: the larger of 1 and 30 %.
    pub max_lost: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            fence_after: Duration::from_secs(5),
            fence_kill: Duration::from_secs(1),
            host_timeout: Duration::from_secs(8),
            max_lost: None,
        }
    }
}

impl Settings {
    /// The shortest `host_timeout` with which nothing runs twice.
    pub fn least_timeout(fence_after: Duration, fence_kill: Duration) -> Duration {
        fence_after + fence_kill + MARGIN
    }

    /// True when a silent host's exclusive runs are over before it is declared down.
    pub fn are_safe(&self) -> bool {
        !self.fence_after.is_zero()
            && self.host_timeout >= Settings::least_timeout(self.fence_after, self.fence_kill)
    }

    /// How many of this many hosts may be silent at once before none is declared down.
    pub fn bearable(&self, hosts: usize) -> usize {
        self.max_lost.map_or((hosts * 3 / 10).max(1), |most| most as usize)
    }
}

/// Settings that take effect later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The new ones.
    pub settings: Settings,
    /// The state index at which they were asked for.
    pub since: u64,
}

/// Which commands a program knows. Version 1 is the first release's; a later one gets the next number
/// with its first new command, and [`super::Command::since`] names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version(pub u32);

impl Version {
    /// The newest that this program knows.
    pub const NEWEST: Version = Version(1);
}

impl Default for Version {
    fn default() -> Self {
        Version(1)
    }
}

impl State {
    /// How long a confirm given now holds: a shorter span counts from the moment it is asked for.
    pub fn hold(&self) -> Duration {
        let soon = self.pending.map_or(self.settings.fence_after, |pending| pending.settings.fence_after);
        soon.min(self.settings.fence_after)
    }

    pub(super) fn take_settings(&mut self, new: Settings) -> Result<Response, Rejected> {
        if !new.are_safe() {
            return Err(Rejected::Unsafe);
        }
        // A kill that is given longer moves the moment up to which the old run may live as well.
        let longer = new.host_timeout >= self.settings.host_timeout;
        match longer {
            true => (self.settings, self.pending) = (new, None),
            false => self.pending = Some(Pending { settings: new, since: self.index }),
        }
        Ok(Response::Done)
    }

    pub(super) fn settle(&mut self, since: u64) -> Result<Response, Rejected> {
        if let Some(pending) = self.pending.filter(|pending| pending.since == since) {
            (self.settings, self.pending) = (pending.settings, None);
        }
        Ok(Response::Done)
    }

    pub(super) fn upgrade(&mut self, to: Version) -> Result<Response, Rejected> {
        let oldest = self.hosts.values().filter(|host| host.up).map(|host| host.facts.version).min();
        match oldest {
            Some(found) if found < to => Err(Rejected::Version { needed: to, found }),
            _ => {
                self.version = self.version.max(to);
                Ok(Response::Done)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_that_is_borne_is_as_declared_or_the_larger_of_one_host_and_30_percent() {
        let of = |max_lost, hosts| Settings { max_lost, ..Settings::default() }.bearable(hosts);
        let by_default = [(1, 1), (3, 1), (6, 1), (7, 2), (9, 2), (10, 3), (13, 3), (14, 4), (100, 30)];
        for (hosts, borne) in by_default {
            assert_eq!(of(None, hosts), borne, "of {hosts} hosts");
        }
        assert_eq!((of(Some(2), 3), of(Some(2), 100)), (2, 2));
    }
}
