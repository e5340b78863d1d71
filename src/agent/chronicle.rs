//! The last events of this host, for people.
//!
//! Owns two rings (all events, and those of each instance), the live feed, and the annals of the cluster; an event is
//! there once, whoever has it. It never decides; the supervision loop writes, the API asks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{broadcast, watch};

use super::annals::{Annals, Tiding};
use crate::cluster::node::Standing;
use crate::host::{Cause, Occurrence, Story, describe};
use crate::http::view::EventView;
use crate::spec::{HostName, InstanceId};
use crate::state::State;

/// Events kept of all instances together.
const MOST: usize = 1_000;
/// Events kept of one instance.
const MOST_OF_ONE: usize = 50;

/// See the module.
pub struct Chronicle {
    host: HostName,
    seq: u64,
    all: VecDeque<Arc<EventView>>,
    of_one: BTreeMap<InstanceId, VecDeque<Arc<EventView>>>,
    feed: broadcast::Sender<Arc<EventView>>,
    annals: Annals,
    /// Of the cluster; `None`: this host is alone.
    standing: Option<watch::Receiver<Standing>>,
}

impl Chronicle {
    /// An empty chronicle, which tells what becomes of this state.
    pub fn new(
        host: HostName,
        feed: broadcast::Sender<Arc<EventView>>,
        state: &State,
        standing: Option<watch::Receiver<Standing>>,
    ) -> Self {
        let annals = Annals::new(host.clone(), state);
        Chronicle { host, seq: 0, all: VecDeque::new(), of_one: BTreeMap::new(), feed, annals, standing }
    }

    /// Writes down what is other in the state than it was.
    pub fn follow(&mut self, state: &State, wall_ms: u64) {
        for tiding in self.annals.look(state) {
            self.tell(tiding, wall_ms);
        }
    }

    /// Writes down that there is another primary.
    pub fn follow_primary(&mut self, wall_ms: u64) {
        let Some(standing) = &self.standing else { return };
        let standing = standing.borrow();
        let tiding = self.annals.stands(standing.primary.as_ref(), standing.term);
        drop(standing);
        tiding.into_iter().for_each(|tiding| self.tell(tiding, wall_ms));
    }

    fn tell(&mut self, tiding: Tiding, wall_ms: u64) {
        self.push(EventView {
            seq: 0,
            at: rfc3339(wall_ms),
            host: tiding.host,
            instance: tiding.instance,
            run: None,
            kind: tiding.kind.to_owned(),
            cause: tiding.cause.map(str::to_owned),
            detail: Some(tiding.detail),
            number: tiding.number,
        });
    }

    /// Writes down what happened.
    pub fn write(&mut self, occurrence: Occurrence, wall_ms: u64) {
        let (kind, cause, detail) = words(&occurrence.story);
        let run = occurrence.run.map(|run| run.0);
        self.note(occurrence.instance, run, kind, cause, detail, wall_ms);
    }

    /// Writes down what somebody announces to do by hand.
    pub fn announce(&mut self, instance: InstanceId, text: String, wall_ms: u64) {
        self.note(instance, None, "announce", None, Some(text), wall_ms);
    }

    /// Writes down that limits of a run are not enforced.
    pub fn unenforced(&mut self, instance: InstanceId, run: u64, files: &[String], wall_ms: u64) {
        let detail = format!("this host cannot set {}", files.join(", "));
        self.note(instance, Some(run), "unenforced", None, Some(detail), wall_ms);
    }

    /// Writes down what became of a run's port.
    pub fn port(&mut self, instance: InstanceId, run: u64, kind: &str, detail: String, wall_ms: u64) {
        self.note(instance, Some(run), kind, None, Some(detail), wall_ms);
    }

    fn note(
        &mut self,
        instance: InstanceId,
        run: Option<u64>,
        kind: &str,
        cause: Option<String>,
        detail: Option<String>,
        wall_ms: u64,
    ) {
        self.push(EventView {
            seq: 0,
            at: rfc3339(wall_ms),
            host: self.host.clone(),
            instance: Some(instance),
            run,
            kind: kind.to_owned(),
            cause,
            detail,
            number: None,
        });
    }

    /// Numbers it and tells it.
    fn push(&mut self, mut event: EventView) {
        self.seq += 1;
        event.seq = self.seq;
        let event = Arc::new(event);
        let own = event.instance.clone().map(|id| (self.of_one.entry(id).or_default(), MOST_OF_ONE));
        for (ring, most) in [(&mut self.all, MOST)].into_iter().chain(own) {
            if ring.len() == most {
                ring.pop_front();
            }
            ring.push_back(event.clone());
        }
        // Nobody may be listening.
        let _ = self.feed.send(event);
    }

    /// The last events, oldest first.
    pub fn last(&self, instance: Option<&InstanceId>) -> Vec<EventView> {
        let event = |event: &Arc<EventView>| (**event).clone();
        match instance {
            None => self.all.iter().map(event).collect(),
            Some(id) => self.of_one.get(id).into_iter().flatten().map(event).collect(),
        }
    }

    /// Forgets the ring of an instance that is gone and whose events have left the common ring.
    pub fn prune(&mut self, lives: impl Fn(&InstanceId) -> bool) {
        let oldest = self.all.front().map_or(0, |event| event.seq);
        self.of_one.retain(|id, ring| lives(id) || ring.back().is_some_and(|last| last.seq >= oldest));
    }
}

/// Kind, cause and detail of what happened.
fn words(story: &Story) -> (&'static str, Option<String>, Option<String>) {
    let plain = |kind| (kind, None, None);
    let told = |kind, detail: &str| (kind, None, Some(detail.to_owned()));
    match story {
        Story::Started { pid } => told("started", &format!("pid {pid}")),
        Story::Ready { after } => told("ready", &format!("after {}", span(*after))),
        Story::Draining => plain("draining"),
        Story::Stopping(cause) => ("stopping", Some(cause.to_string()), None),
        Story::Hang(finding) => told("hang", finding),
        Story::Exited(cause, end) => ("exited", Some(cause.to_string()), Some(describe(*end))),
        Story::Stopped(why) => told("stopped", why),
        Story::Backoff(wait) => told("backoff", &format!("next run in {}", span(*wait))),
        Story::Failed(why) => told("failed", why),
        Story::Paused => plain("paused"),
        Story::Resumed => plain("resumed"),
        Story::SpawnFailed(why) => told("spawn-failed", why),
        Story::SpawnStuck => told("spawn-stuck", "the exec does not come back"),
        Story::Adopted { pid } => told("adopted", &format!("pid {pid}")),
        Story::Strays => {
            let detail = "leftovers without a certain record were killed";
            ("strays", Some(Cause::Stray.to_string()), Some(detail.to_owned()))
        }
        Story::Unarmed => told("unarmed", "ready without a single heartbeat: nothing watches it for hangs"),
    }
}

fn span(span: Duration) -> String {
    format!("{span:.1?}")
}

/// A time as RFC 3339 UTC with milliseconds.
pub fn rfc3339(wall_ms: u64) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(wall_ms);
    humantime::format_rfc3339_millis(at).to_string()
}
