//! From an instance's spec to the numbers and absolute paths that the keeper is given.
//!
//! Owns the cache of accounts. Everything that can block or fail on the way to a spawn is here: user
//! database, program search, folders. It decides nothing; what it cannot resolve becomes a failed spawn.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use crate::config::{HostPolicy, HostSettings};
use crate::host::{Ports, Want};
use crate::keeper::protocol::{Account, LogTarget, RunId, Spawn};
use crate::spec::template::{ExpandError, Values, expand};
use crate::spec::{HeartbeatMode, InstanceId, InstanceKey, Limits, Logs, Process};

/// An account is looked up again after this long.
const ACCOUNT_LIFE: Duration = Duration::from_secs(60);
/// The search path of a bare program name, and the PATH of the processes.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/games";
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
    /// No such user.
    #[error("there is no user {0} on this host")]
    NoUser(String),
    /// No such group.
    #[error("there is no group {0} on this host")]
    NoGroup(String),
    /// The user database cannot be asked.
    #[error("cannot look up {0}")]
    Lookup(String, #[source] nix::errno::Errno),
    /// No such program.
    #[error("there is no program {0} in {PATH}")]
    NoProgram(String),
    /// The host's policy forbids it.
    #[error("host.policy forbids {0}")]
    Policy(String),
    /// A folder cannot be made.
    #[error("cannot make {path}: {source}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What a spawn is made from.
pub struct Order<'a> {
    /// The instance.
    pub instance: &'a InstanceId,
    /// Its new run.
    pub run: RunId,
    /// What is wanted of it.
    pub want: &'a Want,
    /// Its ports.
    pub ports: &'a Ports,
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
}

/// Resolves spawns for one host.
pub struct Resolver {
    settings: HostSettings,
    /// The priority of processes that name none.
    default_nice: i32,
    accounts: BTreeMap<(String, Option<String>), (Instant, Account, String)>,
}

impl Resolver {
    /// A resolver for the host's settings.
    pub fn new(settings: HostSettings) -> Self {
        Resolver { settings, default_nice: default_nice(), accounts: BTreeMap::new() }
    }

    /// The settings changed.
    pub fn set(&mut self, settings: HostSettings) {
        self.settings = settings;
        self.accounts.clear();
    }

    /// The account of a process; `None`: the agent's own.
    pub fn account(&mut self, process: &Process) -> Result<Option<Account>, ResolveError> {
        Ok(self.lookup(process)?.map(|(account, _)| account))
    }

    /// The whole order for the keeper.
    pub fn spawn(&mut self, order: Order<'_>) -> Result<Spawn, ResolveError> {
        let process = &order.want.process;
        let command = self.command(&order, &process.command, "command")?;
        let logs = self.log_target(order.instance, &process.logs);
        Ok(Spawn {
            run: order.run,
            instance: order.instance.clone(),
            program: command.program,
            args: command.args,
            env: command.env,
            working_dir: command.working_dir,
            account: command.account,
            umask: process.umask,
            nice: if process.nice == 0 { self.default_nice } else { process.nice },
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
        &mut self,
        order: &Order<'_>,
        command: &[String],
        key: &str,
    ) -> Result<ResolvedCommand, ResolveError> {
        let process = &order.want.process;
        let account = self.lookup(process)?;
        let data = self.data_folder(order.instance, account.as_ref().map(|(account, _)| account))?;
        let instance = order.instance.to_string();
        let values = self.values(order, &instance, &data);
        let fill = |key: String, text: &str| {
            expand(text, &values).map_err(|source| ResolveError::Template { key, source })
        };
        let args: Vec<String> = command
            .iter()
            .enumerate()
            .map(|(at, text)| fill(format!("{key}[{at}]"), text))
            .collect::<Result<_, _>>()?;
        let mut env = default_env(order, &instance, self.settings.name.as_str());
        if let Some((_, home)) = &account {
            env.insert("HOME".to_owned(), home.clone());
        }
        for (name, text) in &process.env {
            env.insert(name.clone(), fill(format!("env.{name}"), text)?);
        }
        let working_dir = match &process.working_dir {
            Some(text) => fill("working_dir".to_owned(), text)?,
            None => data.clone(),
        };
        let program = find(args.first().map_or("", String::as_str))?;
        let user = process.user.as_deref();
        check_policy(&self.settings.policy, user, &program)?;
        Ok(ResolvedCommand {
            program,
            args,
            env: env.into_iter().map(|(key, value)| format!("{key}={value}")).collect(),
            working_dir,
            account: account.map(|(account, _)| account),
        })
    }

    fn values<'a>(&'a self, order: &'a Order<'_>, instance: &'a str, data: &'a str) -> Values<'a> {
        Values {
            ports: order.ports.iter().map(|(name, (_, number))| (name.as_str(), *number)).collect(),
            instance,
            process: order.instance.process.as_str(),
            ordinal: match order.instance.key {
                InstanceKey::Number(n) => Some(n),
                InstanceKey::Host(_) => None,
            },
            host: self.settings.name.as_str(),
            labels: self.settings.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect(),
            address: &self.settings.address,
            data,
            args: order.want.args.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect(),
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

    fn data_folder(&self, instance: &InstanceId, account: Option<&Account>) -> Result<String, ResolveError> {
        let path = self.settings.data_dir.join("data").join(instance.to_string());
        if !path.is_dir() {
            let made = std::fs::create_dir_all(&path).and_then(|()| {
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750))?;
                match account {
                    Some(a) => std::os::unix::fs::chown(&path, Some(a.uid), Some(a.gid)),
                    None => Ok(()),
                }
            });
            made.map_err(|source| ResolveError::Folder { path: path.clone(), source })?;
        }
        Ok(path.to_string_lossy().into_owned())
    }

    fn lookup(&mut self, process: &Process) -> Result<Option<(Account, String)>, ResolveError> {
        let Some(user) = &process.user else { return Ok(None) };
        let key = (user.clone(), process.group.clone());
        if let Some((at, account, home)) = self.accounts.get(&key)
            && at.elapsed() < ACCOUNT_LIFE
        {
            return Ok(Some((account.clone(), home.clone())));
        }
        let (account, home) = look_up(user, process.group.as_deref())?;
        self.accounts.insert(key, (Instant::now(), account.clone(), home.clone()));
        Ok(Some((account, home)))
    }
}

fn look_up(user: &str, group: Option<&str>) -> Result<(Account, String), ResolveError> {
    let found = User::from_name(user).map_err(|errno| ResolveError::Lookup(user.to_owned(), errno))?;
    let found = found.ok_or_else(|| ResolveError::NoUser(user.to_owned()))?;
    let gid: Gid = match group {
        None => found.gid,
        Some(group) => {
            Group::from_name(group)
                .map_err(|errno| ResolveError::Lookup(group.to_owned(), errno))?
                .ok_or_else(|| ResolveError::NoGroup(group.to_owned()))?
                .gid
        }
    };
    let name = CString::new(user).map_err(|_| ResolveError::NoUser(user.to_owned()))?;
    let groups = getgrouplist(&name, gid).map_err(|errno| ResolveError::Lookup(user.to_owned(), errno))?;
    let account = Account {
        uid: found.uid.as_raw(),
        gid: gid.as_raw(),
        groups: groups.into_iter().map(Gid::as_raw).collect(),
    };
    Ok((account, found.dir.to_string_lossy().into_owned()))
}

fn default_env(order: &Order<'_>, instance: &str, host: &str) -> BTreeMap<String, String> {
    let process = &order.want.process;
    let beat = &process.heartbeat;
    let mut env = BTreeMap::new();
    let mut set = |key: &str, value: String| env.insert(key.to_owned(), value);
    set("PATH", PATH.to_owned());
    set("LANG", "C.UTF-8".to_owned());
    set("BIGBROTHER_INSTANCE", instance.to_owned());
    set("BIGBROTHER_PROCESS", order.instance.process.to_string());
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
    for (name, (_, number)) in order.ports {
        set(&format!("PORT_{}", name.to_ascii_uppercase().replace('-', "_")), number.to_string());
    }
    env
}

/// An absolute path stays; a bare name is searched for.
fn find(program: &str) -> Result<String, ResolveError> {
    if program.starts_with('/') {
        return Ok(program.to_owned());
    }
    let executable = |path: &PathBuf| {
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    let found = PATH.split(':').map(|folder| Path::new(folder).join(program)).find(executable);
    found
        .map(|path| path.to_string_lossy().into_owned())
        .ok_or_else(|| ResolveError::NoProgram(program.to_owned()))
}

fn check_policy(policy: &HostPolicy, user: Option<&str>, program: &str) -> Result<(), ResolveError> {
    if !policy.users.is_empty() {
        let own = User::from_uid(Uid::effective()).ok().flatten().map(|user| user.name);
        let user = user.map(str::to_owned).or(own).unwrap_or_default();
        if !policy.users.contains(&user) {
            return Err(ResolveError::Policy(format!("user {user}")));
        }
    }
    if policy.programs.is_empty() {
        return Ok(());
    }
    // Links and dots must not lead out of the allowed folders.
    let real = std::fs::canonicalize(program).unwrap_or_else(|_| PathBuf::from(program));
    let below = |folder: &PathBuf| real.starts_with(std::fs::canonicalize(folder).as_ref().unwrap_or(folder));
    match policy.programs.iter().any(below) {
        true => Ok(()),
        false => Err(ResolveError::Policy(format!("program {}", real.display()))),
    }
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
