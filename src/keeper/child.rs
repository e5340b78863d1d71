//! What a child does between fork and exec.
//!
//! Owns nothing: all it needs was made before the fork, and here are raw system calls only (no allocation,
//! no lock, no library call, no word of memory written but its own stack and the ledger), because it runs
//! beside the keeper in the keeper's memory. A step that fails is written into the ledger. Called by `spawn`.

use std::ffi::c_char;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use self::syscall::{Argument, system_call};
use super::fault::{self, Point};
use super::ledger::failure_word;
use super::protocol::SpawnStep;

pub mod syscall;

/// Where an output goes.
#[derive(Clone, Copy)]
pub enum Output {
    /// Open this FIFO for reading and writing: it never breaks, whoever reads.
    Fifo(*const c_char),
    /// A descriptor that the keeper has open.
    Descriptor(RawFd),
}

/// Everything a child needs. What it points at stays where it is until the child has executed its program or
/// is dead.
#[derive(Clone, Copy)]
pub struct Plan {
    /// It shares the keeper's table of descriptors, and takes along stdin alone.
    pub apart: bool,
    /// Whose child it has to be when it starts its program.
    pub keeper_pid: i32,
    /// See [`super::ledger::Slot::child_words`]: time, pid, failure.
    pub ledger: [*const AtomicU64; 3],
    /// `cgroup.procs` to write to, when the fork did not place it in the cgroup.
    pub cgroup_procs: Option<RawFd>,
    /// Resource limits.
    pub rlimits: *const [(u32, libc::rlimit64)],
    /// Priority, if another than the keeper's.
    pub nice: Option<i32>,
    /// stdout and stderr. stdin is the keeper's: /dev/null.
    pub outputs: [Output; 2],
    /// The folder to start in.
    pub folder: *const c_char,
    /// The file mode creation mask.
    pub umask: u32,
    /// User, group, supplementary groups.
    pub account: Option<(u32, u32, *const [u32])>,
    /// Leave SIGPIPE ignored.
    pub ignore_sigpipe: bool,
    /// The program, argv and environment, null-terminated.
    pub program: *const c_char,
    /// argv.
    pub args: *const *const c_char,
    /// Environment.
    pub env: *const *const c_char,
}

/// Makes a system call.
macro_rules! try_call {
    (@pad $a:expr, $b:expr, $c:expr, $d:expr, $e:expr $(, $rest:expr)*) => { [$a, $b, $c, $d, $e] };
    ($number:expr $(, $argument:expr)*) => {{
        let arguments = try_call!(@pad $($argument.word(),)* 0, 0, 0, 0, 0);
        // SAFETY: the arguments are numbers, or pointers to what outlives the child's use of it.
        unsafe { system_call($number, arguments) }
    }};
}

/// Makes a system call and reports its failure as this step.
macro_rules! call {
    ($plan:expr, $step:expr, $number:expr $(, $argument:expr)*) => {{
        let result = try_call!($number $(, $argument)*);
        if result < 0 {
            fail($plan, $step, result);
        }
        result
    }};
}

/// Becomes the program, or reports and exits.
///
/// # Safety
/// The plan and what it points at are valid until the child has executed its program or is dead.
pub unsafe extern "C" fn run(plan: *const Plan) -> ! {
    // SAFETY: the caller's.
    let plan = unsafe { &*plan };
    if plan.apart {
        // Until here the table is the keeper's as well, so nothing may have changed it. This copies what lies below 1
        // and nothing else.
        call!(plan, SpawnStep::Descriptors, libc::SYS_close_range, 1, u32::MAX, libc::CLOSE_RANGE_UNSHARE);
    }
    call!(plan, SpawnStep::Session, libc::SYS_setsid);
    // SAFETY: the caller's.
    for (resource, limit) in unsafe { &*plan.rlimits } {
        call!(plan, SpawnStep::Rlimit, libc::SYS_prlimit64, 0, *resource, ptr::from_ref(limit), 0);
    }
    if let Some(nice) = plan.nice {
        call!(plan, SpawnStep::Nice, libc::SYS_setpriority, libc::PRIO_PROCESS, 0, nice);
    }
    if let Some(procs) = plan.cgroup_procs {
        call!(plan, SpawnStep::Cgroup, libc::SYS_write, procs, c"0".as_ptr(), 1);
    }
    descriptors(plan);
    call!(plan, SpawnStep::WorkingDir, libc::SYS_chdir, plan.folder);
    call!(plan, SpawnStep::WorkingDir, libc::SYS_umask, plan.umask);
    write_ledger(plan);
    signals(plan);
    become_account(plan);
    point(plan, Point::ChildBeforeExec);
    call!(plan, SpawnStep::Exec, libc::SYS_execve, plan.program, plan.args, plan.env);
    exit(127)
}

/// Sets 1 and 2, and closes what is the keeper's: an exec that hangs must hold neither the agent's connection
/// nor a listener open once the keeper is dead.
fn descriptors(plan: &Plan) {
    let step = SpawnStep::Descriptors;
    for (output, number) in plan.outputs.iter().zip([1, 2]) {
        let from = match output {
            Output::Fifo(path) => {
                let flags = libc::O_RDWR | libc::O_NOFOLLOW | libc::O_NOCTTY;
                call!(plan, SpawnStep::Logs, libc::SYS_openat, libc::AT_FDCWD, *path, flags, 0) as RawFd
            }
            Output::Descriptor(fd) => *fd,
        };
        // With nothing else open it is the lowest number that is free.
        if from != number {
            call!(plan, step, libc::SYS_dup3, from, number, 0);
            if let Output::Fifo(_) = output {
                call!(plan, step, libc::SYS_close, from);
            }
        }
    }
    if !plan.apart {
        // Before Linux 5.9 there is none; then close-on-exec, which everything of the keeper is, has to do.
        try_call!(libc::SYS_close_range, 3, u32::MAX, 0);
    }
}

/// First the time, then the pid, then the look at the parent: a keeper that finds no pid here once the one
/// that forked is dead knows that this child will see another parent, and start nothing.
fn write_ledger(plan: &Plan) {
    point(plan, Point::ChildBeforePid);
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let step = SpawnStep::Ledger;
    call!(plan, step, libc::SYS_clock_gettime, libc::CLOCK_BOOTTIME, ptr::from_mut(&mut now));
    let pid = call!(plan, step, libc::SYS_getpid);
    // SAFETY: the ledger's words stay where they are as long as the plan does.
    let [time_word, pid_word, _] = plan.ledger.map(|word| unsafe { &*word });
    time_word.store(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64, Ordering::Relaxed);
    pid_word.store(pid as u64, Ordering::SeqCst);
    point(plan, Point::ChildAfterPid);
    if call!(plan, step, libc::SYS_getppid) != plan.keeper_pid as isize {
        exit(127);
    }
}

/// The keeper has no handlers but SIGPIPE's being ignored, so only that and the mask are to undo.
fn signals(plan: &Plan) {
    let step = SpawnStep::Descriptors;
    // The kernel's struct sigaction and set of 64 signals, all zero: SIG_DFL, and nothing blocked.
    let zero = [0_u64; 4];
    if !plan.ignore_sigpipe {
        call!(plan, step, libc::SYS_rt_sigaction, libc::SIGPIPE, zero.as_ptr(), 0, 8);
    }
    call!(plan, step, libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, zero.as_ptr(), 0, 8);
}

fn become_account(plan: &Plan) {
    let Some((uid, gid, groups)) = plan.account else { return };
    call!(plan, SpawnStep::Group, libc::SYS_setgroups, groups.len(), groups.cast::<u32>());
    call!(plan, SpawnStep::Group, libc::SYS_setresgid, gid, gid, gid);
    call!(plan, SpawnStep::User, libc::SYS_setresuid, uid, uid, uid);
}

/// A fault point of the child: kills the keeper, and goes on when it is dead.
fn point(plan: &Plan, point: Point) {
    if fault::hit(point) {
        try_call!(libc::SYS_kill, plan.keeper_pid, libc::SIGKILL);
        while try_call!(libc::SYS_getppid) == plan.keeper_pid as isize {
            try_call!(libc::SYS_sched_yield);
        }
        // A slow child: by now a new keeper may have read the ledger.
        if point as u32 == Point::ChildBeforePid as u32 {
            let pause = libc::timespec { tv_sec: 0, tv_nsec: 300_000_000 };
            try_call!(libc::SYS_nanosleep, ptr::from_ref(&pause), 0);
        }
    }
}

fn fail(plan: &Plan, step: SpawnStep, result: isize) -> ! {
    // SAFETY: as in `write_ledger`.
    let [_, _, failure] = plan.ledger.map(|word| unsafe { &*word });
    failure.store(failure_word(step, result.unsigned_abs() as u32), Ordering::Release);
    exit(127)
}

/// Ends a child without running anything of ours.
pub fn exit(code: i32) -> ! {
    loop {
        try_call!(libc::SYS_exit_group, code);
    }
}
