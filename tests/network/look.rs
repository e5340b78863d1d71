//! What a fleet looks like from outside: what each agent's API says, and what really runs, by /proc.
//!
//! Owns the comparison of the two with what is declared; never changes anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Fleet, HOSTS, PATIENCE};

/// What runs: (host, run) by instance; more than one is one too many.
pub type Running = BTreeMap<String, BTreeSet<(String, u64)>>;

impl Fleet {
    // ---- what is said

    pub fn get(&self, host: &str, path: &str) -> Result<Value, String> {
        let words = |e: std::io::Error| format!("{host} {path}: {e}");
        let mut stream = UnixStream::connect(self.home(host).join("run/api.sock")).map_err(words)?;
        stream.set_read_timeout(Some(Duration::from_secs(3))).map_err(words)?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(words)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(words)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("{host}: no answer"))?;
        if !head.starts_with("HTTP/1.1 200") {
            return Err(format!("{host} {path}: {}", head.lines().next().unwrap_or_default()));
        }
        serde_json::from_str(body).map_err(|e| format!("{host} {path}: {e}"))
    }

    /// The primary, as most of the hosts that answer say.
    pub fn primary(&self) -> &'static str {
        let began = Instant::now();
        loop {
            for host in HOSTS {
                let status = self.get(host, "/v1/status").unwrap_or_default();
                if status["quorum"] == true
                    && let Some(primary) = HOSTS.into_iter().find(|known| status["primary"] == *known)
                {
                    return primary;
                }
            }
            assert!(began.elapsed() < PATIENCE, "nobody knows a primary");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What a host tells of its own instances.
    pub fn own(&self, host: &str) -> Vec<Value> {
        let list = self.get(host, &format!("/v1/instances?host={host}")).unwrap();
        list.as_array().unwrap().iter().filter(|instance| instance["host"] == host).cloned().collect()
    }

    pub fn directory(&self, host: &str) -> Result<Running, String> {
        let mut listed = Running::new();
        for entry in self.get(host, "/v1/directory")?.as_array().ok_or("no array")? {
            let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
            let run = entry["run"].as_u64().unwrap_or_default();
            listed.entry(text("instance")).or_default().insert((text("host"), run));
        }
        Ok(listed)
    }

    // ---- what is

    pub fn running(&self) -> Running {
        let root = format!("{}/", self.folder.path().display());
        let mut running = Running::new();
        for pid in pids() {
            let environ = words(pid, "environ");
            let value = |name: &str| {
                environ.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
            };
            // A child before its exec has the keeper's own.
            let Some(socket) = value("BIGBROTHER_SOCKET") else { continue };
            if !socket.starts_with(&root) {
                continue;
            }
            let (Some(instance), Some(host), Some(run)) =
                (value("BIGBROTHER_INSTANCE"), value("BIGBROTHER_HOST"), value("BIGBROTHER_RUN"))
            else {
                continue;
            };
            running.entry(instance).or_default().insert((host, run.parse().unwrap()));
        }
        running
    }

    /// How many exclusive instances run on a host.
    pub fn exclusive(&self, host: &str) -> usize {
        let on = |runs: &BTreeSet<(String, u64)>| runs.iter().any(|(at, _)| at == host);
        self.running().iter().filter(|(instance, runs)| instance.starts_with("arena.") && on(runs)).count()
    }

    /// All is as declared, and everybody says so; or what is not.
    pub fn is_settled(&self) -> Result<(), String> {
        let on = HOSTS.iter().filter(|host| !self.off.contains(*host));
        let each = on.clone().map(|host| format!("each.{host}"));
        let wanted: BTreeSet<String> = (0..self.zones)
            .map(|n| format!("zone.{n}"))
            .chain((0..3).map(|n| format!("arena.{n}")))
            .chain(each)
            .collect();
        let running = self.running();
        if let Some((instance, runs)) = running.iter().find(|(_, runs)| runs.len() > 1) {
            return Err(format!("{instance} runs more than once: {runs:?}"));
        }
        let found: BTreeSet<String> = running.keys().cloned().collect();
        if found != wanted {
            let missing: Vec<_> = wanted.difference(&found).collect();
            let more: Vec<_> = found.difference(&wanted).collect();
            return Err(format!("not running: {missing:?}; running and not wanted: {more:?}"));
        }
        for host in on {
            let listed = self.directory(host)?;
            if listed != running {
                return Err(format!("{host} lists {listed:?}, running are {running:?}"));
            }
            let status = self.get(host, "/v1/status")?;
            if status["quorum"] != true {
                return Err(format!("{host} sees no quorum"));
            }
            if !status["starting"].is_null() {
                return Err(format!("{host} is starting: {}", status["starting"]));
            }
        }
        Ok(())
    }
}

/// Every process that is no zombie.
pub fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| !words(*pid, "cmdline").is_empty()).collect()
}

/// A file of /proc that is separated by zeros; empty: the process is gone, or a zombie.
pub fn words(pid: i32, file: &str) -> Vec<String> {
    let bytes = fs::read(Path::new("/proc").join(pid.to_string()).join(file)).unwrap_or_default();
    let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}
