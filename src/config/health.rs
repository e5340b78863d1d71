//! `ready` and `heartbeat` of a process: two settings that lend each other what is left out.
//!
//! Owns their defaults, which follow from each other, and the rules on intervals and ports of probes. Never
//! probes anything. Called by `process`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::fault::suggestion;
use super::section::{Item, Section};
use super::{process, written};
use crate::spec::{
    Heartbeat, HeartbeatMode, OnHang, PortRequest, Probe, Protocol, QueryProtocol, Ready, ReadyMode,
};

type Ports = BTreeMap<String, PortRequest>;

/// The words of `mode`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Native,
    Notify,
    Query,
    Tcp,
    Exec,
    Spawned,
    None,
}

const READY: &[(&str, Mode)] = &[
    ("native", Mode::Native),
    ("notify", Mode::Notify),
    ("query", Mode::Query),
    ("tcp", Mode::Tcp),
    ("exec", Mode::Exec),
    ("spawned", Mode::Spawned),
];

const HEARTBEAT: &[(&str, Mode)] = &[
    ("native", Mode::Native),
    ("notify", Mode::Notify),
    ("query", Mode::Query),
    ("tcp", Mode::Tcp),
    ("exec", Mode::Exec),
    ("none", Mode::None),
];

/// Keys that only some modes take.
const OWN_KEYS: &[(&str, &[Mode])] = &[
    ("after", &[Mode::Spawned]),
    ("protocol", &[Mode::Query]),
    ("port", &[Mode::Query, Mode::Tcp]),
    ("command", &[Mode::Exec]),
];

pub(super) fn read(section: &Section<'_>, ports: &Ports) -> (Ready, Heartbeat) {
    let ready = section.section("ready", "{ mode = \"native\" }");
    let heartbeat = section.section("heartbeat", "{ mode = \"native\" }");
    let beat_mode = heartbeat_mode(section, &heartbeat);
    let ready_mode = ready.read("mode", |item| item.word(READY)).unwrap_or(match beat_mode {
        _ if ready.has("after") => Mode::Spawned,
        Mode::None => Mode::Spawned,
        mode => mode,
    });
    let same = ready_mode == beat_mode;
    refuse_strays(&ready, ready_mode, READY);
    refuse_strays(&heartbeat, beat_mode, HEARTBEAT);
    (
        Ready {
            timeout: ready_timeout(&ready, ready_mode),
            mode: match ready_mode {
                Mode::Native => ReadyMode::Native,
                Mode::Notify => ReadyMode::Notify,
                Mode::Spawned | Mode::None => ReadyMode::Spawned { after: after(&ready) },
                mode => Asked { name: "ready", mode, own: &ready, lender: same.then_some(&heartbeat), ports }
                    .probe()
                    .map_or(ReadyMode::Native, ReadyMode::Probe),
            },
        },
        timed(
            &heartbeat,
            match beat_mode {
                Mode::Native => HeartbeatMode::Native,
                Mode::Notify => HeartbeatMode::Notify,
                Mode::None | Mode::Spawned => HeartbeatMode::None,
                mode => {
                    Asked { name: "heartbeat", mode, own: &heartbeat, lender: same.then_some(&ready), ports }
                        .probe()
                        .map_or(HeartbeatMode::None, HeartbeatMode::Probe)
                }
            },
        ),
    )
}

fn heartbeat_mode(process: &Section<'_>, heartbeat: &Section<'_>) -> Mode {
    if process.item("heartbeat").is_some_and(|item| item.value.is_table()) && !heartbeat.has("mode") {
        heartbeat.fault(
            "mode",
            "`heartbeat` has no `mode`",
            Some("such as heartbeat = { mode = \"native\" }"),
        );
    }
    heartbeat.read("mode", |item| item.word(HEARTBEAT)).unwrap_or(Mode::None)
}

fn refuse_strays(section: &Section<'_>, mode: Mode, words: &[(&str, Mode)]) {
    let word = |mode: &Mode| words.iter().find(|(_, m)| m == mode).map(|(word, _)| *word);
    // A faulty mode has its own fault, and no keys of its own.
    if section.has("mode") && section.item("mode").and_then(|item| item.as_str()) != word(&mode) {
        return;
    }
    for (key, modes) in OWN_KEYS.iter().filter(|(_, modes)| !modes.contains(&mode)) {
        if let Some(item) = section.item(key) {
            let takers: Vec<&str> = modes.iter().filter_map(word).collect();
            if !takers.is_empty() {
                let title = format!("mode {:?} takes no `{key}`", word(&mode).unwrap_or("none"));
                let help = format!("`{key}` belongs to mode {}", takers.join(" and "));
                item.sink.report(item.key_span, title, Some(help));
            }
        }
    }
}

/// A program that dies at its start must not count as ready, or a bad update would go on past it.
const SPAWNED_AFTER: Duration = Duration::from_secs(1);

fn after(ready: &Section<'_>) -> Duration {
    ready.read("after", Item::duration).unwrap_or(SPAWNED_AFTER)
}

fn ready_timeout(ready: &Section<'_>, mode: Mode) -> Duration {
    let after = if mode == Mode::Spawned { after(ready) } else { Duration::ZERO };
    let timeout = ready
        .read("timeout", Item::span_of_time)
        .unwrap_or(Duration::from_secs(30).max(after + Duration::from_secs(1)));
    if timeout <= after {
        ready.fault("timeout", "`timeout` must be more than `after`: no run could get ready", None);
    }
    timeout
}

/// The probe of `ready` or `heartbeat`, with the other one, if of the same mode, as the lender of what is
/// left out.
struct Asked<'a, 's> {
    name: &'static str,
    mode: Mode,
    own: &'s Section<'a>,
    lender: Option<&'s Section<'a>>,
    ports: &'s Ports,
}

impl<'a> Asked<'a, '_> {
    fn item(&self, key: &str) -> Option<Item<'a>> {
        self.own.item(key).or_else(|| self.lender?.item(key))
    }

    fn missing<T>(&self, key: &str, help: &str) -> Option<T> {
        self.own.fault("mode", format!("`{}` has no `{key}`", self.name), Some(help));
        None
    }

    fn probe(&self) -> Option<Probe> {
        match self.mode {
            Mode::Query => {
                let Some(item) = self.item("protocol") else {
                    return self.missing("protocol", &format!("one of {}", written::words(written::QUERY)));
                };
                let protocol = item.word(written::QUERY)?;
                let transport = match protocol {
                    QueryProtocol::Minecraft => Protocol::Tcp,
                    _ => Protocol::Udp,
                };
                Some(Probe::Query { protocol, port: self.port(transport)? })
            }
            Mode::Tcp => Some(Probe::Tcp { port: self.port(Protocol::Tcp)? }),
            _ => match self.item("command") {
                Some(item) => process::command(&item).map(|command| Probe::Exec { command }),
                None => self.missing("command", "such as command = [\"/usr/bin/redis-cli\", \"ping\"]"),
            },
        }
    }

    /// The name of the port to ask.
    fn port(&self, transport: Protocol) -> Option<String> {
        let names = || self.ports.keys().map(String::as_str);
        let declare = |name: &str| format!("add ports = {{ {name} = \"{transport}\" }}");
        let Some(item) = self.item("port") else {
            let mut fit = self.ports.iter().filter(|(_, request)| request.protocol == transport);
            return match (fit.next(), fit.next()) {
                (Some((name, _)), None) => Some(name.clone()),
                (None, _) => self.missing("port", &declare("game")),
                _ => {
                    let all = names().collect::<Vec<_>>().join(", ");
                    self.missing("port", &format!("there are several {transport} ports: {all}"))
                }
            };
        };
        let name = item.text()?;
        match self.ports.get(&name) {
            Some(request) if request.protocol == transport => Some(name),
            Some(request) => item.refuse(
                format!("port `{name}` is {}, this mode wants a {transport} port", request.protocol),
                None,
            ),
            None => {
                let help = suggestion(&name, names()).unwrap_or_else(|| declare(&name));
                item.refuse(format!("`ports` declares no `{name}`"), Some(&help))
            }
        }
    }
}

fn timed(section: &Section<'_>, mode: HeartbeatMode) -> Heartbeat {
    let query = match &mode {
        HeartbeatMode::Probe(Probe::Query { protocol, .. }) => Some(*protocol),
        _ => None,
    };
    let shortest = query.map_or(Duration::ZERO, QueryProtocol::shortest_interval);
    let interval =
        section.read("interval", Item::span_of_time).unwrap_or(Duration::from_secs(1).max(shortest));
    let timeout =
        section.read("timeout", Item::span_of_time).unwrap_or(Duration::from_secs(5).max(interval * 3));
    let shown = humantime::format_duration;
    if interval < shortest {
        section.fault(
            "interval",
            format!(
                "`interval` is {}, the shortest for this protocol is {}",
                shown(interval),
                shown(shortest)
            ),
            Some("stock servers drop faster queries without a word, and would look hung"),
        );
    }
    let key = if section.has("timeout") { "timeout" } else { "interval" };
    if query.is_some() && timeout < interval * 3 {
        section.fault(
            key,
            format!(
                "`timeout` is {}, it must be at least 3 x `interval`, {}",
                shown(timeout),
                shown(interval * 3)
            ),
            Some("a query is a datagram, and two in a row may be lost"),
        );
    } else if mode != HeartbeatMode::None && timeout <= interval {
        section.fault(
            key,
            format!("`timeout` is {}, it must be more than `interval`, {}", shown(timeout), shown(interval)),
            None,
        );
    }
    Heartbeat {
        mode,
        interval,
        timeout,
        on_hang: section.read("on_hang", |item| item.word(written::ON_HANG)).unwrap_or(OnHang::Kill),
        abort_timeout: section.read("abort_timeout", Item::span_of_time).unwrap_or(Duration::from_secs(10)),
    }
}
