//! Five agents as their service managers would keep them, each in its own network namespace.
//!
//! Owns their folders, certificates, agents and everything that these start; all of it is gone when it is dropped.
//! An agent that ends is started again by [`Fleet::tend`], as systemd would. What runs is found in /proc, what
//! is said to run by each agent's API.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::cgroups::{folders, games_cgroup};
use crate::lan::Lan;
use crate::witness;

#[path = "look.rs"]
mod look;

pub use look::Running;
use look::{pids, words};

pub const HOSTS: [&str; 5] = ["alpha", "beta", "gamma", "delta", "epsilon"];
pub const PEERS: [&str; 3] = ["alpha", "beta", "gamma"];
/// Until all is as declared after the last fault.
const PATIENCE: Duration = Duration::from_secs(60);
/// The file's spans are shorter than those that a cluster begins with, which must have passed first.
const FIRST_SPANS: Duration = Duration::from_secs(9);

pub struct Fleet {
    pub lan: Lan,
    /// How many zones are declared.
    pub zones: usize,
    folder: TempDir,
    agents: BTreeMap<&'static str, Child>,
    /// Hosts that are switched off.
    off: BTreeSet<&'static str>,
    disks: BTreeMap<&'static str, PathBuf>,
    /// The games' cgroups, where there are any.
    cgroups: BTreeSet<PathBuf>,
}

impl Fleet {
    pub fn start() -> Fleet {
        Fleet::begin(&[], env!("CARGO_BIN_EXE_bigbrother").as_ref())
    }

    /// These hosts keep their data on a small disk of their own.
    pub fn start_with(small: &[&'static str]) -> Fleet {
        Fleet::begin(small, env!("CARGO_BIN_EXE_bigbrother").as_ref())
    }

    /// All hosts have this program.
    pub fn start_of(program: &Path) -> Fleet {
        Fleet::begin(&[], program)
    }

    fn begin(small: &[&'static str], program: &Path) -> Fleet {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root (namespaces)");
        let folder = tempfile::tempdir().unwrap();
        let mut fleet = Fleet {
            lan: Lan::new(&HOSTS),
            zones: 6,
            folder,
            agents: BTreeMap::new(),
            off: BTreeSet::new(),
            disks: BTreeMap::new(),
            cgroups: BTreeSet::new(),
        };
        fs::create_dir(fleet.shared()).unwrap();
        fleet.bigbrother(&["ca", "init", "--cluster", "net"]);
        for host in HOSTS {
            fs::create_dir(fleet.home(host)).unwrap();
            fleet.put_program(host, program);
            if small.contains(&host) {
                fleet.mount_small_disk(host);
            }
            fleet.bigbrother(&["ca", "issue", host, "--out", host]);
            fs::write(fleet.file(host), fleet.settings(host)).unwrap();
        }
        let began = Instant::now();
        HOSTS.iter().for_each(|host| fleet.start_agent(host));
        fleet.until("five agents are one cluster", |fleet| {
            let up =
                |host: &&str| fleet.get(host, "/v1/status").is_ok_and(|status| status["hosts"]["up"] == 5);
            HOSTS.iter().find(|host| !up(host)).map_or(Ok(()), |host| Err(format!("{host} sees fewer")))
        });
        // Only now, so that each host has its share: who joins first would else get all.
        HOSTS.iter().for_each(|host| fs::write(fleet.file(host), fleet.cluster_toml(host)).unwrap());
        let file = fleet.file("delta").display().to_string();
        // One that has only just joined takes nothing yet.
        fleet.until("the processes are taken", |fleet| fleet.try_command("delta", &["apply", &file]));
        fleet.settle("the start");
        for host in HOSTS {
            let keeper = fleet.keeper(host).expect("a keeper");
            fleet.cgroups.extend(games_cgroup(keeper, &fleet.home(host).join("run")));
        }
        while began.elapsed() < FIRST_SPANS {
            fleet.tend();
            std::thread::sleep(Duration::from_millis(50));
        }
        fleet
    }

    fn mount_small_disk(&mut self, host: &'static str) {
        use nix::mount::{MsFlags, mount};
        let data = self.home(host).join("data");
        fs::create_dir(&data).unwrap();
        mount(Some("tmpfs"), &data, Some("tmpfs"), MsFlags::empty(), Some("size=8m")).unwrap();
        self.disks.insert(host, data);
    }

    /// Takes what is free on a host's small disk.
    pub fn fill_disk(&self, host: &str) {
        let mut file = File::create(self.disks[host].join("filler")).unwrap();
        for size in [64 << 10, 1 << 10, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
    }

    pub fn empty_disk(&self, host: &str) {
        fs::remove_file(self.disks[host].join("filler")).unwrap();
    }

    /// A file that asks for the same and is large, each time another one.
    pub fn with_ballast(&self, host: &str) -> String {
        let path = self.home(host).join("ballast.toml");
        let before = fs::metadata(&path).map_or(0, |file| file.len());
        let large = "x".repeat(100_000 + before as usize % 7);
        let ballast = format!(
            "[process.ballast]\ncommand = [\"/bin/true\"]\ncount = 0\nenv = {{ LARGE = \"{large}\" }}\n"
        );
        fs::write(&path, self.cluster_toml(host) + &ballast).unwrap();
        path.display().to_string()
    }

    fn bigbrother(&self, args: &[&str]) {
        let output = Command::new(env!("CARGO_BIN_EXE_bigbrother"))
            .args(args)
            .current_dir(self.folder.path())
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The host's own file of the program, as a package manager replaces it; gives its inode.
    pub fn put_program(&self, host: &str, program: &Path) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let beside = self.home(host).join("bigbrother.new");
        fs::copy(program, &beside).unwrap();
        fs::rename(&beside, self.program(host)).unwrap();
        fs::metadata(self.program(host)).unwrap().ino()
    }

    fn program(&self, host: &str) -> PathBuf {
        self.home(host).join("bigbrother")
    }

    /// Runs a command for a host's agent; what it said when it failed.
    pub fn try_command(&self, host: &str, args: &[&str]) -> Result<(), String> {
        let api = format!("unix:{}/run/api.sock", self.home(host).display());
        let output = Command::new(self.program(host)).args(args).env("BIGBROTHER_API", api).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    }

    pub fn command(&self, host: &str, args: &[&str]) {
        self.try_command(host, args).unwrap_or_else(|said| panic!("{args:?}: {said}"));
    }

    fn home(&self, host: &str) -> PathBuf {
        self.folder.path().join(host)
    }

    pub fn shared(&self) -> PathBuf {
        self.folder.path().join("shared")
    }

    fn file(&self, host: &str) -> PathBuf {
        self.home(host).join("cluster.toml")
    }

    /// What a host's file says of the host and the cluster.
    fn settings(&self, host: &str) -> String {
        let (root, home) = (self.folder.path().display(), self.home(host));
        let home = home.display();
        let peers: Vec<String> =
            PEERS.iter().map(|peer| format!("{peer} = \"{}:7600\"", self.lan.address(peer))).collect();
        format!(
            r#"
[cluster]
name = "net"
peers = {{ {peers} }}
fence_after = "3250ms"
fence_kill = "250ms"
host_timeout = "4500ms"
tls = {{ ca = "{root}/ca.pem", cert = "{home}/{host}.pem", key = "{home}/{host}.key" }}
[host]
name = "{host}"
data_dir = "{home}/data"
runtime_dir = "{home}/run"
listen = "{address}:7600"
api = ""
"#,
            peers = peers.join(", "),
            address = self.lan.address(host),
        )
    }

    /// The same and the processes.
    fn cluster_toml(&self, host: &str) -> String {
        let (settings, program) = (self.settings(host), env!("CARGO_BIN_EXE_bigbrother"));
        let script = format!("FOLDER = {:?}\n{}", self.shared(), witness::SCRIPT);
        format!(
            r#"{settings}
[process.zone]
command = ["{program}", "demo-zone", "--port", "{{port.game}}"]
count = 6
ports = {{ game = "udp" }}
heartbeat = {{ mode = "native", interval = "500ms", timeout = "5s" }}
stop = {{ timeout = "1s" }}
restart = {{ backoff = false, give_up = false }}
[process.each]
command = ["/bin/sleep", "100000"]
per_host = true
ready = {{ mode = "spawned", after = "0s" }}
heartbeat = {{ mode = "none" }}
restart = {{ backoff = false, give_up = false }}
[process.arena]
command = ["/usr/bin/python3", "-c", '''{script}''']
count = 3
on_partition = "stop"
ready = {{ mode = "spawned", after = "0s" }}
heartbeat = {{ mode = "none" }}
stop = {{ timeout = "1s" }}
restart = {{ backoff = false, give_up = false }}
"#
        )
    }

    // ---- agents and keepers

    fn start_agent(&mut self, host: &'static str) {
        let log = File::options().create(true).append(true).open(self.home(host).join("agent.log")).unwrap();
        let words = self.lan.within(host);
        let child = Command::new(&words[0])
            .args(&words[1..])
            .arg(self.program(host))
            .args(["agent", "--config"])
            .arg(self.file(host))
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("nsenter is needed: apt-get install util-linux");
        self.agents.insert(host, child);
    }

    /// Starts agents again that have ended.
    pub fn tend(&mut self) {
        let ended: Vec<&'static str> = self
            .agents
            .iter_mut()
            .filter_map(|(host, agent)| agent.try_wait().unwrap().map(|_| *host))
            .filter(|host| !self.off.contains(host))
            .collect();
        ended.into_iter().for_each(|host| self.start_agent(host));
    }

    pub fn agent(&self, host: &str) -> i32 {
        self.agents[host].id() as i32
    }

    /// The keeper's pid, by its command line.
    pub fn keeper(&self, host: &str) -> Option<i32> {
        let run = format!("{}/run", self.home(host).display());
        pids().into_iter().find(|pid| {
            let words = words(*pid, "cmdline");
            words.get(1).is_some_and(|word| word == "keeper") && words.iter().any(|word| word.contains(&run))
        })
    }

    /// Agent, keeper and all that they started, at once.
    pub fn switch_off(&mut self, host: &'static str) {
        self.off.insert(host);
        let home = format!("{}/", self.home(host).display());
        let began = Instant::now();
        loop {
            let mentions = |pid: &i32| {
                let said = [words(*pid, "cmdline"), words(*pid, "environ")].concat();
                said.iter().any(|word| word.contains(&home))
            };
            let mine: Vec<i32> = pids().into_iter().filter(mentions).collect();
            if mine.is_empty() {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "{host} is not to be switched off: {mine:?}");
            mine.into_iter().for_each(|pid| send(pid, Signal::SIGKILL));
            let _ = self.agents.get_mut(host).unwrap().try_wait();
        }
        let _ = self.agents.get_mut(host).unwrap().wait();
    }

    /// After a switch-off: what was in memory is gone.
    pub fn switch_on(&mut self, host: &'static str) {
        let _ = fs::remove_dir_all(self.home(host).join("run"));
        self.off.remove(host);
        self.start_agent(host);
    }

    // ---- waiting

    /// Waits until all is as declared. Meanwhile and in the end nothing exclusive has run twice.
    pub fn settle(&mut self, after: &str) -> Duration {
        let began = Instant::now();
        loop {
            self.tend();
            match self.is_settled() {
                Ok(()) => break,
                Err(seen) if began.elapsed() > PATIENCE => {
                    panic!("after {after}: not as declared within {PATIENCE:?}: {seen}\n{}", self.logs());
                }
                Err(_) => std::thread::sleep(Duration::from_millis(30)),
            }
        }
        let overlaps = witness::overlaps(&self.shared());
        assert_eq!(overlaps, Vec::<String>::new(), "after {after}\n{}", self.logs());
        let took = began.elapsed();
        eprintln!("as declared {:.2} s after {after}", took.as_secs_f64());
        took
    }

    /// Waits for something; agents that end meanwhile are started again.
    pub fn until(&mut self, what: &str, look: impl Fn(&Fleet) -> Result<(), String>) {
        let began = Instant::now();
        loop {
            self.tend();
            match look(self) {
                Ok(()) => return eprintln!("{what}: after {:.2} s", began.elapsed().as_secs_f64()),
                Err(seen) if began.elapsed() > PATIENCE => panic!("{what}: {seen}\n{}", self.logs()),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Lets time pass; agents that end meanwhile are started again.
    pub fn pass(&mut self, span: Duration) {
        let until = Instant::now() + span;
        while Instant::now() < until {
            self.tend();
            std::thread::sleep(Duration::from_millis(20).min(span));
        }
    }

    fn logs(&self) -> String {
        let mut text = String::new();
        for host in HOSTS {
            let log = fs::read_to_string(self.home(host).join("agent.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            text.push_str(&format!("--- {host}\n{}\n", lines[lines.len().saturating_sub(25)..].join("\n")));
        }
        text
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        HOSTS.iter().for_each(|host| {
            if self.agents.contains_key(host) {
                self.switch_off(host);
            }
        });
        // Parents last.
        for folder in self.cgroups.iter().flat_map(|root| folders(root).into_iter().rev()) {
            let _ = fs::remove_dir(folder);
        }
        for disk in self.disks.values() {
            let _ = nix::mount::umount2(disk, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// A signal to a process of this test's own.
pub fn send(pid: i32, signal: Signal) {
    assert!(pid > 1);
    // Gone in between is as good.
    let _ = kill(Pid::from_raw(pid), signal);
}
