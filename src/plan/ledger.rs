//! What one plan remembers for the next: what every host carries, who is nowhere, and whether all can stay.
//!
//! Owns the loads between two plans, kept up to date by what differs between the state that was planned last
//! and the present one. Where every placement is as it should be, a plan is only the placing of those that are
//! nowhere, and nobody else is looked at. Where one is not - a host is drained, an update is under way - the
//! whole is planned anew. Called by [`super::Planner`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::board::{Board, View};
use super::scale::Wanted;
use super::{Filling, Plan, conclude, may_stay};
use crate::spec::fingerprint::SpecHash;
use crate::spec::{HostName, InstanceId, InstanceKey, Process, ProcessName, Spec};
use crate::state::{Host, Launch, Placement, Scale, SharedMap, State, of_process};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    seen: Seen,
    board: Board,
    accounts: BTreeMap<ProcessName, Account>,
    /// Placements that are not as they should be, whatever else their host carries.
    odd: BTreeSet<InstanceId>,
    /// Hosts by number that carry what may not all stay.
    crowded: BTreeSet<usize>,
}

/// The parts of the state that was planned last on which the loads depend.
#[derive(Debug, Default)]
struct Seen {
    spec: Spec,
    epochs: BTreeMap<ProcessName, u64>,
    scales: BTreeMap<ProcessName, Scale>,
    hosts: SharedMap<HostName, Host>,
    placements: SharedMap<InstanceId, Placement>,
    launches: SharedMap<InstanceId, Launch>,
}

/// What is remembered of one process.
#[derive(Debug)]
struct Account {
    hash: SpecHash,
    view: View,
    /// Wanted and placed nowhere.
    missing: BTreeSet<InstanceId>,
}

impl Ledger {
    /// Brings what is remembered up to date.
    pub(super) fn follow(&mut self, state: &State) {
        if !self.seen.is_ground_of(state) {
            self.begin(state);
        }
        let mut touched = vec![false; self.board.seats().len()];
        self.renew_hosts(state, &mut touched);
        let seen = std::mem::take(&mut self.seen.placements);
        state.placements.changes(&seen, |id, was, is| {
            for (placement, comes) in was.map(|was| (was, false)).into_iter().chain(is.map(|is| (is, true))) {
                if let Some(number) = self.count(id, placement, comes) {
                    touched[number] = true;
                }
            }
            self.judge(state, id, is);
        });
        let seen = std::mem::take(&mut self.seen.launches);
        state.launches.changes(&seen, |id, _, _| self.judge(state, id, state.placements.get(id)));
        for number in (0..touched.len()).filter(|number| touched[*number]) {
            let views = self.accounts.values().map(|account| &account.view);
            match self.board.holds(number, views) {
                true => self.crowded.remove(&number),
                false => self.crowded.insert(number),
            };
        }
        self.seen = Seen::of(state);
    }

    /// Knows the processes and hosts, and no placement.
    fn begin(&mut self, state: &State) {
        let board = Board::new(state);
        let account = |(name, process): (&ProcessName, &Arc<Process>)| {
            let placed = of_process(&state.placements, name).map(|(id, _)| id);
            let missing = Wanted::new(state, name, process).missing(name, process, placed);
            let missing = missing.into_iter().collect();
            Some((name.clone(), Account { hash: state.hash_of(name)?, view: board.view(process), missing }))
        };
        let accounts = state.spec.processes.iter().filter_map(account).collect();
        let seen = Seen { hosts: state.hosts.clone(), launches: state.launches.clone(), ..Seen::default() };
        *self = Ledger { seen, board, accounts, odd: BTreeSet::new(), crowded: BTreeSet::new() };
    }

    fn renew_hosts(&mut self, state: &State, touched: &mut [bool]) {
        let seen = std::mem::take(&mut self.seen.hosts);
        state.hosts.changes(&seen, |name, was, is| {
            let (Some(was), Some(is), Some(number)) = (was, is, self.board.number(name)) else { return };
            // The count of its events says nothing of what it may carry.
            if (was.up, was.drained, &was.facts) != (is.up, is.drained, &is.facts) {
                let views = self.accounts.values_mut().map(|account| &mut account.view);
                self.board.renew(number, is, views);
                touched[number] = true;
            }
        });
    }

    /// Counts a placement that comes or goes. Gives the number of its host.
    fn count(&mut self, id: &InstanceId, placement: &Placement, comes: bool) -> Option<usize> {
        let number = self.board.number(&placement.host)?;
        let view = &mut self.accounts.get_mut(&id.process)?.view;
        match comes {
            true => self.board.note(view, id, number),
            false => self.board.forget(view, id, number),
        }
        Some(number)
    }

    /// Is an instance where it should be, and should it be anywhere?
    fn judge(&mut self, state: &State, id: &InstanceId, placement: Option<&Placement>) {
        let account = self.accounts.get_mut(&id.process);
        let wanted = account
            .as_ref()
            .is_some_and(|account| Wanted::new(state, &id.process, &account.view.process).has(id));
        let right = placement.is_none_or(|placement| {
            let own = !matches!(&id.key, InstanceKey::Host(own) if *own != placement.host);
            let new = account.as_ref().is_some_and(|account| account.hash == placement.hash);
            wanted && own && new && self.board.number(&placement.host).is_some()
        });
        match right {
            true => self.odd.remove(id),
            false => self.odd.insert(id.clone()),
        };
        if let Some(account) = account {
            match wanted && placement.is_none() {
                true => account.missing.insert(id.clone()),
                false => account.missing.remove(id),
            };
        }
    }

    /// True when nothing that is placed is to move, to change or to go.
    pub(super) fn all_stay(&self, state: &State) -> bool {
        let stays =
            |id: &InstanceId| state.placements.get(id).is_none_or(|placement| may_stay(state, id, placement));
        self.odd.is_empty() && self.crowded.is_empty() && state.failed.keys().all(stays)
    }

    /// The plan where [`Ledger::all_stay`].
    pub(super) fn fill(&mut self, state: &State) -> Plan {
        let (mut plan, mut changes) = (Plan::default(), Vec::new());
        let mut seated = Vec::new();
        for (name, account) in self.accounts.iter_mut().filter(|(_, account)| !account.missing.is_empty()) {
            let homeless = account.missing.iter().cloned().collect();
            let (board, changes) = (&mut self.board, &mut changes);
            let mut filling = Filling { state, board, changes, plan: &mut plan };
            seated.push((name.clone(), filling.fill(&mut account.view, account.hash, homeless)));
        }
        // They are counted when they are placed: the plan may never be carried out.
        for (name, placed) in seated {
            let Some(account) = self.accounts.get_mut(&name) else { continue };
            placed.iter().for_each(|(id, number)| self.board.forget(&mut account.view, id, *number));
        }
        conclude(state, changes, &mut plan);
        plan
    }
}

impl Seen {
    fn of(state: &State) -> Seen {
        Seen {
            spec: state.spec.clone(),
            epochs: state.epochs.clone(),
            scales: state.scales.clone(),
            hosts: state.hosts.clone(),
            placements: state.placements.clone(),
            launches: state.launches.clone(),
        }
    }

    /// False when other instances are wanted, or other hosts are there: then little of what is known counts.
    fn is_ground_of(&self, state: &State) -> bool {
        let same = self.spec == state.spec && self.epochs == state.epochs && self.scales == state.scales;
        same && self.hosts.keys().eq(state.hosts.keys())
    }
}

#[cfg(test)]
mod tests;
