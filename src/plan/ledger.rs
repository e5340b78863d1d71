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
    /// Sorted by name.
    accounts: Vec<Account>,
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
    name: ProcessName,
    /// How many are wanted, where they are counted.
    count: u64,
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
        // Changes come in order: those of a process together.
        let mut at = 0;
        state.placements.changes(&seen, |id, was, is| {
            at = self.account_of(&id.process, at);
            let was = was.and_then(|was| self.board.number(&was.host));
            let number = is.and_then(|is| self.board.number(&is.host));
            if was != number {
                self.count(at, id, was, false);
                self.count(at, id, number, true);
            }
            for number in was.into_iter().chain(number) {
                touched[number] = true;
            }
            self.judge(state, at, id, is, number.is_some());
        });
        let seen = std::mem::take(&mut self.seen.launches);
        state.launches.changes(&seen, |id, _, _| {
            at = self.account_of(&id.process, at);
            let is = state.placements.get(id);
            let seated = is.is_some_and(|is| self.board.number(&is.host).is_some());
            self.judge(state, at, id, is, seated);
        });
        for number in (0..touched.len()).filter(|number| touched[*number]) {
            let views = self.accounts.iter().map(|account| &account.view);
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
            let wanted = Wanted::new(state, name, process);
            let missing = wanted.missing(name, process, placed).into_iter().collect();
            let (hash, view) = (state.hash_of(name)?, board.view(process));
            Some(Account { name: name.clone(), count: wanted.count(), hash, view, missing })
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
                let views = self.accounts.iter_mut().map(|account| &mut account.view);
                self.board.renew(number, is, views);
                touched[number] = true;
            }
        });
    }

    /// Where the account of a process is, or would be; perhaps where the last one was.
    fn account_of(&self, name: &ProcessName, last: usize) -> usize {
        match self.accounts.get(last).is_some_and(|account| account.name == *name) {
            true => last,
            false => self.accounts.binary_search_by(|account| account.name.cmp(name)).unwrap_or(usize::MAX),
        }
    }

    /// Counts a placement that comes to a host or goes.
    fn count(&mut self, at: usize, id: &InstanceId, number: Option<usize>, comes: bool) {
        let (Some(number), Some(account)) = (number, self.accounts.get_mut(at)) else { return };
        match comes {
            true => self.board.note(&mut account.view, id, number),
            false => self.board.forget(&mut account.view, id, number),
        }
    }

    /// Is an instance where it should be, and should it be anywhere?
    fn judge(
        &mut self,
        state: &State,
        at: usize,
        id: &InstanceId,
        placement: Option<&Placement>,
        seated: bool,
    ) {
        let account = self.accounts.get_mut(at);
        let wanted = account.as_ref().is_some_and(|account| {
            Wanted::of_count(state, account.count, &account.view.process.population).has(id)
        });
        let right = placement.is_none_or(|placement| {
            let own = !matches!(&id.key, InstanceKey::Host(own) if *own != placement.host);
            let new = account.as_ref().is_some_and(|account| account.hash == placement.hash);
            seated && wanted && own && new
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
        for account in self.accounts.iter_mut().filter(|account| !account.missing.is_empty()) {
            let homeless = account.missing.iter().cloned().collect();
            let (board, changes) = (&mut self.board, &mut changes);
            let mut filling = Filling { state, board, changes, plan: &mut plan };
            let placed = filling.fill(&mut account.view, account.hash, homeless);
            seated.push((account, placed));
        }
        // They are counted when they are placed: the plan may never be carried out.
        for (account, placed) in seated {
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
