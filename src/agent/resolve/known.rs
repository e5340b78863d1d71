//! What was looked up for the commands of this host's instances, and for how long it holds.
//!
//! Owns that, and which instance needs what. Pure: the moment is an argument. Called by the resolver.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::time::Duration;

use crate::agent::lookup::{Errand, Found};
use crate::host::Moment;
use crate::spec::InstanceId;

/// What was found is looked up again, on the side, after this long.
const FRESH: Duration = Duration::from_secs(30);
/// What could not be looked up again meanwhile (the agent stood still) is not used after this long.
const STALE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Default)]
pub(super) struct Known {
    /// By errands without a folder.
    found: BTreeMap<Errand, Kept>,
    /// Data folders that are there.
    folders: BTreeSet<OsString>,
    /// What each instance needs, by the key of its command.
    needs: BTreeMap<(InstanceId, &'static str), Errand>,
}

/// What was found, and when.
struct Kept {
    found: Found,
    at: Moment,
    /// Somebody is asking again. While no answer comes, what was found last goes on to hold.
    asked: bool,
}

impl Known {
    /// The instance's command needs this, an errand without a folder.
    pub fn need(&mut self, instance: &InstanceId, key: &'static str, errand: &Errand) {
        let need = (instance.clone(), key);
        if self.needs.get(&need) != Some(errand) {
            self.needs.insert(need, errand.clone());
        }
    }

    /// The data folder is there.
    pub fn has_folder(&self, folder: &OsStr) -> bool {
        self.folders.contains(folder)
    }

    /// What was found, as long as it holds.
    pub fn found(&self, errand: &Errand, now: Moment) -> Option<Found> {
        let kept = self.found.get(errand)?;
        (kept.asked || now.since(kept.at) < STALE).then(|| kept.found.clone())
    }

    /// Takes what was found; `None`: nothing. True: before, something else was.
    pub fn learn(&mut self, errand: &Errand, found: Option<&Found>, now: Moment) -> bool {
        let without = Errand { folder: None, ..errand.clone() };
        let before = match found {
            Some(found) => {
                self.folders.extend(errand.folder.clone());
                self.found.insert(without, Kept { found: found.clone(), at: now, asked: false })
            }
            None => self.found.remove(&without),
        };
        before.is_some_and(|before| Some(&before.found) != found)
    }

    /// What is to be looked up again by now; what nobody needs any more is forgotten.
    pub fn aged(&mut self, now: Moment) -> Vec<Errand> {
        let aged = |kept: &Kept| !kept.asked && now.since(kept.at) >= FRESH;
        if !self.found.values().any(aged) {
            return Vec::new();
        }
        let needed: BTreeSet<&Errand> = self.needs.values().collect();
        self.found.retain(|errand, _| needed.contains(errand));
        let aged = self.found.iter_mut().filter(|(_, kept)| aged(kept));
        aged.map(|(errand, kept)| {
            kept.asked = true;
            errand.clone()
        })
        .collect()
    }

    /// What was found for any instance does not hold any more.
    pub fn clear(&mut self) {
        self.found.clear();
    }

    /// Nor what was found for this one, whose data folder is this.
    pub fn distrust(&mut self, instance: &InstanceId, folder: &OsStr) {
        self.folders.remove(folder);
        for (_, errand) in self.needs.iter().filter(|((id, _), _)| id == instance) {
            self.found.remove(errand);
        }
    }

    /// The instance needs nothing any more.
    pub fn forget(&mut self, instance: &InstanceId, folder: &OsStr) {
        self.folders.remove(folder);
        self.needs.retain(|(id, _), _| id != instance);
    }
}
