//! Every metric of an agent: its name, its help, its closed labels.
//!
//! Owns the registry. Methods are named by what happened and cost a few atomic operations, so the
//! supervision loop calls them where it happens. What can be read at any time (instances by state, CPU,
//! memory) is read by [`Metrics::render`] when somebody scrapes, and never in between; an instance that
//! is gone is gone from the next scrape. Names follow Prometheus' conventions:
//! <https://prometheus.io/docs/practices/naming/>.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::core::{GenericCounterVec, GenericGaugeVec};
use prometheus::{
    Counter, Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Registry, TextEncoder,
};

use crate::agent::handle::HostSnapshot;
use crate::spec::Probe;

mod family;
mod fault;
mod usage;

use family::{closed, counter, gauge, histogram, histogram_opts, int_gauge, int_gauge_vec, opts, registered};
pub use fault::{SocketFault, SpawnFault};
use usage::{Reading, Usage};

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Label values of `cause`; see [`crate::http::view::ExitView::cause`].
const CAUSES: [&str; 9] =
    ["exit", "signal", "hang", "spawn", "stop", "operator", "fence", "stray", "unknown"];
/// Label values of `state`; see [`crate::http::view::InstanceView::state`].
const STATES: [&str; 9] =
    ["waiting", "starting", "ready", "draining", "stopping", "stopped", "backoff", "failed", "paused"];
const LIMITS: [&str; 4] = ["memory", "cpu", "pids", "other"];
const PROBES: [&str; 3] = ["query", "tcp", "exec"];
const OWN: [&str; 2] = ["agent", "keeper"];

/// Buckets for what should take milliseconds and may take minutes.
const RESTART_BUCKETS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0];
/// Buckets for what should be nothing and may be seconds.
const LATENESS_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// All metrics; see the module.
pub struct Metrics {
    registry: Registry,
    restarts: IntCounterVec,
    kill_to_restart: Histogram,
    hang_kills: IntCounter,
    hang_kill_lateness: Histogram,
    heartbeat_lateness: Histogram,
    spawn_failures: IntCounterVec,
    log_bytes_kept: IntCounter,
    log_bytes_dropped: IntCounter,
    socket_errors: IntCounterVec,
    probe_failures: IntCounterVec,
    stalls: IntCounter,
    stall_seconds: Counter,
    unenforced_limits: IntCounterVec,
    keeper_connections_lost: IntCounter,
    api_requests: IntCounterVec,
    api_request_seconds: HistogramVec,
    read: ReadAtScrape,
    // One scrape at a time: it resets and fills the vectors of `read`.
    usage: Mutex<Usage>,
}

/// What only a scrape sets.
struct ReadAtScrape {
    instances: IntGaugeVec,
    instance_cpu: GenericCounterVec<prometheus::core::AtomicF64>,
    instance_memory: GenericGaugeVec<prometheus::core::AtomicF64>,
    own_cpu: GenericCounterVec<prometheus::core::AtomicF64>,
    own_memory: GaugeVec,
    loop_answers: IntGauge,
    keeper_connected: IntGauge,
    host_cpus: IntGauge,
    host_cpu_ratio: Gauge,
    host_load1: Gauge,
    host_memory: Gauge,
    host_memory_available: Gauge,
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
            restarts: closed(
                &r,
                "restarts_total",
                "Restarts, by what ended the run before; stray: leftovers that were killed.",
                "cause",
                &CAUSES,
            ),
            kill_to_restart: histogram(
                &r,
                "kill_to_restart_seconds",
                "From a run's end (of a hung one: its deadline) to the spawn of the next, back-off included.",
                &RESTART_BUCKETS,
            ),
            hang_kills: counter(&r, "hang_kills_total", "Runs killed because they gave no sign of life."),
            hang_kill_lateness: histogram(
                &r,
                "hang_kill_lateness_seconds",
                "From the deadline of a hung run to its kill.",
                &LATENESS_BUCKETS,
            ),
            heartbeat_lateness: histogram(
                &r,
                "heartbeat_lateness_seconds",
                "Time between two heartbeats beyond the declared interval.",
                &LATENESS_BUCKETS,
            ),
            spawn_failures: closed(
                &r,
                "spawn_failures_total",
                "Runs that could not be started, by what failed.",
                "step",
                &SpawnFault::ALL.map(SpawnFault::label),
            ),
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
            api_requests: registered(
                &r,
                IntCounterVec::new(
                    opts("api_requests_total", "API requests by route and status class."),
                    &["route", "status"],
                ),
            ),
            api_request_seconds: registered(
                &r,
                HistogramVec::new(
                    histogram_opts(
                        "api_request_seconds",
                        "From a request's head to its answer's head, by route and status class.",
                        &LATENESS_BUCKETS,
                    ),
                    &["route", "status"],
                ),
            ),
            read: ReadAtScrape::new(&r),
            usage: Mutex::new(Usage::new()),
            registry: r,
        }
    }

    /// A run was spawned after one that ended `after` ago by `cause` (a word of `ExitView::cause`);
    /// for a hang, count from the deadline.
    pub fn restarted(&self, cause: &str, after: Duration) {
        let cause = CAUSES.into_iter().find(|known| *known == cause).unwrap_or("unknown");
        self.restarts.with_label_values(&[cause]).inc();
        self.kill_to_restart.observe(after.as_secs_f64());
    }

    /// Leftovers of an instance were killed. What follows them is no restart of a run, so it took no time.
    pub fn strays_killed(&self) {
        self.restarts.with_label_values(&["stray"]).inc();
    }

    /// A hung run was killed, this long after its deadline.
    pub fn hang_killed(&self, late: Duration) {
        self.hang_kills.inc();
        self.hang_kill_lateness.observe(late.as_secs_f64());
    }

    /// A heartbeat came, this long after the one before; `interval` is the declared time between two.
    pub fn beat(&self, since_last: Duration, interval: Duration) {
        self.heartbeat_lateness.observe(since_last.saturating_sub(interval).as_secs_f64());
    }

    /// A run could not be started.
    pub fn spawn_failed(&self, fault: SpawnFault) {
        self.spawn_failures.with_label_values(&[fault.label()]).inc();
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
    pub fn probe_failed(&self, probe: &Probe) {
        let mode = match probe {
            Probe::Query { .. } => "query",
            Probe::Tcp { .. } => "tcp",
            Probe::Exec { .. } => "exec",
        };
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

    /// The API answered; `route` is one of its patterns (`/v1/instances/{id}`), never a path.
    pub fn request_served(&self, route: &str, status: u16, took: Duration) {
        let class = match status / 100 {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        self.api_requests.with_label_values(&[route, class]).inc();
        self.api_request_seconds.with_label_values(&[route, class]).observe(took.as_secs_f64());
    }

    /// Everything in Prometheus' text format. `None`: the supervision loop did not answer in time; what
    /// is known without it is shown. Reads files of /proc and of cgroups, so it may take some
    /// milliseconds: call it where blocking is allowed.
    pub fn render(&self, snapshot: Option<&HostSnapshot>) -> String {
        let mut usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        usage.read(snapshot);
        self.read.fill(snapshot, &usage);
        let families = self.registry.gather();
        // The encoder fails only on metrics without a name or a value, and the registry has none.
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }
}

impl ReadAtScrape {
    fn new(r: &Registry) -> Self {
        let float_counters =
            |name, help, label: &str| registered(r, GenericCounterVec::new(opts(name, help), &[label]));
        let float_gauges =
            |name, help, label: &str| registered(r, GenericGaugeVec::new(opts(name, help), &[label]));
        ReadAtScrape {
            instances: int_gauge_vec(r, "instances", "Instances of this host by state.", &["state"]),
            instance_cpu: float_counters(
                "instance_cpu_seconds_total",
                "CPU time of an instance: of its cgroup where it has one, else of its main process.",
                "instance",
            ),
            instance_memory: float_gauges(
                "instance_memory_bytes",
                "Memory of an instance: of its cgroup where memory is accounted, else resident memory of its main process.",
                "instance",
            ),
            own_cpu: float_counters("own_cpu_seconds_total", "CPU time of agent and keeper.", "part"),
            own_memory: float_gauges(
                "own_resident_memory_bytes",
                "Resident memory of agent and keeper.",
                "part",
            ),
            loop_answers: int_gauge(
                r,
                "supervision_loop_up",
                "1: the supervision loop answered this scrape in time.",
            ),
            keeper_connected: int_gauge(r, "keeper_connected", "1: the agent is connected to its keeper."),
            host_cpus: int_gauge(r, "host_cpus", "Cores of the host."),
            host_cpu_ratio: gauge(
                r,
                "host_cpu_busy_ratio",
                "Busy part of all cores since the scrape before, 0 to 1; 0 at the first.",
            ),
            host_load1: gauge(r, "host_load1", "Load average over one minute."),
            host_memory: gauge(r, "host_memory_size_bytes", "Memory of the host."),
            host_memory_available: gauge(
                r,
                "host_memory_available_bytes",
                "Memory that new processes could have.",
            ),
        }
    }

    fn fill(&self, snapshot: Option<&HostSnapshot>, usage: &Usage) {
        self.instances.reset();
        self.instance_cpu.reset();
        self.instance_memory.reset();
        self.own_cpu.reset();
        self.own_memory.reset();

        self.loop_answers.set(i64::from(snapshot.is_some()));
        self.keeper_connected.set(i64::from(snapshot.is_some_and(|s| s.keeper.is_some())));
        if let Some(snapshot) = snapshot {
            for state in STATES {
                let count = snapshot.instances.iter().filter(|i| i.state == state).count();
                self.instances.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
            for view in &snapshot.instances {
                let Some(reading) = usage.instance(view) else { continue };
                let name = view.instance.to_string();
                self.instance_cpu.with_label_values(&[&name]).inc_by(reading.cpu_seconds);
                self.instance_memory.with_label_values(&[&name]).set(reading.memory_bytes);
            }
        }
        for (part, reading) in OWN.into_iter().zip([usage.agent(), usage.keeper()]) {
            let Some(Reading { cpu_seconds, memory_bytes }) = reading else { continue };
            self.own_cpu.with_label_values(&[part]).inc_by(cpu_seconds);
            self.own_memory.with_label_values(&[part]).set(memory_bytes);
        }
        let host = usage.host();
        self.host_cpus.set(host.cpus);
        self.host_cpu_ratio.set(host.busy_ratio);
        self.host_load1.set(host.load1);
        self.host_memory.set(host.memory_bytes);
        self.host_memory_available.set(host.available_bytes);
    }
}
