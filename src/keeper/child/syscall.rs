//! System calls that touch no memory of the keeper.
//!
//! A child that shares the keeper's memory must not go through the C library: its wrapper writes `errno`,
//! which would be the keeper's. So the call is made here, and its result says the error. Called by the child
//! only.
//!
//! Sources: syscall(2), section "Architecture calling conventions".

use std::ffi::c_long;

/// A child may share the keeper's memory on this processor: there is a raw system call for it.
pub const RAW: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

/// Makes a system call; a negative result is an error number.
///
/// # Safety
/// That of the system call.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub unsafe fn system_call(number: c_long, arguments: [usize; 5]) -> isize {
    let [a, b, c, d, e] = arguments;
    let result;
    // SAFETY: the kernel's convention: it changes rax, rcx and r11 only, beside what the arguments point at.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Makes a system call; a negative result is an error number.
///
/// # Safety
/// That of the system call.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub unsafe fn system_call(number: c_long, arguments: [usize; 5]) -> isize {
    let [a, b, c, d, e] = arguments;
    let result;
    // SAFETY: the kernel's convention: it changes x0 only, beside what the arguments point at.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e,
            options(nostack),
        );
    }
    result
}

/// Makes a system call; a negative result is an error number. Here the child has a copy of our memory.
///
/// # Safety
/// That of the system call.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub unsafe fn system_call(number: c_long, arguments: [usize; 5]) -> isize {
    let [a, b, c, d, e] = arguments;
    // SAFETY: the caller's; __errno_location points at this thread's errno.
    unsafe {
        match libc::syscall(number, a, b, c, d, e) {
            -1 => -(*libc::__errno_location() as isize),
            result => result as isize,
        }
    }
}

/// Something that fits a register.
pub trait Argument {
    /// As the kernel reads it.
    fn word(self) -> usize;
}

macro_rules! numbers {
    ($($number:ty),*) => { $(
        impl Argument for $number {
            #[inline(always)]
            fn word(self) -> usize {
                // Sign-extended, as the C library does.
                self as usize
            }
        }
    )* };
}

numbers!(i32, u32, i64, u64, usize);

impl<T> Argument for *const T {
    #[inline(always)]
    fn word(self) -> usize {
        self as usize
    }
}

impl<T> Argument for *mut T {
    #[inline(always)]
    fn word(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_gives_its_result_or_the_error_and_leaves_errno_alone() {
        // SAFETY: getpid touches no memory; a write to no descriptor fails before it reads.
        unsafe {
            *libc::__errno_location() = 77;
            assert_eq!(system_call(libc::SYS_getpid, [0; 5]), std::process::id() as isize);
            let none = [(-1_i32).word(), 0, 0, 0, 0];
            assert_eq!(system_call(libc::SYS_close, none), -(libc::EBADF as isize));
            if RAW {
                assert_eq!(*libc::__errno_location(), 77);
            }
        }
    }
}
