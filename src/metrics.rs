//! Every metric of an agent: its name, its help, its closed labels.
//!
//! Owns the registry. Methods are named by what happened and cost a few atomic operations, so the
//! supervision loop calls them where it happens. What can be read at any time (instances by state, CPU,
//! memory, the cluster) is read by [`Metrics::render`] when somebody scrapes, and never in between; an instance that
//! is gone is gone from the next scrape. Names follow Prometheus' conventions:
//! <https://prometheus.io/docs/practices/naming/>.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{
    Counter, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Registry, TextEncoder,
};

use crate::agent::handle::HostSnapshot;

mod cluster;
mod family;
mod fault;
mod scrape;
mod status;
mod usage;

use cluster::Cluster;
pub use cluster::{ClusterReading, Outcome};
use family::{closed, counter, gauge, histogram, histogram_opts, int_gauge_vec, opts, registered};
pub use fault::{SavedFile, SocketFault, SpawnFault};
use scrape::ReadAtScrape;
use usage::Usage;

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Label values of `cause`; see [`crate::http::view::ExitView::cause`].
const CAUSES: [&str; 9] =
    ["exit", "signal", "hang", "spawn", "stop", "operator", "fence", "stray", "unknown"];
const LIMITS: [&str; 4] = ["memory", "cpu", "pids", "other"];
const RELOADS: [&str; 2] = ["done", "refused"];
const PROBES: [&str; 3] = ["query", "tcp", "exec"];

/// Buckets for what should take milliseconds and may take minutes.
const RESTART_BUCKETS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0];
/// Buckets for what should be nothing and may be seconds.
const LATENESS_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// All metrics; see the module.
pub struct Metrics {
    registry: Registry,
    runs: Runs,
    cluster: Cluster,
    log_bytes_kept: IntCounter,
    log_bytes_dropped: IntCounter,
    socket_errors: IntCounterVec,
    probe_failures: IntCounterVec,
    stalls: IntCounter,
    stall_seconds: Counter,
    unenforced_limits: IntCounterVec,
    keeper_connections_lost: IntCounter,
    unsaved: IntGaugeVec,
    reloads: IntCounterVec,
    requests: Requests,
    read: ReadAtScrape,
    // One scrape at a time: it resets and fills the vectors of `read`.
    usage: Mutex<Usage>,
}

/// The life and death of runs.
struct Runs {
    restarts: IntCounterVec,
    kill_to_restart: Histogram,
    successions: IntCounter,
    hang_kills: IntCounter,
    hang_kill_lateness: Histogram,
    heartbeat_lateness: Histogram,
    spawn_failures: IntCounterVec,
}

/// Requests to the API.
struct Requests {
    served: IntCounterVec,
    seconds: HistogramVec,
    given_up: IntCounter,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    /// A registry of its own; nothing is shared between two of these.
    pub fn new() -> Self {
        let r = Registry::new();
        let build = int_gauge_vec(&r, "build_info", "The program's version; always 1.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let started = gauge(&r, "agent_start_time_seconds", "When the agent started, seconds since 1970.");
        started.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());

        Metrics {
            runs: Runs::new(&r),
            cluster: Cluster::new(&r),
            log_bytes_kept: counter(
                &r,
                "log_bytes_total",
                "Bytes of stdout and stderr written to log files.",
            ),
            log_bytes_dropped: counter(
                &r,
                "log_dropped_bytes_total",
                "Bytes of stdout and stderr thrown away because the disk refused them.",
            ),
            socket_errors: closed(
                &r,
                "process_socket_errors_total",
                "Refused messages and connections on process sockets, by kind.",
                "kind",
                &SocketFault::ALL.map(SocketFault::label),
            ),
            probe_failures: closed(
                &r,
                "probe_failures_total",
                "Probes without an answer, by mode.",
                "mode",
                &PROBES,
            ),
            stalls: counter(&r, "agent_stalls_total", "Times the supervision loop stood still."),
            stall_seconds: registered(
                &r,
                Counter::with_opts(opts(
                    "agent_stall_seconds_total",
                    "How long the supervision loop stood still.",
                )),
            ),
            unenforced_limits: closed(
                &r,
                "unenforced_limits_total",
                "Limits of runs that this host could not enforce, by limit.",
                "limit",
                &LIMITS,
            ),
            keeper_connections_lost: counter(
                &r,
                "keeper_connections_lost_total",
                "Times the connection to the keeper broke.",
            ),
            unsaved: unsaved(&r),
            reloads: reloads(&r),
            requests: Requests::new(&r),
            read: ReadAtScrape::new(&r),
            usage: Mutex::new(Usage::new()),
            registry: r,
        }
    }

    /// A run was spawned after one that ended `after` ago by `cause` (a word of `ExitView::cause`);
    /// for a hang, count from the deadline.
    pub fn restarted(&self, cause: &str, after: Duration) {
        let cause = CAUSES.into_iter().find(|known| *known == cause).unwrap_or("unknown");
        self.runs.restarts.with_label_values(&[cause]).inc();
        self.runs.kill_to_restart.observe(after.as_secs_f64());
    }

    /// The keeper has replaced a run without asking.
    pub fn succeeded(&self) {
        self.runs.successions.inc();
    }

    /// Leftovers of an instance were killed. What follows them is no restart of a run, so it took no time.
    pub fn strays_killed(&self) {
        self.runs.restarts.with_label_values(&["stray"]).inc();
    }

    /// A hung run was killed, this long after its deadline.
    pub fn hang_killed(&self, late: Duration) {
        self.runs.hang_kills.inc();
        self.runs.hang_kill_lateness.observe(late.as_secs_f64());
    }

    /// A heartbeat came, this long after the one before; `interval` is the declared time between two.
    pub fn beat(&self, since_last: Duration, interval: Duration) {
        self.runs.heartbeat_lateness.observe(since_last.saturating_sub(interval).as_secs_f64());
    }

    /// A run could not be started.
    pub fn spawn_failed(&self, fault: SpawnFault) {
        self.runs.spawn_failures.with_label_values(&[fault.label()]).inc();
    }

    /// The keeper wrote and threw away this many log bytes since its last report.
    pub fn logged(&self, kept: u64, dropped: u64) {
        self.log_bytes_kept.inc_by(kept);
        self.log_bytes_dropped.inc_by(dropped);
    }

    /// Something on a process socket was refused.
    pub fn socket_refused(&self, fault: SocketFault) {
        self.socket_errors.with_label_values(&[fault.label()]).inc();
    }

    /// A probe had no answer.
    pub fn probe_failed(&self, mode: &str) {
        self.probe_failures.with_label_values(&[mode]).inc();
    }

    /// The supervision loop stood still for this long.
    pub fn stalled(&self, duration: Duration) {
        self.stalls.inc();
        self.stall_seconds.inc_by(duration.as_secs_f64());
    }

    /// These cgroup files of a run could not be written: `memory.max`, `cpu.max`, `pids.max`.
    pub fn limits_unenforced(&self, files: &[String]) {
        for file in files {
            let controller = file.split('.').next().unwrap_or_default();
            let limit = LIMITS.into_iter().find(|known| *known == controller).unwrap_or("other");
            self.unenforced_limits.with_label_values(&[limit]).inc();
        }
    }

    /// The connection to the keeper broke.
    pub fn keeper_lost(&self) {
        self.keeper_connections_lost.inc();
    }

    /// A change is not on disk (and is tried again), or is by now.
    pub fn unsaved(&self, file: SavedFile, unsaved: bool) {
        self.unsaved.with_label_values(&[file.label()]).set(i64::from(unsaved));
    }

    /// The file was read again, or not all of it could be put in force.
    pub fn reloaded(&self, done: bool) {
        self.reloads.with_label_values(&[RELOADS[usize::from(!done)]]).inc();
    }

    /// A command for the replicated state came to this.
    pub fn proposed(&self, outcome: Outcome) {
        self.cluster.proposed(outcome);
    }

    /// A plan was made.
    pub fn planned(&self, took: Duration) {
        self.cluster.planned(took);
    }

    /// The API answered; `route` is one of its patterns (`/v1/instances/{id}`), never a path.
    pub fn request_served(&self, route: &str, status: u16, took: Duration) {
        let class = match status / 100 {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        self.requests.served.with_label_values(&[route, class]).inc();
        self.requests.seconds.with_label_values(&[route, class]).observe(took.as_secs_f64());
    }

    /// Somebody took nothing of an answer any more, and the connection was closed.
    pub fn reader_given_up(&self) {
        self.requests.given_up.inc();
    }

    /// Everything in Prometheus' text format. `None`: the supervision loop did not answer in time; what
    /// is known without it is shown. Reads files of /proc and of cgroups, so it may take some
    /// milliseconds: call it where blocking is allowed.
    pub fn render(&self, snapshot: Option<&HostSnapshot>, cluster: &ClusterReading) -> String {
        let mut usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        usage.read(snapshot);
        self.read.fill(snapshot, &usage);
        self.cluster.fill(cluster);
        let families = self.registry.gather();
        // The encoder fails only on metrics without a name or a value, and the registry has none.
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }
}

fn reloads(r: &Registry) -> IntCounterVec {
    let help = "Times the agent was asked to read its file again, by what came of it.";
    closed(r, "reloads_total", help, "outcome", &RELOADS)
}

fn unsaved(r: &Registry) -> IntGaugeVec {
    let help = "1: what the agent must not forget is not on disk, and would be lost with the agent.";
    let unsaved = int_gauge_vec(r, "unsaved", help, &["file"]);
    for file in SavedFile::ALL {
        unsaved.with_label_values(&[file.label()]).set(0);
    }
    unsaved
}

impl Runs {
    fn new(r: &Registry) -> Self {
        Runs {
            restarts: closed(
                r,
                "restarts_total",
                "Restarts, by what ended the run before.",
                "cause",
                &CAUSES,
            ),
            kill_to_restart: histogram(
                r,
                "kill_to_restart_seconds",
                "From a run's end (of a hung one: its deadline) to the spawn of the next, back-off included.",
                &RESTART_BUCKETS,
            ),
            successions: counter(
                r,
                "successions_total",
                "Crashed runs that the keeper has replaced without asking.",
            ),
            hang_kills: counter(r, "hang_kills_total", "Runs killed because they gave no sign of life."),
            hang_kill_lateness: histogram(
                r,
                "hang_kill_lateness_seconds",
                "From the deadline of a hung run to its kill.",
                &LATENESS_BUCKETS,
            ),
            heartbeat_lateness: histogram(
                r,
                "heartbeat_lateness_seconds",
                "Time between two heartbeats beyond the declared interval.",
                &LATENESS_BUCKETS,
            ),
            spawn_failures: closed(
                r,
                "spawn_failures_total",
                "Runs that could not be started, by what failed.",
                "step",
                &SpawnFault::ALL.map(SpawnFault::label),
            ),
        }
    }
}

impl Requests {
    fn new(r: &Registry) -> Self {
        Requests {
            served: registered(
                r,
                IntCounterVec::new(
                    opts("api_requests_total", "API requests by route and status class."),
                    &["route", "status"],
                ),
            ),
            seconds: registered(
                r,
                HistogramVec::new(
                    histogram_opts(
                        "api_request_seconds",
                        "From a request's head to its answer's head, by route and status class.",
                        &LATENESS_BUCKETS,
                    ),
                    &["route", "status"],
                ),
            ),
            given_up: counter(
                r,
                "api_stalled_total",
                "API connections closed because nothing of their answer was taken any more.",
            ),
        }
    }
}
