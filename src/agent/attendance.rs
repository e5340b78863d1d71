//! Reports that this host lives, on their way to the primary, and its confirms on their way back.
//!
//! Owns nothing but what is under way. Whether and when to report is the fence's business, on the supervision
//! thread: a host whose supervision hangs is not to pass for one that lives.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::ring::Ring;
use crate::plan::liveness::{Attendance, Confirm};

/// A confirm that takes longer is not waited for: newer reports are under way.
const TTL: Duration = Duration::from_millis(1500);
/// Reports under way at once; one more would be the answer to none of them.
const UNDER_WAY: usize = 16;

/// The supervision loop's ends.
pub struct Attended {
    /// Reports that this host lives; `None`: it is alone.
    pub reports: Option<mpsc::Sender<Attendance>>,
    /// The primary's answers.
    pub confirms: mpsc::Receiver<Confirm>,
    /// Which life of the host reports; 0: it has not joined.
    pub incarnations: watch::Receiver<u64>,
}

/// The other ends.
pub struct Carrier {
    reports: mpsc::Receiver<Attendance>,
    confirms: mpsc::Sender<Confirm>,
}

/// All ends; the last one is the reporter's, who joins.
pub fn ends(alone: bool) -> (Attended, Carrier, watch::Sender<u64>) {
    let ((to_primary, reports), (confirms, confirmed)) = (mpsc::channel(UNDER_WAY), mpsc::channel(UNDER_WAY));
    let (joined, incarnations) = watch::channel(0);
    let attended = Attended { reports: (!alone).then_some(to_primary), confirms: confirmed, incarnations };
    (attended, Carrier { reports, confirms }, joined)
}

impl Carrier {
    /// Carries reports until the supervision loop is gone.
    pub async fn run(mut self, ring: Ring) {
        let mut under_way: JoinSet<Option<Confirm>> = JoinSet::new();
        loop {
            tokio::select! {
                report = self.reports.recv() => match report {
                    Some(report) if under_way.len() < UNDER_WAY => {
                        let ring = ring.clone();
                        under_way.spawn(async move { ring.report(report, TTL).await });
                    }
                    // As one that was lost on the way.
                    Some(_) => {}
                    None => return,
                },
                Some(answer) = under_way.join_next() => if let Ok(Some(confirm)) = answer {
                    // The loop that does not keep up hears the next one.
                    let _ = self.confirms.try_send(confirm);
                }
            }
        }
    }
}
