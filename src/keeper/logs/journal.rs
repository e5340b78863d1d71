//! A stream of the systemd journal for a process (the protocol of sd_journal_stream_fd(3)): connect to the
//! socket, send seven header lines, hand the socket over as stdout and stderr.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect as connect_to, socket};

use crate::spec::InstanceId;

const SOCKET: &str = "/run/systemd/journal/stdout";

/// The header: identifier, unit, priority, whether lines may begin with `<N>`, and three switches that
/// forward to syslog, kmsg and console.
fn header(instance: &InstanceId) -> String {
    format!("{instance}\n\n6\n1\n0\n0\n0\n")
}

/// Connects a stream whose lines are filed under the instance's name. Never waits: a journal that does not
/// take connections is EAGAIN.
pub fn connect(instance: &InstanceId) -> io::Result<OwnedFd> {
    connect_at(SOCKET, instance)
}

fn connect_at(path: &str, instance: &InstanceId) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect_to(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    let mut stream = UnixStream::from(fd);
    stream.write_all(header(instance).as_bytes())?;
    stream.shutdown(Shutdown::Read)?;
    // The process must not see a non-blocking stdout.
    stream.set_nonblocking(false)?;
    Ok(stream.into())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_journal_gets_the_header_and_then_the_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdout");
        let listener = UnixListener::bind(&path).unwrap();
        let stream = connect_at(path.to_str().unwrap(), &"zone.3".parse().unwrap()).unwrap();
        UnixStream::from(stream).write_all(b"hello\n").unwrap();
        let mut text = String::new();
        listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "zone.3\n\n6\n1\n0\n0\n0\nhello\n");
    }

    #[test]
    fn no_journal_is_an_error() {
        let missing = connect_at("/nonexistent/socket", &"zone.3".parse().unwrap()).unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
    }
}
