//! What was committed, once and for all, and what the peers make of it.
//!
//! Owns the first application of each entry, after which the invariants of the replicated state are looked at. Every
//! peer applies for itself and is compared with it.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bigbrother::cluster::raft::change::Recent;
use bigbrother::cluster::raft::{Change, Outcome};
use bigbrother::state::{Command, State};

use crate::faults::Fault;
use crate::invariants::{bounded, copies, growth, inventory, laws, placement, replanning};
use crate::log::Entry;

/// Copies are compared at each so manieth entry.
const ANCHOR: usize = 8;

/// A state with more placements is looked at no more often than that, either.
const LARGE: usize = 1_000;

/// The replicated state as one peer has it.
#[derive(Clone, Default)]
pub struct Copy {
    pub state: Arc<State>,
    recent: Arc<Recent>,
    /// Entries applied.
    pub applied: usize,
}

impl Copy {
    /// As the state machine over openraft does.
    pub fn apply(&mut self, entry: &Entry, fault: Fault) -> Outcome {
        self.applied += 1;
        match entry.change.as_deref() {
            Some(Change::State(envelope)) => self.command(envelope, fault),
            Some(Change::Once { key, envelope }) => {
                if let Some(outcome) = self.recent.outcome(*key) {
                    return outcome.clone();
                }
                let outcome = self.command(envelope, fault);
                Arc::make_mut(&mut self.recent).remember(*key, outcome.clone(), self.state.now_ms);
                outcome
            }
            _ => Outcome::Nothing,
        }
    }

    fn command(&mut self, envelope: &bigbrother::state::Envelope, fault: Fault) -> Outcome {
        let before = if fault == Fault::None { None } else { Some(self.state.clone()) };
        let state = Arc::make_mut(&mut self.state);
        let outcome = state.apply(envelope);
        if let Some(before) = before {
            plant(&before, state, &envelope.command, fault);
        }
        Outcome::State(outcome)
    }
}

/// Breaks what the command has made of the state.
fn plant(before: &State, after: &mut State, command: &Command, fault: Fault) {
    match (fault, command) {
        (Fault::LostHostListed, Command::HostDown { .. }) => {
            after.directory = before.directory.clone();
            after.leaders = before.leaders.clone();
        }
        (Fault::LostHostPlaced, Command::HostDown { .. }) => {
            (after.placements, after.claims) = (before.placements.clone(), before.claims.clone());
        }
        (Fault::OldIncarnation, Command::JoinHost { host, .. }) => {
            if let (Some(was), Some(is)) = (before.hosts.get(host), after.hosts.get_mut(host)) {
                is.incarnation = was.incarnation.saturating_sub(1);
            }
        }
        (Fault::OldToken, _) => {
            for (name, leader) in &mut after.leaders {
                leader.token = before.leaders.get(name).map_or(leader.token, |was| was.token);
            }
        }
        (Fault::OldGeneration, Command::Place { .. }) => {
            let all: Vec<_> = after.placements.keys().cloned().collect();
            for id in all {
                after.placements.get_mut(&id).unwrap().generation = 1;
            }
        }
        (Fault::ListOnlyAdds, Command::Inventory { .. }) => {
            for (id, entry) in &before.directory {
                after.directory.get_or_insert_with(id.clone(), || entry.clone());
            }
        }
        (Fault::NothingForgotten, _) => {
            for (id, finished) in &before.finished {
                after.finished.entry(id.clone()).or_insert_with(|| finished.clone());
            }
        }
        (Fault::ClaimsStay, Command::Events { .. }) => {
            for (id, claim) in &before.claims {
                after.claims.get_or_insert_with(id.clone(), || claim.clone());
            }
        }
        _ => {}
    }
}

#[derive(Default)]
pub struct Chronicle {
    entries: Vec<(u64, u64)>,
    pub copy: Copy,
    outcomes: Vec<Outcome>,
    anchors: BTreeMap<usize, Arc<State>>,
    /// Who led in each term.
    leaders: BTreeMap<u64, usize>,
    hosts: usize,
}

impl Chronicle {
    pub fn new(hosts: usize) -> Chronicle {
        Chronicle { hosts, ..Chronicle::default() }
    }

    pub fn state(&self) -> &Arc<State> {
        &self.copy.state
    }

    /// A peer holds this entry for committed, the one after `at` others.
    pub fn committed(&mut self, at: usize, entry: &Entry, fault: Fault) -> Result<(), String> {
        if let Some(known) = self.entries.get(at) {
            return copies::same_entry(at, *known, (entry.term, entry.id));
        }
        self.entries.push((entry.term, entry.id));
        let before = self.copy.state.clone();
        let outcome = self.copy.apply(entry, fault);
        let after = &self.copy.state;
        if let Some(Change::State(envelope) | Change::Once { envelope, .. }) = entry.change.as_deref() {
            let accepted = matches!(outcome, Outcome::State(Ok(_)));
            if accepted {
                inventory::check(after, &envelope.command)?;
            }
            let looks = after.placements.len() < LARGE || after.index.is_multiple_of(ANCHOR as u64);
            if looks {
                growth::check(&before, after)?;
                laws::check(after)?;
            }
            bounded::check(after, self.hosts)?;
            if accepted {
                placement::check(after, &envelope.command)?;
                replanning::check(after, &envelope.command)?;
            }
        }
        self.outcomes.push(outcome);
        if self.copy.applied.is_multiple_of(ANCHOR) {
            self.anchors.insert(self.copy.applied, self.copy.state.clone());
        }
        Ok(())
    }

    pub fn outcome(&self, at: usize) -> Option<&Outcome> {
        self.outcomes.get(at)
    }

    /// What a peer has made of the entries.
    pub fn compare(&self, peer: usize, copy: &Copy) -> Result<(), String> {
        match self.anchors.get(&copy.applied) {
            Some(known) => copies::same_state(peer, copy.applied, known, &copy.state),
            None => Ok(()),
        }
    }

    pub fn leads(&mut self, term: u64, peer: usize) -> Result<(), String> {
        crate::invariants::terms::check(term, *self.leaders.entry(term).or_insert(peer), peer)
    }

    /// Names this history among all.
    pub fn digest(&self, mut digest: u64) -> u64 {
        for (term, id) in &self.entries {
            digest = (digest ^ term ^ id.rotate_left(17)).wrapping_mul(0x0100_0000_01b3);
        }
        digest
    }
}

/// A change that is applied as often as it is proposed.
pub fn plain(stamp_ms: u64, command: Command) -> Rc<Change> {
    Rc::new(Change::State(Arc::new(bigbrother::state::Envelope { stamp_ms, command })))
}
