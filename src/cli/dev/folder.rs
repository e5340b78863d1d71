//! The folder of a demonstration: for each host its cluster.toml, sockets, logs and data.

use std::fs::DirBuilder;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::api::Address;
use crate::cli::exit::Failure;
use crate::cli::serve::own_program;
use crate::spec::HostName;

/// Silence after which a demo server is hung.
pub const HANG_TIMEOUT: Duration = Duration::from_millis(1_000);

/// Names of the hosts.
const NAMES: [&str; 16] = [
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu",
    "nu", "xi", "omicron", "pi",
];
/// How many hosts keep the state; the others attach to one of them.
const PEERS: usize = 3;
/// Where the zone servers' ports lie, all hosts together.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// What a demonstration has.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many hosts.
    pub hosts: u8,
    /// How many zone servers on all of them.
    pub zones: u32,
}

/// The folder of one host.
#[derive(Clone, Debug)]
pub struct Place {
    /// The host's name.
    pub name: HostName,
    /// Its folder.
    pub path: PathBuf,
}

impl Place {
    /// The agent's file.
    pub fn config(&self) -> PathBuf {
        self.path.join("cluster.toml")
    }

    /// What the agent writes to stderr.
    pub fn agent_log(&self) -> PathBuf {
        self.path.join("agent.log")
    }

    /// Where the agent answers.
    pub fn api(&self) -> Address {
        Address::Unix(self.path.join("run/api.sock"))
    }
}

/// The folder; made by us, and removed unless the user named it.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    places: Vec<Place>,
    kept: bool,
}

impl Folder {
    /// Makes the folder and all that the agents need in it.
    pub fn make(named: Option<PathBuf>, plan: Plan) -> Result<Folder, Failure> {
        let program = own_program()?;
        let (path, kept) = match named {
            Some(path) => (empty(path)?, true),
            None => (fresh()?, false),
        };
        let mut folder = Folder { path, places: Vec::new(), kept };
        match folder.fill(&program, plan) {
            Ok(()) => Ok(folder),
            Err(source) => {
                folder.remove()?;
                Err(Failure::Local { what: "cannot write cluster.toml".to_owned(), source })
            }
        }
    }

    fn fill(&mut self, program: &Path, plan: Plan) -> io::Result<()> {
        let names = NAMES.iter().take(plan.hosts.into()).filter_map(|name| name.parse::<HostName>().ok());
        // Held until all are chosen, so that none is chosen twice.
        let chosen: Vec<(HostName, TcpListener)> =
            names.map(|name| Ok((name, TcpListener::bind("127.0.0.1:0")?))).collect::<io::Result<_>>()?;
        let listens: Vec<(HostName, SocketAddr)> = chosen
            .iter()
            .map(|(name, socket)| Ok((name.clone(), socket.local_addr()?)))
            .collect::<io::Result<_>>()?;
        for (number, (name, _)) in listens.iter().enumerate() {
            let place = Place { name: name.clone(), path: self.path.join(name.as_str()) };
            std::fs::create_dir(&place.path)?;
            std::fs::write(place.config(), cluster_toml(program, &place.path, &listens, number, plan.zones))?;
            self.places.push(place);
        }
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One for each host.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Removes it; the path if it is kept.
    pub fn remove(self) -> Result<Option<PathBuf>, Failure> {
        if self.kept {
            return Ok(Some(self.path));
        }
        let what = format!("cannot remove {}", self.path.display());
        std::fs::remove_dir_all(&self.path).map_err(|source| Failure::Local { what, source })?;
        Ok(None)
    }
}

/// A folder that nobody had before, for this user only.
fn fresh() -> Result<PathBuf, Failure> {
    let parent = std::env::temp_dir();
    loop {
        let path = parent.join(format!("bigbrother-dev-{:06x}", fastrand::u32(..1 << 24)));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => {
                let what = format!("cannot make a folder in {} (see TMPDIR, --dir)", parent.display());
                return Err(Failure::Local { what, source });
            }
        }
    }
}

/// The named folder, which must hold nothing of anybody.
fn empty(path: PathBuf) -> Result<PathBuf, Failure> {
    let failed = |source| Failure::Local {
        what: format!("cannot use {}; name a folder that you may write to", path.display()),
        source,
    };
    std::fs::create_dir_all(&path).map_err(failed)?;
    let absolute = path.canonicalize().map_err(failed)?;
    if absolute.read_dir().map_err(failed)?.next().is_some() {
        return Err(Failure::Usage(format!("{} is not empty: name a new folder", path.display())));
    }
    Ok(absolute)
}

/// A host's file, as an operator would write it. The last part is the same on every host.
fn cluster_toml(
    program: &Path,
    folder: &Path,
    listens: &[(HostName, SocketAddr)],
    number: usize,
    zones: u32,
) -> String {
    let program = quoted(&program.display().to_string().replace('{', "{{").replace('}', "}}"));
    let data = quoted(&folder.join("data").display().to_string());
    let run = quoted(&folder.join("run").display().to_string());
    let (name, listen) = &listens[number];
    // Each host has its own, since all are on this one machine.
    let share = usize::from(PORTS.end - PORTS.start) / listens.len();
    let first = usize::from(PORTS.start) + number * share;
    let last = first + share - 1;
    format!(
        r#"# Written by `bigbrother dev`. Change it and try `bigbrother plan` and `bigbrother apply` on it.
[host]
name = "{name}"
data_dir = {data}
runtime_dir = {run}
listen = "{listen}"
api = ""
ports = "{first}-{last}"

[cluster]
name = "dev"
{}
[process.zone]
command = [{program}, "demo-zone", "--port", "{{port.game}}", "--name", "{{instance}}"]
count = {zones}
ports = {{ game = "udp" }}
ready = {{ mode = "native", timeout = "10s" }}
heartbeat = {{ mode = "native", interval = "200ms", timeout = "{}ms" }}
stop = {{ timeout = "2s" }}
logs = {{ size = "1MiB", files = 2 }}
"#,
        peers(listens),
        HANG_TIMEOUT.as_millis()
    )
}

/// Who keeps the state, and spans of time that are as short as they may be: somebody watches.
fn peers(listens: &[(HostName, SocketAddr)]) -> String {
    if listens.len() < 2 {
        return String::new();
    }
    let count = if listens.len() < PEERS { 1 } else { PEERS };
    let peers: Vec<String> =
        listens.iter().take(count).map(|(name, address)| format!("{name} = \"{address}\"")).collect();
    format!(
        "peers = {{ {} }}\nfence_after = \"3250ms\"\nfence_kill = \"250ms\"\nhost_timeout = \"4500ms\"\n",
        peers.join(", ")
    )
}

/// A TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_toml_whatever_the_paths() {
        let listens = [("alpha".parse().unwrap(), "127.0.0.1:1".parse().unwrap())];
        let text = cluster_toml(Path::new("/a \"b\"/{x}/bb"), Path::new("/tmp/d'"), &listens, 0, 7);
        let file: toml::Table = text.parse().unwrap();
        let zone = &file["process"]["zone"];
        assert_eq!(zone["count"].as_integer(), Some(7));
        assert_eq!(zone["command"][0].as_str(), Some("/a \"b\"/{{x}}/bb"));
        assert_eq!(zone["command"][3].as_str(), Some("{port.game}"));
        assert_eq!(file["host"]["runtime_dir"].as_str(), Some("/tmp/d'/run"));
        assert!(!file["cluster"].as_table().unwrap().contains_key("peers"), "one host is alone");
    }

    #[test]
    fn every_file_passes_the_check_and_no_two_hosts_share_a_port() {
        for (hosts, peers) in [(2, 1), (3, 3), (5, 3), (16, 3)] {
            let parent = tempfile::tempdir().unwrap();
            let path = parent.path().join("x");
            let folder = Folder::make(Some(path), Plan { hosts, zones: 2 }).unwrap();
            let mut ports = std::collections::BTreeSet::new();
            for place in folder.places() {
                let text = std::fs::read_to_string(place.config()).unwrap();
                let context = crate::config::Context { hostname: "x".into(), host_override: None };
                let config = crate::config::parse(&text, "cluster.toml", &context).unwrap();
                assert_eq!((&config.host.name, config.cluster.peers.len()), (&place.name, peers));
                let (low, high) = config.host.ports;
                assert!((low..=high).all(|port| ports.insert(port)), "{low}-{high}");
            }
            assert_eq!(folder.places().len(), usize::from(hosts));
        }
    }

    #[test]
    fn a_named_folder_must_be_empty_and_is_kept() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("x/y");
        let plan = Plan { hosts: 1, zones: 1 };
        let folder = Folder::make(Some(path.clone()), plan).unwrap();
        assert!(folder.places()[0].config().is_file());
        assert!(matches!(Folder::make(Some(path.clone()), plan), Err(Failure::Usage(_))));
        assert_eq!(folder.remove().unwrap(), Some(path.canonicalize().unwrap()));
        assert!(path.exists());
    }

    #[test]
    fn a_fresh_folder_is_private_and_removed() {
        use std::os::unix::fs::PermissionsExt;
        let folder = Folder::make(None, Plan { hosts: 3, zones: 1 }).unwrap();
        let path = folder.path().to_owned();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(folder.remove().unwrap(), None);
        assert!(!path.exists());
    }
}
