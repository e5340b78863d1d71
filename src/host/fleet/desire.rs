//! What is wanted on the host, against what is there.
//!
//! Owns how much of a difference is taken in one go: thousands of instances that come or go at once are not to keep
//! the loop from all else. Called by the supervision loop, again until nothing is left.

use std::collections::{BTreeMap, BTreeSet};

use super::Host;
use crate::host::lifecycle::Happening;
use crate::host::{Action, Instance, Now, Want};
use crate::spec::InstanceId;

/// Of as many instances something else is wanted in one go.
const NEWS_AT_ONCE: usize = 2_000;

impl Host {
    /// What is wanted on this host, all of it.
    pub fn desire(&mut self, wants: BTreeMap<InstanceId, Want>, now: Now) -> Vec<Action> {
        self.desire_most(wants, &BTreeSet::new(), usize::MAX, now).0
    }

    /// The same, while of these instances it is not known whether they are wanted: they stay as they are. As much of it
    /// as is to be done in one go; true: it is to be called again.
    pub fn desire_but(
        &mut self,
        wants: BTreeMap<InstanceId, Want>,
        spared: &BTreeSet<InstanceId>,
        now: Now,
    ) -> (Vec<Action>, bool) {
        self.desire_most(wants, spared, NEWS_AT_ONCE, now)
    }

    fn desire_most(
        &mut self,
        mut wants: BTreeMap<InstanceId, Want>,
        spared: &BTreeSet<InstanceId>,
        most: usize,
        now: Now,
    ) -> (Vec<Action>, bool) {
        let (mut out, mut taken) = (Vec::new(), 0);
        let known: Vec<InstanceId> =
            self.instances.keys().filter(|id| !spared.contains(*id)).cloned().collect();
        for id in known {
            let want = wants.remove(&id);
            let news = |i: &Instance| i.want != want || want.is_none() || i.unheeded;
            let Some(instance) = self.instances.get(&id).filter(|instance| news(instance)) else { continue };
            // One that is ending already is no change: however long it takes, it leaves the others their piece.
            if instance.want != want {
                if taken == most {
                    return (out, true);
                }
                taken += 1;
            }
            self.step(&id, Happening::Wanted(want), now, &mut out);
        }
        for (id, want) in wants {
            if taken == most {
                return (out, true);
            }
            taken += 1;
            self.instances.insert(id.clone(), Instance::new(id.clone()));
            self.step(&id, Happening::Wanted(Some(want)), now, &mut out);
        }
        (out, false)
    }
}
