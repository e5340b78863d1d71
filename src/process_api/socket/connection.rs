//! One connection of a process: what it has half said, and what it has not read yet.
//!
//! Owns its descriptor, its decoder and a bounded buffer of answers. Never blocks and never raises SIGPIPE.
//! Called by the endpoint.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use super::ConnId;
use crate::client::line::MAX_ANSWER;
use crate::process_api::rpc::{Decoder, Outgoing};

/// Bytes that a process may leave unread: the longest answer behind another. What can be left out is left out
/// from half of it on.
const MAX_UNREAD: usize = 2 * MAX_ANSWER;

/// A buffer larger than this is given back once it is empty.
const KEPT: usize = 4 * 1024;

#[derive(Debug)]
pub(super) struct Connection {
    pub id: ConnId,
    pub socket: OwnedFd,
    pub pid: i32,
    pub decoder: Decoder,
    /// It has said something that was understood; the others go first when there are too many.
    pub spoke: bool,
    /// It has said hello: it reads what the agent tells it.
    pub greeted: bool,
    /// The round in which its last heartbeat was handed out; more of them in one round are one.
    pub beat_in: u64,
    /// epoll tells when it is writable.
    pub attended: bool,
    unread: Vec<u8>,
    written: usize,
}

/// What a read gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// So many bytes.
    Bytes(usize),
    /// Nothing waits.
    Nothing,
    /// The other end is gone.
    End,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// On its way; the rest follows when the socket is writable again.
    Taken,
    /// Left out, because the process does not read and can do without.
    Dropped,
    /// The process does not read and would miss something: hang up.
    Stuck,
    /// The other end is gone; what it said before can still be read.
    End,
}

impl Connection {
    /// It has said nothing yet, not even something that waits to be read.
    pub fn is_silent(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        !self.spoke && !matches!(recv(self.socket.as_raw_fd(), &mut [0], flags), Ok(1))
    }

    pub(super) fn new(id: ConnId, socket: OwnedFd, pid: i32) -> Self {
        Connection {
            id,
            socket,
            pid,
            decoder: Decoder::default(),
            spoke: false,
            greeted: false,
            beat_in: 0,
            attended: false,
            unread: Vec::new(),
            written: 0,
        }
    }

    pub(super) fn take(&self, buffer: &mut [u8]) -> Taken {
        match recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => Taken::End,
            Ok(length) => Taken::Bytes(length),
            Err(Errno::EAGAIN | Errno::EINTR) => Taken::Nothing,
            Err(_) => Taken::End,
        }
    }

    /// True when something waits for the process to read.
    pub(super) fn waits(&self) -> bool {
        !self.unread.is_empty()
    }

    pub(super) fn say(&mut self, message: &Outgoing) -> Sent {
        let before = self.unread.len();
        if before - self.written > MAX_UNREAD / 2 && message.droppable() {
            return Sent::Dropped;
        }
        message.write(&mut self.unread);
        if self.unread.len() - self.written > MAX_UNREAD {
            self.unread.truncate(before);
            return Sent::Stuck;
        }
        if before > 0 {
            return Sent::Taken;
        }
        self.flush()
    }

    /// Writes as much as the socket takes.
    pub(super) fn flush(&mut self) -> Sent {
        while self.written < self.unread.len() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.socket.as_raw_fd(), &self.unread[self.written..], flags) {
                Ok(length) => self.written += length,
                Err(Errno::EINTR) => (),
                Err(Errno::EAGAIN) => {
                    self.unread.drain(..self.written);
                    self.written = 0;
                    return Sent::Taken;
                }
                Err(_) => {
                    self.unread.clear();
                    self.written = 0;
                    return Sent::End;
                }
            }
        }
        self.unread.clear();
        self.written = 0;
        if self.unread.capacity() > KEPT {
            self.unread = Vec::new();
        }
        Sent::Taken
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use serde_json::Value;

    use super::*;
    use crate::process_api::rpc::Id;

    fn connected() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Connection::new(ConnId(1), ours.into(), 1), theirs)
    }

    #[test]
    fn what_does_not_fit_is_kept_and_arrives_whole() {
        let (mut connection, mut process) = connected();
        let long = Outgoing::Answer { id: Id::from(1), result: Value::String("x".repeat(400_000)) };
        assert_eq!(connection.say(&long), Sent::Taken);
        assert!(connection.waits(), "the socket took it all, the test shows nothing");
        assert_eq!(connection.say(&Outgoing::Ping), Sent::Taken);
        let mut expected = Vec::new();
        long.write(&mut expected);
        Outgoing::Ping.write(&mut expected);
        let mut read = vec![0; expected.len()];
        let mut at = 0;
        while at < read.len() {
            at += process.read(&mut read[at..]).unwrap();
            assert_eq!(connection.flush(), Sent::Taken);
        }
        assert!(read == expected);
        assert!(!connection.waits());
        assert!(connection.unread.capacity() <= KEPT);
    }

    #[test]
    fn a_process_that_does_not_read_costs_bounded_memory() {
        let (mut connection, _process) = connected();
        let long = Outgoing::Answer { id: Id::from(1), result: Value::String("x".repeat(300_000)) };
        let mut said = Vec::new();
        for _ in 0..8 {
            said.push(connection.say(&long));
        }
        assert_eq!(said.last(), Some(&Sent::Stuck));
        while connection.say(&Outgoing::Ping) == Sent::Taken {}
        assert_eq!(connection.say(&Outgoing::Ping), Sent::Dropped, "a ping can be left out");
        assert!(connection.unread.len() <= MAX_UNREAD);
    }

    #[test]
    fn writing_to_nobody_is_an_end_and_no_signal() {
        let (mut connection, process) = connected();
        drop(process);
        assert_eq!(connection.say(&Outgoing::Ping), Sent::End);
        assert_eq!(connection.take(&mut [0; 8]), Taken::End);
    }
}
