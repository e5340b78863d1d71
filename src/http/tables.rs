//! Long polls: when each table that is read last changed, on this host's copy.
//!
//! Owns one index for each of them. That of the directory is the feed's; the others are told by whoever follows the state
//! here, which looks at what is other and never at all there is. It may be told of a change that shows nowhere; of one
//! in the state that does, always. What else a list shows (who is primary, for how long a host has been silent) wakes
//! nobody. Called by the routes that read tables.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;

use crate::cluster::feed::Feed;
use crate::state::{Host, State};

/// The longest that a long poll waits.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Directory,
    Processes,
    Hosts,
    Spec,
}

/// The state index of the last change of each but the directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Changed {
    /// Of processes, the directory left out.
    processes: u64,
    hosts: u64,
    spec: u64,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(super) struct Tables {
    feed: Feed,
    changed: watch::Receiver<Changed>,
}

/// The asking end, and the following of the state behind it, which never ends.
pub(super) fn tables(
    mut states: watch::Receiver<Arc<State>>,
    feed: Feed,
) -> (Tables, impl Future<Output = Infallible> + Send) {
    let last = states.borrow_and_update().clone();
    let index = last.index;
    let (told, changed) = watch::channel(Changed { processes: index, hosts: index, spec: index });
    (Tables { feed, changed }, follow(states, last, told))
}

async fn follow(
    mut states: watch::Receiver<Arc<State>>,
    mut last: Arc<State>,
    told: watch::Sender<Changed>,
) -> Infallible {
    loop {
        if states.changed().await.is_err() {
            // The last state stays.
            return std::future::pending().await;
        }
        let now = states.borrow_and_update().clone();
        told.send_if_modified(|changed| {
            let before = *changed;
            changed.note(&last, &now);
            *changed != before
        });
        last = now;
    }
}

impl Changed {
    fn note(&mut self, last: &State, now: &State) {
        let placed = !last.placements.is(&now.placements);
        if last.revision != now.revision {
            self.spec = now.index;
        }
        if placed || !same_hosts(last, now) {
            self.hosts = now.index;
        }
        if placed
            || last.revision != now.revision
            || last.scales != now.scales
            || last.paused != now.paused
            || last.leaders != now.leaders
        {
            self.processes = now.index;
        }
    }
}

/// But for the events that were taken of them.
fn same_hosts(last: &State, now: &State) -> bool {
    let shown = |host: &Host| (host.incarnation, host.up, host.drained, host.planned, host.down_ms);
    let same =
        |((a, before), (b, after))| a == b && shown(before) == shown(after) && before.facts == after.facts;
    last.hosts.is(&now.hosts)
        || (last.hosts.len() == now.hosts.len() && last.hosts.iter().zip(now.hosts.iter()).all(same))
}

impl Tables {
    /// Waits until the table has changed after an index; at most so long, and a little less, so that those who asked at
    /// once do not come back at once.
    pub(super) async fn poll(&self, table: Table, index: Option<u64>, wait: Option<Wait>) {
        let Some(index) = index else { return };
        let wait = wait.map_or(LONGEST, |wait| wait.0.min(LONGEST));
        let jitter = wait.mul_f64(f64::from(fastrand::u8(..)) / 4096.0);
        let _ = tokio::time::timeout(wait - jitter, self.beyond(table, index)).await;
    }

    async fn beyond(&self, table: Table, index: u64) {
        let (mut modified, mut changed) = (self.feed.modified(), self.changed.clone());
        let of_directory = async { modified.wait_for(|modified| *modified > index).await.is_ok() };
        let of_others = async {
            let beyond = |changed: &Changed| match table {
                Table::Directory => false,
                Table::Processes => changed.processes > index,
                Table::Hosts => changed.hosts > index,
                Table::Spec => changed.spec > index,
            };
            changed.wait_for(beyond).await.is_ok()
        };
        let reads_directory = matches!(table, Table::Directory | Table::Processes);
        tokio::select! {
            true = of_directory, if reads_directory => {}
            true = of_others => {}
            // Whoever tells is gone when the agent ends.
            else => {}
        }
    }
}

/// A span such as `30s`, in a query.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait(Duration);

impl<'de> Deserialize<'de> for Wait {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let longest = humantime::format_duration(LONGEST);
        text.parse::<humantime::Duration>().map(|span| Wait(span.into())).map_err(|_| {
            serde::de::Error::custom(format!("wait={text}: a time such as 30s, at most {longest}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Command, Envelope, HostFacts};

    #[test]
    fn each_table_is_told_of_its_own_changes() {
        let (mut state, mut changed) = (State::default(), Changed::default());
        let mut apply = |command: Command| {
            let last = state.clone();
            state.apply(&Envelope { stamp_ms: 1, command }).unwrap();
            changed.note(&last, &state);
            (state.index, changed)
        };
        let host: crate::spec::HostName = "alpha".parse().unwrap();
        let (joined, after) = apply(Command::JoinHost { host: host.clone(), facts: HostFacts::default() });
        assert_eq!(after, Changed { hosts: joined, ..Changed::default() });
        let (applied, after) =
            apply(Command::ApplySpec { spec: Default::default(), expected_revision: None });
        assert_eq!(after, Changed { hosts: joined, spec: applied, processes: applied });
        let (drained, after) = apply(Command::DrainHost { host: host.clone(), drained: true });
        assert_eq!(after, Changed { hosts: drained, spec: applied, processes: applied });
        // What a host tells of its runs is no change of it.
        let (_, after) = apply(Command::Events { host, incarnation: 1, first_seq: 1, events: Vec::new() });
        assert_eq!(after.hosts, drained);
        let (paused, after) = apply(Command::Pause { target: crate::state::Target::All });
        assert_eq!(after, Changed { hosts: drained, spec: applied, processes: paused });
    }
}
