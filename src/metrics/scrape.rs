//! What is read when somebody scrapes, and never in between: instances by state, CPU and memory.

use prometheus::core::{GenericCounterVec, GenericGaugeVec};
use prometheus::{Gauge, GaugeVec, IntGauge, IntGaugeVec, Registry};

use super::family::{gauge, int_gauge, int_gauge_vec, opts, registered};
use super::usage::{Reading, Usage};
use crate::agent::handle::HostSnapshot;

/// Label values of `state`; see [`crate::http::view::InstanceView::state`].
const STATES: [&str; 9] =
    ["waiting", "starting", "ready", "draining", "stopping", "stopped", "backoff", "failed", "paused"];
/// Label values of `part`.
const OWN: [&str; 2] = ["agent", "keeper"];

/// What only a scrape sets.
pub(super) struct ReadAtScrape {
    instances: IntGaugeVec,
    instance_cpu: GenericCounterVec<prometheus::core::AtomicF64>,
    instance_memory: GenericGaugeVec<prometheus::core::AtomicF64>,
    own_cpu: GenericCounterVec<prometheus::core::AtomicF64>,
    own_memory: GaugeVec,
    loop_answers: IntGauge,
    keeper_connected: IntGauge,
    successors: IntGauge,
    host_cpus: IntGauge,
    host_cpu_ratio: Gauge,
    host_load1: Gauge,
    host_memory: Gauge,
    host_memory_available: Gauge,
}

impl ReadAtScrape {
    pub(super) fn new(r: &Registry) -> Self {
        let float_counters =
            |name, help, labels: &[&str]| registered(r, GenericCounterVec::new(opts(name, help), labels));
        let float_gauges =
            |name, help, labels: &[&str]| registered(r, GenericGaugeVec::new(opts(name, help), labels));
        ReadAtScrape {
            instances: int_gauge_vec(r, "instances", "Instances of this host by state.", &["state"]),
            instance_cpu: float_counters(
                "instance_cpu_seconds_total",
                "CPU time of an instance: of its cgroup where it has one, else of its main process.",
                &["process", "instance"],
            ),
            instance_memory: float_gauges(
                "instance_memory_bytes",
                "Memory of an instance: of its cgroup where memory is accounted, else resident memory of its main process.",
                &["process", "instance"],
            ),
            own_cpu: float_counters("own_cpu_seconds_total", "CPU time of agent and keeper.", &["part"]),
            own_memory: float_gauges(
                "own_resident_memory_bytes",
                "Resident memory of agent and keeper.",
                &["part"],
            ),
            loop_answers: int_gauge(
                r,
                "supervision_loop_up",
                "1: the supervision loop answered this scrape in time.",
            ),
            keeper_connected: int_gauge(r, "keeper_connected", "1: the agent is connected to its keeper."),
            successors: int_gauge(
                r,
                "successors",
                "Runs of this host that the keeper would replace after a crash without asking.",
            ),
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

    /// Takes the place of what the scrape before has set.
    pub(super) fn fill(&self, snapshot: Option<&HostSnapshot>, usage: &Usage) {
        self.instances.reset();
        self.instance_cpu.reset();
        self.instance_memory.reset();
        self.own_cpu.reset();
        self.own_memory.reset();

        self.loop_answers.set(i64::from(snapshot.is_some()));
        self.keeper_connected.set(i64::from(snapshot.is_some_and(|s| s.keeper.is_some())));
        self.successors.set(snapshot.map_or(0, |s| i64::try_from(s.successors).unwrap_or(i64::MAX)));
        if let Some(snapshot) = snapshot {
            for state in STATES {
                let count = snapshot.instances.iter().filter(|i| i.state == state).count();
                self.instances.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
            for view in &snapshot.instances {
                let Some(reading) = usage.instance(view) else { continue };
                let name = view.instance.to_string();
                let labels = [view.process.as_str(), &name];
                self.instance_cpu.with_label_values(&labels).inc_by(reading.cpu_seconds);
                self.instance_memory.with_label_values(&labels).set(reading.memory_bytes);
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
