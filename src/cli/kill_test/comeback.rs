//! From the blow to the new run, and to its being ready.
//!
//! The agent's events give the times; asking for the instance confirms them, and stands in for events that
//! do not come (the agent may have been restarted).

use std::time::Duration;

use tokio::time::Instant;

use super::victim::Victim;
use crate::cli::api::Api;
use crate::cli::look::EventStream;
use crate::http::view::{EventView, InstanceView};

/// Between two questions while events come, and while they do not.
const POLL_BESIDE_EVENTS: Duration = Duration::from_millis(100);
const POLL_ALONE: Duration = Duration::from_millis(5);

/// What has been seen of the comeback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Comeback {
    /// The newest run after the one that was struck.
    pub run: Option<u64>,
    /// From the blow to the first new run.
    pub restarted: Option<Duration>,
    /// From the blow to that run's being ready.
    pub ready: Option<Duration>,
    /// The agent lists the new run as ready.
    confirmed: bool,
}

impl Comeback {
    /// It is back, and the agent says so.
    pub fn complete(&self) -> bool {
        self.confirmed && self.ready.is_some()
    }

    fn event(&mut self, event: &EventView, victim: &Victim, after: Duration) {
        // Runs are counted by each host.
        let same = event.instance.as_ref() == Some(&victim.instance) && event.host == victim.host;
        let Some(run) = event.run.filter(|run| same && *run > victim.run) else {
            return;
        };
        self.run = self.run.max(Some(run));
        // Any word of the new run shows that it was started; the first is the earliest.
        self.restarted.get_or_insert(after);
        if event.kind == "ready" {
            self.ready.get_or_insert(after);
        }
    }

    fn listed(&mut self, instance: &InstanceView, victim: &Victim, after: Duration) {
        let another = instance.run != Some(victim.run) || instance.host != victim.host;
        let Some(run) = instance.run.filter(|_| another && instance.state != "superseded") else { return };
        self.run = Some(run);
        self.restarted.get_or_insert(after);
        if instance.state == "ready" {
            self.ready.get_or_insert(after);
            self.confirmed = true;
        }
    }
}

/// Waits until the instance is back or the time is over; what was seen is the answer in both cases.
pub async fn await_it(
    victim: &Victim,
    struck: Instant,
    timeout: Duration,
    events: &mut Option<EventStream>,
    api: &Api,
) -> Comeback {
    let mut seen = Comeback::default();
    let mut next_poll = struck;
    while !seen.complete() && struck.elapsed() < timeout {
        let awaited_ready = seen.ready;
        tokio::select! {
            biased;
            heard = hear(events) => {
                let after = struck.elapsed();
                heard.iter().for_each(|event| seen.event(event, victim, after));
                if seen.ready != awaited_ready {
                    next_poll = Instant::now();
                }
            }
            () = tokio::time::sleep_until(next_poll) => {
                let path = format!("/v1/instances?instance={}", victim.instance);
                // An agent that does not answer now may again before the time is over.
                let list: Vec<InstanceView> = api.get(&path).await.unwrap_or_default();
                let after = struck.elapsed();
                list.iter().filter(|i| i.instance == victim.instance).for_each(|i| seen.listed(i, victim, after));
                if events.is_none() {
                    *events = EventStream::open(api, None, None).await.ok();
                }
                next_poll = Instant::now() + if events.is_some() { POLL_BESIDE_EVENTS } else { POLL_ALONE };
            }
        }
    }
    seen
}

/// The next events; never without a stream. A stream that breaks is given up.
async fn hear(events: &mut Option<EventStream>) -> Vec<EventView> {
    let Some(stream) = events else { return std::future::pending().await };
    match stream.next().await {
        Ok(heard) => heard,
        Err(_) => {
            *events = None;
            Vec::new()
        }
    }
}
