//! A host under test: the real program as agent, the keeper that it starts, and small processes.
//!
//! Owns a folder of its own, a games cgroup and everything that is started in them; all of it is gone when the
//! value is dropped, also after a failure, which shows the logs of agent and keeper. Used by tests/death.rs
//! and tests/bad_input.rs; neither uses all of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bigbrother::http::view::{EventView, InstanceView, StatusView};
use bigbrother::keeper::cgroup::find_own;
use bigbrother::keeper::process::stat;
use serde_json::Value;
use tempfile::TempDir;

/// No wait of these tests takes longer, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something is there; panics with what was seen last.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if begun.elapsed() > PATIENCE => panic!("{what}: not within {PATIENCE:?}; saw {seen}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// `Ok` when it holds, else what was seen.
pub fn expect(holds: bool, seen: impl std::fmt::Debug) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("{seen:?}")) }
}

pub fn alive(pid: i32) -> bool {
    stat(pid).is_some_and(|s| s.alive())
}

pub fn signal(pid: i32, signal: i32) {
    assert!(pid > 1, "{pid} is nobody to send a signal to");
    // SAFETY: kill touches no memory. It fails only when the process is gone, which some tests race with.
    unsafe { libc::kill(pid, signal) };
}

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
        let mut command = Command::new(env!("CARGO_BIN_EXE_bigbrother"));
        command.arg("agent").arg("--config").arg(self.config());
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

    // ---- the API

    pub fn get(&self, path: &str) -> Result<Value, String> {
        let (status, body) = self.ask("GET", path, "")?;
        match status {
            200 => serde_json::from_str(&body).map_err(|e| format!("{path}: {e}: {body}")),
            _ => Err(format!("{path}: {status}: {body}")),
        }
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        let (status, answer) = self.ask("POST", path, &body.to_string())?;
        match status {
            200..300 => serde_json::from_str(&answer).map_err(|e| format!("{path}: {e}: {answer}")),
            _ => Err(format!("{path}: {status}: {answer}")),
        }
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Result<(u16, String), String> {
        let words = |e: std::io::Error| format!("{method} {path}: {e}");
        let mut stream = UnixStream::connect(self.runtime.join("api.sock")).map_err(words)?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(words)?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: alpha\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).map_err(words)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(words)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("no answer: {answer:?}"))?;
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or("no status")?;
        Ok((status, body.to_owned()))
    }

    pub fn status(&self) -> Result<StatusView, String> {
        serde_json::from_value(self.get("/v1/status")?).map_err(|e| e.to_string())
    }

    pub fn ps(&self) -> Result<BTreeMap<String, InstanceView>, String> {
        let views: Vec<InstanceView> =
            serde_json::from_value(self.get("/v1/instances")?).map_err(|e| e.to_string())?;
        Ok(views.into_iter().map(|view| (view.instance.to_string(), view)).collect())
    }

    pub fn view(&self, instance: &str) -> Result<InstanceView, String> {
        self.ps()?.remove(instance).ok_or_else(|| format!("there is no {instance}"))
    }

    pub fn events(&self, instance: &str) -> Vec<EventView> {
        let events = self.get(&format!("/v1/events?instance={instance}")).unwrap();
        serde_json::from_value(events).unwrap()
    }

    /// The sum of all samples of a metric whose labels contain this text; "": of all.
    pub fn metric(&self, name: &str, label: &str) -> Result<f64, String> {
        let (status, text) = self.ask("GET", "/metrics", "")?;
        let samples = text.lines().filter(|line| line.contains(label)).filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            if !rest.starts_with([' ', '{']) {
                return None;
            }
            rest.rsplit(' ').next()?.parse::<f64>().ok()
        });
        let samples: Vec<f64> = samples.collect();
        expect(status == 200 && !samples.is_empty(), format!("no {name}{{{label}}} in {text}"))?;
        Ok(samples.iter().sum())
    }

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
        if self.cgroup != "none" {
            for entry in fs::read_dir(&self.cgroup).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(entry.path());
            }
            let _ = fs::remove_dir(&self.cgroup);
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

/// The words of a file of /proc/PID that separates them by zeros.
fn words(pid: i32, file: &str) -> Option<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/{file}")).ok()?;
    Some(bytes.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect())
}

/// Live processes whose words please.
fn processes(file: &str, pleases: impl Fn(&[String]) -> bool) -> Vec<i32> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| alive(*pid) && words(*pid, file).is_some_and(|words| pleases(&words))).collect()
}

/// A process that belongs to nobody here; killed when dropped.
pub struct Bystander(Child);

impl Bystander {
    pub fn start() -> Bystander {
        let mut command = Command::new("/bin/sleep");
        Bystander(command.arg("600").stdin(Stdio::null()).spawn().unwrap())
    }

    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A small file system in memory; unmounted when dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    pub fn mount(at: &Path, size: &str) -> SmallDisk {
        use nix::mount::{MsFlags, mount};
        fs::create_dir_all(at).unwrap();
        let options = format!("size={size},mode=0755");
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        SmallDisk(at.to_owned())
    }

    /// Takes what is free; what is returned is the file to remove.
    pub fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = File::create(&path).unwrap();
        for size in [64 << 10, 1 << 10] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}
