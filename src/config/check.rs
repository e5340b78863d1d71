//! What processes say about each other: start order, launches, fixed ports; and the size of a spawn.
//!
//! Owns the rules that need more than one key or process. Only reached when the file's syntax is sound: what
//! is missing after a syntax error would be a fault of its own. Called by `parse`.

use std::collections::BTreeSet;

use super::ClusterSettings;
use super::fault::suggestion;
use super::section::{Item, Section};
use super::template::{self, Surroundings};
use crate::keeper::protocol::MAX_PACKET;
use crate::spec::{Population, Process, ProcessName, Spec};

/// What the keeper's message holds beside command and environment, and what placeholders may grow by.
const RESERVED: usize = 16 * 1024;

pub(super) fn check(processes: &Section<'_>, spec: &Spec, around: &Surroundings<'_>) {
    for (name, process) in &spec.processes {
        let section = processes.again(name.as_str());
        if !section.has("command") {
            section.fault(
                "command",
                format!("process {name} has no `command`"),
                Some("such as command = [\"/opt/game/zone\"]"),
            );
        }
        template::check(&section, process, around);
        check_names(&section, spec);
        check_size(&section, process);
        check_own_ports(&section, name, process, around.cluster);
    }
    check_cycles(processes, spec);
    check_shared_ports(processes, spec, around.cluster);
}

/// The items of a list of names that name something.
fn named<'a>(section: &Section<'a>, key: &str) -> Vec<(Item<'a>, ProcessName)> {
    let items = section.item(key).filter(|item| item.value.is_array()).and_then(|item| item.list(""));
    let name = |item: Item<'a>| item.as_str()?.parse().ok().map(|name| (item, name));
    items.into_iter().flatten().filter_map(name).collect()
}

fn check_names(section: &Section<'_>, spec: &Spec) {
    for key in ["after", "launch"] {
        for (item, name) in named(section, key) {
            match spec.processes.get(&name) {
                None => {
                    let help = suggestion(name.as_str(), spec.processes.keys().map(ProcessName::as_str));
                    item.refuse::<()>(format!("there is no process `{name}`"), help.as_deref());
                }
                Some(process)
                    if key == "launch" && !matches!(process.population, Population::OnDemand { .. }) =>
                {
                    item.refuse::<()>(
                        format!("`{name}` is not on_demand: its instances are not launched"),
                        Some(&format!("give [process.{name}] on_demand = {{ max = 200 }}")),
                    );
                }
                Some(_) => {}
            }
        }
    }
}

/// Every circle of `after` once, at the entry that closes it.
fn check_cycles(processes: &Section<'_>, spec: &Spec) {
    let mut done = BTreeSet::new();
    for start in spec.processes.keys() {
        // Depth first with a stack of its own: a long chain must not end the program.
        let mut path: Vec<(&ProcessName, usize)> = vec![(start, 0)];
        while let Some((name, next)) = path.pop() {
            let waits_for = spec.processes.get(name).and_then(|process| process.after.get(next));
            let Some(target) = waits_for.filter(|_| !done.contains(name)) else {
                done.insert(name);
                continue;
            };
            path.push((name, next + 1));
            let Some(begin) = path.iter().position(|(name, _)| *name == target) else {
                path.push((target, 0));
                continue;
            };
            let circle: Vec<&str> =
                path[begin..].iter().map(|(name, _)| name.as_str()).chain([target.as_str()]).collect();
            let entries = named(&processes.again(name.as_str()), "after");
            if let Some((item, _)) = entries.iter().find(|(_, name)| name == target) {
                item.refuse::<()>(
                    format!("`after` goes in a circle: {}", circle.join(" → ")),
                    Some("none of them could ever start"),
                );
            }
        }
    }
}

fn check_size(section: &Section<'_>, process: &Process) {
    // bincode writes a length of 8 bytes before each text.
    let args: usize = process.command.iter().map(|text| text.len() + 8).sum();
    let env: usize = process.env.iter().map(|(key, value)| key.len() + value.len() + 9).sum();
    let most = MAX_PACKET - RESERVED;
    if args + env > most {
        let key = if args > env { "command" } else { "env" };
        section.fault(
            key,
            format!("command and environment have {} bytes, at most {most} are possible", args + env),
            Some("put long texts into a file and name it"),
        );
    }
}

/// Whether two instances of a process may be on one host.
fn crowded(process: &Process) -> bool {
    match process.population {
        Population::Count(count) => count > 1,
        Population::PerHost => false,
        Population::OnDemand { max } => max > 1,
    }
}

fn check_own_ports(section: &Section<'_>, name: &ProcessName, process: &Process, cluster: &ClusterSettings) {
    let ports = section.again("ports");
    let mut seen = BTreeSet::new();
    for (port, request) in &process.ports {
        let Some(number) = request.fixed else { continue };
        if !seen.insert((number, request.protocol)) {
            ports.fault(port, format!("`{name}` has port {number}/{} twice", request.protocol), None);
        }
        // With peers the planner spreads the instances over the hosts.
        if cluster.peers.is_empty() && crowded(process) {
            ports.fault(
                port,
                format!(
                    "several instances of `{name}` cannot share port {number}/{} of this host",
                    request.protocol
                ),
                Some(&format!("write \"{}\" for a free port each", request.protocol)),
            );
        }
    }
}

fn check_shared_ports(processes: &Section<'_>, spec: &Spec, cluster: &ClusterSettings) {
    let all: Vec<(&ProcessName, &Process)> =
        spec.processes.iter().map(|(name, process)| (name, &**process)).collect();
    for (at, (name, process)) in all.iter().enumerate() {
        for (port, request) in process.ports.iter().filter(|(_, request)| request.fixed.is_some()) {
            let rival = all[..at].iter().find(|(_, other)| {
                must_meet(process, other, cluster) && other.ports.values().any(|theirs| theirs == request)
            });
            if let Some((rival, _)) = rival {
                let number = request.fixed.unwrap_or_default();
                processes.again(name.as_str()).again("ports").fault(
                    port,
                    format!(
                        "`{name}` and `{rival}` both want port {number}/{} of one host",
                        request.protocol
                    ),
                    Some("give one of them another number, or \"udp\" or \"tcp\" for a free one"),
                );
            }
        }
    }
}

/// Whether some host gets instances of both, whatever the planner does.
fn must_meet(one: &Process, other: &Process, cluster: &ClusterSettings) -> bool {
    let empty = |process: &Process| process.population == Population::Count(0);
    let mut labels = one.placement.labels.iter();
    let apart =
        labels.any(|(key, value)| other.placement.labels.get(key).is_some_and(|theirs| theirs != value));
    let everywhere = |process: &Process| process.population == Population::PerHost;
    let always = cluster.peers.is_empty() || (everywhere(one) && everywhere(other));
    always && !apart && !empty(one) && !empty(other)
}
