//! A host under test: the real program as agent, the keeper that it starts, and small processes.
//!
//! Owns a folder of its own, a games cgroup and everything that is started in them; all of it is gone when the
//! value is dropped, also after a failure, which shows the logs of agent and keeper. Asked over its API here, and by
//! the command line in `agent.rs` beside it. Everything that a host starts carries the folder's path in its command
//! line or environment (agent and keeper their configuration, games `$BIGBROTHER_SOCKET`), or lies in its cgroups, so
//! all of it can be found. A test program takes this file by its path; none uses all of it.
#![allow(dead_code, unused_imports)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bigbrother::http::view::InstanceView;
use bigbrother::keeper::cgroup::find_own;
use tempfile::TempDir;

#[path = "host/api.rs"]
mod api;
#[path = "host/cgroups.rs"]
mod cgroups;
#[path = "host/cluster.rs"]
mod cluster;
#[path = "host/ports.rs"]
mod ports;
#[path = "host/surroundings.rs"]
mod surroundings;
#[path = "host/witness.rs"]
mod witness;

use cgroups::{folders, games_cgroup};
pub use ports::PortBlock;
pub use surroundings::{Bystander, PATIENCE, SmallDisk, alive, expect, signal, until};
use surroundings::{processes, words};

/// With or without cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// In one of the test's own making.
    Own,
    /// In that which the keeper finds by itself.
    Found,
    None,
}

pub struct Host {
    pub name: String,
    /// The section `[cluster]`, and the agent's port; "" and `None`: a host alone.
    cluster: String,
    listen: Option<u16>,
    /// The port of `host.api`; `None`: the API is on its socket only.
    pub api: Option<u16>,
    /// Its certificate, as a line of `[host]`; "": plain HTTP.
    api_tls: String,
    pub root: PathBuf,
    pub runtime: PathBuf,
    pub data: PathBuf,
    /// What the agent is given as `--cgroup`; "": nothing.
    pub cgroup: String,
    /// The cgroup that the keeper has found by itself.
    found: Option<PathBuf>,
    /// Ports of `[host]`; no other host under test has them.
    pub ports: (u16, u16),
    block: PortBlock,
    /// Further arguments of the agent.
    pub args: Vec<String>,
    /// The account to run the agent as.
    pub uid: Option<u32>,
    /// Where the next agent is to die (src/keeper/fault.rs).
    pub fault: Option<&'static str>,
    /// A command that executes the agent in surroundings of its own.
    pub through: Vec<String>,
    agent: Option<Child>,
    /// A keeper that the test started itself.
    keeper: Option<Child>,
    external: bool,
    dir: Option<TempDir>,
}

impl Host {
    pub fn new(cgroups: Cgroups) -> Host {
        // SAFETY: no arguments, cannot fail.
        assert_eq!(unsafe { libc::geteuid() }, 0, "these tests need root (cgroups, mounts, users)");
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        let cgroup = match cgroups {
            Cgroups::None => "none".to_owned(),
            Cgroups::Found => String::new(),
            Cgroups::Own => {
                let read = |path| fs::read_to_string(path).unwrap();
                let own = find_own(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
                let own = own.expect("these tests need a mounted cgroup v2");
                let name = root.file_name().unwrap().to_str().unwrap().replace('.', "");
                own.join(format!("bbdeath-{name}")).to_str().unwrap().to_owned()
            }
        };
        // Processes of other accounts write into it, too.
        fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).unwrap();
        witness::write(&root);
        let block = PortBlock::take();
        Host {
            name: "alpha".to_owned(),
            cluster: String::new(),
            listen: None,
            api: None,
            api_tls: String::new(),
            runtime: root.join("run"),
            data: root.join("data"),
            cgroup,
            found: None,
            ports: block.ports(),
            block,
            args: Vec::new(),
            uid: None,
            fault: None,
            through: Vec::new(),
            agent: None,
            keeper: None,
            external: false,
            root,
            dir: Some(dir),
        }
    }

    pub fn config(&self) -> PathBuf {
        self.root.join("cluster.toml")
    }

    /// Writes cluster.toml: this host's own settings and these processes.
    pub fn write_config(&self, processes: &str) {
        self.write_config_to(&self.config(), processes);
    }

    /// The same into another file.
    pub fn write_config_to(&self, file: &Path, processes: &str) {
        let Host { name, cluster, data, runtime, ports: (low, high), api_tls, .. } = self;
        let listen = self.listen.map(|port| format!("listen = \"127.0.0.1:{port}\"\n")).unwrap_or_default();
        let api = self.api.map(|port| format!("127.0.0.1:{port}")).unwrap_or_default();
        let head = format!(
            "{cluster}[host]\nname = {name:?}\n{listen}data_dir = {data:?}\nruntime_dir = {runtime:?}\napi = {api:?}\n{api_tls}\
             address = \"127.0.0.1\"\nports = \"{low}-{high}\"\n\n"
        );
        fs::write(file, head + processes).unwrap();
    }

    // ---- agent and keeper

    fn log(&self, name: &str) -> Stdio {
        let log = OpenOptions::new().create(true).append(true).open(self.root.join(name)).unwrap();
        log.into()
    }

    /// Starts the agent and returns at once.
    pub fn launch_agent(&mut self) {
        assert!(self.agent.is_none(), "one agent at a time");
        let words: Vec<&str> = self.through.iter().map(String::as_str).collect();
        let words = [&words[..], &[env!("CARGO_BIN_EXE_bigbrother")]].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg("agent").arg("--config").arg(self.config());
        match self.external {
            true => command.arg("--external-keeper"),
            false if self.cgroup.is_empty() => &mut command,
            false => command.args(["--cgroup", &self.cgroup]),
        };
        command.args(&self.args);
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "BIGBROTHER_FAULT"] {
            command.env_remove(name);
        }
        command.envs(self.fault.take().map(|point| ("BIGBROTHER_FAULT", point)));
        command.stdin(Stdio::null()).stdout(self.log("agent.log")).stderr(self.log("agent.log"));
        self.agent = Some(command.spawn().unwrap());
    }

    /// Starts the agent and waits until it answers.
    pub fn start(&mut self) {
        self.launch_agent();
        until("the agent answers", || {
            if let Ok(Some(status)) = self.agent.as_mut().unwrap().try_wait() {
                panic!("the agent ended at once: {status}\n{}", self.logs());
            }
            let status = self.status()?;
            expect(status.starting.is_none(), status)
        });
        if self.cgroup.is_empty() {
            // Remembered while the keeper is there to be asked.
            let keeper = until("a keeper", || Ok(self.status()?.keeper.ok_or("none")?.pid));
            self.found = games_cgroup(keeper, &self.runtime);
        }
    }

    /// Waits for the agent's end.
    pub fn agent_ended(&mut self) -> ExitStatus {
        // It is cleaned up when it does not end.
        let agent = self.agent.as_mut().expect("an agent");
        let status = until("the agent ends", || match agent.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        });
        self.agent = None;
        status
    }

    pub fn agent_pid(&self) -> i32 {
        self.agent.as_ref().expect("an agent").id() as i32
    }

    pub fn has_agent(&self) -> bool {
        self.agent.is_some()
    }

    /// SIGKILL to the agent; it is gone on return.
    pub fn kill_agent(&mut self) {
        let mut agent = self.agent.take().expect("an agent");
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// Ends the agent as systemd would.
    pub fn stop_agent(&mut self) {
        signal(self.agent_pid(), libc::SIGTERM);
        let status = self.agent_ended();
        assert!(status.success(), "the agent ended with {status}");
    }

    /// Lets the test itself start the keepers.
    pub fn own_keeper(&mut self, fault: Option<&str>) {
        self.external = true;
        assert!(self.keeper.is_none(), "one keeper at a time");
        let mut command = Command::new(env!("CARGO_BIN_EXE_bigbrother"));
        command.arg("keeper").arg("--runtime-dir").arg(&self.runtime).arg("--cgroup").arg(&self.cgroup);
        command.env_remove("NOTIFY_SOCKET").env_remove("BIGBROTHER_FAULT");
        if let Some(fault) = fault {
            command.env("BIGBROTHER_FAULT", fault);
        }
        fs::create_dir_all(&self.runtime).unwrap();
        command.stdin(Stdio::null()).stdout(self.log("keeper.log")).stderr(self.log("keeper.log"));
        self.keeper = Some(command.spawn().unwrap());
    }

    /// Waits for the end of the keeper that the test started.
    pub fn own_keeper_ended(&mut self) -> ExitStatus {
        let mut keeper = self.keeper.take().expect("a keeper");
        until("the keeper ends", || match keeper.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}; {:?}", self.ps())),
        })
    }

    /// Every keeper of this runtime folder.
    pub fn keepers(&self) -> Vec<i32> {
        let runtime = self.runtime.to_str().unwrap();
        processes("cmdline", |words| {
            words.get(1).is_some_and(|w| w == "keeper") && words.iter().any(|w| w == runtime)
        })
    }

    /// SIGKILL to every keeper; they are gone on return.
    pub fn kill_keeper(&mut self) {
        for pid in self.keepers() {
            signal(pid, libc::SIGKILL);
            self.agent_reaps(pid);
        }
    }

    fn agent_reaps(&self, pid: i32) {
        until("the keeper is gone", || expect(!alive(pid), pid));
    }

    /// Every live process of this host's instances.
    pub fn games(&self) -> BTreeMap<String, Vec<i32>> {
        let mark = format!("BIGBROTHER_SOCKET={}/i/", self.runtime.display());
        let mut games: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        for pid in processes("environ", |words| words.iter().any(|w| w.starts_with(&mark))) {
            let Some(words) = words(pid, "environ") else { continue };
            if let Some(name) = words.iter().find_map(|w| w.strip_prefix("BIGBROTHER_INSTANCE=")) {
                games.entry(name.to_owned()).or_default().push(pid);
            }
        }
        games
    }

    /// The folder of the games' cgroups, where there are cgroups.
    pub fn games_cgroup(&self) -> Option<&Path> {
        let given = Some(Path::new(&self.cgroup)).filter(|_| !["", "none"].contains(&self.cgroup.as_str()));
        self.found.as_deref().or(given)
    }

    /// Processes in the games' cgroups, whatever they call themselves.
    pub fn in_cgroup(&self) -> Vec<i32> {
        let folders = self.games_cgroup().map(folders).unwrap_or_default();
        let procs = folders.iter().map(|f| fs::read_to_string(f.join("cgroup.procs")).unwrap_or_default());
        let pids: Vec<i32> =
            procs.flat_map(|text| text.lines().filter_map(|l| l.parse().ok()).collect::<Vec<_>>()).collect();
        pids.into_iter().filter(|pid| alive(*pid)).collect()
    }

    /// Processes of this host, the agent among them; no zombies, and not the test itself.
    pub fn processes(&self) -> Vec<i32> {
        let mark = self.root.to_str().unwrap();
        let holds = |words: &[String]| words.iter().any(|word| word.contains(mark));
        let named = processes("cmdline", holds).into_iter().chain(processes("environ", holds));
        let all: BTreeSet<i32> = named.chain(self.in_cgroup()).collect();
        all.into_iter().filter(|pid| *pid != std::process::id() as i32).collect()
    }

    // ---- what is seen

    /// Waits until an instance is ready with a pid that it did not have before; gives the view.
    pub fn ready(&self, instance: &str) -> InstanceView {
        until(&format!("{instance} is ready"), || {
            let view = self.view(instance)?;
            expect(view.state == "ready" && view.pid.is_some(), &view)?;
            Ok(view)
        })
    }

    /// Waits until each of these has exactly one live process, the last that its witness wrote down, is ready, and
    /// nothing else is alive.
    pub fn settled(&self, instances: &[&str]) -> BTreeMap<String, InstanceView> {
        until("every instance is ready, once", || {
            let views = self.ps()?;
            let games = self.games();
            for name in instances {
                let view = views.get(*name).ok_or_else(|| format!("no {name} in {:?}", views.keys()))?;
                expect(view.state == "ready", view)?;
                let pids = games.get(*name).cloned().unwrap_or_default();
                expect(pids.len() == 1 && view.pid == Some(pids[0]), (name, &pids, view))?;
                // It may be ready before it has written itself down.
                let last = self.witnessed(name).last().copied();
                expect(last == view.pid, (name, last, view))?;
            }
            expect(games.len() == instances.len(), &games)?;
            Ok(views)
        })
    }

    pub fn logs(&self) -> String {
        let tail = |path: PathBuf| {
            let text = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            let from = text.lines().count().saturating_sub(60);
            let lines: Vec<&str> = text.lines().skip(from).collect();
            format!("--- {}\n{}\n", path.file_name().unwrap().to_string_lossy(), lines.join("\n"))
        };
        tail(self.root.join("agent.log"))
            + &tail(self.data.join("keeper.log"))
            + &tail(self.root.join("keeper.log"))
    }

    /// Power off: agent, keepers and games are gone at once, and nobody wrote anything down.
    pub fn power_off(&mut self) {
        if self.agent.is_some() {
            self.kill_agent();
        }
        self.kill_keeper();
        if let Some(mut keeper) = self.keeper.take() {
            keeper.wait().unwrap();
        }
        until("the games are gone", || {
            let games = self.games();
            games.values().flatten().for_each(|pid| signal(*pid, libc::SIGKILL));
            expect(games.is_empty(), games)
        });
    }

    fn clean(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        let begun = Instant::now();
        loop {
            let left = self.processes();
            if let Some(keeper) = &mut self.keeper {
                let _ = keeper.try_wait();
            }
            if left.is_empty() || begun.elapsed() > PATIENCE {
                break;
            }
            left.into_iter().for_each(|pid| signal(pid, libc::SIGKILL));
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(mut keeper) = self.keeper.take() {
            let _ = keeper.wait();
        }
        // A cgroup is busy for a moment after its last process has died.
        let Some(games) = self.games_cgroup() else { return };
        while games.exists() && begun.elapsed() < PATIENCE {
            // The deepest first.
            folders(games).iter().rev().for_each(|folder| drop(fs::remove_dir(folder)));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        self.clean();
        self.dir.take();
    }
}
