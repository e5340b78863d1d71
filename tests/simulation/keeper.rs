//! A keeper and the machine's runs: what lives on whatever becomes of the agent.
//!
//! Owns the table of runs, which is the ledger on tmpfs: it outlives the keeper and ends with the power. Requests come
//! over a socket, in order; what a dead keeper had not read is lost.

use std::collections::{BTreeMap, VecDeque};

use bigbrother::host::Happening;
use bigbrother::host::fleet::Found;
use bigbrother::host::instance::Note;
use bigbrother::keeper::protocol::{End, RunId, SpawnStep, Stage};
use bigbrother::spec::InstanceId;

use crate::faults::Fault;

/// A kill is over by then, milliseconds; with a dead keeper and a late tick that is within `fence_kill`.
const KILL: u64 = 550;
/// What a killed run takes that sits in a dead file server, and no fence waits for.
const STUCK: u64 = 5_000;
/// A keeper that died is back by then.
const OUTAGE: u64 = 300;

pub enum Request {
    Spawn { run: RunId, instance: InstanceId, exclusive: bool, note: Option<Note> },
    Ask { run: RunId },
    Kill { run: RunId },
    Acknowledge { run: RunId },
    Note { run: RunId, note: Note },
    Fence { deadline_ns: u64 },
}

pub struct Held {
    pub instance: InstanceId,
    pub exclusive: bool,
    stage: Stage,
    /// It executes its program from then on.
    executes: u64,
    /// True time of its end; `None`: it lives on.
    dies: Option<u64>,
    how: End,
    fenced: bool,
    note: Option<Note>,
}

impl Held {
    pub fn lives(&self) -> bool {
        matches!(self.stage, Stage::Spawning | Stage::Running)
    }

    fn die(&mut self, at: u64, how: End) {
        if self.dies.is_none_or(|dies| at < dies) {
            (self.dies, self.how) = (Some(at), how);
        }
    }
}

const KILLED: End = End::Signal { signal: 9, core: false };

#[derive(Default)]
pub struct Keeper {
    runs: BTreeMap<RunId, Held>,
    pub fence_ns: u64,
    requests: VecDeque<Request>,
    replies: Vec<(RunId, Happening)>,
    /// Which keeper of this machine; an agent that knows another must meet this one.
    pub life: u64,
    /// Until then there is none.
    dead_until: u64,
    /// Programs that cannot be started here: processes whose name begins so.
    pub lacks: Option<char>,
    /// Something exclusive lives that did not, or the other way round.
    pub changed: bool,
}

impl Keeper {
    pub fn works(&self, now: u64) -> bool {
        self.dead_until <= now
    }

    pub fn living(&self) -> impl Iterator<Item = (RunId, &Held)> {
        self.runs.iter().filter(|(_, held)| held.lives()).map(|(run, held)| (*run, held))
    }

    pub fn lose_power(&mut self) {
        let life = self.life + 1;
        *self = Keeper { life, lacks: self.lacks, changed: true, ..Keeper::default() };
    }

    /// Killed. What it was making may or may not come to be.
    pub fn die(&mut self, now: u64, rng: &mut fastrand::Rng) {
        self.dead_until = now + rng.u64(20..OUTAGE);
        self.life += 1;
        self.requests.clear();
        self.replies.clear();
        for held in self.runs.values_mut().filter(|held| held.stage == Stage::Spawning) {
            // Without a certain record it is killed, and not listed.
            if rng.bool() {
                held.die(now, End::Unknown);
            }
        }
    }

    /// A run ends by itself.
    pub fn crash(&mut self, now: u64, rng: &mut fastrand::Rng) {
        let living: Vec<RunId> = self.living().map(|(run, _)| run).collect();
        if let Some(held) = rng.choice(living).and_then(|run| self.runs.get_mut(&run)) {
            let how = if rng.bool() { End::Code(0) } else { End::Signal { signal: 11, core: true } };
            held.die(now, how);
        }
    }

    pub fn request(&mut self, request: Request, now: u64) {
        if self.works(now) {
            self.requests.push_back(request);
        }
    }

    pub fn replies(&mut self) -> Vec<(RunId, Happening)> {
        std::mem::take(&mut self.replies)
    }

    /// All that it knows, for an agent that it meets.
    pub fn table(&self) -> Vec<Found> {
        let found = |(run, held): (&RunId, &Held)| Found {
            instance: held.instance.clone(),
            run: *run,
            pid: 1,
            stage: held.stage,
            note: held.note.clone(),
            ports: BTreeMap::new(),
            spawned_ms: 0,
        };
        self.runs.iter().map(found).collect()
    }

    /// Once round its loop. Runs also end while it is dead; nobody watches that.
    pub fn tick(&mut self, now: u64, boot_ns: u64, fault: Fault, rng: &mut fastrand::Rng) {
        if !self.works(now) {
            for held in self.runs.values_mut().filter(|held| held.lives()) {
                if held.dies.is_some_and(|dies| dies <= now) {
                    let fenced = held.fenced;
                    held.stage = Stage::Gone { end: End::Unknown, fenced };
                    self.changed |= held.exclusive;
                }
            }
            return;
        }
        if self.fence_ns > 0 && boot_ns >= self.fence_ns && fault != Fault::FenceIgnored {
            for held in self.runs.values_mut().filter(|held| held.exclusive && held.lives() && !held.fenced) {
                held.fenced = true;
                held.die(now + rng.u64(0..KILL), KILLED);
            }
        }
        while let Some(request) = self.requests.pop_front() {
            self.take(request, now, boot_ns, rng);
        }
        for (run, held) in self.runs.iter_mut().filter(|(_, held)| held.lives()) {
            if held.dies.is_some_and(|dies| dies <= now) {
                let (end, fenced) = (held.how, held.fenced);
                held.stage = Stage::Gone { end, fenced };
                self.changed |= held.exclusive;
                self.replies.push((*run, Happening::Gone { end, fenced }));
            } else if held.stage == Stage::Spawning && held.executes <= now {
                held.stage = Stage::Running;
                self.replies.push((*run, Happening::Spawned { pid: 1, ports: BTreeMap::new() }));
            }
        }
    }

    fn take(&mut self, request: Request, now: u64, boot_ns: u64, rng: &mut fastrand::Rng) {
        match request {
            Request::Spawn { run, instance, exclusive, note } => {
                self.spawn(run, instance, exclusive, note, now, boot_ns, rng);
            }
            Request::Ask { run } => {
                // Some do not listen, and are killed later.
                if rng.u32(0..5) > 0
                    && let Some(held) = self.runs.get_mut(&run)
                {
                    held.die(now + rng.u64(0..2_000), End::Code(0));
                }
            }
            Request::Kill { run } => {
                let span = if rng.u32(0..20) == 0 { STUCK } else { KILL };
                if let Some(held) = self.runs.get_mut(&run) {
                    held.die(now + rng.u64(0..span), KILLED);
                }
            }
            Request::Acknowledge { run } => {
                if self.runs.get(&run).is_some_and(|held| !held.lives()) {
                    self.runs.remove(&run);
                }
            }
            Request::Note { run, note } => {
                if let Some(held) = self.runs.get_mut(&run) {
                    held.note = Some(note);
                }
            }
            Request::Fence { deadline_ns } => self.fence_ns = deadline_ns,
        }
    }

    #[expect(clippy::too_many_arguments, reason = "they are the message's and the moment's")]
    fn spawn(
        &mut self,
        run: RunId,
        instance: InstanceId,
        exclusive: bool,
        note: Option<Note>,
        now: u64,
        boot_ns: u64,
        rng: &mut fastrand::Rng,
    ) {
        let late = exclusive && self.fence_ns > 0 && boot_ns >= self.fence_ns;
        let busy = self.runs.contains_key(&run) || self.living().any(|(_, held)| held.instance == instance);
        let lacks = self.lacks.is_some_and(|first| instance.process.as_str().starts_with(first));
        if late || busy || lacks {
            let step = if lacks { SpawnStep::Exec } else { SpawnStep::Busy };
            let (stage, dies, how) = (Stage::SpawnFailed { step, errno: 0 }, None, End::Unknown);
            let unborn = Held { instance, exclusive, stage, executes: 0, dies, how, fenced: false, note };
            self.runs.entry(run).or_insert(unborn);
            self.replies.push((run, Happening::SpawnFailed(format!("{step:?}"))));
            return;
        }
        let slow = rng.u32(0..12) == 0;
        let executes = now + if slow { rng.u64(100..4_000) } else { rng.u64(0..30) };
        // Jobs end by themselves.
        let dies = instance.process.as_str().ends_with("job").then(|| executes + rng.u64(200..12_000));
        let (stage, how, fenced) = (Stage::Spawning, End::Code(0), false);
        self.runs.insert(run, Held { instance, exclusive, stage, executes, dies, how, fenced, note });
        self.changed |= exclusive;
    }
}
