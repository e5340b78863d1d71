//! Appointing successors, and revoking them all.
//!
//! Owns their numbers, which are those of runs: reserved once, never given again. When a successor stands is
//! [`crate::host::Instance`]'s to say. Called by the supervision loop.

use std::ops::Bound;
use std::time::Duration;

use super::{Found, Host, stage};
use crate::host::instance::LastExit;
use crate::host::restart::Ending;
use crate::host::{Action, Cause, Happening, Instance, Now};
use crate::keeper::protocol::{End, RunId, Stage};
use crate::spec::InstanceId;

impl Host {
    /// Instances behind this one whose run could have a successor and has none.
    pub fn without_successor(
        &self,
        behind: Option<&InstanceId>,
        now: Now,
    ) -> impl Iterator<Item = &Instance> {
        let from = behind.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.instances.range::<InstanceId, _>((from, Bound::Unbounded));
        rest.map(|(_, instance)| instance).filter(move |instance| instance.wants_successor(now).is_some())
    }

    /// Appoints a successor to an instance's run, if one would follow its crash at once and none stands: that run, and
    /// the number of its successor.
    pub fn appoint(&mut self, id: &InstanceId, now: Now) -> Option<(RunId, RunId)> {
        let instance = self.instances.get_mut(id)?;
        let run = instance.wants_successor(now)?;
        self.last_run += 1;
        let successor = RunId(self.last_run);
        instance.successor = Some(successor);
        Some((run, successor))
    }

    /// Revokes all of them: something has changed that is in their orders.
    pub fn revoke_all(&mut self) -> Vec<Action> {
        let revoke = |instance: &mut Instance| {
            instance.successor.take()?;
            Some(Action::Revoke { run: instance.run.as_ref()?.id })
        };
        self.instances.values_mut().filter_map(revoke).collect()
    }

    /// A keeper that was lost may have begun successors before it could tell: the ends of the runs before are judged first.
    /// Their order for the next run is then carried out already. Of all others the keeper that is met knows nothing. Gives
    /// what is left of the table.
    pub(super) fn meet_successors(
        &mut self,
        mut table: Vec<Found>,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Vec<Found> {
        let appointed = |instance: &Instance| Some((instance.run.as_ref()?.id, instance.successor?));
        let appointed: Vec<(RunId, RunId)> = self.instances().filter_map(appointed).collect();
        for (run, by) in appointed {
            if table.iter().any(|found| found.run == by) {
                let listed = table.iter().position(|found| found.run == run).map(|at| table.remove(at));
                let end = listed.as_ref().and_then(stage);
                let unseen = Happening::Gone { end: End::Unknown, fenced: false };
                out.extend(self.on_run(run, end.unwrap_or(unseen), now));
            }
        }
        self.instances.values_mut().for_each(|instance| instance.successor = None);
        table
    }

    /// The end of an earlier run, of which nobody could tell the agent before: another one has begun since.
    pub(super) fn note_end(&mut self, found: &Found, now: Now) {
        let Some(instance) = self.instances.get_mut(&found.instance) else { return };
        if let Stage::Gone { end, fenced } = found.stage {
            let cause = if fenced { Cause::Fence } else { Cause::of(end) };
            instance.last_exit = Some(LastExit { cause, end, at_ms: now.wall_ms, detail: None });
            instance.last_run = Some(found.run);
            instance.restarts += 1;
            // Unless the agent before has written it down.
            let unnoted = found.note.as_ref().is_some_and(|note| note.failures == instance.failures);
            if let Some(want) = instance.want.as_ref().filter(|_| unnoted) {
                let ending = Ending { cause, end, healthy_for: Duration::ZERO };
                instance.failures.judge(&want.process.restart, ending, now);
            }
        }
    }
}
