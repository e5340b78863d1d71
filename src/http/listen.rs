//! Where the API listens: a Unix socket, and beside it one TCP address.
//!
//! Owns the listening descriptors and the socket's file. Without TLS it refuses every address that another machine
//! could reach; the Unix socket is guarded by its mode.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;

use super::tls::Shown;
use crate::cluster::tls::TlsError;
use crate::cluster::tunnel::Tunnelled;
use crate::config::ApiTls;

/// What the API listens on. Made by [`Listeners::bind`], served by [`super::serve`].
pub struct Listeners {
    pub(super) unix: UnixListener,
    pub(super) tcp: Option<TcpListener>,
    pub(super) tls: Option<Shown>,
    pub(super) socket: PathBuf,
    pub(super) tunnel: Option<mpsc::Receiver<Tunnelled>>,
}

/// Why the API cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers on the socket.
    #[error("{0} is in use: another agent runs with this runtime_dir; stop it or give this one its own")]
    InUse(PathBuf),
    /// Something that is no socket lies there.
    #[error("{0} is not a socket: move it away")]
    NotASocket(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen on {path}; [host] runtime_dir must be a folder that the agent may write to")]
    Socket {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The address is none.
    #[error("[host] api = {address:?} is not an address such as \"127.0.0.1:7610\": {source}")]
    Address {
        /// As written.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// Other machines could reach the address.
    #[error(
        "[host] api = {address:?} is reachable from other machines ({resolved}), and without `api_tls` the API listens \
         on loopback only: set it, or write \"127.0.0.1:7610\", or \"\" for the Unix socket alone"
    )]
    NotLoopback {
        /// As written.
        address: String,
        /// What it means.
        resolved: SocketAddr,
    },
    /// Its certificate.
    #[error("[host] api_tls")]
    Tls(#[from] TlsError),
    /// The address is taken, or not one of this machine.
    #[error(
        "cannot listen on {address}; if the port is in use give [host] api another one, or \"\" for the Unix \
         socket alone"
    )]
    Tcp {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

impl Listeners {
    /// Listens on the Unix socket (`mode` such as 0o600) and, if given, on an address, which is on loopback or has
    /// TLS. A socket file that nobody serves any more is replaced; one that somebody serves is an error.
    pub async fn bind(
        socket: &Path,
        mode: u32,
        tcp: Option<&str>,
        tls: Option<&ApiTls>,
    ) -> Result<Listeners, ListenError> {
        // An agent that lives here is told of before the port that it has taken.
        lies_stale(socket)?;
        // Then the address: an error there must not cost anybody the socket.
        let tls = tls.map(Shown::load).transpose()?;
        let tcp = match tcp {
            Some(address) => Some(bind_tcp(address, tls.is_some()).await?),
            None => None,
        };
        if lies_stale(socket)? {
            let failed = |source| ListenError::Socket { path: socket.to_owned(), source };
            std::fs::remove_file(socket).map_err(failed)?;
        }
        let unix = bind_unix(socket, mode)
            .and_then(UnixListener::from_std)
            .map_err(|source| ListenError::Socket { path: socket.to_owned(), source })?;
        Ok(Listeners { unix, tcp, tls, socket: socket.to_owned(), tunnel: None })
    }

    /// What other agents ask is answered, too.
    pub fn with_tunnel(self, tunnelled: mpsc::Receiver<Tunnelled>) -> Listeners {
        Listeners { tunnel: Some(tunnelled), ..self }
    }

    /// What the API shows over TCP; `None`: it speaks no TLS.
    pub fn shown(&self) -> Option<Shown> {
        self.tls.clone()
    }

    /// The TCP address in use; the port is the one that was given for 0.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|listener| listener.local_addr().ok())
    }
}

async fn bind_tcp(address: &str, tls: bool) -> Result<TcpListener, ListenError> {
    let unusable = |source| ListenError::Address { address: address.to_owned(), source };
    let resolved: Vec<SocketAddr> = tokio::net::lookup_host(address).await.map_err(unusable)?.collect();
    if let Some(open) = resolved.iter().find(|a| !tls && !a.ip().is_loopback()) {
        return Err(ListenError::NotLoopback { address: address.to_owned(), resolved: *open });
    }
    let Some(first) = resolved.first().copied() else {
        return Err(unusable(io::Error::new(io::ErrorKind::NotFound, "the name has no address")));
    };
    TcpListener::bind(first).await.map_err(|source| ListenError::Tcp { address: first, source })
}

/// True when a socket file lies there whose server is gone.
fn lies_stale(path: &Path) -> Result<bool, ListenError> {
    let failed = |source| ListenError::Socket { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(failed(e)),
        Ok(found) if !found.file_type().is_socket() => return Err(ListenError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match StdUnixStream::connect(path) {
        Ok(_) => Err(ListenError::InUse(path.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Err(e) => Err(failed(e)),
    }
}

/// The socket has the mode of nobody but us from its first moment: on Linux the mode of the descriptor is
/// that of the file which bind(2) makes. Only then is it opened to others.
fn bind_unix(path: &Path, mode: u32) -> io::Result<StdUnixListener> {
    let fd = socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    fchmod(fd.as_fd(), Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket::bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &UnixAddr::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    socket::listen(&fd, Backlog::new(1024)?)?;
    Ok(fd.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_one_in_use_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let first = Listeners::bind(&path, 0o660, None, None).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let taken = Listeners::bind(&path, 0o600, None, None).await.err().unwrap();
        assert!(matches!(taken, ListenError::InUse(_)), "{taken}");
        drop(first);
        Listeners::bind(&path, 0o600, None, None).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_second_agent_in_the_folder_is_told_of_the_first_and_not_of_its_port() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let first = Listeners::bind(&path, 0o600, Some("127.0.0.1:0"), None).await.unwrap();
        let address = first.tcp_address().unwrap().to_string();
        let second = Listeners::bind(&path, 0o600, Some(&address), None).await.err().unwrap();
        assert!(matches!(second, ListenError::InUse(_)), "{second}");
        // With a folder of its own it is the port that is in its way.
        let other = Listeners::bind(&dir.path().join("b.sock"), 0o600, Some(&address), None).await;
        assert!(matches!(other.err().unwrap(), ListenError::Tcp { .. }));
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        std::fs::write(&path, "precious").unwrap();
        let error = Listeners::bind(&path, 0o600, None, None).await.err().unwrap();
        assert!(matches!(error, ListenError::NotASocket(_)), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn only_loopback_is_listened_on_without_tls() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        for open in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
            let error = Listeners::bind(&path, 0o600, Some(open), None).await.err().unwrap();
            assert!(matches!(error, ListenError::NotLoopback { .. }), "{error}");
            assert!(error.to_string().contains("127.0.0.1:7610"), "{error}");
        }
        let error = Listeners::bind(&path, 0o600, Some("nonsense"), None).await.err().unwrap();
        assert!(matches!(error, ListenError::Address { .. }), "{error}");
        assert!(!path.exists(), "an address that is refused leaves no socket");
        let both = Listeners::bind(&path, 0o600, Some("127.0.0.1:0"), None).await.unwrap();
        assert!(both.tcp_address().unwrap().port() > 0);
    }
}
