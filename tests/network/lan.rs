//! A network of the test's own: one namespace a host, and one with a bridge between them.
//!
//! Owns the namespaces, all gone when it is dropped. A cut is a rule of the bridge: what a host sends, what it is
//! sent, or both are thrown away, as by a switch that died.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

/// What of a host's traffic is thrown away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Both,
    /// It hears, and nobody hears it.
    Sends,
    /// It is heard, and hears nobody.
    Hears,
}

pub struct Lan {
    /// Begins the names of the namespaces.
    prefix: String,
    hosts: Vec<&'static str>,
    cuts: BTreeMap<&'static str, Cut>,
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {error}");
}

impl Lan {
    pub fn new(hosts: &[&'static str]) -> Lan {
        let prefix = format!("bb{}", std::process::id());
        let lan = Lan { prefix, hosts: hosts.to_vec(), cuts: BTreeMap::new() };
        let bridge = lan.namespace("lan");
        run("ip", &["netns", "add", &bridge]);
        run("ip", &["-n", &bridge, "link", "add", "br0", "type", "bridge"]);
        run("ip", &["-n", &bridge, "link", "set", "br0", "up"]);
        for host in hosts {
            let own = lan.namespace(host);
            run("ip", &["netns", "add", &own]);
            let pair = [
                "link", "add", host, "netns", &bridge, "type", "veth", "peer", "name", "eth0", "netns", &own,
            ];
            run("ip", &pair);
            run("ip", &["-n", &bridge, "link", "set", host, "master", "br0", "up"]);
            run("ip", &["-n", &own, "addr", "add", &format!("{}/24", lan.address(host)), "dev", "eth0"]);
            run("ip", &["-n", &own, "link", "set", "eth0", "up"]);
            run("ip", &["-n", &own, "link", "set", "lo", "up"]);
        }
        lan
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    pub fn address(&self, host: &str) -> String {
        let number = self.hosts.iter().position(|known| *known == host).expect("a host");
        format!("10.77.0.{}", number + 1)
    }

    /// The words before a command that is to run on a host. The program's own pid is that of the command.
    pub fn within(&self, host: &str) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net=/run/netns/{}", self.namespace(host)), "--".to_owned()]
    }

    pub fn cut(&mut self, host: &'static str, cut: Cut) {
        self.cuts.insert(host, cut);
        self.enforce();
    }

    pub fn heal(&mut self) {
        self.cuts.clear();
        self.enforce();
    }

    fn enforce(&self) {
        let mut rules = String::from(
            "table bridge bb\ndelete table bridge bb\ntable bridge bb {\nchain cuts {\ntype filter hook forward priority 0\n",
        );
        for (host, cut) in &self.cuts {
            if *cut != Cut::Hears {
                rules.push_str(&format!("iifname \"{host}\" drop\n"));
            }
            if *cut != Cut::Sends {
                rules.push_str(&format!("oifname \"{host}\" drop\n"));
            }
        }
        rules.push_str("}\n}\n");
        let mut nft = Command::new("ip")
            .args(["netns", "exec", &self.namespace("lan"), "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("nft is needed: apt-get install nftables");
        nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success(), "nft refused\n{rules}");
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for name in self.hosts.iter().chain(&["lan"]) {
            let _ = Command::new("ip")
                .args(["netns", "del", &self.namespace(name)])
                .stderr(Stdio::null())
                .status();
        }
    }
}
