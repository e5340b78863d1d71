//! One host under test: the real binary as agent in a folder of its own, driven through its command line.
//!
//! A test binary takes it with `#[path = "support/agent.rs"] mod agent;`. Everything that a host starts carries
//! the folder's path in its command line or environment (the agent and keeper their configuration, the games
//! `$BIGBROTHER_SOCKET`), so all of it can be found, and killed by pid when the host is dropped.

#![allow(dead_code, reason = "each test binary uses its part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

// This file is taken by its path, so its parts are, too.
#[path = "agent/cgroups.rs"]
mod cgroups;
#[path = "agent/ports.rs"]
mod ports;
#[path = "agent/ran.rs"]
mod ran;

use cgroups::{folders, games_cgroup};
use ports::{PORTS, PortBlock};
pub use ran::{Ran, finish};

/// How long anything may take on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Waits until something is so; panics with what was seen last.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let began = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if began.elapsed() > PATIENCE => panic!("{what}: not within {PATIENCE:?}; saw {seen}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Fails with the package's name when a program is missing.
pub fn require(program: &str, package: &str) {
    assert!(Path::new(program).exists(), "{program} is missing: apt-get install {package}");
}

/// Sends a signal to a process of the test's own host.
pub fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap_or_else(|e| panic!("{signal} to {pid}: {e}"));
}

/// True while a process runs (a zombie does not).
pub fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// The main process of an instance as `ps --json` tells it.
pub fn pid(instance: &Value) -> i32 {
    instance["pid"].as_i64().unwrap_or_else(|| panic!("no process: {instance}")) as i32
}

/// See the module. Dropped, it takes everything along that it started.
pub struct Host {
    folder: TempDir,
    ports: PortBlock,
    agent: Option<Child>,
    agent_args: Vec<String>,
    cgroup: Option<PathBuf>,
}

impl Host {
    /// A running agent whose cluster.toml has these processes.
    pub fn start(processes: &str) -> Host {
        let mut host = Host::prepare(processes);
        host.start_agent();
        host
    }

    /// A folder with a cluster.toml, and no agent yet.
    pub fn prepare(processes: &str) -> Host {
        let folder = tempfile::Builder::new().prefix("bb-").tempdir().expect("a folder");
        let host =
            Host { folder, ports: PortBlock::take(), agent: None, agent_args: Vec::new(), cgroup: None };
        host.write(processes);
        host
    }

    /// Further arguments for the agent.
    pub fn agent_args(&mut self, args: &[&str]) {
        self.agent_args = args.iter().map(|arg| (*arg).to_owned()).collect();
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn config(&self) -> PathBuf {
        self.folder().join("cluster.toml")
    }

    pub fn runtime_dir(&self) -> PathBuf {
        self.folder().join("run")
    }

    /// The folder of an instance's own, `{data}`.
    pub fn data(&self, instance: &str) -> PathBuf {
        self.folder().join("data/data").join(instance)
    }

    /// Writes cluster.toml anew: the same host with these processes.
    pub fn write(&self, processes: &str) {
        self.write_to(&self.config(), processes);
    }

    /// The same into another file.
    pub fn write_to(&self, file: &Path, processes: &str) {
        let (folder, first) = (self.folder().display(), self.ports.first + 1);
        let text = format!(
            "[host]\nname = \"test\"\nlisten = \"127.0.0.1:7600\"\napi = \"\"\ndata_dir = \"{folder}/data\"\n\
             runtime_dir = \"{folder}/run\"\nports = \"{first}-{}\"\n\n{processes}",
            first + PORTS - 2
        );
        fs::write(file, text).expect("cluster.toml");
    }

    // ---- the agent's life

    /// Starts the agent and waits until it answers.
    pub fn start_agent(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder().join("agent.log"));
        let log = log.expect("agent.log");
        let agent = Command::new(env!("CARGO_BIN_EXE_bigbrother"))
            .arg("agent")
            .arg("--config")
            .arg(self.config())
            .args(&self.agent_args)
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("agent.log"))
            .stderr(log)
            .spawn()
            .expect("the binary");
        self.agent = Some(agent);
        until("the agent answers", || {
            if let Some(status) = self.agent.as_mut().expect("started").try_wait().expect("our child") {
                panic!("the agent ended: {status}\n{}", self.agent_log());
            }
            let ran = self.run(&["status", "--json"]);
            let status: Value = serde_json::from_str(&ran.out).unwrap_or_default();
            let at_work = status.is_object() && status["starting"].is_null();
            if at_work { Ok(()) } else { Err(format!("{ran:?}\n{}", self.agent_log())) }
        });
        // Where the games' cgroups are is remembered while the keeper is there to be asked.
        let keeper = until("a keeper", || self.keeper_pid().ok_or_else(|| self.agent_log()));
        self.cgroup = games_cgroup(keeper, &self.runtime_dir());
    }

    /// Signals the agent and waits for its end; the games stay.
    pub fn end_agent(&mut self, how: Signal) {
        let mut agent = self.agent.take().expect("an agent runs");
        signal(agent.id() as i32, how);
        until("the agent ends", || match agent.try_wait().expect("our child") {
            Some(_) => Ok(()),
            None => Err(fs::read_to_string(self.folder().join("agent.log")).unwrap_or_default()),
        });
    }

    pub fn agent_pid(&self) -> i32 {
        self.agent.as_ref().expect("an agent runs").id() as i32
    }

    /// The keeper's pid, as the agent tells it.
    pub fn keeper_pid(&self) -> Option<i32> {
        let pid = self.run(&["status", "--json"]).out;
        serde_json::from_str::<Value>(&pid).ok()?["keeper"]["pid"].as_i64().map(|pid| pid as i32)
    }

    /// What a power failure leaves: no process, an empty runtime folder, the data folder.
    pub fn lose_power(&mut self) {
        self.end_everything();
        fs::remove_dir_all(self.runtime_dir()).expect("the runtime folder");
    }

    pub fn agent_log(&self) -> String {
        let read = |name| fs::read_to_string(self.folder().join(name)).unwrap_or_default();
        format!("agent: {}\nkeeper: {}", read("agent.log"), read("data/keeper.log"))
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

    // ---- what is left

    /// Processes of this host, the agent among them; no zombies, and not those that only ask.
    pub fn processes(&self) -> Vec<i32> {
        let mark = self.folder().to_str().expect("UTF-8").as_bytes().to_owned();
        let holds = |path: String| {
            fs::read(path).is_ok_and(|bytes| bytes.windows(mark.len()).any(|window| window == mark))
        };
        let numbers = fs::read_dir("/proc").expect("/proc").flatten();
        numbers
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| *pid != std::process::id() as i32 && alive(*pid))
            .filter(|pid| holds(format!("/proc/{pid}/cmdline")) || holds(format!("/proc/{pid}/environ")))
            .chain(self.in_cgroup())
            .collect()
    }

    /// The folder of the games' cgroups, where there are cgroups.
    pub fn cgroup(&self) -> Option<&Path> {
        self.cgroup.as_deref()
    }

    /// Processes in the games' cgroups, whatever they call themselves.
    pub fn in_cgroup(&self) -> Vec<i32> {
        let Some(root) = &self.cgroup else { return Vec::new() };
        folders(root)
            .iter()
            .flat_map(|folder| {
                let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
                text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<i32>>()
            })
            .filter(|pid| alive(*pid))
            .collect()
    }

    /// Kills agent, keeper and games by pid until none is left. The agent goes first: nobody else starts any.
    fn end_everything(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().ok();
            agent.wait().ok();
        }
        let began = Instant::now();
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            if began.elapsed() > PATIENCE {
                // A second panic would end the test without a word about the first.
                assert!(std::thread::panicking(), "these do not die: {left:?}");
                eprintln!("these do not die: {left:?}");
                return;
            }
            for pid in left {
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let told = self.run(&["events"]).out;
            eprintln!("{told}\n{}", self.agent_log());
        }
        self.end_everything();
        if let Some(root) = &self.cgroup {
            // The deepest first; a folder whose last process has just gone may be busy for a moment.
            let began = Instant::now();
            while root.exists() && began.elapsed() < Duration::from_secs(5) {
                folders(root).iter().rev().for_each(|folder| drop(fs::remove_dir(folder)));
            }
        }
    }
}
