//! Watching for hangs: when a run was last heard of, when that is too long ago, when to ask.
//!
//! Pure. One [`Watch`] belongs to one run. Before the fleet judges a passed deadline, the supervision
//! loop reads what waits on the run's sockets; when the agent itself was stalled, deadlines move.

use std::time::Duration;

use super::Moment;
use crate::spec::{Heartbeat, HeartbeatMode, Probe, ReadyMode};

/// The first question to a starting run, and the pause after a refused one: a server that has not bound
/// its port yet answers with an error that costs it nothing.
const KNOCK: Duration = Duration::from_millis(100);
/// How often a starting run is asked.
const READY_INTERVAL: Duration = Duration::from_millis(250);
/// How long an answer may take while a run is starting.
const READY_ANSWER: Duration = Duration::from_secs(1);

/// What a question brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was answered.
    Alive,
    /// Nobody listens there (yet).
    Refused,
    /// Silence, nonsense or a failing command, in words.
    Failed(String),
}

/// The heartbeat of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// Silence for this long is a hang, by the process's own word (`WATCHDOG_USEC`; zero: never). `None`:
    /// as the spec says.
    pub own_timeout: Option<Duration>,
    /// When it was last heard of; `None`: never.
    pub last: Option<Moment>,
    /// The beat after which it was asked for another, so that one silence brings one ping.
    pinged: Option<Moment>,
    /// No judgement before this moment (EXTEND_TIMEOUT_USEC, a stall of the agent).
    grace: Moment,
    /// The question under way.
    asked: Option<Asked>,
    /// How many were put; names them.
    questions: u64,
    /// When the next question is due.
    ask_at: Option<Moment>,
    /// What the last failed question said.
    pub complaint: Option<String>,
}

/// A question under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    number: u64,
    at: Moment,
}

/// A question to put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Names it.
    pub asked: u64,
    /// What to ask.
    pub probe: Probe,
    /// How long the answer may take.
    pub timeout: Duration,
}

impl Watch {
    /// The run was heard of. Gives how late that was: the time beyond the declared interval.
    pub fn beat(&mut self, now: Moment, interval: Duration) -> Option<Duration> {
        let gap = self.last.map(|last| now.since(last));
        self.last = Some(now);
        self.complaint = None;
        gap.map(|gap| gap.saturating_sub(interval))
    }

    /// The moment at which a ready run counts as hung; `None`: it is not watched, or has never beaten
    /// (READY alone arms nothing).
    pub fn deadline(&self, heartbeat: &Heartbeat) -> Option<Moment> {
        let own = self.own_timeout.filter(|_| !matches!(heartbeat.mode, HeartbeatMode::Probe(_)));
        match (&heartbeat.mode, own) {
            (HeartbeatMode::None, _) | (_, Some(Duration::ZERO)) => None,
            _ => Some(self.last?.after(own.unwrap_or(heartbeat.timeout)).max(self.grace)),
        }
    }

    /// When a native process is asked for a beat: after half of the silence that is a hang, once.
    pub fn ping_at(&self, heartbeat: &Heartbeat) -> Option<Moment> {
        let last = self.last.filter(|last| self.pinged != Some(*last))?;
        let timeout = self.own_timeout.unwrap_or(heartbeat.timeout);
        let asks = heartbeat.mode == HeartbeatMode::Native && !timeout.is_zero();
        asks.then(|| last.after(timeout / 2))
    }

    /// It is asked for a beat.
    pub fn pinged(&mut self) {
        self.pinged = self.last;
    }

    /// Nothing is judged before this moment.
    pub fn extend(&mut self, until: Moment) {
        self.grace = self.grace.max(until);
    }

    /// The agent itself stood still: what it could not hear is no silence.
    pub fn stalled(&mut self, by: Duration) {
        self.last = self.last.map(|last| last.after(by));
        self.grace = self.grace.after(by);
    }

    /// The spec has changed in a living run: another sign is watched from now on.
    pub fn changed(&mut self, now: Moment, mode: &HeartbeatMode) {
        let asks = matches!(mode, HeartbeatMode::Probe(_));
        self.asked = None;
        self.ask_at = asks.then_some(now);
        // Silence counts from now where the agent itself asks, else from the first sign.
        self.last = asks.then_some(now);
    }

    /// The run got ready: probes go over to the pace of the heartbeat.
    pub fn ready(&mut self, now: Moment, heartbeat: &Heartbeat) {
        self.asked = None;
        self.ask_at = None;
        match &heartbeat.mode {
            // The answer that made it ready, or its start, is the first sign of life.
            HeartbeatMode::Probe(_) => {
                self.last = Some(now);
                self.ask_at = Some(now.after(heartbeat.interval));
            }
            _ => self.last = self.last.map(|_| now),
        }
    }

    /// The run is starting: questions begin if readiness is asked for.
    pub fn starting(&mut self, now: Moment, mode: &ReadyMode) {
        if matches!(mode, ReadyMode::Probe(_)) {
            self.ask_at = Some(now.after(KNOCK));
        }
    }

    /// When [`Watch::question`] has something to ask.
    pub fn next_question(&self) -> Option<Moment> {
        self.ask_at
    }

    /// The question that is due, if any. One is under way at a time.
    pub fn question(&mut self, now: Moment, probe: &Probe, pace: Pace) -> Option<Question> {
        if self.ask_at.is_none_or(|at| at > now) {
            return None;
        }
        self.questions += 1;
        let asked = Asked { number: self.questions, at: now };
        self.asked = Some(asked);
        let timeout = match pace {
            Pace::Starting => READY_ANSWER,
            // A command may take as long as a hang would; a datagram is lost or answered.
            Pace::Beating { timeout, .. } if matches!(probe, Probe::Exec { .. }) => timeout,
            Pace::Beating { interval, .. } => interval,
        };
        // The answer sets the next question; should its result get lost, asking goes on all the same.
        self.ask_at = Some(now.after(timeout * 2));
        Some(Question { asked: asked.number, probe: probe.clone(), timeout })
    }

    /// An answer came. False when it belongs to no question under way.
    pub fn answered(&mut self, now: Moment, number: u64, probe: &Probe, pace: Pace, answer: &Answer) -> bool {
        let Some(asked) = self.asked.take_if(|asked| asked.number == number) else {
            return false;
        };
        let interval = match (pace, answer) {
            (Pace::Starting, Answer::Refused) => KNOCK,
            (Pace::Starting, _) => READY_INTERVAL.max(shortest(probe)),
            (Pace::Beating { interval, .. }, _) => interval,
        };
        // Counted from the question, so that one that was lost costs one interval and not two.
        self.ask_at = Some(asked.at.after(interval).max(now));
        self.complaint = match answer {
            Answer::Alive => None,
            Answer::Refused => Some("refused".to_owned()),
            Answer::Failed(why) => Some(why.clone()),
        };
        true
    }
}

/// How fast questions follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Until the run is ready.
    Starting,
    /// From then on.
    Beating {
        /// Between an answer and the next question.
        interval: Duration,
        /// Silence that counts as a hang.
        timeout: Duration,
    },
}

fn shortest(probe: &Probe) -> Duration {
    match probe {
        Probe::Query { protocol, .. } => protocol.shortest_interval(),
        _ => Duration::ZERO,
    }
}
