//! The host's side of fencing: reports, the deadline of exclusive runs, and what may start before it.
//!
//! Owns the deadline `sent(seq) + hold` on CLOCK_BOOTTIME, which counts while the machine is suspended. Pure:
//! the agent's loop sends the reports, hands the deadline to the keeper (which kills by itself, also when the
//! agent is gone) and carries out [`Duty::Kill`]. The keeper is told before the spawn that the deadline
//! allows, over the same socket, so it never holds an exclusive run without one.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{Host, Want};
use crate::config::cluster::REPORT;
use crate::keeper::protocol::RunId;
use crate::plan::liveness::{Confirm, Report};
use crate::spec::{HostName, InstanceId};
use crate::state::{Event, EventKind, State};

/// The most reports that wait for their confirm; older ones could not hold for long any more.
const REMEMBERED: usize = 256;

/// A moment of CLOCK_BOOTTIME, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Boot(pub u64);

impl Boot {
    /// The moment this much later.
    pub fn after(self, span: Duration) -> Boot {
        Boot(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Send this towards the primary now.
    Report(Report),
    /// Tell the keeper the deadline ([`crate::keeper::protocol::Request::Fence`]).
    Tell {
        /// Nanoseconds of CLOCK_BOOTTIME.
        deadline_ns: u64,
    },
    /// Kill every exclusive run, before anything else.
    Kill,
}

/// What a host knows of its right to exclusive runs.
#[derive(Debug)]
pub struct Fence {
    host: HostName,
    /// 0: it has not joined.
    incarnation: u64,
    seq: u64,
    sent: VecDeque<(u64, Boot)>,
    /// `None`: nothing was ever confirmed, so nothing exclusive runs.
    deadline: Option<Boot>,
    killed: bool,
    next_report: Boot,
}

impl Fence {
    /// `keeper_ns`: the deadline that the keeper holds; 0: none. A new agent that comes past it kills first.
    pub fn new(host: HostName, keeper_ns: u64) -> Self {
        let deadline = (keeper_ns > 0).then_some(Boot(keeper_ns));
        Fence {
            host,
            incarnation: 0,
            seq: 0,
            sent: VecDeque::new(),
            deadline,
            killed: false,
            next_report: Boot(0),
        }
    }

    /// The host has joined (again). Confirms of its life before mean nothing; its deadline stands.
    pub fn joined(&mut self, incarnation: u64) {
        (self.incarnation, self.seq) = (incarnation, 0);
        self.sent.clear();
        self.next_report = Boot(0);
    }

    /// Which life reports; 0: none.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Time has passed; to be called each [`REPORT`] and at [`Fence::deadline`].
    pub fn tick(&mut self, now: Boot) -> Vec<Duty> {
        let mut duties = Vec::new();
        if self.deadline.is_some() && !self.holds(now) && !self.killed {
            self.killed = true;
            duties.push(Duty::Kill);
        }
        if self.incarnation > 0 && now >= self.next_report {
            self.seq += 1;
            self.next_report = now.after(REPORT);
            self.sent.push_back((self.seq, now));
            if self.sent.len() > REMEMBERED {
                self.sent.pop_front();
            }
            let (host, incarnation) = (self.host.clone(), self.incarnation);
            duties.push(Duty::Report(Report { host, incarnation, seq: self.seq }));
        }
        duties
    }

    /// The primary has answered. It counts from when the report was sent, not from now: the way took time.
    pub fn confirmed(&mut self, confirm: &Confirm, now: Boot) -> Option<Duty> {
        let report = &confirm.report;
        if report.incarnation != self.incarnation || report.host != self.host {
            return None;
        }
        let sent = self.sent.iter().find(|(seq, _)| *seq == report.seq)?.1;
        self.sent.retain(|(seq, _)| *seq > report.seq);
        let deadline = sent.after(confirm.hold);
        if deadline <= now || self.deadline.is_some_and(|held| held >= deadline) {
            return None;
        }
        (self.deadline, self.killed) = (Some(deadline), false);
        Some(Duty::Tell { deadline_ns: deadline.0 })
    }

    /// When [`Fence::tick`] is next needed.
    pub fn next_due(&self) -> Option<Boot> {
        let report = (self.incarnation > 0).then_some(self.next_report);
        let kill = self.deadline.filter(|_| !self.killed);
        report.into_iter().chain(kill).min()
    }

    /// When the exclusive runs die unless a confirm comes.
    pub fn deadline(&self) -> Option<Boot> {
        self.deadline
    }

    /// True while exclusive runs may live here.
    pub fn holds(&self, now: Boot) -> bool {
        self.deadline.is_some_and(|deadline| now < deadline)
    }

    /// Takes out what would start by a state from before this life of the host: what that places here may be elsewhere
    /// by now. One that has not joined goes by its own copy.
    pub fn hold_back(&self, wants: &mut BTreeMap<InstanceId, Want>, state: &State, fleet: &Host) {
        if self.incarnation > 0 && !self.is_seen_in(state) {
            wants.retain(|id, _| lives(fleet, id));
        }
    }

    /// Takes out what may not run here now. Past the deadline nothing exclusive does; before it, what lives
    /// goes on, and a new one starts only by a state that shows this life of the host: an older one may name a
    /// placement that was given back since.
    pub fn trim(&self, wants: &mut BTreeMap<InstanceId, Want>, state: &State, fleet: &Host, now: Boot) {
        let (holds, sees_itself) = (self.holds(now), self.is_seen_in(state));
        wants.retain(|id, want| !want.process.exclusive() || holds && (sees_itself || lives(fleet, id)));
    }

    /// What the host gives back: claims on instances that are placed elsewhere or nowhere, and of which it has no
    /// run and wants none. The fleet may have yet to hear of some wants of this state: those are placed here, and
    /// one that it still wants of a state before keeps its claim. Said again until the state shows it.
    pub fn releases(&self, state: &State, fleet: &Host) -> Vec<Event> {
        if !self.is_seen_in(state) {
            return Vec::new();
        }
        let mine = state.claims.iter().filter(|(_, claim)| claim.host == self.host);
        let idle = |id: &InstanceId| fleet.instance(id).is_none_or(|i| i.run.is_none() && i.want.is_none());
        let placed = |id: &InstanceId| state.placements.get(id).is_some_and(|held| held.host == self.host);
        mine.filter(|(id, _)| idle(id) && !placed(id))
            .map(|(id, claim)| {
                let kind = EventKind::Released { generation: claim.generation };
                Event { instance: id.clone(), run: RunId(fleet.last_run()), kind }
            })
            .collect()
    }

    /// True when the state holds this life of the host for living, and a plan knows of it. Before that the host ends
    /// nothing: a host that was given up and comes back has no placements until it is thought of again.
    pub fn is_planned_in(&self, state: &State) -> bool {
        self.is_seen_in(state) && state.hosts.get(&self.host).is_some_and(|host| host.planned)
    }

    /// True when the state holds this life of the host for living.
    pub fn is_seen_in(&self, state: &State) -> bool {
        state.hosts.get(&self.host).is_some_and(|host| host.up && host.incarnation == self.incarnation)
    }
}

fn lives(fleet: &Host, id: &InstanceId) -> bool {
    fleet.instance(id).is_some_and(|instance| instance.run.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Boot {
        Boot(1).after(Duration::from_millis(ms))
    }

    fn confirm(incarnation: u64, seq: u64, hold_ms: u64) -> Confirm {
        let report = Report { host: "alpha".parse().unwrap(), incarnation, seq };
        Confirm { report, hold: Duration::from_millis(hold_ms) }
    }

    fn joined() -> Fence {
        let mut fence = Fence::new("alpha".parse().unwrap(), 0);
        assert_eq!(fence.tick(at(0)), [], "one that has not joined has nothing to say");
        fence.joined(7);
        fence
    }

    #[test]
    fn it_reports_each_tick_and_its_deadline_counts_from_the_sending() {
        let mut fence = joined();
        for seq in 1..=3 {
            let ms = (seq - 1) * 250;
            let report = Report { host: "alpha".parse().unwrap(), incarnation: 7, seq };
            assert_eq!(fence.tick(at(ms)), [Duty::Report(report)]);
            assert_eq!(fence.tick(at(ms + 249)), []);
        }
        assert!(!fence.holds(at(500)));
        let told = fence.confirmed(&confirm(7, 2, 5_000), at(2_000));
        assert_eq!(told, Some(Duty::Tell { deadline_ns: at(5_250).0 }));
        assert!(fence.holds(at(5_249)) && !fence.holds(at(5_250)));
        assert_eq!(
            fence.confirmed(&confirm(7, 1, 5_000), at(2_000)),
            None,
            "an older one moves nothing back"
        );
        assert_eq!(fence.confirmed(&confirm(6, 3, 5_000), at(2_000)), None, "of another life");
        assert_eq!(fence.confirmed(&confirm(7, 9, 5_000), at(2_000)), None, "never sent");
    }

    #[test]
    fn past_the_deadline_it_kills_once_and_a_confirm_that_comes_too_late_is_none() {
        let mut fence = joined();
        fence.tick(at(0));
        fence.confirmed(&confirm(7, 1, 1_000), at(1)).unwrap();
        fence.tick(at(900));
        assert_eq!(fence.tick(at(1_000)), [Duty::Kill]);
        assert!(!fence.tick(at(1_200)).contains(&Duty::Kill));
        assert_eq!(fence.confirmed(&confirm(7, 2, 1_000), at(1_900)), None);
        assert!(!fence.holds(at(1_900)));
        fence.tick(at(2_000));
        let seq = fence.seq;
        assert!(fence.confirmed(&confirm(7, seq, 1_000), at(2_100)).is_some());
        assert!(fence.tick(at(3_000)).contains(&Duty::Kill), "the next time, too");
    }

    #[test]
    fn a_new_agent_past_the_keepers_deadline_kills_before_anything_else() {
        let mut fence = Fence::new("alpha".parse().unwrap(), at(100).0);
        assert!(fence.holds(at(99)));
        fence.joined(8);
        assert_eq!(fence.tick(at(100)).first(), Some(&Duty::Kill));
    }

    #[test]
    fn what_was_sent_in_another_life_is_not_confirmed() {
        let mut fence = joined();
        fence.tick(at(0));
        fence.joined(8);
        assert_eq!(fence.confirmed(&confirm(8, 1, 5_000), at(10)), None, "this life has sent nothing yet");
    }
}
