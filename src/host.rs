//! One host's supervision, as a pure core.
//!
//! Owns what the host knows of its instances: phase, run, heartbeat, failures. It is given what is wanted
//! ([`Host::desire`]), what happened ([`Host::on`]) and the time, and answers with [`Action`]s, which the
//! agent's supervision loop carries out; it never does anything itself, and holds no clock. The files:
//! [`lifecycle`] is the table of phases, [`restart`] decides what follows an end, [`hang`] watches
//! heartbeats, [`reconcile`] compares what is wanted with what is there, [`fleet`] is the whole host,
//! [`fence`] says what may run here while the cluster is out of reach, `succession` what is ordered ahead of a crash.

pub mod action;
mod beginning;
mod ending;
pub mod fence;
pub mod fleet;
pub mod hang;
pub mod instance;
pub mod lifecycle;
pub mod reconcile;
pub mod restart;
mod signs;
mod succession;

pub use action::{Action, Cause, Measure, Occurrence, StopReason, Story};
pub use ending::describe;
pub use fence::Fence;
pub use fleet::Host;
pub use instance::{Instance, Phase, Ports, Run};
pub use lifecycle::Happening;
pub use reconcile::{Grounds, Want, wants};

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment of CLOCK_MONOTONIC, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment(pub u64);

impl Moment {
    /// The moment this much later.
    pub fn after(self, span: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// The moment this much earlier.
    pub fn before(self, span: Duration) -> Moment {
        Moment(self.0.saturating_sub(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// From an earlier moment to this one; zero when it is not earlier.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// What the core is told of time and chance with each call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For all deadlines.
    pub at: Moment,
    /// Milliseconds since 1970, for people only.
    pub wall_ms: u64,
    /// A fresh random number, for jitter.
    pub chance: u32,
}

#[cfg(test)]
mod tests;
