//! Events of the other hosts, as they come: each host is asked again and again for what followed the last one.
//!
//! Owns a task for each host that is up, and the place up to which it told. They end with the reader. Called by
//! `events`.

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::elsewhere::{AGAIN, read};
use super::piece::{NEXT, START};
use super::router::Api;
use crate::http::view::EventView;
use crate::spec::{HostName, InstanceId};

/// Events on their way to a reader; one that is slower is waited for.
const QUEUE: usize = 256;

/// What another host told.
pub(super) enum Told {
    Event(EventView),
    /// As many came between two questions that these were forgotten.
    Missed(u64),
}

/// The events of `only` this other host, or of all; nothing of this host.
pub(super) fn of_others(
    api: Api,
    instance: Option<InstanceId>,
    only: Option<HostName>,
) -> mpsc::Receiver<Told> {
    let (told, heard) = mpsc::channel(QUEUE);
    if api.reaches() && only.as_ref() != Some(&api.handle.host) {
        tokio::spawn(follow_all(api, instance, only, told));
    }
    heard
}

async fn follow_all(
    api: Api,
    instance: Option<InstanceId>,
    only: Option<HostName>,
    told: mpsc::Sender<Told>,
) {
    let mut tasks = JoinSet::new();
    let mut followed: BTreeMap<HostName, AbortHandle> = BTreeMap::new();
    loop {
        let hosts = only.clone().map_or_else(|| api.others(), |host| [host].into());
        followed.retain(|host, task| {
            let stays = hosts.contains(host);
            if !stays {
                task.abort();
            }
            stays
        });
        for host in hosts {
            let task = || follow_one(api.clone(), host.clone(), instance.clone(), told.clone());
            followed.entry(host.clone()).or_insert_with(|| tasks.spawn(task()));
        }
        tokio::select! {
            () = told.closed() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
        while tasks.try_join_next().is_some() {}
    }
}

async fn follow_one(api: Api, host: HostName, instance: Option<InstanceId>, told: mpsc::Sender<Told>) {
    let filter = instance.as_ref().map(|id| format!("&instance={id}")).unwrap_or_default();
    let mut after = START.to_owned();
    loop {
        let path = format!("/v1/events?after={after}{filter}");
        let answered = match api.ask_for_more(&host, &path).await {
            Ok(answered) if answered.status == 200 => answered,
            _ => {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        let Ok(events) = read::<Vec<EventView>>(&host, &answered) else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        let next = answered.header(NEXT);
        let missed =
            events.first().filter(|_| instance.is_none()).and_then(|first| missed(&after, next, first.seq));
        let events = missed.map(Told::Missed).into_iter().chain(events.into_iter().map(Told::Event));
        for event in events {
            if told.send(event).await.is_err() {
                return;
            }
        }
        after = next.to_owned();
    }
}

/// How many events lie between the place that was asked for and the first one that came, in one life of the agent.
fn missed(after: &str, next: &str, first: u64) -> Option<u64> {
    let (seen, life) = after.split_once('@')?;
    let same = next.split_once('@').is_some_and(|(_, now)| now == life);
    let seen: u64 = seen.parse().ok()?;
    Some(first.saturating_sub(seen.saturating_add(1))).filter(|missed| same && *missed > 0)
}

#[cfg(test)]
mod tests {
    use super::missed;

    #[test]
    fn what_was_forgotten_between_two_questions_is_counted() {
        assert_eq!(missed("5@a", "9@a", 6), None);
        assert_eq!(missed("5@a", "9@a", 8), Some(2));
        // Another life of the agent counts anew.
        assert_eq!(missed("5@a", "9@b", 8), None);
        assert_eq!(missed("start", "9@a", 3), None);
    }
}
