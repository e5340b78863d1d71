//! A booted systemd with Big Brother installed from what the Debian package would hold.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bigbrother::keeper::cgroup;
use nix::unistd::Uid;
use serde_json::Value;
use tempfile::TempDir;

/// The machine is slow when others use it, too.
pub const DEADLINE: Duration = Duration::from_secs(60);

const CLUSTER: &str = r#"
[host]
name = "alpha"

[process.zone]
command = ["/usr/bin/bigbrother", "demo-zone", "--port", "{port.game}", "--name", "{instance}"]
count = 3
ports = { game = "udp" }
user = "games"
heartbeat = { mode = "native", interval = "1s", timeout = "20s" }

[process.probed]
command = ["/bin/sh", "-c", "echo begun as {instance}; echo '<3>an error' >&2; while sleep 2; do echo tick; done"]
user = "games"
logs = "journald"
ready = { mode = "exec", command = ["/bin/true"] }
heartbeat = { mode = "exec", command = ["/bin/true"], interval = "1s", timeout = "20s" }
"#;

/// What tells one run of a game from the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Game {
    pub instance: String,
    pub pid: i64,
    pub run: u64,
}

/// Gone when it is dropped, or when the test dies.
pub struct Machine {
    folder: TempDir,
    cgroup: PathBuf,
    script: Child,
    /// Closing it ends the machine.
    life: Option<ChildStdin>,
    leader: i32,
}

/// Waits until something is there; panics with what was seen last.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if begun.elapsed() > DEADLINE => panic!("{what}: not within {DEADLINE:?}; saw {seen}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

impl Machine {
    /// Boots one with Big Brother installed and waits until it is up; nothing of Big Brother runs yet.
    pub fn boot() -> Machine {
        Machine::boot_with(install)
    }

    /// The same without Big Brother, but with its cluster.toml.
    pub fn boot_bare() -> Machine {
        Machine::boot_with(|_| ())
    }

    fn boot_with(install: impl FnOnce(&Path)) -> Machine {
        let hierarchy = hierarchy();
        let folder = TempDir::new().expect("a folder for the machine");
        let files = folder.path().join("files");
        fs::create_dir(folder.path().join("over")).expect("a folder for the overlay");
        configure(&files);
        install(&files);
        let name =
            folder.path().file_name().and_then(|n| n.to_str()).expect("a name").trim_start_matches('.');
        let cgroup = hierarchy.join(format!("bigbrother-machine-{name}"));
        let mut script = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "bash"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/systemd/machine.sh"))
            .args([&cgroup, folder.path()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("script")).expect("a file for what the script says"))
            // What ends the test must not end the script, which has to clean up then.
            .process_group(0)
            .spawn()
            .expect("unshare (Debian package util-linux)");
        let life = script.stdin.take();
        let mut machine = Machine { folder, cgroup, script, life, leader: 0 };
        machine.leader = until("a booting machine", || machine.find_leader());
        until("a booted machine", || {
            let state = machine.try_run(&["systemctl", "is-system-running"]);
            let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
            match state.as_str() {
                "running" | "degraded" => Ok(()),
                _ => Err(format!("{state:?}; {}", machine.said())),
            }
        });
        machine
    }

    /// The machine's PID 1.
    fn find_leader(&mut self) -> Result<i32, String> {
        if let Ok(Some(status)) = self.script.try_wait() {
            panic!("the machine does not boot ({status}): {}", self.said());
        }
        let text = fs::read_to_string(self.payload().join("init.scope/cgroup.procs"))
            .map_err(|e| format!("{e}; {}", self.said()))?;
        text.lines()
            .filter_map(|pid| pid.parse().ok())
            .find(|pid| {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                status.lines().any(|l| l.starts_with("NSpid:") && l.ends_with("\t1"))
            })
            .ok_or_else(|| self.said())
    }

    /// What the machine calls the root of its cgroups.
    pub fn payload(&self) -> PathBuf {
        self.cgroup.join("machine/payload")
    }

    fn said(&self) -> String {
        let read = |file| fs::read_to_string(self.folder.path().join(file)).unwrap_or_default();
        format!("the script said {:?}, the console {:?}", read("script"), read("console"))
    }

    /// Copies a file of this host into the machine.
    pub fn copy(&self, from: &Path, to: &str) {
        let root = format!("/proc/{}/root", self.leader);
        fs::copy(from, Path::new(&root).join(to.trim_start_matches('/')))
            .unwrap_or_else(|e| panic!("{} to {to}: {e}", from.display()));
    }

    /// Runs a command in the machine.
    pub fn try_run(&self, command: &[&str]) -> Output {
        Command::new("timeout")
            .args(["--kill-after=5", "60", "nsenter", "--all", "--target", &self.leader.to_string(), "--"])
            .args(command)
            .env_remove("BIGBROTHER_API")
            .output()
            .expect("timeout and nsenter (Debian packages coreutils and util-linux)")
    }

    /// Runs a command in the machine that must succeed, and gives what it printed.
    pub fn run(&self, command: &[&str]) -> String {
        let output = self.try_run(command);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "{command:?}: {}: {}{}\n{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr),
            self.journal()
        );
        text(&output.stdout)
    }

    fn journal(&self) -> String {
        let journal = self.try_run(&["journalctl", "--no-pager", "--lines=60", "--unit=bigbrother-*"]);
        String::from_utf8_lossy(&journal.stdout).into_owned()
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, property: &str) -> String {
        self.run(&["systemctl", "show", "--value", "--property", property, unit]).trim().to_owned()
    }

    /// The main process of a unit that runs.
    pub fn main_pid(&self, unit: &str) -> i32 {
        match self.property(unit, "MainPID").parse() {
            Ok(pid) if pid > 0 => pid,
            other => panic!("{unit} has no main process: {other:?}"),
        }
    }

    /// How nice a process is.
    pub fn priority(&self, pid: i64) -> i32 {
        let stat = self.run(&["cat", &format!("/proc/{pid}/stat")]);
        let behind_name = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        // The 19th field; the name was the second.
        let nice = behind_name.split_whitespace().nth(16).and_then(|nice| nice.parse().ok());
        nice.unwrap_or_else(|| panic!("no priority in {stat:?}"))
    }

    /// Starts agent, keeper and games, with a limit that only living cgroups remember, and waits for the games.
    pub fn start(&self) -> Vec<Game> {
        self.run(&["systemctl", "start", "bigbrother-games"]);
        // What the keeper does itself where memory, cpu or pids are v2 controllers.
        for unit in ["", "system.slice", "system.slice/bigbrother-games.service"] {
            self.enable_hugetlb(&self.payload().join(unit));
        }
        self.run(&["systemctl", "start", "bigbrother-agent"]);
        let games = self.ready_games();
        for game in &games {
            fs::write(self.limit_file(game), "2097152").expect("a limit");
        }
        games
    }

    pub fn enable_hugetlb(&self, cgroup: &Path) {
        let machine = self.cgroup.join("machine");
        for folder in [machine.as_path(), cgroup] {
            let file = folder.join("cgroup.subtree_control");
            fs::write(&file, "+hugetlb").unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        }
    }

    fn limit_file(&self, game: &Game) -> PathBuf {
        self.payload()
            .join("system.slice/bigbrother-games.service")
            .join(format!("instance-{}", game.instance))
            .join("hugetlb.2MB.max")
    }

    /// All games, as soon as all four are ready.
    pub fn ready_games(&self) -> Vec<Game> {
        until("four games that are ready", || {
            let output = self.try_run(&["bigbrother", "ps", "--json"]);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let seen = || format!("{text}{}\n{}", String::from_utf8_lossy(&output.stderr), self.journal());
            let list: Vec<Value> = serde_json::from_str(&text).map_err(|_| seen())?;
            let ready = list.len() == 4 && list.iter().all(|one| one["state"] == "ready");
            let game = |one: &Value| {
                Some(Game {
                    instance: one["instance"].as_str()?.to_owned(),
                    pid: one["pid"].as_i64()?,
                    run: one["run"].as_u64()?,
                })
            };
            list.iter().map(game).collect::<Option<_>>().filter(|_| ready).ok_or_else(seen)
        })
    }

    /// The same processes, alive, in the same cgroups, with the same limits.
    pub fn assert_untouched(&self, games: &[Game], after: &str) {
        assert_eq!(self.ready_games(), games, "after {after}");
        for game in games {
            let limit = fs::read_to_string(self.limit_file(game)).expect("the limit file");
            assert_eq!(limit.trim(), "2097152", "the limit of {} after {after}", game.instance);
            let cgroups = self.run(&["cat", &format!("/proc/{}/cgroup", game.pid)]);
            // Beside it, on hybrid hosts, those of v1.
            let cgroup = cgroups.lines().find(|line| line.starts_with("0::")).unwrap_or(&cgroups);
            let expected = format!("0::/system.slice/bigbrother-games.service/instance-{}", game.instance);
            assert_eq!(cgroup, expected, "after {after}");
        }
    }

    /// Waits until a unit that lost its main process runs with another.
    pub fn restarted(&self, unit: &str, old: i32) -> i32 {
        until(&format!("{unit} with a new main process"), || {
            let pid = self.property(unit, "MainPID").parse().unwrap_or(0);
            let state = self.property(unit, "ActiveState");
            match pid != 0 && pid != old && state == "active" {
                true => Ok(pid),
                false => Err(format!("{state}, main process {pid}, before {old}")),
            }
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.life.take());
        let status = self.script.wait();
        let clean = matches!(&status, Ok(status) if status.success()) && !self.cgroup.exists();
        if !clean && !std::thread::panicking() {
            panic!("the machine was not cleaned up ({status:?}): {}", self.said());
        }
    }
}

/// Where the cgroups are; panics when a machine cannot be booted here.
fn hierarchy() -> PathBuf {
    assert!(Uid::effective().is_root(), "booting a systemd needs root");
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join("systemd-nspawn").exists())
    });
    assert!(found, "systemd-nspawn is missing: install the Debian package systemd-container");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc");
    let hierarchy = cgroup::find(&mounts, Path::new("/")).expect("a mounted cgroup v2 hierarchy");
    let controllers = fs::read_to_string(hierarchy.join("cgroup.controllers")).expect("its controllers");
    assert!(
        controllers.split_whitespace().any(|c| c == "hugetlb"),
        "cgroup v2 at {} has no hugetlb controller, only: {controllers}",
        hierarchy.display()
    );
    hierarchy
}

/// Lays out what `[package.metadata.deb]` lists, but the program as built for the tests, and without what is
/// generated (manuals, completions).
fn install(files: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest: toml::Table =
        fs::read_to_string(root.join("Cargo.toml")).expect("Cargo.toml").parse().expect("TOML");
    let deb = &manifest["package"]["metadata"]["deb"];
    let put = |from: &Path, to: PathBuf| {
        fs::create_dir_all(to.parent().expect("a folder")).expect("a folder of the package");
        fs::copy(from, &to).unwrap_or_else(|e| panic!("{} of Cargo.toml: {e}", from.display()));
    };
    for asset in deb["assets"].as_array().expect("assets") {
        let [from, to] = [0, 1].map(|at| asset[at].as_str().expect("a path"));
        let program = from == "target/release/bigbrother";
        if from.contains('*') || (from.starts_with("target/") && !program) {
            continue;
        }
        let from = if program { env!("CARGO_BIN_EXE_bigbrother").into() } else { root.join(from) };
        put(&from, files.join(to).join(from.file_name().expect("a file")));
    }
    for unit in deb["systemd-units"].as_array().expect("units") {
        let name = format!("{}.service", unit["unit-name"].as_str().expect("a name"));
        let from = root.join(unit["unit-scripts"].as_str().expect("a folder")).join(&name);
        put(&from, files.join("usr/lib/systemd/system").join(name));
    }
}

fn configure(files: &Path) {
    fs::create_dir_all(files.join("etc/bigbrother")).expect("/etc");
    fs::write(files.join("etc/bigbrother/cluster.toml"), CLUSTER).expect("cluster.toml");
    // What this machine mounts is no concern of that one.
    fs::write(files.join("etc/fstab"), "").expect("fstab");
}
