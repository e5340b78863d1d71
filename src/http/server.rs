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

use super::audit::{self, Audit};
use super::auth::{Badge, Origin};
use super::connection::{Crowd, Door, Stream, follow_tokens};
use super::entrance;
use super::listen::Listeners;
use super::router::{self, Api, Transport};
use super::snapshots;
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
    let (ledger, writing) = audit::file::open(handle.audit.clone(), handle.metrics.clone());
    let api = Api::new(handle, snapshots, starting, shutdown.clone(), Audit::new(ledger));
    let door = |transport, tls| {
        let router = router::router(api.clone(), transport, limits);
        let (tokens, states) = (tokens.clone(), states.clone());
        Door { router, limits, tokens, states, shutdown: shutdown.clone(), tls }
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
    let mut behind = pin!(async { tokio::join!(answering, writing) });
    let served = tokio::select! {
        served = &mut serving => {
            // What is to be written down still.
            let _ = tokio::time::timeout(limits.grace, behind.as_mut()).await;
            served
        }
        _ = &mut behind => serving.await,
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

/// Returns when the agent stops.
pub(super) async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it the agent.
    let _: Result<_, watch::error::RecvError> = shutdown.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::handle::HostRequest;
    use crate::agent::ring::{Alone, Ring};
    use crate::state::State;
    use std::sync::Arc;
    use std::time::Instant;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::sync::{broadcast, mpsc};

    const STATUS: &[u8] = b"GET /v1/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    const HEALTH: &[u8] = b"GET /v1/healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

    struct Served {
        dir: tempfile::TempDir,
        // Kept, and never read: an agent that does not answer.
        unanswered: mpsc::Receiver<HostRequest>,
        shutdown: watch::Sender<bool>,
        served: tokio::task::JoinHandle<Result<(), ServeError>>,
    }

    async fn start(limits: Limits) -> Served {
        let dir = tempfile::tempdir().unwrap();
        let (requests, unanswered) = mpsc::channel(8);
        let handle = Handle {
            host: "alpha".parse().unwrap(),
            cluster: "test".into(),
            started_at: String::new(),
            logs: dir.path().into(),
            requests,
            ring: Ring::Alone(Alone::to(mpsc::channel(1).0, "alpha".parse().unwrap())),
            state: watch::channel(Arc::new(State::default())).1,
            events: broadcast::channel(1).0,
            metrics: Arc::default(),
            audit: dir.path().join("audit.jsonl"),
        };
        let listeners = Listeners::bind(&dir.path().join("api.sock"), 0o600, None, None).await.unwrap();
        let (shutdown, stop) = watch::channel(false);
        let served = tokio::spawn(serve_within(limits, handle, listeners, watch::channel(None).1, stop));
        Served { dir, unanswered, shutdown, served }
    }

    impl Served {
        async fn connect(&self) -> UnixStream {
            UnixStream::connect(self.dir.path().join("api.sock")).await.unwrap()
        }
    }

    async fn rest(mut stream: UnixStream) -> String {
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        tokio::time::timeout(Duration::from_secs(10), read).await.expect("the connection ends").unwrap();
        answer
    }

    #[tokio::test]
    async fn an_agent_that_does_not_answer_is_a_timeout() {
        let server = start(Limits { request: Duration::from_millis(50), ..Limits::DEFAULT }).await;
        let mut stream = server.connect().await;
        stream.write_all(STATUS).await.unwrap();
        let answer = rest(stream).await;
        assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
        assert!(answer.contains("\"type\":\"timeout\""), "{answer}");
    }

    #[tokio::test]
    async fn a_half_sent_head_holds_a_place_for_a_while_only() {
        let head = Duration::from_millis(300);
        let server = start(Limits { connections: 1, head, ..Limits::DEFAULT }).await;
        let began = Instant::now();
        let mut slow = server.connect().await;
        slow.write_all(b"GET /v1/hea").await.unwrap();
        let mut next = server.connect().await;
        next.write_all(HEALTH).await.unwrap();
        let answer = rest(next).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            began.elapsed() >= head,
            "the second was served beside the first after {:?}",
            began.elapsed()
        );
        assert_eq!(rest(slow).await, "");
    }

    #[tokio::test]
    async fn a_reader_that_takes_no_answer_holds_a_place_for_a_while_only() {
        let stall = Duration::from_millis(300);
        let server = start(Limits { connections: 1, stall, ..Limits::DEFAULT }).await;
        let mut slow = server.connect().await;
        let ask = b"GET /v1/healthz HTTP/1.1\r\nhost: x\r\n\r\n";
        // As many questions as fit, and no answer is read.
        let many = async {
            loop {
                slow.write_all(ask).await?;
            }
        };
        let ended: io::Result<()> = tokio::select! {
            ended = many => ended,
            () = tokio::time::sleep(Duration::from_secs(10)) => panic!("it is never given up"),
        };
        assert!(ended.is_err());
        let mut next = server.connect().await;
        next.write_all(HEALTH).await.unwrap();
        let answer = rest(next).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    #[tokio::test]
    async fn shutdown_waits_for_answers_and_not_for_ever() {
        let server = start(Limits { grace: Duration::from_millis(100), ..Limits::DEFAULT }).await;
        let mut stream = server.connect().await;
        stream.write_all(STATUS).await.unwrap();
        // Its request must have been read, or it would be closed as an idle one.
        tokio::time::timeout(Duration::from_secs(10), async {
            while server.unanswered.is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the request reaches the agent");
        server.shutdown.send(true).unwrap();
        let served = tokio::time::timeout(Duration::from_secs(10), server.served).await;
        served.expect("it ends although an answer is missing").unwrap().unwrap();
        assert_eq!(rest(stream).await, "");
        assert!(!server.dir.path().join("api.sock").exists());
    }
}
