//! What happens on all hosts of a demonstration, as it happens.
//!
//! Owns one stream of events a host, opened again when its agent comes back, and what is made of them: how
//! fast instances come back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Seen;
use crate::cli::look::EventStream;
use crate::cli::render::span;
use crate::http::view::EventView;
use crate::spec::{HostName, InstanceId};

/// How soon an agent that does not answer is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// See the module.
pub struct Ears {
    heard: mpsc::Receiver<EventView>,
    /// What all hosts tell is told once.
    told: BTreeSet<(HostName, u64, String)>,
    // Dropped with it.
    _listeners: JoinSet<()>,
}

impl Ears {
    /// Listens to all hosts.
    pub async fn open(hosts: &[Seen]) -> Ears {
        let (tell, heard) = mpsc::channel(1024);
        let mut listeners = JoinSet::new();
        for host in hosts {
            // The first one is open before this returns: nothing that happens from here on is missed.
            let stream = EventStream::open(&host.api, None, None).await.ok();
            listeners.spawn(listen(host.clone(), stream, tell.clone()));
        }
        Ears { heard, told: BTreeSet::new(), _listeners: listeners }
    }

    /// The next event.
    pub async fn next(&mut self) -> EventView {
        loop {
            let Some(event) = self.heard.recv().await else { return std::future::pending().await };
            if event.number.is_none() || self.told.insert(event.mark()) {
                return event;
            }
        }
    }
}

async fn listen(host: Seen, mut stream: Option<EventStream>, tell: mpsc::Sender<EventView>) {
    loop {
        let Some(open) = &mut stream else {
            tokio::time::sleep(AGAIN).await;
            stream = EventStream::open(&host.api, None, None).await.ok();
            continue;
        };
        match open.next().await {
            // Each host is asked for its own, and for what it knows of all.
            Ok(events) => {
                let own = |event: &EventView| event.host == host.name || event.number.is_some();
                for event in events.into_iter().filter(own) {
                    if tell.send(event).await.is_err() {
                        return;
                    }
                }
            }
            Err(_) => stream = None,
        }
    }
}

/// Measures how fast instances come back, from the events' own times.
#[derive(Default)]
pub struct Comebacks {
    lost: BTreeMap<InstanceId, (SystemTime, bool)>,
}

impl Comebacks {
    /// Takes note of an event; a sentence when something has come back.
    pub fn note(&mut self, event: &EventView) -> Option<String> {
        let at = humantime::parse_rfc3339(&event.at).ok()?;
        let instance = event.instance.as_ref()?;
        match (event.kind.as_str(), event.cause.as_deref()) {
            ("hang", _) => {
                self.lost.entry(instance.clone()).or_insert((at, true));
            }
            ("exited", Some("stop")) => {}
            ("exited", _) => {
                self.lost.entry(instance.clone()).or_insert((at, false));
            }
            ("ready", _) => {
                let (since, hung) = self.lost.remove(instance)?;
                let took = span(at.duration_since(since).ok()?.as_secs_f64() * 1_000.0);
                let how = if hung { "its hang was noticed" } else { "its end" };
                return Some(format!("-- {instance} is back, {took} after {how}"));
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, cause: Option<&str>, ms: u32) -> EventView {
        EventView {
            seq: 0,
            at: format!("2026-01-02T03:04:05.{ms:03}Z"),
            host: "dev".parse().unwrap(),
            instance: "zone.1".parse().ok(),
            run: Some(1),
            kind: kind.to_owned(),
            cause: cause.map(str::to_owned),
            detail: None,
            number: None,
        }
    }

    #[test]
    fn a_comeback_is_told_from_the_first_sign_to_ready() {
        let mut comebacks = Comebacks::default();
        assert_eq!(comebacks.note(&event("ready", None, 0)), None);
        for e in [event("hang", None, 100), event("exited", Some("hang"), 105), event("started", None, 106)] {
            assert_eq!(comebacks.note(&e), None);
        }
        assert_eq!(
            comebacks.note(&event("ready", None, 120)),
            Some("-- zone.1 is back, 20.0 ms after its hang was noticed".to_owned())
        );
        assert_eq!(comebacks.note(&event("ready", None, 130)), None, "told once");
        comebacks.note(&event("exited", Some("stop"), 200));
        assert_eq!(comebacks.note(&event("ready", None, 300)), None, "a stop is no loss");
    }
}
