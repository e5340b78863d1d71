//! A watch of the directory without its connection: whom to ask from which place on, and what is told.
//!
//! Owns the last place that was told, so that every change is told once however often the connection is lost and
//! whichever agent goes on. Pure: time and chance are arguments. Called by [`super::Watch`] and its async twin.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::Deserialize;

use super::entry::{Entry, Problem, Said};
use super::exchange::{Answer, Broken, Question};
use super::{Address, DirectoryError};
use crate::client::event_stream::{Event, Events, TooLarge};
use crate::spec::{InstanceId, ProcessName};

/// The pause after the first round in which no agent answered; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The longest refusal that is read.
const MAX_REFUSAL: usize = 64 * 1024;

/// What a watch tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Everything there is; what was told before is to be forgotten. Comes first, and where changes were missed.
    Snapshot {
        /// In order of their names.
        entries: Vec<Entry>,
        /// Why the watch began anew; `None`: it has just begun.
        reset: Option<String>,
    },
    /// A run is new or differs.
    Put(Box<Entry>),
    /// No run of this instance lives.
    Gone {
        /// Which.
        instance: InstanceId,
        /// Of which process.
        process: ProcessName,
    },
    /// Another run speaks for a process.
    Leader {
        /// Which process.
        process: ProcessName,
        /// The run's instance; `None`: none is ready.
        instance: Option<InstanceId>,
        /// Its fencing token.
        token: Option<u64>,
    },
    /// What some runs say about themselves, each at most once a second. Not a part of the history: what is missed is
    /// not told again.
    Status(Vec<Said>),
}

impl Change {
    /// Carries the change out on what is known.
    pub fn apply_to(self, runs: &mut BTreeMap<InstanceId, Entry>) {
        match self {
            Change::Snapshot { entries, .. } => {
                *runs = entries.into_iter().map(|entry| (entry.instance.clone(), entry)).collect();
            }
            Change::Put(mut entry) => {
                let was =
                    runs.remove(&entry.instance).filter(|was| was.host == entry.host && was.run == entry.run);
                entry.status = entry.status.or(was.and_then(|was| was.status));
                runs.insert(entry.instance.clone(), *entry);
            }
            Change::Gone { instance, .. } => drop(runs.remove(&instance)),
            Change::Status(said) => {
                for Said { instance, host, run, status } in said {
                    let same = |entry: &&mut Entry| entry.host == host && entry.run == run;
                    if let Some(entry) = runs.get_mut(&instance).filter(same) {
                        entry.status = Some(Some(status));
                    }
                }
            }
            Change::Leader { .. } => {}
        }
    }
}

/// What a watch tells of: all runs, by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Only those of this process.
    pub process: Option<ProcessName>,
    /// And what they say about themselves: players, capacity, fps.
    pub status: bool,
}

impl Interest {
    fn path(&self) -> String {
        let process = self.process.as_ref().map(|process| format!("process={process}"));
        let words = process.into_iter().chain(self.status.then(|| "status=true".to_owned()));
        format!("/v1/directory/watch?{}", words.collect::<Vec<_>>().join("&"))
    }
}

/// An event's place in the cluster's history, `HISTORY:INDEX:OFFSET`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    text: String,
    history: String,
    at: (u64, u64),
}

impl Place {
    fn parse(text: String) -> Option<Place> {
        let mut parts = text.split(':');
        let history = parts.next()?.to_owned();
        let at = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        // It goes out again, as a header.
        let sound = parts.next().is_none() && history.bytes().all(|b| b.is_ascii_hexdigit());
        sound.then_some(Place { history, at, text })
    }
}

/// Why an agent tells nothing more.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// It does not want to, and another one would not either.
    #[error(transparent)]
    Refused(Problem),
    /// It cannot now.
    #[error(transparent)]
    Unable(Problem),
    /// What it says is no answer.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// It tells too much at once.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// What it tells has another shape than this version of the library knows.
    #[error("the event is not understood")]
    Event(#[from] serde_json::Error),
}

impl Trouble {
    /// What whoever watches must know, since asking again or another one mends nothing.
    pub(super) fn told_of(self, agent: Address) -> Result<(), DirectoryError> {
        match self {
            Trouble::Refused(source) => Err(DirectoryError::Refused { agent, source }),
            Trouble::Event(source) => Err(DirectoryError::Answer { agent, source }),
            Trouble::TooLarge(source) => Err(DirectoryError::TooLarge { agent, source }),
            Trouble::Unable(_) | Trouble::Broken(_) => Ok(()),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Follow {
    agents: Vec<Address>,
    path: String,
    token: Option<String>,
    /// The agent that is asked, by its place.
    asked: usize,
    /// Agents that were asked in vain since one told something.
    in_vain: usize,
    place: Option<Place>,
    reset: Option<String>,
    answer: Answer,
    refusal: Vec<u8>,
    events: Events,
    told: VecDeque<Change>,
}

impl Follow {
    /// Begins at an agent, after a place that an earlier watch has told.
    pub fn new(
        agents: Vec<Address>,
        first: usize,
        token: Option<String>,
        interest: &Interest,
        after: Option<String>,
    ) -> Follow {
        Follow {
            path: interest.path(),
            place: after.and_then(Place::parse),
            asked: if agents.is_empty() { 0 } else { first % agents.len() },
            agents,
            token,
            in_vain: 0,
            reset: None,
            answer: Answer::default(),
            refusal: Vec::new(),
            events: Events::default(),
            told: VecDeque::new(),
        }
    }

    /// The agent to be asked, if there is one and it may be asked.
    pub fn whom(&self) -> Result<Address, DirectoryError> {
        super::is_sound(self.token.as_deref())?;
        self.agent().cloned().ok_or(DirectoryError::NoAgent)
    }

    /// The agent to be asked; `None`: there is none.
    fn agent(&self) -> Option<&Address> {
        self.agents.get(self.asked)
    }

    /// The place of the last change that was told.
    pub fn place(&self) -> Option<&str> {
        self.place.as_ref().map(|place| place.text.as_str())
    }

    /// The next change that is known here.
    pub fn next(&mut self) -> Option<Change> {
        self.told.pop_front()
    }

    /// There is a connection; this goes out.
    pub fn begin(&mut self) -> Vec<u8> {
        (self.answer, self.events, self.reset) = (Answer::default(), Events::default(), None);
        self.refusal.clear();
        let host = self.agent().map(Address::host).unwrap_or_default();
        let token = self.agent().and_then(|agent| super::shown(self.token.as_deref(), agent));
        let last_event = self.place();
        Question { host, path: &self.path, token, last_event }.bytes()
    }

    /// This came in.
    pub fn hear(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        let body = self.answer.feed(bytes)?;
        match self.answer.head() {
            Some(head) if head.status == 200 => {
                for event in self.events.feed(&body)? {
                    self.take(event)?;
                }
                Ok(())
            }
            Some(head) => {
                self.refusal.extend(body);
                let known = self.answer.is_whole() || self.refusal.len() > MAX_REFUSAL;
                if known { Err(self.refused(head.status)) } else { Ok(()) }
            }
            None => Ok(()),
        }
    }

    fn refused(&self, status: u16) -> Trouble {
        let problem = super::problem_of(status, &self.refusal);
        // Too many requests, or a wait that was too long, is no reason to give up.
        let final_one = (400..500).contains(&status) && ![408, 421, 429].contains(&status);
        if final_one { Trouble::Refused(problem) } else { Trouble::Unable(problem) }
    }

    /// The agent tells nothing more. How long to wait until the next one is asked: not at all, until none is left.
    pub fn lose(&mut self, chance: f64) -> Duration {
        self.in_vain += 1;
        let agents = self.agents.len().max(1);
        self.asked = (self.asked + 1) % agents;
        if !self.in_vain.is_multiple_of(agents) {
            return Duration::ZERO;
        }
        let rounds = u32::try_from(self.in_vain / agents).unwrap_or(u32::MAX);
        let pause = FIRST_PAUSE.saturating_mul(1 << (rounds - 1).min(16)).min(LONGEST_PAUSE);
        // Those who lost the same agent do not come back together.
        pause.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }

    fn take(&mut self, event: Event) -> Result<(), Trouble> {
        #[derive(Deserialize)]
        struct Reset {
            reason: String,
        }
        #[derive(Deserialize)]
        struct Gone {
            instance: InstanceId,
            process: ProcessName,
        }
        #[derive(Deserialize)]
        struct Led {
            process: ProcessName,
            instance: Option<InstanceId>,
            token: Option<u64>,
        }
        let data = event.data.as_str();
        let change = match event.name.as_str() {
            "reset" => {
                self.reset = Some(serde_json::from_str::<Reset>(data)?.reason);
                return Ok(());
            }
            "snapshot" => Change::Snapshot { entries: serde_json::from_str(data)?, reset: self.reset.take() },
            "put" => Change::Put(serde_json::from_str(data)?),
            "gone" => {
                let Gone { instance, process } = serde_json::from_str(data)?;
                Change::Gone { instance, process }
            }
            "leader" => {
                let Led { process, instance, token } = serde_json::from_str(data)?;
                Change::Leader { process, instance, token }
            }
            "status" => Change::Status(serde_json::from_str(data)?),
            // Of a later version: nothing that this one could tell.
            _ => return Ok(()),
        };
        // Only now: what is not understood was asked for in vain.
        self.in_vain = 0;
        // What has no place, such as a status, is told as it comes.
        let place = event.id.and_then(Place::parse);
        let told = |place: &Place| {
            let last = self.place.as_ref().filter(|last| last.history == place.history);
            last.is_some_and(|last| place.at <= last.at)
        };
        if !matches!(change, Change::Snapshot { .. }) && place.as_ref().is_some_and(told) {
            return Ok(());
        }
        self.place = place.or(self.place.take());
        self.told.push_back(change);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
