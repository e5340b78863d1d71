//! Two copies of the state: one is out, the other follows by the same commands.
//!
//! Owns the one that is not out. Readers hold the newest state for as long as they like, so it cannot be changed;
//! to copy a large one for each change costs more than all else. When the readers of the one before have let go,
//! it catches up instead and takes its turn. Pure. Called by `follow`.

use std::sync::Arc;

use crate::state::{Change, Envelope, State};

/// See the module.
#[derive(Debug, Default)]
pub struct Twin {
    /// The state before the newest one, and what makes the newest of it.
    before: Option<(Arc<State>, Vec<Envelope>)>,
}

impl Twin {
    /// The state after these commands, and what they changed in the directory; `now` is the one that is out.
    pub fn after(&mut self, now: Arc<State>, envelopes: Vec<Envelope>) -> (Arc<State>, Vec<Change>) {
        let mut next = match self.before.take() {
            Some((mut before, lacks)) => match Arc::get_mut(&mut before) {
                Some(state) => {
                    apply(state, &lacks);
                    before
                }
                // Somebody still reads it.
                None => now.clone(),
            },
            None => now.clone(),
        };
        let state = Arc::make_mut(&mut next);
        let told = envelopes.iter().flat_map(|envelope| state.apply_and_tell(envelope).1).collect();
        self.before = Some((now, envelopes));
        (next, told)
    }

    /// The state that is out came from elsewhere.
    pub fn forget(&mut self) {
        self.before = None;
    }
}

/// The same commands in the same order; what came of one is its proposer's business.
fn apply(state: &mut State, envelopes: &[Envelope]) {
    for envelope in envelopes {
        let _ = state.apply(envelope);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Command, Target};

    fn envelopes(from: u64) -> Vec<Envelope> {
        let process = |number: u64| format!("p{number}").parse().unwrap();
        let pause = |number| Command::Pause { target: Target::Process(process(number)) };
        (from..from + 3).map(|number| Envelope { stamp_ms: number, command: pause(number) }).collect()
    }

    #[test]
    fn both_follow_and_nothing_is_copied_while_nobody_reads() {
        let (mut twin, mut now, mut plain) = (Twin::default(), Arc::new(State::default()), State::default());
        let mut held = Vec::new();
        let mut places = Vec::new();
        for round in 0..40 {
            apply(&mut plain, &envelopes(3 * round));
            now = twin.after(now, envelopes(3 * round)).0;
            assert_eq!(*now, plain, "round {round}");
            // Some are read for a while.
            if (10..20).contains(&round) && round % 3 == 0 {
                held.push(now.clone());
            }
            if round == 25 {
                held.clear();
            }
            if round >= 30 {
                places.push(Arc::as_ptr(&now));
            }
        }
        places.sort();
        places.dedup();
        assert_eq!(places.len(), 2);
    }

    #[test]
    fn what_came_from_elsewhere_is_gone_on_from() {
        let mut twin = Twin::default();
        let _ = twin.after(Arc::default(), envelopes(0));
        let mut other = State { index: 77, ..State::default() };
        twin.forget();
        let (after, _) = twin.after(Arc::new(other.clone()), envelopes(9));
        apply(&mut other, &envelopes(9));
        assert_eq!(*after, other);
    }
}
