//! Making the two socket files of an instance, and preparing those that the keeper gives back.
//!
//! Where accounts tell who may speak, the files are never, not even for a moment, open to others than their
//! owner: Linux takes the mode of the file from the socket, so it is set before the bind. Where cgroups do, a
//! process may have changed its account, so the files are open to all; what keeps a flood of strangers away
//! from them is that nobody else knows the path: a folder of a random name in one that only the agent may
//! list, bound through a descriptor, since /proc/net/unix shows to all what was bound.

use std::fs::{DirBuilder, Permissions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FcntlArg, OFlag, fcntl, open};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind as bind_to, listen, setsockopt, socket,
    sockopt,
};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat};
use nix::unistd::{Gid, Uid, fchownat, getegid, geteuid};

use super::{Identity, KnownBy};

/// Connections that wait while no agent runs.
const BACKLOG: i32 = 64;

/// As much room for datagrams as systemd asks for; the queue's length is net.unix.max_dgram_qlen besides.
const NOTIFY_ROOM: usize = 8 * 1024 * 1024;

/// The sockets of an instance could not be made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Their folder.
    #[error("cannot make the folder {path} for process sockets")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The path is longer than Linux allows.
    #[error("the socket path {path} is longer than 107 bytes: choose a shorter runtime_dir")]
    PathTooLong {
        /// Which.
        path: PathBuf,
    },
    /// An older file is in the way.
    #[error("cannot remove the old socket {path}")]
    Stale {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Making the socket.
    #[error("cannot make the socket {path}")]
    Bind {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// Giving it to the run's account.
    #[error(
        "cannot give the socket {path} to uid {uid}: an agent that is not root can only run processes as itself"
    )]
    Owner {
        /// Which.
        path: PathBuf,
        /// To whom.
        uid: u32,
        /// Why.
        source: Errno,
    },
    /// Watching it.
    #[error("cannot watch a process socket")]
    Watch {
        /// Why.
        source: Errno,
    },
}

/// Hexadecimal digits of the random name: 64 bits.
const SECRET: usize = 16;

/// The folder of an instance's sockets: `base`, or where the sockets are open a folder in it of a name that
/// nobody can guess; the same one for as long as it is there.
pub fn door(base: &Path, identity: &Identity) -> std::io::Result<PathBuf> {
    if identity.known_by == KnownBy::Account {
        return Ok(base.to_owned());
    }
    let mut made = DirBuilder::new().mode(0o711).create(base);
    if made.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        made = DirBuilder::new().recursive(true).mode(0o711).create(base);
    }
    match made {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            std::fs::set_permissions(base, Permissions::from_mode(0o711))?;
            for entry in std::fs::read_dir(base)? {
                let entry = entry?;
                if entry.file_name().len() == SECRET && entry.file_type()?.is_dir() {
                    return Ok(entry.path());
                }
            }
        }
        made => made?,
    }
    let folder = base.join(secret()?);
    DirBuilder::new().mode(0o711).create(&folder)?;
    Ok(folder)
}

fn secret() -> std::io::Result<String> {
    let mut random = [0_u8; SECRET / 2];
    // SAFETY: the kernel writes at most as many bytes as the array has.
    let got = unsafe { libc::getrandom(random.as_mut_ptr().cast(), random.len(), 0) };
    match usize::try_from(got) {
        Ok(got) if got == random.len() => Ok(random.iter().map(|byte| format!("{byte:02x}")).collect()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// The listener `api.sock` and the notify socket `notify.sock` in a folder.
pub(super) fn bind(folder: &Path, identity: &Identity) -> Result<(OwnedFd, OwnedFd), OpenError> {
    let failed = |source| OpenError::Folder { path: folder.to_owned(), source };
    let open_folder = || open(folder, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let held = match open_folder() {
        Err(Errno::ENOENT) => {
            DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(failed)?;
            open_folder()
        }
        opened => opened,
    };
    let held = held.map_err(|errno| failed(errno.into()))?;
    let listener = one(folder, &held, "api.sock", SockType::Stream, identity)?;
    let notify = one(folder, &held, "notify.sock", SockType::Datagram, identity)?;
    Ok((listener, notify))
}

fn one(
    folder: &Path,
    held: &OwnedFd,
    name: &str,
    kind: SockType,
    identity: &Identity,
) -> Result<OwnedFd, OpenError> {
    let path = &folder.join(name);
    let owned = |source| OpenError::Bind { path: path.to_owned(), source };
    // The processes connect by the path, so it must not be longer than they can say.
    UnixAddr::new(path).map_err(|_| OpenError::PathTooLong { path: path.to_owned() })?;
    let through = format!("/proc/self/fd/{}/{name}", held.as_raw_fd());
    let address = UnixAddr::new(through.as_str()).map_err(owned)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let made = socket(AddressFamily::Unix, kind, flags, None).map_err(owned)?;
    let open_to_all = identity.known_by != KnownBy::Account;
    if !open_to_all {
        fchmod(&made, Mode::S_IRUSR | Mode::S_IWUSR).map_err(owned)?;
    }
    if kind == SockType::Datagram {
        // Before the bind, so that no datagram arrives without its sender.
        setsockopt(&made, sockopt::PassCred, &true).map_err(owned)?;
        setsockopt(&made, sockopt::RcvBuf, &NOTIFY_ROOM).map_err(owned)?;
    }
    match bind_to(made.as_raw_fd(), &address) {
        // Left by an agent before.
        Err(Errno::EADDRINUSE) => {
            std::fs::remove_file(path)
                .map_err(|source| OpenError::Stale { path: path.to_owned(), source })?;
            bind_to(made.as_raw_fd(), &address).map_err(owned)?;
        }
        bound => bound.map_err(owned)?,
    }
    if identity.uid != geteuid().as_raw() || identity.gid != getegid().as_raw() {
        let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
        fchownat(held, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|source| OpenError::Owner { path: path.to_owned(), uid: identity.uid, source })?;
    }
    if open_to_all {
        let all = Mode::from_bits_truncate(0o666);
        fchmodat(held, name, all, FchmodatFlags::FollowSymlink).map_err(owned)?;
    }
    if kind == SockType::Stream {
        listen(&made, Backlog::new(BACKLOG).map_err(owned)?).map_err(owned)?;
    }
    Ok(made)
}

/// Makes them non-blocking, whatever the keeper did with its copies: the flag is shared, and one blocking
/// `accept` would stop the loop.
pub(super) fn prepare(listener: &OwnedFd, notify: &OwnedFd) -> Result<(), OpenError> {
    let failed = |source| OpenError::Watch { source };
    for socket in [listener, notify] {
        let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL).map_err(failed)?);
        fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(failed)?;
    }
    Ok(())
}
