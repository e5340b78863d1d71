//! A copy of the state that was put back: what was given out after it was made is not given out again.
//!
//! Owns the jump of the numbers that only grow: the index, which fencing tokens and generations are taken from, and the
//! incarnations. A copy knows neither how far they went without it, nor whether it was put back before, or an older one.
//! So they go on from the time at which it is put back: whatever was given out until then is smaller.

use super::{Response, State};

/// More than a cluster gives out, on the average of its life. Until the year 2248 the numbers stay below 2^53, up to which
/// whoever takes JSON's numbers for floating-point ones can tell them apart.
const PER_MS: u64 = 1024;
/// Where the clock is behind that: more than a cluster changes between a copy and its loss.
const AHEAD: u64 = 1 << 32;

impl State {
    /// This state is of some time ago; `stamp_ms` is now.
    pub(super) fn recover(&mut self, stamp_ms: u64) -> Response {
        let reached = stamp_ms.saturating_mul(PER_MS);
        for last in [&mut self.index, &mut self.incarnations] {
            *last = if *last < reached { reached } else { last.saturating_add(AHEAD) };
        }
        Response::Done
    }
}
