//! The spec hash: whether a change of a process needs a restart of its instances.
//!
//! Pure. The plan stamps it on placements; the host core compares it with what runs. The bytes are
//! canonical and versioned (`VERSION` first, then each field length-prefixed in the order below), so
//! that two builds of the program agree; the golden test holds them.

use serde::{Deserialize, Serialize};

use super::Process;

/// Bumped when the bytes below change their meaning.
const VERSION: u8 = 1;

/// The FNV-1a hash (64 bit; Fowler, Noll and Vo) of what cannot be changed in a living process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SpecHash(pub u64);

impl std::fmt::Display for SpecHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl SpecHash {
    /// The hash of the same process after its instances were asked for anew this often
    /// ([`crate::state::Command::Roll`]): a new binary at the same path changes nothing else. 0 leaves it as it is.
    pub fn at_epoch(self, epoch: u64) -> SpecHash {
        match epoch {
            0 => self,
            _ => SpecHash(fnv1a_on(self.0, &epoch.to_le_bytes())),
        }
    }
}

/// Hashes the parts of a process that need a restart: command, env, user, group, working_dir, ports,
/// umask, nice, SIGPIPE, resource limits of the process itself and `build`.
pub fn spec_hash(process: &Process) -> SpecHash {
    SpecHash(fnv1a(&canonical_bytes(process)))
}

pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    fnv1a_on(0xcbf2_9ce4_8422_2325, bytes)
}

/// Goes on where a hash has ended.
fn fnv1a_on(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn canonical_bytes(process: &Process) -> Vec<u8> {
    let mut out = vec![VERSION];
    list(&mut out, process.command.iter().map(String::as_str));
    list(&mut out, process.env.iter().flat_map(|(k, v)| [k.as_str(), v.as_str()]));
    option(&mut out, process.user.as_deref());
    option(&mut out, process.group.as_deref());
    option(&mut out, process.working_dir.as_deref());
    count(&mut out, process.ports.len());
    for (name, request) in &process.ports {
        text(&mut out, name);
        text(&mut out, &request.protocol.to_string());
        out.extend(request.fixed.unwrap_or(0).to_le_bytes());
    }
    out.extend(process.umask.to_le_bytes());
    out.extend(process.nice.to_le_bytes());
    out.push(u8::from(process.ignore_sigpipe));
    for limit in [process.limits.files, process.limits.core] {
        out.push(u8::from(limit.is_some()));
        out.extend(limit.unwrap_or(0).to_le_bytes());
    }
    option(&mut out, process.build.as_deref());
    out
}

fn count(out: &mut Vec<u8>, n: usize) {
    out.extend((n as u64).to_le_bytes());
}

fn text(out: &mut Vec<u8>, value: &str) {
    count(out, value.len());
    out.extend(value.as_bytes());
}

fn option(out: &mut Vec<u8>, value: Option<&str>) {
    out.push(u8::from(value.is_some()));
    text(out, value.unwrap_or(""));
}

fn list<'a>(out: &mut Vec<u8>, items: impl Iterator<Item = &'a str>) {
    let items: Vec<&str> = items.collect();
    count(out, items.len());
    for item in items {
        text(out, item);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::spec::{
        Backoff, Drain, GiveUp, Heartbeat, HeartbeatMode, Limits, Logs, OnHang, OnPartition, PlacementPolicy,
        Population, PortRequest, Protocol, Ready, ReadyMode, Restart, RestartPolicy, Stop, Strategy, Update,
    };

    type Change = fn(&mut Process);

    fn port(protocol: Protocol, fixed: Option<u16>) -> PortRequest {
        PortRequest { protocol, fixed }
    }

    fn sample() -> Process {
        let second = Duration::from_secs(1);
        Process {
            command: vec!["/opt/game/zone".into(), "--port".into(), "{port.game}".into()],
            population: Population::Count(4),
            ports: [
                ("game".to_owned(), port(Protocol::Udp, None)),
                ("rcon".to_owned(), port(Protocol::Tcp, Some(7778))),
            ]
            .into(),
            user: Some("games".into()),
            group: None,
            working_dir: Some("/opt/game".into()),
            env: [("REGION".to_owned(), "eu".to_owned())].into(),
            umask: 0o027,
            nice: -5,
            ignore_sigpipe: true,
            ready: Ready { mode: ReadyMode::Native, timeout: second },
            heartbeat: Heartbeat {
                mode: HeartbeatMode::Native,
                interval: second,
                timeout: 5 * second,
                on_hang: OnHang::Kill,
                abort_timeout: second,
            },
            restart: Restart {
                policy: RestartPolicy::Always,
                backoff: Some(Backoff { min: second, max: second }),
                healthy_after: second,
                give_up: Some(GiveUp { failures: 5, within: second }),
            },
            stop: Stop { signal: 15, timeout: second },
            drain: Drain { timeout: second },
            limits: Limits {
                memory: Some(1 << 30),
                cpu_milli: Some(1500),
                pids: Some(64),
                files: Some(65_536),
                core: None,
                required: false,
            },
            placement: PlacementPolicy {
                labels: [("region".to_owned(), "eu".to_owned())].into(),
                strategy: Strategy::Spread,
                max_per_host: None,
                needs: [("slots".to_owned(), 1)].into(),
            },
            update: Update { max_unavailable: 1, when_empty: false, deadline: None },
            after: vec![],
            on_partition: OnPartition::Keep,
            logs: Logs::Files { size: 1 << 20, files: 5 },
            build: Some("1.4.2".into()),
            launch: vec![],
            labels: [].into(),
        }
    }

    /// The number was computed from the description of the bytes by another program, not by this one.
    #[test]
    fn the_hash_of_a_process_never_changes() {
        assert_eq!(spec_hash(&sample()).to_string(), "32519c7b44ea7d3f");
    }

    /// Computed by another program, too.
    #[test]
    fn each_epoch_has_a_hash_of_its_own_and_the_first_is_the_specs() {
        let hash = spec_hash(&sample());
        assert_eq!(hash.at_epoch(0), hash);
        assert_eq!(hash.at_epoch(1).to_string(), "41ace6cd035010fe");
        let all: std::collections::BTreeSet<_> = (0..1000).map(|epoch| hash.at_epoch(epoch)).collect();
        assert_eq!(all.len(), 1000);
    }

    #[test]
    fn what_a_living_process_cannot_take_over_changes_the_hash() {
        let changes: &[(&str, Change)] = &[
            ("an argument", |p| p.command[1] = "--prt".into()),
            ("one argument more", |p| p.command.push(String::new())),
            ("the cut between arguments", |p| {
                p.command = vec!["/opt/game/zone--port".into(), "{port.game}".into()]
            }),
            ("a variable", |p| *p.env.get_mut("REGION").unwrap() = "us".into()),
            ("one variable more", |p| {
                p.env.insert("A".into(), String::new());
            }),
            ("the user", |p| p.user = Some("redis".into())),
            ("no user", |p| p.user = None),
            ("an empty user", |p| p.user = Some(String::new())),
            ("the group", |p| p.group = Some("games".into())),
            ("the folder", |p| p.working_dir = None),
            ("a port's transport", |p| {
                p.ports.insert("game".into(), port(Protocol::Tcp, None));
            }),
            ("a port's number", |p| {
                p.ports.insert("rcon".into(), port(Protocol::Tcp, Some(7779)));
            }),
            ("a fixed port", |p| {
                p.ports.insert("game".into(), port(Protocol::Udp, Some(7778)));
            }),
            ("one port less", |p| {
                p.ports.remove("game");
            }),
            ("the mask", |p| p.umask = 0o022),
            ("the priority", |p| p.nice = 0),
            ("SIGPIPE", |p| p.ignore_sigpipe = false),
            ("open files", |p| p.limits.files = None),
            ("the core's size", |p| p.limits.core = Some(0)),
            ("the build", |p| p.build = Some("1.4.3".into())),
            ("no build", |p| p.build = None),
        ];
        let mut seen = std::collections::BTreeSet::from([spec_hash(&sample())]);
        for (what, change) in changes {
            let mut process = sample();
            change(&mut process);
            assert!(seen.insert(spec_hash(&process)), "{what} gives no hash of its own");
        }
    }

    #[test]
    fn what_applies_live_leaves_the_hash_alone() {
        let changes: &[(&str, Change)] = &[
            ("population", |p| p.population = Population::PerHost),
            ("ready", |p| p.ready.mode = ReadyMode::Notify),
            ("heartbeat", |p| p.heartbeat.timeout = Duration::from_secs(9)),
            ("restart", |p| p.restart.backoff = None),
            ("stop", |p| p.stop.signal = 2),
            ("drain", |p| p.drain.timeout = Duration::ZERO),
            ("memory", |p| p.limits.memory = None),
            ("cpu", |p| p.limits.cpu_milli = None),
            ("pids", |p| p.limits.pids = None),
            ("required", |p| p.limits.required = true),
            ("placement", |p| p.placement.labels.clear()),
            ("update", |p| p.update.max_unavailable = 9),
            ("after", |p| p.after = vec!["login".parse().unwrap()]),
            ("on_partition", |p| p.on_partition = OnPartition::Stop),
            ("logs", |p| p.logs = Logs::Null),
            ("launch", |p| p.launch = vec!["dungeon".parse().unwrap()]),
            ("labels", |p| {
                p.labels.insert("a".into(), "b".into());
            }),
        ];
        for (what, change) in changes {
            let mut process = sample();
            change(&mut process);
            assert_ne!(process, sample(), "{what} was not changed");
            assert_eq!(spec_hash(&process), spec_hash(&sample()), "{what}");
        }
    }
}
