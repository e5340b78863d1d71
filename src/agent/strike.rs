//! Blows that `kill-test` asks an agent for, because it is on another machine: a signal to one run, or the end of this
//! whole host at once, as a power cut would bring it; and the end of a run for a keeper that stands still.
//!
//! Owns nothing and waits for nothing. Called by `http` and by the fence, off their threads.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgid};

use crate::keeper::cgroup::{find_own, name_of};
use crate::keeper::process;
use crate::spec::InstanceId;

/// A process that is held: it is struck, or nobody.
pub struct Held(OwnedFd);

impl Held {
    /// Takes hold of the process that has this pid now; `None`: nobody has.
    pub fn take(pid: i32) -> io::Result<Option<Held>> {
        match process::open(pid) {
            Ok(process) => Ok(Some(Held(process))),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a signal; false: it is gone.
    pub fn strike(&self, signal: Signal) -> io::Result<bool> {
        match process::signal(self.0.as_fd(), signal as i32) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Kills the keeper, all of these runs and this agent. The keeper comes first: it starts nothing any more.
pub fn everything(runs: &[(InstanceId, i32)], keeper: Option<i32>) {
    let cgroups: Vec<PathBuf> = runs.iter().filter_map(|(id, pid)| cgroup_of(id, *pid)).collect();
    if let Some(keeper) = keeper {
        send(keeper);
    }
    for folder in &cgroups {
        kill_cgroup(folder);
    }
    for (_, pid) in runs {
        // Each run leads a session and a group of its own.
        if getpgid(Some(Pid::from_raw(*pid))) == Ok(Pid::from_raw(*pid)) {
            send(-*pid);
        }
        send(*pid);
    }
    send(std::process::id() as i32);
}

/// Kills all that is left of a run. Its process is held against the instance: the number may be another's by now.
pub fn run(instance: &InstanceId, pid: i32) {
    let cgroup = cgroup_of(instance, pid);
    if cgroup.is_none() && !is_marked(instance, pid) {
        return;
    }
    cgroup.iter().for_each(|folder| kill_cgroup(folder));
    if getpgid(Some(Pid::from_raw(pid))) == Ok(Pid::from_raw(pid)) {
        send(-pid);
    }
    send(pid);
}

/// True for a process that was started as a run of the instance.
fn is_marked(instance: &InstanceId, pid: i32) -> bool {
    let mark = format!("BIGBROTHER_INSTANCE={instance}");
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environ.split(|byte| *byte == 0).any(|word| word == mark.as_bytes())
}

fn send(pid: i32) {
    if pid.unsigned_abs() <= 1 {
        return;
    }
    match kill(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => tracing::warn!(pid, %error, "cannot be killed"),
    }
}

/// The cgroup of an instance: the folder of its main process, if it is that of this instance and nobody else's.
fn cgroup_of(instance: &InstanceId, pid: i32) -> Option<PathBuf> {
    let read = |path: String| fs::read_to_string(path).ok();
    let folder = find_own(&read("/proc/self/mountinfo".to_owned())?, &read(format!("/proc/{pid}/cgroup"))?)?;
    let own = name_of(instance);
    folder
        .ancestors()
        .find(|folder| folder.file_name().is_some_and(|name| name == own.as_str()))
        .map(Path::to_owned)
}

/// With cgroup.kill; where an agent may not write (its unit is strict), one by one.
fn kill_cgroup(folder: &Path) {
    if fs::write(folder.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).for_each(send);
    let below = fs::read_dir(folder).into_iter().flatten().flatten();
    below.filter(|entry| entry.path().is_dir()).for_each(|entry| kill_cgroup(&entry.path()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::Command;

    #[test]
    fn a_held_process_is_struck_once_and_nobody_after_it() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let held = Held::take(child.id() as i32).unwrap().unwrap();
        assert!(held.strike(Signal::SIGKILL).unwrap());
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert!(!held.strike(Signal::SIGKILL).unwrap());
        assert!(Held::take(child.id() as i32).unwrap().is_none());
    }

    #[test]
    fn a_run_is_killed_with_its_group_and_a_stranger_with_its_number_is_not() {
        let id: InstanceId = "zone.0".parse().unwrap();
        let mut stranger = Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
        run(&id, stranger.id() as i32);
        assert!(stranger.try_wait().unwrap().is_none(), "it is nobody's run");
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        let mut own = Command::new("sh");
        own.args(["-c", "sleep 60 & wait"]).env("BIGBROTHER_INSTANCE", "zone.0").process_group(0);
        let mut own = own.spawn().unwrap();
        let group = Pid::from_raw(-(own.id() as i32));
        // Until it has executed its program it is marked as this test is.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !is_marked(&id, own.id() as i32) {
            assert!(std::time::Instant::now() < deadline, "it never had its mark");
        }
        run(&id, own.id() as i32);
        assert_eq!(own.wait().unwrap().signal(), Some(libc::SIGKILL));
        while kill(group, None) != Err(Errno::ESRCH) {
            assert!(std::time::Instant::now() < deadline, "its child is left");
        }
    }

    #[test]
    fn a_cgroup_that_is_not_the_instances_own_is_left_alone() {
        let mut child = Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
        // It lies in that of this test.
        assert_eq!(cgroup_of(&"zone.0".parse().unwrap(), child.id() as i32), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
