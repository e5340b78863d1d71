//! What every host carries while a plan is made, and who fits beside it.
//!
//! Owns the loads. Hosts have numbers here, in the order of their names: a plan of 50,000 instances compares
//! numbers, not names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::spec::{HostName, InstanceId, Process, Protocol};
use crate::state::{Host, State};

/// The hosts and their loads.
#[derive(Debug, Default)]
pub(super) struct Board {
    seats: Vec<Seat>,
}

/// A host and its load.
#[derive(Debug)]
pub(super) struct Seat {
    pub name: HostName,
    host: Host,
    /// How many instances it carries.
    pub all: usize,
    /// What they take of its capacity.
    used: BTreeMap<String, u128>,
    /// Who has which fixed port; more than one only where that is still to be put right.
    ports: BTreeMap<(Protocol, u16), BTreeSet<InstanceId>>,
}

/// One process's view of the board: where it may go at all, and how many of its own are where.
#[derive(Debug)]
pub(super) struct View {
    pub process: Arc<Process>,
    /// Hosts by number that are fit but for what they carry.
    pub fit: Vec<bool>,
    own: Vec<u32>,
    ports: Vec<(Protocol, u16)>,
}

impl Board {
    pub(super) fn new(state: &State) -> Self {
        let seat = |(name, host): (&HostName, &Host)| Seat {
            name: name.clone(),
            host: host.clone(),
            all: 0,
            used: BTreeMap::new(),
            ports: BTreeMap::new(),
        };
        Board { seats: state.hosts.iter().map(seat).collect() }
    }

    pub(super) fn seats(&self) -> &[Seat] {
        &self.seats
    }

    /// The number of a host.
    pub(super) fn number(&self, name: &HostName) -> Option<usize> {
        self.seats.binary_search_by(|seat| seat.name.cmp(name)).ok()
    }

    pub(super) fn view(&self, process: &Arc<Process>) -> View {
        let fit = self.seats.iter().map(|seat| seat.refuses(process).is_none()).collect();
        View {
            process: process.clone(),
            fit,
            own: vec![0; self.seats.len()],
            ports: process.fixed_ports().collect(),
        }
    }

    /// True when the host can have one more of the process.
    pub(super) fn fits(&self, view: &View, number: usize) -> bool {
        view.fit[number]
            && (view.is_simple() || self.seats[number].lacks_room(view, view.own[number]).is_none())
    }

    /// Counts an instance on a host.
    pub(super) fn note(&mut self, view: &mut View, id: &InstanceId, number: usize) {
        view.own[number] += 1;
        let seat = &mut self.seats[number];
        seat.all += 1;
        for (resource, need) in &view.process.placement.needs {
            match seat.used.get_mut(resource) {
                Some(used) => *used += u128::from(*need),
                None => drop(seat.used.insert(resource.clone(), u128::from(*need))),
            }
        }
        for port in &view.ports {
            seat.ports.entry(*port).or_default().insert(id.clone());
        }
    }

    /// Takes back what was counted.
    pub(super) fn forget(&mut self, view: &mut View, id: &InstanceId, number: usize) {
        view.own[number] -= 1;
        let seat = &mut self.seats[number];
        seat.all -= 1;
        for (resource, need) in &view.process.placement.needs {
            if let Some(used) = seat.used.get_mut(resource) {
                *used -= u128::from(*need);
            }
        }
        for port in &view.ports {
            if let Some(holders) = seat.ports.get_mut(port) {
                holders.remove(id);
                if holders.is_empty() {
                    seat.ports.remove(port);
                }
            }
        }
    }

    /// What a host says about itself is another now.
    pub(super) fn renew<'v>(
        &mut self,
        number: usize,
        host: &Host,
        views: impl Iterator<Item = &'v mut View>,
    ) {
        let seat = &mut self.seats[number];
        seat.host = host.clone();
        views.for_each(|view| view.fit[number] = seat.refuses(&view.process).is_none());
    }

    /// True when all that a host carries may stay, in whichever order it is looked at: what fits beside more
    /// fits beside less.
    pub(super) fn holds<'v>(&self, number: usize, mut views: impl Iterator<Item = &'v View>) -> bool {
        let seat = &self.seats[number];
        let room = |(resource, used): (&String, &u128)| {
            seat.host.facts.capacity.get(resource).is_none_or(|capacity| *used <= u128::from(*capacity))
        };
        let may = |view: &View| {
            let most = view.process.placement.max_per_host.unwrap_or(u32::MAX);
            view.own[number] == 0 || (view.fit[number] && view.own[number] <= most)
        };
        seat.used.iter().all(room) && seat.ports.values().all(|holders| holders.len() == 1) && views.all(may)
    }

    /// How many of the process the host has, and of all.
    pub(super) fn load(&self, view: &View, number: usize) -> (usize, usize) {
        (view.own[number] as usize, self.seats[number].all)
    }

    /// Why a host cannot have one more of the process; `None` when it can.
    pub(super) fn unfit(&self, view: &View, number: usize) -> Option<String> {
        let seat = &self.seats[number];
        seat.refuses(&view.process).or_else(|| seat.lacks_room(view, view.own[number]))
    }
}

impl View {
    /// Nothing that the host carries stands in its way.
    fn is_simple(&self) -> bool {
        let placement = &self.process.placement;
        placement.max_per_host.is_none() && placement.needs.is_empty() && self.ports.is_empty()
    }
}

impl Seat {
    /// Why the host is not for this process, whatever it carries.
    fn refuses(&self, process: &Process) -> Option<String> {
        if !self.host.up {
            return Some("is down".to_owned());
        }
        if self.host.drained {
            return Some("is drained".to_owned());
        }
        let (facts, wanted) = (&self.host.facts, &process.placement.labels);
        if let Some((key, value)) = wanted.iter().find(|(k, v)| facts.labels.get(*k) != Some(*v)) {
            return Some(format!("has no label {key} = {value:?}"));
        }
        let limits = &process.limits;
        let asked = [
            ("memory", limits.memory.is_some()),
            ("cpu", limits.cpu_milli.is_some()),
            ("pids", limits.pids.is_some()),
        ];
        let cannot = |(name, asked): &&(&str, bool)| *asked && !facts.enforces.iter().any(|e| e == name);
        match asked.iter().find(cannot) {
            Some((name, _)) if limits.required => Some(format!("cannot enforce limits.{name}")),
            _ => None,
        }
    }

    fn lacks_room(&self, view: &View, own: u32) -> Option<String> {
        let placement = &view.process.placement;
        if let Some(max) = placement.max_per_host.filter(|max| own >= *max) {
            return Some(format!("has max_per_host = {max} already"));
        }
        for (resource, need) in placement.needs.iter().filter(|(_, need)| **need > 0) {
            let Some(capacity) = self.host.facts.capacity.get(resource) else { continue };
            let used = self.used.get(resource).copied().unwrap_or(0);
            if used + u128::from(*need) > u128::from(*capacity) {
                return Some(format!("has {used} of {capacity} {resource} in use, and it needs {need}"));
            }
        }
        let holder = view.ports.iter().find_map(|port| self.ports.get(port)?.first());
        holder.map(|id| format!("has its fixed port in use by {id}"))
    }
}
