//! Giving back memory that was needed for a moment.
//!
//! Reading the command line, and each start and end of runs, touch code and heap that a quiet loop does not
//! need, and the dynamic linker has read all relocations; the kernel maps sixteen pages of a file for each that is
//! touched, and takes them back only when memory gets short. A keeper lives for months and is to be small before.

use std::fs;

/// Gives back free heap, and the pages of programs and libraries: what is used again is read again, from the page cache.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: returns free pages of the heap to the kernel; nothing in use moves.
    unsafe {
        libc::malloc_trim(0)
    };
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, length) in unwritten(&maps) {
        // SAFETY: a read-only private mapping of a file, never written to: its pages are read again on use.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Address and length of every mapping of a file, as proc_pid_maps(5) lists them, that is executable and not writable,
/// or is the read-only beginning of its file: headers, relocations, constants. Other read-only ones may hold what is
/// nowhere else: the dynamic linker has filled in addresses before it took away the right to write.
fn unwritten(maps: &str) -> impl Iterator<Item = (usize, usize)> {
    maps.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (range, mode, offset) = (fields.next()?, fields.next()?, fields.next()?);
        let inode = fields.nth(1)?;
        let (start, end) = range.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        let beginning = mode == "r--p" && u64::from_str_radix(offset, 16) == Ok(0);
        ((mode == "r-xp" || beginning) && inode != "0").then_some((start, end.checked_sub(start)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_wrote_is_given_back() {
        let maps = "1000-3000 r--p 00000000 fe:00 10 /bin/x\n\
                    3000-8000 r-xp 00002000 fe:00 10 /bin/x\n\
                    8000-9000 r--p 00007000 fe:00 10 /bin/x\n\
                    9000-a000 rw-p 00008000 fe:00 10 /bin/x\n\
                    b000-c000 r-xp 00000000 00:00 0 [vdso]\n\
                    c000-d000 rwxp 00000000 fe:00 11 /tmp/y\n\
                    d000-e000 r--p 00000000 00:00 0 [vvar]\n";
        assert_eq!(unwritten(maps).collect::<Vec<_>>(), [(0x1000, 0x2000), (0x3000, 0x5000)]);
    }
}
