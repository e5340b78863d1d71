//! The directory, for threads that may wait.
//!
//! Owns a connection a question, and one a watch. No threads of its own.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::follow::Follow;
use super::{
    Address, Agents, Change, DirectoryError, Found, Interest, Leader, PATIENCE, Query, Reading, SILENCE,
    Trusting, WholeAnswer, chance, is_sound, leading, no_tls, silent,
};
use crate::spec::ProcessName;

/// The directory of a cluster; see [the module](super). Cheap to clone.
#[derive(Clone, Debug)]
pub struct Directory {
    agents: Agents,
}

impl Directory {
    /// Asks these agents of one cluster: the first that answers.
    pub fn of(agents: impl IntoIterator<Item = Address>) -> Directory {
        Directory { agents: Agents::of(agents) }
    }

    /// Shows this token with every question.
    pub fn with_token(mut self, token: impl Into<String>) -> Directory {
        self.agents.shows(token);
        self
    }

    /// Asks agents with `https` addresses, whose certificates are of these CAs.
    #[cfg(feature = "client-tls")]
    pub fn trusting(mut self, trust: super::trust::Trust) -> Directory {
        self.agents.trusting = Trusting(Some(trust));
        self
    }

    /// The runs that live.
    pub fn find(&self, query: &Query) -> Result<Found, DirectoryError> {
        let (entries, index) = self.ask(&query.path())?;
        Ok(Found { entries, index })
    }

    /// The run that speaks for a process, the eldest that is ready; `None`: none is.
    pub fn leader(&self, process: &ProcessName) -> Result<Option<Leader>, DirectoryError> {
        leading(self.ask(&format!("/v1/directory/{process}/leader")))
    }

    /// Every change from now on, after a snapshot of what there is.
    pub fn watch(&self, interest: &Interest) -> Watch {
        Watch::of(self.agents.follow(interest, None), &self.agents)
    }

    /// The same from a place on that an earlier watch has told ([`Watch::place`]): without a snapshot, where all
    /// that came in between is still known.
    pub fn watch_after(&self, interest: &Interest, place: &str) -> Watch {
        Watch::of(self.agents.follow(interest, Some(place.to_owned())), &self.agents)
    }

    fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<(T, u64), DirectoryError> {
        is_sound(self.agents.token.as_deref())?;
        let mut why = DirectoryError::NoAgent;
        for (at, agent) in self.agents.in_turn() {
            let said = exchange(agent, &self.agents, path);
            match self.agents.heard((at, agent), said) {
                Ok(answer) => return answer,
                Err(reason) => why = reason,
            }
        }
        Err(why)
    }
}

/// One question and its whole answer.
fn exchange(agent: &Address, agents: &Agents, path: &str) -> io::Result<WholeAnswer> {
    let deadline = Instant::now() + PATIENCE;
    let mut stream = Stream::connect(agent, &agents.trusting)?;
    stream.write(&agents.question(agent, path))?;
    let (mut reading, mut bytes) = (Reading::default(), [0; 16 * 1024]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let read = stream.read(&mut bytes, left)?.ok_or_else(silent)?;
        if let Some(said) = reading.take(&bytes[..read])? {
            return Ok(said);
        }
    }
}

/// Changes of the directory, each once and in order, for as long as somebody asks for the next.
///
/// Lost connections are its own affair: it goes on where it was with the next agent, after pauses that grow when none
/// answers. It gives an error only when an agent refuses for good (a token that is not known) or tells what is not
/// understood; asked again, it tries again.
#[derive(Debug)]
pub struct Watch {
    follow: Follow,
    trusting: Trusting,
    stream: Option<Stream>,
    /// When the next agent is asked, and until when this one may be silent.
    until: Instant,
}

impl Watch {
    fn of(follow: Follow, agents: &Agents) -> Watch {
        Watch { follow, trusting: agents.trusting.clone(), stream: None, until: Instant::now() }
    }

    /// The place of the last change that was told, for [`Directory::watch_after`]; `None`: nothing was told yet.
    pub fn place(&self) -> Option<&str> {
        self.follow.place()
    }

    /// The next change, if there is one within this time; connecting may take longer.
    pub fn next_within(&mut self, wait: Duration) -> Result<Option<Change>, DirectoryError> {
        let deadline = Instant::now() + wait;
        loop {
            if let Some(change) = self.follow.next() {
                return Ok(Some(change));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.turn(left)?;
        }
    }

    /// Waits for something to happen, at most so long.
    fn turn(&mut self, left: Duration) -> Result<(), DirectoryError> {
        let agent = self.follow.whom()?;
        let allowed = self.until.saturating_duration_since(Instant::now());
        let Some(stream) = &mut self.stream else {
            std::thread::sleep(allowed.min(left));
            if allowed <= left && self.begin(&agent).is_err() {
                self.lose();
            }
            return Ok(());
        };
        let mut bytes = [0; 16 * 1024];
        let heard = match stream.read(&mut bytes, allowed.min(left)) {
            Ok(Some(read @ 1..)) => self.follow.hear(&bytes[..read]),
            Ok(None) if Instant::now() < self.until => return Ok(()),
            Ok(_) | Err(_) => {
                self.lose();
                return Ok(());
            }
        };
        self.until = Instant::now() + SILENCE;
        match heard {
            Ok(()) => Ok(()),
            Err(trouble) => {
                self.lose();
                trouble.told_of(agent)
            }
        }
    }

    fn begin(&mut self, agent: &Address) -> io::Result<()> {
        let mut stream = Stream::connect(agent, &self.trusting)?;
        stream.write(&self.follow.begin())?;
        (self.stream, self.until) = (Some(stream), Instant::now() + SILENCE);
        Ok(())
    }

    fn lose(&mut self) {
        self.stream = None;
        self.until = Instant::now() + self.follow.lose(chance());
    }
}

impl Iterator for Watch {
    type Item = Result<Change, DirectoryError>;

    /// Waits for the next change; never ends.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.next_within(SILENCE) {
                Ok(None) => {}
                Ok(Some(change)) => return Some(Ok(change)),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
    #[cfg(feature = "client-tls")]
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, TcpStream>>),
}

trait Bytes: Read + Write {}

impl<T: Read + Write> Bytes for T {}

impl Stream {
    fn connect(agent: &Address, trusting: &Trusting) -> io::Result<Stream> {
        match agent {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Stream::Unix(stream))
            }
            Address::Http(host) => Ok(Stream::Tcp(dial(host)?)),
            Address::Https(host) => Stream::secure(host, trusting),
        }
    }

    #[cfg(feature = "client-tls")]
    fn secure(host: &str, trusting: &Trusting) -> io::Result<Stream> {
        let (rules, name) = trusting.0.as_ref().ok_or_else(no_tls)?.rules(host)?;
        let mut socket = dial(host)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut session = rustls::ClientConnection::new(rules, name).map_err(io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut socket)?;
        }
        Ok(Stream::Tls(Box::new(rustls::StreamOwned::new(session, socket))))
    }

    #[cfg(not(feature = "client-tls"))]
    fn secure(_: &str, _: &Trusting) -> io::Result<Stream> {
        Err(no_tls())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes().write_all(bytes)?;
        self.bytes().flush()
    }

    fn bytes(&mut self) -> &mut dyn Bytes {
        match self {
            Stream::Unix(stream) => stream,
            Stream::Tcp(stream) => stream,
            #[cfg(feature = "client-tls")]
            Stream::Tls(stream) => stream,
        }
    }

    /// What comes within this time; `None`: nothing. 0 bytes: the other end is closed.
    fn read(&mut self, bytes: &mut [u8], wait: Duration) -> io::Result<Option<usize>> {
        if wait.is_zero() {
            return Ok(None);
        }
        match self {
            Stream::Unix(stream) => stream.set_read_timeout(Some(wait))?,
            Stream::Tcp(stream) => stream.set_read_timeout(Some(wait))?,
            #[cfg(feature = "client-tls")]
            Stream::Tls(stream) => stream.sock.set_read_timeout(Some(wait))?,
        }
        match self.bytes().read(bytes) {
            Ok(read) => Ok(Some(read)),
            Err(e) if [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&e.kind()) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(e) => Err(e),
        }
    }
}

fn dial(host: &str) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut connect = |address| match TcpStream::connect_timeout(&address, PATIENCE) {
        Ok(stream) => Some(stream),
        Err(error) => {
            failed = error;
            None
        }
    };
    let stream = host.to_socket_addrs()?.find_map(&mut connect).ok_or(failed)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}
