//! Spawning: from a request to a child.
//!
//! Owns the preparation: every string and array is made before the child is, and stays until the child has
//! executed its program. The child shares the keeper's memory ([`clone`]) and, until its first step, which
//! keeps stdin alone, the keeper's table of descriptors: copying page tables and the thousands of
//! descriptors of a full host took longer than all the rest. No pidfd is asked for: the keeper alone reaps its
//! children, so a pid that it has not reaped cannot be another process. Called by the loop.

use std::ffi::{CString, c_char};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use libc::STDIN_FILENO;

use self::stack::Stacks;
use super::cgroup::Cgroup;
use super::child::{Output, Plan};
use super::ledger::ChildWords;
use super::protocol::{Spawn, SpawnStep};
use crate::descriptors;

pub mod clone;
pub mod stack;

pub use clone::Birth;

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
    /// The keeper.
    pub keeper_pid: i32,
    /// The keeper's priority.
    pub nice: i32,
    /// The soft and hard limit of open files that the keeper was started with; it raised its own.
    pub files: (u64, u64),
    /// The kernel can place a child in a cgroup.
    pub into_cgroup: bool,
    /// The kernel makes a table of the lowest descriptor alone.
    low_tables: bool,
    stacks: Stacks,
}

/// The strings and numbers of a spawn, as the kernel takes them.
pub struct Prepared {
    program: CString,
    folder: CString,
    args: Strings,
    env: Strings,
    rlimits: Vec<(u32, libc::rlimit64)>,
    groups: Vec<u32>,
}

/// Strings one behind the other, and the null-terminated array of pointers to them. Orders that wait for a crash are kept in
/// this form: it is the smallest.
struct Strings {
    _bytes: Box<[u8]>,
    pointers: Box<[*const c_char]>,
}

impl Strings {
    fn new<'a>(texts: impl Iterator<Item = &'a str> + Clone) -> Option<Self> {
        let mut bytes = Vec::with_capacity(texts.clone().map(|text| text.len() + 1).sum());
        for text in texts.clone() {
            if text.bytes().any(|byte| byte == 0) {
                return None;
            }
            bytes.extend(text.bytes().chain([0]));
        }
        let bytes = bytes.into_boxed_slice();
        let mut rest: &[u8] = &bytes;
        let mut pointer = |text: &str| {
            let here = rest.as_ptr().cast();
            rest = &rest[text.len() + 1..];
            here
        };
        let pointers = texts.map(&mut pointer).chain([ptr::null()]).collect();
        Some(Strings { _bytes: bytes, pointers })
    }
}

/// Resolves a request. `cookie` is one more environment entry. A NUL byte in a string is EINVAL.
pub fn prepare(
    spawn: &Spawn,
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
    })
}

/// Makes a child, which becomes the program; its number, and what it uses of our memory meanwhile.
pub fn fork(
    spawn: &Spawn,
    prepared: Prepared,
    outputs: Outputs,
    ledger: ChildWords<'_>,
    cgroup: Option<&Cgroup>,
    around: &mut Surroundings,
) -> Result<(i32, Birth), (SpawnStep, i32)> {
    let plan = plan(spawn, &prepared, &outputs, ledger, around);
    // The kernel's OOM killer kills whoever shares its victim's memory, and with a limit of its own even the
    // exec may be too much for the new cgroup: it must not take us along.
    let limited = spawn.limits.iter().any(|(file, _)| file.starts_with("memory."));
    let stack = if limited { None } else { around.stacks.lend() };
    let mut birth = Birth::new(prepared, outputs, plan, stack);
    match clone::make_child(&mut birth, cgroup, around) {
        Ok(pid) => Ok((pid, birth)),
        Err(failure) => {
            around.born(birth);
            Err(failure)
        }
    }
}

fn plan(
    spawn: &Spawn,
    prepared: &Prepared,
    resolved: &Outputs,
    ledger: ChildWords<'_>,
    around: &Surroundings,
) -> Plan {
    let outputs = match resolved {
        Outputs::Fifos(out, err) => [Output::Fifo(out.as_ptr()), Output::Fifo(err.as_ptr())],
        Outputs::Stream(fd) => [Output::Descriptor(fd.as_raw_fd()); 2],
        Outputs::Null => [Output::Descriptor(STDIN_FILENO); 2],
    };
    // A stream's number may be any, so the whole table is copied.
    let apart = around.low_tables && !matches!(resolved, Outputs::Stream(_));
    Plan {
        apart,
        keeper_pid: around.keeper_pid,
        ledger: [ledger.time, ledger.pid, ledger.failure].map(ptr::from_ref),
        cgroup_procs: None,
        rlimits: ptr::from_ref(prepared.rlimits.as_slice()),
        nice: (spawn.nice != around.nice).then_some(spawn.nice),
        outputs,
        folder: prepared.folder.as_ptr(),
        umask: spawn.umask,
        account: spawn.account.as_ref().map(|a| (a.uid, a.gid, ptr::from_ref(prepared.groups.as_slice()))),
        ignore_sigpipe: spawn.ignore_sigpipe,
        program: prepared.program.as_ptr(),
        args: prepared.args.pointers.as_ptr(),
        env: prepared.env.pointers.as_ptr(),
    }
}

impl Surroundings {
    /// Looks around, raises the keeper's own limit of open files to the most it may have, and makes its stdin what the
    /// children's is to be: /dev/null, open for reading and writing.
    pub fn new() -> io::Result<Self> {
        nix::unistd::dup2_stdin(OpenOptions::new().read(true).write(true).open("/dev/null")?)?;
        let files = descriptors::raise_limit()?;
        // SAFETY: numbers only.
        let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        descriptors::make_room()?;
        let low_tables = makes_low_tables();
        if !low_tables {
            // A child closes nothing then, and whoever started us may have left us something.
            descriptors::keep_from_programs()?;
        }
        Ok(Surroundings {
            keeper_pid: std::process::id() as i32,
            nice,
            files,
            into_cgroup: true,
            low_tables,
            stacks: Stacks::default(),
        })
    }

    /// The child has executed its program, or is dead: what it used may be used again.
    pub fn born(&mut self, birth: Birth) {
        if let Some(stack) = birth.end() {
            self.stacks.give_back(stack);
        }
    }

    /// No child is to be expected soon: gives back memory.
    pub fn rest(&mut self) {
        self.stacks.trim();
    }
}

/// Linux does since 5.9; some containers forbid it. Asked for no descriptor at all, and with a table that
/// nobody shares, it changes nothing.
fn makes_low_tables() -> bool {
    // SAFETY: numbers only; there is no such descriptor.
    unsafe { libc::syscall(libc::SYS_close_range, u32::MAX, u32::MAX, libc::CLOSE_RANGE_UNSHARE) == 0 }
}
