//! As many descriptors as a full host wants, for agent and keeper.
//!
//! Owns nothing but the process's limit. Room in the table is made at once: Linux enlarges the table as it fills, and when several threads share it each enlargement
//! waits until no processor can still be reading the old one: 10 ms and more, in the middle of a start of
//! hundreds of instances. Called by agent and keeper at their start, before they have threads.

use std::fs::File;
use std::io;

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

#[cfg(test)]
mod tests {
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
