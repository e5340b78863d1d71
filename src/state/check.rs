//! What must always be true of the replicated state.
//!
//! Owns the invariants; each is one function that lists what breaks it. Pure. Called after every step of the
//! simulation and by property tests; never by the program itself, which would have nothing to do about it.
//! What holds only once a plan has been carried out is in [`crate::plan::laws`].

use std::fmt;

use super::State;
use super::access::{FORGET_TOKEN_MS, MAX_TOKENS};
use super::hosts::{FORGET_EVERY_MS, FORGET_FINISHED_MS, FORGET_HOST_MS};
use crate::spec::{HostName, ProcessName};

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which invariant.
    pub law: &'static str,
    /// What breaks it.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.law, self.what)
    }
}

type Law = (&'static str, fn(&State, &mut Vec<String>));
type Growth = (&'static str, fn(&State, &State, &mut Vec<String>));

const LAWS: &[Law] = &[
    ("placements are on hosts that are up", placed_on_hosts_that_are_up),
    ("directory entries belong to hosts that are up", listed_on_hosts_that_are_up),
    ("a superseded run stands beside another host's", superseded_beside),
    ("a placed exclusive instance is claimed by its host and no other", claimed_by_its_host),
    ("what rests is placed, and no run of it lives there", placed_where_it_rests),
    ("an instance is launched or done", launched_or_done),
    ("an epoch is that of a declared process", epochs_are_of_processes),
    ("a leader is ready, and a process with a ready run has one", led_by_a_ready_run),
    ("no token is from the future", tokens_are_of_the_past),
    ("what is remembered is bounded", bounded),
];

const GROWTHS: &[Growth] = &[
    ("index, basis, revision and incarnations only grow", counters_grow),
    ("the incarnation of a host only grows", incarnations_grow),
    ("the generation of a placement only grows", generations_grow),
    ("the token of a process only grows", tokens_grow),
    ("the epoch of a declared process only grows", epochs_grow),
];

/// Every invariant that the state breaks.
pub fn violations(state: &State) -> Vec<Violation> {
    broken(LAWS, |find, out| find(state, out))
}

/// What shrank from one state to a later one and must not.
pub fn shrunk(before: &State, after: &State) -> Vec<Violation> {
    broken(GROWTHS, |find, out| find(before, after, out))
}

/// What these laws find, each with the law's name.
pub(crate) fn broken<F>(laws: &[(&'static str, F)], look: impl Fn(&F, &mut Vec<String>)) -> Vec<Violation> {
    let found = |(law, find): &(&'static str, F)| {
        let mut found = Vec::new();
        look(find, &mut found);
        found.into_iter().map(|what| Violation { law, what }).collect::<Vec<_>>()
    };
    laws.iter().flat_map(found).collect()
}

fn is_up(state: &State, host: &HostName) -> bool {
    state.hosts.get(host).is_some_and(|host| host.up)
}

fn placed_on_hosts_that_are_up(state: &State, out: &mut Vec<String>) {
    let lost = state.placements.iter().filter(|(_, placement)| !is_up(state, &placement.host));
    out.extend(lost.map(|(id, placement)| format!("{id} is placed on {}", placement.host)));
}

fn listed_on_hosts_that_are_up(state: &State, out: &mut Vec<String>) {
    let beside = state.superseded.iter().flat_map(|(id, runs)| runs.values().map(move |run| (id, run)));
    let lost = state.directory.iter().chain(beside).filter(|(_, entry)| !is_up(state, &entry.host));
    out.extend(lost.map(|(id, entry)| format!("{id} is listed on {}", entry.host)));
}

fn superseded_beside(state: &State, out: &mut Vec<String>) {
    for (id, runs) in &state.superseded {
        for (host, run) in runs {
            let same = state.directory.get(id).is_some_and(|entry| entry.host == *host);
            if same || run.host != *host {
                out.push(format!("{id} is listed twice on {host}"));
            }
        }
        if runs.is_empty() {
            out.push(format!("{id} has an empty list"));
        }
    }
}

fn claimed_by_its_host(state: &State, out: &mut Vec<String>) {
    for (id, placement) in state.placements.iter().filter(|(id, _)| state.is_exclusive(&id.process)) {
        match state.claims.get(id) {
            Some(claim) if claim.host == placement.host && claim.generation <= placement.generation => {}
            claim => out.push(format!("{id} is placed on {} and claimed by {claim:?}", placement.host)),
        }
    }
    let lost = state.claims.iter().filter(|(_, claim)| !is_up(state, &claim.host));
    out.extend(lost.map(|(id, claim)| format!("{id} is claimed by {}, which is not up", claim.host)));
}

fn placed_where_it_rests(state: &State, out: &mut Vec<String>) {
    for (id, rest) in &state.rests {
        let Some(placement) = state.placements.get(id) else {
            out.push(format!("{id} rests after {:?} and is placed nowhere", rest.run));
            continue;
        };
        let beside = state.superseded.get(id).is_some_and(|runs| runs.contains_key(&placement.host));
        if beside || state.directory.get(id).is_some_and(|entry| entry.host == placement.host) {
            out.push(format!("{id} rests after {:?} and is listed on {}", rest.run, placement.host));
        }
    }
}

fn launched_or_done(state: &State, out: &mut Vec<String>) {
    let both = state.finished.keys().filter(|id| state.launches.contains_key(id));
    out.extend(both.map(|id| format!("{id} is done and launched")));
}

fn epochs_are_of_processes(state: &State, out: &mut Vec<String>) {
    let odd = |(name, epoch): &(&_, &u64)| **epoch == 0 || !state.spec.processes.contains_key(*name);
    out.extend(state.epochs.iter().filter(odd).map(|(name, epoch)| format!("{name} is at epoch {epoch}")));
}

fn led_by_a_ready_run(state: &State, out: &mut Vec<String>) {
    for (name, leader) in &state.leaders {
        if leader.instance.process != *name || !state.leads_on(leader) {
            out.push(format!("{name} is led by {leader:?}"));
        }
    }
    for (id, _) in state.directory.iter().filter(|(_, entry)| entry.ready.is_some()) {
        if !state.leaders.contains_key(&id.process) {
            out.push(format!("{id} is ready and {} has no leader", id.process));
        }
    }
}

fn tokens_are_of_the_past(state: &State, out: &mut Vec<String>) {
    for (name, leader) in &state.leaders {
        if leader.token > state.index {
            out.push(format!("{name} has a token from the future, {}", leader.token));
        }
    }
}

fn bounded(state: &State, out: &mut Vec<String>) {
    let past = |at_ms: u64, most: u64| state.now_ms.saturating_sub(at_ms) >= most + FORGET_EVERY_MS;
    let done = state.finished.iter().filter(|(_, finished)| past(finished.at_ms, FORGET_FINISHED_MS));
    out.extend(done.map(|(id, _)| format!("{id} was done long ago")));
    let down = state.hosts.iter().filter(|(_, host)| !host.up && past(host.down_ms, FORGET_HOST_MS));
    out.extend(down.map(|(name, _)| format!("{name} was lost long ago")));
    let unknown = state.failed.iter().flat_map(|(id, hosts)| hosts.iter().map(move |host| (id, host)));
    let unknown = unknown.filter(|(_, host)| !state.hosts.contains_key(*host));
    out.extend(unknown.map(|(id, host)| format!("{id} failed on {host}, which is forgotten")));
    let expired = state
        .api_tokens
        .iter()
        .filter(|(_, token)| token.expires_ms.is_some_and(|expired| past(expired, FORGET_TOKEN_MS)));
    out.extend(expired.map(|(name, _)| format!("the token {name} expired long ago")));
    if state.api_tokens.len() > MAX_TOKENS {
        out.push(format!("there are {} tokens", state.api_tokens.len()));
    }
}

fn counters_grow(before: &State, after: &State, out: &mut Vec<String>) {
    let pairs = [
        ("index", before.index, after.index),
        ("now_ms", before.now_ms, after.now_ms),
        ("basis", before.basis, after.basis),
        ("revision", before.revision, after.revision),
        ("incarnations", before.incarnations, after.incarnations),
        ("version", before.version.0.into(), after.version.0.into()),
    ];
    for (name, was, is) in pairs.into_iter().filter(|(_, was, is)| is < was) {
        out.push(format!("{name} went from {was} to {is}"));
    }
    for (name, was) in &before.counters {
        let is = after.counters.get(name).copied().unwrap_or(0);
        if is < *was {
            out.push(format!("the counter of {name} went from {was} to {is}"));
        }
    }
}

fn incarnations_grow(before: &State, after: &State, out: &mut Vec<String>) {
    for (name, host) in &after.hosts {
        match before.hosts.get(name) {
            Some(was) if host.incarnation >= was.incarnation => {}
            None if host.incarnation > before.incarnations => {}
            was => out.push(format!("{name} has {} after {was:?}", host.incarnation)),
        }
    }
}

fn generations_grow(before: &State, after: &State, out: &mut Vec<String>) {
    for (id, placement) in &after.placements {
        match before.placements.get(id) {
            Some(was) if was == placement || placement.generation > was.generation => {}
            None if placement.generation > before.index => {}
            was => out.push(format!("{id} has {placement:?} after {was:?}")),
        }
    }
}

fn tokens_grow(before: &State, after: &State, out: &mut Vec<String>) {
    for (name, leader) in &after.leaders {
        match before.leaders.get(name) {
            Some(was) if was == leader || leader.token > was.token => {}
            None if leader.token > before.index => {}
            was => out.push(format!("{name} has {leader:?} after {was:?}")),
        }
    }
}

fn epochs_grow(before: &State, after: &State, out: &mut Vec<String>) {
    // One that is declared anew begins anew.
    let stays = |name: &&ProcessName| {
        before.spec.processes.contains_key(*name) && after.spec.processes.contains_key(*name)
    };
    for name in before.epochs.keys().filter(stays) {
        let (was, is) = (before.epochs[name], after.epochs.get(name).copied().unwrap_or(0));
        if is < was {
            out.push(format!("the epoch of {name} went from {was} to {is}"));
        }
    }
}

#[cfg(test)]
mod tests;
