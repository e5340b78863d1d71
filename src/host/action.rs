//! What the host core wants done, and the words for what happened. A closed set of comparable values:
//! tests state what is decided by comparing them, and the supervision loop carries them out without a
//! choice of its own.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::keeper::protocol::{End, RunId};
use crate::spec::{InstanceId, Probe};
use crate::state::EventKind;

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Resolve the instance's spec (ports, templates, account) and start this run of it. Where it was the successor of the
    /// run before, the keeper may have done so.
    Spawn {
        /// Which instance.
        instance: InstanceId,
        /// The new run.
        run: RunId,
    },
    /// Ask the run to end: the message `shutdown` if it is connected, else the signal to its group.
    Ask {
        /// Which instance.
        instance: InstanceId,
        /// Which run.
        run: RunId,
        /// Said in the message.
        reason: StopReason,
        /// How long it is given.
        within: Duration,
        /// For a run without a connection; `None`: only the message.
        signal: Option<i32>,
    },
    /// Ask the run for a beat, over its process socket.
    Ping {
        /// Which instance.
        instance: InstanceId,
    },
    /// SIGABRT, then SIGCONT, to the main process.
    Abort {
        /// Which run.
        run: RunId,
    },
    /// End the run and all that it started.
    Kill {
        /// Which run.
        run: RunId,
    },
    /// Put a question to the run; [`super::Happening::Probed`] brings the answer.
    Probe {
        /// Which instance.
        instance: InstanceId,
        /// Which run.
        run: RunId,
        /// Names the question.
        asked: u64,
        /// The question.
        probe: Probe,
        /// No answer by then is no answer.
        timeout: Duration,
    },
    /// Write down what the run is doing before it is killed.
    Evidence {
        /// Which instance.
        instance: InstanceId,
        /// Which run.
        run: RunId,
        /// What it did not do.
        finding: String,
    },
    /// The run has no successor any more: the keeper is not to start one by itself.
    Revoke {
        /// Which run.
        run: RunId,
    },
    /// The keeper may forget the run.
    Acknowledge {
        /// Which run.
        run: RunId,
    },
    /// The keeper follows another main process of the run.
    Follow {
        /// Which run.
        run: RunId,
        /// The process.
        pid: i32,
    },
    /// The cgroup limits of the spec have changed: they are to hold for the living run.
    Limit {
        /// Which instance.
        instance: InstanceId,
        /// Which run.
        run: RunId,
    },
    /// Tell the keeper whether its fence is for this run.
    Exclusive {
        /// Whose.
        instance: InstanceId,
        /// Which run.
        run: RunId,
    },
    /// The bounds of the log files have changed.
    Logs {
        /// Which instance.
        instance: InstanceId,
        /// Which run.
        run: RunId,
    },
    /// The run's note in the keeper's ledger is out of date.
    Remember {
        /// Which instance.
        instance: InstanceId,
        /// Which run.
        run: RunId,
    },
    /// The instance is gone from this host: close its sockets, free its ports.
    Release {
        /// Which instance.
        instance: InstanceId,
    },
    /// Tell the directory.
    Tell {
        /// About an instance.
        instance: InstanceId,
        /// About a run.
        run: RunId,
        /// What happened.
        kind: EventKind,
    },
    /// Tell people.
    Narrate(Occurrence),
    /// Tell the metrics.
    Measure(Measure),
}

impl Action {
    /// On the way from the end of a run to the next.
    pub fn is_start(&self) -> bool {
        matches!(self, Action::Spawn { .. } | Action::Acknowledge { .. })
    }

    /// Tells somebody, and changes nothing for the runs.
    pub fn is_telling(&self) -> bool {
        matches!(self, Action::Tell { .. } | Action::Narrate(_) | Action::Measure(_))
    }
}

/// Why a run is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// An operator stopped the instance.
    Stop,
    /// An operator wants a new run.
    Restart,
    /// The spec has changed.
    Update,
    /// The instance is not wanted here any more.
    Remove,
    /// It drained for too long.
    DrainTimeout,
}

impl StopReason {
    /// As written in the message `shutdown` (docs/protocol.md).
    pub fn as_str(self) -> &'static str {
        match self {
            StopReason::Stop => "stop",
            StopReason::Restart => "restart",
            StopReason::Update => "update",
            StopReason::Remove => "remove",
            StopReason::DrainTimeout => "drain-timeout",
        }
    }
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Cause {
    /// It exited by itself.
    Exit,
    /// A signal that was not ours.
    Signal,
    /// It hung (or never got ready) and was killed.
    Hang,
    /// It could not be started.
    Spawn,
    /// The spec asked for it: update, scale-down, removal, pause.
    Stop,
    /// An operator asked for it.
    Operator,
    /// The fence deadline passed.
    Fence,
    /// A leftover without a certain record.
    Stray,
    /// Nobody could watch.
    Unknown,
}

impl Cause {
    /// All causes, for the closed label set of the metrics.
    pub const ALL: [Cause; 9] = [
        Cause::Exit,
        Cause::Signal,
        Cause::Hang,
        Cause::Spawn,
        Cause::Stop,
        Cause::Operator,
        Cause::Fence,
        Cause::Stray,
        Cause::Unknown,
    ];

    /// As written in the API and the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Exit => "exit",
            Cause::Signal => "signal",
            Cause::Hang => "hang",
            Cause::Spawn => "spawn",
            Cause::Stop => "stop",
            Cause::Operator => "operator",
            Cause::Fence => "fence",
            Cause::Stray => "stray",
            Cause::Unknown => "unknown",
        }
    }

    /// The cause that an end shows by itself.
    pub fn of(end: End) -> Cause {
        match end {
            End::Code(_) => Cause::Exit,
            End::Signal { .. } => Cause::Signal,
            End::Unknown => Cause::Unknown,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Something that happened to an instance, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occurrence {
    /// To which instance.
    pub instance: InstanceId,
    /// To which run.
    pub run: Option<RunId>,
    /// What.
    pub story: Story,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Story {
    /// A run was spawned.
    Started {
        /// Its process.
        pid: i32,
    },
    /// It is ready.
    Ready {
        /// How long after its spawn.
        after: Duration,
    },
    /// It takes no new players.
    Draining,
    /// It was asked to end, or says that it is ending.
    Stopping(Cause),
    /// It was silent for too long.
    Hang(String),
    /// Its main process ended.
    Exited(Cause, End),
    /// Nothing of it is left and nothing follows.
    Stopped(String),
    /// The next run waits.
    Backoff(Duration),
    /// No run follows until `start`.
    Failed(String),
    /// An operator stopped it.
    Paused,
    /// An operator let it run.
    Resumed,
    /// It could not be started.
    SpawnFailed(String),
    /// Its exec does not come back.
    SpawnStuck,
    /// A run was found when the agent started.
    Adopted {
        /// Its process.
        pid: i32,
    },
    /// It is ready but has never beaten: nothing watches it for hangs.
    Unarmed,
    /// A new keeper found leftovers of it that no certain record explains, and killed them.
    Strays,
}

/// Something to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// A run was replaced: why, and how long the instance had none.
    Restarted {
        /// Why the run before ended.
        cause: Cause,
        /// From that end (of a hung run: its deadline) to the new run's program.
        took: Duration,
    },
    /// Leftovers of an instance were killed.
    Strays,
    /// A hung run is being killed, this long after its deadline.
    HangKill(Duration),
    /// A heartbeat came this long after it was due.
    LateBeat(Duration),
}
