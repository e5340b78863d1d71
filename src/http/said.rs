//! What runs say about themselves, as it is shown: in the directory, and to those who watch it.
//!
//! Owns the shapes, and what a watcher has seen. What is known is [`crate::cluster::statuses`]'. A watcher is told of
//! each run at most once a second, as it is then, without an id; one that reads slowly gets the newest when it does.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
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
    board: Arc<Board>,
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
            self.statuses.mind();
        }
    }

    /// What it has not seen, as it is now; `None`: nothing that it wants to know.
    pub(super) fn news(&mut self) -> Option<Vec<SaidView>> {
        self.next = Instant::now() + PACE;
        self.versions.mark_unchanged();
        let (board, now) = (self.statuses.look(), moment());
        let (news, places) = board.news(&self.seen, now);
        let wanted = |id: &InstanceId| self.process.as_ref().is_none_or(|process| id.process == *process);
        let said: Vec<SaidView> =
            news.into_iter().filter(|(_, id, _)| wanted(id)).filter_map(|line| view(line, now)).collect();
        self.seen.extend(places);
        Some(said).filter(|said| !said.is_empty())
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

    #[tokio::test]
    async fn whoever_asks_late_gets_the_newest_and_at_most_once_a_second() {
        let statuses = Statuses::new("alpha".parse().unwrap());
        let mut hearer = Hearer::new(statuses.clone(), Some("zone".parse().unwrap()));
        let players = |said: Option<Vec<SaidView>>| -> Vec<Option<u32>> {
            said.into_iter().flatten().map(|said| said.status.players).collect()
        };
        says(&statuses, "zone.0", 501);
        says(&statuses, "login.0", 777);
        hearer.due().await;
        assert_eq!(players(hearer.news()), [Some(501)]);
        for players in [502, 503] {
            says(&statuses, "zone.0", players);
        }
        let began = Instant::now();
        hearer.due().await;
        assert!(began.elapsed() > PACE / 2, "{:?}", began.elapsed());
        assert_eq!(players(hearer.news()), [Some(503)]);
        let due = tokio::time::timeout(2 * PACE, hearer.due());
        assert!(due.await.is_err(), "nothing new, and it is told again");
    }
}
