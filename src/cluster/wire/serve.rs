//! Answering other agents: the listener, the handshake, one task a request.
//!
//! Owns the listener and its connections; they end with [`Server::run`]. Never knows what a request means:
//! that is the [`Service`]'s. Bounded: handshakes, connections, requests at work on each, bytes of a snapshot,
//! the time for each step, and how long a connection may be quiet. A connection counts once its handshake is over:
//! strangers keep nobody out.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::codec::{decode, encode};
use super::dial::is_of_tls;
use super::frame::{Frame, Kind};
use super::hall::Hall;
use super::hello::{Hello, Ours, Purpose, Refusal, Welcome};
use super::line::IDLE;
use super::outlet::Outlet;
use super::stream::{Duplex, Reader, Writer, split};
use crate::cluster::tls::Tls;
use crate::spec::HostName;

/// Connections at once: three of each of 500 hosts, and some of peers.
const MAX_CONNECTIONS: usize = 1536;
/// As many more are for peers alone, so that hosts never keep peers out.
const PEERS: usize = 128;
/// Handshakes at once.
const MAX_GREETINGS: usize = 128;
/// A connection on which nothing was asked and nothing at work for this long is let go. Whoever dialled closes it much
/// earlier; one that lost its power says nothing any more, and TCP alone would keep its place for ever.
const QUIET: Duration = IDLE.saturating_mul(3);
/// Requests of one connection at work at once.
const MAX_REQUESTS: usize = 64;
/// From the accept to the end of the handshake.
const GREETING: Duration = Duration::from_secs(3);
/// The largest snapshot.
pub const MAX_SNAPSHOT: usize = 1 << 30;
/// The largest of whoever is not known to be a peer; one at a time is taken.
const MAX_UNPROVEN: usize = 64 << 20;
/// Within this the next part of a snapshot must come.
const PART: Duration = Duration::from_secs(10);

/// What a host is that speaks as a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peerage {
    /// A peer.
    Peer,
    /// There is nothing yet to tell it by. It is heard; little is taken from it.
    Unproven,
    /// None.
    Stranger,
}

/// Who answers.
pub trait Service: Send + Sync + 'static {
    /// Whom a hello is held against, as of now.
    fn ours(&self) -> Ours;

    /// Whether the host may speak as a peer, as of now.
    fn peerage(&self, host: &HostName) -> Peerage;

    /// The answer to a request, or why there is none. The outlet tells when that has gone out.
    fn answer(
        &self,
        from: &Hello,
        kind: Kind,
        body: Vec<u8>,
        outlet: &Outlet,
    ) -> impl Future<Output = Result<Vec<u8>, String>> + Send;

    /// Takes a whole snapshot: its head and its bytes.
    fn take_snapshot(
        &self,
        from: &Hello,
        head: Vec<u8>,
        bytes: Vec<u8>,
    ) -> impl Future<Output = Result<Vec<u8>, String>> + Send;
}

/// A listener that is not served yet.
pub struct Server {
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
}

impl Server {
    /// Listens on `host:port`.
    pub async fn bind(address: &str, tls: Option<Arc<Tls>>) -> io::Result<Server> {
        Ok(Server { listener: TcpListener::bind(address).await?, tls })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until it is dropped.
    pub async fn run<S: Service>(self, service: Arc<S>) {
        let mut connections = JoinSet::new();
        let rooms = Arc::new(Rooms::default());
        let mut hall = Hall::of(MAX_GREETINGS);
        let mut distrusts = self.tls.as_ref().map(|tls| tls.distrusts());
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                // Whoever may come again, comes again.
                () = distrust(&mut distrusts) => {
                    connections.abort_all();
                    continue;
                }
            };
            let (socket, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let guest = hall.enter(from.ip()).await;
            let (service, tls, rooms) = (service.clone(), self.tls.clone(), rooms.clone());
            connections.spawn(async move {
                let greeting = tokio::time::timeout(GREETING, greet(&*service, tls, socket, &rooms));
                let greeted = guest.while_unknown(greeting).await;
                if let Some(Ok(Some((hello, mut reader, mut writer, _room)))) = greeted {
                    match hello.purpose {
                        Purpose::Snapshot => {
                            let taken =
                                receive_snapshot(&*service, &rooms.unproven, &hello, &mut reader).await;
                            if let Some(answer) = taken {
                                let _ = writer.send(&[answer]).await;
                                writer.close().await;
                            }
                        }
                        _ => answer_requests(service, hello, reader, writer, QUIET).await,
                    }
                }
            });
        }
    }
}

/// Until a CA counts no more; without certificates none does.
pub(super) async fn distrust(distrusts: &mut Option<watch::Receiver<u64>>) {
    if let Some(distrusts) = distrusts
        && distrusts.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Room for connections whose handshake is over.
struct Rooms {
    all: Arc<Semaphore>,
    peers: Arc<Semaphore>,
    /// For a snapshot of whoever is not known to be a peer.
    unproven: Semaphore,
}

impl Default for Rooms {
    fn default() -> Rooms {
        let room = |most| Arc::new(Semaphore::new(most));
        Rooms { all: room(MAX_CONNECTIONS), peers: room(PEERS), unproven: Semaphore::new(1) }
    }
}

impl Rooms {
    fn take(&self, purpose: Purpose) -> Option<OwnedSemaphorePermit> {
        let own = self.peers.clone().try_acquire_owned().ok().filter(|_| purpose.is_for_peers());
        own.or_else(|| self.all.clone().try_acquire_owned().ok())
    }
}

/// The handshake; `None` when the connection is over.
async fn greet<S: Service>(
    service: &S,
    tls: Option<Arc<Tls>>,
    socket: TcpStream,
    rooms: &Rooms,
) -> Option<(Hello, Reader, Writer, OwnedSemaphorePermit)> {
    socket.set_nodelay(true).ok()?;
    let (socket, certificate): (Box<dyn Duplex>, _) = match &tls {
        None => (Box::new(socket), None),
        Some(tls) => match tls.accept(socket).await {
            Ok((socket, certificate)) => (Box::new(socket), Some(certificate)),
            Err(error) if !is_of_tls(&error) => {
                tracing::debug!(%error, "a connection broke at the handshake");
                return None;
            }
            Err(error) => {
                tracing::info!(%error, "somebody without a certificate of this cluster's CA was refused");
                return None;
            }
        },
    };
    let (mut reader, mut writer) = split(socket);
    let first = reader.next().await.ok().filter(|frame| frame.kind == Kind::Hello)?;
    let hello: Hello = decode(&first.body).ok()?;
    let ours = service.ours();
    let judged = match &certificate {
        Some(certificate) if !certificate.names(&hello.host) => Err(Refusal::Certificate(hello.host.clone())),
        _ => ours.judge(&hello).and_then(|welcome| match service.peerage(&hello.host) {
            Peerage::Stranger if hello.purpose.is_for_peers() => {
                Err(Refusal::Stranger { host: ours.host.clone(), stranger: hello.host.clone() })
            }
            _ => Ok(welcome),
        }),
    };
    let judged = judged.and_then(|welcome| {
        let room = rooms.take(hello.purpose).ok_or_else(|| Refusal::Busy(ours.host.clone()))?;
        Ok((welcome, room))
    });
    if let Err(refusal) = &judged {
        tracing::info!(from = %hello.host, %refusal, "a connection was refused");
    }
    let (judged, room) = match judged {
        Ok((welcome, room)) => (Ok(welcome), Some(room)),
        Err(refusal) => (Err(refusal), None),
    };
    writer.send(&[verdict(judged)?]).await.ok()?;
    let Some(room) = room else {
        writer.close().await;
        return None;
    };
    reader.greeted();
    Some((hello, reader, writer, room))
}

fn verdict(judged: Result<Welcome, Refusal>) -> Option<Frame> {
    let (kind, body) = match judged {
        Ok(welcome) => (Kind::Welcome, encode(&welcome)),
        Err(refusal) => (Kind::Refusal, encode(&refusal)),
    };
    Some(Frame { kind, request: 0, ttl_ms: 0, body: body.ok()? })
}

/// Until the other side hangs up, or is quiet for too long.
async fn answer_requests<S: Service>(
    service: Arc<S>,
    hello: Hello,
    mut reader: Reader,
    writer: Writer,
    quiet: Duration,
) {
    let hello = Arc::new(hello);
    let (answers, answered) = mpsc::channel(MAX_REQUESTS);
    let room = Arc::new(Semaphore::new(MAX_REQUESTS));
    let mut tasks = JoinSet::new();
    tasks.spawn(send_answers(writer, answered));
    loop {
        // Besides the requests there is the one that sends.
        let at_work = tasks.len() > 1;
        let frame = tokio::select! {
            // What is no frame ends the connection; whoever dialled dials again.
            frame = reader.next() => match frame {
                Ok(frame) => frame,
                Err(_) => return,
            },
            Some(_) = tasks.join_next(), if at_work => continue,
            () = tokio::time::sleep(quiet), if !at_work => return,
        };
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let (service, hello, answers) = (service.clone(), hello.clone(), answers.clone());
        tasks.spawn(async move {
            let ttl = Duration::from_millis(u64::from(frame.ttl_ms));
            let outlet = Outlet::default();
            let answer = service.answer(&hello, frame.kind, frame.body, &outlet);
            // After the deadline nobody waits any more.
            if let Ok(answer) = tokio::time::timeout(ttl, answer).await {
                let _ = answers.send((reply(frame.request, answer), (permit, outlet))).await;
            }
        });
    }
}

fn reply(request: u64, answer: Result<Vec<u8>, String>) -> Frame {
    match answer {
        Ok(body) => Frame::answer(request, body),
        Err(why) => Frame { kind: Kind::Failure, request, ttl_ms: 0, body: why.into_bytes() },
    }
}

async fn send_answers(
    mut writer: Writer,
    mut answers: mpsc::Receiver<(Frame, (OwnedSemaphorePermit, Outlet))>,
) {
    let mut batch = Vec::new();
    while answers.recv_many(&mut batch, MAX_REQUESTS).await > 0 {
        let (frames, held): (Vec<Frame>, Vec<_>) = batch.drain(..).unzip();
        if writer.send(&frames).await.is_err() {
            return;
        }
        // Only now is there room for as many requests.
        held.iter().for_each(|(_, outlet)| outlet.out());
    }
}

/// The answer to a snapshot; `None` when it does not come to its end.
async fn receive_snapshot<S: Service>(
    service: &S,
    unproven: &Semaphore,
    hello: &Hello,
    reader: &mut Reader,
) -> Option<Frame> {
    let proven = service.peerage(&hello.host) == Peerage::Peer;
    let most = if proven { MAX_SNAPSHOT } else { MAX_UNPROVEN };
    let _room = if proven { None } else { Some(unproven.try_acquire().ok()?) };
    let mut head = None;
    let mut bytes = Vec::new();
    while let Ok(Ok(frame)) = tokio::time::timeout(PART, reader.next()).await {
        match (frame.kind, &head) {
            (Kind::SnapshotHead, None) => head = Some(frame.body),
            (Kind::SnapshotPart, Some(_)) if bytes.len() + frame.body.len() > most => return None,
            (Kind::SnapshotPart, Some(_)) if !frame.body.is_empty() => bytes.extend(frame.body),
            // The empty part is the last one.
            (Kind::SnapshotPart, Some(_)) => {
                let answer = service.take_snapshot(hello, head.take().unwrap_or_default(), bytes).await;
                return Some(reply(frame.request, answer));
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests;
