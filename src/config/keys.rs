//! The table of every key: what the parser accepts, and what docs/config.md says about it.
//!
//! Owns the names. A key that is not here is a fault with the nearest name as a suggestion, in every table.
//! tests/config.rs holds the defaults, the effects, cluster.toml.example and docs/config.md to this table.
//! Never reads a value. Called by `parse`.

use std::fmt;

use toml::de::DeValue;

use super::fault::{Sink, suggestion};
use super::section::Section;

/// One key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// From the top of the file; `NAME` stands for any name.
    pub path: &'static str,
    /// The type of its value, in words.
    pub kind: &'static str,
    /// As it would be written in the file, or in words.
    pub default: &'static str,
    /// A value other than the default.
    pub example: &'static str,
    /// What a change takes.
    pub effect: Effect,
    /// What it does.
    pub about: &'static str,
}

/// What a change of a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// In force at once.
    Live,
    /// The instances are restarted, as `update` says.
    Restart,
    /// In force when the agent is restarted; the game processes play on meanwhile.
    Agent,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Effect::Live => "live",
            Effect::Restart => "restart",
            Effect::Agent => "agent",
        })
    }
}

impl fmt::Display for Key {
    /// Its row in docs/config.md.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Key { path, kind, default, example, effect, about } = self;
        let default = if self.default_is_words() { (*default).to_owned() } else { format!("`{default}`") };
        write!(f, "| `{path}` | {kind} | {default} | `{example}` | {effect} | {about} |")
    }
}

impl Key {
    /// True when `default` is a description and not a value.
    pub fn default_is_words(&self) -> bool {
        matches!(self.default, "none" | "required" | "the hostname" | "the address of `listen`")
    }
}

const fn key(
    path: &'static str,
    kind: &'static str,
    default: &'static str,
    example: &'static str,
    effect: Effect,
    about: &'static str,
) -> Key {
    Key { path, kind, default, example, effect, about }
}

use Effect::{Agent, Live, Restart};

/// Every key, in the order of docs/config.md.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("cluster.name", "string", "\"local\"", "\"pirates\"", Agent, "The cluster's name; agents of another cluster are refused."),
    key("cluster.peers.NAME", "host:port", "none", "\"10.0.0.1:7600\"", Agent, "The hosts that keep the replicated state, 1 to 16, and where their agents listen. Left out: this host alone."),
    key("cluster.host_timeout", "duration", "\"8s\"", "\"9s\"", Agent, "A host that is silent for this long is declared down. At least `fence_after` + `fence_kill` + 1 s."),
    key("cluster.fence_after", "duration", "\"5s\"", "\"4s\"", Agent, "A host that nobody has confirmed for this long kills its exclusive runs."),
    key("cluster.fence_kill", "duration", "\"1s\"", "\"2s\"", Agent, "How long that killing may take."),
    key("cluster.peer_silence", "duration", "\"1s\"", "\"2s\"", Agent, "A peer that is silent for this long is given up by the hosts attached to it."),
    key("cluster.max_lost", "whole number", "none", "2", Agent, "While more hosts than this are silent at once, none is declared down. Left out: the larger of 1 and 30 %."),
    key("cluster.dead_voter_after", "duration", "\"10m\"", "\"20m\"", Agent, "A voter that is dead for this long is replaced by another peer."),
    key("cluster.tls.ca", "absolute path", "none", "\"/etc/bigbrother/ca.pem\"", Agent, "The certificate of the cluster's CA (`bigbrother ca init`); the files of `tls` are read again on a reload. Without `tls` peers are possible on loopback only."),
    key("cluster.tls.cert", "absolute path", "none", "\"/etc/bigbrother/host.pem\"", Agent, "The host's own certificate, which names it (`bigbrother ca issue HOST`); the same path on every host."),
    key("cluster.tls.key", "absolute path", "none", "\"/etc/bigbrother/host.key\"", Agent, "The key of that certificate; readable by the agent's account only."),

    key("host.name", "name", "the hostname", "\"beta\"", Agent, "This host's name, unique in the cluster. `--host` overrides it. The default is the hostname up to its first dot, in lower case."),
    key("host.data_dir", "absolute path", "\"/var/lib/bigbrother\"", "\"/srv/bigbrother\"", Agent, "Logs, ports and state; kept over reboots."),
    key("host.runtime_dir", "absolute path", "\"/run/bigbrother\"", "\"/run/bb\"", Agent, "api.sock, keeper.sock, process sockets and the ledger; at most 60 bytes, because a socket's path is short."),
    key("host.listen", "host:port", "\"0.0.0.0:7600\"", "\"10.0.0.1:7600\"", Agent, "Where other agents connect. Without peers nothing is listened on."),
    key("host.api", "host:port", "\"127.0.0.1:7610\"", "\"\"", Agent, "The API's TCP address beside its Unix socket; `\"\"` for none. Loopback only, unless there is `api_tls`."),
    key("host.api_tls.cert", "absolute path", "none", "\"/etc/bigbrother/api.pem\"", Agent, "The certificate that the API shows over TCP, read again on a reload, with those between it and its CA behind it (`bigbrother ca api HOST`, or of any CA that your clients know). With it every request needs a token, see docs/security.md."),
    key("host.api_tls.key", "absolute path", "none", "\"/etc/bigbrother/api.key\"", Agent, "The key of that certificate; readable by the agent's account only."),
    key("host.address", "string", "the address of `listen`", "\"10.0.0.1\"", Agent, "What the directory lists and `{address}` stands for. Where `listen` names no single address: `127.0.0.1`."),
    key("host.agent", "host:port", "the address of `listen`", "\"10.0.0.1:7600\"", Live, "Where other agents reach this one. For a peer: its entry in `peers`; where `listen` names no single address: `host.address` with the port of `listen`."),
    key("host.ports", "range", "\"20000-29999\"", "\"30000-30999\"", Live, "Where free ports are taken from, both ends included. Instances keep the ports that they have."),
    key("host.labels.NAME", "string", "none", "\"eu\"", Live, "For `placement.labels` and the template `{host.label.NAME}`."),
    key("host.capacity.NAME", "whole number", "none", "200", Live, "What the instances of this host may take together, see `placement.needs`. Left out: no bound."),
    key("host.policy.users", "list of strings", "[]", "[\"games\"]", Live, "The only users that a process may run as here, with their own groups; an empty list allows all."),
    key("host.policy.programs", "list of absolute paths", "[]", "[\"/opt/game\"]", Live, "The only folders below which programs, and the libraries that `env` names, may lie, or single programs; an empty list allows all."),

    key("process.NAME.command", "list of templates", "required", "[\"/opt/game/zone\"]", Restart, "The program (an absolute path, or a bare name looked up in PATH) and its arguments. No shell reads it."),
    key("process.NAME.count", "whole number", "1", "40", Live, "How many instances there are. Instead of it: `per_host` or `on_demand`."),
    key("process.NAME.per_host", "true or false", "none", "true", Live, "One instance on every fit host, named by the host."),
    key("process.NAME.on_demand.max", "whole number", "none", "200", Live, "Instances are launched by request, with arguments, and are gone when they end; at most this many live at once."),
    key("process.NAME.ports.NAME", "port", "none", "\"udp\"", Restart, "`\"udp\"` or `\"tcp\"` takes a free port and keeps it, unless another program takes it while the instance is down; `7777` (UDP), `\"7777/udp\"` or `\"7777/tcp\"` is fixed. Becomes the template `{port.NAME}`."),
    key("process.NAME.user", "string", "none", "\"games\"", Restart, "The account to run as. Left out: the agent's own."),
    key("process.NAME.group", "string", "none", "\"games\"", Restart, "The group to run as. Left out: the user's primary group."),
    key("process.NAME.working_dir", "template", "none", "\"/opt/game\"", Restart, "The folder to start in. Left out: `{data}`, a folder of the instance's own."),
    key("process.NAME.env.NAME", "template", "none", "\"eu\"", Restart, "An environment variable, on top of a small default environment."),
    key("process.NAME.umask", "octal string", "\"0022\"", "\"0027\"", Restart, "The file mode creation mask."),
    key("process.NAME.nice", "whole number", "0", "-5", Restart, "The scheduling priority, -20 (first) to 19 (last); 0 is the agent's own where that is lower and may not be raised."),
    key("process.NAME.ignore_sigpipe", "true or false", "true", "false", Restart, "Start the program with SIGPIPE ignored."),
    key("process.NAME.ready.mode", "word", "\"spawned\"", "\"notify\"", Live, "What makes a run ready: `native`, `notify`, `query`, `tcp`, `exec` or `spawned`. Left out: the heartbeat's mode, and `spawned` without a heartbeat."),
    key("process.NAME.ready.timeout", "duration", "\"30s\"", "\"1m\"", Live, "A run that is not ready after this long counts as hung."),
    key("process.NAME.ready.after", "duration", "\"1s\"", "\"2s\"", Live, "Mode `spawned`: the run is ready when it has lived this long."),
    key("process.NAME.ready.protocol", "word", "none", "\"ddnet\"", Live, "Mode `query`: `teeworlds` (0.7), `ddnet` (and Teeworlds 0.6), `quake3`, `valve` or `minecraft`. Left out: the heartbeat's."),
    key("process.NAME.ready.port", "string", "none", "\"game\"", Live, "Modes `query` and `tcp`: a name from `ports`. Left out: the heartbeat's, or the only one of that transport."),
    key("process.NAME.ready.command", "list of templates", "none", "[\"/opt/game/ask\"]", Live, "Mode `exec`: the run is ready when this exits 0. Left out: the heartbeat's."),
    key("process.NAME.heartbeat.mode", "word", "\"none\"", "\"notify\"", Live, "What shows that a run is alive: `native`, `notify`, `query`, `tcp`, `exec` or `none`."),
    key("process.NAME.heartbeat.interval", "duration", "\"1s\"", "\"2s\"", Live, "How often a probe asks, and a process is asked to beat. `quake3`: at least, and by default, 2 s, because its servers drop faster queries."),
    key("process.NAME.heartbeat.timeout", "duration", "\"5s\"", "\"20s\"", Live, "Silence for this long is a hang, and the run is killed. More than `interval`, for queries at least 3 times as much; by default at least that."),
    key("process.NAME.heartbeat.protocol", "word", "none", "\"ddnet\"", Live, "Mode `query`: as in `ready`. Left out: that of `ready`."),
    key("process.NAME.heartbeat.port", "string", "none", "\"game\"", Live, "Modes `query` and `tcp`: as in `ready`. Left out: that of `ready`, or the only one of that transport."),
    key("process.NAME.heartbeat.command", "list of templates", "none", "[\"/opt/game/ask\"]", Live, "Mode `exec`: a beat each time that this exits 0. Left out: that of `ready`."),
    key("process.NAME.heartbeat.on_hang", "word", "\"kill\"", "\"abort\"", Live, "`kill`: SIGKILL at once; `abort`: SIGABRT first, so that the run may leave a core."),
    key("process.NAME.heartbeat.abort_timeout", "duration", "\"10s\"", "\"30s\"", Live, "How long an aborted run may write its core before it is killed."),
    key("process.NAME.restart.policy", "word", "\"always\"", "\"never\"", Live, "After which ends a run is followed by another: `always`, `on-failure` (all but exit code 0) or `never`. With `on_demand` the default is `on-failure`."),
    key("process.NAME.restart.backoff.min", "duration", "\"100ms\"", "\"200ms\"", Live, "The first delay; the first restart of all never waits, unless the start itself failed (no such file, no free port). `backoff = false`: always at once, and after such a start each second."),
    key("process.NAME.restart.backoff.max", "duration", "\"30s\"", "\"1m\"", Live, "The longest delay."),
    key("process.NAME.restart.healthy_after", "duration", "\"1m\"", "\"2m\"", Live, "A run that was ready for this long clears the count of failures. An agent that is started anew counts from then."),
    key("process.NAME.restart.give_up.failures", "whole number", "5", "10", Live, "More failures than this within `within` make the instance `failed`. `give_up = false`: never."),
    key("process.NAME.restart.give_up.within", "duration", "\"10m\"", "\"5m\"", Live, "The span in which failures are counted."),
    key("process.NAME.stop.signal", "signal", "\"SIGTERM\"", "\"SIGINT\"", Live, "What asks a run to end, unless it is connected to its process socket."),
    key("process.NAME.stop.timeout", "duration", "\"10s\"", "\"20s\"", Live, "From asking to killing."),
    key("process.NAME.drain.timeout", "duration", "\"2h\"", "\"30m\"", Live, "How long a draining run may take before it is stopped."),
    key("process.NAME.limits.memory", "size", "none", "\"2GiB\"", Live, "Memory (cgroup v2)."),
    key("process.NAME.limits.cpu", "number", "none", "1.5", Live, "Cores (cgroup v2)."),
    key("process.NAME.limits.pids", "whole number", "none", "256", Live, "Threads and processes (cgroup v2)."),
    key("process.NAME.limits.files", "whole number", "none", "65536", Restart, "Open files (RLIMIT_NOFILE)."),
    key("process.NAME.limits.core", "size", "none", "\"1GiB\"", Restart, "A core file (RLIMIT_CORE)."),
    key("process.NAME.limits.required", "true or false", "false", "true", Live, "Refuse a host that cannot enforce the cgroup limits. Otherwise such limits are only counted in a metric, and an event."),
    key("process.NAME.placement.labels.NAME", "string", "none", "\"eu\"", Live, "A label that a host must have."),
    key("process.NAME.placement.strategy", "word", "\"spread\"", "\"pack\"", Live, "`spread` evenly, or `pack` on as few hosts as will do."),
    key("process.NAME.placement.max_per_host", "whole number", "none", "8", Live, "The largest number of instances on one host."),
    key("process.NAME.placement.needs.NAME", "whole number", "none", "4", Live, "What one instance takes of a host's `capacity`."),
    key("process.NAME.update.max_unavailable", "whole number", "1", "2", Live, "How many instances may be down at once for an update's sake."),
    key("process.NAME.update.when_empty", "true or false", "false", "true", Live, "Update instances without players first, and wait for the others."),
    key("process.NAME.update.deadline", "duration", "none", "\"2h\"", Live, "After this wait, update the others too. Left out: wait for ever."),
    key("process.NAME.after", "list of names", "[]", "[\"login\"]", Live, "Processes that must be ready before an instance of this one starts."),
    key("process.NAME.on_partition", "word", "\"keep\"", "\"stop\"", Live, "What a host that is cut off does: `keep`, players play on; `stop`, the process is exclusive and killed before another host may start it."),
    key("process.NAME.logs.size", "size", "\"10MiB\"", "\"1MiB\"", Live, "Bytes of one log file. Instead of the table: `logs = \"journald\"` or `logs = \"null\"`."),
    key("process.NAME.logs.files", "whole number", "5", "3", Live, "Files kept for each of stdout and stderr, the current one included."),
    key("process.NAME.build", "string", "none", "\"1.4.2\"", Restart, "An opaque version: changing it restarts the instances."),
    key("process.NAME.launch", "list of names", "[]", "[\"dungeon\"]", Live, "On-demand processes that an instance of this one may launch."),
    key("process.NAME.labels.NAME", "string", "none", "\"pvp\"", Live, "Free labels, shown in the directory."),
];

/// What may stand in the table at this path.
fn below(path: &[&str]) -> Vec<&'static str> {
    let mut names = Vec::new();
    for key in KEYS {
        let mut parts = key.path.split('.');
        let matches =
            path.iter().all(|name| parts.next().is_some_and(|part| part == "NAME" || part == *name));
        if let Some(next) = parts.next().filter(|next| matches && !names.contains(next)) {
            names.push(next);
        }
    }
    names
}

/// Reports every key that is not in the table, and every text that no program could be given.
pub(super) fn check<'a>(section: &Section<'a>, path: &mut Vec<&'a str>, sink: &Sink) {
    let names = below(path);
    for item in section.items() {
        if item.key.contains(char::is_control) {
            sink.report(item.key_span.clone(), "a name must not hold control characters", None);
        } else if !names.contains(&item.key) && !names.contains(&"NAME") {
            let whole = path.join(".");
            let place = if path.is_empty() { "a cluster.toml".to_owned() } else { format!("[{whole}]") };
            let shown: String = item.key.chars().take(40).collect();
            let help = suggestion(item.key, names.iter().copied());
            sink.report(item.key_span.clone(), format!("{place} has no key `{shown}`"), help);
            continue;
        }
        path.push(item.key);
        // A value that should not be a table is its reader's business.
        if item.value.is_table() && !below(path).is_empty() {
            check(&section.again(item.key), path, sink);
        }
        path.pop();
        refuse_nul(item.value, item.span, sink);
    }
}

fn refuse_nul(value: &DeValue<'_>, span: std::ops::Range<usize>, sink: &Sink) {
    match value {
        DeValue::String(text) if text.contains('\0') => {
            sink.report(span, "a text must not hold a NUL character", None);
        }
        DeValue::Array(items) => items.iter().for_each(|item| refuse_nul(item.get_ref(), item.span(), sink)),
        _ => {}
    }
}
