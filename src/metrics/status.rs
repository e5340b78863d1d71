//! What is known of what runs say about themselves, and how it travels.

use prometheus::{IntCounter, IntGauge, Registry};

use super::family::{counter, int_gauge};
use crate::cluster::statuses::Counts;

/// See the module.
pub(super) struct Status {
    runs: IntGauge,
    taken: IntCounter,
    sent: IntCounter,
    messages: IntCounter,
    refused: IntCounter,
}

impl Status {
    pub(super) fn new(r: &Registry) -> Self {
        Status {
            runs: int_gauge(
                r,
                "status_runs",
                "Runs of which this host knows what they say about themselves.",
            ),
            taken: counter(r, "status_taken_total", "Statuses of runs that came from other hosts."),
            sent: counter(r, "status_sent_total", "Statuses of runs that were sent to other hosts."),
            messages: counter(
                r,
                "status_messages_total",
                "Messages with which statuses were sent, those without any among them.",
            ),
            refused: counter(
                r,
                "status_refused_total",
                "Statuses and messages of them that were dropped: no room, or they make no sense.",
            ),
        }
    }

    /// Takes the place of what the scrape before has set.
    pub(super) fn fill(&self, counts: &Counts) {
        self.runs.set(i64::try_from(counts.runs).unwrap_or(i64::MAX));
        for (counter, count) in [
            (&self.taken, counts.taken),
            (&self.sent, counts.sent),
            (&self.messages, counts.messages),
            (&self.refused, counts.refused),
        ] {
            counter.reset();
            counter.inc_by(count);
        }
    }
}
