//! What the host knows of one instance. Plain data; [`super::lifecycle`] changes it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::hang::Watch;
use super::restart::Failures;
use super::{Cause, Moment, Want};
use crate::keeper::protocol::{End, RunId};
use crate::spec::fingerprint::SpecHash;
use crate::spec::{InstanceId, Process, Protocol, Stop};
use crate::state::Rest;

/// One instance on this host.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Its name.
    pub id: InstanceId,
    /// What is wanted of it; `None`: it is to go.
    pub want: Option<Want>,
    /// Its process as last wanted.
    pub process: Option<Arc<Process>>,
    /// How far it is.
    pub phase: Phase,
    /// Its run, while anything of one may be left.
    pub run: Option<Run>,
    /// Failures that still count.
    pub failures: Failures,
    /// Runs after the first that this agent knows of.
    pub restarts: u64,
    /// How the last run ended.
    pub last_exit: Option<LastExit>,
    /// Why it is in its phase, in words.
    pub reason: Option<String>,
    /// What the run says about itself.
    pub status: Map<String, Value>,
    /// When the run that is being killed should have beaten at the latest.
    pub hung: Option<Moment>,
    /// When the last run ended and why, until the next is spawned.
    pub ended: Option<(Moment, Cause)>,
    /// The newest run of which nothing is left; its end is judged once, however often it is told.
    pub last_run: Option<RunId>,
    /// Its run was taken over, and what is wanted has not been compared with it yet.
    pub unheeded: bool,
    /// The number of the run that the keeper is to start at once when its run crashes; see `succession`.
    pub successor: Option<RunId>,
}

/// How far an instance is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No run yet: it waits for other processes.
    Waiting,
    /// Spawned, not ready.
    Starting {
        /// Not ready by then is a hang.
        until: Moment,
    },
    /// In service.
    Ready,
    /// No new players; it ends when it is empty.
    Draining {
        /// Then it is stopped.
        until: Moment,
        /// When the host asked for it: why. `None`: its own wish.
        cause: Option<Cause>,
        /// By then it must have said that it drains.
        confirm: Option<Moment>,
    },
    /// It is ending.
    Stopping {
        /// Why; `None`: its own wish.
        cause: Option<Cause>,
        /// Then it is killed; `None`: that was done.
        until: Option<Moment>,
    },
    /// The next run waits.
    Backoff {
        /// Until then.
        until: Moment,
    },
    /// Too many failures.
    Failed,
    /// Stopped by an operator.
    Paused,
    /// Done, or not wanted.
    Stopped,
}

impl Phase {
    /// As written in the API.
    pub fn as_str(&self) -> &'static str {
        match self {
            Phase::Waiting => "waiting",
            Phase::Starting { .. } => "starting",
            Phase::Ready => "ready",
            Phase::Draining { .. } => "draining",
            Phase::Stopping { .. } => "stopping",
            Phase::Backoff { .. } => "backoff",
            Phase::Failed => "failed",
            Phase::Paused => "paused",
            Phase::Stopped => "stopped",
        }
    }

    /// All words of [`Phase::as_str`], for the closed label set of the metrics.
    pub const ALL: [&str; 9] =
        ["waiting", "starting", "ready", "draining", "stopping", "backoff", "failed", "paused", "stopped"];
}

/// Ports by name.
pub type Ports = BTreeMap<String, (Protocol, u16)>;

/// One life of an instance.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its number.
    pub id: RunId,
    /// Its main process, once spawned.
    pub pid: Option<i32>,
    /// When it was ordered (or, adopted, first seen).
    pub spawned: Moment,
    /// The same for people, milliseconds since 1970.
    pub spawned_ms: u64,
    /// The spec it was spawned with.
    pub hash: SpecHash,
    /// How it is stopped when nothing newer is known.
    pub stop: Stop,
    /// The ports that it was given.
    pub ports: Ports,
    /// Its instance was down before it: what the run before had may be somebody else's by now.
    pub cold: bool,
    /// It said that it is ready before the keeper's word of its spawn came.
    pub early: bool,
    /// When it got ready.
    pub ready: Option<Moment>,
    /// The same for people.
    pub ready_ms: Option<u64>,
    /// Its heartbeat.
    pub watch: Watch,
    /// It has said hello on the process socket and is connected.
    pub native: bool,
    /// It was so with the agent before this one, and is expected to say hello again.
    pub expected: bool,
    /// It has named another main process, and `pid` is the one before.
    pub followed: bool,
    /// It was told to people that nothing watches it.
    pub unarmed_told: bool,
    /// What an operator is about to do to it, and when that was announced.
    pub announced: Option<Moment>,
    /// How its main process ended, while others are left.
    pub exited: Option<End>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastExit {
    /// Why.
    pub cause: Cause,
    /// How.
    pub end: End,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// In words.
    pub detail: Option<String>,
}

/// What a run's note in the keeper's ledger holds: all that a new agent must know of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The spec it was spawned with.
    pub hash: SpecHash,
    /// It is ready.
    pub ready: bool,
    /// It has beaten.
    pub armed: bool,
    /// Milliseconds of silence that are a hang, where it has said so itself (`WATCHDOG_USEC`).
    pub own_timeout_ms: Option<u64>,
    /// How it is stopped when the spec does not know it any more.
    pub stop: Stop,
    /// It speaks on the process socket.
    pub native: bool,
    /// Those before it that still count.
    pub failures: Failures,
    /// How far its end is. Written after what was asked of it, over the same connection: a keeper that has the
    /// note has heard the rest, too.
    pub leaving: Leaving,
}

/// How far the end of a run is. Moments hold until the next boot, and so does the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leaving {
    /// It goes on.
    No,
    /// See [`Phase::Draining`].
    Draining {
        /// Then it is stopped.
        until: Moment,
        /// Why; `None`: its own wish.
        cause: Option<Cause>,
        /// By then it must have said that it drains.
        confirm: Option<Moment>,
    },
    /// See [`Phase::Stopping`].
    Stopping {
        /// Why; `None`: its own wish.
        cause: Option<Cause>,
        /// Then it is killed; `None`: that was done.
        until: Option<Moment>,
    },
}

impl Leaving {
    /// That of a phase.
    fn of(phase: &Phase) -> Leaving {
        match *phase {
            Phase::Draining { until, cause, confirm } => Leaving::Draining { until, cause, confirm },
            Phase::Stopping { cause, until } => Leaving::Stopping { cause, until },
            _ => Leaving::No,
        }
    }

    /// The phase of a run that is leaving.
    pub(super) fn phase(self) -> Option<Phase> {
        match self {
            Leaving::No => None,
            Leaving::Draining { until, cause, confirm } => Some(Phase::Draining { until, cause, confirm }),
            Leaving::Stopping { cause, until } => Some(Phase::Stopping { cause, until }),
        }
    }
}

impl Instance {
    /// An instance without a run.
    pub fn new(id: InstanceId) -> Self {
        Instance {
            id,
            want: None,
            process: None,
            phase: Phase::Waiting,
            run: None,
            failures: Failures::default(),
            restarts: 0,
            last_exit: None,
            reason: None,
            status: Map::new(),
            hung: None,
            ended: None,
            last_run: None,
            unheeded: false,
            successor: None,
        }
    }

    /// The note of its run.
    pub fn note(&self) -> Option<Note> {
        let run = self.run.as_ref()?;
        Some(Note {
            hash: run.hash,
            ready: run.ready.is_some(),
            armed: run.watch.last.is_some(),
            own_timeout_ms: run
                .watch
                .own_timeout
                .map(|own| u64::try_from(own.as_millis()).unwrap_or(u64::MAX)),
            stop: self.process.as_ref().map_or_else(|| run.stop.clone(), |process| process.stop.clone()),
            native: run.native || run.expected,
            failures: self.failures.noted(),
            leaving: Leaving::of(&self.phase),
        })
    }

    /// A run of it was there until just now: the next one is waited for.
    pub fn is_missed(&self) -> bool {
        // Of a run that could not even be started nobody knows how it ended, but why.
        let lived = |last: &LastExit| last.end != End::Unknown || last.cause == Cause::Unknown;
        self.ended.is_some() && self.last_exit.as_ref().is_some_and(lived)
    }

    /// That no run follows by itself, for the replicated state; `None`: one does, or it is not wanted.
    pub fn rest(&self) -> Option<Rest> {
        let failed = match (&self.phase, &self.want) {
            (Phase::Failed, Some(_)) => Some(self.reason.clone().unwrap_or_default()),
            (Phase::Stopped, Some(_)) => None,
            _ => return None,
        };
        let last = self.last_exit.as_ref()?;
        Some(Rest { run: self.last_run?, end: last.end, at_ms: last.at_ms, failed })
    }
}
