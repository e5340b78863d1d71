//! Notify sockets while no agent reads them.
//!
//! Owns what was read from the sockets of one instance until the agent is back, so that no process blocks
//! in sd_notify(3). At most 64 datagrams an instance, and of plain `WATCHDOG=1` and `STATUS=` only the newest; passed
//! descriptors are closed at once, which is what BARRIER=1 waits for. Called by the loop.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt};
use serde::{Deserialize, Serialize};

/// Datagrams kept an instance.
const MAX_KEPT: usize = 64;
/// Datagrams read in one go, so that a flood starves nobody.
const MAX_ROUND: usize = 256;
const MAX_DATAGRAM: usize = 4096;

/// A datagram and its sender.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram {
    /// The sender.
    pub pid: i32,
    /// Its bytes.
    pub data: Vec<u8>,
}

/// The datagrams kept for one instance, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept(VecDeque<Datagram>);

impl Kept {
    /// Keeps one more. Of beats only the newest counts, and so of what is shown to people: however often that changes,
    /// a READY=1 after it has room. Of the rest the oldest 64, since the first ones say more than the hundredth.
    pub fn push(&mut self, datagram: Datagram) {
        for is_one in [is_beat, is_status] {
            if is_one(&datagram.data) {
                self.0.retain(|kept| !is_one(&kept.data));
            }
        }
        if self.0.len() < MAX_KEPT {
            self.0.push_back(datagram);
        }
    }

    /// Hands all over.
    pub fn take(&mut self) -> impl Iterator<Item = Datagram> + use<> {
        std::mem::take(&mut self.0).into_iter()
    }

    /// Nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn is_beat(data: &[u8]) -> bool {
    data.trim_ascii_end() == b"WATCHDOG=1"
}

/// One line for people and nothing else.
fn is_status(data: &[u8]) -> bool {
    let text = data.trim_ascii_end();
    text.starts_with(b"STATUS=") && !text.contains(&b'\n')
}

/// Reads what waits on a notify socket into `kept`.
pub fn drain(socket: BorrowedFd<'_>, kept: &mut Kept) {
    let _ = setsockopt(&socket, sockopt::PassCred, &true);
    let mut bytes = [0_u8; MAX_DATAGRAM];
    for _ in 0..MAX_ROUND {
        let mut space = nix::cmsg_space!(UnixCredentials, [std::os::fd::RawFd; 32]);
        let mut vector = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let (length, pid, truncated) =
            match recvmsg::<()>(socket.as_raw_fd(), &mut vector, Some(&mut space), flags) {
                Err(Errno::EINTR) => continue,
                Err(_) => return,
                Ok(message) => {
                    let mut pid = 0;
                    for control in message.cmsgs().into_iter().flatten() {
                        match control {
                            ControlMessageOwned::ScmCredentials(sender) => pid = sender.pid(),
                            ControlMessageOwned::ScmRights(fds) => {
                                // SAFETY: the kernel has just installed these descriptors for us.
                                fds.into_iter().for_each(|fd| drop(unsafe { OwnedFd::from_raw_fd(fd) }));
                            }
                            _ => {}
                        }
                    }
                    (message.bytes, pid, message.flags.contains(MsgFlags::MSG_TRUNC))
                }
            };
        if !truncated {
            kept.push(Datagram { pid, data: bytes[..length].to_vec() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(text: &str) -> Datagram {
        Datagram { pid: 1, data: text.as_bytes().to_vec() }
    }

    #[test]
    fn of_beats_only_the_newest_is_kept_and_it_is_last() {
        let mut kept = Kept::default();
        for text in ["WATCHDOG=1", "READY=1", "WATCHDOG=1\n", "STATUS=a"] {
            kept.push(datagram(text));
        }
        let texts: Vec<_> = kept.take().map(|d| String::from_utf8(d.data).unwrap()).collect();
        assert_eq!(texts, ["READY=1", "WATCHDOG=1\n", "STATUS=a"]);
        assert!(kept.is_empty());
    }

    #[test]
    fn a_flood_is_bounded() {
        let mut kept = Kept::default();
        for number in 0..1000 {
            kept.push(datagram(&format!("STATUS={number}\nERRNO={number}")));
        }
        kept.push(datagram("WATCHDOG=1"));
        let all: Vec<_> = kept.take().collect();
        assert_eq!(all.len(), MAX_KEPT);
        assert_eq!(all[0], datagram("STATUS=0\nERRNO=0"));
    }

    #[test]
    fn progress_that_is_told_a_hundred_times_leaves_room_for_the_word_that_follows() {
        let mut kept = Kept::default();
        kept.push(datagram("STATUS=begins\nMAINPID=7"));
        for percent in 0..=100 {
            kept.push(datagram(&format!("STATUS=loaded {percent} %\n")));
        }
        kept.push(datagram("READY=1"));
        let texts: Vec<_> = kept.take().map(|d| String::from_utf8(d.data).unwrap()).collect();
        assert_eq!(texts, ["STATUS=begins\nMAINPID=7", "STATUS=loaded 100 %\n", "READY=1"]);
    }
}
