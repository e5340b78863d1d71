//! What runs say about themselves, as it is shown: in the directory, and to those who watch it.
//!
//! Owns the shapes, and what a watcher has seen. What is known is [`crate::cluster::statuses`]'. A watcher is told of
//! each run at most once a second, as it is then, without an id; one that has no room for an event gets a newer one
//! later, and its changes of the directory wait for none of it.

use std::time::Duration;

use axum::response::sse::Event;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::router::Api;
use crate::agent::supervise::moment;
use crate::cluster::statuses::Statuses;
use crate::host::Moment;
use crate::http::view::{DirectoryView, RunStatusView, SaidView};
use crate::keeper::protocol::RunId;
use crate::spec::{HostName, InstanceId, ProcessName};
use crate::status::{Board, Line, Places, Summary};

/// No watcher is told of a run more often.
const PACE: Duration = Duration::from_secs(1);

/// All that is known at one moment.
pub(super) struct Said {
    board: Board,
    now: Moment,
}

fn shown(summary: &Summary, age: Duration) -> RunStatusView {
    let status = summary.shown();
    RunStatusView {
        players: status.players,
        capacity: status.capacity,
        fps: status.fps,
        ping_ms: status.ping_ms,
        map: status.map,
        text: status.text,
        labels: status.labels,
        age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
    }
}

impl Said {
    pub(super) async fn read(api: &Api) -> Said {
        Said { board: api.handle.ring.statuses().read().await, now: moment() }
    }

    /// Differs where something else was said.
    pub(super) fn version(&self) -> u64 {
        self.board.version()
    }

    pub(super) fn of(&self, host: &HostName, id: &InstanceId, run: RunId) -> Option<RunStatusView> {
        self.summary(host, id, run).map(|(summary, age)| shown(summary, age))
    }

    /// True when the run says that it has this label.
    pub(super) fn has(
        &self,
        (host, id, run): (&HostName, &InstanceId, RunId),
        name: &str,
        value: &str,
    ) -> bool {
        self.summary(host, id, run).is_some_and(|(summary, _)| summary.has(name, value))
    }

    fn summary(&self, host: &HostName, id: &InstanceId, run: RunId) -> Option<(&Summary, Duration)> {
        self.board.of(host, id, run, self.now).filter(|(summary, _)| !summary.is_empty())
    }

    /// The entry with what its run says.
    pub(super) fn add_to(&self, entry: DirectoryView) -> DirectoryView {
        let status = self.of(&entry.host, &entry.instance, RunId(entry.run));
        DirectoryView { status: Some(status), ..entry }
    }
}

/// What a watcher of the directory is told beside the changes.
pub(super) struct Hearer {
    statuses: Statuses,
    process: Option<ProcessName>,
    versions: watch::Receiver<u64>,
    seen: Places,
    next: Instant,
}

impl Hearer {
    pub(super) fn new(statuses: Statuses, process: Option<ProcessName>) -> Hearer {
        let mut versions = statuses.versions();
        versions.mark_changed();
        Hearer { statuses, process, versions, seen: Places::new(), next: Instant::now() }
    }

    /// Waits until it may be told something. Cancel safe.
    pub(super) async fn due(&mut self) {
        tokio::time::sleep_until(self.next).await;
        // Going on reading is what keeps an attached host asking.
        while tokio::time::timeout(PACE, self.versions.changed()).await.is_err() {
            let _ = self.statuses.look();
        }
    }

    /// Tells what it has not seen, if there is room for it.
    pub(super) fn tell(&mut self, to: &mpsc::Sender<Event>) {
        self.next = Instant::now() + PACE;
        self.versions.mark_unchanged();
        let (board, now) = (self.statuses.look(), moment());
        let (news, places) = board.news(&self.seen, now);
        let wanted = |id: &InstanceId| self.process.as_ref().is_none_or(|process| id.process == *process);
        let said: Vec<SaidView> =
            news.into_iter().filter(|(_, id, _)| wanted(id)).filter_map(|line| view(line, now)).collect();
        let room = said.is_empty() || {
            let data = serde_json::to_string(&said).unwrap_or_default();
            to.try_send(Event::default().event("status").data(data)).is_ok()
        };
        match room {
            true => self.seen.extend(places),
            false => {
                // It is told later, as it is then.
                self.versions.mark_changed();
                self.statuses.put_off();
            }
        }
    }
}

fn view((host, id, line): (&HostName, &InstanceId, &Line), now: Moment) -> Option<SaidView> {
    let summary = line.summary.as_ref()?;
    Some(SaidView {
        instance: id.clone(),
        host: host.clone(),
        run: line.run.0,
        status: shown(summary, now.since(line.at)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(statuses: &Statuses, instance: &str, players: u32) {
        let summary = Summary { players: Some(players), ..Summary::default() };
        statuses.note([(instance.parse().unwrap(), RunId(1), Some(summary))]);
    }

    fn heard(events: &mut mpsc::Receiver<Event>) -> String {
        // An event has no way to read it but this.
        format!("{:?}", events.try_recv())
    }

    #[tokio::test]
    async fn a_slow_watcher_gets_the_newest_when_there_is_room() {
        let statuses = Statuses::new("alpha".parse().unwrap());
        let mut hearer = Hearer::new(statuses.clone(), Some("zone".parse().unwrap()));
        let (to, mut events) = mpsc::channel(1);
        says(&statuses, "zone.0", 501);
        says(&statuses, "login.0", 777);
        hearer.due().await;
        hearer.tell(&to);
        for players in [502, 503] {
            says(&statuses, "zone.0", players);
            hearer.due().await;
            hearer.tell(&to);
        }
        assert_eq!(statuses.counts().put_off, 2, "nobody reads");
        let first = heard(&mut events);
        assert!(first.contains("501") && !first.contains("777"), "{first}");
        let began = Instant::now();
        hearer.due().await;
        assert!(began.elapsed() > PACE / 2, "{:?}", began.elapsed());
        hearer.tell(&to);
        let newest = heard(&mut events);
        assert!(newest.contains("503") && !newest.contains("502"), "{newest}");
        let due = tokio::time::timeout(2 * PACE, hearer.due());
        assert!(due.await.is_err(), "nothing new, and it is told again");
    }
}
