//! `[process.NAME]`: one entry of the desired set.
//!
//! Owns the defaults of a process and the rules within one key. What keys say about each other is in
//! `check`, ready and heartbeat in `health`. Never sees another process. Called by `parse`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::host::{amounts, labels};
use super::section::{Item, Section};
use super::{health, written};
use crate::spec::{
    Backoff, Drain, GiveUp, Limits, Logs, MAX_COUNT, OnPartition, PlacementPolicy, Population, PortRequest,
    Process, ProcessName, Protocol, Restart, RestartPolicy, Stop, Strategy, Update,
};

const COMMAND: &str = "a list such as [\"/opt/game/zone\", \"--port\", \"{port.game}\"]";

/// Reads a process; what is faulty has its default.
pub(super) fn read(section: &Section<'_>) -> Process {
    let population = population(section);
    let ports = section.read("ports", ports).unwrap_or_default();
    let (ready, heartbeat) = health::read(section, &ports);
    Process {
        command: section.read("command", command).unwrap_or_default(),
        restart: restart(section, &population),
        population,
        user: section.read("user", Item::text),
        group: section.read("group", Item::text),
        working_dir: section.read("working_dir", working_dir),
        env: section.read("env", env).unwrap_or_default(),
        umask: section.read("umask", umask).unwrap_or(0o022),
        nice: section.read("nice", |item| item.number(-20..=19)).map_or(0, |n| n as i32),
        ignore_sigpipe: section.read("ignore_sigpipe", Item::boolean).unwrap_or(true),
        ready,
        heartbeat,
        stop: stop(&section.section("stop", "{ timeout = \"10s\" }")),
        drain: Drain {
            timeout: section
                .section("drain", "{ timeout = \"2h\" }")
                .read("timeout", Item::duration)
                .unwrap_or(Duration::from_secs(2 * 3600)),
        },
        limits: limits(&section.section("limits", "{ memory = \"2GiB\" }")),
        placement: placement(&section.section("placement", "{ strategy = \"pack\" }")),
        update: update(&section.section("update", "{ max_unavailable = 2 }")),
        after: section.read("after", processes).unwrap_or_default(),
        on_partition: section
            .read("on_partition", |item| item.word(written::ON_PARTITION))
            .unwrap_or(OnPartition::Keep),
        logs: section.read("logs", logs).unwrap_or(Logs::Files { size: 10 << 20, files: 5 }),
        build: section.read("build", Item::any_text),
        launch: section.read("launch", processes).unwrap_or_default(),
        labels: section.read("labels", labels).unwrap_or_default(),
        ports,
    }
}

/// A program and its arguments; an argument may be empty, the program may not.
pub(super) fn command(item: &Item<'_>) -> Option<Vec<String>> {
    let parts = item.list(COMMAND)?;
    let Some(program) = parts.first() else {
        return item.refuse(format!("`{}` is empty", item.key), Some(&format!("it wants {COMMAND}")));
    };
    match program.as_str() {
        Some("") => program.refuse::<()>("the program's name is empty", None),
        Some(path) if path.contains('/') && !path.starts_with(['/', '{']) => program.refuse(
            format!("the program {path:?} is a relative path"),
            Some("write an absolute path, or a bare name to be looked up in PATH"),
        ),
        Some(path) if path.contains(" -") && parts.len() == 1 => program.refuse(
            format!("the program {path:?} holds arguments"),
            Some("no shell reads the command: write each argument as its own string"),
        ),
        _ => None,
    };
    Some(parts.iter().filter_map(Item::any_text).collect())
}

fn population(section: &Section<'_>) -> Population {
    let count = section
        .read("count", |item| item.number(0..=i64::from(MAX_COUNT)))
        .map(|n| Population::Count(n as u32));
    let per_host = section.read("per_host", Item::boolean).filter(|yes| *yes).map(|_| Population::PerHost);
    let on_demand = section.read("on_demand", |item| {
        let inner = item.section("a table such as { max = 200 }")?;
        if !inner.has("max") {
            inner.fault("max", "`on_demand` has no `max`", Some("write on_demand = { max = 200 }"));
        }
        Some(Population::OnDemand { max: inner.read("max", |item| item.count(1)).unwrap_or(1) })
    });
    let chosen: Vec<&str> = ["count", "per_host", "on_demand"]
        .into_iter()
        .filter(|key| section.read(key, |item| Some(item.value.as_bool() != Some(false))).unwrap_or(false))
        .collect();
    for key in chosen.iter().skip(1) {
        let title = format!("`{key}` and `{}` exclude each other", chosen[0]);
        section.fault(key, title, Some("keep one of them"));
    }
    count.or(per_host).or(on_demand).unwrap_or(Population::Count(1))
}

fn ports(item: &Item<'_>) -> Option<BTreeMap<String, PortRequest>> {
    let section = item.section("a table such as { game = \"udp\" }")?;
    let mut ports = BTreeMap::new();
    for port in section.items() {
        // The same rules as for a process: the name becomes part of a template.
        if let Err(reason) = port.key.parse::<ProcessName>() {
            port.sink.report(
                port.key_span.clone(),
                format!("{:?} is no port name: {reason}", port.key),
                None,
            );
        }
        ports.extend(port_request(&port).map(|request| (port.key.to_owned(), request)));
    }
    Some(ports)
}

fn port_request(item: &Item<'_>) -> Option<PortRequest> {
    const WANTED: &str = "a port such as \"udp\", \"tcp\", 7777, \"7777/udp\" or \"7777/tcp\"";
    let protocol = |text: &str| match text {
        "udp" => Some(Protocol::Udp),
        "tcp" => Some(Protocol::Tcp),
        _ => None,
    };
    let fixed = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let request = match item.value {
        toml::de::DeValue::Integer(n) => {
            fixed(&n.to_string()).map(|port| PortRequest { protocol: Protocol::Udp, fixed: Some(port) })
        }
        _ => item.as_str().and_then(|text| match text.split_once('/') {
            None => protocol(text).map(|protocol| PortRequest { protocol, fixed: None }),
            Some((port, name)) => fixed(port)
                .zip(protocol(name))
                .map(|(port, protocol)| PortRequest { protocol, fixed: Some(port) }),
        }),
    };
    request.or_else(|| item.wanted(WANTED))
}

fn working_dir(item: &Item<'_>) -> Option<String> {
    let text = item.text()?;
    if !text.starts_with(['/', '{']) {
        return item.wanted("an absolute path such as \"/opt/game\" or \"{data}/world\"");
    }
    Some(text)
}

fn env(item: &Item<'_>) -> Option<BTreeMap<String, String>> {
    for variable in item.section("a table such as { REGION = \"eu\" }")?.items() {
        if variable.key.contains('=') {
            let title = format!("{:?} is no name of an environment variable: it holds '='", variable.key);
            variable.sink.report(variable.key_span.clone(), title, None);
        }
    }
    item.map("a table", Item::any_text)
}

fn umask(item: &Item<'_>) -> Option<u32> {
    let octal =
        |text: &&str| (1..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mask = item.as_str().filter(octal).and_then(|text| u32::from_str_radix(text, 8).ok());
    mask.filter(|mask| *mask <= 0o777)
        .or_else(|| item.wanted("an octal string from \"0000\" to \"0777\", such as \"0027\""))
}

fn restart(section: &Section<'_>, population: &Population) -> Restart {
    let default = match population {
        Population::OnDemand { .. } => RestartPolicy::OnFailure,
        _ => RestartPolicy::Always,
    };
    let section = section.section("restart", "{ policy = \"never\" }");
    Restart {
        policy: section.read("policy", |item| item.word(written::RESTART)).unwrap_or(default),
        backoff: switch(&section, "backoff", "{ min = \"100ms\", max = \"30s\" }", backoff),
        healthy_after: section.read("healthy_after", Item::duration).unwrap_or(Duration::from_secs(60)),
        give_up: switch(&section, "give_up", "{ failures = 5, within = \"10m\" }", |inner| GiveUp {
            failures: inner.read("failures", |item| item.count(1)).unwrap_or(5),
            within: inner.read("within", Item::span_of_time).unwrap_or(Duration::from_secs(600)),
        }),
    }
}

/// `key = false`, or a table with defaults.
fn switch<T>(
    section: &Section<'_>,
    key: &str,
    example: &str,
    read: impl FnOnce(&Section<'_>) -> T,
) -> Option<T> {
    match section.item(key) {
        Some(item) if item.value.as_bool() == Some(false) => None,
        Some(item) if !item.value.is_table() => item.wanted(&format!("a table such as {example}, or false")),
        _ => Some(read(&section.again(key))),
    }
}

fn backoff(section: &Section<'_>) -> Backoff {
    let min = section.read("min", Item::span_of_time).unwrap_or(Duration::from_millis(100));
    let max = section.read("max", Item::span_of_time).unwrap_or(Duration::from_secs(30).max(min));
    if min > max {
        section.fault(
            if section.has("min") { "min" } else { "max" },
            format!(
                "`min` is {}, more than `max`, {}",
                humantime::format_duration(min),
                humantime::format_duration(max)
            ),
            None,
        );
    }
    Backoff { min, max }
}

fn stop(section: &Section<'_>) -> Stop {
    Stop {
        signal: section.read("signal", signal).unwrap_or(15),
        timeout: section.read("timeout", Item::duration).unwrap_or(Duration::from_secs(10)),
    }
}

fn signal(item: &Item<'_>) -> Option<i32> {
    use nix::sys::signal::Signal;
    let named = |text: &str| text.parse::<Signal>().or_else(|_| format!("SIG{text}").parse()).ok();
    item.as_str()
        .and_then(named)
        .map(|signal| signal as i32)
        .or_else(|| item.wanted("the name of a signal, such as \"SIGTERM\" or \"INT\""))
}

fn limits(section: &Section<'_>) -> Limits {
    let number = |key: &str, least: i64| {
        let read = section.read(key, |item| item.number(least..=1 << 30));
        read.and_then(|n| u64::try_from(n).ok())
    };
    Limits {
        memory: section.read("memory", Item::positive_size),
        cpu_milli: section.read("cpu", cpu),
        pids: number("pids", 1),
        // A program needs stdin, stdout and stderr, its libraries and its sockets.
        files: number("files", 16),
        core: section.read("core", Item::size),
        required: section.read("required", Item::boolean).unwrap_or(false),
    }
}

fn cpu(item: &Item<'_>) -> Option<u64> {
    let cores = match item.value {
        toml::de::DeValue::Float(n) => n.as_str().parse::<f64>().ok(),
        toml::de::DeValue::Integer(n) => n.to_string().parse::<f64>().ok(),
        _ => None,
    };
    // The kernel's smallest share is 1 ms in 100 ms.
    cores
        .filter(|cores| (0.01..=4096.0).contains(cores))
        .map(|cores| (cores * 1000.0).round() as u64)
        .or_else(|| item.wanted("a number of cores from 0.01 to 4096, such as 1.5"))
}

fn placement(section: &Section<'_>) -> PlacementPolicy {
    PlacementPolicy {
        labels: section.read("labels", labels).unwrap_or_default(),
        strategy: section.read("strategy", |item| item.word(written::STRATEGY)).unwrap_or(Strategy::Spread),
        max_per_host: section.read("max_per_host", |item| item.count(1)),
        needs: section.read("needs", amounts).unwrap_or_default(),
    }
}

fn update(section: &Section<'_>) -> Update {
    Update {
        max_unavailable: section.read("max_unavailable", |item| item.count(1)).unwrap_or(1),
        when_empty: section.read("when_empty", Item::boolean).unwrap_or(false),
        deadline: section.read("deadline", Item::duration),
    }
}

fn processes(item: &Item<'_>) -> Option<Vec<ProcessName>> {
    item.list_of("a list of processes such as [\"login\"]", Item::parsed::<ProcessName>)
}

fn logs(item: &Item<'_>) -> Option<Logs> {
    if item.value.is_str() {
        return item.word(&[("journald", Logs::Journald), ("null", Logs::Null)]);
    }
    let section =
        item.section("a table such as { size = \"10MiB\", files = 5 }, \"journald\" or \"null\"")?;
    Some(Logs::Files {
        size: section.read("size", Item::positive_size).unwrap_or(10 << 20),
        files: section.read("files", |item| item.number(1..=1000)).map_or(5, |n| n as u32),
    })
}
