//! The agent's end of the keeper's socket, and starting a keeper where nobody else does.
//!
//! Owns the connection and what waits to be sent. Never decides what to send. Used by the supervision loop.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::readiness::Readiness;
use crate::keeper::fault;
use crate::keeper::protocol::{
    DecodeError, EncodeError, MAX_PACKET, Reply, Request, SOCKET, decode, encode, gather,
};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect,
    recvmsg, sendmsg, socket,
};

/// The most packets that wait; beyond it the keeper is taken for hung and the link is given up.
const MAX_WAITING: usize = 65_536;

/// Why the link to the keeper broke.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody listens, or the connection broke.
    #[error("the keeper's socket")]
    Io(#[from] io::Error),
    /// The keeper closed the connection: it ended, or another agent took over.
    #[error("the keeper closed the connection")]
    Closed,
    /// The keeper speaks another protocol.
    #[error("the keeper sent something that is no message")]
    Decode(#[from] DecodeError),
    /// A message cannot be sent.
    #[error("a message for the keeper cannot be encoded")]
    Encode(#[from] EncodeError),
    /// The keeper does not read.
    #[error("the keeper does not read: {MAX_WAITING} packets wait")]
    Stuck,
}

/// A message of the keeper, with the descriptors that came along.
#[derive(Debug)]
pub struct Received {
    /// What it said.
    pub reply: Reply,
    /// What it passed.
    pub descriptors: Vec<OwnedFd>,
}

/// A connection to the keeper.
pub struct Link {
    socket: OwnedFd,
    readiness: Readiness,
    /// While the keeper does not read.
    room: Option<Readiness>,
    waiting: VecDeque<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Link {
    /// Connects to the keeper of this runtime folder. Must be called within the supervision runtime.
    pub fn connect(runtime_dir: &Path) -> Result<Link, LinkError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket =
            socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(io::Error::from)?;
        let address = UnixAddr::new(&runtime_dir.join(SOCKET)).map_err(io::Error::from)?;
        connect(socket.as_raw_fd(), &address).map_err(io::Error::from)?;
        let readiness = Readiness::new(socket.as_fd())?;
        Ok(Link { socket, readiness, room: None, waiting: VecDeque::new(), buffer: vec![0; MAX_PACKET] })
    }

    /// Queues a message, to go with others in one packet at the next [`Link::flush`].
    pub fn send(&mut self, request: &Request) -> Result<(), LinkError> {
        let packet = encode(request)?;
        if self.waiting.back_mut().is_some_and(|last| gather(last, &packet)) {
            return Ok(());
        }
        if self.waiting.len() >= MAX_WAITING {
            return Err(LinkError::Stuck);
        }
        self.waiting.push_back(packet);
        Ok(())
    }

    /// Sends a message with descriptors, and in its packet the one that goes on about them. These are sent at start and
    /// on a first spawn, when little waits; a keeper that cannot take one then is not working.
    pub fn send_with(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        then: Option<&Request>,
    ) -> Result<(), LinkError> {
        let mut packet = encode(request)?;
        let then = then.map(encode);
        let together = matches!(&then, Some(Ok(then)) if gather(&mut packet, then));
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        for _ in 0..1_000 {
            self.flush()?;
            if self.waiting.is_empty() && self.put(&packet, &raw)? {
                self.waiting.extend(then.filter(|_| !together).transpose()?);
                return Ok(());
            }
            wait_writable(self.socket.as_fd());
        }
        Err(LinkError::Stuck)
    }

    /// True when the packet went out.
    fn put(&self, packet: &[u8], descriptors: &[RawFd]) -> Result<bool, LinkError> {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let control: &[ControlMessage<'_>] = if descriptors.is_empty() { &[] } else { &rights };
        let parts = [io::IoSlice::new(packet)];
        match sendmsg::<()>(self.socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(false),
            Err(errno) => Err(io::Error::from(errno).into()),
        }
    }

    /// Sends what waits, as far as the keeper reads.
    pub fn flush(&mut self) -> Result<(), LinkError> {
        while let Some(packet) = self.waiting.front() {
            if !self.put(packet, &[])? {
                return Ok(());
            }
            self.waiting.pop_front();
        }
        Ok(())
    }

    /// Waits until the keeper says something, sending what waits meanwhile. Takes nothing.
    pub async fn ready(&mut self) -> Result<(), LinkError> {
        loop {
            self.flush()?;
            if self.waiting.is_empty() {
                self.room = None;
                return Ok(self.readiness.readable().await?);
            }
            let room = match &mut self.room {
                Some(room) => room,
                none => none.insert(Readiness::of_room(self.socket.as_fd())?),
            };
            tokio::select! {
                biased;
                readable = self.readiness.readable() => return Ok(readable?),
                writable = room.writable() => writable?,
            }
        }
    }

    /// Takes the messages of a packet; none: there is no packet.
    pub fn receive(&mut self) -> Result<Vec<Received>, LinkError> {
        let round = self.readiness.begin();
        let mut received = Vec::new();
        if !take(self.socket.as_raw_fd(), &mut self.buffer, &mut received)? {
            round.empty();
        }
        Ok(received)
    }
}

/// Takes a packet's messages; false when there is none.
fn take(socket: RawFd, buffer: &mut [u8], received: &mut Vec<Received>) -> Result<bool, LinkError> {
    let mut control = nix::cmsg_space!([RawFd; 4]);
    let mut parts = [io::IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let (bytes, mut descriptors) = match recvmsg::<()>(socket, &mut parts, Some(&mut control), flags) {
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
        Err(errno) => return Err(io::Error::from(errno).into()),
        Ok(message) => {
            let mut descriptors = Vec::new();
            for part in message.cmsgs().map_err(io::Error::from)? {
                if let ControlMessageOwned::ScmRights(raw) = part {
                    // SAFETY: the kernel has just made these descriptors for this process alone.
                    descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
            (message.bytes, descriptors)
        }
    };
    if bytes == 0 {
        return Err(LinkError::Closed);
    }
    for reply in decode(&buffer[..bytes])? {
        received.push(Received { reply, descriptors: std::mem::take(&mut descriptors) });
    }
    Ok(true)
}

fn wait_writable(socket: BorrowedFd<'_>) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(socket, PollFlags::POLLOUT)];
    // A failed poll only means that the next attempt comes at once.
    let _ = poll(&mut fds, PollTimeout::from(5u8));
}

/// How a keeper comes to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeeperSource {
    /// systemd (or somebody else) starts it and starts it again.
    External,
    /// This agent starts it.
    Own {
        /// The program, this one.
        program: PathBuf,
        /// `--cgroup` of the keeper.
        cgroup: Option<String>,
    },
}

/// The first thing that an agent does: where there is no keeper yet and it is the agent's to start one, it comes up
/// beside the agent. Whatever else there is, a socket that nobody listens on too, is seen when it is connected to.
pub fn start_first(source: &KeeperSource, runtime_dir: &Path, data_dir: &Path) -> Early {
    let KeeperSource::Own { program, cgroup } = source else { return None };
    if runtime_dir.join(SOCKET).exists() {
        return None;
    }
    let started = start_keeper(program, runtime_dir, data_dir, cgroup.as_deref());
    // It is tried again by the loop, which tells.
    started.ok()
}

/// A keeper that came up before there was an agent, until the loop has it. Where no agent comes to be it is left alone:
/// an idle one ends by itself, and one that has found runs holds the fence of what is exclusive.
pub type Early = Option<Child>;

/// Starts a keeper that outlives this agent. Its messages go to `keeper.log` in the data folder, or where
/// the agent's go.
pub fn start_keeper(
    program: &Path,
    runtime_dir: &Path,
    data_dir: &Path,
    cgroup: Option<&str>,
) -> io::Result<Child> {
    let log = data_dir.join("keeper.log");
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(&log);
    let outputs = opened.and_then(|file| Ok([Stdio::from(file.try_clone()?), Stdio::from(file)]));
    // Neither a full nor a read-only disk may keep the games from their keeper.
    let [stdout, stderr] = outputs.unwrap_or_else(|error| {
        tracing::warn!(%error, file = %log.display(), "cannot open the keeper's log; it writes where this agent does");
        [Stdio::inherit(), Stdio::inherit()]
    });
    let mut command = Command::new(program);
    command.arg("keeper").arg("--runtime-dir").arg(runtime_dir).arg("--exit-when-idle");
    if let Some(cgroup) = cgroup {
        command.arg("--cgroup").arg(cgroup);
    }
    // A group of its own: Ctrl-C at the agent's terminal is not meant for it.
    command.process_group(0).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    for own in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", fault::VARIABLE] {
        command.env_remove(own);
    }
    command.spawn()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::keeper::link::{self, Received as Heard};

    /// The packets that the keeper has got: what is in each, and with how many descriptors.
    fn packets(keeper: &mut link::Link) -> Vec<(Vec<Request>, usize)> {
        let taken = std::iter::from_fn(|| match keeper.receive() {
            Heard::Requests(requests, descriptors) => Some((requests, descriptors.len())),
            _ => None,
        });
        taken.collect()
    }

    #[tokio::test]
    async fn an_order_goes_in_the_packet_of_its_sockets_where_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = link::Link::new(link::bind_at(&folder.path().join(SOCKET)).unwrap());
        let mut link = Link::connect(folder.path()).unwrap();
        assert!(keeper.accept());
        let null = std::fs::File::open("/dev/null").unwrap();
        let sockets = [null.as_fd(), null.as_fd()];
        let hold = Request::Hold { instance: "zone.0".parse().unwrap() };
        let order = |length| Request::Upgrade { program: "x".repeat(length) };
        link.send(&Request::Ping).unwrap();
        link.send_with(&hold, &sockets, Some(&order(8))).unwrap();
        assert_eq!(
            packets(&mut keeper),
            [(vec![Request::Ping], 0), (vec![hold.clone(), order(8)], 2)],
            "in order"
        );
        let long = order(crate::keeper::protocol::MAX_GATHERED);
        link.send_with(&hold, &sockets, Some(&long)).unwrap();
        // What waits goes with the next look for news.
        let _ = tokio::time::timeout(Duration::from_millis(10), link.ready()).await;
        assert_eq!(packets(&mut keeper), [(vec![hold.clone()], 2), (vec![long], 0)]);
        let never = order(MAX_PACKET);
        assert!(matches!(link.send_with(&hold, &sockets, Some(&never)), Err(LinkError::Encode(_))));
        assert_eq!(packets(&mut keeper), [(vec![hold], 2)], "the sockets are held all the same");
    }
}
