//! One host under test, driven through its command line: what an operator would see.
//!
//! A test binary takes it with `#[path = "support/agent.rs"] mod agent;`. The host itself (folder, agent, keeper,
//! and what is left of them at the end) is `host.rs`.

#![allow(dead_code, reason = "each test binary uses its part of it")]
// Helpers of tests, which clippy does not take for tests.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

// This file is taken by its path, so its parts are, too.
#[path = "host.rs"]
mod host;
#[path = "agent/ran.rs"]
mod ran;

use host::Cgroups;
pub use host::{PATIENCE, alive, until};
pub use ran::{Ran, finish};

/// Fails with the package's name when a program is missing.
pub fn require(program: &str, package: &str) {
    assert!(Path::new(program).exists(), "{program} is missing: apt-get install {package}");
}

/// Sends a signal to a process of the test's own host.
pub fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap_or_else(|e| panic!("{signal} to {pid}: {e}"));
}

/// The main process of an instance as `ps --json` tells it.
pub fn pid(instance: &Value) -> i32 {
    instance["pid"].as_i64().unwrap_or_else(|| panic!("no process: {instance}")) as i32
}

/// See the module. Dropped, it takes everything along that it started.
pub struct Host(host::Host);

impl Host {
    /// A running agent whose cluster.toml has these processes.
    pub fn start(processes: &str) -> Host {
        let mut host = Host::prepare(processes);
        host.start_agent();
        host
    }

    /// A folder with a cluster.toml, and no agent yet.
    pub fn prepare(processes: &str) -> Host {
        let host = Host(host::Host::new(Cgroups::Found));
        host.write(processes);
        host
    }

    /// Further arguments for the agent.
    pub fn agent_args(&mut self, args: &[&str]) {
        self.0.args = args.iter().map(|arg| (*arg).to_owned()).collect();
    }

    /// Variables for the agent, `NAME=VALUE`.
    pub fn agent_env(&mut self, variables: &[&str]) {
        self.0.through = ["env"].iter().chain(variables).map(|word| (*word).to_owned()).collect();
    }

    pub fn folder(&self) -> &Path {
        &self.0.root
    }

    pub fn config(&self) -> PathBuf {
        self.0.config()
    }

    pub fn runtime_dir(&self) -> PathBuf {
        self.0.runtime.clone()
    }

    /// The folder of an instance's own, `{data}`.
    pub fn data(&self, instance: &str) -> PathBuf {
        self.0.data.join("data").join(instance)
    }

    /// Writes cluster.toml anew: the same host with these processes.
    pub fn write(&self, processes: &str) {
        self.0.write_config(processes);
    }

    /// The same into another file.
    pub fn write_to(&self, file: &Path, processes: &str) {
        self.0.write_config_to(file, processes);
    }

    /// See [`host::Host::metric`].
    pub fn metric(&self, name: &str, label: &str) -> Result<f64, String> {
        self.0.metric(name, label)
    }

    /// What Prometheus gets.
    pub fn scrape(&self) -> String {
        self.0.whole("GET", "/metrics", "").expect("the agent answers").2
    }

    // ---- the agent's life

    /// Starts the agent and waits until it answers.
    pub fn start_agent(&mut self) {
        self.0.start();
    }

    /// Signals the agent and waits for its end; the games stay.
    pub fn end_agent(&mut self, how: Signal) {
        signal(self.0.agent_pid(), how);
        self.0.agent_ended();
    }

    pub fn agent_pid(&self) -> i32 {
        self.0.agent_pid()
    }

    /// The keeper's pid, as the agent tells it.
    pub fn keeper_pid(&self) -> Option<i32> {
        self.0.status().ok()?.keeper.map(|keeper| keeper.pid)
    }

    /// What a power failure leaves: no process, an empty runtime folder, the data folder.
    pub fn lose_power(&mut self) {
        self.0.power_off();
        fs::remove_dir_all(self.runtime_dir()).expect("the runtime folder");
    }

    pub fn agent_log(&self) -> String {
        self.0.logs()
    }

    /// Processes of this host, the agent among them; no zombies, and not those that only ask.
    pub fn processes(&self) -> Vec<i32> {
        self.0.processes()
    }

    /// The folder of the games' cgroups, where there are cgroups.
    pub fn cgroup(&self) -> Option<&Path> {
        self.0.games_cgroup()
    }

    /// Processes in the games' cgroups, whatever they call themselves.
    pub fn in_cgroup(&self) -> Vec<i32> {
        self.0.in_cgroup()
    }

    // ---- the command line

    /// A command of the binary for this host's agent.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bigbrother"));
        command.args(args).current_dir(self.folder());
        command.env("BIGBROTHER_API", format!("unix:{}/api.sock", self.runtime_dir().display()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Ran {
        finish(self.command(args).spawn().expect("the binary"), args)
    }

    /// Runs a command that must succeed.
    pub fn ok(&self, args: &[&str]) -> Ran {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}\n{}", self.agent_log());
        ran
    }

    /// Writes cluster.toml anew and applies it.
    pub fn apply(&self, processes: &str) -> Value {
        self.write(processes);
        self.ok(&["apply", self.config().to_str().expect("UTF-8"), "--json"]).json()
    }

    /// `ps --json`
    pub fn ps(&self) -> Vec<Value> {
        self.run(&["ps", "--json"]).json().as_array().expect("an array").clone()
    }

    /// One instance of `ps --json`; null when it is not listed.
    pub fn instance(&self, name: &str) -> Value {
        self.ps().into_iter().find(|i| i["instance"] == name).unwrap_or_default()
    }

    /// `events NAME --json`; all of the host with the name "".
    pub fn events(&self, name: &str) -> Vec<Value> {
        let ran = match name {
            "" => self.ok(&["events", "--json"]),
            _ => self.ok(&["events", name, "--json"]),
        };
        ran.out.lines().map(|line| serde_json::from_str(line).expect("JSON a line")).collect()
    }

    /// The kinds of an instance's events, oldest first.
    pub fn kinds(&self, name: &str) -> Vec<String> {
        self.events(name).iter().map(|e| e["kind"].as_str().expect("a kind").to_owned()).collect()
    }

    /// All events in short, one a line, for the message of a failing test.
    pub fn story(&self) -> String {
        let line = |e: &Value| {
            let text = |key: &str| e[key].as_str().unwrap_or_default().to_owned();
            let (instance, kind) = (text("instance"), text("kind"));
            format!("{} {instance} run {} {kind} {} {}\n", e["seq"], e["run"], text("cause"), text("detail"))
        };
        self.events("").iter().map(line).collect()
    }

    /// Waits until an instance is as wanted, and gives it.
    pub fn wait(&self, name: &str, what: &str, mut holds: impl FnMut(&Value) -> bool) -> Value {
        until(&format!("{name} is {what}"), || {
            let instance = self.instance(name);
            if holds(&instance) { Ok(instance) } else { Err(format!("{instance}\n{}", self.agent_log())) }
        })
    }

    pub fn ready(&self, name: &str) -> Value {
        self.wait(name, "ready", |i| i["state"] == "ready")
    }

    /// Waits for a ready run other than that one.
    pub fn ready_again(&self, before: &Value) -> Value {
        let name = before["instance"].as_str().expect("an instance");
        self.wait(name, "ready in a new run", |i| i["state"] == "ready" && i["run"] != before["run"])
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.run(&["events"]).out);
        }
    }
}
