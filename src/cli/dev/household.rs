//! Every process of a demonstration: the agents, the keepers that they start, and their games.
//!
//! This process becomes the reaper of all its descendants (prctl PR_SET_CHILD_SUBREAPER), so that whatever
//! loses its parent comes to it and nothing can be left unseen. It ends only its own descendants, by pid.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use serde_json::json;
use tokio::time::Instant;

use super::folder::{Folder, Place};
use crate::cli::api::Api;
use crate::cli::exit::Failure;
use crate::cli::pidfd::Pidfd;
use crate::cli::serve::own_program;
use crate::http::view::InstanceView;
use crate::spec::HostName;

/// How long each step of the end may take before the next, harder one.
const STOP: Duration = Duration::from_secs(10);
const AGENT_END: Duration = Duration::from_secs(5);
const KEEPER_END: Duration = Duration::from_secs(5);
const LAST_RESORT: Duration = Duration::from_secs(3);
/// An agent that ends this often is not started again.
const MAX_AGENTS: u32 = 20;

/// The processes; see the module.
#[derive(Debug)]
pub struct Household {
    program: PathBuf,
    homes: Vec<Home>,
}

/// One host's.
#[derive(Debug)]
struct Home {
    place: Place,
    agent: Option<i32>,
    agents_started: u32,
    last_end: Option<String>,
    /// Killed as a whole; nothing is started there meanwhile.
    lost: bool,
}

impl Home {
    /// Starts the agent as in production. In a process group of its own, so that Ctrl-C reaches only us.
    fn start_agent(&mut self, program: &Path) -> Result<(), Failure> {
        let failed = |source| Failure::Local { what: "cannot start the agent".to_owned(), source };
        let log = File::options().create(true).append(true).open(self.place.agent_log()).map_err(failed)?;
        let child = Command::new(program)
            .args(["agent", "--config"])
            .arg(self.place.config())
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        // `reap` collects it with all the others.
        self.agent = Some(child.id() as i32);
        self.agents_started += 1;
        Ok(())
    }

    /// The last lines of the agent's log.
    fn agent_log(&self) -> String {
        let text = std::fs::read_to_string(self.place.agent_log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Household {
    /// Nobody yet.
    pub fn new(folder: &Folder) -> Result<Household, Failure> {
        nix::sys::prctl::set_child_subreaper(true)
            .map_err(|e| Failure::Local { what: "cannot become a subreaper".to_owned(), source: e.into() })?;
        let home = |place: &Place| Home {
            place: place.clone(),
            agent: None,
            agents_started: 0,
            last_end: None,
            lost: false,
        };
        Ok(Household { program: own_program()?, homes: folder.places().iter().map(home).collect() })
    }

    /// Starts the agents of all hosts.
    pub fn start_agents(&mut self) -> Result<(), Failure> {
        self.homes.iter_mut().try_for_each(|home| home.start_agent(&self.program))
    }

    /// The pid of a host's agent, 0 while there is none.
    pub fn agent_pid(&self, host: &HostName) -> i32 {
        let home = self.homes.iter().find(|home| home.place.name == *host);
        home.and_then(|home| home.agent).unwrap_or(0)
    }

    /// The last lines of all agents' logs.
    pub fn agent_logs(&self) -> String {
        let told = self.homes.iter().map(|home| format!("{}:\n{}", home.place.name, home.agent_log()));
        told.collect::<Vec<_>>().join("\n")
    }

    /// An error when an agent has ended.
    pub fn must_live(&mut self) -> Result<(), Failure> {
        self.reap();
        let Some(home) = self.homes.iter().find(|home| home.agent.is_none() && !home.lost) else {
            return Ok(());
        };
        let how = home.last_end.as_deref().unwrap_or("ended");
        let (name, log) = (&home.place.name, home.agent_log());
        Err(Failure::NotSo(format!("the agent of {name} {how} at its start; its log ends:\n{log}")))
    }

    /// Starts another agent where there is none any more, and says so.
    pub fn look_after(&mut self) -> Result<Option<String>, Failure> {
        self.reap();
        let Some(home) = self.homes.iter_mut().find(|home| home.agent.is_none() && !home.lost) else {
            return Ok(None);
        };
        if home.agents_started >= MAX_AGENTS {
            self.must_live()?;
            return Ok(None);
        }
        let how = home.last_end.clone().unwrap_or_default();
        home.start_agent(&self.program)?;
        let (name, pid) = (&home.place.name, home.agent.unwrap_or(0));
        Ok(Some(format!(
            "-- the agent of {name} {how}; the games play on. Another one is started (pid {pid})"
        )))
    }

    /// Kills all that a host has, as a power failure would: agent, keeper and games.
    pub fn lose(&mut self, host: &HostName) {
        let Some(home) = self.homes.iter_mut().find(|home| home.place.name == *host) else { return };
        home.lost = true;
        let folder = format!("{}/", home.place.path.display());
        let began = Instant::now();
        loop {
            // The agent and the keeper have the folder in their command line, the games in their environment.
            let mine: Vec<i32> = descendants().into_iter().filter(|pid| mentions(*pid, &folder)).collect();
            if mine.is_empty() || began.elapsed() > LAST_RESORT {
                return;
            }
            mine.into_iter().for_each(|pid| send(pid, Signal::SIGKILL));
            self.reap();
        }
    }

    /// The host is switched on again. Its runtime folder is empty, as after a reboot.
    pub fn bring_back(&mut self, host: &HostName) -> Result<(), Failure> {
        let Some(home) = self.homes.iter_mut().find(|home| home.place.name == *host) else { return Ok(()) };
        home.lost = false;
        let _ = std::fs::remove_dir_all(home.place.path.join("run"));
        home.start_agent(&self.program)
    }

    /// Collects who has ended; true if anybody is left.
    fn reap(&mut self) -> bool {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return true,
                Ok(status) => {
                    let pid = status.pid().map(nix::unistd::Pid::as_raw);
                    if let Some(home) = self.homes.iter_mut().find(|home| pid.is_some() && home.agent == pid)
                    {
                        home.agent = None;
                        home.last_end = Some(told(status));
                    }
                }
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Ends everything, each step harder than the one before, and makes sure that nothing is left.
    pub async fn clear(mut self) -> Result<(), Failure> {
        let living = self.homes.iter().filter(|home| home.agent.is_some());
        let apis: Vec<Api> = living.map(|home| Api::new(home.place.api())).collect();
        stop_all(&apis).await;
        // All at once: those that stay would otherwise see the others as lost.
        let agents: Vec<i32> = self.homes.iter().filter_map(|home| home.agent).collect();
        agents.iter().for_each(|agent| send(*agent, Signal::SIGTERM));
        if !self.within(AGENT_END, |house| house.homes.iter().all(|home| home.agent.is_none())).await {
            agents.into_iter().for_each(|agent| send(agent, Signal::SIGKILL));
        }
        // The keepers end by themselves when they hold nothing any more.
        if self.emptied(KEEPER_END).await {
            return Ok(());
        }
        descendants().into_iter().for_each(|pid| send(pid, Signal::SIGTERM));
        if self.emptied(LAST_RESORT).await {
            return Ok(());
        }
        let began = Instant::now();
        while self.reap() && began.elapsed() < LAST_RESORT {
            // Again and again: who is killed may have had children meanwhile.
            descendants().into_iter().for_each(|pid| send(pid, Signal::SIGKILL));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        match descendants() {
            left if left.is_empty() => Ok(()),
            left => Err(Failure::NotSo(format!("these processes could not be ended: {left:?}"))),
        }
    }

    async fn emptied(&mut self, patience: Duration) -> bool {
        self.within(patience, |home| !home.reap()).await
    }

    async fn within(&mut self, patience: Duration, mut so: impl FnMut(&mut Household) -> bool) -> bool {
        let began = Instant::now();
        loop {
            self.reap();
            if so(self) {
                return true;
            }
            if began.elapsed() > patience {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Stops the games through the API, as `bigbrother stop --all` does; what stays is ended below.
async fn stop_all(apis: &[Api]) {
    let began = Instant::now();
    let mut told = false;
    for api in apis {
        told = told || api.tell("/v1/stop", &json!({ "target": "all" })).await.is_ok();
    }
    while told && began.elapsed() < STOP {
        let mut lives = false;
        for api in apis {
            let list = api.get::<Vec<InstanceView>>("/v1/instances").await.unwrap_or_default();
            lives |= list.iter().any(|instance| instance.pid.is_some());
        }
        if !lives {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// True when the process was started for this folder.
fn mentions(pid: i32, folder: &str) -> bool {
    let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let bytes = [read("cmdline"), read("environ")].concat();
    holds(&bytes, folder.as_bytes())
}

fn holds(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn send(pid: i32, signal: Signal) {
    // Held before it is looked at again: the pid of a descendant that is gone may be a stranger's now.
    let Ok(process) = Pidfd::open(pid) else { return };
    if descendants().contains(&pid) {
        // Gone in between is as good.
        process.send(signal).ok();
    }
}

/// All our descendants that have not ended.
fn descendants() -> Vec<i32> {
    let processes: Vec<(i32, i32)> = processes().unwrap_or_default();
    let mut found = vec![std::process::id() as i32];
    let mut looked = 0;
    while looked < found.len() {
        let parent = found[looked];
        found.extend(processes.iter().filter(|(_, ppid)| *ppid == parent).map(|(pid, _)| *pid));
        looked += 1;
    }
    found.split_off(1)
}

/// (pid, parent) of every process that is no zombie; see proc(5).
fn processes() -> io::Result<Vec<(i32, i32)>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Who has gone since the folder was read has no file any more.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // The name stands in brackets and may hold anything; state and parent follow the last one.
        let Some((_, rest)) = stat.rsplit_once(')') else { continue };
        let mut fields = rest.split_whitespace();
        if let (Some(state), Some(Ok(parent))) = (fields.next(), fields.next().map(str::parse))
            && state != "Z"
        {
            all.push((pid, parent));
        }
    }
    Ok(all)
}

fn told(status: WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("has exited with code {code}"),
        WaitStatus::Signaled(_, signal, _) => format!("was killed by {signal}"),
        other => format!("has ended ({other:?})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_found_over_generations_and_zombies_are_none() {
        let mut child = Command::new("sh").args(["-c", "sleep 60 & wait"]).process_group(0).spawn().unwrap();
        let pid = child.id() as i32;
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let grandchild = loop {
            let all = processes().unwrap();
            if let Some((grandchild, _)) = all.iter().find(|(_, parent)| *parent == pid) {
                break *grandchild;
            }
            assert!(std::time::Instant::now() < deadline, "no child of {pid} among {all:?}");
        };
        let found = descendants();
        assert!(found.contains(&pid) && found.contains(&grandchild), "{found:?}");
        Pidfd::open(grandchild).unwrap().send(Signal::SIGKILL).unwrap();
        while processes().unwrap().iter().any(|(p, _)| *p == pid) {
            assert!(std::time::Instant::now() < deadline, "the shell does not end");
        }
        assert!(!descendants().contains(&pid), "a zombie is no descendant to be ended");
        child.wait().unwrap();
    }
}
