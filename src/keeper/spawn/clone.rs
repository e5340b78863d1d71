//! The making of a child: clone3 into its cgroup, in our memory.
//!
//! Owns what the child needs until its exec: its stack, its plan and all that the plan points at. The child
//! shares our memory (CLONE_VM) and runs beside us (no CLONE_VFORK): an exec that hangs on a dead file server
//! holds nobody up, it only keeps its stack. Where that cannot be (another processor, no clone3), the child
//! gets a copy. CLONE_INTO_CGROUP: it is never outside its cgroup; where the kernel has none, it moves itself.
//! Called by `spawn`.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use super::stack::Stack;
use super::{Outputs, Prepared, Surroundings};
use crate::keeper::cgroup::Cgroup;
use crate::keeper::child::{self, Plan};
use crate::keeper::fault;
use crate::keeper::process;
use crate::keeper::protocol::SpawnStep;

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What a child begins with that runs in our memory.
type Begin = unsafe extern "C" fn(*const Plan) -> !;

/// What a child uses of our memory until it has one of its own.
pub struct Birth {
    stack: Option<Stack>,
    plan: Box<Plan>,
    _prepared: (Prepared, Outputs),
    /// Not zero while the child is in our memory: the kernel clears it when the child leaves
    /// (CLONE_CHILD_CLEARTID), by its exec or its end. `None`: it never was here.
    here: Option<Box<AtomicU32>>,
}

impl Birth {
    /// `plan` points into `prepared` and `outputs`; without a stack the child gets a copy of our memory.
    pub(super) fn new(prepared: Prepared, outputs: Outputs, plan: Plan, stack: Option<Stack>) -> Self {
        Birth { stack, plan: Box::new(plan), _prepared: (prepared, outputs), here: None }
    }

    /// The child executes its program, or is dead. `pid` is its number; it is not reaped yet.
    pub fn is_over(&self, pid: i32) -> bool {
        match &self.here {
            Some(here) => here.load(Ordering::Acquire) == 0,
            None => process::stat(pid).is_none_or(|stat| stat.executed || !stat.alive()),
        }
    }

    /// The child is done with it.
    pub(super) fn end(self) -> Option<Stack> {
        self.stack
    }

    fn table(&self) -> u64 {
        if self.plan.apart { libc::CLONE_FILES as u64 } else { 0 }
    }
}

/// Into the cgroup in one step where the kernel can; else the child moves itself, by a descriptor that only
/// a whole copy of our table has.
pub(super) fn make_child(
    birth: &mut Birth,
    cgroup: Option<&Cgroup>,
    around: &mut Surroundings,
) -> Result<i32, (SpawnStep, i32)> {
    let mut procs = None;
    if let Some(cgroup) = cgroup {
        if around.into_cgroup {
            match clone3(birth, Some(cgroup.folder().as_raw_fd())) {
                Ok(pid) => return Ok(pid),
                Err(libc::ENOSYS | libc::EINVAL | libc::E2BIG) => around.into_cgroup = false,
                Err(errno @ (libc::EAGAIN | libc::ENOMEM)) => return Err((SpawnStep::Fork, errno)),
                Err(errno) => return Err((SpawnStep::Cgroup, errno)),
            }
        }
        let errno = |e: io::Error| (SpawnStep::Cgroup, e.raw_os_error().unwrap_or(libc::EIO));
        birth.plan.apart = false;
        birth.plan.cgroup_procs = Some(procs.insert(cgroup.procs().map_err(errno)?).as_raw_fd());
    }
    clone3(birth, None)
        .or_else(|errno| match errno {
            // Containers forbid it, or the kernel is older than Linux 5.3.
            libc::ENOSYS | libc::EPERM => clone_plain(birth),
            errno => Err(errno),
        })
        .map_err(|errno| (SpawnStep::Fork, errno))
}

fn clone3(birth: &mut Birth, folder: Option<RawFd>) -> Result<i32, i32> {
    let mut args = arguments(folder);
    args.flags |= birth.table();
    let plan = ptr::from_ref(&*birth.plan);
    if let Some(stack) = birth.stack.as_ref().filter(|_| child::syscall::RAW) {
        args.flags |= (libc::CLONE_VM | libc::CLONE_CHILD_CLEARTID) as u64;
        (args.stack, args.stack_size) = stack.range();
        let here = Box::new(AtomicU32::new(1));
        args.child_tid = here.as_ptr() as u64;
        // SAFETY: the stack is the child's alone; plan, stack and word stay until it has left our memory.
        let made = unsafe { clone3_on_stack(&mut args, child::run, plan) };
        birth.here = made.is_ok().then_some(here);
        return made;
    }
    // SAFETY: a fork: the child gets a copy of our memory and runs `child::run`, which never returns and
    // makes raw system calls only.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, ptr::from_mut(&mut args), size_of_val(&args)) };
    forked(pid, plan)
}

fn clone_plain(birth: &Birth) -> Result<i32, i32> {
    let flags = libc::SIGCHLD as u64 | birth.table();
    // SAFETY: as in `clone3`; flags SIGCHLD alone are fork(2).
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    forked(pid, ptr::from_ref(&*birth.plan))
}

#[inline(always)]
fn forked(pid: libc::c_long, plan: *const Plan) -> Result<i32, i32> {
    match pid {
        // SAFETY: this is the child's own copy.
        0 => unsafe { child::run(plan) },
        pid if pid > 0 => {
            fault::passed_child_points();
            Ok(pid as i32)
        }
        _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EAGAIN)),
    }
}

/// The child begins with `begin(plan)` at the top of the stack that the arguments name.
///
/// # Safety
/// Plan and stack are valid until the child has left our memory, and the stack is nobody else's; `begin` makes raw
/// system calls only.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3_on_stack(args: &mut libc::clone_args, begin: Begin, plan: *const Plan) -> Result<i32, i32> {
    let result: isize;
    // SAFETY: the kernel changes rax, rcx and r11; the child, which has its own registers and stack, never
    // comes out of here.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") ptr::from_mut(args), in("rsi") size_of::<libc::clone_args>(),
            in("r12") begin, in("r13") plan,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    if result > 0 { Ok(result as i32) } else { Err(-result as i32) }
}

/// The child begins with `begin(plan)` at the top of the stack that the arguments name.
///
/// # Safety
/// Plan and stack are valid until the child has left our memory, and the stack is nobody else's; `begin` makes raw
/// system calls only.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3_on_stack(args: &mut libc::clone_args, begin: Begin, plan: *const Plan) -> Result<i32, i32> {
    let result: isize;
    // SAFETY: the kernel changes x0; the child, which has its own registers and stack, never comes out of
    // here.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x21",
            "blr x20",
            "brk #1",
            "2:",
            in("x8") libc::SYS_clone3,
            inlateout("x0") ptr::from_mut(args) as isize => result,
            in("x1") size_of::<libc::clone_args>(),
            in("x20") begin, in("x21") plan,
        );
    }
    if result > 0 { Ok(result as i32) } else { Err(-result as i32) }
}

/// There is none: `child::syscall::RAW` is false.
///
/// # Safety
/// None is needed.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn clone3_on_stack(
    _args: &mut libc::clone_args,
    _begin: Begin,
    _plan: *const Plan,
) -> Result<i32, i32> {
    Err(libc::ENOSYS)
}

/// Finds out whether the kernel places children in cgroups as it should: there are kernels without it, and
/// ones that kill the child when the keeper's own cgroup was ever killed (see [`Cgroup::renew`]). Then
/// children move themselves.
pub fn probe(cgroup: &Cgroup, around: &mut Surroundings) {
    let mut args = arguments(Some(cgroup.folder().as_raw_fd()));
    // Without a copy of our memory, which an agent's start would wait for.
    let stack = child::syscall::RAW.then(|| around.stacks.lend()).flatten();
    let pid = if let Some(stack) = &stack {
        args.flags |= libc::CLONE_VM as u64;
        (args.stack, args.stack_size) = stack.range();
        // SAFETY: the stack is the child's alone, and stays at least until it is reaped; `leave` looks at no plan.
        unsafe { clone3_on_stack(&mut args, leave, ptr::null()) }.unwrap_or(0)
    } else {
        // SAFETY: as in `clone3`; the child exits at once.
        match unsafe { libc::syscall(libc::SYS_clone3, ptr::from_mut(&mut args), size_of_val(&args)) } {
            0 => child::exit(0),
            pid => pid.max(0) as i32,
        }
    };
    let mut status = 0;
    // SAFETY: `status` is a valid int to write to.
    let reaped = pid > 0 && unsafe { libc::waitpid(pid, &mut status, 0) } == pid;
    around.into_cgroup = reaped && status == 0;
    match stack {
        // Nobody knows whether the child still runs on it.
        Some(stack) if pid > 0 && !reaped => std::mem::forget(stack),
        Some(stack) => around.stacks.give_back(stack),
        None => {}
    }
    if !around.into_cgroup {
        tracing::info!("this kernel does not place children in cgroups: they move themselves");
    }
}

/// The whole life of the probe's child.
unsafe extern "C" fn leave(_: *const Plan) -> ! {
    child::exit(0)
}

fn arguments(folder: Option<RawFd>) -> libc::clone_args {
    // SAFETY: clone_args is plain numbers, and zero is "not asked for".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(folder) = folder {
        args.flags = CLONE_INTO_CGROUP;
        args.cgroup = folder as u64;
    }
    args
}
