//! Spawning: from a request to a child.
//!
//! Owns the preparation: every string and array is made before the child is, and stays until the child has
//! executed its program. The child shares the keeper's memory ([`clone`]) and, until its first step, which
//! keeps only the low ones, the keeper's table of descriptors: copying page tables and the thousands of
//! descriptors of a full host took longer than all the rest. No pidfd is asked for: the keeper alone reaps its
//! children, so a pid that it has not reaped cannot be another process. Called by the loop.

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::AtomicU64;

use nix::fcntl::OFlag;

use self::stack::Stacks;
use super::cgroup::Cgroup;
use super::child::{self, Output, Plan};
use super::protocol::{Spawn, SpawnStep};
use crate::descriptors;

pub mod clone;
pub mod stack;

pub use clone::Birth;

/// Children that may share our table of descriptors at a time; further ones copy it. With the keeper's first
/// few descriptors they stay below 64: a table as small as that lies within the kernel's own structure.
const LOW: usize = 40;

/// Where the outputs of a spawn go, resolved.
pub enum Outputs {
    /// Two FIFOs.
    Fifos(CString, CString),
    /// One stream for both.
    Stream(OwnedFd),
    /// /dev/null.
    Null,
}

/// What every spawn of this keeper shares.
pub struct Surroundings {
    /// /dev/null, open for reading and writing.
    pub null: OwnedFd,
    /// The keeper.
    pub keeper_pid: i32,
    /// The keeper's priority.
    pub nice: i32,
    /// The soft and hard limit of open files that the keeper was started with; it raised its own.
    pub files: (u64, u64),
    /// The kernel can place a child in a cgroup.
    pub into_cgroup: bool,
    /// Low descriptors, each for the writing end of a report: a child that shares our table keeps these.
    low: Vec<OwnedFd>,
    /// One more than the highest of them.
    low_end: RawFd,
    stacks: Stacks,
    /// Made when there was time, for the next child.
    spare: Option<Report>,
}

/// The pipe on which a child reports.
struct Report {
    reading: OwnedFd,
    writing: Writing,
}

/// Our copy of the writing end.
enum Writing {
    /// At a low number: the child may share our table of descriptors.
    Low(OwnedFd),
    /// Anywhere: it may not.
    High(OwnedFd),
}

/// A spawn with everything resolved.
pub struct Prepared {
    program: CString,
    folder: CString,
    args: Strings,
    env: Strings,
    rlimits: Vec<(u32, libc::rlimit64)>,
    groups: Vec<u32>,
    outputs: Outputs,
}

/// Strings and the null-terminated array of pointers to them.
struct Strings {
    _strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl Strings {
    fn new<'a>(texts: impl Iterator<Item = &'a str>) -> Option<Self> {
        let strings = texts.map(|t| CString::new(t).ok()).collect::<Option<Vec<_>>>()?;
        let pointers = strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect();
        Some(Strings { _strings: strings, pointers })
    }
}

/// A child that was made.
pub struct Forked {
    /// Its number.
    pub pid: i32,
    /// See [`read_report`].
    pub report: OwnedFd,
    /// Our copy of the writing end, to be given back once the child has a table of its own.
    pub shared: Option<OwnedFd>,
    /// To be given back once the child has a memory of its own.
    pub birth: Birth,
}

/// What a child says.
pub enum Reported {
    /// Nothing yet.
    Nothing,
    /// It has a table of descriptors of its own.
    Apart,
    /// It executes its program.
    Executes,
    /// It could not.
    Failed(SpawnStep, i32),
}

/// Resolves a request. `cookie` is one more environment entry. A NUL byte in a string is EINVAL.
pub fn prepare(
    spawn: &Spawn,
    outputs: Outputs,
    cookie: Option<&str>,
    around: &Surroundings,
) -> Result<Prepared, (SpawnStep, i32)> {
    let invalid = |step| (step, libc::EINVAL);
    let env = spawn.env.iter().map(String::as_str).chain(cookie);
    let mut rlimits: Vec<_> = spawn
        .rlimits
        .iter()
        .map(|(resource, value)| (*resource, libc::rlimit64 { rlim_cur: *value, rlim_max: *value }))
        .collect();
    if !rlimits.iter().any(|(resource, _)| *resource == libc::RLIMIT_NOFILE) {
        let (soft, hard) = around.files;
        rlimits.push((libc::RLIMIT_NOFILE, libc::rlimit64 { rlim_cur: soft, rlim_max: hard }));
    }
    Ok(Prepared {
        program: CString::new(spawn.program.as_str()).map_err(|_| invalid(SpawnStep::Exec))?,
        folder: CString::new(spawn.working_dir.as_str()).map_err(|_| invalid(SpawnStep::WorkingDir))?,
        args: Strings::new(spawn.args.iter().map(String::as_str)).ok_or(invalid(SpawnStep::Exec))?,
        env: Strings::new(env).ok_or(invalid(SpawnStep::Exec))?,
        rlimits,
        groups: spawn.account.as_ref().map(|account| account.groups.clone()).unwrap_or_default(),
        outputs,
    })
}

/// Makes a child, which becomes the program.
pub fn fork(
    spawn: &Spawn,
    prepared: Prepared,
    ledger: (&AtomicU64, &AtomicU64),
    cgroup: Option<&Cgroup>,
    around: &mut Surroundings,
) -> Result<Forked, (SpawnStep, i32)> {
    let report = around.report().map_err(|errno| (SpawnStep::Fork, errno as i32))?;
    let mut plan = plan(spawn, &prepared, ledger, around);
    (plan.apart_from, plan.report) = match (&report.writing, &prepared.outputs) {
        // The stream's number may be any, so the whole table is copied.
        (Writing::High(fd), _) | (Writing::Low(fd), Outputs::Stream(_)) => (None, fd.as_raw_fd()),
        (Writing::Low(fd), _) => (Some(around.low_end), fd.as_raw_fd()),
    };
    let mut birth = Birth::new(prepared, plan, around.stacks.lend());
    let made = clone::make_child(&mut birth, cgroup, around);
    let shared = match report.writing {
        Writing::Low(low) if made.is_ok() && birth.shares_descriptors() => Some(low),
        // No child shares it: the end of file must not wait for us.
        Writing::Low(low) => {
            around.give_back(Some(low));
            None
        }
        Writing::High(_) => None,
    };
    match made {
        Ok(pid) => Ok(Forked { pid, report: report.reading, shared, birth }),
        Err(failure) => {
            around.born(birth);
            Err(failure)
        }
    }
}

fn plan(
    spawn: &Spawn,
    prepared: &Prepared,
    (time, pid): (&AtomicU64, &AtomicU64),
    around: &Surroundings,
) -> Plan {
    let outputs = match &prepared.outputs {
        Outputs::Fifos(out, err) => [Output::Fifo(out.as_ptr()), Output::Fifo(err.as_ptr())],
        Outputs::Stream(fd) => [Output::Descriptor(fd.as_raw_fd()); 2],
        Outputs::Null => [Output::Descriptor(around.null.as_raw_fd()); 2],
    };
    Plan {
        apart_from: None,
        keeper_pid: around.keeper_pid,
        ledger: [ptr::from_ref(time), ptr::from_ref(pid)],
        cgroup_procs: None,
        rlimits: ptr::from_ref(prepared.rlimits.as_slice()),
        nice: (spawn.nice != around.nice).then_some(spawn.nice),
        stdin: around.null.as_raw_fd(),
        outputs,
        folder: prepared.folder.as_ptr(),
        umask: spawn.umask,
        account: spawn.account.as_ref().map(|a| (a.uid, a.gid, ptr::from_ref(prepared.groups.as_slice()))),
        ignore_sigpipe: spawn.ignore_sigpipe,
        program: prepared.program.as_ptr(),
        args: prepared.args.pointers.as_ptr(),
        env: prepared.env.pointers.as_ptr(),
        report: -1,
    }
}

impl Surroundings {
    /// Looks around, and raises the keeper's own limit of open files to the most it may have.
    pub fn new() -> io::Result<Self> {
        let null =
            nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())?;
        let files = descriptors::raise_limit()?;
        // SAFETY: numbers only.
        let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let low = (0..LOW).map(|_| null.try_clone()).collect::<io::Result<Vec<_>>>()?;
        descriptors::make_room()?;
        let low_end = 1 + low.iter().chain([&null]).map(AsRawFd::as_raw_fd).max().unwrap_or(0);
        Ok(Surroundings {
            low,
            low_end,
            null,
            keeper_pid: std::process::id() as i32,
            nice,
            files,
            into_cgroup: true,
            stacks: Stacks::default(),
            spare: None,
        })
    }
}

impl Surroundings {
    /// The child has executed its program, or is dead: what it used may be used again.
    pub fn born(&mut self, birth: Birth) {
        if let Some(stack) = birth.end() {
            self.stacks.give_back(stack);
        }
    }

    /// No child is on its way: makes the next one's report, and gives back memory.
    pub fn rest(&mut self) {
        self.stacks.trim();
        if self.spare.is_none() {
            // Failing now is as good as failing then.
            self.spare = self.new_report().ok();
        }
    }

    fn report(&mut self) -> nix::Result<Report> {
        match self.spare.take() {
            Some(report) => Ok(report),
            None => self.new_report(),
        }
    }

    fn new_report(&mut self) -> nix::Result<Report> {
        let (reading, writing) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let writing = match self.lend(&writing) {
            Some(low) => Writing::Low(low),
            None => Writing::High(writing),
        };
        Ok(Report { reading, writing })
    }

    /// Puts a copy of this descriptor at a low number; `None`: all are lent.
    fn lend(&mut self, fd: &OwnedFd) -> Option<OwnedFd> {
        let mut low = self.low.pop()?;
        match nix::unistd::dup3(fd, &mut low, OFlag::O_CLOEXEC) {
            Ok(()) => Some(low),
            Err(_) => {
                self.low.push(low);
                None
            }
        }
    }

    /// The child has a table of its own, or is dead: the number may be used again.
    pub fn give_back(&mut self, low: Option<OwnedFd>) {
        if let Some(mut low) = low
            && nix::unistd::dup3(&self.null, &mut low, OFlag::O_CLOEXEC).is_ok()
        {
            self.low.push(low);
        }
    }
}

/// Reads what a child reports: 8 bytes, step and errno, or that it has a table of its own; at the end of
/// file it executes its program.
pub fn read_report(report: BorrowedFd<'_>) -> io::Result<Reported> {
    let mut bytes = [0_u8; 8];
    match nix::unistd::read(report, &mut bytes) {
        Ok(8) => {
            let [a, b, c, d, e, f, g, h] = bytes;
            Ok(match u32::from_ne_bytes([a, b, c, d]) {
                child::APART => Reported::Apart,
                step => Reported::Failed(super::ledger::step_of(step), i32::from_ne_bytes([e, f, g, h])),
            })
        }
        Ok(_) => Ok(Reported::Executes),
        Err(nix::errno::Errno::EAGAIN) => Ok(Reported::Nothing),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_numbers_are_lent_and_come_back() {
        let mut around = Surroundings::new().unwrap();
        let (_read, write) = nix::unistd::pipe().unwrap();
        let lent: Vec<OwnedFd> = std::iter::from_fn(|| around.lend(&write)).collect();
        assert_eq!(lent.len(), LOW);
        assert!(lent.iter().all(|fd| fd.as_raw_fd() < around.low_end), "below {}", around.low_end);
        for fd in lent {
            nix::unistd::write(&fd, b"x").expect("it is the pipe");
            around.give_back(Some(fd));
        }
        assert_eq!(around.low.len(), LOW);
        let back = around.low.last().unwrap();
        assert_ne!(
            nix::sys::stat::fstat(back).unwrap().st_ino,
            nix::sys::stat::fstat(&write).unwrap().st_ino
        );
    }
}
