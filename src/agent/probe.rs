//! Probes: questions that the agent puts to a run from outside.
//!
//! Owns how to ask: sockets, the games' query protocols, commands. Never decides when to ask nor what an
//! answer means: the host core does. Called by the supervision loop through [`Prober`], which spawns every
//! question on the agent's other runtime, so that nothing heavy runs on the supervision thread.
//!
//! The codecs (`answer`, `dialogue`, `teeworlds`, `ddnet`, `quake3`) are pure; `udp`, `gamedig` and
//! `exec` carry them out.
//!
//! What a probe shows: an answer to `query` comes from the game's own loop; `tcp` only shows that somebody
//! listens, because the kernel accepts for a stopped process, too.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::keeper::protocol::RunId;
use crate::spec::{InstanceId, QueryProtocol};

mod answer;
mod ddnet;
mod dialogue;
mod exec;
mod gamedig;
mod quake3;
mod teeworlds;
mod udp;

pub use answer::Answer;
pub use exec::ExecRequest;

/// The largest number of threads that probes block at once: half of what a tokio runtime has.
const MAX_THREADS: usize = 256;

/// A question to one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Whose run.
    pub instance: InstanceId,
    /// Which run.
    pub run: RunId,
    /// The caller's sequence number, given back with the result.
    pub asked: u64,
    /// What to ask, and where.
    pub probe: ProbeTarget,
    /// An answer that takes longer is none. Counted from when the question is put.
    pub timeout: Duration,
}

/// What to ask, and where; everything in it resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeTarget {
    /// The game's query protocol.
    Query {
        /// Which.
        protocol: QueryProtocol,
        /// The server.
        address: SocketAddr,
    },
    /// A TCP connection that is accepted; it is closed at once.
    Tcp {
        /// The server.
        address: SocketAddr,
    },
    /// A command that exits 0.
    Exec(ExecRequest),
}

impl ProbeTarget {
    /// As metrics name it.
    fn mode(&self) -> &'static str {
        match self {
            ProbeTarget::Query { .. } => "query",
            ProbeTarget::Tcp { .. } => "tcp",
            ProbeTarget::Exec(_) => "exec",
        }
    }
}

/// What came of a [`Question`]. Every question has exactly one result, in no certain order.
#[derive(Debug)]
pub struct ProbeResult {
    /// Whose run.
    pub instance: InstanceId,
    /// Which run.
    pub run: RunId,
    /// [`Question::asked`].
    pub asked: u64,
    /// How it was asked: `query`, `tcp` or `exec`.
    pub mode: &'static str,
    /// The answer, or why there is none.
    pub outcome: Result<Answer, ProbeError>,
}

/// Why a question has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nothing came in time.
    #[error("no answer within {after:?}")]
    Timeout {
        /// [`Question::timeout`].
        after: Duration,
    },
    /// Nobody listens there.
    #[error("nobody listens on {address}")]
    Refused {
        /// Where.
        address: SocketAddr,
        /// As the kernel said it.
        source: io::Error,
    },
    /// The network or this host failed.
    #[error("cannot talk to {address}")]
    Network {
        /// Where.
        address: SocketAddr,
        /// As the kernel said it.
        source: io::Error,
    },
    /// What came is no answer of this protocol.
    #[error("the answer is malformed: {what}")]
    Malformed {
        /// In what way.
        what: String,
    },
    /// The command could not be started.
    #[error("cannot start {program:?}")]
    Start {
        /// The command's first word.
        program: String,
        /// As the kernel said it.
        source: io::Error,
    },
    /// The command was started, but cannot be watched; it was killed.
    #[error("cannot watch the command")]
    Watch {
        /// As the kernel said it.
        source: io::Error,
    },
    /// The command failed.
    #[error("the command exited with code {code}{}", said(output))]
    Exit {
        /// Its exit code.
        code: i32,
        /// The beginning of what it wrote, as one line.
        output: String,
    },
    /// The command was killed by a signal.
    #[error("the command was killed by signal {signal}{}", said(output))]
    Signalled {
        /// The signal's number.
        signal: i32,
        /// As in `Exit`.
        output: String,
    },
    /// The command took too long; it was killed.
    #[error("the command did not end within {after:?}{}", said(output))]
    Unfinished {
        /// [`Question::timeout`].
        after: Duration,
        /// As in `Exit`.
        output: String,
    },
    /// The last command of this instance is still there, perhaps beyond SIGKILL's reach; nothing was asked.
    #[error("the last command of this instance has not ended yet")]
    Underway,
    /// Too many probes that need a thread are under way; nothing was asked. Says nothing about the run.
    #[error("{MAX_THREADS} probes are under way on this host")]
    Busy,
}

impl ProbeError {
    /// The error and its causes in one line.
    pub fn reason(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

fn said(output: &str) -> String {
    if output.is_empty() { String::new() } else { format!(": {output}") }
}

/// Puts questions. Dropping it gives up those under way.
pub struct Prober {
    runtime: Handle,
    results: mpsc::Sender<ProbeResult>,
    threads: Arc<Semaphore>,
    tasks: JoinSet<()>,
    /// The last command of each instance; it is over once nobody holds the other end.
    commands: BTreeMap<InstanceId, Weak<()>>,
}

impl Prober {
    /// Questions run on `main_runtime` (multi-threaded); every result goes into `results`.
    pub fn new(main_runtime: Handle, results: mpsc::Sender<ProbeResult>) -> Self {
        Prober {
            runtime: main_runtime,
            results,
            threads: Arc::new(Semaphore::new(MAX_THREADS)),
            tasks: JoinSet::new(),
            commands: BTreeMap::new(),
        }
    }

    /// Puts a question; never blocks. Its result follows, [`Question::timeout`] after this at the latest
    /// (later only when this host is overloaded).
    pub fn ask(&mut self, question: Question) {
        while let Some(ended) = self.tasks.try_join_next() {
            if let Err(panic) = ended {
                tracing::error!(%panic, "a probe broke; its question has no result");
            }
        }
        let Question { instance, run, asked, probe, timeout } = question;
        let report = Report { results: self.results.clone(), instance, run, asked, mode: probe.mode() };
        match probe {
            ProbeTarget::Exec(request) => self.command(request, timeout, report),
            ProbeTarget::Tcp { address } => {
                self.spawn(async move { report.send(connect(address, timeout).await).await });
            }
            ProbeTarget::Query { protocol, address } => {
                let threads = self.threads.clone();
                self.spawn(async move {
                    report.send(query(protocol, address, timeout, threads).await).await;
                });
            }
        }
    }

    fn command(&mut self, request: ExecRequest, timeout: Duration, report: Report) {
        self.commands.retain(|_, command| command.strong_count() > 0);
        if self.commands.contains_key(&report.instance) {
            self.spawn(report.send(Err(ProbeError::Underway)));
            return;
        }
        let place = Arc::new(());
        self.commands.insert(report.instance.clone(), Arc::downgrade(&place));
        self.spawn(exec::ask(request, timeout, self.threads.clone(), place, report));
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, &self.runtime);
    }
}

/// Where the result of one question goes.
struct Report {
    results: mpsc::Sender<ProbeResult>,
    instance: InstanceId,
    run: RunId,
    asked: u64,
    mode: &'static str,
}

impl Report {
    async fn send(self, outcome: Result<Answer, ProbeError>) {
        let Report { results, instance, run, asked, mode } = self;
        // Without a receiver the agent is ending, and nobody wants to know.
        let _ = results.send(ProbeResult { instance, run, asked, mode, outcome }).await;
    }
}

async fn query(
    protocol: QueryProtocol,
    server: SocketAddr,
    timeout: Duration,
    threads: Arc<Semaphore>,
) -> Result<Answer, ProbeError> {
    let random = || fastrand::u64(..);
    match protocol {
        QueryProtocol::Teeworlds => udp::ask(server, teeworlds::Teeworlds::new(random()), timeout).await,
        QueryProtocol::Ddnet => udp::ask(server, ddnet::Ddnet::new(random()), timeout).await,
        QueryProtocol::Quake3 => udp::ask(server, quake3::Quake3, timeout).await,
        QueryProtocol::Valve => gamedig::valve(server, timeout, threads).await,
        QueryProtocol::Minecraft => gamedig::minecraft(server, timeout, threads).await,
    }
}

async fn connect(server: SocketAddr, timeout: Duration) -> Result<Answer, ProbeError> {
    match timeout_at(Instant::now() + timeout, TcpStream::connect(server)).await {
        Ok(Ok(_)) => Ok(Answer::default()),
        Ok(Err(error)) => Err(heard(server, error)),
        Err(_) => Err(ProbeError::Timeout { after: timeout }),
    }
}

/// What the kernel said about `address`.
fn heard(address: SocketAddr, source: io::Error) -> ProbeError {
    match source.kind() {
        io::ErrorKind::ConnectionRefused => ProbeError::Refused { address, source },
        _ => ProbeError::Network { address, source },
    }
}

/// Leave to block a thread.
async fn thread(threads: Arc<Semaphore>, deadline: Instant) -> Result<OwnedSemaphorePermit, ProbeError> {
    match timeout_at(deadline, threads.acquire_owned()).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(_)) | Err(_) => Err(ProbeError::Busy),
    }
}
