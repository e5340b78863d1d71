//! What a command changed in the directory, for those who watch it.
//!
//! Owns the notion of a change: an instance's entry is another one or gone, or another run speaks for a process.
//! Every host that applies the same commands tells the same changes under the same numbers. Pure. Called by
//! whoever applies commands, in place of [`State::apply`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Command, Entry, Envelope, Leader, PlaceChange, Rejected, Response, State, of_process};
use crate::spec::{InstanceId, Process, ProcessName, Spec};

/// One change of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The state index of the command that made it.
    pub index: u64,
    /// Its place among those of the command.
    pub offset: u32,
    /// What.
    pub what: Changed,
}

/// What is other than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// The instance's run, or what it is shown with; `None`: none lives.
    Entry(InstanceId, Option<Entry>),
    /// Who speaks for the process; `None`: nobody.
    Leader(ProcessName, Option<Leader>),
}

impl State {
    /// [`State::apply`], and what came of it for the directory, in order.
    pub fn apply_and_tell(&mut self, envelope: &Envelope) -> (Result<Response, Rejected>, Vec<Change>) {
        let touched = self.touched(&envelope.command);
        let spec = matches!(envelope.command, Command::ApplySpec { .. }).then(|| self.spec.clone());
        let entries: Vec<(InstanceId, Option<Entry>)> = touched
            .into_iter()
            .map(|id| {
                let entry = self.directory.get(&id).cloned();
                (id, entry)
            })
            .collect();
        let processes: BTreeSet<&ProcessName> = entries.iter().map(|(id, _)| &id.process).collect();
        let leaders: Vec<(ProcessName, Option<Leader>)> =
            processes.into_iter().map(|name| (name.clone(), self.leaders.get(name).cloned())).collect();
        let result = self.apply(envelope);
        let mut told = Vec::new();
        for (id, before) in entries {
            let now = self.directory.get(&id);
            if before.as_ref() != now {
                told.push(Changed::Entry(id, now.cloned()));
            }
        }
        for (name, before) in leaders {
            let now = self.leaders.get(&name);
            if before.as_ref() != now {
                told.push(Changed::Leader(name, now.cloned()));
            }
        }
        told.extend(spec.iter().flat_map(|spec| self.relabelled(spec)));
        let numbered = (0..).zip(told);
        (result, numbered.map(|(offset, what)| Change { index: self.index, offset, what }).collect())
    }

    /// An entry is shown with its process's labels: those that had others by the spec before.
    fn relabelled(&self, before: &Spec) -> Vec<Changed> {
        let (before, now) = (&before.processes, &self.spec.processes);
        let labels = |processes: &BTreeMap<ProcessName, Arc<Process>>, name| {
            processes.get(name).map(|p| p.labels.clone())
        };
        let names: BTreeSet<&ProcessName> = before.keys().chain(now.keys()).collect();
        let other = names.into_iter().filter(move |name| labels(before, *name) != labels(now, *name));
        let entries = other.flat_map(|name| of_process(&self.directory, name));
        entries.map(|(id, entry)| Changed::Entry(id.clone(), Some(entry.clone()))).collect()
    }

    /// The instances whose entries, and the processes of which the leaders, the command may change.
    fn touched(&self, command: &Command) -> BTreeSet<InstanceId> {
        match command {
            Command::Events { events, .. } => events.iter().map(|event| event.instance.clone()).collect(),
            Command::Place { changes, .. } => changes
                .iter()
                .map(|change| match change {
                    PlaceChange::Put { instance, .. } | PlaceChange::Remove { instance } => instance.clone(),
                })
                .collect(),
            Command::Inventory { host, runs, .. } => {
                let listed = self.directory.iter().filter(|(_, entry)| entry.host == *host);
                let beside = self.superseded.iter().filter(|(_, beside)| beside.contains_key(host));
                let known = listed.map(|(id, _)| id).chain(beside.map(|(id, _)| id));
                known.chain(runs.keys()).cloned().collect()
            }
            Command::HostDown { host, .. } => {
                let listed = self.directory.iter().filter(|(_, entry)| entry.host == *host);
                listed.map(|(id, _)| id.clone()).collect()
            }
            Command::ApplySpec { .. }
            | Command::Scale { .. }
            | Command::Pause { .. }
            | Command::Resume { .. }
            | Command::JoinHost { .. }
            | Command::Launch { .. }
            | Command::Roll { .. }
            | Command::DrainHost { .. }
            | Command::Settings { .. }
            | Command::Settle { .. }
            | Command::Upgrade { .. }
            | Command::TokenCreate { .. }
            | Command::TokenRevoke { .. }
            | Command::Recover => BTreeSet::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::keeper::protocol::{End, RunId};
    use crate::spec::HostName;
    use crate::state::{Ended, Event, EventKind, HostFacts, RunFact};

    fn host(number: u64) -> HostName {
        format!("h{}", number % 3).parse().unwrap()
    }

    fn id(number: u64) -> InstanceId {
        format!("{}.{}", ["zone", "login"][(number % 2) as usize], number / 2 % 3).parse().unwrap()
    }

    #[test]
    fn who_watches_is_told_of_other_labels() {
        let apply = |labels: &str| {
            let file = format!(
                "[process.zone]\ncommand = [\"/bin/true\"]\n{labels}[process.login]\ncommand = [\"/bin/true\"]\n"
            );
            let context = crate::config::Context { hostname: "h0".to_owned(), host_override: None };
            let spec = crate::config::parse(&file, "cluster.toml", &context).unwrap().spec;
            Command::ApplySpec { spec, expected_revision: None }
        };
        let mut state = State::default();
        let mut take = |command| state.apply_and_tell(&Envelope { stamp_ms: 1, command }).1;
        take(apply(""));
        take(Command::JoinHost { host: host(0), facts: HostFacts::default() });
        let started = |number| Event {
            instance: id(number),
            run: RunId(number + 1),
            kind: EventKind::Started { hash: Default::default(), ports: BTreeMap::new() },
        };
        let events = vec![started(0), started(1), started(2)];
        take(Command::Events { host: host(0), incarnation: 1, first_seq: 1, events });
        let told = |changes: Vec<Change>| -> Vec<String> {
            let entry = |change| match change {
                Change { what: Changed::Entry(id, Some(_)), .. } => id.to_string(),
                other => panic!("{other:?}"),
            };
            changes.into_iter().map(entry).collect()
        };
        assert_eq!(told(take(apply("labels = { map = \"harbour\" }\n"))), ["zone.0", "zone.1"]);
        assert_eq!(told(take(apply("labels = { map = \"harbour\" }\n"))), [""; 0]);
        assert_eq!(told(take(apply(""))), ["zone.0", "zone.1"]);
    }

    fn command(state: &State, kind: u8, at: u64, number: u64) -> Command {
        let host = host(at);
        let known = state.hosts.get(&host);
        let (incarnation, last) = known.map_or((1, 0), |known| (known.incarnation, known.last_seq));
        let run = RunId(number / 3 + 1);
        let event = |kind| Event { instance: id(number), run, kind };
        let started = || EventKind::Started { hash: Default::default(), ports: BTreeMap::new() };
        match kind {
            0 => Command::JoinHost { host, facts: HostFacts::default() },
            1 => Command::HostDown { host, incarnation },
            2 => {
                let fact = RunFact { run, hash: Default::default(), ports: BTreeMap::new(), ready: at > 3 };
                let runs = BTreeMap::from([(id(number), fact)]);
                Command::Inventory { host, incarnation, seq: last, runs, rests: BTreeMap::new() }
            }
            3 => {
                let change = PlaceChange::Put { instance: id(number), host, hash: Default::default() };
                Command::Place { based_on: state.basis, changes: vec![change] }
            }
            4 => {
                let ended = EventKind::Stopped(Ended { end: End::Code(0), done: false });
                let events = vec![event(ended), event(started())];
                Command::Events { host, incarnation, first_seq: last + 1, events }
            }
            _ => {
                let kinds = [started(), EventKind::Ready, EventKind::Unready];
                let more = EventKind::Stopped(Ended { end: End::Code(0), done: false });
                let kind = kinds.into_iter().chain([more]).nth(usize::from(kind) % 4).unwrap();
                Command::Events { host, incarnation, first_seq: last + 1, events: vec![event(kind)] }
            }
        }
    }

    proptest! {
        #[test]
        fn who_is_told_of_all_changes_knows_the_directory_and_its_leaders(
            steps in proptest::collection::vec((0..12u8, 0..6u64, 0..12u64), 1..120)
        ) {
            let mut state = State::default();
            for number in 0..3 {
                let joined = Command::JoinHost { host: host(number), facts: HostFacts::default() };
                state.apply(&Envelope { stamp_ms: 1, command: joined }).unwrap();
            }
            let (mut directory, mut leaders) = (BTreeMap::new(), BTreeMap::new());
            for (kind, at, number) in steps {
                let command = command(&state, kind, at, number);
                let (_, changes) = state.apply_and_tell(&Envelope { stamp_ms: 1, command });
                for (place, change) in changes.into_iter().enumerate() {
                    prop_assert_eq!((change.index, change.offset as usize), (state.index, place));
                    match change.what {
                        Changed::Entry(id, Some(entry)) => prop_assert_ne!(directory.insert(id, entry.clone()), Some(entry)),
                        Changed::Entry(id, None) => prop_assert!(directory.remove(&id).is_some()),
                        Changed::Leader(name, Some(leader)) => drop(leaders.insert(name, leader)),
                        Changed::Leader(name, None) => drop(leaders.remove(&name)),
                    }
                }
                prop_assert!(state.directory.iter().eq(directory.iter()));
                prop_assert!(state.leaders.iter().eq(leaders.iter()));
            }
        }
    }
}
