//! One datagram off a notify socket, with its sender and what it brought along.
//!
//! Owns every descriptor that a sender attaches, also when the kernel could not hand over all of them:
//! nix's `recvmsg` gives no access to the control messages then, and a process could use up the agent's
//! descriptors that way. Called by the endpoint.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// Room for the credentials and the 253 descriptors that Linux lets a message carry.
pub(super) type Control = [u64; 160];

/// What arrived.
#[derive(Debug)]
pub(super) struct Datagram {
    /// How many bytes of the buffer are its text.
    pub length: usize,
    /// The sender; 0 when the kernel does not say.
    pub pid: i32,
    /// The sender's account; `u32::MAX` when the kernel does not say.
    pub uid: u32,
    /// What it brought along.
    pub descriptors: Vec<OwnedFd>,
}

/// Takes the next datagram; `EAGAIN` when none waits.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    text: &mut [u8],
    control: &mut [u64],
) -> Result<Datagram, Errno> {
    let mut part = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
    // SAFETY: msghdr is plain old data, for which all zeros is a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = std::mem::size_of_val(control);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points at `part` and `control`, which outlive the call and have the lengths given.
    let length = Errno::result(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) })?;
    let mut datagram =
        Datagram { length: length.unsigned_abs(), pid: 0, uid: u32::MAX, descriptors: Vec::new() };
    // SAFETY: recvmsg has filled the header; CMSG_FIRSTHDR stays inside msg_controllen.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !message.is_null() {
        // SAFETY: the CMSG macros give aligned pointers inside the control buffer (it is made of u64).
        let (head, data) = unsafe { (*message, libc::CMSG_DATA(message)) };
        // SAFETY: CMSG_LEN only computes.
        let size = head.cmsg_len.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
        if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
            for at in 0..size / size_of::<RawFd>() {
                // SAFETY: the kernel wrote `size` bytes of descriptors at `data`; each is ours alone now.
                let descriptor = unsafe {
                    let number = data.cast::<RawFd>().add(at).read_unaligned();
                    OwnedFd::from_raw_fd(number)
                };
                datagram.descriptors.push(descriptor);
            }
        } else if head.cmsg_level == libc::SOL_SOCKET
            && head.cmsg_type == libc::SCM_CREDENTIALS
            && size >= size_of::<libc::ucred>()
        {
            // SAFETY: the kernel wrote a ucred at `data`, the size was checked.
            let sender = unsafe { data.cast::<libc::ucred>().read_unaligned() };
            (datagram.pid, datagram.uid) = (sender.pid, sender.uid);
        }
        // SAFETY: as for CMSG_FIRSTHDR; `message` came from it.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    Ok(datagram)
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg, setsockopt, sockopt};

    use super::*;

    fn pair() -> (UnixDatagram, UnixDatagram) {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        setsockopt(&receiver, sockopt::PassCred, &true).unwrap();
        (sender, receiver)
    }

    fn send(sender: &UnixDatagram, text: &[u8], descriptors: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(descriptors)];
        sendmsg::<UnixAddr>(sender.as_raw_fd(), &[IoSlice::new(text)], &rights, MsgFlags::empty(), None)
            .unwrap();
    }

    #[test]
    fn the_sender_is_known_and_an_empty_socket_says_so() {
        let (sender, receiver) = pair();
        let (mut text, mut control) = ([0; 16], [0; 160]);
        assert_eq!(receive(receiver.as_fd(), &mut text, &mut control).unwrap_err(), Errno::EAGAIN);
        sender.send(b"READY=1").unwrap();
        let datagram = receive(receiver.as_fd(), &mut text, &mut control).unwrap();
        assert_eq!(&text[..datagram.length], b"READY=1");
        assert_eq!(datagram.pid, std::process::id() as i32);
        assert_eq!(datagram.uid, nix::unistd::getuid().as_raw());
        assert!(datagram.descriptors.is_empty());
    }

    #[test]
    fn descriptors_are_ours_and_close_when_dropped() {
        let (sender, receiver) = pair();
        let (mut left, right) = UnixStream::pair().unwrap();
        send(&sender, b"BARRIER=1", &[right.as_raw_fd()]);
        drop(right);
        let (mut text, mut control) = ([0; 16], [0; 160]);
        let datagram = receive(receiver.as_fd(), &mut text, &mut control).unwrap();
        assert_eq!(datagram.descriptors.len(), 1);
        left.set_nonblocking(true).unwrap();
        assert_eq!(left.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "still open");
        drop(datagram);
        assert_eq!(left.read(&mut [0]).unwrap(), 0, "closed");
    }

    #[test]
    fn also_the_descriptors_of_a_truncated_message_are_closed() {
        let (sender, receiver) = pair();
        let pairs: Vec<_> = (0..40).map(|_| UnixStream::pair().unwrap()).collect();
        let sent: Vec<RawFd> = pairs.iter().map(|(_, right)| right.as_raw_fd()).collect();
        send(&sender, b"FDSTORE=1", &sent);
        let lefts: Vec<UnixStream> = pairs.into_iter().map(|(left, _)| left).collect();
        let (mut text, mut control) = ([0; 16], [0; 12]);
        let datagram = receive(receiver.as_fd(), &mut text, &mut control).unwrap();
        assert!((1..40).contains(&datagram.descriptors.len()), "{datagram:?}");
        drop(datagram);
        for mut left in lefts {
            left.set_nonblocking(true).unwrap();
            assert_eq!(left.read(&mut [0]).unwrap(), 0, "a descriptor was left open");
        }
    }
}
