//! What a child does between fork and exec.
//!
//! Owns nothing: all it needs was made before the fork, and here are raw system calls only (no allocation,
//! no lock, no library call that may take one), because the keeper has two threads and the child has a copy
//! of only one. A step that fails is reported as two numbers over a pipe; end of file means that the exec
//! has happened. Called by `spawn`.

use std::ffi::{c_char, c_long};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use super::fault::{self, Point};
use super::protocol::SpawnStep;

/// Where an output goes.
#[derive(Clone, Copy)]
pub enum Output {
    /// Open this FIFO for reading and writing: it never breaks, whoever reads.
    Fifo(*const c_char),
    /// A descriptor that the keeper has open.
    Descriptor(RawFd),
}

/// Everything a child needs. The pointers outlive the fork, and the child has its own copy of what they
/// point at (except the two ledger words, which are shared on purpose).
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// It shares the keeper's table of descriptors, and keeps those below this number.
    pub apart_from: Option<RawFd>,
    /// Whose child it has to be when it starts its program.
    pub keeper_pid: i32,
    /// See [`super::ledger::Slot::child_words`].
    pub ledger: (&'a AtomicU64, &'a AtomicU64),
    /// `cgroup.procs` to write to, when the fork did not place it in the cgroup.
    pub cgroup_procs: Option<RawFd>,
    /// Resource limits.
    pub rlimits: &'a [(u32, libc::rlimit64)],
    /// Priority, if another than the keeper's.
    pub nice: Option<i32>,
    /// /dev/null.
    pub stdin: RawFd,
    /// stdout and stderr.
    pub outputs: [Output; 2],
    /// The folder to start in.
    pub folder: *const c_char,
    /// The file mode creation mask.
    pub umask: u32,
    /// User, group, supplementary groups.
    pub account: Option<(u32, u32, &'a [u32])>,
    /// Leave SIGPIPE ignored.
    pub ignore_sigpipe: bool,
    /// The program, argv and environment, null-terminated.
    pub program: *const c_char,
    /// argv.
    pub args: *const *const c_char,
    /// Environment.
    pub env: *const *const c_char,
    /// The pipe to report on.
    pub report: RawFd,
}

/// In place of a step in a report: the child has its own table of descriptors.
pub const APART: u32 = u32::MAX;

/// Where the report's descriptor is once the others are closed.
const REPORT: RawFd = 3;

/// Makes a system call and reports its failure as this step.
macro_rules! call {
    ($plan:expr, $step:expr, $number:expr $(, $argument:expr)*) => {{
        // SAFETY: the arguments are numbers, or pointers into the plan, which outlives the child's use.
        let result: c_long = unsafe { libc::syscall($number $(, $argument)*) };
        if result < 0 {
            fail($plan.report, $step);
        }
        result
    }};
}

/// Becomes the program, or reports and exits.
pub fn run(plan: &Plan<'_>) -> ! {
    if let Some(end) = plan.apart_from {
        take_own_table(plan, end);
    }
    call!(plan, SpawnStep::Session, libc::SYS_setsid);
    for (resource, limit) in plan.rlimits {
        let none = std::ptr::null::<libc::rlimit64>();
        call!(plan, SpawnStep::Rlimit, libc::SYS_prlimit64, 0, *resource, std::ptr::from_ref(limit), none);
    }
    if let Some(nice) = plan.nice {
        call!(plan, SpawnStep::Nice, libc::SYS_setpriority, libc::PRIO_PROCESS, 0, nice);
    }
    if let Some(procs) = plan.cgroup_procs {
        call!(plan, SpawnStep::Cgroup, libc::SYS_write, procs, c"0".as_ptr(), 1_usize);
    }
    let plan = &descriptors(*plan);
    call!(plan, SpawnStep::WorkingDir, libc::SYS_chdir, plan.folder);
    call!(plan, SpawnStep::WorkingDir, libc::SYS_umask, plan.umask);
    write_ledger(plan);
    signals(plan);
    become_account(plan);
    point(plan, Point::ChildBeforeExec);
    call!(plan, SpawnStep::Exec, libc::SYS_execve, plan.program, plan.args, plan.env);
    fail(plan.report, SpawnStep::Exec)
}

/// Until here the table is the keeper's as well, so nothing may have changed it.
fn take_own_table(plan: &Plan<'_>, end: RawFd) {
    // SAFETY: numbers only. It copies what lies below `end` and nothing else. Linux 5.9.
    let apart = unsafe { libc::syscall(libc::SYS_close_range, end, u32::MAX, libc::CLOSE_RANGE_UNSHARE) };
    if apart < 0 {
        call!(plan, SpawnStep::Descriptors, libc::SYS_unshare, libc::CLONE_FILES);
    }
    let message = [APART, 0];
    call!(plan, SpawnStep::Descriptors, libc::SYS_write, plan.report, message.as_ptr(), 8_usize);
}

/// Sets 0, 1, 2 and closes what is the keeper's: an exec that hangs must hold neither the agent's connection
/// nor a listener open once the keeper is dead. Only the report stays, as 3.
fn descriptors(mut plan: Plan<'_>) -> Plan<'_> {
    let step = SpawnStep::Descriptors;
    call!(plan, step, libc::SYS_dup3, plan.stdin, 0, 0);
    for (output, number) in plan.outputs.iter().zip([1, 2]) {
        let from = match output {
            Output::Fifo(path) => {
                let flags = libc::O_RDWR | libc::O_CLOEXEC | libc::O_NOFOLLOW | libc::O_NOCTTY;
                call!(plan, SpawnStep::Logs, libc::SYS_openat, libc::AT_FDCWD, *path, flags, 0) as RawFd
            }
            Output::Descriptor(fd) => *fd,
        };
        call!(plan, step, libc::SYS_dup3, from, number, 0);
    }
    if plan.report != REPORT {
        call!(plan, step, libc::SYS_dup3, plan.report, REPORT, libc::O_CLOEXEC);
        plan.report = REPORT;
    }
    // Before Linux 5.9 there is none; then close-on-exec, which everything of the keeper is, has to do.
    // SAFETY: numbers only.
    unsafe { libc::syscall(libc::SYS_close_range, REPORT + 1, u32::MAX, 0) };
    plan
}

/// First the time, then the pid, then the look at the parent: a keeper that finds no pid here once the one
/// that forked is dead knows that this child will see another parent, and start nothing.
fn write_ledger(plan: &Plan<'_>) {
    point(plan, Point::ChildBeforePid);
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let step = SpawnStep::Ledger;
    call!(plan, step, libc::SYS_clock_gettime, libc::CLOCK_BOOTTIME, std::ptr::from_mut(&mut now));
    let pid = call!(plan, step, libc::SYS_getpid);
    let (time_word, pid_word) = plan.ledger;
    time_word.store(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64, Ordering::Relaxed);
    pid_word.store(pid as u64, Ordering::SeqCst);
    point(plan, Point::ChildAfterPid);
    if call!(plan, step, libc::SYS_getppid) != c_long::from(plan.keeper_pid) {
        exit(127);
    }
}

/// The keeper has no handlers but SIGPIPE's being ignored, so only that and the mask are to undo.
fn signals(plan: &Plan<'_>) {
    let step = SpawnStep::Descriptors;
    // The kernel's struct sigaction and set of 64 signals, all zero: SIG_DFL, and nothing blocked.
    let zero = [0_u64; 4];
    let none = std::ptr::null_mut::<u64>();
    if !plan.ignore_sigpipe {
        call!(plan, step, libc::SYS_rt_sigaction, libc::SIGPIPE, zero.as_ptr(), none, 8_usize);
    }
    call!(plan, step, libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, zero.as_ptr(), none, 8_usize);
}

fn become_account(plan: &Plan<'_>) {
    let Some((uid, gid, groups)) = plan.account else { return };
    call!(plan, SpawnStep::Group, libc::SYS_setgroups, groups.len(), groups.as_ptr());
    call!(plan, SpawnStep::Group, libc::SYS_setresgid, gid, gid, gid);
    call!(plan, SpawnStep::User, libc::SYS_setresuid, uid, uid, uid);
}

/// A fault point of the child: kills the keeper, and goes on when it is dead.
fn point(plan: &Plan<'_>, point: Point) {
    if fault::hit(point) {
        // SAFETY: numbers only.
        unsafe {
            libc::syscall(libc::SYS_kill, plan.keeper_pid, libc::SIGKILL);
            while libc::syscall(libc::SYS_getppid) == c_long::from(plan.keeper_pid) {
                libc::syscall(libc::SYS_sched_yield);
            }
            // A slow child: by now a new keeper may have read the ledger.
            if point as u32 == Point::ChildBeforePid as u32 {
                let pause = libc::timespec { tv_sec: 0, tv_nsec: 300_000_000 };
                libc::syscall(libc::SYS_nanosleep, std::ptr::from_ref(&pause), 0_usize);
            }
        }
    }
}

fn fail(report: RawFd, step: SpawnStep) -> ! {
    // SAFETY: __errno_location points at this thread's errno, of which the child has a copy.
    let errno = unsafe { *libc::__errno_location() };
    let message = [step as u32, errno as u32];
    // SAFETY: `message` is 8 bytes; nothing can be done when nobody reads any more.
    unsafe { libc::syscall(libc::SYS_write, report, message.as_ptr(), 8_usize) };
    exit(127)
}

/// Ends a child without running anything of ours.
pub fn exit(code: i32) -> ! {
    loop {
        // SAFETY: numbers only.
        unsafe { libc::syscall(libc::SYS_exit_group, code) };
    }
}
