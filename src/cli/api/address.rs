//! Where the agent answers that is meant when none is named.

use std::path::{Path, PathBuf};

use crate::client::directory::Address;

/// The socket of an agent that systemd started.
const SYSTEM_SOCKET: &str = "/run/bigbrother/api.sock";

/// The address when none was given: the system's agent, else that of ./cluster.toml.
pub fn find() -> Address {
    let file = std::fs::read_to_string("cluster.toml").ok();
    choose(Path::new(SYSTEM_SOCKET).exists(), file.as_deref())
}

fn choose(system_agent: bool, cluster_toml: Option<&str>) -> Address {
    let runtime_dir = cluster_toml.filter(|_| !system_agent).and_then(runtime_dir);
    Address::Unix(runtime_dir.map_or_else(|| SYSTEM_SOCKET.into(), |dir| dir.join("api.sock")))
}

/// Only this one key: a file with faults elsewhere must not keep an operator from asking.
fn runtime_dir(cluster_toml: &str) -> Option<PathBuf> {
    let (file, _faults) = toml::de::DeTable::parse_recoverable(cluster_toml);
    let host = file.get_ref().get("host")?.get_ref().as_table()?;
    Some(PathBuf::from(host.get("runtime_dir")?.get_ref().as_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_address_the_systems_agent_comes_before_the_files() {
        let file = "[host]\nruntime_dir = \"/tmp/mine\"\n[process.x]\nnonsense = 1\n";
        assert_eq!(choose(true, Some(file)).to_string(), "unix:/run/bigbrother/api.sock");
        assert_eq!(choose(false, Some(file)).to_string(), "unix:/tmp/mine/api.sock");
        let broken = format!("{file}x = [\n[process.y");
        assert_eq!(choose(false, Some(&broken)).to_string(), "unix:/tmp/mine/api.sock");
        assert_eq!(choose(false, Some("[host]\n")).to_string(), "unix:/run/bigbrother/api.sock");
        assert_eq!(choose(false, Some("not toml")).to_string(), "unix:/run/bigbrother/api.sock");
        assert_eq!(choose(false, None).to_string(), "unix:/run/bigbrother/api.sock");
    }
}
