//! How the cluster stands as this host sees it, what the planner did, and what became of commands.

use std::time::Duration;

use prometheus::{Histogram, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::LATENESS_BUCKETS;
use super::family::{closed, histogram, int_gauge, int_gauge_vec};
use super::status::Status;
use crate::cluster::statuses::Counts;

/// How the cluster stands, read by whoever renders the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterReading {
    /// This host is the primary, and a quorum hears it.
    pub primary: bool,
    /// A primary with a quorum is heard here.
    pub quorum: bool,
    /// The term of the last election.
    pub term: u64,
    /// The last change that this host's copy of the state has.
    pub index: u64,
    /// Runs in the directory.
    pub entries: u64,
    /// Hosts that count as up.
    pub up: u64,
    /// Hosts that were declared down and are not back.
    pub down: u64,
    /// Hosts of those up that the primary does not hear; 0 on all others.
    pub silent: u64,
    /// Hosts of the silent ones that the brake keeps from being declared down; 0 where `silent` is.
    pub braked: u64,
    /// Hosts that are attached to this peer.
    pub attached: u64,
    /// What is known of what runs say about themselves.
    pub status: Counts,
}

/// What came of a command for the replicated state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in force.
    Applied,
    /// The state refused it.
    Refused,
    /// Nobody took it in time.
    Unanswered,
}

impl Outcome {
    const ALL: [Outcome; 3] = [Outcome::Applied, Outcome::Refused, Outcome::Unanswered];

    fn label(self) -> &'static str {
        match self {
            Outcome::Applied => "applied",
            Outcome::Refused => "refused",
            Outcome::Unanswered => "unanswered",
        }
    }
}

/// See the module.
pub(super) struct Cluster {
    proposals: IntCounterVec,
    plan_seconds: Histogram,
    primary: IntGauge,
    quorum: IntGauge,
    term: IntGauge,
    index: IntGauge,
    entries: IntGauge,
    hosts: IntGaugeVec,
    silent: IntGauge,
    braked: IntGauge,
    attached: IntGauge,
    status: Status,
}

impl Cluster {
    pub(super) fn new(r: &Registry) -> Self {
        Cluster {
            proposals: closed(
                r,
                "proposals_total",
                "Commands of this host for the replicated state, by what came of them.",
                "outcome",
                &Outcome::ALL.map(Outcome::label),
            ),
            plan_seconds: histogram(
                r,
                "plan_seconds",
                "How long one plan took; the primary alone plans.",
                &LATENESS_BUCKETS,
            ),
            primary: int_gauge(r, "primary", "1: this host is the primary, and a quorum hears it."),
            quorum: int_gauge(r, "quorum", "1: this host hears a primary that has a quorum."),
            term: int_gauge(r, "term", "The term of the last election."),
            index: int_gauge(
                r,
                "state_index",
                "The place in the log of the last change that this host's copy of the state has.",
            ),
            entries: int_gauge(
                r,
                "directory_entries",
                "Runs in this host's copy of the cluster's directory.",
            ),
            hosts: int_gauge_vec(
                r,
                "hosts",
                "Hosts of the cluster: up, or declared down and not back.",
                &["state"],
            ),
            silent: int_gauge(
                r,
                "hosts_silent",
                "Hosts that count as up and that the primary does not hear; 0 on all but the primary.",
            ),
            braked: int_gauge(
                r,
                "hosts_braked",
                "Silent hosts that the brake keeps from being declared down; 0 on all but the primary.",
            ),
            attached: int_gauge(
                r,
                "attached_hosts",
                "Hosts that have their session with this peer; 0 on all but peers.",
            ),
            status: Status::new(r),
        }
    }

    pub(super) fn proposed(&self, outcome: Outcome) {
        self.proposals.with_label_values(&[outcome.label()]).inc();
    }

    pub(super) fn planned(&self, took: Duration) {
        self.plan_seconds.observe(took.as_secs_f64());
    }

    /// Takes the place of what the scrape before has set.
    pub(super) fn fill(&self, reading: &ClusterReading) {
        let set = |gauge: &IntGauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&self.primary, reading.primary.into());
        set(&self.quorum, reading.quorum.into());
        set(&self.term, reading.term);
        set(&self.index, reading.index);
        set(&self.entries, reading.entries);
        set(&self.hosts.with_label_values(&["up"]), reading.up);
        set(&self.hosts.with_label_values(&["down"]), reading.down);
        set(&self.silent, reading.silent);
        set(&self.braked, reading.braked);
        set(&self.attached, reading.attached);
        self.status.fill(&reading.status);
    }
}
