//! Giving back memory that was needed for a moment.
//!
//! Reading the command line, and each start and end of runs, touch code and heap that a quiet loop does not
//! need; the kernel maps sixteen pages of code for each that is touched, and takes them back only when memory
//! gets short. A keeper lives for months and is to be small before.

use std::fs;

/// Gives back free heap, and the pages of code: what is used again is read again, from the page cache.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: returns free pages of the heap to the kernel; nothing in use moves.
    unsafe {
        libc::malloc_trim(0)
    };
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, length) in code(&maps) {
        // SAFETY: a read-only private mapping of a file, never written to: its pages are read again on use.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Address and length of every mapping of a file that is executable and not writable, as proc_pid_maps(5)
/// lists them. Others may hold what is nowhere else, like addresses that the dynamic linker filled in.
fn code(maps: &str) -> impl Iterator<Item = (usize, usize)> {
    maps.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (range, mode, inode) = (fields.next()?, fields.next()?, fields.nth(2)?);
        let (start, end) = range.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        (mode == "r-xp" && inode != "0").then_some((start, end.checked_sub(start)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_given_back() {
        let maps = "1000-3000 r--p 00000000 fe:00 10 /bin/x\n\
                    3000-8000 r-xp 00002000 fe:00 10 /bin/x\n\
                    8000-9000 r--p 00007000 fe:00 10 /bin/x\n\
                    9000-a000 rw-p 00008000 fe:00 10 /bin/x\n\
                    b000-c000 r-xp 00000000 00:00 0 [vdso]\n\
                    c000-d000 rwxp 00000000 fe:00 11 /tmp/y\n";
        assert_eq!(code(maps).collect::<Vec<_>>(), [(0x3000, 0x5000)]);
    }
}
