//! The plan: where every instance belongs, from the replicated state alone.
//!
//! Owns the placing of instances on hosts and the pace of rolling updates. Pure, deterministic and
//! level-triggered: it looks at what is, never at what happened, and planning its own result gives
//! nothing. Called by the primary's planner task whenever [`State::basis`] changes. The files: `scale` says
//! which instances there are, `board` what hosts carry, `placement` chooses among them, `rollout` paces
//! updates, `ledger` remembers for the next plan, [`laws`] states what a plan that was carried out must have reached, [`liveness`] declares hosts
//! down, which is no part of the plan but comes before it.

use std::collections::BTreeMap;

use crate::spec::fingerprint::SpecHash;
use crate::spec::{HostName, InstanceId, InstanceKey, ProcessName};
use crate::state::{Command, PlaceChange, Placement, State, of_process};

mod board;
pub mod laws;
mod ledger;
pub mod liveness;
mod placement;
mod rollout;
mod scale;

use board::{Board, View};
use ledger::Ledger;
use placement::Choice;
use scale::Wanted;

pub use scale::instances;

/// What a plan looks at besides the state: soft facts, which may be old or missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Liveness {
    /// The players of runs that tell of them.
    pub players: BTreeMap<InstanceId, u32>,
}

/// What the planner proposes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Commands for the state, in order.
    pub commands: Vec<Command>,
    /// Instances that fit nowhere, and why.
    pub unplaced: BTreeMap<InstanceId, String>,
    /// Updates wait for players to leave or a deadline to pass: plan again soon, although the state is the same.
    pub waits: bool,
}

/// Plans the whole desired set; `now_ms` is milliseconds since 1970.
pub fn plan(state: &State, liveness: &Liveness, now_ms: u64) -> Plan {
    let mut plan = Plan::default();
    let mut changes = undeclared(state);
    let mut board = Board::new(state);
    // Who can stay stays before anybody comes. Where not all can stay, the first ordinals do. What fits
    // beside more fits beside less, so the placements that come out of a plan all stay in the next.
    let mut all: Vec<Work<'_>> = Vec::new();
    for (name, process) in &state.spec.processes {
        let Some(hash) = state.hash_of(name) else { continue };
        let turn = rollout::Turn::new(state, name, process, liveness, now_ms);
        let mut work = Work { name, hash, view: board.view(process), turn, placed: Vec::new() };
        plan.waits |= work.keep(state, &mut board, &mut changes);
        all.push(work);
    }
    for mut work in all {
        work.update(state, &mut changes, &mut plan);
        let homeless = work.homeless(state);
        let mut filling = Filling { state, board: &mut board, changes: &mut changes, plan: &mut plan };
        filling.fill(&mut work.view, work.hash, homeless);
    }
    conclude(state, changes, &mut plan);
    plan
}

/// Plans again and again. It remembers what hosts carry, so that a plan after a small change looks at the
/// change; what it plans is what [`plan`] plans.
#[derive(Debug, Default)]
pub struct Planner {
    ledger: Ledger,
}

impl Planner {
    /// Plans the whole desired set; `now_ms` is milliseconds since 1970.
    pub fn plan(&mut self, state: &State, liveness: &Liveness, now_ms: u64) -> Plan {
        self.ledger.follow(state);
        match self.ledger.all_stay(state) {
            true => self.ledger.fill(state),
            false => plan(state, liveness, now_ms),
        }
    }
}

/// What is done for one process.
struct Work<'a> {
    name: &'a ProcessName,
    hash: SpecHash,
    view: View,
    turn: rollout::Turn<'a>,
    /// Wanted and placed; the number of its host while it stays there.
    placed: Vec<(&'a InstanceId, &'a Placement, Option<usize>)>,
}

/// What comes last in every plan.
fn conclude(state: &State, changes: Vec<PlaceChange>, plan: &mut Plan) {
    plan.commands.extend(upgrade(state));
    // A host that has joined waits for the word that it was thought of.
    let awaited = state.hosts.values().any(|host| host.up && !host.planned);
    if !changes.is_empty() || awaited {
        plan.commands.push(Command::Place { based_on: state.basis, changes });
    }
}

/// Placements of processes that are not declared any more.
fn undeclared(state: &State) -> Vec<PlaceChange> {
    let mut changes = Vec::new();
    let mut rest = state.placements.range::<InstanceId, _>(..);
    while let Some((id, _)) = rest.next() {
        let name = &id.process;
        if !state.spec.processes.contains_key(name) {
            let all = of_process(&state.placements, name);
            changes.extend(all.map(|(id, _)| PlaceChange::Remove { instance: id.clone() }));
        }
        // On to the next process.
        let last = InstanceId::on_host(name.clone(), HostName::last());
        rest = state.placements.range((std::ops::Bound::Excluded(last), std::ops::Bound::Unbounded));
    }
    changes
}

/// The cluster may use what every host knows.
fn upgrade(state: &State) -> Option<Command> {
    let to = state.hosts.values().filter(|host| host.up).map(|host| host.facts.version).min()?;
    (to > state.version).then_some(Command::Upgrade { to })
}

impl<'a> Work<'a> {
    /// Counts what stays where it is, and gives up what is not wanted. True when something waits for its players.
    fn keep(&mut self, state: &'a State, board: &mut Board, changes: &mut Vec<PlaceChange>) -> bool {
        let process = self.view.process.clone();
        let wanted = Wanted::new(state, self.name, &process);
        let mut waits = false;
        for (id, placement) in of_process(&state.placements, self.name) {
            let number = board.number(&placement.host);
            let fits =
                number.filter(|number| board.fits(&self.view, *number) && may_stay(state, id, placement));
            let is_wanted = wanted.has(id);
            if is_wanted {
                self.placed.push((id, placement, fits));
            }
            let lingers = !is_wanted && fits.is_some() && wanted.lingers(id, &self.turn);
            waits |= lingers;
            if let Some(number) = fits.filter(|_| is_wanted || lingers) {
                board.note(&mut self.view, id, number);
            } else if !is_wanted {
                changes.push(PlaceChange::Remove { instance: id.clone() });
            }
        }
        waits
    }

    /// Gives instances that stay the new spec, as fast as they may be taken down.
    fn update(&mut self, state: &State, changes: &mut Vec<PlaceChange>, plan: &mut Plan) {
        if self.placed.iter().all(|(_, placement, _)| placement.hash == self.hash) {
            return;
        }
        // One that was given up where it is will be placed again, there or elsewhere, and is down until it is ready.
        let given_up = |id: &InstanceId, held: &Placement| {
            state.failed.get(id).is_some_and(|hosts| hosts.contains(&held.host))
        };
        let staying = self.placed.iter().filter(|(id, held, seat)| seat.is_some() || given_up(id, held));
        let staying = staying.map(|(id, held, _)| (*id, *held));
        let mut budget = rollout::Budget::new(state, &self.view.process, self.hash, staying);
        for (id, placement, seat) in &self.placed {
            plan.waits |= self.turn.waits(state, id, self.hash);
            // One that another host may still run waits for the end of that run; the others go on.
            let may = seat.is_some() && state.may_put(id, &placement.host);
            if may && placement.hash != self.hash && budget.take(id, &self.turn) {
                let host = placement.host.clone();
                changes.push(PlaceChange::Put { instance: (*id).clone(), host, hash: self.hash });
            }
        }
    }

    /// What is nowhere and what does not simply stay, in order.
    fn homeless(&self, state: &State) -> Vec<InstanceId> {
        let process = &self.view.process;
        let placed = self.placed.iter().map(|(id, ..)| *id);
        let mut homeless = Wanted::new(state, self.name, process).missing(self.name, process, placed);
        let new = homeless.len();
        homeless.extend(self.placed.iter().filter(|(.., seat)| seat.is_none()).map(|(id, ..)| (*id).clone()));
        if homeless.len() > new {
            homeless.sort_unstable();
        }
        homeless
    }
}

/// The placing of what has no place.
struct Filling<'a> {
    state: &'a State,
    board: &'a mut Board,
    changes: &'a mut Vec<PlaceChange>,
    plan: &'a mut Plan,
}

impl Filling<'_> {
    /// Places these instances of one process. Gives back where.
    fn fill(
        &mut self,
        view: &mut View,
        hash: SpecHash,
        homeless: Vec<InstanceId>,
    ) -> Vec<(InstanceId, usize)> {
        let mut seated = Vec::new();
        if homeless.is_empty() {
            return seated;
        }
        let mut choice = Choice::new(self.board, view);
        for id in homeless {
            let held = self.state.placements.get(&id);
            match self.choose(&mut choice, view, &id) {
                Ok(number) => {
                    self.board.note(view, &id, number);
                    choice.placed(self.board, view, number);
                    let host = &self.board.seats()[number].name;
                    // One that was given up and has nowhere better to go is left alone.
                    let may = self.state.may_put(&id, host);
                    if !held.is_some_and(|held| held.host == *host && (held.hash == hash || !may)) {
                        let put = PlaceChange::Put { instance: id.clone(), host: host.clone(), hash };
                        self.changes.push(put);
                    }
                    seated.push((id, number));
                }
                Err(reason) => {
                    if held.is_some() {
                        self.changes.push(PlaceChange::Remove { instance: id.clone() });
                    }
                    self.plan.unplaced.insert(id, reason);
                }
            }
        }
        seated
    }

    fn choose(&self, choice: &mut Choice, view: &View, id: &InstanceId) -> Result<usize, String> {
        let number = choice.choose(self.state, self.board, view, id)?;
        let host = &self.board.seats()[number].name;
        match self.state.is_placed_on(id, host) || self.state.may_put(id, host) {
            true => Ok(number),
            false => Err(format!("may still run on another host than {host}, which has not given it up")),
        }
    }
}

/// False for an instance that is to be placed as if it were nowhere: it is named by another host, or was given
/// up where it is and may do better elsewhere.
fn may_stay(state: &State, id: &InstanceId, placement: &Placement) -> bool {
    match &id.key {
        InstanceKey::Host(own) => *own == placement.host,
        InstanceKey::Number(_) if state.failed.is_empty() => true,
        InstanceKey::Number(_) => !state.failed.get(id).is_some_and(|hosts| hosts.contains(&placement.host)),
    }
}

#[cfg(test)]
mod tests;
