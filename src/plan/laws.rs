//! What holds once a plan has been carried out.
//!
//! Owns the laws of placement, found anew from the state and not by the planner's own means. Called by
//! property tests and the simulation. What holds at any moment is in [`crate::state::check`].

use std::collections::BTreeMap;

use crate::spec::{HostName, InstanceId, ProcessName, Protocol};
use crate::state::State;
use crate::state::check::{Violation, broken};

type Law = (&'static str, fn(&State, &mut Vec<String>));

const LAWS: &[Law] = &[
    ("nothing is placed on a drained or unfit host", on_fit_hosts),
    ("no host carries more than it may", within_bounds),
    ("no two instances of a host have one fixed port", ports_differ),
];

/// Every law that a planned state breaks.
pub fn violations(state: &State) -> Vec<Violation> {
    broken(LAWS, |find, out| find(state, out))
}

fn on_fit_hosts(state: &State, out: &mut Vec<String>) {
    for (id, placement) in &state.placements {
        let (Some(host), Some(process)) =
            (state.hosts.get(&placement.host), state.spec.processes.get(&id.process))
        else {
            out.push(format!("{id} is placed on {} and one of them is not there", placement.host));
            continue;
        };
        let labels = &process.placement.labels;
        if host.drained || !labels.iter().all(|(k, v)| host.facts.labels.get(k) == Some(v)) {
            out.push(format!("{id} is placed on {}", placement.host));
        }
    }
}

fn within_bounds(state: &State, out: &mut Vec<String>) {
    let mut used: BTreeMap<(&HostName, &str), u64> = BTreeMap::new();
    let mut own: BTreeMap<(&HostName, &ProcessName), u32> = BTreeMap::new();
    for (id, placement) in &state.placements {
        let Some(process) = state.spec.processes.get(&id.process) else { continue };
        *own.entry((&placement.host, &id.process)).or_default() += 1;
        for (resource, need) in &process.placement.needs {
            *used.entry((&placement.host, resource)).or_default() += need;
        }
    }
    for ((host, resource), used) in used {
        let capacity = state.hosts.get(host).and_then(|host| host.facts.capacity.get(resource));
        if capacity.is_some_and(|capacity| used > *capacity) {
            out.push(format!("{used} {resource} of {capacity:?} on {host}"));
        }
    }
    for ((host, name), count) in own {
        let most = state.spec.processes.get(name).and_then(|process| process.placement.max_per_host);
        if most.is_some_and(|most| count > most) {
            out.push(format!("{count} of {name} on {host}, at most {most:?}"));
        }
    }
}

fn ports_differ(state: &State, out: &mut Vec<String>) {
    let mut holders: BTreeMap<(&HostName, Protocol, u16), &InstanceId> = BTreeMap::new();
    for (id, placement) in &state.placements {
        let Some(process) = state.spec.processes.get(&id.process) else { continue };
        for (protocol, port) in process.fixed_ports() {
            if let Some(other) = holders.insert((&placement.host, protocol, port), id) {
                out.push(format!("{other} and {id} share {port}/{protocol} of {}", placement.host));
            }
        }
    }
}
