//! The table of runs and its transitions.
//!
//! Owns what is known about each run, from intent to acknowledgement. Pure: the loop reports what happened
//! and sends what comes back. Never two live runs of an instance: [`Table::enter`] refuses. Called by the
//! loop only.

use std::collections::BTreeMap;

use super::protocol::{End, Reply, RunId, RunRecord, SpawnStep, Stage};
use crate::spec::InstanceId;

/// A run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What the agent may know.
    pub record: RunRecord,
    /// Its place in the ledger.
    pub slot: usize,
    /// The process group and session that its first main process leads.
    pub group: i32,
    /// It lives in its instance's cgroup.
    pub in_cgroup: bool,
    /// Its main process is our child, so that the kernel reports its end to us.
    pub child: bool,
    /// The fence killed it.
    pub fenced: bool,
    /// A kill was asked for or follows from the main process's end.
    pub killing: bool,
    /// Why its program was not executed.
    failure: Option<(SpawnStep, i32)>,
}

impl Run {
    /// A run whose child is about to be made.
    pub fn new(record: RunRecord, slot: usize, in_cgroup: bool) -> Self {
        let group = record.pid;
        Run { record, slot, group, in_cgroup, child: true, fenced: false, killing: false, failure: None }
    }

    /// Some process of it may be left.
    pub fn lives(&self) -> bool {
        !matches!(self.record.stage, Stage::Gone { .. } | Stage::SpawnFailed { .. })
    }
}

/// All runs.
#[derive(Debug, Default)]
pub struct Table {
    runs: BTreeMap<RunId, Run>,
    live: BTreeMap<InstanceId, RunId>,
    mains: BTreeMap<i32, RunId>,
}

impl Table {
    /// Adds a run; false when its number is taken or its instance has a live run.
    pub fn enter(&mut self, run: Run) -> bool {
        let id = run.record.run;
        if self.runs.contains_key(&id) || (run.lives() && self.live.contains_key(&run.record.instance)) {
            return false;
        }
        if run.lives() {
            self.live.insert(run.record.instance.clone(), id);
            if run.record.pid != 0 {
                self.mains.insert(run.record.pid, id);
            }
        }
        self.runs.insert(id, run);
        true
    }

    /// The run of this number.
    pub fn get(&self, id: RunId) -> Option<&Run> {
        self.runs.get(&id)
    }

    /// The live run of an instance.
    pub fn live(&self, instance: &InstanceId) -> Option<RunId> {
        self.live.get(instance).copied()
    }

    /// True when the number was used.
    pub fn knows(&self, id: RunId) -> bool {
        self.runs.contains_key(&id)
    }

    /// The run whose main process this is.
    pub fn of_main(&self, pid: i32) -> Option<RunId> {
        self.mains.get(&pid).copied()
    }

    /// Every run, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Run> {
        self.runs.values()
    }

    /// Every run of which a process may be left.
    pub fn living(&self) -> impl Iterator<Item = &Run> {
        self.live.values().filter_map(|id| self.runs.get(id))
    }

    /// The fork gave this child.
    pub fn forked(&mut self, id: RunId, pid: i32) {
        if let Some(run) = self.runs.get_mut(&id) {
            run.record.pid = pid;
            run.group = pid;
            self.mains.insert(pid, id);
        }
    }

    /// Its program is being executed.
    pub fn executing(&mut self, id: RunId) -> Option<Reply> {
        let unhurt = |run: &&mut Run| run.record.stage == Stage::Spawning && run.failure.is_none();
        let run = self.runs.get_mut(&id).filter(unhurt)?;
        run.record.stage = Stage::Running;
        Some(Reply::Spawned { run: id, pid: run.record.pid })
    }

    /// Its child reported that it could not go on; what follows is its exit.
    pub fn exec_failed(&mut self, id: RunId, step: SpawnStep, errno: i32) {
        if let Some(run) = self.runs.get_mut(&id) {
            run.failure = Some((step, errno));
        }
    }

    /// Its main process has ended. False when that was known.
    pub fn ended(&mut self, id: RunId, end: End) -> bool {
        let Some(run) = self.runs.get_mut(&id) else { return false };
        if !matches!(run.record.stage, Stage::Spawning | Stage::Running) {
            return false;
        }
        self.mains.remove(&run.record.pid);
        run.record.stage = Stage::Exited(end);
        true
    }

    /// The reply that tells of the main process's end when others are left; none for a failed spawn.
    pub fn exited_reply(&self, id: RunId) -> Option<Reply> {
        let run = self.runs.get(&id).filter(|r| r.failure.is_none())?;
        match run.record.stage {
            Stage::Exited(end) => Some(Reply::Exited { run: id, end }),
            _ => None,
        }
    }

    /// The main process has ended and nothing else is left.
    pub fn emptied(&mut self, id: RunId) -> Option<Reply> {
        let run = self.runs.get_mut(&id)?;
        let Stage::Exited(end) = run.record.stage else { return None };
        let reply = match run.failure {
            Some((step, errno)) => {
                run.record.stage = Stage::SpawnFailed { step, errno };
                Reply::SpawnFailed { run: id, step, errno }
            }
            None => {
                run.record.stage = Stage::Gone { end, fenced: run.fenced };
                Reply::Gone { run: id, end, fenced: run.fenced }
            }
        };
        self.live.remove(&run.record.instance);
        Some(reply)
    }

    /// It could not be forked; nothing of it exists.
    pub fn unforked(&mut self, id: RunId, step: SpawnStep, errno: i32) -> Option<Reply> {
        let run = self.runs.get_mut(&id).filter(|r| r.record.pid == 0)?;
        run.record.stage = Stage::SpawnFailed { step, errno };
        self.live.remove(&run.record.instance);
        Some(Reply::SpawnFailed { run: id, step, errno })
    }

    /// Everything of it is to die.
    pub fn killing(&mut self, id: RunId, fenced: bool) {
        if let Some(run) = self.runs.get_mut(&id) {
            run.killing = true;
            run.fenced |= fenced;
        }
    }

    /// Another process of it is the main one now.
    pub fn follow(&mut self, id: RunId, pid: i32, child: bool) {
        if let Some(run) = self.runs.get_mut(&id) {
            self.mains.remove(&run.record.pid);
            run.record.pid = pid;
            run.child = child;
            self.mains.insert(pid, id);
        }
    }

    /// Replaces its note.
    pub fn set_note(&mut self, id: RunId, note: Vec<u8>) {
        if let Some(run) = self.runs.get_mut(&id) {
            run.record.note = note;
        }
    }

    /// Marks a living run for the fence, or not any more; gives its slot.
    pub fn set_exclusive(&mut self, id: RunId, exclusive: bool) -> Option<usize> {
        let run = self.runs.get_mut(&id).filter(|run| run.lives())?;
        run.record.exclusive = exclusive;
        Some(run.slot)
    }

    /// Forgets a run that is over, and gives its slot. A living one stays.
    pub fn acknowledge(&mut self, id: RunId) -> Option<usize> {
        if self.runs.get(&id)?.lives() {
            return None;
        }
        self.runs.remove(&id).map(|run| run.slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(id: u64, instance: &str) -> Run {
        let record = RunRecord {
            run: RunId(id),
            instance: instance.parse().unwrap(),
            pid: 0,
            spawned_ns: 1,
            stage: Stage::Spawning,
            exclusive: false,
            note: Vec::new(),
        };
        Run::new(record, id as usize, true)
    }

    fn started(id: u64) -> Table {
        let mut table = Table::default();
        assert!(table.enter(run(id, "zone.1")));
        table.forked(RunId(id), 100);
        table
    }

    #[test]
    fn a_life_from_spawn_to_acknowledgement() {
        let mut table = started(1);
        let id = RunId(1);
        assert_eq!(table.of_main(100), Some(id));
        assert_eq!(table.executing(id), Some(Reply::Spawned { run: id, pid: 100 }));
        assert_eq!(table.executing(id), None);
        assert_eq!(table.acknowledge(id), None, "it lives");
        assert!(table.ended(id, End::Code(3)));
        assert!(!table.ended(id, End::Code(4)), "ended twice");
        assert_eq!(table.of_main(100), None);
        assert_eq!(table.exited_reply(id), Some(Reply::Exited { run: id, end: End::Code(3) }));
        assert_eq!(table.emptied(id), Some(Reply::Gone { run: id, end: End::Code(3), fenced: false }));
        assert_eq!(table.emptied(id), None);
        assert_eq!(table.acknowledge(id), Some(1));
        assert!(!table.knows(id));
    }

    #[test]
    fn an_instance_has_one_live_run() {
        let mut table = started(1);
        assert!(!table.enter(run(2, "zone.1")));
        table.ended(RunId(1), End::Code(0));
        assert!(!table.enter(run(2, "zone.1")), "others of run 1 are left");
        table.emptied(RunId(1));
        assert!(table.enter(run(2, "zone.1")), "run 1 is gone although not acknowledged");
        assert!(!table.enter(run(1, "zone.9")), "numbers are not used twice");
        assert_eq!(table.live(&"zone.1".parse().unwrap()), Some(RunId(2)));
    }

    #[test]
    fn a_failed_exec_is_told_when_its_child_is_gone() {
        let mut table = started(1);
        table.exec_failed(RunId(1), SpawnStep::Exec, 2);
        table.ended(RunId(1), End::Code(127));
        assert_eq!(table.exited_reply(RunId(1)), None);
        let reply = Reply::SpawnFailed { run: RunId(1), step: SpawnStep::Exec, errno: 2 };
        assert_eq!(table.emptied(RunId(1)), Some(reply));
        assert_eq!(table.acknowledge(RunId(1)), Some(1));
    }

    #[test]
    fn a_run_that_was_never_forked_frees_its_instance() {
        let mut table = Table::default();
        table.enter(run(1, "zone.1"));
        let reply = Reply::SpawnFailed { run: RunId(1), step: SpawnStep::Fork, errno: 11 };
        assert_eq!(table.unforked(RunId(1), SpawnStep::Fork, 11), Some(reply));
        assert!(table.enter(run(2, "zone.1")));
    }

    #[test]
    fn a_followed_process_is_the_main_one() {
        let mut table = started(1);
        table.executing(RunId(1));
        table.follow(RunId(1), 200, false);
        assert_eq!((table.of_main(100), table.of_main(200)), (None, Some(RunId(1))));
        assert_eq!(table.get(RunId(1)).unwrap().group, 100);
    }

    #[test]
    fn a_fenced_run_says_so() {
        let mut table = started(1);
        table.killing(RunId(1), true);
        table.killing(RunId(1), false);
        let end = End::Signal { signal: 9, core: false };
        table.ended(RunId(1), end);
        assert_eq!(table.emptied(RunId(1)), Some(Reply::Gone { run: RunId(1), end, fenced: true }));
    }
}
