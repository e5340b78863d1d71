//! The run that follows a crash at once, ordered ahead.
//!
//! The keeper can start what follows a crash without asking, if it was told so before: that saves the way to the agent
//! and back. What is told ahead is this core's own judgement, and it stands only while that would be the same: a
//! successor is appointed to a run in service that would be followed at once, and revoked by the same step that
//! changes anything about that, before anything else that it asks for. Whether the keeper has carried it out or
//! not, the end of the run is judged as every other; a successor that was begun and does not follow from that
//! judgement is ended by the supervision loop, which hears of both. Pure. Called by [`super::fleet`] and by
//! [`Instance::step`].

use super::instance::{Leaving, Note};
use super::restart::{Ending, Verdict};
use super::{Action, Cause, Happening, Instance, Now, Phase, Run};
use crate::keeper::protocol::{End, RunId};

/// What a successor is for.
const CRASH: End = End::Signal { signal: 9, core: false };

/// What a step began with, to see whether the successor stands after it.
pub(super) struct Before {
    successor: Option<(RunId, RunId)>,
    /// It changes what is wanted, and with that what would be started.
    renews: bool,
    /// How many actions there were.
    actions: usize,
}

impl Instance {
    /// Were its run to crash now, another one of the same would follow at once.
    pub(super) fn would_go_on(&self, now: Now) -> bool {
        let (Some(want), Some(run)) = (&self.want, &self.run) else { return false };
        // Of one that a fence may kill the keeper must not start another.
        if !self.serves() || want.paused || want.hash != run.hash || want.process.exclusive() {
            return false;
        }
        let healthy_for = run.ready.map_or_else(Default::default, |ready| now.at.since(ready));
        let crash = Ending { cause: Cause::of(CRASH), end: CRASH, healthy_for };
        // Time makes this more lenient, and nothing but an end makes it stricter.
        self.failures.clone().judge(&want.process.restart, crash, now) == Verdict::Again
    }

    /// Its run is in service, its main process is known, and nobody has said that it is to end.
    fn serves(&self) -> bool {
        let lives = |run: &Run| run.pid.is_some() && !run.followed && run.exited.is_none();
        self.phase == Phase::Ready && !self.unheeded && self.run.as_ref().is_some_and(lives)
    }

    /// Its run, if that can have a successor and has none.
    pub(in crate::host) fn wants_successor(&self, now: Now) -> Option<RunId> {
        let run = self.run.as_ref().filter(|_| self.successor.is_none())?.id;
        self.would_go_on(now).then_some(run)
    }

    /// The note that its next run begins with. That the run before has failed is added when that is heard.
    pub fn next_note(&self) -> Option<Note> {
        let own = self.note()?;
        let begun = Note { ready: false, armed: false, own_timeout_ms: None, native: false, ..own };
        Some(Note { leaving: Leaving::No, ..begun })
    }

    pub(super) fn begin_step(&self, happening: &Happening, actions: usize) -> Before {
        let run = self.run.as_ref().map(|run| run.id);
        let renews = matches!(happening, Happening::Wanted(want) if *want != self.want);
        Before { successor: run.zip(self.successor), renews, actions }
    }

    /// Revokes a successor that would not follow any more, ahead of whatever the step wants done.
    pub(super) fn end_step(&mut self, before: &Before, out: &mut Vec<Action>) {
        let Some((run, _)) = before.successor else { return };
        let same = self.run.as_ref().is_some_and(|now| now.id == run);
        if same && !before.renews && self.serves() {
            return;
        }
        self.successor = None;
        // With the end of its run the keeper has forgotten it.
        if same {
            out.insert(before.actions, Action::Revoke { run });
        }
    }
}
