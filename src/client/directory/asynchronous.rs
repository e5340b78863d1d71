//! The directory, for tasks of tokio (feature `client-async`).
//!
//! Owns a connection a question, and one a watch. Spawns nothing: what is dropped is over.

use std::io;
use std::pin::Pin;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};

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
    #[cfg(feature = "client-async-tls")]
    pub fn trusting(mut self, trust: super::trust::Trust) -> Directory {
        self.agents.trusting = Trusting(Some(trust));
        self
    }

    /// The runs that live.
    pub async fn find(&self, query: &Query) -> Result<Found, DirectoryError> {
        let (entries, index) = self.ask(&query.path()).await?;
        Ok(Found { entries, index })
    }

    /// The run that speaks for a process, the eldest that is ready; `None`: none is.
    pub async fn leader(&self, process: &ProcessName) -> Result<Option<Leader>, DirectoryError> {
        leading(self.ask(&format!("/v1/directory/{process}/leader")).await)
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

    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<(T, u64), DirectoryError> {
        is_sound(self.agents.token.as_deref())?;
        let mut why = DirectoryError::NoAgent;
        for (at, agent) in self.agents.in_turn() {
            let said = timeout(PATIENCE, exchange(agent, &self.agents, path))
                .await
                .unwrap_or_else(|_| Err(silent()));
            match self.agents.heard((at, agent), said) {
                Ok(answer) => return answer,
                Err(reason) => why = reason,
            }
        }
        Err(why)
    }
}

/// One question and its whole answer.
async fn exchange(agent: &Address, agents: &Agents, path: &str) -> io::Result<WholeAnswer> {
    let mut stream = connect(agent, &agents.trusting).await?;
    stream.write_all(&agents.question(agent, path)).await?;
    stream.flush().await?;
    let (mut reading, mut bytes) = (Reading::default(), [0; 16 * 1024]);
    loop {
        let read = stream.read(&mut bytes).await?;
        if let Some(said) = reading.take(&bytes[..read])? {
            return Ok(said);
        }
    }
}

/// Changes of the directory, each once and in order, for as long as somebody asks for the next.
///
/// Lost connections are its own affair: it goes on where it was with the next agent, after pauses that grow when none
/// answers.
pub struct Watch {
    follow: Follow,
    trusting: Trusting,
    stream: Option<Connection>,
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

    /// The next change. Loses nothing when it is dropped before it is done. An error only when an agent refuses for
    /// good (a token that is not known) or tells what is not understood; asked again, it tries again.
    pub async fn next(&mut self) -> Result<Change, DirectoryError> {
        loop {
            if let Some(change) = self.follow.next() {
                return Ok(change);
            }
            self.turn().await?;
        }
    }

    async fn turn(&mut self) -> Result<(), DirectoryError> {
        let agent = self.follow.whom()?;
        let Some(stream) = &mut self.stream else {
            tokio::time::sleep_until(self.until).await;
            if self.begin(&agent).await.is_err() {
                self.lose();
            }
            return Ok(());
        };
        let mut bytes = [0; 16 * 1024];
        let heard = match timeout_at(self.until, stream.read(&mut bytes)).await {
            Ok(Ok(read @ 1..)) => self.follow.hear(&bytes[..read]),
            Ok(Ok(_) | Err(_)) | Err(_) => {
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

    async fn begin(&mut self, agent: &Address) -> io::Result<()> {
        let mut stream = connect(agent, &self.trusting).await?;
        stream.write_all(&self.follow.begin()).await?;
        stream.flush().await?;
        (self.stream, self.until) = (Some(stream), Instant::now() + SILENCE);
        Ok(())
    }

    fn lose(&mut self) {
        self.stream = None;
        self.until = Instant::now() + self.follow.lose(chance());
    }
}

trait Bytes: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Bytes for T {}

type Connection = Pin<Box<dyn Bytes>>;

async fn connect(agent: &Address, trusting: &Trusting) -> io::Result<Connection> {
    let connecting = async {
        Ok(match agent {
            Address::Unix(path) => Box::pin(UnixStream::connect(path).await?) as Connection,
            Address::Http(host) => Box::pin(TcpStream::connect(host).await?),
            Address::Https(host) => secure(host, trusting).await?,
        })
    };
    timeout(PATIENCE, connecting).await.unwrap_or_else(|_| Err(silent()))
}

#[cfg(feature = "client-async-tls")]
async fn secure(host: &str, trusting: &Trusting) -> io::Result<Connection> {
    let (rules, name) = trusting.0.as_ref().ok_or_else(no_tls)?.rules(host)?;
    let socket = TcpStream::connect(host).await?;
    Ok(Box::pin(tokio_rustls::TlsConnector::from(rules).connect(name, socket).await?))
}

#[cfg(not(feature = "client-async-tls"))]
async fn secure(_: &str, _: &Trusting) -> io::Result<Connection> {
    Err(no_tls())
}
