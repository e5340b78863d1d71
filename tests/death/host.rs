//! A host under test: the real program as agent, the keeper that it starts, and small processes.
//!
//! Owns a folder of its own, a games cgroup and everything that is started in them; all of it is gone when the
//! value is dropped, also after a failure, which shows the logs of agent and keeper. Used by tests/death.rs
//! and tests/bad_input.rs; neither uses all of it.
#![allow(dead_code, unused_imports)]

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bigbrother::http::view::InstanceView;
use bigbrother::keeper::cgroup::find_own;
use tempfile::TempDir;

#[path = "host/api.rs"]
mod api;
#[path = "host/surroundings.rs"]
mod surroundings;

pub use surroundings::{Bystander, PATIENCE, SmallDisk, alive, expect, signal, until};
use surroundings::{processes, words};

/// With or without cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroups {
    Own,
    None,
}

pub struct Host {
    pub root: PathBuf,
    pub runtime: PathBuf,
    pub data: PathBuf,
    /// What the agent is given as `--cgroup`.
    pub cgroup: String,
    /// Ports of `[host]`; each test process has others.
    pub ports: (u16, u16),
    /// The account to run the agent as.
    pub uid: Option<u32>,
    /// A command that executes the agent in surroundings of its own.
    pub through: Vec<String>,
    agent: Option<Child>,
    /// A keeper that the test started itself.
    keeper: Option<Child>,
    external: bool,
    dir: Option<TempDir>,
}

/// Runs a program as one run of its instance: it holds a lock and writes down its pid. A second run at the
/// same time cannot have the lock, and writes that down instead.
const WITNESS: &str = r#"
exec 9>>"$1/$BIGBROTHER_INSTANCE.lock"
if ! flock -n 9; then echo "DOUBLE $$" >> "$1/$BIGBROTHER_INSTANCE.runs"; exit 77; fi
echo "start $$" >> "$1/$BIGBROTHER_INSTANCE.runs"
shift
exec "$@"
"#;

/// Beats over sd_notify with blocking sends, ten times a second, and writes down when it did.
const BEATER: &str = r#"
import os, socket, sys, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
ticks = os.open(sys.argv[1] + "/" + os.environ["BIGBROTHER_INSTANCE"] + ".ticks",
                os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
while True:
    try:
        # READY each time: one that lies unread in a socket dies with agent and keeper.
        notify.sendto(b"READY=1\nWATCHDOG=1", os.environ["NOTIFY_SOCKET"])
    except OSError:
        pass
    os.write(ticks, b"%f\n" % time.monotonic())
    time.sleep(0.1)
"#;

impl Host {
    pub fn new(cgroups: Cgroups) -> Host {
        // SAFETY: no arguments, cannot fail.
        assert_eq!(unsafe { libc::geteuid() }, 0, "these tests need root (cgroups, mounts, users)");
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        let cgroup = match cgroups {
            Cgroups::None => "none".to_owned(),
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
        fs::write(root.join("witness"), WITNESS).unwrap();
        fs::write(root.join("beater"), BEATER).unwrap();
        // Test programs run beside each other, and tests within one.
        static HOSTS: AtomicU32 = AtomicU32::new(0);
        let nth = std::process::id().wrapping_add(HOSTS.fetch_add(1, Ordering::Relaxed) * 37);
        let low = 20_000 + (nth % 190) as u16 * 50;
        Host {
            runtime: root.join("run"),
            data: root.join("data"),
            cgroup,
            ports: (low, low + 49),
            uid: None,
            through: Vec::new(),
            agent: None,
            keeper: None,
            external: false,
            root,
            dir: Some(dir),
        }
    }

    /// The program with which a process begins that is to be seen when it runs twice.
    pub fn witness(&self, command: &[&str]) -> String {
        let root = self.root.to_str().unwrap();
        let mut words = vec!["/bin/sh".to_owned(), format!("{root}/witness"), root.to_owned()];
        words.extend(command.iter().map(|word| (*word).to_owned()));
        format!("{words:?}")
    }

    /// A witnessed process that beats over sd_notify.
    pub fn beater(&self) -> String {
        let root = self.root.to_str().unwrap();
        self.witness(&["/usr/bin/python3", "-u", &format!("{root}/beater"), root])
    }

    /// A witnessed demo zone.
    pub fn zone(&self, port: &str) -> String {
        let program = env!("CARGO_BIN_EXE_bigbrother");
        self.witness(&[program, "demo-zone", "--port", port, "--name", "{instance}"])
    }

    pub fn config(&self) -> PathBuf {
        self.root.join("cluster.toml")
    }

    /// Writes cluster.toml: this host's own settings and these processes.
    pub fn write_config(&self, processes: &str) {
        let Host { data, runtime, ports: (low, high), .. } = self;
        let head = format!(
            "[host]\nname = \"alpha\"\ndata_dir = {data:?}\nruntime_dir = {runtime:?}\napi = \"\"\n\
             address = \"127.0.0.1\"\nports = \"{low}-{high}\"\n\n"
        );
        fs::write(self.config(), head + processes).unwrap();
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
            false => command.args(["--cgroup", &self.cgroup]),
        };
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "BIGBROTHER_FAULT"] {
            command.env_remove(name);
        }
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
            self.get("/v1/status").map(|_| ())
        });
    }

    /// Waits for the agent's end.
    pub fn agent_ended(&mut self) -> ExitStatus {
        let mut agent = self.agent.take().expect("an agent");
        until("the agent ends", || match agent.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        })
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

    /// What the witness of an instance wrote: the pids that ran, in order. Panics if two ran at once.
    pub fn witnessed(&self, instance: &str) -> Vec<i32> {
        let text = fs::read_to_string(self.root.join(format!("{instance}.runs"))).unwrap_or_default();
        assert!(!text.contains("DOUBLE"), "{instance} ran twice at once:\n{text}");
        text.lines().map(|line| line.strip_prefix("start ").unwrap().parse().unwrap()).collect()
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
            let mut left = self.keepers();
            left.extend(self.games().into_values().flatten());
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
        let games = PathBuf::from(&self.cgroup);
        while self.cgroup != "none" && games.exists() && begun.elapsed() < PATIENCE {
            for entry in fs::read_dir(&games).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(entry.path());
            }
            let _ = fs::remove_dir(&games);
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
