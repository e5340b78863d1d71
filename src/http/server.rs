//! Connections: accepting, bounding and ending them.
//!
//! Owns every connection's task. Knows HTTP/1.1 and nothing of the API; `router` has that, and `connection` what goes on
//! within one.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::auth::{Badge, Gate, Origin};
use super::connection::{Crowd, Door, Stream, follow_tokens};
use super::entrance;
use super::listen::Listeners;
use super::router::{self, Api, Transport};
use super::{snapshots, tables};
use crate::agent::Handle;
use crate::cluster::wire::hall::Hall;

/// Bounds on connections and requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at once, of each listener: a crowd on TCP does not lock out the Unix socket. Further
    /// ones wait in the kernel.
    pub connections: usize,
    /// Of these, over TLS: from one address.
    pub of_one: usize,
    /// Of these, over TLS: that have not shown a token yet.
    pub strangers: usize,
    /// From the accept to the end of TLS's handshake.
    pub handshake: Duration,
    /// A connection without a whole request head for this long is closed.
    pub head: Duration,
    /// From a request's head to its answer's head.
    pub request: Duration,
    /// Of an answer something must be taken within this.
    pub stall: Duration,
    /// What lists and the like give to one token or address, in pieces of 4 KiB: so many at once, and so many a second.
    pub given: (u32, u32),
    /// How long answers under way may take once the agent stops.
    pub grace: Duration,
}

impl Limits {
    pub(super) const DEFAULT: Limits = Limits {
        connections: 8_192,
        of_one: 2_048,
        strangers: 256,
        handshake: Duration::from_secs(5),
        head: Duration::from_secs(30),
        request: Duration::from_secs(10),
        stall: Duration::from_secs(30),
        // 64 MiB, and 32 MiB a second.
        given: (16_384, 8_192),
        grace: Duration::from_secs(2),
    };
}

/// Why the API stopped being served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener is broken for good.
    #[error("the API cannot accept connections any more: {0}")]
    Accept(#[source] io::Error),
}

/// Serves the API until `shutdown` is true (or its sender is gone): then it accepts nothing new, ends
/// those who follow, gives other answers two seconds, and removes the socket's file. While `starting` says what
/// the agent waits for, only its status is answered.
pub async fn serve(
    handle: Handle,
    listeners: Listeners,
    starting: watch::Receiver<Option<String>>,
    shutdown: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    serve_within(Limits::DEFAULT, handle, listeners, starting, shutdown).await
}

async fn serve_within(
    limits: Limits,
    handle: Handle,
    listeners: Listeners,
    starting: watch::Receiver<Option<String>>,
    shutdown: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let Listeners { unix, tcp, tls, socket, tunnel } = listeners;
    let ours = inode(&socket);
    let (told, tokens) = watch::channel(Default::default());
    let states = handle.state.clone();
    let following = follow_tokens(states.clone(), told);
    let (snapshots, answering) = snapshots::shared(handle.clone());
    let (audit, metrics) = (handle.audit.clone(), handle.metrics.clone());
    let (tables, noting) = tables::tables(states.clone(), handle.ring.feed());
    let following = async { tokio::join!(following, noting).0 };
    let api = Api::new(handle, snapshots, tables, starting, shutdown.clone(), Gate::new(limits.given));
    let door = |transport, tls| {
        let router = router::router(api.clone(), transport, limits);
        let (tokens, states, metrics) = (tokens.clone(), states.clone(), metrics.clone());
        Door { router, limits, tokens, states, metrics, shutdown: shutdown.clone(), tls }
    };

    let on_unix = accept_all(unix, door(Transport::Unix, None));
    let transport = if tls.is_some() { Transport::Tls } else { Transport::Tcp };
    let on_tcp = tcp.map(|tcp| accept_all(tcp, door(transport, tls)));
    let on_tcp = async {
        match on_tcp {
            Some(on_tcp) => on_tcp.await,
            None => Ok(()),
        }
    };
    let inner = router::router(api, Transport::Tunnel, limits);
    let on_tunnel = async {
        match tunnel {
            Some(tunnelled) => entrance::answer_all(tunnelled, inner, shutdown.clone()).await,
            None => drop(inner),
        }
        Ok(())
    };
    let mut serving = pin!(async { tokio::try_join!(on_unix, on_tcp, on_tunnel) });
    // It ends when all routers, which hold the asking ends, are gone.
    let mut answering = pin!(answering);
    let served = tokio::select! {
        served = &mut serving => {
            // What is to be written down still.
            audit.settled().await;
            served
        }
        () = &mut answering => serving.await,
        never = following => match never {},
    };

    // A successor may have replaced the file already.
    if ours.is_some() && inode(&socket) == ours {
        let _: io::Result<()> = std::fs::remove_file(&socket);
    }
    served.map(drop)
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// A source of connections.
trait Accept {
    type Stream: Stream;

    /// The next, and how it came.
    async fn connection(&self) -> io::Result<(Self::Stream, Origin)>;
}

impl Accept for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn connection(&self) -> io::Result<(Self::Stream, Origin)> {
        let (stream, _) = self.accept().await?;
        let uid = stream.peer_cred().ok().map(|peer| peer.uid());
        Ok((stream, Origin::Unix { uid }))
    }
}

impl Accept for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn connection(&self) -> io::Result<(Self::Stream, Origin)> {
        let (stream, peer) = self.accept().await?;
        stream.set_nodelay(true)?;
        Ok((stream, Origin::Tcp { address: peer.ip(), tls: false, badge: Badge::default() }))
    }
}

async fn accept_all<L: Accept>(listener: L, door: Door) -> Result<(), ServeError> {
    let (limits, mut shutdown) = (door.limits, door.shutdown.clone());
    let (mut connections, mut hall, crowd) = (JoinSet::new(), Hall::of(limits.strangers), Crowd::default());
    let result = loop {
        let room = connections.len() < limits.connections;
        tokio::select! {
            () = stopped(&mut shutdown) => break Ok(()),
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "an API connection ended by a panic");
                }
            }
            accepted = listener.connection(), if room => match accepted {
                Ok((stream, origin)) => match (&origin, &door.tls) {
                    (Origin::Tcp { address, .. }, Some(_)) => {
                        let address: IpAddr = *address;
                        if let Some(counted) = crowd.enter(address, limits.of_one) {
                            let (guest, door) = (hall.enter(address).await, door.clone());
                            connections.spawn(async move {
                                let _counted = counted;
                                door.serve_tls(stream, address, guest).await;
                            });
                        }
                    }
                    _ => drop(connections.spawn(door.clone().serve(stream, origin))),
                },
                Err(error) if passes(&error) => {
                    tracing::warn!(%error, "cannot accept an API connection; trying again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => break Err(ServeError::Accept(error)),
            },
        }
    };
    drop(listener);
    // It holds a router.
    drop(door);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.grace, all_ended).await.is_err() {
        connections.shutdown().await;
    }
    result
}

/// True for what the next accept may not meet: a caller that went away, or a shortage.
fn passes(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let broken = [Errno::EBADF, Errno::EINVAL, Errno::ENOTSOCK, Errno::EFAULT, Errno::EOPNOTSUPP];
    !broken.iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// The agent stops.
pub(super) fn is_stopped(shutdown: &watch::Receiver<bool>) -> bool {
    // An error means that the sender is gone, and with it the agent.
    *shutdown.borrow() || shutdown.has_changed().is_err()
}

/// Returns when the agent stops.
pub(super) async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it the agent.
    let _: Result<_, watch::error::RecvError> = shutdown.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests;
