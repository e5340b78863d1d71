//! Hosts under test that are one cluster: each a peer, with agent, keeper and folders of its own, on loopback.

use std::process::Command;

use super::{Cgroups, Host};

/// The shortest spans that `check` allows.
pub const SPANS: &str = "fence_after = \"3250ms\"\nfence_kill = \"250ms\"\nhost_timeout = \"4500ms\"\n";

impl Host {
    /// Hosts of these names, none of them started; the first so many are peers, the others attach to them.
    pub fn cluster(names: &[&str], peers: usize, cgroups: Cgroups) -> Vec<Host> {
        let mut hosts: Vec<Host> = names.iter().map(|_| Host::new(cgroups)).collect();
        let entry = |(name, host): (&&str, &Host)| format!("{name} = \"127.0.0.1:{}\"", host.ports.0);
        let peers: Vec<String> = names.iter().zip(&hosts).take(peers).map(entry).collect();
        let cluster = format!("[cluster]\nname = \"test\"\npeers = {{ {} }}\n{SPANS}\n", peers.join(", "));
        for (host, name) in hosts.iter_mut().zip(names) {
            host.join(name, &cluster);
        }
        hosts
    }

    /// Gives these hosts certificates of a CA of their own.
    pub fn secure(hosts: &mut [Host]) {
        let ca = hosts[0].root.join("ca");
        std::fs::create_dir(&ca).unwrap();
        let run = |args: &[&str]| {
            let made = Command::new(env!("CARGO_BIN_EXE_bigbrother")).arg("ca").args(args).output().unwrap();
            assert!(made.status.success(), "{made:?}");
        };
        let folder = ca.to_str().unwrap();
        run(&["init", "--dir", folder]);
        for host in hosts {
            let name = &host.name;
            run(&["issue", name, "--dir", folder]);
            host.cluster.push_str(&format!(
                "tls = {{ ca = \"{folder}/ca.pem\", cert = \"{folder}/{name}.pem\", key = \"{folder}/{name}.key\" }}\n"
            ));
        }
    }

    /// Gives the APIs of these hosts certificates of the same CA.
    pub fn guard(hosts: &mut [Host]) {
        let ca = hosts[0].root.join("ca");
        let folder = ca.to_str().unwrap();
        for host in hosts {
            let name = &host.name;
            let mut command = Command::new(env!("CARGO_BIN_EXE_bigbrother"));
            let made =
                command.args(["ca", "api", name, "--name", "127.0.0.1", "--dir", folder]).output().unwrap();
            assert!(made.status.success(), "{made:?}");
            host.api_tls = format!(
                "api_tls = {{ cert = \"{folder}/{name}-api.pem\", key = \"{folder}/{name}-api.key\" }}\n"
            );
        }
    }

    /// Adds to `[cluster]` of this host.
    pub fn add_to_cluster(&mut self, lines: &str) {
        self.cluster.push_str(lines);
    }

    /// Makes this host one of a cluster: its first port is its agent's, its last one its API's.
    pub fn join(&mut self, name: &str, cluster: &str) {
        self.name = name.to_owned();
        self.cluster = cluster.to_owned();
        self.listen = Some(self.ports.0);
        self.ports.0 += 1;
        self.api = Some(self.ports.1);
        self.ports.1 -= 1;
    }
}
