//! A process as it would be written in a cluster.toml: key by key, every default spelt out.
//!
//! Owns the words of the file. The way back from [`Process`] to keys; `difference` shows it to people, and
//! the tests read it again and must get the same process. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use toml::Value;

use crate::spec::{
    Heartbeat, HeartbeatMode, Limits, Logs, OnHang, OnPartition, PlacementPolicy, Population, PortRequest,
    Probe, Process, ProcessName, Protocol, QueryProtocol, Ready, ReadyMode, Restart, RestartPolicy, Strategy,
    Update,
};

/// The words of `on_partition`.
pub(super) const ON_PARTITION: &[(&str, OnPartition)] =
    &[("keep", OnPartition::Keep), ("stop", OnPartition::Stop)];

/// The words of `restart.policy`.
pub(super) const RESTART: &[(&str, RestartPolicy)] = &[
    ("always", RestartPolicy::Always),
    ("on-failure", RestartPolicy::OnFailure),
    ("never", RestartPolicy::Never),
];

/// The words of `placement.strategy`.
pub(super) const STRATEGY: &[(&str, Strategy)] = &[("spread", Strategy::Spread), ("pack", Strategy::Pack)];

/// The words of `heartbeat.on_hang`.
pub(super) const ON_HANG: &[(&str, OnHang)] = &[("kill", OnHang::Kill), ("abort", OnHang::Abort)];

/// The words of `protocol`.
pub(super) const QUERY: &[(&str, QueryProtocol)] = &[
    ("teeworlds", QueryProtocol::Teeworlds),
    ("ddnet", QueryProtocol::Ddnet),
    ("quake3", QueryProtocol::Quake3),
    ("valve", QueryProtocol::Valve),
    ("minecraft", QueryProtocol::Minecraft),
];

/// All words of a list, quoted.
pub(super) fn words<T>(words: &[(&str, T)]) -> String {
    words.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>().join(", ")
}

fn word<T: PartialEq>(words: &[(&str, T)], value: T) -> String {
    words.iter().find(|(_, v)| *v == value).map_or_else(String::new, |(word, _)| text(word))
}

/// The keys of a process below `[process.NAME]`, dotted, and their values as TOML. What is not set is not there.
pub fn process(process: &Process) -> BTreeMap<String, String> {
    // Taken apart by name, so that a new key cannot be forgotten here.
    let Process {
        command,
        population,
        ports,
        user,
        group,
        working_dir,
        env,
        umask,
        nice,
        ignore_sigpipe,
        ready,
        heartbeat,
        restart,
        stop,
        drain,
        limits,
        placement,
        update,
        after,
        on_partition,
        logs,
        build,
        launch,
        labels,
    } = process;
    let mut keys = Keys::default();
    keys.set("command", list(command));
    keys.population(population);
    keys.table("ports", ports, |request| port(*request));
    keys.optional("user", user.as_deref().map(text));
    keys.optional("group", group.as_deref().map(text));
    keys.optional("working_dir", working_dir.as_deref().map(text));
    keys.table("env", env, |value| text(value));
    keys.set("umask", text(&format!("{umask:04o}")));
    keys.set("nice", nice.to_string());
    keys.set("ignore_sigpipe", ignore_sigpipe.to_string());
    keys.ready(ready);
    keys.heartbeat(heartbeat);
    keys.restart(restart);
    keys.set("stop.signal", signal(stop.signal));
    keys.set("stop.timeout", duration(stop.timeout));
    keys.set("drain.timeout", duration(drain.timeout));
    keys.limits(limits);
    keys.placement(placement);
    keys.update(update);
    keys.set("after", names(after));
    keys.set("on_partition", word(ON_PARTITION, *on_partition));
    keys.logs(logs);
    keys.optional("build", build.as_deref().map(text));
    keys.set("launch", names(launch));
    keys.table("labels", labels, |value| text(value));
    keys.0
}

#[derive(Default)]
struct Keys(BTreeMap<String, String>);

impl Keys {
    fn set(&mut self, key: &str, value: String) {
        self.0.insert(key.to_owned(), value);
    }

    fn optional(&mut self, key: &str, value: Option<String>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }

    fn table<T>(&mut self, key: &str, entries: &BTreeMap<String, T>, value: impl Fn(&T) -> String) {
        for (name, entry) in entries {
            self.set(&format!("{key}.{}", segment(name)), value(entry));
        }
    }

    fn population(&mut self, population: &Population) {
        match population {
            Population::Count(count) => self.set("count", count.to_string()),
            Population::PerHost => self.set("per_host", "true".to_owned()),
            Population::OnDemand { max } => self.set("on_demand.max", max.to_string()),
        }
    }

    fn ready(&mut self, ready: &Ready) {
        let Ready { mode, timeout } = ready;
        let name = match mode {
            ReadyMode::Native => "native",
            ReadyMode::Notify => "notify",
            ReadyMode::Probe(probe) => self.probe("ready", probe),
            ReadyMode::Spawned { after } => {
                self.set("ready.after", duration(*after));
                "spawned"
            }
        };
        self.set("ready.mode", text(name));
        self.set("ready.timeout", duration(*timeout));
    }

    fn heartbeat(&mut self, heartbeat: &Heartbeat) {
        let Heartbeat { mode, interval, timeout, on_hang, abort_timeout } = heartbeat;
        let name = match mode {
            HeartbeatMode::Native => "native",
            HeartbeatMode::Notify => "notify",
            HeartbeatMode::Probe(probe) => self.probe("heartbeat", probe),
            HeartbeatMode::None => "none",
        };
        self.set("heartbeat.mode", text(name));
        self.set("heartbeat.interval", duration(*interval));
        self.set("heartbeat.timeout", duration(*timeout));
        self.set("heartbeat.on_hang", word(ON_HANG, *on_hang));
        self.set("heartbeat.abort_timeout", duration(*abort_timeout));
    }

    /// Sets the probe's own keys and gives its mode.
    fn probe(&mut self, key: &str, probe: &Probe) -> &'static str {
        match probe {
            Probe::Query { protocol, port } => {
                self.set(&format!("{key}.protocol"), word(QUERY, *protocol));
                self.set(&format!("{key}.port"), text(port));
                "query"
            }
            Probe::Tcp { port } => {
                self.set(&format!("{key}.port"), text(port));
                "tcp"
            }
            Probe::Exec { command } => {
                self.set(&format!("{key}.command"), list(command));
                "exec"
            }
        }
    }

    fn restart(&mut self, restart: &Restart) {
        let Restart { policy, backoff, healthy_after, give_up } = restart;
        self.set("restart.policy", word(RESTART, *policy));
        match backoff {
            None => self.set("restart.backoff", "false".to_owned()),
            Some(backoff) => {
                self.set("restart.backoff.min", duration(backoff.min));
                self.set("restart.backoff.max", duration(backoff.max));
            }
        }
        self.set("restart.healthy_after", duration(*healthy_after));
        match give_up {
            None => self.set("restart.give_up", "false".to_owned()),
            Some(give_up) => {
                self.set("restart.give_up.failures", give_up.failures.to_string());
                self.set("restart.give_up.within", duration(give_up.within));
            }
        }
    }

    fn limits(&mut self, limits: &Limits) {
        let Limits { memory, cpu_milli, pids, files, core, required } = limits;
        self.optional("limits.memory", memory.map(size));
        self.optional("limits.cpu", cpu_milli.map(|milli| Value::Float(milli as f64 / 1000.0).to_string()));
        self.optional("limits.pids", pids.map(|n| n.to_string()));
        self.optional("limits.files", files.map(|n| n.to_string()));
        self.optional("limits.core", core.map(size));
        self.set("limits.required", required.to_string());
    }

    fn placement(&mut self, placement: &PlacementPolicy) {
        let PlacementPolicy { labels, strategy, max_per_host, needs } = placement;
        self.table("placement.labels", labels, |value| text(value));
        self.set("placement.strategy", word(STRATEGY, *strategy));
        self.optional("placement.max_per_host", max_per_host.map(|n| n.to_string()));
        self.table("placement.needs", needs, u64::to_string);
    }

    fn update(&mut self, update: &Update) {
        let Update { max_unavailable, when_empty, deadline } = update;
        self.set("update.max_unavailable", max_unavailable.to_string());
        self.set("update.when_empty", when_empty.to_string());
        self.optional("update.deadline", deadline.map(duration));
    }

    fn logs(&mut self, logs: &Logs) {
        match logs {
            Logs::Files { size: bytes, files } => {
                self.set("logs.size", size(*bytes));
                self.set("logs.files", files.to_string());
            }
            Logs::Journald => self.set("logs", text("journald")),
            Logs::Null => self.set("logs", text("null")),
        }
    }
}

fn text(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

fn list(items: &[String]) -> String {
    Value::Array(items.iter().cloned().map(Value::String).collect()).to_string()
}

fn names(names: &[ProcessName]) -> String {
    Value::Array(names.iter().map(|name| Value::String(name.to_string())).collect()).to_string()
}

/// A name as a part of a dotted key: the library knows how keys are quoted.
fn segment(name: &str) -> String {
    let entry = toml::Table::from_iter([(name.to_owned(), Value::Boolean(true))]).to_string();
    entry.strip_suffix(" = true\n").map_or_else(|| text(name), str::to_owned)
}

fn duration(duration: Duration) -> String {
    text(&humantime::format_duration(duration).to_string())
}

/// The largest unit that keeps the exact number.
fn size(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = units.iter().find(|(_, shift)| bytes > 0 && bytes.trailing_zeros() >= *shift);
    unit.map_or_else(|| bytes.to_string(), |(name, shift)| text(&format!("{}{name}", bytes >> shift)))
}

fn port(request: PortRequest) -> String {
    match request {
        PortRequest { protocol, fixed: None } => text(&protocol.to_string()),
        PortRequest { protocol: Protocol::Udp, fixed: Some(port) } => port.to_string(),
        PortRequest { protocol, fixed: Some(port) } => text(&format!("{port}/{protocol}")),
    }
}

fn signal(number: i32) -> String {
    let signal = nix::sys::signal::Signal::try_from(number);
    text(&signal.map_or_else(|_| number.to_string(), |signal| signal.as_str().to_owned()))
}
