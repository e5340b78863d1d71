//! Calls to another agent: a request, its answer, a deadline.
//!
//! A [`Line`] is one connection for one purpose, dialled when it is needed and again when it breaks. Owns
//! the requests that wait for an answer. A full queue is [`CallError::Busy`], never a wait; a connection on
//! which nothing is heard although something is due is given up, because TCP alone would wait for minutes.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::dial::{DialError, Dialer, Target};
use super::frame::{Frame, Kind};
use super::hello::Purpose;
use super::serve::distrust;
use super::stream::{Reader, Writer};

/// Requests that wait to be sent.
const QUEUE: usize = 256;
/// Requests sent at once.
const BATCH: usize = 32;
/// Between two attempts to dial.
const REDIAL: Duration = Duration::from_millis(50);
/// A connection without a request for this long is closed.
pub(super) const IDLE: Duration = Duration::from_secs(30);
/// How often silence and idleness are looked for.
const LOOK: Duration = Duration::from_millis(250);

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The queue is full.
    #[error("too many requests wait for this host")]
    Busy,
    /// No connection; the request was not carried out.
    #[error("{0}")]
    Unreachable(String),
    /// The connection ended before the answer: nobody knows whether the request was carried out.
    #[error("the connection broke before the answer")]
    Broken,
    /// No answer in time: nobody knows whether the request was carried out.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// The other side could not answer.
    #[error("{0}")]
    Failed(String),
}

struct Call {
    kind: Kind,
    body: Vec<u8>,
    ttl: Duration,
    reply: Reply,
}

/// The asking end. Cheap to clone; the connection ends with the last clone.
#[derive(Clone)]
pub struct Line {
    calls: mpsc::Sender<Call>,
}

impl Line {
    /// A line to `target`. `connected` hears of each connection that comes to be after a failed attempt.
    pub fn new(dialer: Dialer, target: Target, purpose: Purpose, connected: mpsc::Sender<Target>) -> Line {
        let (calls, queue) = mpsc::channel(QUEUE);
        // Ends when the last asking end is gone.
        tokio::spawn(Operator { dialer, target, purpose, queue, connected }.run());
        Line { calls }
    }

    /// Asks, and waits for at most `ttl`.
    pub async fn call(&self, kind: Kind, body: Vec<u8>, ttl: Duration) -> Result<Vec<u8>, CallError> {
        let (reply, answer) = oneshot::channel();
        let queued = self.calls.try_send(Call { kind, body, ttl, reply });
        queued.map_err(|_| CallError::Busy)?;
        match tokio::time::timeout(ttl, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(CallError::Broken),
            Err(_) => Err(CallError::Late(ttl)),
        }
    }
}

struct Operator {
    dialer: Dialer,
    target: Target,
    purpose: Purpose,
    queue: mpsc::Receiver<Call>,
    connected: mpsc::Sender<Target>,
}

type Reply = oneshot::Sender<Result<Vec<u8>, CallError>>;

/// The asking of one connection.
struct Waiting {
    /// Sent, and when; without an answer yet.
    calls: BTreeMap<u64, (Instant, Reply)>,
    /// When anything was asked last.
    asked: Instant,
    /// When anything was heard last.
    heard: Instant,
}

type Pending = Mutex<Waiting>;

impl Operator {
    async fn run(mut self) {
        let mut failed = false;
        let mut distrusts = self.dialer.tls().map(|tls| tls.distrusts());
        while let Some(first) = self.queue.recv().await {
            // What counts now is what it is dialled by.
            distrusts.iter_mut().for_each(watch::Receiver::mark_unchanged);
            match self.dialer.dial(&self.target, self.purpose).await {
                Ok((reader, writer, _)) => {
                    if std::mem::take(&mut failed) {
                        // Whoever listens has enough to do already when the queue is full.
                        let _ = self.connected.try_send(self.target.clone());
                    }
                    tokio::select! {
                        () = self.talk(reader, writer, first) => {}
                        () = distrust(&mut distrusts) => {}
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut failed, true) {
                        self.tell(&error);
                    }
                    let why = CallError::Unreachable(error.to_string());
                    let _ = first.reply.send(Err(why.clone()));
                    while let Ok(call) = self.queue.try_recv() {
                        let _ = call.reply.send(Err(why.clone()));
                    }
                    tokio::time::sleep(REDIAL).await;
                }
            }
        }
    }

    fn tell(&self, error: &DialError) {
        let host = &self.target.host;
        match error {
            DialError::Refused(_) | DialError::Tls { .. } => tracing::warn!(%host, %error, "refused"),
            _ => tracing::info!(%host, %error, "not reachable"),
        }
    }

    async fn talk(&mut self, reader: Reader, writer: Writer, first: Call) {
        let now = Instant::now();
        let pending = Pending::new(Waiting { calls: BTreeMap::new(), asked: now, heard: now });
        let silence = match self.purpose {
            Purpose::Urgent => Duration::from_secs(1),
            _ => Duration::from_secs(10),
        };
        // Dropping `pending` tells all who still wait that the connection broke.
        tokio::select! {
            // After this process stood still, what has arrived is heard before silence is judged.
            biased;
            () = receive(reader, &pending) => {}
            () = send(&mut self.queue, writer, first, &pending) => {}
            () = spent(&pending, silence) => {}
        }
    }
}

fn locked(pending: &Pending) -> MutexGuard<'_, Waiting> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn send(queue: &mut mpsc::Receiver<Call>, mut writer: Writer, first: Call, pending: &Pending) {
    let mut request = 0;
    let mut batch = vec![first];
    loop {
        let mut frames = Vec::with_capacity(batch.len());
        for call in batch.drain(..).filter(|call| !call.reply.is_closed()) {
            request += 1;
            let ttl_ms = u32::try_from(call.ttl.as_millis()).unwrap_or(u32::MAX);
            frames.push(Frame { kind: call.kind, request, ttl_ms, body: call.body });
            let (now, mut pending) = (Instant::now(), locked(pending));
            pending.asked = now;
            pending.calls.insert(request, (now, call.reply));
        }
        if !frames.is_empty() && writer.send(&frames).await.is_err() {
            return;
        }
        if queue.recv_many(&mut batch, BATCH).await == 0 {
            return;
        }
    }
}

/// Until nothing is heard although an answer is due, or nothing is asked any more. By its own clock: whether the line
/// is busy, or what is sent finds no room in the socket, says nothing of the other side.
async fn spent(pending: &Pending, silence: Duration) {
    loop {
        tokio::time::sleep(LOOK).await;
        let mut pending = locked(pending);
        let waited = pending.calls.values().next().map(|(since, _)| since.elapsed());
        // An answer drops its entry; what nobody waits for is dropped when it is old. One that takes long
        // says nothing of the connection as long as others are answered.
        if waited.is_some_and(|waited| waited > silence) && pending.heard.elapsed() > silence {
            return;
        }
        pending.calls.retain(|_, (since, reply)| !reply.is_closed() || since.elapsed() <= silence);
        if waited.is_none() && pending.asked.elapsed() > IDLE {
            return;
        }
    }
}

async fn receive(mut reader: Reader, pending: &Pending) {
    while let Ok(frame) = reader.next().await {
        let asked = {
            let mut pending = locked(pending);
            pending.heard = Instant::now();
            pending.calls.remove(&frame.request)
        };
        let Some((_, reply)) = asked else { continue };
        let answer = match frame.kind {
            Kind::Answer => Ok(frame.body),
            Kind::Failure => Err(CallError::Failed(String::from_utf8_lossy(&frame.body).into_owned())),
            _ => return,
        };
        let _ = reply.send(answer);
    }
}
