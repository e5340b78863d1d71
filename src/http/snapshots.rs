//! One question for many askers: requests that want a snapshot at the same time share one.
//!
//! Owns the queue of those who wait. A request is answered by a snapshot that was asked for after the
//! request came, so whoever changed something sees it. Used by the routes that read instances.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::problem::Refusal;
use crate::agent::Handle;
use crate::agent::handle::{AskError, HostSnapshot};

/// More requests than this at once are told to come back.
const MAX_WAITING: usize = 1024;

type Answer = Result<Arc<HostSnapshot>, Refusal>;

/// The asking end. Cheap to clone.
#[derive(Clone)]
pub(super) struct Snapshots {
    waiting: mpsc::Sender<oneshot::Sender<Answer>>,
}

/// The asking end, and the work behind it, which ends when the last asking end is gone.
pub(super) fn shared(handle: Handle) -> (Snapshots, impl Future<Output = ()>) {
    let (waiting, mut askers) = mpsc::channel::<oneshot::Sender<Answer>>(MAX_WAITING);
    let work = async move {
        let mut together = Vec::new();
        while askers.recv_many(&mut together, MAX_WAITING).await > 0 {
            let answer: Answer = handle.snapshot().await.map_err(Refusal::from);
            for asker in together.drain(..) {
                // One that went away in between does not want the answer.
                let _: Result<(), Answer> = asker.send(answer.clone());
            }
        }
    };
    (Snapshots { waiting }, work)
}

impl Snapshots {
    /// All instances of this host, not older than this call.
    pub(super) async fn get(&self) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.waiting.try_send(reply).map_err(AskError::from)?;
        answer.await.map_err(|_| AskError::Stopping)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::handle::HostRequest;
    use crate::agent::ring::{Alone, Ring};
    use crate::state::State;
    use std::time::Duration;
    use tokio::sync::{broadcast, watch};

    #[tokio::test]
    async fn those_who_wait_together_share_one_snapshot() {
        let (requests, mut asked) = mpsc::channel(1);
        let (proposals, _proposed) = mpsc::channel(1);
        let (_state, state) = watch::channel(Arc::new(State::default()));
        let handle = Handle {
            host: "alpha".parse().unwrap(),
            cluster: "test".into(),
            started_at: String::new(),
            logs: "/nonexistent".into(),
            requests,
            ring: Ring::Alone(Alone::to(proposals, "alpha".parse().unwrap())),
            state,
            events: broadcast::channel(1).0,
            metrics: Arc::default(),
            audit: crate::http::Audit::open("".into(), Arc::default()).0,
        };
        let (snapshots, work) = shared(handle);
        let work = tokio::spawn(work);
        let ask = |snapshots: &Snapshots| {
            let snapshots = snapshots.clone();
            tokio::spawn(async move { snapshots.get().await })
        };

        // The first question is on its way …
        let first = ask(&snapshots);
        let Some(HostRequest::Snapshot(reply_first)) = asked.recv().await else { panic!("no question") };
        // … when fifty more want to know. They may not have the first one's answer: it may be too old.
        let others: Vec<_> = (0..50).map(|_| ask(&snapshots)).collect();
        while snapshots.waiting.capacity() > MAX_WAITING - 50 {
            tokio::task::yield_now().await;
        }
        let snapshot = |drift: &str| {
            Arc::new(HostSnapshot {
                instances: vec![],
                keeper: None,
                successors: 0,
                spec_drift: Some(drift.into()),
            })
        };
        reply_first.send(snapshot("first")).unwrap();
        let Some(HostRequest::Snapshot(reply_second)) = asked.recv().await else { panic!("no question") };
        reply_second.send(snapshot("second")).unwrap();

        assert_eq!(first.await.unwrap().unwrap().spec_drift.as_deref(), Some("first"));
        for other in others {
            let answer = tokio::time::timeout(Duration::from_secs(5), other).await;
            let answer = answer.expect("the second answer is for all fifty").unwrap().unwrap();
            assert_eq!(answer.spec_drift.as_deref(), Some("second"));
        }
        assert!(asked.try_recv().is_err(), "two questions were enough for 51 requests");

        drop(snapshots);
        work.await.unwrap();
    }
}
