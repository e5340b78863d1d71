//! A primary: what a leader of the log does with the real planner and roll. It lives and dies with one term, as in
//! `cluster/node/vigil.rs`; one that is cut off goes on ticking until it hears of another term.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bigbrother::host::Moment;
use bigbrother::plan::liveness::{Confirm, Report, Roll, Round};
use bigbrother::plan::{Liveness, Planner};
use bigbrother::spec::{HostName, Strategy};
use bigbrother::state::{Command, State};

use crate::faults::Fault;
use crate::log::Peer;

/// Between two looks at the hosts, milliseconds.
const TICK: u64 = 250;
/// A plan that was proposed and is not seen by then is made again.
const AGAIN: u64 = 600;

pub struct Primary {
    pub term: u64,
    roll: Roll,
    planner: Planner,
    /// ReadIndex rounds under way: number, index to be applied, reports.
    rounds: Vec<(u64, usize, Round)>,
    ticked: u64,
    /// The basis of the last plan, when that was, and whether anything followed.
    planned: Option<(u64, u64, bool)>,
    /// Hosts and their lives, for a planted fault.
    pub given_up: BTreeSet<(HostName, u64)>,
    /// By whom the last word of each host came.
    pub via: BTreeMap<usize, usize>,
    /// Proposals that are to be answered: where, in which term, to whom, under which number.
    pub pending: BTreeMap<usize, (u64, usize, u64)>,
}

impl Primary {
    pub fn new(term: u64, committed: Moment, state: &State, fault: Fault) -> Primary {
        let early = if fault == Fault::NoWait { committed.0.min(60_000_000_000) } else { 0 };
        let mut roll = Roll::new(Moment(committed.0 - early));
        // Small steps: it must not look as if it had slept.
        for ns in (0..early).rev().step_by(100_000_000) {
            roll.tick(state, true, Moment(committed.0 - ns));
        }
        Primary {
            term,
            roll,
            planner: Planner::default(),
            rounds: Vec::new(),
            ticked: 0,
            planned: None,
            given_up: BTreeSet::new(),
            via: BTreeMap::new(),
            pending: BTreeMap::new(),
        }
    }

    pub fn hear(&mut self, report: Report, at: Moment) {
        self.roll.report(report, at);
    }

    /// Answers to the reports of rounds that have succeeded.
    pub fn confirm(&mut self, peer: &Peer, applied: usize, state: &State, fault: Fault) -> Vec<Confirm> {
        let over = |(number, index, _): &mut (u64, usize, Round)| {
            peer.confirmed(*number) && applied >= *index || fault == Fault::NoReadIndex
        };
        let over: Vec<_> = self.rounds.extract_if(.., over).collect();
        over.into_iter().flat_map(|(_, _, round)| self.roll.confirm(round, state)).collect()
    }

    /// What is due: a round is begun, silent hosts are declared down, the plan is made.
    pub fn tick(
        &mut self,
        peer: &mut Peer,
        state: &State,
        at: Moment,
        now: u64,
        fault: Fault,
    ) -> Vec<Command> {
        if now < self.ticked + TICK {
            return Vec::new();
        }
        self.ticked = now;
        let round = self.roll.begin_round();
        if !round.is_empty() {
            self.rounds.push((peer.begin_round(), peer.commit, round));
        }
        let quorum = peer.has_quorum(now) || fault == Fault::GivenUpForGood;
        let mut commands =
            self.roll.tick(state, quorum, at).map(|verdict| verdict.commands).unwrap_or_default();
        if fault == Fault::GivenUpForGood {
            commands = self.give_up_again(state, commands);
        }
        let due = self
            .planned
            .is_none_or(|(basis, when, acted)| basis != state.basis || acted && now >= when + AGAIN);
        if due {
            let plan = self.plan(state, now, fault);
            self.planned = Some((state.basis, now, !plan.is_empty()));
            commands.extend(plan);
        }
        commands
    }

    fn give_up_again(&mut self, state: &State, commands: Vec<Command>) -> Vec<Command> {
        let said = |command| match command {
            Command::HostDown { host, incarnation } => Some((host, incarnation)),
            _ => None,
        };
        self.given_up.extend(commands.into_iter().filter_map(said));
        let lives = |(host, incarnation): &(_, u64)| {
            state.hosts.get(host).is_some_and(|known| known.up && known.incarnation == *incarnation)
        };
        self.given_up.retain(lives);
        let given_up = self.given_up.iter().cloned();
        given_up.map(|(host, incarnation)| Command::HostDown { host, incarnation }).collect()
    }

    fn plan(&mut self, state: &State, now: u64, fault: Fault) -> Vec<Command> {
        let mut seen = state.clone();
        if fault == Fault::DrainIgnored {
            let all: Vec<_> = seen.hosts.keys().cloned().collect();
            for name in all {
                seen.hosts.get_mut(&name).unwrap().drained = false;
            }
        }
        if fault == Fault::RoomIgnored {
            for process in seen.spec.processes.values_mut() {
                let placement = &mut Arc::make_mut(process).placement;
                (placement.max_per_host, placement.strategy) = (None, Strategy::Pack);
            }
        }
        let mut commands = self.planner.plan(&seen, &Liveness::default(), now).commands;
        for command in &mut commands {
            if let (Fault::HalfAPlan, Command::Place { changes, .. }) = (fault, command)
                && changes.len() > 1
            {
                changes.pop();
            }
        }
        commands
    }

    /// Takes the proposal that this entry was, for its answer. One of another term was lost.
    pub fn settle(&mut self, index: usize, term: u64) -> Option<(usize, u64)> {
        let (proposed, origin, number) = self.pending.remove(&index)?;
        (proposed == term).then_some((origin, number))
    }
}
