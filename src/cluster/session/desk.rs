//! A peer's end of the sessions: who is attached here, and what each of them lacks.
//!
//! Owns the roll of attached hosts and the whole states that were encoded for them. A host asks for what comes
//! after its place and is answered as soon as there is something ([`Desk::follow`]); it has one question at
//! work at a time, so one that is slow holds up nobody and falls off the trail. Called by `cluster::node`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::message::{Admission, Attach, Follow, Followed, Load, Members, News, Sight, seal};
use super::trail::{Reader, Since};
use crate::cluster::node::Standing;
use crate::cluster::wire::DecodeError;
use crate::spec::HostName;

#[cfg(test)]
mod tests;
mod whole;

use whole::Wholes;

/// How long a question of a host waits for news.
const WAIT: Duration = Duration::from_secs(5);
/// A host that was answered and asks nothing more for this long is attached no more.
const GONE: Duration = Duration::from_secs(3);
/// The same for one whose connection ended.
const HUNG_UP: Duration = Duration::from_millis(500);
/// Bytes of one answer, about.
const ANSWER: usize = 1024 * 1024;
/// Questions of one host at work at once: one, and what is left of connections that broke.
const QUESTIONS: usize = 4;

/// Why a host has no answer.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// It asks more than one thing at a time.
    #[error("this host asks too much at once")]
    TooMuch,
    /// The answer cannot be written.
    #[error(transparent)]
    Encode(#[from] crate::cluster::wire::EncodeError),
    /// The question cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The agent ends.
    #[error("this peer is stopping")]
    Stopping,
}

/// What a peer knows of itself and the cluster.
#[derive(Clone)]
pub struct Outlook {
    /// Which founding it belongs to; `None`: to none yet.
    pub history: Option<u64>,
    /// How the cluster stands.
    pub standing: watch::Receiver<Standing>,
    /// The peers; empty: it is not admitted yet.
    pub members: watch::Receiver<Members>,
}

/// An attached host.
struct Seat {
    session: u64,
    questions: usize,
    /// With no question at work it is attached until then.
    until: Instant,
}

type Seats = BTreeMap<HostName, Seat>;

/// See the module.
pub struct Desk {
    trail: Reader,
    wholes: Wholes,
    seats: Arc<Mutex<Seats>>,
}

/// A question at work.
struct Question {
    seats: Arc<Mutex<Seats>>,
    host: HostName,
    session: u64,
    answered: bool,
}

impl Drop for Question {
    fn drop(&mut self) {
        let mut seats = locked(&self.seats);
        if let Some(seat) = seats.get_mut(&self.host).filter(|seat| seat.session == self.session) {
            seat.questions -= 1;
            seat.until = Instant::now() + if self.answered { GONE } else { HUNG_UP };
        }
    }
}

fn locked(seats: &Mutex<Seats>) -> MutexGuard<'_, Seats> {
    seats.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is told of how the cluster stands.
pub fn sight(standing: &Standing) -> Sight {
    Sight { primary: standing.primary.clone(), term: standing.term, quorum: standing.quorum }
}

impl Desk {
    /// Serves from this trail.
    pub fn new(trail: Reader) -> Desk {
        Desk { trail, wholes: Wholes::default(), seats: Arc::default() }
    }

    /// How many hosts are attached here.
    pub fn hosts(&self) -> u64 {
        self.seats().len() as u64
    }

    /// Those who are attached now.
    fn seats(&self) -> MutexGuard<'_, Seats> {
        let mut seats = locked(&self.seats);
        seats.retain(|_, seat| seat.questions > 0 || Instant::now() < seat.until);
        seats
    }

    /// What a host goes by when it looks for a peer.
    pub fn load(&self, outlook: &Outlook) -> Load {
        let standing = outlook.standing.borrow().clone();
        let members = outlook.members.borrow().clone();
        let formed = unfit(outlook).is_none();
        // Hosts ask this all the time.
        self.wholes.tidy();
        Load { hosts: self.hosts(), formed, sight: sight(&standing), members }
    }

    /// A host begins a session.
    pub fn attach(&self, host: &HostName, asked: &Attach, outlook: &Outlook) -> Admission {
        let history = match (unfit(outlook), outlook.history) {
            (None, Some(history)) => history,
            (why, _) => return Admission::Unfit(why.unwrap_or_default()),
        };
        if asked.history.is_some_and(|known| known != history) {
            return Admission::Unfit("this peer is of another founding of the cluster".to_owned());
        }
        let members = outlook.members.borrow().clone();
        let mut seats = self.seats();
        let hosts = seats.len() as u64;
        if !seats.contains_key(host) && hosts > asked.most {
            return Admission::Crowded { hosts };
        }
        let session = fastrand::u64(..);
        seats.insert(host.clone(), Seat { session, questions: 0, until: Instant::now() + GONE });
        tracing::info!(%host, incarnation = asked.incarnation, hosts = seats.len(), "attached");
        Admission::Admitted { history, session, members }
    }

    /// What came after what a host has, once there is something.
    pub async fn follow(
        &self,
        host: &HostName,
        asked: &Follow,
        outlook: &Outlook,
    ) -> Result<Vec<u8>, DeskError> {
        let mut heads = self.trail.heads();
        let (mut standings, mut members) = (outlook.standing.clone(), outlook.members.clone());
        let Some(mut question) = self.question(host, asked.session)? else {
            return Ok(seal(&self.head(asked, outlook, News::Gone), &[])?);
        };
        let until = tokio::time::Instant::now() + WAIT;
        loop {
            heads.mark_unchanged();
            let (news, raw) = self.news(asked, outlook).await?;
            let head = self.head(asked, outlook, news);
            let nothing = head.news == News::Nothing && head.members.is_none() && head.sight == asked.sight;
            if !nothing || tokio::time::Instant::now() >= until {
                question.answered = true;
                return Ok(seal(&head, &raw)?);
            }
            tokio::select! {
                changed = heads.changed() => changed.map_err(|_| DeskError::Stopping)?,
                changed = standings.changed() => changed.map_err(|_| DeskError::Stopping)?,
                changed = members.changed() => changed.map_err(|_| DeskError::Stopping)?,
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    fn question(&self, host: &HostName, session: u64) -> Result<Option<Question>, DeskError> {
        let mut seats = locked(&self.seats);
        let Some(seat) = seats.get_mut(host).filter(|seat| seat.session == session) else { return Ok(None) };
        if seat.questions >= QUESTIONS {
            return Err(DeskError::TooMuch);
        }
        seat.questions += 1;
        Ok(Some(Question { seats: self.seats.clone(), host: host.clone(), session, answered: false }))
    }

    fn head(&self, asked: &Follow, outlook: &Outlook, news: News) -> Followed {
        let members = outlook.members.borrow().clone();
        let members = (members.at != asked.members).then_some(members);
        Followed { sight: sight(&outlook.standing.borrow()), members, news }
    }

    async fn news(&self, asked: &Follow, outlook: &Outlook) -> Result<(News, Vec<u8>), DeskError> {
        let same = outlook.history == Some(asked.history);
        let since = if same { self.trail.since(asked.have, ANSWER) } else { Since::Whole };
        match (asked.part, since) {
            (None, Since::Nothing) => Ok((News::Nothing, Vec::new())),
            (None, Since::Steps(steps)) => {
                let to = steps.last().map_or(asked.have, |step| step.place);
                let envelopes: Vec<_> = steps.into_iter().filter_map(|step| step.envelope).collect();
                Ok((News::Changes { to, count: envelopes.len() as u64 }, envelopes.concat()))
            }
            (part, _) => {
                let (of, whole, offset) = self.wholes.get(&self.trail, part).await?;
                let end = whole.len().min(offset.saturating_add(ANSWER));
                let raw = whole.get(offset..end).unwrap_or_default().to_vec();
                let (total, offset) = (whole.len() as u64, offset as u64);
                Ok((News::Part { of, total, offset }, raw))
            }
        }
    }
}

/// Why this peer serves nobody.
fn unfit(outlook: &Outlook) -> Option<String> {
    if let Some(broken) = &outlook.standing.borrow().broken {
        return Some(format!("this peer's log has stopped: {broken}"));
    }
    let formed = outlook.history.is_some() && !outlook.members.borrow().peers.is_empty();
    (!formed).then(|| "this host is no peer of a founded cluster yet".to_owned())
}
