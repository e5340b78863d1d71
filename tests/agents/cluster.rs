//! Three peers, hosts attached to them, and the command line for each.

use std::process::{Child, Command, Stdio};

use bigbrother::http::view::{HostView, InstanceView, StatusView};
use serde_json::Value;

use crate::host::{Cgroups, Host, expect, until};
use crate::ran::{Ran, finish};

pub const NAMES: [&str; 5] = ["alpha", "beta", "gamma", "delta", "epsilon"];

/// See the module. Dropped, it takes everything along that it started.
pub struct Cluster {
    pub hosts: Vec<Host>,
}

impl Cluster {
    /// Three peers that have formed, with these processes.
    pub fn start(processes: impl Fn(&Host) -> String) -> Cluster {
        Cluster::of(3, processes)
    }

    /// As many hosts, of which three are peers.
    pub fn of(size: usize, processes: impl Fn(&Host) -> String) -> Cluster {
        Cluster::formed(Host::cluster(&NAMES[..size], 3, Cgroups::Own), processes)
    }

    /// The same, with these settings of the cluster.
    pub fn set(size: usize, settings: &str, processes: impl Fn(&Host) -> String) -> Cluster {
        let mut hosts = Host::cluster(&NAMES[..size], 3, Cgroups::Own);
        hosts.iter_mut().for_each(|host| host.add_to_cluster(settings));
        Cluster::formed(hosts, processes)
    }

    /// The same, with certificates.
    pub fn secured(size: usize, processes: impl Fn(&Host) -> String) -> Cluster {
        let mut hosts = Host::cluster(&NAMES[..size], 3, Cgroups::Own);
        Host::secure(&mut hosts);
        Cluster::formed(hosts, processes)
    }

    /// The same, and the APIs of all are asked over TLS, with tokens.
    pub fn guarded(size: usize, processes: impl Fn(&Host) -> String) -> Cluster {
        let mut hosts = Host::cluster(&NAMES[..size], 3, Cgroups::Own);
        Host::secure(&mut hosts);
        Host::guard(&mut hosts);
        Cluster::formed(hosts, processes)
    }

    fn formed(hosts: Vec<Host>, processes: impl Fn(&Host) -> String) -> Cluster {
        let size = hosts.len();
        let mut cluster = Cluster { hosts };
        cluster.hosts.iter().for_each(|host| host.write_config(""));
        cluster.hosts.iter_mut().for_each(Host::launch_agent);
        for host in 0..size {
            until("the agents are one cluster", || {
                let status = cluster.status(host)?;
                let up = status.hosts.up == size as u64;
                expect(status.starting.is_none() && status.quorum && up, (status, cluster.logs()))
            });
        }
        // Only now, so that they are spread over all. The same programs everywhere, in one folder, so that a run that
        // is not alone shows.
        let processes = processes(&cluster.hosts[0]);
        cluster.hosts.iter().for_each(|host| host.write_config(&processes));
        let file = cluster.hosts[size - 1].config();
        cluster.ok(size - 1, &["apply", file.to_str().unwrap()]);
        cluster
    }

    /// A command of the binary for the agent of a host.
    pub fn command(&self, host: usize, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bigbrother"));
        command.args(args).current_dir(&self.hosts[host].root);
        command.env("BIGBROTHER_API", format!("unix:{}/api.sock", self.hosts[host].runtime.display()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn spawn(&self, host: usize, args: &[&str]) -> Child {
        self.command(host, args).spawn().unwrap()
    }

    /// Runs a command to its end.
    pub fn run(&self, host: usize, args: &[&str]) -> Ran {
        finish(self.spawn(host, args), args)
    }

    /// Runs a command that must succeed.
    pub fn ok(&self, host: usize, args: &[&str]) -> Ran {
        let ran = self.run(host, args);
        assert_eq!(ran.code, Some(0), "{args:?} on {}: {ran:?}", NAMES[host]);
        ran
    }

    pub fn json(&self, host: usize, args: &[&str]) -> Value {
        self.ok(host, &[args, &["--json"]].concat()).json()
    }

    /// What a command prints one a line.
    pub fn json_lines(&self, host: usize, args: &[&str]) -> Vec<Value> {
        let out = self.ok(host, &[args, &["--json"]].concat()).out;
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn status(&self, host: usize) -> Result<StatusView, String> {
        self.hosts[host].status()
    }

    /// `ps --json` of a host.
    pub fn ps(&self, host: usize) -> Vec<InstanceView> {
        serde_json::from_value(self.json(host, &["ps"])).unwrap()
    }

    /// The one that belongs, of an instance.
    pub fn view(&self, host: usize, instance: &str) -> Option<InstanceView> {
        self.ps(host).into_iter().find(|view| view.instance.to_string() == instance)
    }

    pub fn hosts_view(&self, host: usize) -> Vec<HostView> {
        serde_json::from_value(self.json(host, &["hosts"])).unwrap()
    }

    /// Waits until these are ready, each once, as this host shows it.
    pub fn ready(&self, host: usize, instances: &[&str]) -> Vec<InstanceView> {
        until("all are ready, each once", || {
            let views = self.hosts[host].get("/v1/instances")?;
            let views: Vec<InstanceView> = serde_json::from_value(views).unwrap();
            let ready = views.iter().filter(|view| view.state == "ready" && view.pid.is_some());
            let ready: Vec<String> = ready.map(|view| view.instance.to_string()).collect();
            expect(ready == instances && views.len() == ready.len(), (&views, self.logs()))?;
            Ok(views)
        })
    }

    /// The place of a host by its name.
    pub fn index(name: &str) -> usize {
        NAMES.iter().position(|known| *known == name).unwrap()
    }

    pub fn primary(&self) -> usize {
        until("a primary", || {
            let up = (0..self.hosts.len()).filter(|host| self.hosts[*host].has_agent());
            let known = up.filter_map(|host| self.status(host).ok()?.primary).next();
            known.map(|host| Cluster::index(host.as_str())).ok_or_else(|| "none".to_owned())
        })
    }

    /// A host that is not among these.
    pub fn other(&self, not: &[usize]) -> usize {
        (0..self.hosts.len()).find(|host| !not.contains(host)).unwrap()
    }

    pub fn logs(&self) -> String {
        self.hosts.iter().map(|host| format!("=== {}\n{}", host.name, host.logs())).collect()
    }
}

/// Zones that beat natively.
pub fn zones(host: &Host) -> String {
    format!(
        "[process.zone]\ncommand = {}\ncount = 6\nports = {{ game = \"udp\" }}\n\
         heartbeat = {{ mode = \"native\", interval = \"200ms\", timeout = \"5s\" }}\n\
         restart = {{ backoff = {{ min = \"100ms\", max = \"1s\" }} }}\n",
        host.zone("{port.game}")
    )
}

pub const ZONES: [&str; 6] = ["zone.0", "zone.1", "zone.2", "zone.3", "zone.4", "zone.5"];
