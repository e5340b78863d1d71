//! A machine: its clocks, its power and its disk; its keeper, and while it lives its agent, which is also a peer where
//! the cluster has one here.

use std::collections::BTreeSet;
use std::sync::Arc;

use bigbrother::host::fence::Boot;
use bigbrother::host::{Moment, Now};
use bigbrother::spec::HostName;
use bigbrother::state::{HostFacts, State};

use crate::agent::Agent;
use crate::chronicle::Copy;
use crate::faults::Fault;
use crate::keeper::Keeper;
use crate::log::Peer;
use crate::primary::Primary;
use crate::session::{Attached, Message, Session};

/// Run numbers are reserved in blocks, on disk.
const RUN_BLOCK: u64 = 1_000;
/// Messages that wait in the sockets of a stopped agent.
const BACKLOG: usize = 500;

/// What is there whether an agent lives or not.
pub struct Machine {
    pub name: HostName,
    pub facts: HostFacts,
    pub keeper: Keeper,
    /// Its clock runs this much faster, in millionths.
    ppm: i64,
    booted: u64,
    /// Its wall clock is wrong by so much, milliseconds.
    pub wrong_ms: u64,
    reserved: u64,
}

impl Machine {
    pub fn new(n: usize, ppm: i64) -> Machine {
        let name: HostName = format!("h{n:02}").parse().unwrap();
        let region = if n.is_multiple_of(2) { "eu" } else { "us" };
        let facts = HostFacts {
            machine_id: name.to_string(),
            labels: [("region".to_owned(), region.to_owned())].into(),
            capacity: [("slots".to_owned(), 400)].into(),
            ..HostFacts::default()
        };
        Machine { name, facts, keeper: Keeper::default(), ppm, booted: 0, wrong_ms: 0, reserved: 0 }
    }

    /// CLOCK_BOOTTIME, as this machine counts.
    pub fn boot(&self, now: u64) -> Boot {
        Boot((now - self.booted + 1_000) * (1_000_000 + self.ppm).unsigned_abs())
    }

    pub fn moment(&self, now: u64) -> Moment {
        Moment(self.boot(now).0)
    }

    pub fn wall_ms(&self, now: u64) -> u64 {
        1_000_000 + now + self.wrong_ms
    }

    pub fn time(&self, now: u64, rng: &mut fastrand::Rng) -> Now {
        Now { at: self.moment(now), wall_ms: self.wall_ms(now), chance: rng.u32(..) }
    }

    /// The last number that may have been used.
    pub fn reserve_runs(&mut self) -> u64 {
        let last = self.reserved;
        self.reserved += RUN_BLOCK;
        last
    }

    pub fn use_run(&mut self, run: u64) {
        if run + RUN_BLOCK / 2 > self.reserved {
            self.reserved = run + RUN_BLOCK;
        }
    }
}

/// What a crash leaves of the agent.
#[derive(Default)]
struct Disk {
    copy: Copy,
    view: Arc<State>,
}

pub struct Site {
    pub machine: Machine,
    pub powered: bool,
    pub agent: Option<Agent>,
    /// True times at which things come back.
    pub boots: u64,
    pub agent_comes: u64,
    pub stalled: u64,
    /// Its disk is slow until then.
    pub slow: u64,
    pub peer: Option<Peer>,
    pub copy: Copy,
    pub primary: Option<Primary>,
    /// Whom its primaries gave up, for a planted fault.
    pub given_up: BTreeSet<(HostName, u64)>,
    pub session: Session,
    pub attached: Attached,
    backlog: Vec<(usize, Message)>,
    disk: Disk,
    /// Agents that have lived here.
    pub lives: u64,
}

impl Site {
    pub fn new(n: usize, ppm: i64, peers: usize, fault: Fault) -> Site {
        Site {
            machine: Machine::new(n, ppm),
            powered: true,
            agent: None,
            boots: 0,
            agent_comes: 0,
            stalled: 0,
            slow: 0,
            peer: (n < peers).then(|| Peer::new(n, peers, fault)),
            copy: Copy::default(),
            primary: None,
            given_up: BTreeSet::new(),
            session: Session::default(),
            attached: Attached::default(),
            backlog: Vec::new(),
            disk: Disk::default(),
            lives: 0,
        }
    }

    pub fn works(&self, now: u64) -> bool {
        self.powered && self.agent.is_some() && self.stalled <= now
    }

    pub fn lose_power(&mut self, boots: u64, now: u64, fault: Fault) {
        self.lose_agent(boots, now, fault);
        self.machine.keeper.lose_power();
        (self.powered, self.boots, self.stalled) = (false, boots, 0);
    }

    /// The agent is killed, and what it had not written yet is lost.
    pub fn lose_agent(&mut self, comes: u64, now: u64, fault: Fault) {
        (self.agent, self.primary, self.agent_comes, self.stalled) = (None, None, comes, 0);
        (self.session, self.attached) = (Session::default(), Attached::default());
        self.backlog.clear();
        if let Some(peer) = &mut self.peer {
            self.copy = self.disk.copy.clone();
            if fault == Fault::AppliedTwice {
                self.copy.applied = self.copy.applied.saturating_sub(1);
            }
            peer.crash(self.copy.applied, now);
        }
    }

    /// Power and agent come back when it is time.
    pub fn come_back(&mut self, now: u64, rng: &mut fastrand::Rng) {
        if !self.powered && self.boots <= now {
            (self.powered, self.machine.booted) = (true, now);
        }
        if !self.powered || self.agent.is_some() || self.agent_comes > now {
            return;
        }
        self.lives += 1;
        let view = if self.peer.is_some() { self.copy.state.clone() } else { self.disk.view.clone() };
        let opens = now + rng.choice([0, 2_000, 8_000]).unwrap_or_default();
        self.agent = Some(Agent::new(&mut self.machine, view, self.lives, opens));
    }

    /// Now and then the newest state reaches the disk.
    pub fn save(&mut self, rng: &mut fastrand::Rng) {
        if rng.u32(0..100) > 0 {
            return;
        }
        match &self.peer {
            Some(peer) if peer.has_written(self.copy.applied) => self.disk.copy = self.copy.clone(),
            Some(_) => {}
            None => self.disk.view = self.agent.as_ref().map(|agent| agent.view.clone()).unwrap_or_default(),
        }
    }

    /// It is stopped: what comes waits in its sockets.
    pub fn hold_back(&mut self, from: usize, message: Message) {
        if self.backlog.len() < BACKLOG {
            self.backlog.push((from, message));
        }
    }

    pub fn held_back(&mut self) -> Vec<(usize, Message)> {
        std::mem::take(&mut self.backlog)
    }
}
