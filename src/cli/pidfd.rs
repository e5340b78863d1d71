//! A process that cannot be mistaken for another one: signals go to it or to nobody, even if its pid is
//! given away. Used by `kill-test` and `dev`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::Signal;

use crate::keeper::process;

/// A descriptor of a process; see pidfd_open(2).
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// The process that has this pid now.
    pub fn open(pid: i32) -> io::Result<Pidfd> {
        process::open(pid).map(Pidfd)
    }

    /// Sends a signal to that process; an error if it is gone.
    pub fn send(&self, signal: Signal) -> io::Result<()> {
        process::signal(self.0.as_fd(), signal as i32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn the_signal_reaches_the_process_and_nobody_after_it() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = Pidfd::open(child.id() as i32).unwrap();
        pidfd.send(Signal::SIGKILL).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert_eq!(pidfd.send(Signal::SIGKILL).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert!(Pidfd::open(-1).is_err());
    }
}
