//! Finding and watching the runs of a cluster, for tools, launchers and matchmakers: the directory of any agent.
//!
//! Owns the addresses of one or more agents, all as good as the others, and goes on to the next when one does not
//! answer. [`Directory`] waits in the calling thread and needs nothing but the standard library; with the feature
//! `client-async`, [`asynchronous::Directory`] is the same for tokio. Agents on other machines are asked over TLS, with a
//! token (feature `client-tls`; both: `client-async-tls`). docs/api.md has the routes behind it.
//!
//! ```no_run
//! use bigbrother::client::directory::{Directory, Interest, Query};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let directory = Directory::of(["unix:/run/bigbrother/api.sock".parse()?]);
//! let zones = Query { process: Some("zone".parse()?), ready: Some(true), ..Query::default() };
//! for run in directory.find(&zones)?.entries {
//!     println!("{} is at {}", run.instance, run.address);
//! }
//! let mut known = std::collections::BTreeMap::new();
//! for change in directory.watch(&Interest { process: zones.process, status: true }) {
//!     change?.apply_to(&mut known); // every change once, whatever becomes of the agent
//! }
//! # Ok(())
//! # }
//! ```

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::event_stream::TooLarge;
use crate::spec::{HostName, ProcessName};

mod address;
#[cfg(feature = "client-async")]
pub mod asynchronous;
mod blocking;
mod entry;
mod exchange;
mod follow;
mod stream;
#[cfg(feature = "client-tls")]
pub mod trust;

pub use address::{Address, InvalidAddress};
pub use blocking::{Directory, Watch};
pub use entry::{Entry, Leader, Problem, RunStatus, Said};
pub use exchange::Broken;
pub use follow::{Change, Interest, Trouble};

use exchange::{Answer, Question};

/// An agent that has not answered by then is not waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// A watch hears something at least every fifteen seconds.
const SILENCE: Duration = Duration::from_secs(45);
/// The largest answer that is read: some ten thousand runs.
const MAX_ANSWER: usize = 64 << 20;

/// Which runs are looked for; all of them by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Of this process.
    pub process: Option<ProcessName>,
    /// On this host.
    pub host: Option<HostName>,
    /// Only those that are ready, or only those that are not.
    pub ready: Option<bool>,
    /// Of processes with this label and value.
    pub label: Option<(String, String)>,
    /// With what the runs say about themselves: players, capacity, fps.
    pub status: bool,
    /// With all that was committed anywhere before; needs a quorum. Else what the agent's own copy has.
    pub consistent: bool,
}

impl Query {
    fn path(&self) -> String {
        let words = [
            self.process.as_ref().map(|process| format!("process={process}")),
            self.host.as_ref().map(|host| format!("host={host}")),
            self.ready.map(|ready| format!("ready={ready}")),
            self.label.as_ref().map(|(key, value)| format!("label={}", encoded(&format!("{key}={value}")))),
            self.status.then(|| "status=true".to_owned()),
            self.consistent.then(|| "consistent=true".to_owned()),
        ];
        let words: Vec<String> = words.into_iter().flatten().collect();
        format!("/v1/directory?{}", words.join("&"))
    }
}

/// For the query of a URL.
fn encoded(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// In order of their names.
    pub entries: Vec<Entry>,
    /// The state index of the copy that answered: how new it is.
    pub index: u64,
}

/// A question got no answer.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Nobody to be asked.
    #[error("no agent's address was given")]
    NoAgent,
    /// Nobody is asked with such a token.
    #[error("the token holds characters that no token has: give the text of its file, and nothing else")]
    Token,
    /// None of the agents answers; this is the last of them.
    #[error("no agent answers, the last that was asked is {agent}: is `bigbrother agent` running there?")]
    Unanswered {
        /// Which.
        agent: Address,
        /// Why.
        source: io::Error,
    },
    /// It was refused.
    #[error("the agent at {agent} refuses")]
    Refused {
        /// Which.
        agent: Address,
        /// Why, and what to do.
        source: Problem,
    },
    /// It was answered in a form that this version does not know.
    #[error("the answer of the agent at {agent} is not understood: is it of another version?")]
    Answer {
        /// Which.
        agent: Address,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// It tells more at once than is read.
    #[error("the agent at {agent} tells too much at once: watch one process instead of all")]
    TooLarge {
        /// Which.
        agent: Address,
        /// How much that would be.
        source: TooLarge,
    },
}

/// Whom to ask, and as who.
#[derive(Clone, Debug)]
struct Agents {
    addresses: Vec<Address>,
    token: Option<String>,
    /// The one that answered last is asked first.
    last: Arc<AtomicUsize>,
    trusting: Trusting,
}

/// Whom it trusts over TLS, if anybody.
#[derive(Clone, Debug, Default)]
struct Trusting(#[cfg(feature = "client-tls")] Option<trust::Trust>);

impl Agents {
    fn of(addresses: impl IntoIterator<Item = Address>) -> Agents {
        let addresses = addresses.into_iter().collect();
        Agents { addresses, token: None, last: Arc::default(), trusting: Trusting::default() }
    }

    /// A file's text has a line's end, which is none of the token.
    fn shows(&mut self, token: impl Into<String>) {
        let token: String = token.into();
        self.token = Some(token.trim().to_owned()).filter(|token| !token.is_empty());
    }

    /// All of them, from the one that answered last.
    fn in_turn(&self) -> impl Iterator<Item = (usize, &Address)> {
        let first = self.last.load(Ordering::Relaxed);
        let all = self.addresses.iter().enumerate();
        all.clone().skip(first).chain(all.take(first))
    }

    fn answered(&self, agent: usize) {
        self.last.store(agent, Ordering::Relaxed);
    }

    /// What comes of an agent's answer: that of all, or why the next one is asked.
    fn heard<T: DeserializeOwned>(
        &self,
        (at, agent): (usize, &Address),
        said: io::Result<WholeAnswer>,
    ) -> Result<Result<(T, u64), DirectoryError>, DirectoryError> {
        let said = said.map_err(|source| DirectoryError::Unanswered { agent: agent.clone(), source })?;
        let Some(read) = said.read(agent) else {
            let source = problem_of(said.status, &said.body);
            return Err(DirectoryError::Refused { agent: agent.clone(), source });
        };
        self.answered(at);
        Ok(read.map(|value| (value, said.index)))
    }

    fn question(&self, agent: &Address, path: &str) -> Vec<u8> {
        let token = shown(self.token.as_deref(), agent);
        Question { host: agent.host(), path, token, last_event: None }.bytes()
    }

    fn follow(&self, interest: &Interest, after: Option<String>) -> follow::Follow {
        let first = self.last.load(Ordering::Relaxed);
        follow::Follow::new(self.addresses.clone(), first, self.token.clone(), interest, after)
    }
}

/// Nobody leads where there is nothing to be had.
fn leading(asked: Result<(Leader, u64), DirectoryError>) -> Result<Option<Leader>, DirectoryError> {
    match asked {
        Ok((leader, _)) => Ok(Some(leader)),
        Err(DirectoryError::Refused { source, .. }) if source.status == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// A token that ends its header is none.
fn is_sound(token: Option<&str>) -> Result<(), DirectoryError> {
    let sound = token.is_none_or(|token| token.bytes().all(|b| b.is_ascii_graphic()));
    if sound { Ok(()) } else { Err(DirectoryError::Token) }
}

/// A token is not shown in plain HTTP to another machine.
fn shown<'a>(token: Option<&'a str>, agent: &Address) -> Option<&'a str> {
    token.filter(|_| agent.is_local() || matches!(agent, Address::Https(_)))
}

/// Nobody is trusted.
fn no_tls() -> io::Error {
    let why = "no CA is trusted: name one (`trusting`, with the feature `client-tls`), or the agent of this machine by \
               its socket";
    io::Error::new(io::ErrorKind::Unsupported, why)
}

/// A whole answer.
struct WholeAnswer {
    status: u16,
    index: u64,
    body: Vec<u8>,
}

impl WholeAnswer {
    /// `None`: another agent may know better.
    fn read<T: DeserializeOwned>(&self, agent: &Address) -> Option<Result<T, DirectoryError>> {
        let agent = agent.clone();
        match self.status {
            200 => {
                let read = serde_json::from_slice(&self.body);
                Some(read.map_err(|source| DirectoryError::Answer { agent, source }))
            }
            500.. => None,
            status => Some(Err(DirectoryError::Refused { agent, source: problem_of(status, &self.body) })),
        }
    }
}

/// An answer that is being read.
#[derive(Default)]
struct Reading {
    answer: Answer,
    body: Vec<u8>,
}

impl Reading {
    /// Takes what was read (nothing: the connection has ended); gives the answer once it is whole.
    fn take(&mut self, bytes: &[u8]) -> io::Result<Option<WholeAnswer>> {
        let invalid = |error: Broken| io::Error::new(io::ErrorKind::InvalidData, error);
        match bytes {
            [] => self.answer.end().map_err(invalid)?,
            bytes => self.body.extend(self.answer.feed(bytes).map_err(invalid)?),
        }
        if self.body.len() > MAX_ANSWER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too large"));
        }
        let head = self.answer.head().filter(|_| self.answer.is_whole());
        Ok(head.map(|head| WholeAnswer {
            status: head.status,
            index: head.index.unwrap_or_default(),
            body: std::mem::take(&mut self.body),
        }))
    }
}

/// What a refusal says, also when something between has written it.
fn problem_of(status: u16, body: &[u8]) -> Problem {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(body);
        let detail = text.lines().next().unwrap_or_default().trim();
        let detail = if detail.is_empty() { "without a reason" } else { detail };
        Problem { kind: status.to_string(), title: "refused".to_owned(), status, detail: detail.to_owned() }
    })
}

/// From 0 to 1, another one each time.
fn chance() -> f64 {
    let random = RandomState::new().build_hasher().finish();
    f64::from(u32::try_from(random >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "nothing came in time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_written_as_the_api_reads_it() {
        assert_eq!(Query::default().path(), "/v1/directory?");
        let query = Query {
            process: Some("zone".parse().unwrap()),
            host: Some("alpha".parse().unwrap()),
            ready: Some(false),
            label: Some(("a&b".to_owned(), "f\u{fc}r 1".to_owned())),
            status: true,
            consistent: true,
        };
        let wanted = "/v1/directory?process=zone&host=alpha&ready=false&label=a%26b%3Df%C3%BCr%201\
                      &status=true&consistent=true";
        assert_eq!(query.path(), wanted);
    }

    #[test]
    fn a_token_is_shown_over_tls_and_on_this_machine_only() {
        let agents = Agents { token: Some("bb_secret".to_owned()), ..Agents::of([]) };
        let shown = |agent: &str| {
            let question = agents.question(&agent.parse().unwrap(), "/v1/directory");
            String::from_utf8(question).unwrap().contains("Authorization: Bearer bb_secret\r\n")
        };
        assert!(shown("http://127.0.0.1:7610") && shown("unix:/run/x/api.sock"));
        assert!(!shown("http://10.0.0.1:7610") && shown("https://10.0.0.1:7610"));
    }

    #[test]
    fn a_token_is_the_text_of_its_file_and_ends_no_head() {
        let mut agents = Agents::of([Address::Http("127.0.0.1:1".to_owned())]);
        agents.shows("bb_secret\r\n");
        let question = String::from_utf8(agents.question(&agents.addresses[0], "/x")).unwrap();
        assert!(question.contains("Authorization: Bearer bb_secret\r\n"), "{question:?}");
        assert_eq!(question.matches("\r\n\r\n").count(), 1, "{question:?}");
        for token in ["bb\r\nHost: evil", "bb\n1", "bb 1", "bb\u{e9}"] {
            let directory = Directory::of(agents.addresses.clone()).with_token(token);
            let refused = |result| matches!(result, Err(DirectoryError::Token));
            assert!(refused(directory.find(&Query::default()).map(drop)), "{token:?}");
            let mut watch = directory.watch(&Interest::default());
            assert!(refused(watch.next_within(Duration::from_secs(5)).map(drop)), "{token:?}");
        }
        agents.shows(" \n");
        assert_eq!(agents.token, None);
    }

    #[test]
    fn the_agent_that_answered_last_is_asked_first() {
        let agents = Agents::of((0..3).map(|n| Address::Http(format!("h:{n}"))));
        let order = || agents.in_turn().map(|(at, _)| at).collect::<Vec<_>>();
        assert_eq!(order(), [0, 1, 2]);
        agents.answered(2);
        assert_eq!(order(), [2, 0, 1]);
    }

    #[test]
    fn chance_is_between_nothing_and_all() {
        let chances: Vec<f64> = (0..100).map(|_| chance()).collect();
        assert!(chances.iter().all(|chance| (0.0..=1.0).contains(chance)), "{chances:?}");
        assert!(chances.iter().any(|chance| *chance != chances[0]), "{chances:?}");
    }
}
