//! The directory, for threads that may wait.
//!
//! Owns a connection a question, and one a watch. No threads of its own.

use std::io;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::follow::Follow;
use super::stream::Stream;
use super::{
    Address, Agents, Change, DirectoryError, Found, Interest, Leader, PATIENCE, Query, Reading, SILENCE,
    Trusting, WholeAnswer, chance, is_sound, leading, silent,
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
            let said = exchange(agent, &self.agents, path, Instant::now() + PATIENCE);
            match self.agents.heard((at, agent), said) {
                Ok(answer) => return answer,
                Err(reason) => why = reason,
            }
        }
        Err(why)
    }
}

/// One question and its whole answer, by then.
pub(super) fn exchange(
    agent: &Address,
    agents: &Agents,
    path: &str,
    until: Instant,
) -> io::Result<WholeAnswer> {
    let mut stream = Stream::connect(agent, &agents.trusting, until)?;
    stream.write(&agents.question(agent, path))?;
    let (mut reading, mut bytes) = (Reading::default(), [0; 16 * 1024]);
    loop {
        let read = stream.read(&mut bytes, until)?.ok_or_else(silent)?;
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
        let heard = match stream.read(&mut bytes, Instant::now() + allowed.min(left)) {
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
        let mut stream = Stream::connect(agent, &self.trusting, Instant::now() + PATIENCE)?;
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
