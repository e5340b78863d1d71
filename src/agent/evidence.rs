//! Hang reports: what a silent run was doing right before it is killed.
//!
//! Owns the newest report of each instance. Reading /proc is bounded in threads and bytes, so that it
//! costs the other instances nothing. Called by the supervision loop, before the kill.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::spec::InstanceId;

/// Threads that are looked at.
const MOST_THREADS: usize = 64;
/// Bytes of the end of each log.
const LOG_TAIL: u64 = 2_048;

/// The newest hang report of each instance.
#[derive(Default)]
pub struct Evidence {
    reports: BTreeMap<InstanceId, String>,
}

impl Evidence {
    /// Looks at the process and its logs.
    pub fn collect(&mut self, instance: &InstanceId, title: &str, pid: Option<i32>, logs: &Path) {
        let mut report = format!("{title}\n");
        if let Some(pid) = pid {
            threads(&mut report, pid);
        }
        for name in ["stdout.log", "stderr.log"] {
            if let Some(tail) = tail(&logs.join(instance.to_string()).join(name)) {
                let _ = writeln!(report, "\n--- the end of {name}\n{}", tail.trim_end());
            }
        }
        self.reports.insert(instance.clone(), report);
    }

    /// The newest report.
    pub fn report(&self, instance: &InstanceId) -> Option<String> {
        self.reports.get(instance).cloned()
    }

    /// Forgets an instance that is gone.
    pub fn forget(&mut self, instance: &InstanceId) {
        self.reports.remove(instance);
    }
}

fn threads(report: &mut String, pid: i32) {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        let _ = writeln!(report, "pid {pid} is gone");
        return;
    };
    for task in tasks.flatten().take(MOST_THREADS) {
        let folder = task.path();
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        let status = read("status");
        let field = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or("?").trim().to_owned()
        };
        let id = task.file_name();
        let _ = writeln!(
            report,
            "thread {} {:?} state {} wchan {}",
            id.to_string_lossy(),
            field("Name:"),
            field("State:"),
            read("wchan")
        );
        for line in read("stack").lines() {
            let _ = writeln!(report, "    {line}");
        }
    }
}

fn tail(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes).ok()?;
    if bytes.is_empty() { None } else { Some(String::from_utf8_lossy(&bytes).into_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_threads_and_the_end_of_the_logs() {
        let dir = tempfile::tempdir().unwrap();
        let id: InstanceId = "zone.0".parse().unwrap();
        std::fs::create_dir(dir.path().join("zone.0")).unwrap();
        std::fs::write(dir.path().join("zone.0/stderr.log"), "x".repeat(5000) + "\nlast words\n").unwrap();
        let mut evidence = Evidence::default();
        let pid = i32::try_from(std::process::id()).unwrap();
        evidence.collect(&id, "no heartbeat for 5s", Some(pid), dir.path());
        let report = evidence.report(&id).unwrap();
        assert!(report.contains("no heartbeat for 5s") && report.contains("last words"), "{report}");
        assert!(report.contains(&format!("thread {pid}")), "{report}");
        assert!(report.len() < 100_000);
    }
}
