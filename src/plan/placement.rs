//! Which host an instance goes to: the best of those that fit.
//!
//! Spread: few of this process, then few of all. Pack: many of all. Before that, the host on which it lives
//! or may live already; after that, hosts on which it was given up.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use super::board::{Board, View};
use crate::spec::{HostName, InstanceId, InstanceKey, Strategy};
use crate::state::State;

/// How many hosts are named where none fits.
const NAMED: usize = 8;

/// Lower is better.
type Rank = (usize, usize);

/// The hosts that may fit a process, best first. A host's rank changes when something is placed on it; it is
/// then entered again, and entries with a rank that is not the present one are passed over.
pub(super) struct Choice {
    best: BinaryHeap<Reverse<(Rank, usize)>>,
    /// Why nothing fits; what is placed later takes more room and frees none.
    exhausted: Option<String>,
}

impl Choice {
    pub(super) fn new(board: &Board, view: &View) -> Self {
        let fit = view.fit.iter().enumerate().filter(|(_, fit)| **fit);
        let ranked = fit.map(|(number, _)| Reverse((rank(board, view, number), number)));
        Choice { best: ranked.collect::<Vec<_>>().into(), exhausted: None }
    }

    /// The best host for an instance, or why there is none. The caller notes it on the board and tells
    /// [`Choice::placed`].
    pub(super) fn choose(
        &mut self,
        state: &State,
        board: &Board,
        view: &View,
        instance: &InstanceId,
    ) -> Result<usize, String> {
        if let InstanceKey::Host(own) = &instance.key {
            return on_its_host(board, view, own);
        }
        let failed = state.failed.get(instance);
        let shunned = |number: usize| failed.is_some_and(|hosts| hosts.contains(&board.seats()[number].name));
        if let Some(home) = home(state, instance).and_then(|name| board.number(name))
            && board.fits(view, home)
            && (!shunned(home) || elsewhere(board, view, failed).is_none())
        {
            return Ok(home);
        }
        if let Some(number) = failed.and_then(|_| elsewhere(board, view, failed)) {
            return Ok(number);
        }
        self.pop(board, view)
    }

    /// Something was placed on the host.
    pub(super) fn placed(&mut self, board: &Board, view: &View, number: usize) {
        if view.fit[number] {
            self.best.push(Reverse((rank(board, view, number), number)));
        }
    }

    fn pop(&mut self, board: &Board, view: &View) -> Result<usize, String> {
        while let Some(Reverse((at, number))) = self.best.peek().copied() {
            if at == rank(board, view, number) && board.fits(view, number) {
                return Ok(number);
            }
            self.best.pop();
        }
        Err(self.exhausted.get_or_insert_with(|| why_nowhere(board, view)).clone())
    }
}

fn rank(board: &Board, view: &View, number: usize) -> Rank {
    let (own, all) = board.load(view, number);
    match view.process.placement.strategy {
        Strategy::Spread => (own, all),
        Strategy::Pack => (usize::MAX - all, 0),
    }
}

/// Where an instance is placed, lives, or may live.
fn home<'a>(state: &'a State, instance: &InstanceId) -> Option<&'a HostName> {
    let placed = state.placements.get(instance).map(|placement| &placement.host);
    let claimed = state.claims.get(instance).map(|claim| &claim.host);
    placed.or(claimed).or_else(|| state.directory.get(instance).map(|entry| &entry.host))
}

/// The best host on which the instance was not given up.
pub(super) fn elsewhere(board: &Board, view: &View, failed: Option<&BTreeSet<HostName>>) -> Option<usize> {
    let fresh = |number: &usize| failed.is_none_or(|hosts| !hosts.contains(&board.seats()[*number].name));
    let fit = (0..board.seats().len()).filter(|number| board.fits(view, *number)).filter(fresh);
    fit.min_by_key(|number| rank(board, view, *number))
}

fn on_its_host(board: &Board, view: &View, own: &HostName) -> Result<usize, String> {
    let number = board.number(own).ok_or_else(|| format!("{own}: has not joined"))?;
    match board.unfit(view, number) {
        None => Ok(number),
        Some(reason) => Err(format!("fits on no host ({own}: {reason})")),
    }
}

fn why_nowhere(board: &Board, view: &View) -> String {
    let hosts = board.seats().len();
    if hosts == 0 {
        return "no host has joined".to_owned();
    }
    let reason =
        |number| board.unfit(view, number).map(|why| format!("{}: {why}", board.seats()[number].name));
    let mut named: Vec<String> = (0..hosts).filter_map(reason).take(NAMED).collect();
    if hosts > named.len() {
        named.push(format!("and {} more", hosts - named.len()));
    }
    format!("fits on no host ({})", named.join("; "))
}
