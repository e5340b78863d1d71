//! As many descriptors as a full host wants, for agent and keeper.
//!
//! Owns nothing but the process's limit; knows also how a process keeps a file to itself. Room in the table is made at once: Linux enlarges the table as it
//! fills, and when several threads share it each enlargement waits until no processor can still be reading the
//! old one (synchronize_rcu in fs/file.c): 10 ms and more, in the middle of a start of hundreds of instances.
//! Called by agent and keeper at their start, before they have threads.

use std::fs::{self, File};
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors of a full host; 8 bytes of kernel memory each.
const ROOM: u64 = 16 * 1024;

/// Raises the limit of open files to the most that the process may have, and gives what it was, soft and hard.
pub fn raise_limit() -> io::Result<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // What is refused shows when a descriptor is missing.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    Ok((soft, hard))
}

/// Makes room for the descriptors of a full host, or as many as the process may have.
pub fn make_room() -> io::Result<()> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let last = soft.min(ROOM).saturating_sub(1);
    let null = File::open("/dev/null")?;
    let number = fcntl(&null, FcntlArg::F_DUPFD_CLOEXEC(i32::try_from(last).unwrap_or(i32::MAX)))?;
    nix::unistd::close(number)?;
    Ok(())
}

/// Locks a file for as long as it is open and this process lives; `None`: another one has it. No second descriptor of the
/// same file may be closed meanwhile, which would end the lock.
pub fn lock(file: File) -> io::Result<Option<File>> {
    // A record lock, not flock(2): it is the process's alone, and no child between fork and exec has it too.
    let lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(&file, FcntlArg::F_SETLK(&lock)) {
        Ok(_) => Ok(Some(file)),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes everything that is open now but 0, 1 and 2 close-on-exec.
pub fn keep_from_programs() -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if number > 2 {
            // SAFETY: numbers only, and nobody else's memory hangs on the flag.
            unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_was_inherited_is_kept_from_programs() {
        use std::os::fd::AsRawFd;
        let file = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: our own descriptor.
        let flags = |set: Option<i32>| unsafe {
            match set {
                Some(flags) => libc::fcntl(file.as_raw_fd(), libc::F_SETFD, flags),
                None => libc::fcntl(file.as_raw_fd(), libc::F_GETFD),
            }
        };
        flags(Some(0));
        super::keep_from_programs().unwrap();
        assert_eq!(flags(None), libc::FD_CLOEXEC);
    }

    #[test]
    fn there_is_room_and_nothing_stays_open() {
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let size = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
            line.trim().parse::<u64>().unwrap()
        };
        let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        let before = open();
        super::make_room().unwrap();
        assert!(size() >= soft.min(super::ROOM), "room for {}", size());
        assert_eq!(open(), before);
    }
}
