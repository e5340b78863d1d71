//! Stacks for children that run in the keeper's memory until their exec.
//!
//! Owns the mappings; a stack is taken for a child and given back when the child has a memory of its own.
//! Called by `spawn`.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

/// A child calls a dozen shallow functions.
const SIZE: NonZeroUsize = NonZeroUsize::new(32 * 1024).expect("not zero");
/// What lies below faults instead of overwriting its neighbour.
const GUARD: usize = 4096 * 2;
/// Children that may be on their way at a time with a stack of ours.
const MOST: usize = 512;
/// Each stack that was used costs a page, so few outlive a mass start.
const KEPT: usize = 2;

/// One child's stack.
pub struct Stack {
    bottom: NonNull<libc::c_void>,
}

impl Stack {
    fn new() -> io::Result<Self> {
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_STACK | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let bottom =
            unsafe { mmap_anonymous(None, SIZE, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags)? };
        let stack = Stack { bottom };
        // SAFETY: the lowest pages of the mapping that was just made; nothing lies there yet.
        unsafe { mprotect(bottom, GUARD, ProtFlags::PROT_NONE)? };
        Ok(stack)
    }

    /// Its lowest address and its size in bytes, as clone3 takes them.
    pub fn range(&self) -> (u64, u64) {
        (self.bottom.as_ptr() as u64, SIZE.get() as u64)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: our own mapping, whole; whoever dropped it knows that no child runs on it.
        let _ = unsafe { munmap(self.bottom, SIZE.get()) };
    }
}

/// The stacks of this keeper.
#[derive(Default)]
pub struct Stacks {
    free: Vec<Stack>,
    lent: usize,
}

impl Stacks {
    /// One for a child; `None` when many are out, or there is no memory.
    pub fn lend(&mut self) -> Option<Stack> {
        let stack = match self.free.pop() {
            Some(stack) => stack,
            None if self.lent < MOST => Stack::new().ok()?,
            None => return None,
        };
        self.lent += 1;
        Some(stack)
    }

    /// The child has left it.
    pub fn give_back(&mut self, stack: Stack) {
        self.lent -= 1;
        self.free.push(stack);
    }

    /// Nothing is to be expected soon.
    pub fn trim(&mut self) {
        self.free.truncate(KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_may_be_out_are_lent_and_few_are_kept() {
        let mut stacks = Stacks::default();
        let out: Vec<Stack> = std::iter::from_fn(|| stacks.lend()).collect();
        assert_eq!(out.len(), MOST);
        let (bottom, size) = out[0].range();
        // SAFETY: the highest word of a stack that nobody runs on.
        unsafe { ((bottom + size - 8) as *mut u64).write(1) };
        for stack in out {
            stacks.give_back(stack);
        }
        assert_eq!(stacks.free.len(), MOST);
        stacks.trim();
        assert_eq!(stacks.free.len(), KEPT);
        assert!(stacks.lend().is_some());
        assert_eq!((stacks.free.len(), stacks.lent), (KEPT - 1, 1));
    }
}
