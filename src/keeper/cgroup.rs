//! Game cgroups: one a instance, below one games cgroup.
//!
//! Owns the games cgroup and the open descriptors of each instance's. Only cgroup v2 is used (from Linux
//! kernel documentation, cgroup-v2.rst): `cgroup.kill` and `cgroup.freeze` to kill, `populated` in
//! `cgroup.events` to know that nothing is left, and the limit files. Never decides what a limit is.
//! Called by the loop, by spawn and by adoption.

use std::cell::OnceCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};

use super::protocol::CgroupSupport;
use crate::spec::InstanceId;

mod root;

pub use root::{find, find_own, hash_of};

/// The prefix of an instance's cgroup: keeps `cpu.max` from being both a file and an instance.
pub const PREFIX: &str = "instance-";
/// The name of an instance's cgroup.
pub fn name_of(instance: &InstanceId) -> String {
    format!("{PREFIX}{instance}")
}

const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
/// Where the limits that an agent sets are written.
const LIMIT_FILES: [&str; 3] = ["memory.max", "cpu.max", "pids.max"];

/// The games cgroup, or that there is none.
#[derive(Debug)]
pub struct Cgroups {
    root: Option<Root>,
    support: CgroupSupport,
}

/// Held open: a way through `/sys` for each file of hundreds of instances costs their start more than the files do.
#[derive(Debug)]
struct Root {
    path: PathBuf,
    folder: OwnedFd,
}

impl Cgroups {
    /// Without cgroups.
    pub fn none() -> Self {
        Cgroups { root: None, support: CgroupSupport::None }
    }

    /// Makes or takes the games cgroup at this path and enables the controllers that there are.
    pub fn at(root: &Path) -> io::Result<Self> {
        match fs::create_dir(root) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        // A folder of another file system has no such file; one that is not ours refuses to be written.
        OpenOptions::new().write(true).open(root.join("cgroup.procs"))?;
        let enabled = enable_controllers(root)?;
        let support = if enabled.is_empty() {
            CgroupSupport::KillOnly
        } else {
            CgroupSupport::Full { controllers: enabled }
        };
        let folder = File::open(root)?.into();
        Ok(Cgroups { root: Some(Root { path: root.to_owned(), folder }), support })
    }

    /// What can be done here.
    pub fn support(&self) -> &CgroupSupport {
        &self.support
    }

    /// The games cgroup.
    pub fn root(&self) -> Option<&Path> {
        self.root.as_ref().map(|root| root.path.as_path())
    }

    /// Makes or takes the cgroup of an instance; `None` without cgroups.
    pub fn open(&self, instance: &InstanceId) -> io::Result<Option<Cgroup>> {
        let Some(root) = &self.root else { return Ok(None) };
        let name = name_of(instance);
        let opened = match root.open(&root.folder, &name) {
            // Somebody has removed the games cgroup, and it is there again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                enable_controllers(&root.path)?;
                root.open(&File::open(&root.path)?.into(), &name)
            }
            opened => opened,
        };
        opened.map(Some)
    }

    /// A cgroup to try things in; `None` without cgroups.
    pub fn open_probe(&self) -> io::Result<Option<Cgroup>> {
        let Some(root) = &self.root else { return Ok(None) };
        // One that is there already was left by a keeper that was killed as it tried.
        let mut probe = root.open(&root.folder, "probe")?;
        probe.renew()?;
        Ok(Some(probe))
    }

    /// Every instance that has a cgroup here.
    pub fn instances(&self) -> io::Result<Vec<InstanceId>> {
        let Some(root) = self.root() else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for entry in fs::read_dir(root)? {
            let name = entry?.file_name();
            let instance = name.to_str().and_then(|n| n.strip_prefix(PREFIX)).and_then(|n| n.parse().ok());
            found.extend(instance);
        }
        found.sort();
        Ok(found)
    }
}

/// Enables those that there are for the cgroups below, as far as that is possible.
fn enable_controllers(root: &Path) -> io::Result<Vec<String>> {
    let available = fs::read_to_string(root.join("cgroup.controllers"))?;
    let there = CONTROLLERS.iter().filter(|c| available.split_whitespace().any(|a| a == **c));
    let enable = |c: &&&str| fs::write(root.join("cgroup.subtree_control"), format!("+{c}")).is_ok();
    Ok(there.filter(enable).map(|c| (*c).to_owned()).collect())
}

impl Root {
    /// Makes or takes a cgroup in the folder, which is this one's.
    fn open(&self, folder: &OwnedFd, name: &str) -> io::Result<Cgroup> {
        let made = mkdirat(folder, name, Mode::S_IRWXU | Mode::S_IRWXG | Mode::S_IRWXO);
        if let Err(errno) = made
            && errno != Errno::EEXIST
        {
            return Err(errno.into());
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let opened = openat(folder, name, flags, Mode::empty())?;
        let mut cgroup = Cgroup::in_folder(self.path.join(name), opened.into());
        match made {
            Ok(()) => cgroup.limits = Some(Vec::new()),
            Err(_) => cgroup.spent = true,
        }
        Ok(cgroup)
    }
}

/// The cgroup of an instance.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    folder: File,
    /// cgroup.events, from when it is needed: a start of hundreds has no use for it.
    events: OnceCell<File>,
    /// The limits in force, as last written; `None`: as a keeper before this one has left them.
    limits: Option<Vec<(String, String)>>,
    /// It was killed as a whole, or nobody knows. Some kernels (6.18 is one) count such kills and take a child
    /// that clone3 places in the cgroup for one that slipped past the last of them: they kill every new run.
    spent: bool,
}

impl Cgroup {
    fn at(path: PathBuf) -> io::Result<Self> {
        let folder = File::open(&path)?;
        Ok(Cgroup::in_folder(path, folder))
    }

    fn in_folder(path: PathBuf, folder: File) -> Self {
        Cgroup { path, folder, events: OnceCell::new(), limits: None, spent: false }
    }

    /// Makes it fit for a new run: one that is spent is replaced by a fresh one of the same name. It must be
    /// empty.
    pub fn renew(&mut self) -> io::Result<()> {
        if self.spent {
            self.remove()?;
            fs::create_dir(&self.path)?;
            *self = Cgroup::at(self.path.clone())?;
            self.limits = Some(Vec::new());
        }
        Ok(())
    }

    /// It is not to be used for another run as it is.
    pub fn spend(&mut self) {
        self.spent = true;
    }

    /// It must be made anew, and may hold something.
    pub fn is_spent(&self) -> bool {
        self.spent
    }

    /// For CLONE_INTO_CGROUP.
    pub fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Readable with EPOLLPRI when `populated` changes; ask [`Cgroup::populated`] after each watch begun.
    pub fn events(&self) -> io::Result<&File> {
        if let Some(events) = self.events.get() {
            return Ok(events);
        }
        let events = file_in(&self.folder, "cgroup.events", OFlag::O_RDONLY)?;
        Ok(self.events.get_or_init(|| events))
    }

    /// For a child that has to move itself.
    pub fn procs(&self) -> io::Result<File> {
        file_in(&self.folder, "cgroup.procs", OFlag::O_WRONLY)
    }

    /// Some process (not counting zombies) is in it or below.
    pub fn populated(&self) -> io::Result<bool> {
        let mut text = [0_u8; 128];
        match self.events().and_then(|events| events.read_at(&mut text, 0)) {
            Ok(len) => Ok(!text[..len].split(|b| *b == b'\n').any(|line| line == b"populated 0")),
            // Removed behind our back: only an empty one can be.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The process is in it or below.
    pub fn holds(&self, pid: i32) -> bool {
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return false };
        let Some(own) = text.lines().find_map(|l| l.strip_prefix("0::")) else { return false };
        let Some(name) = self.path.file_name().and_then(|n| n.to_str()) else { return false };
        // A path component: names hold no slash, and the games cgroup is the only place with this prefix.
        own.split('/').any(|part| part == name) && self.pids().contains(&pid)
    }

    /// Every process in it and below.
    pub fn pids(&self) -> Vec<i32> {
        let mut found = Vec::new();
        for folder in folders(&self.path) {
            let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|pid| *pid > 0));
        }
        found
    }

    /// Sends SIGKILL to everything in it. True when the kernel did it in one step, so that nothing can have
    /// been forked past it; false when it has to be repeated until `populated` says 0.
    pub fn kill(&mut self) -> io::Result<bool> {
        self.spent = true;
        match self.write("cgroup.kill", "1") {
            Ok(()) => Ok(true),
            // Before Linux 5.14: nobody forks while frozen, and the frozen die of SIGKILL.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let _ = self.write("cgroup.freeze", "1");
                for pid in self.pids() {
                    // SAFETY: kill touches no memory.
                    unsafe { libc::kill(pid, libc::SIGKILL) };
                }
                self.write("cgroup.freeze", "0")?;
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Makes these the limits in force: writes what changed, takes back what is no longer listed. Gives the
    /// files that could not be written, with errno.
    pub fn limit(&mut self, limits: &[(String, String)]) -> Vec<(String, i32)> {
        if self.limits.as_deref() == Some(limits) {
            return Vec::new();
        }
        let mut failed = Vec::new();
        let known = self.limits.take();
        let before: Vec<&str> = match &known {
            Some(known) => known.iter().map(|(file, _)| file.as_str()).collect(),
            None => LIMIT_FILES.to_vec(),
        };
        for file in before {
            let kept = limits.iter().any(|(f, _)| f == file);
            // The default of `.max` and `.high` files.
            if !kept && (file.ends_with(".max") || file.ends_with(".high")) {
                let _ = self.write(file, "max");
            }
        }
        let known = known.unwrap_or_default();
        for limit in limits.iter().filter(|l| !known.contains(l)) {
            let (file, value) = limit;
            // The name comes from the agent: it must stay a file of this folder.
            let written = if file.contains('/') || file.starts_with('.') {
                Err(io::Error::from_raw_os_error(libc::EINVAL))
            } else {
                self.write(file, value)
            };
            if let Err(e) = written {
                failed.push((file.clone(), e.raw_os_error().unwrap_or(libc::EIO)));
            }
        }
        let written = limits.iter().filter(|(f, _)| !failed.iter().any(|(g, _)| f == g));
        self.limits = Some(written.cloned().collect());
        failed
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        file_in(&self.folder, file, OFlag::O_WRONLY)?.write_all(text.as_bytes())
    }

    /// Removes it and what processes made below it. Fails while something lives there.
    pub fn remove(&self) -> io::Result<()> {
        // Deepest first.
        for folder in folders(&self.path).iter().rev() {
            match fs::remove_dir(folder) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The folder and all below it, each after its parent.
fn folders(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    let mut at = 0;
    while let Some(folder) = found.get(at).cloned() {
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        found.extend(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        at += 1;
    }
    found
}

/// A file of a cgroup, which must exist: elsewhere than on a cgroup file system nothing is made.
fn file_in(folder: &File, name: &str, flags: OFlag) -> io::Result<File> {
    Ok(openat(folder, name, flags | OFlag::O_CLOEXEC, Mode::empty())?.into())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn without_cgroup_kill_it_is_frozen_while_its_processes_are_killed_and_that_is_to_be_repeated() {
        // What a kernel before Linux 5.14 has of a cgroup, as far as it matters.
        let dir = tempfile::tempdir().unwrap();
        let path = |name| dir.path().join(name);
        let mut victim = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        fs::write(path("cgroup.procs"), format!("{}\n", victim.id())).unwrap();
        nix::unistd::mkfifo(&path("cgroup.freeze"), Mode::S_IRWXU).unwrap();
        let mut open = fs::OpenOptions::new();
        let open = open.read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits());
        let mut freezer = open.open(path("cgroup.freeze")).unwrap();

        let mut cgroup = Cgroup::at(dir.path().to_owned()).unwrap();
        let at_once = cgroup.kill();
        if at_once.is_err() {
            victim.kill().unwrap();
        }
        assert!(!at_once.unwrap(), "somebody may have been forked past it");
        assert_eq!(victim.wait().unwrap().signal(), Some(libc::SIGKILL));
        let mut told = [0; 8];
        let length = freezer.read(&mut told).unwrap();
        assert_eq!(&told[..length], b"10");
        assert!(cgroup.is_spent());
    }
}
