//! Named points at which a test makes the keeper, or the agent, die of SIGKILL.
//!
//! Owns the table of points and the one armed point. `BIGBROTHER_FAULT=<point>[:n]` arms one: the process
//! that it is given to kills itself when it passes the point for the n-th time (default 1). Compiled in always, so that the
//! program that is tested is the program that runs; unarmed, a point costs one load and one branch.
//!
//! | point | when |
//! |---|---|
//! | `after-intent` | the ledger has the intent, nothing was forked |
//! | `child-before-pid` | in the child, before it writes its pid; it goes on 0.3 s after the keeper's death |
//! | `child-after-pid` | in the child, its pid written, before it looks for its parent; likewise |
//! | `child-before-exec` | in the child, right before the exec; likewise |
//! | `after-clone` | the child exists, the keeper has noted nothing |
//! | `before-spawned` | the exec has succeeded, nobody was told |
//! | `after-reap` | an exit status was taken from the kernel, nothing noted it |
//! | `before-gone` | the run is empty, nobody was told |
//! | `after-gone` | the ledger says gone, the reply is queued, not sent |
//! | `before-kill` | a kill was asked for |
//! | `after-kill` | the kill was sent, nothing noted it |
//! | `after-acknowledge` | the ledger slot was freed |
//!
//! Those of the agent:
//!
//! | point | when |
//! |---|---|
//! | `agent-after-hold` | a new instance's sockets exist and were given to the keeper |
//! | `agent-before-order` | ports and run number were taken, nothing was ordered |
//! | `agent-after-order` | the keeper was told to spawn |
//! | `agent-before-book` | ports or run numbers were taken, host.json does not say so |
//! | `agent-after-book` | host.json says so |
//! | `agent-after-spawned` | the keeper's word that a run has begun was read, nothing followed |
//! | `agent-before-report` | events were taken to be reported, the state has none of them |
//! | `agent-after-report` | the state has them |
//! | `agent-after-note` | the keeper was told what a next agent must know of a run |
//! | `agent-before-ask` | a run is to be stopped, nobody has told it |
//! | `agent-after-ask` | it was told, by message or signal |
//! | `agent-before-kill` | a run is to be killed, the keeper has not been told |
//! | `agent-after-kill` | the keeper was told |
//! | `agent-after-gone` | the keeper's word that nothing is left was read, nothing followed |
//! | `agent-before-acknowledge` | what follows an end is decided, the end is not acknowledged |
//! | `agent-after-acknowledge` | the end was acknowledged |

use std::sync::atomic::{AtomicU32, Ordering};

macro_rules! points {
    ($($name:ident = $text:literal),* $(,)?) => {
        /// A point; see the module.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point { $(#[allow(missing_docs)] $name),* }

        impl Point {
            const ALL: &[(Point, &'static str)] = &[$((Point::$name, $text)),*];
        }
    };
}

points! {
    AfterIntent = "after-intent",
    ChildBeforePid = "child-before-pid",
    ChildAfterPid = "child-after-pid",
    ChildBeforeExec = "child-before-exec",
    AfterClone = "after-clone",
    BeforeSpawned = "before-spawned",
    AfterReap = "after-reap",
    BeforeGone = "before-gone",
    AfterGone = "after-gone",
    BeforeKill = "before-kill",
    AfterKill = "after-kill",
    AfterAcknowledge = "after-acknowledge",
    AgentAfterHold = "agent-after-hold",
    AgentBeforeOrder = "agent-before-order",
    AgentAfterOrder = "agent-after-order",
    AgentBeforeBook = "agent-before-book",
    AgentAfterBook = "agent-after-book",
    AgentAfterSpawned = "agent-after-spawned",
    AgentBeforeReport = "agent-before-report",
    AgentAfterReport = "agent-after-report",
    AgentAfterNote = "agent-after-note",
    AgentBeforeAsk = "agent-before-ask",
    AgentAfterAsk = "agent-after-ask",
    AgentBeforeKill = "agent-before-kill",
    AgentAfterKill = "agent-after-kill",
    AgentAfterGone = "agent-after-gone",
    AgentBeforeAcknowledge = "agent-before-acknowledge",
    AgentAfterAcknowledge = "agent-after-acknowledge",
}

/// Index into `Point::ALL` plus one; 0: none.
static ARMED: AtomicU32 = AtomicU32::new(0);
static LEFT: AtomicU32 = AtomicU32::new(0);

/// The environment variable that arms a point.
pub const VARIABLE: &str = "BIGBROTHER_FAULT";

/// Arms the point that the environment names, if any; an unknown one is an error, in words.
pub fn arm_from_environment() -> Result<(), String> {
    let Ok(text) = std::env::var(VARIABLE) else { return Ok(()) };
    let (index, passes) = parse(&text).ok_or_else(|| format!("{VARIABLE}={text} names no fault point"))?;
    LEFT.store(passes, Ordering::Relaxed);
    ARMED.store(index, Ordering::Relaxed);
    Ok(())
}

fn parse(text: &str) -> Option<(u32, u32)> {
    let (name, passes) = text.split_once(':').unwrap_or((text, "1"));
    let index = Point::ALL.iter().position(|(_, n)| *n == name)?;
    let passes = passes.parse().ok().filter(|n| *n > 0)?;
    Some((index as u32 + 1, passes))
}

/// Passes a point.
#[inline]
pub fn pass(point: Point) {
    if hit(point) {
        // SAFETY: kill and getpid touch no memory.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        loop {
            std::thread::park();
        }
    }
}

/// True when this passing is the one at which to die. The child asks too: its copy of the counter is
/// counted down by [`passed_child_points`].
#[inline]
pub fn hit(point: Point) -> bool {
    ARMED.load(Ordering::Relaxed) == point as u32 + 1 && LEFT.fetch_sub(1, Ordering::Relaxed) == 1
}

/// Counts in the keeper the child points that the child it has just forked will pass: the child's own
/// count ends with the child.
pub fn passed_child_points() {
    for point in [Point::ChildBeforePid, Point::ChildAfterPid, Point::ChildBeforeExec] {
        if ARMED.load(Ordering::Relaxed) == point as u32 + 1 {
            LEFT.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read_with_their_count() {
        assert_eq!(parse("after-intent"), Some((1, 1)));
        assert_eq!(parse("after-reap:3"), Some((Point::AfterReap as u32 + 1, 3)));
        assert_eq!(parse("after-reap:0"), None);
        assert_eq!(parse("nowhere"), None);
    }
}
