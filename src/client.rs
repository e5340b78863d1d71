//! The library for game processes: the process API from the inside, for a game's tick loop. Tools outside find and
//! watch runs by [`directory`].
//!
//! Owns one connection to the agent of this host. Nothing here blocks but [`Client::find`] and
//! [`Client::launch`], which take a timeout: call [`Client::heartbeat`] and [`Client::poll`] in every tick, as
//! often as you like. When the agent restarts, the connection comes back by itself and tells the new agent
//! how far the process is. No threads, no dependencies but serde and an HTTP parser; docs/protocol.md is the protocol.
//!
//! ```no_run
//! use bigbrother::client::{Client, Incoming, Status};
//!
//! # fn main() -> Result<(), bigbrother::client::ConnectError> {
//! let mut agent = Client::from_env()?; // None outside Big Brother
//! if let Some(agent) = &mut agent {
//!     agent.hello("zone", "1.4.2");
//!     agent.ready();
//! }
//! loop {
//!     // ... one tick of the game ...
//!     let Some(agent) = &mut agent else { continue };
//!     agent.heartbeat();
//!     agent.status(&Status { players: Some(3), ..Status::default() });
//!     for said in agent.poll() {
//!         if let Incoming::Shutdown(shutdown) = said {
//!             println!("ending within {} ms: {}", shutdown.deadline_ms, shutdown.reason);
//!             agent.stopping();
//!             return Ok(());
//!         }
//!     }
//! }
//! # }
//! ```
//!
//! The Rust runtime ignores SIGPIPE, so that a lost connection is an error here and no death. A program whose
//! `main` is not Rust's must ignore SIGPIPE itself (Big Brother starts processes so, unless told otherwise).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::spec::{InstanceId, ProcessName};

pub mod directory;
pub(crate) mod event_stream;
pub mod line;
mod link;
pub mod message;

pub use message::{
    Fault, Hello, Label, Launch, Listing, Phase, Player, Port, Shutdown, Status, WatchChange, WatchEvent,
    Welcome,
};

use link::{Heard, Link};
use message::{Find, Found, Launched, Watch};

/// Heartbeats are this often when the environment does not say.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);

/// The shortest time between two statuses.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// Messages that wait for [`Client::poll`].
const MAX_WAITING: usize = 10_000;

/// What [`Client::poll`] gives.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// The agent's answer to hello: who this process is.
    Welcome(Welcome),
    /// Save the world and end before the deadline.
    Shutdown(Shutdown),
    /// Something watched has changed; after every (re)connection a snapshot comes first.
    Watch(WatchEvent),
    /// A message was refused; for the log.
    Refused(Fault),
    /// The connection is back; the agent knows again how far the process is.
    Reconnected,
}

/// There is no connection to the agent.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to Big Brother's process socket {path}")]
pub struct ConnectError {
    /// `$BIGBROTHER_SOCKET`
    pub path: PathBuf,
    /// Why.
    pub source: std::io::Error,
}

/// A question got no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Not in time.
    #[error("no answer within {0:?}: the agent is busy or restarting; ask again")]
    Timeout(Duration),
    /// There is no connection just now.
    #[error("the connection to the agent is lost: it comes back by itself, ask again then")]
    Lost,
    /// The agent refused.
    #[error("the agent refused")]
    Refused(#[from] Fault),
    /// The answer has another shape than this version of the library knows.
    #[error("cannot read the agent's answer")]
    Answer(#[source] serde_json::Error),
}

/// See the module.
#[derive(Debug)]
pub struct Client {
    link: Link,
    hello: Hello,
    status: Option<Status>,
    status_told: bool,
    last_status: Option<Instant>,
    watched: BTreeSet<ProcessName>,
    interval: Duration,
    last_beat: Option<Instant>,
    last_id: u64,
    greeting: Option<u64>,
    answers: BTreeMap<u64, Result<serde_json::Value, Fault>>,
    awaited: Option<u64>,
    waiting: VecDeque<Incoming>,
}

impl Client {
    /// Connects to `$BIGBROTHER_SOCKET`; `None` when it is not set: the process runs without Big Brother.
    pub fn from_env() -> Result<Option<Client>, ConnectError> {
        let Some(path) = std::env::var_os("BIGBROTHER_SOCKET") else { return Ok(None) };
        let interval = std::env::var("BIGBROTHER_HEARTBEAT_MS").ok().and_then(|ms| ms.parse().ok());
        let interval = interval.filter(|ms| *ms > 0).map_or(DEFAULT_INTERVAL, Duration::from_millis);
        Client::connect(Path::new(&path), interval).map(Some)
    }

    /// Connects to a process socket; heartbeats go out about once an interval (the agent's own, once it has
    /// answered hello).
    pub fn connect(path: &Path, interval: Duration) -> Result<Client, ConnectError> {
        let link = Link::connect(path).map_err(|source| ConnectError { path: path.to_owned(), source })?;
        let hello = Hello {
            client: "bigbrother-rs".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: Phase::Starting,
        };
        Ok(Client {
            link,
            hello,
            status: None,
            status_told: true,
            last_status: None,
            watched: BTreeSet::new(),
            interval,
            last_beat: None,
            last_id: 0,
            greeting: None,
            answers: BTreeMap::new(),
            awaited: None,
            waiting: VecDeque::new(),
        })
    }

    /// Says who speaks; the answer is an [`Incoming::Welcome`]. A process that has said hello is asked to end
    /// by [`Incoming::Shutdown`] instead of a signal.
    pub fn hello(&mut self, client: &str, version: &str) {
        self.hello.client = client.to_owned();
        self.hello.version = version.to_owned();
        self.greet();
    }

    fn greet(&mut self) {
        let id = self.next_id();
        self.greeting = Some(id);
        self.link.request(Some(id), "hello", Some(&self.hello));
    }

    /// The process takes players now.
    pub fn ready(&mut self) {
        self.hello.state = Phase::Ready;
        self.tell("ready");
    }

    /// The process takes no new players and will end when the last one has left.
    pub fn draining(&mut self) {
        self.hello.state = Phase::Draining;
        self.tell("draining");
    }

    /// The process is about to end by itself.
    pub fn stopping(&mut self) {
        self.tell("stopping");
    }

    fn tell(&mut self, method: &str) {
        self.link.request::<()>(None, method, None);
    }

    /// The process lives. Call it from the loop that must not hang, in every tick: one message an interval
    /// goes out, and one at once when [`Client::poll`] has read a ping of the agent, to which nothing but this
    /// call is an answer. Never waits; with an agent that does not read, the beat is left out.
    pub fn heartbeat(&mut self) {
        let now = Instant::now();
        // A loop that ticks once an interval must not lose every other beat to jitter.
        if self.last_beat.is_some_and(|last| now.duration_since(last) < self.interval * 3 / 4) {
            return;
        }
        self.reconnect(now);
        self.tell_status(now);
        if self.link.beat() {
            self.last_beat = Some(now);
        }
    }

    /// Tells facts about the process, when they differ and at most once a second (the newest ones follow
    /// with a later call). Replaces the earlier status whole.
    pub fn status(&mut self, status: &Status) {
        if self.status.as_ref() != Some(status) {
            self.status = Some(status.clone());
            self.status_told = false;
        }
        self.tell_status(Instant::now());
    }

    fn tell_status(&mut self, now: Instant) {
        let early = self.last_status.is_some_and(|last| now.duration_since(last) < STATUS_PAUSE);
        let Some(status) = self.status.as_ref().filter(|_| !self.status_told && !early) else { return };
        self.link.request(None, "status", Some(status));
        self.status_told = true;
        self.last_status = Some(now);
    }

    /// Asks to be told of every change to the runs of a process, also after a reconnection. At most
    /// [`message::MAX_WATCHES`] processes at once; one more is an [`Incoming::Refused`].
    pub fn watch(&mut self, process: &ProcessName) {
        self.watched.insert(process.clone());
        self.send_watch(process);
    }

    fn send_watch(&mut self, process: &ProcessName) {
        let id = self.next_id();
        self.link.request(Some(id), "watch", Some(&Watch { process: process.clone() }));
    }

    /// Asks to be told no more. Changes that are on their way may still come.
    pub fn unwatch(&mut self, process: &ProcessName) {
        if self.watched.remove(process) {
            self.link.request(None, "unwatch", Some(&Watch { process: process.clone() }));
        }
    }

    /// What the agent has said since the last call. Never waits; keeps the connection going.
    pub fn poll(&mut self) -> Vec<Incoming> {
        let now = Instant::now();
        self.reconnect(now);
        self.tell_status(now);
        self.read(None);
        self.waiting.drain(..).collect()
    }

    /// The runs of a process (only those that take players, if `ready`). Waits for at most `timeout`.
    pub fn find(
        &mut self,
        process: &ProcessName,
        ready: bool,
        timeout: Duration,
    ) -> Result<Vec<Listing>, AskError> {
        let found: Found = self.ask("find", &Find { process: process.clone(), ready }, timeout)?;
        Ok(found.listings)
    }

    /// Starts an instance of an on-demand process. Waits for at most `timeout`; with a `key`, trying again
    /// after a timeout gives the same instance.
    pub fn launch(&mut self, launch: &Launch, timeout: Duration) -> Result<InstanceId, AskError> {
        let launched: Launched = self.ask("launch", launch, timeout)?;
        Ok(launched.instance)
    }

    fn ask<T: serde::de::DeserializeOwned>(
        &mut self,
        method: &str,
        params: &impl serde::Serialize,
        timeout: Duration,
    ) -> Result<T, AskError> {
        let end = Instant::now() + timeout;
        self.reconnect(Instant::now());
        let id = self.next_id();
        self.link.request(Some(id), method, Some(params));
        self.awaited = Some(id);
        let answer = loop {
            if let Some(answer) = self.answers.remove(&id) {
                break Some(answer);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.link.connected() {
                break None;
            }
            self.read(Some(left));
        };
        self.awaited = None;
        match answer {
            Some(answer) => serde_json::from_value(answer?).map_err(AskError::Answer),
            None if self.link.connected() => Err(AskError::Timeout(timeout)),
            None => Err(AskError::Lost),
        }
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn reconnect(&mut self, now: Instant) {
        if self.link.connected() || !self.link.try_again(now) {
            return;
        }
        self.greet();
        self.last_beat = None;
        self.status_told = self.status.is_none();
        self.last_status = None;
        for process in self.watched.clone() {
            self.send_watch(&process);
        }
        self.waiting.push_back(Incoming::Reconnected);
    }

    fn read(&mut self, wait: Option<Duration>) {
        self.tidy();
        for line in self.link.read(wait) {
            match serde_json::from_slice::<Heard>(&line) {
                Ok(heard) => self.hear(heard),
                Err(e) => {
                    let fault =
                        Fault::new(Fault::PARSE, format!("the agent's message is not understood: {e}"));
                    self.waiting.push_back(Incoming::Refused(fault));
                }
            }
        }
    }

    fn hear(&mut self, heard: Heard) {
        match (heard.method.as_deref(), heard.id) {
            // The game answers, with its next tick: a beat from here would say that it ticks when it only reads.
            (Some("ping"), _) => self.last_beat = None,
            (Some("shutdown"), _) => self.hear_params(heard.params, Incoming::Shutdown),
            (Some("watch"), _) => self.hear_params(heard.params, Incoming::Watch),
            // A method of a later version: nothing that this one could do.
            (Some(_), _) => (),
            (None, id) => {
                let answer = heard.error.map_or(Ok(heard.result), Err);
                if id.is_some() && id == self.awaited {
                    self.answers.extend(id.map(|id| (id, answer)));
                } else if id.is_some() && id == self.greeting {
                    self.greeting = None;
                    match answer {
                        Ok(welcome) => self.hear_params(welcome, Incoming::Welcome),
                        Err(fault) => self.waiting.push_back(Incoming::Refused(fault)),
                    }
                } else if let Err(fault) = answer {
                    self.waiting.push_back(Incoming::Refused(fault));
                }
            }
        }
    }

    fn hear_params<T: serde::de::DeserializeOwned>(
        &mut self,
        params: serde_json::Value,
        make: impl FnOnce(T) -> Incoming,
    ) {
        let heard = match serde_json::from_value(params) {
            Ok(shape) => make(shape),
            Err(e) => Incoming::Refused(Fault::new(
                Fault::PARAMS,
                format!("the agent's message is not understood: {e}"),
            )),
        };
        if let Incoming::Welcome(welcome) = &heard {
            self.link.settled();
            if welcome.heartbeat_ms > 0 {
                self.interval = Duration::from_millis(welcome.heartbeat_ms);
            }
        }
        self.waiting.push_back(heard);
    }

    /// Bounds what a game that never polls leaves lying: the watches start anew with a snapshot each.
    fn tidy(&mut self) {
        if self.waiting.len() <= MAX_WAITING {
            return;
        }
        self.waiting.retain(|incoming| matches!(incoming, Incoming::Shutdown(_)));
        self.waiting.truncate(MAX_WAITING);
        for process in self.watched.clone() {
            self.send_watch(&process);
        }
    }
}
