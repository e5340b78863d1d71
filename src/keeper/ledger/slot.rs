//! One slot of the ledger: 1 KiB of words, and what they mean.
//!
//! Everything is an atomic word, because the child (another process) writes `child_ns` and `pid`. Order
//! matters twice: the phase is stored last when a slot is filled, and `pid` is stored after `child_ns`, so
//! whoever sees the pid sees the time.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::{LedgerError, load_bytes, store_bytes};
use crate::keeper::protocol::{End, LogTarget, MAX_NOTE, RunId, SpawnStep};
use crate::spec::InstanceId;

const NOTE_WORDS: usize = MAX_NOTE / 8;
const BODY_WORDS: usize = 128 - 16 - 2 * NOTE_WORDS;

const EXCLUSIVE: u64 = 1;
const FENCED: u64 = 2;
const IN_CGROUP: u64 = 4;

/// The words of a run.
#[repr(C)]
pub struct Slot {
    phase: AtomicU64,
    run: AtomicU64,
    keeper_pid: AtomicU64,
    intent_ns: AtomicU64,
    child_ns: AtomicU64,
    pid: AtomicU64,
    flags: AtomicU64,
    /// A process that was made the main one later (`MAINPID=`), and its start time in ticks.
    followed_ticks: AtomicU64,
    followed_pid: AtomicU64,
    body_len: AtomicU64,
    /// Which of the two notes counts (high half) and its length (low half).
    note_at: AtomicU64,
    /// Why the child could not go on: errno (high half) and step plus one (low half).
    failure: AtomicU64,
    unused: [AtomicU64; 4],
    notes: [[AtomicU64; NOTE_WORDS]; 2],
    body: [AtomicU64; BODY_WORDS],
}

/// The words of a slot that the child writes: `time`, then `pid`, and `failure` if it cannot go on.
#[derive(Clone, Copy)]
pub struct ChildWords<'a> {
    /// CLOCK_BOOTTIME in nanoseconds.
    pub time: &'a AtomicU64,
    /// Its number.
    pub pid: &'a AtomicU64,
    /// See [`failure_word`].
    pub failure: &'a AtomicU64,
}

/// A failed step as the child writes it; never zero.
pub fn failure_word(step: SpawnStep, errno: u32) -> u64 {
    (u64::from(errno) << 32) | (step as u64 + 1)
}

/// What is written before the fork.
pub struct Intent<'a> {
    /// The run.
    pub run: RunId,
    /// Kill it when the fence deadline passes.
    pub exclusive: bool,
    /// It is started in its instance's cgroup.
    pub in_cgroup: bool,
    /// Where it belongs.
    pub place: &'a Place,
    /// The agent's note.
    pub note: &'a [u8],
    /// Who forks.
    pub keeper_pid: i32,
    /// Before the fork, nanoseconds of CLOCK_BOOTTIME.
    pub intent_ns: u64,
}

/// The instance of a run and where its output goes, as they lie in a slot.
pub struct Place(Box<[u8]>);

impl Place {
    /// Written down; an error when it does not fit a slot.
    pub fn of(instance: &InstanceId, logs: &LogTarget) -> Result<Self, LedgerError> {
        let body = Body { instance: instance.clone(), logs: logs.clone() };
        let body = bincode::serde::encode_to_vec(&body, layout()).map_err(|_| LedgerError::TooLong)?;
        if body.len() > BODY_WORDS * 8 {
            return Err(LedgerError::TooLong);
        }
        Ok(Place(body.into_boxed_slice()))
    }
}

/// What was written before the fork.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The run.
    pub run: RunId,
    /// Its instance; names its cgroup and FIFOs.
    pub instance: InstanceId,
    /// Kill it when the fence deadline passes.
    pub exclusive: bool,
    /// It is started in its instance's cgroup.
    pub in_cgroup: bool,
    /// Where its output goes.
    pub logs: LogTarget,
    /// The agent's note.
    pub note: Vec<u8>,
}

/// How far the run of a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No run here.
    Free,
    /// Intended or alive.
    Live,
    /// The main process has ended, others may be left.
    Exited(End),
    /// Nothing is left; not acknowledged yet.
    Gone(End),
    /// It never started; not acknowledged yet.
    SpawnFailed(SpawnStep, i32),
}

/// A used slot as a new keeper reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What was written before the fork.
    pub record: Record,
    /// How far it is.
    pub phase: Phase,
    /// The keeper that forked.
    pub keeper_pid: i32,
    /// Before the fork, nanoseconds of CLOCK_BOOTTIME.
    pub intent_ns: u64,
    /// When the child wrote its pid; 0: it has not.
    pub child_ns: u64,
    /// The child; 0: it has not written its pid, and never will once the keeper that forked it is dead.
    pub pid: i32,
    /// (pid, start time in ticks) of a process that was made the main one later.
    pub followed: Option<(i32, u64)>,
    /// Killed because the fence deadline passed.
    pub fenced: bool,
}

/// The part of a record that has no fixed place.
#[derive(Serialize, Deserialize)]
struct Body {
    instance: InstanceId,
    logs: LogTarget,
}

fn layout() -> impl bincode::config::Config {
    bincode::config::standard().with_fixed_int_encoding().with_little_endian()
}

impl Slot {
    /// Writes an intent; false when it does not fit.
    pub(super) fn fill(&self, intent: &Intent<'_>) -> bool {
        if intent.note.len() > MAX_NOTE {
            return false;
        }
        self.clear();
        let Place(body) = intent.place;
        store_bytes(&self.body, body);
        self.body_len.store(body.len() as u64, Ordering::Relaxed);
        self.set_note(intent.note);
        self.run.store(intent.run.0, Ordering::Relaxed);
        self.keeper_pid.store(intent.keeper_pid as u64, Ordering::Relaxed);
        self.intent_ns.store(intent.intent_ns, Ordering::Relaxed);
        let exclusive = if intent.exclusive { EXCLUSIVE } else { 0 };
        let in_cgroup = if intent.in_cgroup { IN_CGROUP } else { 0 };
        self.flags.store(exclusive | in_cgroup, Ordering::Relaxed);
        self.set_phase(Phase::Live);
        true
    }

    pub(super) fn clear(&self) {
        self.set_phase(Phase::Free);
        let of_child = [&self.child_ns, &self.pid, &self.failure];
        let of_keeper = [&self.followed_ticks, &self.followed_pid, &self.note_at];
        for word in of_child.into_iter().chain(of_keeper) {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// What the child writes.
    pub fn child_words(&self) -> ChildWords<'_> {
        ChildWords { time: &self.child_ns, pid: &self.pid, failure: &self.failure }
    }

    /// The step at which the child could not go on, and errno.
    pub fn failure(&self) -> Option<(SpawnStep, i32)> {
        let word = self.failure.load(Ordering::Acquire);
        let step = (word as u32).checked_sub(1)?;
        Some((step_of(step), (word >> 32) as i32))
    }

    /// The child has written its pid and no failure: when it is not on its way any more, it executes its program,
    /// or was killed on the last steps to it.
    pub fn came_through(&self) -> bool {
        self.pid.load(Ordering::Acquire) != 0 && self.failure().is_none()
    }

    /// How far its run is.
    pub fn phase(&self) -> Phase {
        read_phase(self.phase.load(Ordering::Acquire))
    }

    /// Notes how far its run is.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase_word(phase), Ordering::Release);
    }

    /// Replaces the note: into the half that does not count, which then counts.
    pub fn set_note(&self, note: &[u8]) {
        let note = &note[..note.len().min(MAX_NOTE)];
        let half = (self.note_at.load(Ordering::Relaxed) >> 32) ^ 1;
        store_bytes(&self.notes[(half & 1) as usize], note);
        self.note_at.store((half << 32) | note.len() as u64, Ordering::Release);
    }

    /// Notes whether the fence is for it.
    pub fn set_exclusive(&self, exclusive: bool) {
        match exclusive {
            true => self.flags.fetch_or(EXCLUSIVE, Ordering::Relaxed),
            false => self.flags.fetch_and(!EXCLUSIVE, Ordering::Relaxed),
        };
    }

    /// Notes that the fence killed it.
    pub fn set_fenced(&self) {
        self.flags.fetch_or(FENCED, Ordering::Relaxed);
    }

    /// Notes another main process.
    pub fn set_followed(&self, pid: i32, start_ticks: u64) {
        self.followed_pid.store(0, Ordering::Release);
        self.followed_ticks.store(start_ticks, Ordering::Release);
        self.followed_pid.store(pid as u64, Ordering::Release);
    }

    /// What it holds; `None` when free, or unreadable (then nothing certain is known about its run).
    pub fn read(&self) -> Option<Entry> {
        let phase = self.phase();
        if phase == Phase::Free {
            return None;
        }
        let body = load_bytes(&self.body, self.body_len.load(Ordering::Relaxed) as usize);
        let (body, _): (Body, usize) = bincode::serde::decode_from_slice(&body, layout()).ok()?;
        let pid = self.pid.load(Ordering::Acquire) as i32;
        let note_at = self.note_at.load(Ordering::Acquire);
        let note = load_bytes(&self.notes[((note_at >> 32) & 1) as usize], (note_at & 0xFFFF_FFFF) as usize);
        let flags = self.flags.load(Ordering::Relaxed);
        let followed_pid = self.followed_pid.load(Ordering::Acquire) as i32;
        let followed =
            (followed_pid != 0).then(|| (followed_pid, self.followed_ticks.load(Ordering::Acquire)));
        Some(Entry {
            record: Record {
                run: RunId(self.run.load(Ordering::Relaxed)),
                instance: body.instance,
                exclusive: flags & EXCLUSIVE != 0,
                in_cgroup: flags & IN_CGROUP != 0,
                logs: body.logs,
                note,
            },
            phase,
            keeper_pid: self.keeper_pid.load(Ordering::Relaxed) as i32,
            intent_ns: self.intent_ns.load(Ordering::Relaxed),
            child_ns: self.child_ns.load(Ordering::Acquire),
            pid,
            followed,
            fenced: flags & FENCED != 0,
        })
    }
}

/// byte 0: phase; byte 1: kind of end, or the step; byte 2: core; high half: code, signal or errno.
fn phase_word(phase: Phase) -> u64 {
    let end = |end: End| match end {
        End::Unknown => 0,
        End::Code(code) => (1 << 8) | (u64::from(code as u32) << 32),
        End::Signal { signal, core } => (2 << 8) | (u64::from(core) << 16) | (u64::from(signal as u32) << 32),
    };
    match phase {
        Phase::Free => 0,
        Phase::Live => 1,
        Phase::Exited(e) => 2 | end(e),
        Phase::Gone(e) => 3 | end(e),
        Phase::SpawnFailed(step, errno) => 4 | ((step as u64) << 8) | (u64::from(errno as u32) << 32),
    }
}

fn read_phase(word: u64) -> Phase {
    let number = (word >> 32) as u32 as i32;
    let end = match (word >> 8) & 0xFF {
        1 => End::Code(number),
        2 => End::Signal { signal: number, core: (word >> 16) & 1 == 1 },
        _ => End::Unknown,
    };
    match word & 0xFF {
        0 => Phase::Free,
        2 => Phase::Exited(end),
        3 => Phase::Gone(end),
        4 => Phase::SpawnFailed(step_of(((word >> 8) & 0xFF) as u32), number),
        _ => Phase::Live,
    }
}

/// The step with this discriminant.
fn step_of(number: u32) -> SpawnStep {
    const STEPS: [SpawnStep; 14] = [
        SpawnStep::Busy,
        SpawnStep::Ledger,
        SpawnStep::Cgroup,
        SpawnStep::Limit,
        SpawnStep::Logs,
        SpawnStep::Fork,
        SpawnStep::Session,
        SpawnStep::Rlimit,
        SpawnStep::Nice,
        SpawnStep::Descriptors,
        SpawnStep::WorkingDir,
        SpawnStep::Group,
        SpawnStep::User,
        SpawnStep::Exec,
    ];
    STEPS.get(number as usize).copied().unwrap_or(SpawnStep::Exec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_numbers_agree() {
        for number in 0..14 {
            assert_eq!(step_of(number) as u32, number);
        }
    }

    #[test]
    fn a_failure_is_read_as_the_child_wrote_it() {
        // SAFETY: all zero is a free slot.
        let slot: Slot = unsafe { std::mem::zeroed() };
        assert_eq!(slot.failure(), None);
        for (step, errno) in [(SpawnStep::Busy, 0), (SpawnStep::Exec, 2)] {
            slot.child_words().failure.store(failure_word(step, errno as u32), Ordering::Release);
            assert_eq!(slot.failure(), Some((step, errno)));
        }
        slot.clear();
        assert_eq!(slot.failure(), None);
    }

    #[test]
    fn a_slot_is_one_kibibyte() {
        assert_eq!(size_of::<Slot>(), 1024);
    }
}
