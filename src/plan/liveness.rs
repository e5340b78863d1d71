//! The primary's view of which hosts live: what it confirms, and whom it declares down.
//!
//! Owns when each host was last heard. It lives and ends with one term of one primary: what an older term proposed is
//! applied or gone when the next one begins. Pure: the primary's task gives it reports, the applied state and
//! CLOCK_MONOTONIC, runs the ReadIndex rounds and proposes the commands, in this very term or not at all.
//! docs/architecture.md (fencing) proves why these rules keep an exclusive instance from running twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::cluster::REPORT;
use crate::host::Moment;
use crate::spec::{HostName, InstanceId};
use crate::state::{Command, State};

/// A host that was not heard for this long counts as silent for the brake: four reports.
pub const SILENT: Duration = Duration::from_secs(1);

/// "I live": sent by every host each [`REPORT`]; it reaches the primary unchanged.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Report {
    /// Who.
    pub host: HostName,
    /// Which life.
    pub incarnation: u64,
    /// Grows with each report of that life.
    pub seq: u64,
}

/// What a host tells the primary each [`REPORT`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attendance {
    /// It lives.
    pub report: Report,
    /// The players of its runs that tell of them, when they changed and once a second otherwise; `None`: as before.
    pub players: Option<BTreeMap<InstanceId, u32>>,
}

/// The primary's answer. Nobody else makes one up, and nobody keeps one for later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirm {
    /// To which report.
    pub report: Report,
    /// Exclusive runs may live for this long after the report was sent.
    pub hold: Duration,
}

/// Reports that were heard before a ReadIndex round began: they may be confirmed when it succeeds.
#[derive(Debug)]
pub struct Round {
    reports: Vec<Report>,
}

impl Round {
    /// True when there is nobody to answer: the round need not be run.
    pub fn is_empty(&self) -> bool {
        self.reports.is_empty()
    }
}

/// What the primary does now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// To be proposed. Said again at each tick until the state shows it.
    pub commands: Vec<Command>,
    /// So many hosts are silent at once that none is declared down: which.
    pub brake: BTreeSet<HostName>,
}

/// When each host was last heard by this primary.
#[derive(Debug)]
pub struct Roll {
    /// Of hosts that were not heard yet; the commit of the first entry of this primary's term.
    since: Moment,
    heard: BTreeMap<HostName, Heard>,
    waiting: BTreeMap<HostName, Report>,
    /// Pending settings, and when this primary first saw them.
    pending: Option<(u64, Moment)>,
    /// Hosts that an operator gives up although the brake holds, until they are heard.
    given_up: BTreeSet<HostName>,
    ticked: Moment,
}

#[derive(Debug)]
struct Heard {
    incarnation: u64,
    at: Moment,
    /// HostDown was proposed: nothing is confirmed until the host joins again.
    condemned: bool,
}

impl Roll {
    /// `committed`: when the first entry of this primary's term was committed, not when it was elected: only
    /// then is it certain that no primary before it confirms any more.
    pub fn new(committed: Moment) -> Self {
        Roll {
            since: committed,
            heard: BTreeMap::new(),
            waiting: BTreeMap::new(),
            pending: None,
            given_up: BTreeSet::new(),
            ticked: committed,
        }
    }

    /// For how long each host that is up was not heard.
    pub fn silences<'a>(&self, state: &'a State, now: Moment) -> BTreeMap<&'a HostName, Duration> {
        let up = state.hosts.iter().filter(|(_, host)| host.up);
        up.map(|(name, _)| (name, now.since(self.heard_at(name)))).collect()
    }

    /// A report came.
    pub fn report(&mut self, report: Report, now: Moment) {
        let new = || Heard { incarnation: report.incarnation, at: now, condemned: false };
        let heard = self.heard.entry(report.host.clone()).or_insert_with(new);
        if report.incarnation < heard.incarnation {
            return;
        }
        if report.incarnation > heard.incarnation {
            *heard = new();
        }
        heard.at = now;
        let newest = self.waiting.entry(report.host.clone()).or_insert_with(|| report.clone());
        if (newest.incarnation, newest.seq) < (report.incarnation, report.seq) {
            *newest = report;
        }
    }

    /// A ReadIndex round begins now, for all reports that wait.
    pub fn begin_round(&mut self) -> Round {
        Round { reports: std::mem::take(&mut self.waiting).into_values().collect() }
    }

    /// The round has succeeded, and `state` is applied at least up to its index.
    pub fn confirm(&self, round: Round, state: &State) -> Vec<Confirm> {
        let lives = |report: &Report| {
            let known = state.hosts.get(&report.host);
            known.is_some_and(|host| host.up && host.incarnation == report.incarnation)
                && !self.is_condemned(report)
        };
        let reports = round.reports.into_iter().filter(lives);
        reports.map(|report| Confirm { report, hold: state.hold() }).collect()
    }

    fn is_condemned(&self, report: &Report) -> bool {
        let heard = self.heard.get(&report.host);
        heard.is_some_and(|heard| heard.condemned && heard.incarnation >= report.incarnation)
    }

    /// Nothing is confirmed to it any more, so its HostDown must come, although it was heard again since: the
    /// first proposal may have been lost.
    fn awaits_its_end(&self, state: &State, host: &HostName) -> bool {
        let known = state.hosts.get(host).map(|known| known.incarnation);
        self.heard.get(host).is_some_and(|heard| heard.condemned && Some(heard.incarnation) == known)
    }

    /// An operator says that a silent host is lost: it is declared down after `host_timeout`, whatever the brake says,
    /// unless it is heard before that.
    pub fn give_up(&mut self, host: HostName) {
        self.given_up.insert(host);
    }

    /// To be called each [`TICK`]. When that was late, the primary itself stood still, and when no `quorum` hears it,
    /// it may be the one that is cut off: such time is nobody's silence, and without a quorum it judges nobody.
    pub fn tick(&mut self, state: &State, quorum: bool, now: Moment) -> Option<Verdict> {
        if !quorum {
            return None;
        }
        let late = now.since(self.ticked).saturating_sub(SILENT);
        self.ticked = now;
        if !late.is_zero() {
            self.stalled(late + SILENT, now);
        }
        self.welcome(state, now);
        let silences = self.silences(state, now);
        let silent = silences.iter().filter(|(_, silence)| **silence > SILENT);
        let silent: BTreeSet<&HostName> = silent.map(|(host, _)| *host).collect();
        // It was said of this silence, not of the next one.
        self.given_up.retain(|host| silent.contains(host));
        let braked = silent.len() > state.settings.bearable(silences.len());
        let timeout = state.settings.host_timeout;
        let is_lost = |(host, silence): &(&HostName, Duration)| {
            let silent = *silence >= timeout && (!braked || self.given_up.contains(*host));
            silent || self.awaits_its_end(state, host)
        };
        let lost: Vec<HostName> =
            silences.into_iter().filter(is_lost).map(|(host, _)| host.clone()).collect();
        let brake = if braked { silent.into_iter().cloned().collect() } else { BTreeSet::new() };
        let mut commands: Vec<Command> =
            lost.into_iter().filter_map(|host| self.condemn(state, host)).collect();
        commands.extend(self.settle(state, now));
        Some(Verdict { commands, brake })
    }

    /// A life that has just joined is as one that was just heard: its first report is still under way.
    fn welcome(&mut self, state: &State, now: Moment) {
        for (name, host) in state.hosts.iter().filter(|(_, host)| host.up) {
            if self.heard.get(name).is_none_or(|heard| heard.incarnation < host.incarnation) {
                let heard = Heard { incarnation: host.incarnation, at: now, condemned: false };
                self.heard.insert(name.clone(), heard);
            }
        }
    }

    fn heard_at(&self, host: &HostName) -> Moment {
        self.heard.get(host).map_or(self.since, |heard| heard.at.max(self.since))
    }

    fn condemn(&mut self, state: &State, host: HostName) -> Option<Command> {
        let incarnation = state.hosts.get(&host)?.incarnation;
        let at = self.heard_at(&host);
        let heard = self.heard.entry(host.clone()).or_insert(Heard { incarnation, at, condemned: true });
        // A life that the state does not know yet has just joined.
        if heard.incarnation > incarnation {
            return None;
        }
        (heard.incarnation, heard.condemned) = (incarnation, true);
        Some(Command::HostDown { host, incarnation })
    }

    fn stalled(&mut self, by: Duration, now: Moment) {
        let moved = |at: Moment| at.after(by).min(now.max(at));
        self.since = moved(self.since);
        self.heard.values_mut().for_each(|heard| heard.at = moved(heard.at));
        if let Some((_, seen)) = &mut self.pending {
            *seen = moved(*seen);
        }
    }

    /// Hosts may hold confirms of the older settings until these are over, counted from when this primary began
    /// to give shorter ones.
    fn settle(&mut self, state: &State, now: Moment) -> Option<Command> {
        let since = state.pending?.since;
        let seen = match self.pending {
            Some((known, seen)) if known == since => seen,
            _ => self.pending.insert((since, now)).1,
        };
        (now.since(seen) >= state.settings.host_timeout).then_some(Command::Settle { since })
    }
}

/// How often [`Roll::tick`] wants to be called.
pub const TICK: Duration = REPORT;

#[cfg(test)]
mod tests;
