//! What becomes of the cluster as a whole, for people: hosts that are lost and come back, primaries, and why an instance
//! moved here.
//!
//! Owns what was seen last of the replicated state, and tells what is other now: a pure function of the two, so what
//! happened between two looks may be told as one. Each host tells it for itself; what several tell bears the same number.
//! It never decides. Called by the chronicle.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::spec::{HostName, InstanceId};
use crate::state::{Host, Placement, SharedMap, State};

/// What has become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiding {
    /// The host that it is about, or that the instance is on now.
    pub host: HostName,
    /// Which instance; `None`: it is about the host.
    pub instance: Option<InstanceId>,
    /// `host-down`, `host-up`, `primary` or `moved`.
    pub kind: &'static str,
    /// Why an instance moved.
    pub cause: Option<&'static str>,
    /// In words.
    pub detail: String,
    /// The same on every host that tells it; `None`: only this one does.
    pub number: Option<u64>,
}

/// See the module.
pub struct Annals {
    own: HostName,
    hosts: SharedMap<HostName, Host>,
    placements: SharedMap<InstanceId, Placement>,
    /// Those that are wanted and belong nowhere: where they were, and why no more.
    astray: BTreeMap<InstanceId, (HostName, &'static str)>,
    primary: Option<HostName>,
    term: u64,
}

impl Annals {
    /// They begin with what is there now.
    pub fn new(own: HostName, state: &State) -> Self {
        Annals {
            own,
            hosts: state.hosts.clone(),
            placements: state.placements.clone(),
            astray: BTreeMap::new(),
            primary: None,
            term: 0,
        }
    }

    /// What is other than before.
    pub fn look(&mut self, state: &State) -> Vec<Tiding> {
        let mut told = Vec::new();
        state.hosts.changes(&self.hosts, |name, before, now| {
            if let Some(before) = before {
                told.extend(lost(name, before, now, state));
                told.extend(back(name, before, now, state));
            }
        });
        self.follow_moves(state, &mut told);
        (self.hosts, self.placements) = (state.hosts.clone(), state.placements.clone());
        told
    }

    /// A primary of a later term than the last one.
    pub fn stands(&mut self, primary: Option<&HostName>, term: u64) -> Option<Tiding> {
        let primary = primary.filter(|_| term > self.term)?;
        self.term = term;
        let before = self.primary.replace(primary.clone());
        let instead = before.filter(|before| before != primary);
        let instead = instead.map(|before| format!("in place of {before}, ")).unwrap_or_default();
        Some(Tiding {
            host: primary.clone(),
            instance: None,
            kind: "primary",
            cause: None,
            detail: format!("{instead}term {term}"),
            number: Some(term),
        })
    }

    /// Where the instances went, and, of those that came here, why.
    fn follow_moves(&mut self, state: &State, told: &mut Vec<Tiding>) {
        let (own, hosts, astray) = (&self.own, &self.hosts, &mut self.astray);
        state.placements.changes(&self.placements, |id, before, now| {
            let left = before.filter(|before| now.is_none_or(|now| now.host != before.host));
            let left = left.map(|left| (left.host.clone(), why(id, &left.host, hosts, state)));
            let left = left.or_else(|| astray.remove(id));
            match (left, now) {
                (Some((from, why)), Some(now)) if now.host == *own && from != *own => {
                    told.push(moved(id, &from, why, now));
                }
                (Some(left), None) if state.wants(id) => drop(astray.insert(id.clone(), left)),
                _ => {}
            }
        });
        astray.retain(|id, _| state.wants(id));
    }
}

/// It was declared down since.
fn lost(name: &HostName, before: &Host, now: Option<&Host>, state: &State) -> Option<Tiding> {
    now.filter(|now| before.up && now.down_ms != before.down_ms)?;
    let silent = humantime::format_duration(state.settings.host_timeout);
    Some(Tiding {
        host: name.clone(),
        instance: None,
        kind: "host-down",
        cause: None,
        detail: format!("not heard for {silent} (host_timeout); what may run elsewhere goes there"),
        number: Some(before.incarnation),
    })
}

/// It was down and has joined again.
fn back(name: &HostName, before: &Host, now: Option<&Host>, state: &State) -> Option<Tiding> {
    let now = now.filter(|now| now.up && (!before.up || now.down_ms != before.down_ms))?;
    let away = Duration::from_secs(state.now_ms.saturating_sub(now.down_ms) / 1_000);
    Some(Tiding {
        host: name.clone(),
        instance: None,
        kind: "host-up",
        cause: None,
        detail: format!("{} after it was declared down", humantime::format_duration(away)),
        number: Some(now.incarnation),
    })
}

/// Why an instance belongs to that host no more.
fn why(id: &InstanceId, from: &HostName, before: &SharedMap<HostName, Host>, state: &State) -> &'static str {
    let then = before.get(from).map(|host| host.down_ms);
    match state.hosts.get(from) {
        Some(now) if now.up && then == Some(now.down_ms) => {}
        _ => return "host-down",
    }
    if state.failed.get(id).is_some_and(|hosts| hosts.contains(from)) {
        return "failed";
    }
    if state.hosts.get(from).is_some_and(|host| host.drained) { "drain" } else { "placement" }
}

fn moved(id: &InstanceId, from: &HostName, why: &'static str, now: &Placement) -> Tiding {
    let reason = match why {
        "host-down" => format!("{from} was lost"),
        "failed" => format!("it was given up on {from}"),
        "drain" => format!("{from} is drained"),
        _ => format!("it does not fit on {from} any more"),
    };
    Tiding {
        host: now.host.clone(),
        instance: Some(id.clone()),
        kind: "moved",
        cause: Some(why),
        detail: format!("from {from} to {}: {reason}", now.host),
        number: None,
    }
}

#[cfg(test)]
mod tests;
