//! What a command changed in the directory, for those who watch it.
//!
//! Owns the notion of a change: an instance's entry is another one or gone, or another run speaks for a process.
//! Every host that applies the same commands tells the same changes under the same numbers. Pure. Called by
//! whoever applies commands, in place of [`State::apply`].

use std::collections::BTreeSet;

use super::{Command, Entry, Envelope, Leader, PlaceChange, Rejected, Response, State};
use crate::spec::{InstanceId, ProcessName};

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
    /// The instance's run; `None`: none lives.
    Entry(InstanceId, Option<Entry>),
    /// Who speaks for the process; `None`: nobody.
    Leader(ProcessName, Option<Leader>),
}

impl State {
    /// [`State::apply`], and what came of it for the directory, in order.
    pub fn apply_and_tell(&mut self, envelope: &Envelope) -> (Result<Response, Rejected>, Vec<Change>) {
        let touched = self.touched(&envelope.command);
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
        let numbered = (0..).zip(told);
        (result, numbered.map(|(offset, what)| Change { index: self.index, offset, what }).collect())
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
            | Command::TokenRevoke { .. } => BTreeSet::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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
