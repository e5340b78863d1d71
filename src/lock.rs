//! A file that one process keeps to itself for as long as it lives.
//!
//! Owns which kind of lock that takes. Called by the keeper for its folder and by the agent for its data.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// Locks a file, made where there is none, for as long as what this gives is open; `None`: another process has it. No
/// second descriptor of the same file may be closed meanwhile, which would end the lock.
pub fn take(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    // A record lock, not flock(2): it is the process's alone, and a child between fork and exec has it too only for as long as
    // it shares the table of descriptors.
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
