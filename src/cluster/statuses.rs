//! The soft status of all runs on this host, and how it comes to the others.
//!
//! ```text
//! attached host ─ Kind::Status: its own sheet ─▶ its peer ◀─ Kind::Statuses ─ the other peers
//!               ─ Kind::Statuses, while somebody reads ─▶ its peer
//! ```
//!
//! A host tells its peer what changed; a peer asks each other peer for the sheets that are its own or those of its
//! hosts; an attached host asks its peer for all of them, but only while somebody there reads
//! ([`Statuses::read`]). Whoever asks says how far it has each sheet and waits for what comes after: there is no
//! queue that could grow, and one line of its own ([`Purpose::Status`](super::wire::Purpose)), so that nothing of
//! the log or of a vote ever waits behind it. Owns this host's [`Board`] and who reads it; never judges a run.
//! Called by the supervision loop (`note`), `http` and the process API (`read`), `node` and `session` (the carrying).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::wire::{DecodeError, EncodeError, decode, encode};
use crate::agent::supervise::moment;
use crate::host::Moment;
use crate::keeper::protocol::RunId;
use crate::spec::{HostName, InstanceId};
use crate::status::{Board, Delta, Merged, Place, Places, Summary};

pub(super) mod carry;

/// How long a question waits for news; also how often a host is heard that has none.
pub const WAIT: Duration = Duration::from_secs(3);
/// How long after the last read the status of other hosts is still asked for.
const LEASE: Duration = Duration::from_secs(15);
/// That somebody reads is said again no sooner than after this.
const RENEW: Duration = Duration::from_secs(1);
/// How long the first read on an attached host waits for it.
const FIRST: Duration = Duration::from_secs(1);
/// What an answer is about to have, in bytes: it is encoded in one go.
const ANSWER: usize = 256 * 1024;
/// A host that has not told its peer anything for this long has another one.
const RELAYED: Duration = Duration::from_secs(12);
/// So much is gathered before who waits is answered.
const GATHER: Duration = Duration::from_millis(20);

/// What somebody has: the body of [`Kind::Statuses`](super::wire::Kind). Append-only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Have {
    /// How far it has each sheet.
    pub places: Places,
}

/// What it lacks: the answer. Append-only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lacks {
    /// Of each sheet: what comes after, or that nothing does.
    pub deltas: Vec<Delta>,
    /// There is more: ask again at once.
    pub more: bool,
}

/// Whose sheets somebody is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// A peer: this host's, and those of the hosts that are attached to it.
    Home,
    /// An attached host: all.
    All,
}

/// Why a host is not listened to.
#[derive(Debug, thiserror::Error)]
pub enum Unheard {
    /// It speaks for another one.
    #[error("{0} tells the status of {1}")]
    Other(HostName, HostName),
    /// What it tells makes no sense or is too much.
    #[error("this makes no sheet")]
    Refused,
    /// The question cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The answer cannot be written.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// What was counted since the agent began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Runs of which something is known now.
    pub runs: u64,
    /// Lines of other hosts that were taken over.
    pub taken: u64,
    /// Lines that other hosts were sent.
    pub sent: u64,
    /// Messages with which they were sent, the empty ones among them.
    pub messages: u64,
    /// Lines and messages for which there was no room or which made no sense.
    pub refused: u64,
}

#[derive(Default)]
struct Counters {
    taken: AtomicU64,
    sent: AtomicU64,
    messages: AtomicU64,
    refused: AtomicU64,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Statuses(Arc<Shared>);

struct Shared {
    /// Whoever looks shares it; a change makes a copy only while somebody looks.
    board: Mutex<Arc<Board>>,
    version: watch::Sender<u64>,
    /// When somebody has read last.
    read: watch::Sender<Option<Moment>>,
    /// The board has the other hosts' sheets; an attached host has them only while somebody reads.
    whole: watch::Sender<bool>,
    /// The attached hosts that tell this peer, and when they did last.
    relayed: Mutex<BTreeMap<HostName, Moment>>,
    counters: Counters,
}

fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Statuses {
    /// Of a peer or of a host alone: it has all that there is.
    pub fn new(own: HostName) -> Statuses {
        Statuses::that_are(own, true)
    }

    /// Of an attached host: it has only its own until somebody reads.
    pub fn attached(own: HostName) -> Statuses {
        Statuses::that_are(own, false)
    }

    fn that_are(own: HostName, whole: bool) -> Statuses {
        Statuses(Arc::new(Shared {
            board: Mutex::new(Arc::new(Board::new(own))),
            version: watch::channel(0).0,
            read: watch::channel(None).0,
            whole: watch::channel(whole).0,
            relayed: Mutex::default(),
            counters: Counters::default(),
        }))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Board) -> T) -> T {
        let mut board = locked(&self.0.board);
        let result = change(Arc::make_mut(&mut board));
        let version = board.version();
        drop(board);
        self.0.version.send_if_modified(|known| std::mem::replace(known, version) != version);
        result
    }

    /// As which life this host speaks from now on; `JoinHost` tells it.
    pub fn begin(&self, life: u64) {
        self.change(|board| board.begin(life));
    }

    /// Runs of this host say so, or have ended (`None`).
    pub fn note(&self, lines: impl IntoIterator<Item = (InstanceId, RunId, Option<Summary>)>) {
        let now = moment();
        self.change(|board| {
            for (id, run, summary) in lines {
                if !board.note(id, run, summary, now) {
                    self.count(&self.0.counters.refused, 1);
                }
            }
        });
    }

    /// All that is known here now, as it stays for whoever holds it: let go of it soon.
    pub fn board(&self) -> Arc<Board> {
        locked(&self.0.board).clone()
    }

    /// The same, for somebody who goes on reading.
    pub fn look(&self) -> Arc<Board> {
        self.mind();
        self.board()
    }

    /// Somebody goes on reading: an attached host asks for the others' from now on.
    pub fn mind(&self) {
        let now = moment();
        let old = |read: Option<Moment>| read.is_none_or(|read| now.since(read) > RENEW);
        self.0.read.send_if_modified(|read| {
            let renewed = old(*read);
            *read = if renewed { Some(now) } else { *read };
            renewed
        });
    }

    /// The same, and the first to read waits a moment for what the others say.
    pub async fn read(&self) -> Arc<Board> {
        self.mind();
        let mut whole = self.0.whole.subscribe();
        if *whole.borrow_and_update() {
            return self.board();
        }
        let _ = tokio::time::timeout(FIRST, whole.wait_for(|whole| *whole)).await;
        self.board()
    }

    /// Changes with each change of the board.
    pub fn versions(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    fn count(&self, counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.0.counters;
        Counts {
            runs: locked(&self.0.board).len() as u64,
            taken: of(&counters.taken),
            sent: of(&counters.sent),
            messages: of(&counters.messages),
            refused: of(&counters.refused),
        }
    }

    // ---- what other hosts say and ask

    /// An attached host tells its own sheet; up to where this peer has it then.
    pub fn hear_host(&self, from: &HostName, body: &[u8]) -> Result<Vec<u8>, Unheard> {
        let delta: Delta = decode(body).inspect_err(|_| self.count(&self.0.counters.refused, 1))?;
        if delta.host != *from {
            return Err(Unheard::Other(from.clone(), delta.host));
        }
        if self.merge(delta) == Merged::Refused {
            return Err(Unheard::Refused);
        }
        if locked(&self.0.relayed).insert(from.clone(), moment()).is_none() {
            // It needs room, also where nobody asks or is asked.
            self.change(|board| board.forget(moment()));
        }
        let place: Option<Place> = locked(&self.0.board).places().get(from).copied();
        Ok(encode(&place)?)
    }

    /// What somebody lacks, once there is something.
    pub async fn answer(&self, whose: Whose, body: &[u8]) -> Result<Vec<u8>, Unheard> {
        let have = Arc::new(decode::<Have>(body)?.places);
        let mut versions = self.versions();
        let until = tokio::time::Instant::now() + WAIT;
        loop {
            versions.mark_unchanged();
            let (places, late) = (have.clone(), tokio::time::Instant::now() >= until);
            let answer = self.aside(move |statuses| statuses.lacks(whose, &places, late)).await;
            if let Some(answer) = answer.flatten() {
                return answer;
            }
            // The sender is here; it cannot be gone.
            let _ = tokio::time::timeout_at(until, versions.changed()).await;
            tokio::time::sleep(GATHER).await;
        }
    }

    /// The answer, if there are news, or it is late.
    fn lacks(&self, whose: Whose, have: &Places, late: bool) -> Option<Result<Vec<u8>, Unheard>> {
        let lacks = self.lacking(whose, have);
        if !late && !have.is_empty() && !lacks.deltas.iter().any(Delta::is_news) {
            return None;
        }
        let lines: usize = lacks.deltas.iter().map(|delta| delta.lines.len()).sum();
        self.count(&self.0.counters.sent, lines as u64);
        self.count(&self.0.counters.messages, 1);
        Some(encode(&lacks).map_err(Unheard::from))
    }

    /// Where blocking is allowed: what takes milliseconds holds up nobody who carries entries and votes.
    async fn aside<T: Send + 'static>(&self, work: impl FnOnce(Statuses) -> T + Send + 'static) -> Option<T> {
        let statuses = self.clone();
        tokio::task::spawn_blocking(move || work(statuses)).await.ok()
    }

    fn lacking(&self, whose: Whose, have: &Places) -> Lacks {
        let now = moment();
        let mut home = locked(&self.0.relayed);
        home.retain(|_, told| now.since(*told) < RELAYED);
        let mut board = locked(&self.0.board);
        let own = board.own_name().clone();
        let wanted = |host: &HostName| whose == Whose::All || *host == own || home.contains_key(host);
        let board = Arc::make_mut(&mut board);
        board.forget(now);
        let (deltas, more) = board.since(wanted, have, now, (ANSWER, fastrand::usize(..)));
        Lacks { deltas, more }
    }

    fn merge(&self, delta: Delta) -> Merged {
        let mut merged = Merged::Stale;
        for part in delta.parts() {
            merged = self.change(|board| board.merge(part, moment()));
            match merged {
                Merged::Taken(lines) => self.count(&self.0.counters.taken, lines),
                Merged::Refused => self.count(&self.0.counters.refused, 1),
                Merged::Stale => {}
            }
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statuses() -> Statuses {
        Statuses::new("alpha".parse().unwrap())
    }

    fn says(statuses: &Statuses, instance: &str) {
        statuses.note([(instance.parse().unwrap(), RunId(1), Some(Summary::default()))]);
    }

    #[test]
    fn all_who_look_share_one_board_and_it_stays_as_they_saw_it() {
        let statuses = statuses();
        says(&statuses, "zone.0");
        let (one, other) = (statuses.look(), statuses.look());
        assert!(Arc::ptr_eq(&one, &other), "each has a copy of its own");
        says(&statuses, "zone.1");
        assert_eq!((one.len(), statuses.look().len()), (1, 2));
    }

    #[test]
    fn whoever_minds_is_heard_and_takes_no_board() {
        let statuses = statuses();
        assert!(!statuses.is_wanted());
        let holders = || Arc::strong_count(&*locked(&statuses.0.board));
        statuses.mind();
        assert_eq!((statuses.is_wanted(), holders()), (true, 1));
    }

    fn sheet(host: &str, age: Duration) -> Delta {
        let (to, age_ms) = (Place { life: 1, seq: 0 }, age.as_millis() as u64);
        Delta { host: host.parse().unwrap(), to, from: None, age_ms, lines: Vec::new() }
    }

    #[test]
    fn who_was_not_heard_for_long_is_forgotten_also_where_nobody_is_asked() {
        let old = Duration::from_secs(61);
        let known = |statuses: &Statuses| {
            statuses.board().places().into_keys().map(|host| host.to_string()).collect::<Vec<_>>()
        };
        let statuses = statuses();
        statuses.merge(sheet("beta", old));
        statuses.merge(sheet("gamma", Duration::ZERO));
        assert_eq!(known(&statuses), ["beta", "gamma"]);
        statuses.lacking(Whose::Home, &Places::new());
        assert_eq!(known(&statuses), ["gamma"], "after an answer");
        statuses.merge(sheet("beta", old));
        let body = encode(&sheet("delta", Duration::ZERO)).unwrap();
        statuses.hear_host(&"delta".parse().unwrap(), &body).unwrap();
        assert_eq!(known(&statuses), ["delta", "gamma"], "after a host has come");
    }
}
