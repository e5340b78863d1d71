//! From an instance's spec to the numbers and absolute paths that the keeper is given.
//!
//! Owns what was looked up before, so that a restart waits for nothing: [`Resolver::errand`] says what must be
//! known for a command, [`Resolver::found`] whether it is. What may block (user database, program search,
//! folders) is left to the threads of [`super::lookup`]. It decides nothing; what cannot be resolved becomes a
//! failed spawn.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::lookup::{Errand, Found, LIBRARIES, LookUpError, PATH};
use crate::config::{HostPolicy, HostSettings};
use crate::host::{Moment, Ports, Want};
use crate::keeper::protocol::{Account, LogTarget, RunId, Spawn};
use crate::spec::template::{ExpandError, Values, expand};
use crate::spec::{HeartbeatMode, InstanceId, InstanceKey, Limits, Logs};

/// What was found is looked up again, on the side, after this long.
const FRESH: Duration = Duration::from_secs(30);
/// What could not be looked up again meanwhile (the agent stood still) is not used after this long.
const STALE: Duration = Duration::from_secs(60);
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
    /// Its priority.
    pub nice: i32,
}

/// Resolves spawns for one host.
pub struct Resolver {
    settings: HostSettings,
    /// The priority of processes that name none.
    default_nice: i32,
    policy: Arc<HostPolicy>,
    /// By errands without a folder.
    found: BTreeMap<Errand, Kept>,
    /// Data folders that are there.
    folders: BTreeSet<OsString>,
    /// What each instance needs, by the key of its command.
    needs: BTreeMap<(InstanceId, &'static str), Errand>,
}

/// What was found, and when.
struct Kept {
    found: Found,
    at: Moment,
    /// Somebody is asking again. While no answer comes, what was found last goes on to hold.
    asked: bool,
}

impl Resolver {
    /// A resolver for the host's settings.
    pub fn new(settings: HostSettings) -> Self {
        let policy = Arc::new(settings.policy.clone());
        Resolver {
            settings,
            default_nice: default_nice(),
            policy,
            found: BTreeMap::new(),
            folders: BTreeSet::new(),
            needs: BTreeMap::new(),
        }
    }

    /// The settings changed.
    pub fn set(&mut self, settings: HostSettings) {
        self.policy = Arc::new(settings.policy.clone());
        self.settings = settings;
        self.found.clear();
    }

    /// What must be known before this command of the instance can be executed. `key` names the command.
    pub fn errand(
        &mut self,
        order: &Order<'_>,
        command: &[String],
        key: &'static str,
    ) -> Result<Errand, ResolveError> {
        let process = &order.want.process;
        let folder = self.data_folder(order.instance);
        let (instance, data) = (order.instance.to_string(), folder.to_string_lossy());
        let program =
            expand(command.first().map_or("", String::as_str), &self.values(order, &instance, &data))
                .map_err(|source| ResolveError::Template { key: format!("{key}[0]"), source })?;
        let libraries = self.libraries(order, &self.values(order, &instance, &data))?;
        let (user, group, policy) = (process.user.clone(), process.group.clone(), self.policy.clone());
        let errand = Errand { user, group, program, libraries, policy, folder: None };
        let need = (order.instance.clone(), key);
        if self.needs.get(&need) != Some(&errand) {
            self.needs.insert(need, errand.clone());
        }
        Ok(Errand {
            folder: (!self.folders.contains(folder.as_os_str())).then(|| folder.into_os_string()),
            ..errand
        })
    }

    /// What the host's policy has to say something about, beside the program.
    fn libraries(&self, order: &Order<'_>, values: &Values<'_>) -> Result<Vec<String>, ResolveError> {
        if self.policy.programs.is_empty() {
            return Ok(Vec::new());
        }
        let env = &order.want.process.env;
        let named = LIBRARIES.into_iter().filter_map(|name| Some((name, env.get(name)?)));
        let fill = |(name, text): (&str, &String)| {
            expand(text, values)
                .map_err(|source| ResolveError::Template { key: format!("env.{name}"), source })
        };
        named.map(fill).collect()
    }

    /// What was found for an errand; `None`: it must be looked up first.
    pub fn found(&self, errand: &Errand, now: Moment) -> Option<Found> {
        let kept = self.found.get(errand)?;
        (kept.asked || now.since(kept.at) < STALE).then(|| kept.found.clone())
    }

    /// Takes what came of an errand.
    pub fn learn(&mut self, errand: &Errand, result: Result<&Found, &LookUpError>, now: Moment) {
        let without = Errand { folder: None, ..errand.clone() };
        match result {
            // A reload has changed the policy meanwhile.
            Ok(_) if errand.policy != self.policy => {}
            Ok(found) => {
                self.folders.extend(errand.folder.clone());
                self.found.insert(without, Kept { found: found.clone(), at: now, asked: false });
            }
            Err(_) => drop(self.found.remove(&without)),
        }
    }

    /// What is to be looked up again by now; what nobody needs any more is forgotten.
    pub fn aged(&mut self, now: Moment) -> Vec<Errand> {
        let aged = |kept: &Kept| !kept.asked && now.since(kept.at) >= FRESH;
        if !self.found.values().any(aged) {
            return Vec::new();
        }
        let needed: BTreeSet<&Errand> = self.needs.values().collect();
        self.found.retain(|errand, _| needed.contains(errand));
        let aged = self.found.iter_mut().filter(|(_, kept)| aged(kept));
        aged.map(|(errand, kept)| {
            kept.asked = true;
            errand.clone()
        })
        .collect()
    }

    /// A run of the instance could not be started as it was resolved: all is looked up again.
    pub fn distrust(&mut self, instance: &InstanceId) {
        self.folders.remove(self.data_folder(instance).as_os_str());
        for ((_, _), errand) in self.needs.iter().filter(|((id, _), _)| id == instance) {
            self.found.remove(errand);
        }
    }

    /// The instance is gone from this host.
    pub fn forget(&mut self, instance: &InstanceId) {
        self.folders.remove(self.data_folder(instance).as_os_str());
        self.needs.retain(|(id, _), _| id != instance);
    }

    /// The whole order for the keeper.
    pub fn spawn(&self, order: Order<'_>, found: Found) -> Result<Spawn, ResolveError> {
        let process = &order.want.process;
        let command = self.command(&order, &process.command, "command", found)?;
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
        let process = &order.want.process;
        let data = self.data_folder(order.instance).to_string_lossy().into_owned();
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

    fn data_folder(&self, instance: &InstanceId) -> PathBuf {
        self.settings.data_dir.join("data").join(instance.to_string())
    }
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
mod tests {
    use super::*;
    use crate::config::{Context, parse};
    use crate::spec::fingerprint::SpecHash;

    const FILE: &str = "[process.zone]\ncommand = [\"zone\"]\nuser = \"games\"\n";

    /// A resolver, and the errand of a run of `zone.0`.
    fn resolver() -> (Resolver, Errand) {
        let context = Context { hostname: "alpha".to_owned(), host_override: None };
        let config = parse(FILE, "test.toml", &context).unwrap();
        let process = config.spec.processes.into_values().next().unwrap();
        let command = process.command.clone();
        let want = Want {
            process,
            hash: SpecHash(0),
            replace: true,
            generation: 1,
            paused: false,
            waits_for: None,
            args: BTreeMap::new(),
            rest: None,
        };
        let (instance, ports) = (zone(), Ports::new());
        let sockets = Path::new("/run/i/zone.0");
        let order = Order {
            instance: &instance,
            run: RunId(1),
            want: &want,
            ports: &ports,
            sockets,
            note: Vec::new(),
        };
        let mut resolver = Resolver::new(config.host);
        let errand = resolver.errand(&order, &command, "command").unwrap();
        assert!(
            errand.folder.as_ref().is_some_and(|folder| Path::new(folder).ends_with("data/zone.0")),
            "{errand:?}"
        );
        resolver.learn(&errand, Ok(&found(60)), at(0));
        let again = resolver.errand(&order, &command, "command").unwrap();
        assert_eq!(again, Errand { folder: None, ..errand }, "the folder is there");
        (resolver, again)
    }

    fn zone() -> InstanceId {
        "zone.0".parse().unwrap()
    }

    fn at(seconds: u64) -> Moment {
        Moment(seconds * 1_000_000_000)
    }

    fn found(gid: u32) -> Found {
        let account = Account { uid: 5, gid, groups: vec![gid] };
        Found { account: Some((account, "/usr/games".to_owned())), program: "/usr/bin/zone".to_owned() }
    }

    #[test]
    fn what_was_found_holds_and_is_asked_again_on_the_side() {
        let (mut resolver, errand) = resolver();
        assert_eq!(resolver.aged(at(29)), []);
        assert_eq!(resolver.found(&errand, at(29)), Some(found(60)));
        assert_eq!(resolver.aged(at(30)), std::slice::from_ref(&errand));
        assert_eq!(resolver.aged(at(31)), [], "somebody is under way");
        assert_eq!(resolver.found(&errand, at(31)), Some(found(60)), "no restart waits for that");
        resolver.learn(&errand, Ok(&found(61)), at(32));
        assert_eq!(resolver.found(&errand, at(33)), Some(found(61)), "another group within a minute");
    }

    #[test]
    fn what_was_found_last_holds_while_nobody_answers_and_no_longer() {
        let (mut resolver, errand) = resolver();
        assert_eq!(resolver.found(&errand, at(60)), None, "nobody asked again: it may be anything by now");
        assert_eq!(resolver.aged(at(60)), std::slice::from_ref(&errand));
        assert_eq!(resolver.found(&errand, at(3600)), Some(found(60)));
        resolver.learn(&errand, Err(&LookUpError::NoUser("games".to_owned())), at(3601));
        assert_eq!(resolver.found(&errand, at(3601)), None);
    }

    #[test]
    fn a_run_that_could_not_be_started_and_a_changed_policy_look_again() {
        let (mut resolver, errand) = resolver();
        resolver.distrust(&zone());
        assert_eq!(resolver.found(&errand, at(1)), None);
        resolver.learn(&errand, Ok(&found(60)), at(2));
        let policy = HostPolicy { users: vec!["games".to_owned()], programs: Vec::new() };
        resolver.set(HostSettings { policy, ..resolver.settings.clone() });
        assert_eq!(resolver.found(&errand, at(2)), None);
        resolver.learn(&errand, Ok(&found(60)), at(3));
        assert_eq!(resolver.found(&errand, at(3)), None, "an answer under the old policy");
    }

    #[test]
    fn what_nobody_needs_any_more_is_not_asked_again() {
        let (mut resolver, errand) = resolver();
        resolver.forget(&zone());
        assert_eq!(resolver.aged(at(30)), []);
        assert_eq!(resolver.found(&errand, at(30)), None);
    }
}
