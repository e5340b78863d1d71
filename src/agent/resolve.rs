//! From an instance's spec to the numbers and absolute paths that the keeper is given.
//!
//! Owns what was looked up before (`known`), so that a restart waits for nothing: [`Resolver::errand`] says what must be
//! known for a command, [`Resolver::found`] whether it is. What may block (user database, program search,
//! folders) is left to the threads of [`super::lookup`]. It decides nothing; what cannot be resolved becomes a
//! failed spawn.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::lookup::{Errand, Found, LIBRARIES, LookUpError, PATH};
use crate::config::{HostPolicy, HostSettings};
use crate::host::{Moment, Ports, Want};
use crate::keeper::protocol::{Account, LogTarget, RunId, Spawn};
use crate::spec::template::{ExpandError, Values, expand};
use crate::spec::{HeartbeatMode, InstanceId, InstanceKey, Limits, Logs};

mod known;

use known::Known;

/// The period of cpu.max, microseconds.
const CPU_PERIOD: u64 = 100_000;

/// Why an instance cannot be spawned here.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// A template has no value.
    #[error("{key}: {source}")]
    Template {
        /// Which key of the process.
        key: String,
        /// Why.
        source: ExpandError,
    },
}

/// Whose commands are resolved.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The instance.
    pub instance: &'a InstanceId,
    /// What is wanted of it.
    pub want: &'a Want,
    /// Its ports.
    pub ports: &'a Ports,
}

/// What a spawn is made from.
pub struct Order<'a> {
    /// Of whom.
    pub subject: Subject<'a>,
    /// Its new run.
    pub run: RunId,
    /// The folder of its sockets.
    pub sockets: &'a Path,
    /// For the keeper's ledger.
    pub note: Vec<u8>,
}

/// A resolved command.
pub struct ResolvedCommand {
    /// Absolute path.
    pub program: String,
    /// argv.
    pub args: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    /// Where it starts.
    pub working_dir: String,
    /// As whom; `None`: as the agent.
    pub account: Option<Account>,
    /// Its priority.
    pub nice: i32,
}

/// Resolves spawns for one host.
pub struct Resolver {
    settings: HostSettings,
    /// The priority of processes that name none.
    default_nice: i32,
    policy: Arc<HostPolicy>,
    known: Known,
}

impl Resolver {
    /// A resolver for the host's settings.
    pub fn new(settings: HostSettings) -> Self {
        let policy = Arc::new(settings.policy.clone());
        Resolver { settings, default_nice: default_nice(), policy, known: Known::default() }
    }

    /// The settings changed.
    pub fn set(&mut self, settings: HostSettings) {
        self.policy = Arc::new(settings.policy.clone());
        self.settings = settings;
        self.known.clear();
    }

    /// What must be known before this command of the instance can be executed. `key` names the command.
    pub fn errand(
        &mut self,
        subject: Subject<'_>,
        command: &[String],
        key: &'static str,
    ) -> Result<Errand, ResolveError> {
        let process = &subject.want.process;
        let folder = self.data_folder(subject.instance);
        let (instance, data) = (subject.instance.to_string(), folder.to_string_lossy());
        let program =
            expand(command.first().map_or("", String::as_str), &self.values(subject, &instance, &data))
                .map_err(|source| ResolveError::Template { key: format!("{key}[0]"), source })?;
        let libraries = self.libraries(subject, &self.values(subject, &instance, &data))?;
        let (user, group, policy) = (process.user.clone(), process.group.clone(), self.policy.clone());
        let errand = Errand { user, group, program, libraries, policy, folder: None };
        self.known.need(subject.instance, key, &errand);
        let there = self.known.has_folder(folder.as_os_str());
        Ok(Errand { folder: (!there).then(|| folder.into_os_string()), ..errand })
    }

    /// What the host's policy has to say something about, beside the program.
    fn libraries(&self, subject: Subject<'_>, values: &Values<'_>) -> Result<Vec<String>, ResolveError> {
        if self.policy.programs.is_empty() {
            return Ok(Vec::new());
        }
        let env = &subject.want.process.env;
        let named = LIBRARIES.into_iter().filter_map(|name| Some((name, env.get(name)?)));
        let fill = |(name, text): (&str, &String)| {
            expand(text, values)
                .map_err(|source| ResolveError::Template { key: format!("env.{name}"), source })
        };
        named.map(fill).collect()
    }

    /// What was found for an errand; `None`: it must be looked up first.
    pub fn found(&self, errand: &Errand, now: Moment) -> Option<Found> {
        self.known.found(errand, now)
    }

    /// Takes what came of an errand. True: it is another thing than before.
    pub fn learn(&mut self, errand: &Errand, result: Result<&Found, &LookUpError>, now: Moment) -> bool {
        // Else a reload has changed the policy meanwhile.
        let counts = result.is_err() || errand.policy == self.policy;
        counts && self.known.learn(errand, result.ok(), now)
    }

    /// What is to be looked up again by now.
    pub fn aged(&mut self, now: Moment) -> Vec<Errand> {
        self.known.aged(now)
    }

    /// A run of the instance could not be started as it was resolved: all is looked up again.
    pub fn distrust(&mut self, instance: &InstanceId) {
        self.known.distrust(instance, self.data_folder(instance).as_os_str());
    }

    /// The instance is gone from this host.
    pub fn forget(&mut self, instance: &InstanceId) {
        self.known.forget(instance, self.data_folder(instance).as_os_str());
    }

    /// The whole order for the keeper.
    pub fn spawn(&self, order: Order<'_>, found: Found) -> Result<Spawn, ResolveError> {
        let process = &order.subject.want.process;
        let command = self.command(&order, &process.command, "command", found)?;
        let logs = self.log_target(order.subject.instance, &process.logs);
        Ok(Spawn {
            run: order.run,
            instance: order.subject.instance.clone(),
            program: command.program,
            args: command.args,
            env: command.env,
            working_dir: command.working_dir,
            account: command.account,
            umask: process.umask,
            nice: command.nice,
            rlimits: rlimits(&process.limits),
            ignore_sigpipe: process.ignore_sigpipe,
            limits: cgroup_limits(&process.limits),
            limits_required: process.limits.required,
            exclusive: process.exclusive(),
            logs,
            note: order.note,
        })
    }

    /// A command of the instance (its own, or an exec probe's), ready to be executed.
    pub fn command(
        &self,
        order: &Order<'_>,
        command: &[String],
        key: &str,
        found: Found,
    ) -> Result<ResolvedCommand, ResolveError> {
        let process = &order.subject.want.process;
        let data = self.data_folder(order.subject.instance).to_string_lossy().into_owned();
        let instance = order.subject.instance.to_string();
        let values = self.values(order.subject, &instance, &data);
        let fill = |key: String, text: &str| {
            expand(text, &values).map_err(|source| ResolveError::Template { key, source })
        };
        let args: Vec<String> = command
            .iter()
            .enumerate()
            .map(|(at, text)| fill(format!("{key}[{at}]"), text))
            .collect::<Result<_, _>>()?;
        let mut env = default_env(order, &instance, self.settings.name.as_str());
        if let Some((_, home)) = &found.account {
            env.insert("HOME".to_owned(), home.clone());
        }
        for (name, text) in &process.env {
            env.insert(name.clone(), fill(format!("env.{name}"), text)?);
        }
        let working_dir = match &process.working_dir {
            Some(text) => fill("working_dir".to_owned(), text)?,
            None => data.clone(),
        };
        Ok(ResolvedCommand {
            program: found.program,
            args,
            env: env.into_iter().map(|(key, value)| format!("{key}={value}")).collect(),
            working_dir,
            nice: if process.nice == 0 { self.default_nice } else { process.nice },
            account: found.account.map(|(account, _)| account),
        })
    }

    fn values<'a>(&'a self, subject: Subject<'a>, instance: &'a str, data: &'a str) -> Values<'a> {
        Values {
            ports: subject.ports.iter().map(|(name, (_, number))| (name.as_str(), *number)).collect(),
            instance,
            process: subject.instance.process.as_str(),
            ordinal: match subject.instance.key {
                InstanceKey::Number(n) => Some(n),
                InstanceKey::Host(_) => None,
            },
            host: self.settings.name.as_str(),
            labels: self.settings.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect(),
            address: &self.settings.address,
            data,
            args: subject.want.args.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect(),
        }
    }

    /// Where the output of an instance goes.
    pub fn log_target(&self, instance: &InstanceId, logs: &Logs) -> LogTarget {
        match logs {
            Logs::Files { size, files } => LogTarget::Files {
                folder: self.logs().join(instance.to_string()).to_string_lossy().into_owned(),
                size: *size,
                files: *files,
            },
            Logs::Journald => LogTarget::Journald,
            Logs::Null => LogTarget::Null,
        }
    }

    /// Log files of all instances.
    pub fn logs(&self) -> PathBuf {
        self.settings.data_dir.join("logs")
    }

    fn data_folder(&self, instance: &InstanceId) -> PathBuf {
        self.settings.data_dir.join("data").join(instance.to_string())
    }
}

fn default_env(order: &Order<'_>, instance: &str, host: &str) -> BTreeMap<String, String> {
    let Subject { instance: id, want, ports } = order.subject;
    let beat = &want.process.heartbeat;
    let mut env = BTreeMap::new();
    let mut set = |key: &str, value: String| env.insert(key.to_owned(), value);
    set("PATH", PATH.to_owned());
    set("LANG", "C.UTF-8".to_owned());
    set("BIGBROTHER_INSTANCE", instance.to_owned());
    set("BIGBROTHER_PROCESS", id.process.to_string());
    set("BIGBROTHER_HOST", host.to_owned());
    set("BIGBROTHER_RUN", order.run.to_string());
    set("BIGBROTHER_SOCKET", order.sockets.join("api.sock").to_string_lossy().into_owned());
    set("NOTIFY_SOCKET", order.sockets.join("notify.sock").to_string_lossy().into_owned());
    if beat.mode != HeartbeatMode::None {
        set("BIGBROTHER_HEARTBEAT_MS", beat.interval.as_millis().to_string());
    }
    if beat.mode == HeartbeatMode::Notify {
        set("WATCHDOG_USEC", beat.timeout.as_micros().to_string());
    }
    for (name, (_, number)) in ports {
        set(&format!("PORT_{}", name.to_ascii_uppercase().replace('-', "_")), number.to_string());
    }
    env
}

/// Zero; or that of this agent, when somebody started it with a lower priority that it may not raise.
fn default_nice() -> i32 {
    // SAFETY: getpriority touches no memory.
    let own = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    // SAFETY: neither does setpriority, which on Linux is about the calling thread, one of its own here.
    let raise = || unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) } == 0;
    let may = own <= 0 || std::thread::spawn(raise).join().unwrap_or(false);
    if may { 0 } else { own }
}

fn rlimits(limits: &Limits) -> Vec<(u32, u64)> {
    let pairs = [(libc::RLIMIT_NOFILE, limits.files), (libc::RLIMIT_CORE, limits.core)];
    pairs.into_iter().filter_map(|(resource, value)| Some((resource, value?))).collect()
}

/// The cgroup v2 files that enforce the limits. Pure.
pub fn cgroup_limits(limits: &Limits) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut set = |file: &str, value: String| files.push((file.to_owned(), value));
    if let Some(bytes) = limits.memory {
        set("memory.max", bytes.to_string());
    }
    if let Some(milli) = limits.cpu_milli {
        set("cpu.max", format!("{} {CPU_PERIOD}", milli * CPU_PERIOD / 1000));
    }
    if let Some(pids) = limits.pids {
        set("pids.max", pids.to_string());
    }
    files
}

#[cfg(test)]
mod tests;
