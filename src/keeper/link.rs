//! The keeper's end of the socket to the agent.
//!
//! Owns the listener, the one connection and the messages that wait for it. Only root or the keeper's own
//! user may connect (SO_PEERCRED); a newer connection replaces the older. Never blocks: what the agent does
//! not read waits here, and a connection on which too much waits is closed, because the agent reads the
//! whole table when it comes back. Called by the loop only.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType,
    UnixAddr, accept4, bind, getsockopt, listen, recvmsg, sendmsg, shutdown, socket, sockopt,
};

use super::protocol::{self, DecodeError, MAX_PACKET, Reply, Request, gather};

/// Packets that may wait for an agent that does not read.
const MAX_WAITING: usize = 16 * 1024;

/// Makes the listener, mode 0600.
pub fn bind_at(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listen(&listener, Backlog::new(16)?)?;
    Ok(listener)
}

/// What reading gave.
pub enum Received {
    /// Requests in order, with the descriptors of the first.
    Requests(Vec<Request>, Vec<OwnedFd>),
    /// A packet that is no request.
    Bad(DecodeError),
    /// Nothing more for now.
    Nothing,
    /// The agent has closed, or the connection is broken.
    Closed,
}

/// A packet that waits, with its descriptors.
struct Waiting {
    packet: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// The listener and the connection.
pub struct Link {
    listener: OwnedFd,
    agent: Option<OwnedFd>,
    greeted: bool,
    waiting: VecDeque<Waiting>,
    buffer: Vec<u8>,
}

impl Link {
    /// Serves this listener.
    pub fn new(listener: OwnedFd) -> Self {
        Link {
            listener,
            agent: None,
            greeted: false,
            waiting: VecDeque::new(),
            buffer: vec![0; MAX_PACKET + 1],
        }
    }

    /// The listener, for epoll and for an upgrade.
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// The connection, for epoll.
    pub fn agent(&self) -> Option<BorrowedFd<'_>> {
        self.agent.as_ref().map(AsFd::as_fd)
    }

    /// The agent has said hello.
    pub fn greeted(&self) -> bool {
        self.greeted
    }

    /// Notes the hello.
    pub fn greet(&mut self) {
        self.greeted = true;
    }

    /// Something waits to be sent.
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes a new connection; true when there is one. Strangers are turned away.
    pub fn accept(&mut self) -> bool {
        let mut accepted = false;
        // Closed by its peer again, or too many descriptors: the next event tells.
        while let Ok(fd) =
            accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)
        {
            // SAFETY: accept4 has just given us this descriptor.
            let connection = unsafe { OwnedFd::from_raw_fd(fd) };
            let Ok(peer) = getsockopt(&connection, sockopt::PeerCredentials) else { continue };
            // SAFETY: geteuid cannot fail and touches no memory.
            let own = unsafe { libc::geteuid() };
            if peer.uid() != 0 && peer.uid() != own {
                tracing::warn!(
                    uid = peer.uid(),
                    pid = peer.pid(),
                    "turned away a stranger on the keeper's socket"
                );
                continue;
            }
            self.close();
            self.agent = Some(connection);
            accepted = true;
        }
        accepted
    }

    /// Drops the connection and what waits for it.
    pub fn close(&mut self) {
        self.agent = None;
        self.greeted = false;
        self.waiting.clear();
    }

    /// Before the keeper ends: reads away what the agent has sent. Closed with something unread, the
    /// connection would be reset, and the agent see that before the last words.
    pub fn end(&mut self) {
        if let Some(agent) = &self.agent {
            let _ = shutdown(agent.as_raw_fd(), Shutdown::Read);
        }
        while matches!(self.receive(), Received::Requests(..) | Received::Bad(_)) {}
    }

    /// Reads one packet.
    pub fn receive(&mut self) -> Received {
        let Some(agent) = &self.agent else { return Received::Nothing };
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 8]);
        let mut vector = [IoSliceMut::new(&mut self.buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let (length, descriptors) =
            match recvmsg::<()>(agent.as_raw_fd(), &mut vector, Some(&mut space), flags) {
                Err(Errno::EAGAIN | Errno::EINTR) => return Received::Nothing,
                Err(_) => return Received::Closed,
                Ok(message) => {
                    let mut descriptors = Vec::new();
                    for control in message.cmsgs().into_iter().flatten() {
                        if let ControlMessageOwned::ScmRights(fds) = control {
                            // SAFETY: the kernel has just installed these descriptors for us.
                            descriptors.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                        }
                    }
                    (message.bytes, descriptors)
                }
            };
        if length == 0 {
            return Received::Closed;
        }
        match protocol::decode(&self.buffer[..length]) {
            Ok(requests) => Received::Requests(requests, descriptors),
            Err(e) => Received::Bad(e),
        }
    }

    /// Queues a message for an agent that has said hello; without one it is dropped, since the agent reads
    /// the table when it comes.
    pub fn send(&mut self, reply: &Reply) {
        self.send_with(reply, Vec::new());
    }

    /// The same, with descriptors.
    pub fn send_with(&mut self, reply: &Reply, descriptors: Vec<OwnedFd>) {
        if !self.greeted || self.agent.is_none() {
            return;
        }
        let packet = match protocol::encode(reply) {
            Ok(packet) => packet,
            Err(error) => {
                tracing::error!(%error, "cannot tell the agent");
                return;
            }
        };
        let last = self.waiting.back_mut().filter(|last| last.descriptors.is_empty());
        let joined = descriptors.is_empty() && last.is_some_and(|last| gather(&mut last.packet, &packet));
        if !joined {
            self.waiting.push_back(Waiting { packet, descriptors });
        }
    }

    /// Sends what waits, as far as the agent reads. False when the connection had to be closed.
    pub fn flush(&mut self) -> bool {
        let Some(agent) = &self.agent else { return true };
        while let Some(next) = self.waiting.front() {
            let fds: Vec<_> = next.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
            let rights = [ControlMessage::ScmRights(&fds)];
            let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
            let vector = [IoSlice::new(&next.packet)];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(agent.as_raw_fd(), &vector, control, flags, None) {
                Ok(_) => drop(self.waiting.pop_front()),
                Err(Errno::EAGAIN) if self.waiting.len() <= MAX_WAITING => return true,
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    tracing::warn!(%errno, waiting = self.waiting.len(), "closed the agent's connection");
                    self.close();
                    return false;
                }
            }
        }
        true
    }
}
