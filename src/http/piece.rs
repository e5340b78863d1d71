//! Streams in pieces: what follows a place, and the place after it, so that they can be had by single requests.
//!
//! Owns the words of that: `?after=` names the place (`start`: the beginning), `?wait_ms=` how long to wait for
//! something to follow it, the header `bigbrother-next` the place to go on from. Used by agents among themselves.

use std::time::Duration;

use serde::Deserialize;

/// The header with the place to go on from.
pub(super) const NEXT: &str = "bigbrother-next";
/// The beginning.
pub(super) const START: &str = "start";
/// The longest that a request waits for something to follow.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(5);

/// A time to wait, from a query.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct Wait(u64);

impl Wait {
    pub(super) fn span(self) -> Duration {
        Duration::from_millis(self.0).min(MAX_WAIT)
    }
}

impl From<Duration> for Wait {
    fn from(span: Duration) -> Wait {
        Wait(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
    }
}
