//! cluster.toml: from text to a validated spec and host settings, every fault with line and column.
//!
//! Owns the file format (docs/config.md, [`keys`]). Pure: it is given the text and the hostname. Called by
//! the agent at start and reload, and by `bigbrother check`, `plan` and `apply`.
//!
//! ```text
//! text ─ toml ─▶ tree with places ─┬─ keys: is every key known? ─────────────────────┐
//!                                  ├─ cluster, host, process (health): values ─▶ Config
//!                                  └─ check, template: what they say about each other ─▶ Faults
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeTable;

use crate::spec::{HostName, ProcessName, Spec};

mod check;
pub mod cluster;
pub mod difference;
mod fault;
mod health;
pub mod host;
pub mod keys;
mod process;
mod section;
mod template;
pub mod written;

pub use difference::difference;
pub use fault::{Fault, Faults};
pub use section::read_duration;

use fault::Sink;
use section::Section;
use template::Surroundings;

/// What the file does not say about the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// The machine's hostname; its first part is the default of `host.name`.
    pub hostname: String,
    /// `--host`: goes before the file's `host.name`.
    pub host_override: Option<String>,
}

/// A whole valid cluster.toml.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[cluster]`
    pub cluster: ClusterSettings,
    /// `[host]`
    pub host: HostSettings,
    /// `[process.*]`
    pub spec: Spec,
}

impl Config {
    /// What is guarded by nothing but being on loopback, where this machine's own processes are: for the agent's log.
    pub fn open_doors(&self) -> Vec<String> {
        let mut open = Vec::new();
        if let (Some(api), None) = (&self.host.api, &self.host.api_tls) {
            let what = format!("every process of this machine may read the API at {api}");
            open.push(format!(
                "{what}: set host.api_tls, or api = \"\" for its socket alone (docs/security.md)"
            ));
        }
        if !self.cluster.peers.is_empty() && self.cluster.tls.is_none() {
            let what = "every process of this machine may speak to this agent as another one";
            open.push(format!("{what}: set cluster.tls (docs/security.md)"));
        }
        open
    }
}

/// `[cluster]`: the same in every host's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSettings {
    /// The cluster's name.
    pub name: String,
    /// Peers and their addresses; empty: this host alone.
    pub peers: BTreeMap<HostName, String>,
    /// Silence after which a host is declared down.
    pub host_timeout: Duration,
    /// How long a confirm holds.
    pub fence_after: Duration,
    /// How long the kill of exclusive runs may take.
    pub fence_kill: Duration,
    /// Silence after which a peer is given up by those attached to it.
    pub peer_silence: Duration,
    /// The largest number of hosts that may be silent at once before the brake holds; `None`: the larger of 1 and 30 %.
    pub max_lost: Option<u32>,
    /// A voter that is dead for this long is replaced.
    pub dead_voter_after: Duration,
    /// Certificates for what agents say to each other; `None`: loopback only.
    pub tls: Option<TlsFiles>,
}

/// `cluster.tls`: files that each host has at the same path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The CA's certificate.
    pub ca: PathBuf,
    /// The host's own certificate, which names it.
    pub cert: PathBuf,
    /// The key of that certificate.
    pub key: PathBuf,
}

/// `host.api_tls`: the API's own certificate, for those who do not know the cluster's CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiTls {
    /// The certificate, and those between it and its CA.
    pub cert: PathBuf,
    /// The key of that certificate.
    pub key: PathBuf,
}

/// `[host]`: this host's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSettings {
    /// The host's name.
    pub name: HostName,
    /// Logs, ports and state, over reboots.
    pub data_dir: PathBuf,
    /// Sockets and ledger, until the reboot.
    pub runtime_dir: PathBuf,
    /// Where other agents connect.
    pub listen: String,
    /// The API's TCP address; `None`: only the Unix socket.
    pub api: Option<String>,
    /// What the API shows over TLS; `None`: plain HTTP, on loopback only.
    pub api_tls: Option<ApiTls>,
    /// What the directory lists.
    pub address: String,
    /// Where other agents reach this one.
    pub agent: String,
    /// The range of free ports, both ends included.
    pub ports: (u16, u16),
    /// Labels for placement and templates.
    pub labels: BTreeMap<String, String>,
    /// What instances may take; no entry: no bound.
    pub capacity: BTreeMap<String, u64>,
    /// What this host refuses to run.
    pub policy: HostPolicy,
}

/// `[host.policy]`: an empty list allows everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPolicy {
    /// Users that a process may run as.
    pub users: Vec<String>,
    /// Folders below which programs must lie.
    pub programs: Vec<PathBuf>,
}

/// Reads a cluster.toml. `file_name` is only for the report. Every fault is found at once; after a fault of
/// TOML's own grammar, what such a fault may have swallowed (a missing key, a name that nobody declares) is not
/// reported.
pub fn parse(text: &str, file_name: &str, context: &Context) -> Result<Config, Faults> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let syntax: Vec<Fault> = errors.iter().map(|error| syntax_fault(text, error)).collect();
    let sink = Sink::default();
    let root = Section::root(&document, &sink);
    keys::check(&root, &mut Vec::new(), &sink);
    let cluster = cluster::read(&root.section("cluster", "{ name = \"pirates\" }"));
    let host = host::read(&root, &cluster, context);
    let processes = root.section("process", "[process.zone]");
    let spec = processes_of(&processes);
    if syntax.is_empty() {
        let around = Surroundings { source: text, cluster: &cluster, host: host.as_ref() };
        check::check(&processes, &spec, &around);
    }
    let mut faults = sink.into_faults();
    // The rest of a line that could not be read means nothing.
    let line = |fault: &Fault| fault::line_at(text, fault.span.start).start;
    let broken: BTreeSet<usize> = syntax.iter().map(line).collect();
    faults.retain(|fault| !broken.contains(&line(fault)));
    faults.extend(syntax);
    match host {
        Some(host) if faults.is_empty() => Ok(Config { cluster, host, spec }),
        _ => Err(Faults::new(file_name, text, faults)),
    }
}

fn syntax_fault(text: &str, error: &toml::de::Error) -> Fault {
    let span = error.span().unwrap_or(text.len()..text.len());
    let title = match (error.message(), text.get(span.clone())) {
        ("duplicate key", Some(key)) => format!("`{key}` is there twice"),
        (message, _) => message.to_owned(),
    };
    Fault { span, title, help: None }
}

fn processes_of(section: &Section<'_>) -> Spec {
    let mut spec = Spec::default();
    for item in section.items() {
        let process = item.section("a table").map(|inner| process::read(&inner));
        match item.key.parse::<ProcessName>() {
            Ok(name) => spec.processes.extend(process.map(|process| (name, Arc::new(process)))),
            Err(reason) => {
                let title = format!("{:?} is no process name: {reason}", item.key);
                item.sink.report(item.key_span.clone(), title, None);
            }
        }
    }
    spec
}
