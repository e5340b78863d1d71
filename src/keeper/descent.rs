//! Which processes belong to a run on a host without cgroups.
//!
//! Owns nothing. Three marks together: the run's session or process group, descent from a process that
//! belongs, and the variable [`COOKIE`] that every process of a run inherits in its environment. A process
//! that has left the session, whose parent is dead, and that has overwritten its environment is not found;
//! docs/architecture.md says so. Called by the loop when it kills, and by adoption.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::process::{self, Stat};
use super::protocol::RunId;
use crate::spec::InstanceId;

/// The variable: `BIGBROTHER_MARK=<hash of the runtime folder>:<run>:<instance>`.
pub const COOKIE: &str = "BIGBROTHER_MARK";

/// The variable of a run, as an environment entry.
pub fn cookie(host: &str, run: RunId, instance: &InstanceId) -> String {
    format!("{COOKIE}={host}:{run}:{instance}")
}

/// What marks the processes of a run.
pub struct Marks<'a> {
    /// The main process while it lives; 0: it has ended.
    pub main: i32,
    /// The session and group that it led.
    pub group: i32,
    /// See [`cookie`].
    pub cookie: &'a str,
}

/// Every live process of a run.
pub fn members(marks: &Marks<'_>) -> Vec<i32> {
    select(marks, &processes(), |pid| has_cookie(pid, marks.cookie))
}

/// All processes of the host.
fn processes() -> BTreeMap<i32, Stat> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, process::stat(pid)?)))
        .collect()
}

fn has_cookie(pid: i32, cookie: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environ| environ.split(|b| *b == 0).any(|entry| entry == cookie.as_bytes()))
}

/// The rule of [`members`] on given processes. Pure.
fn select(marks: &Marks<'_>, all: &BTreeMap<i32, Stat>, has_cookie: impl Fn(i32) -> bool) -> Vec<i32> {
    // A number is not used for a new process while a session or group has it. So if a process has the
    // number of the group although the main process has ended, the group is no longer ours.
    let group_is_ours = marks.group != 0 && (marks.main == marks.group || !all.contains_key(&marks.group));
    let mut found: BTreeSet<i32> = all
        .values()
        .filter(|p| {
            p.pid == marks.main
                || (group_is_ours && (p.session == marks.group || p.group == marks.group))
                || has_cookie(p.pid)
        })
        .map(|p| p.pid)
        .collect();
    loop {
        let before = found.len();
        found.extend(all.values().filter(|p| found.contains(&p.parent)).map(|p| p.pid).collect::<Vec<_>>());
        if found.len() == before {
            break;
        }
    }
    found.into_iter().filter(|pid| all.get(pid).is_some_and(Stat::alive)).collect()
}

/// Processes that carry the cookie of any run of this keeper's runtime folder, with run and instance.
pub fn marked(host: &str) -> Vec<(i32, RunId, InstanceId)> {
    let prefix = format!("{COOKIE}={host}:");
    let mut found = Vec::new();
    for stat in processes().values().filter(|s| s.alive()) {
        let environ = fs::read(format!("/proc/{}/environ", stat.pid)).unwrap_or_default();
        let mark = environ.split(|b| *b == 0).find_map(|entry| {
            let (run, instance) = std::str::from_utf8(entry).ok()?.strip_prefix(&prefix)?.split_once(':')?;
            Some((RunId(run.parse().ok()?), instance.parse().ok()?))
        });
        found.extend(mark.map(|(run, instance)| (stat.pid, run, instance)));
    }
    found
}

/// Some child of ours is not in the table: an orphan of some run, reparented to us. `known` tells the main
/// processes. Without the kernel's list of children the answer is yes, and the walk decides.
pub fn has_orphans(known: impl Fn(i32) -> bool) -> bool {
    let me = std::process::id();
    match fs::read_to_string(format!("/proc/{me}/task/{me}/children")) {
        Ok(text) => text.split_whitespace().filter_map(|t| t.parse().ok()).any(|pid| !known(pid)),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(list: &[(i32, i32, i32, i32)]) -> BTreeMap<i32, Stat> {
        list.iter()
            .map(|&(pid, parent, group, session)| {
                let (executed, start_ticks, exit_status) = (true, 1, 0);
                let stat =
                    Stat { pid, state: b'S', parent, group, session, executed, start_ticks, exit_status };
                (pid, stat)
            })
            .collect()
    }

    const KEEPER: i32 = 2;

    #[test]
    fn group_session_descent_and_cookie_each_find_a_member() {
        let all = host(&[
            (KEEPER, 1, KEEPER, KEEPER),
            (10, KEEPER, 10, 10),
            (11, 10, 10, 10),
            (12, 10, 12, 12),
            (13, 12, 13, 13),
            (20, KEEPER, 20, 20),
            (30, KEEPER, 30, 30),
        ]);
        let marks = Marks { main: 10, group: 10, cookie: "" };
        assert_eq!(select(&marks, &all, |pid| pid == 20), [10, 11, 12, 13, 20]);
    }

    #[test]
    fn a_group_whose_number_has_another_owner_is_not_ours() {
        let all = host(&[(KEEPER, 1, KEEPER, KEEPER), (10, 1, 10, 10), (11, 10, 10, 10)]);
        let marks = Marks { main: 0, group: 10, cookie: "" };
        assert_eq!(select(&marks, &all, |_| false), [] as [i32; 0]);
        // The leader is gone and the number is free: what is left in the session is ours.
        let all = host(&[(KEEPER, 1, KEEPER, KEEPER), (11, KEEPER, 10, 10)]);
        assert_eq!(select(&marks, &all, |_| false), [11]);
    }
}
