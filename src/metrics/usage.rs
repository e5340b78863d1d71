//! CPU and memory of the host, its instances, the agent and the keeper, read when somebody scrapes.
//!
//! Owns the last readings; reads at most once a second, and only the processes it is given, so a scrape
//! of 300 instances costs some milliseconds and no scrape costs nothing. Called by [`super::Metrics`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sysinfo::{CpuRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System};

use crate::agent::handle::HostSnapshot;
use crate::http::view::InstanceView;
use crate::keeper::cgroup;

/// Scrapes closer together than this share one reading.
const SHORTEST: Duration = Duration::from_secs(1);

/// Where cgroup version 2 is mounted: alone, or beside version 1.
const CGROUP2: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// What a process (or a cgroup) has used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Reading {
    /// CPU time since its start.
    pub cpu_seconds: f64,
    /// Memory now.
    pub memory_bytes: f64,
}

/// What the host has and uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct HostReading {
    /// Cores.
    pub cpus: i64,
    /// Busy part of them since the reading before.
    pub busy_ratio: f64,
    /// Load average over one minute.
    pub load1: f64,
    /// Memory.
    pub memory_bytes: f64,
    /// Memory that new processes could have.
    pub available_bytes: f64,
}

/// The last readings; see the module.
pub(super) struct Usage {
    // None where sysinfo does not know the system; there are no figures then.
    host: Option<System>,
    read_at: Option<Instant>,
    by_pid: BTreeMap<i32, Reading>,
    keeper_pid: Option<i32>,
    host_reading: HostReading,
}

impl Usage {
    pub(super) fn new() -> Self {
        Usage {
            host: System::new().ok(),
            read_at: None,
            by_pid: BTreeMap::new(),
            keeper_pid: None,
            host_reading: HostReading::default(),
        }
    }

    /// Reads anew, unless the last reading is younger than a second.
    pub(super) fn read(&mut self, snapshot: Option<&HostSnapshot>) {
        if self.read_at.is_some_and(|at| at.elapsed() < SHORTEST) {
            return;
        }
        self.read_at = Some(Instant::now());
        self.host_reading = self.host.as_mut().map(read_host).unwrap_or_default();
        self.keeper_pid = snapshot.and_then(|s| s.keeper.as_ref()).map(|k| k.pid);

        let instances = snapshot.map(|s| s.instances.as_slice()).unwrap_or_default();
        let pids: BTreeSet<i32> =
            instances.iter().filter_map(|i| i.pid).chain(self.keeper_pid).chain([own_pid()]).collect();
        self.by_pid = read_processes(&pids);

        let has_cgroups = snapshot.and_then(|s| s.keeper.as_ref()).is_some_and(|k| k.cgroups != "none");
        if has_cgroups {
            for view in instances {
                let Some(reading) = view.pid.and_then(|pid| self.by_pid.get_mut(&pid)) else { continue };
                read_cgroup(view, reading);
            }
        }
    }

    /// Of an instance; `None` without a process, or when it is younger than the last reading.
    pub(super) fn instance(&self, view: &InstanceView) -> Option<Reading> {
        self.by_pid.get(&view.pid?).copied()
    }

    pub(super) fn agent(&self) -> Option<Reading> {
        self.by_pid.get(&own_pid()).copied()
    }

    pub(super) fn keeper(&self) -> Option<Reading> {
        self.by_pid.get(&self.keeper_pid?).copied()
    }

    pub(super) fn host(&self) -> HostReading {
        self.host_reading
    }
}

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

fn read_host(system: &mut System) -> HostReading {
    system.refresh_specifics(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing().with_usage()));
    system.refresh_memory();
    HostReading {
        cpus: i64::try_from(system.cpus().len()).unwrap_or(i64::MAX),
        busy_ratio: f64::from(system.global_cpu_usage()) / 100.0,
        load1: System::load_average().map(|load| load.one).unwrap_or_default(),
        memory_bytes: system.total_memory() as f64,
        available_bytes: system.available_memory() as f64,
    }
}

fn read_processes(pids: &BTreeSet<i32>) -> BTreeMap<i32, Reading> {
    // A table of its own each time: sysinfo keeps whom it was once asked about.
    let Ok(mut system) = System::new() else { return BTreeMap::new() };
    let wanted: Vec<Pid> =
        pids.iter().filter_map(|pid| u32::try_from(*pid).ok()).map(Pid::from_u32).collect();
    system.refresh_processes_specifics(
        ProcessesToUpdate::Some(&wanted),
        true,
        ProcessRefreshKind::nothing().with_cpu().with_memory().without_tasks(),
    );
    let readings = system.processes().iter().map(|(pid, process)| {
        let reading = Reading {
            cpu_seconds: process.accumulated_cpu_time() as f64 / 1000.0,
            memory_bytes: process.memory() as f64,
        };
        (pid.as_u32().cast_signed(), reading)
    });
    readings.collect()
}

/// Puts the figures of the instance's cgroup in place of those of its main process, where it has them.
fn read_cgroup(view: &InstanceView, reading: &mut Reading) {
    let Some(pid) = view.pid else { return };
    let Ok(membership) = std::fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return };
    let Some(path) = own_cgroup(&membership, &view.instance.to_string()) else { return };
    for folder in CGROUP2.map(|mount| Path::new(mount).join(&path)) {
        let used = std::fs::read_to_string(folder.join("cpu.stat")).ok();
        if let Some(seconds) = used.as_deref().and_then(cpu_seconds) {
            reading.cpu_seconds = seconds;
        }
        let held = std::fs::read_to_string(folder.join("memory.current")).ok();
        if let Some(bytes) = held.and_then(|text| text.trim().parse().ok()) {
            reading.memory_bytes = bytes;
        }
    }
}

/// The version 2 cgroup that is this instance's own: named like it, and not one that it shares with
/// others. `membership` is the text of /proc/PID/cgroup; the path is below the mount.
fn own_cgroup(membership: &str, instance: &str) -> Option<PathBuf> {
    let path = membership.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let depth = path.split('/').position(|part| part.strip_prefix(cgroup::PREFIX) == Some(instance))?;
    Some(path.split('/').take(depth + 1).collect())
}

/// `usage_usec` of a cpu.stat, in seconds.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let micros: u64 = stat.lines().find_map(|line| line.strip_prefix("usage_usec "))?.trim().parse().ok()?;
    Some(micros as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cgroup_named_like_the_instance_is_its_own() {
        let hybrid = "4:memory:/\n1:cpu:/\n0::/bigbrother/games/instance-zone.3/inner\n";
        assert_eq!(own_cgroup(hybrid, "zone.3"), Some(PathBuf::from("bigbrother/games/instance-zone.3")));
        assert_eq!(own_cgroup(hybrid, "zone.30"), None);
        assert_eq!(own_cgroup("1:cpu:/instance-zone.3\n", "zone.3"), None);
        assert_eq!(own_cgroup("0::/\n", "zone.3"), None);
    }

    #[test]
    fn cpu_time_is_read_from_cpu_stat() {
        assert_eq!(cpu_seconds("usage_usec 2500000\nuser_usec 1\n"), Some(2.5));
        assert_eq!(cpu_seconds("user_usec 1\n"), None);
    }

    #[test]
    fn only_the_processes_asked_for_are_read() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        let readings = read_processes(&BTreeSet::from([own_pid(), pid, i32::MAX]));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(readings.keys().copied().collect::<BTreeSet<_>>(), BTreeSet::from([own_pid(), pid]));
        assert!(readings[&own_pid()].memory_bytes > 0.0);
    }

    #[test]
    fn a_reading_is_kept_for_a_second() {
        let mut usage = Usage::new();
        usage.read(None);
        let first = usage.read_at;
        usage.read(None);
        assert_eq!(usage.read_at, first);
    }
}
