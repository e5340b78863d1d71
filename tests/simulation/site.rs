//! A machine: its clock, its keeper, and (while it lives) its agent with the real host core and fence.

use std::collections::{BTreeMap, BTreeSet};

use bigbrother::host::fence::{Boot, Duty};
use bigbrother::host::fleet::Found;
use bigbrother::host::{Action, Fence, Happening, Host, Moment, Now, wants};
use bigbrother::keeper::protocol::{End, RunId, Stage};
use bigbrother::spec::{HostName, InstanceId};
use bigbrother::state::{Event, State};

use crate::world::Fault;

pub struct Held {
    pub instance: InstanceId,
    pub exclusive: bool,
    /// True time of its end; `None`: it lives on.
    dies: Option<u64>,
    fenced: bool,
    gone: bool,
}

pub struct Site {
    pub name: HostName,
    pub powered: bool,
    pub agent: Option<Agent>,
    /// True times at which things come back.
    pub boots: u64,
    pub agent_comes: u64,
    pub stalled: u64,
    /// Its clock runs this much faster, in millionths.
    ppm: i64,
    booted: u64,
    runs: BTreeMap<RunId, Held>,
    last_run: u64,
    fence_ns: u64,
    /// The index of the newest state on its disk.
    pub disk: usize,
}

pub struct Agent {
    pub fleet: Host,
    pub fence: Fence,
    /// The index of the state that it goes by.
    pub view: usize,
    pub outbox: Vec<Event>,
    /// The sequence number of the first event of the outbox.
    pub first: u64,
    pub listed: bool,
    desired: Option<(usize, bool)>,
}

impl Agent {
    /// What it may run depends on which life of the host the state shows.
    pub fn forget_wants(&mut self) {
        self.desired = None;
    }
}

impl Site {
    pub fn new(name: HostName, ppm: i64) -> Site {
        Site {
            name,
            powered: true,
            agent: None,
            boots: 0,
            agent_comes: 0,
            stalled: 0,
            ppm,
            booted: 0,
            runs: BTreeMap::new(),
            last_run: 0,
            fence_ns: 0,
            disk: 0,
        }
    }

    pub fn living(&self) -> impl Iterator<Item = (RunId, &Held)> {
        self.runs.iter().filter(|(_, held)| !held.gone).map(|(run, held)| (*run, held))
    }

    pub fn works(&self, now: u64) -> bool {
        self.powered && self.agent.is_some() && self.stalled <= now
    }

    /// CLOCK_BOOTTIME, as this machine counts.
    pub fn boot(&self, now: u64) -> Boot {
        let ns = (now - self.booted + 1_000) as i64 * (1_000_000 + self.ppm);
        Boot(ns as u64)
    }

    pub fn time(&self, now: u64) -> Now {
        Now { at: Moment(self.boot(now).0), wall_ms: now, chance: 7 }
    }

    pub fn lose_power(&mut self, boots: u64) {
        (self.powered, self.agent, self.boots) = (false, None, boots);
        self.runs.clear();
        self.fence_ns = 0;
    }

    pub fn come_back(&mut self, now: u64, index: usize, rng: &mut fastrand::Rng) {
        if !self.powered && self.boots <= now {
            (self.powered, self.booted, self.stalled) = (true, now, 0);
        }
        if !self.powered || self.agent.is_some() || self.agent_comes > now {
            return;
        }
        let view = rng.usize(..=self.disk.min(index));
        let mut fleet = Host::new(self.last_run);
        let table = self.runs.iter().map(|(run, held)| Found {
            instance: held.instance.clone(),
            run: *run,
            pid: 1,
            stage: match held.gone {
                true => Stage::Gone { end: End::Code(0), fenced: held.fenced },
                false => Stage::Running,
            },
            note: None,
            ports: BTreeMap::new(),
            spawned_ms: 0,
        });
        let actions = fleet.meet(table.collect(), &BTreeMap::new(), &BTreeSet::new(), self.time(now));
        let fence = Fence::new(self.name.clone(), self.fence_ns);
        self.agent =
            Some(Agent { fleet, fence, view, outbox: Vec::new(), first: 1, listed: false, desired: None });
        self.obey(actions, now, rng);
    }

    /// The keeper works whether the agent does or not.
    pub fn keep(&mut self, now: u64, fault: Fault, rng: &mut fastrand::Rng) {
        let over = self.fence_ns > 0 && self.boot(now).0 >= self.fence_ns;
        let over = over && fault != Fault::KeeperIgnoresFence;
        let mut news = Vec::new();
        for (run, held) in self.runs.iter_mut().filter(|(_, held)| !held.gone) {
            if over && held.exclusive && !held.fenced {
                held.fenced = true;
                let within = now + rng.u64(0..900);
                held.dies = Some(held.dies.map_or(within, |dies| dies.min(within)));
            }
            if held.dies.is_some_and(|dies| dies <= now) {
                held.gone = true;
                news.push((*run, Happening::Gone { end: End::Code(0), fenced: held.fenced }));
            }
        }
        for (run, happening) in news {
            self.tell(run, happening, now, rng);
        }
    }

    pub fn crash(&mut self, now: u64, rng: &mut fastrand::Rng) {
        let living: Vec<RunId> = self.living().map(|(run, _)| run).collect();
        if let Some(run) = rng.choice(living) {
            self.runs.get_mut(&run).unwrap().dies = Some(now);
        }
    }

    fn tell(&mut self, run: RunId, happening: Happening, now: u64, rng: &mut fastrand::Rng) {
        let time = self.time(now);
        if let Some(agent) = &mut self.agent {
            let actions = agent.fleet.on_run(run, happening, time);
            self.obey(actions, now, rng);
        }
    }

    fn obey(&mut self, actions: Vec<Action>, now: u64, rng: &mut fastrand::Rng) {
        for action in actions {
            match action {
                Action::Spawn { instance, run } => self.spawn(instance, run, now, rng),
                Action::Kill { run } => self.end(run, now + rng.u64(0..300)),
                Action::Ask { run, .. } => self.end(run, now + rng.u64(0..2_000)),
                Action::Acknowledge { run } => drop(self.runs.remove(&run)),
                Action::Tell { instance, run, kind } => {
                    let agent = self.agent.as_mut().unwrap();
                    agent.outbox.push(Event { instance, run, kind });
                }
                _ => {}
            }
        }
    }

    fn end(&mut self, run: RunId, at: u64) {
        if let Some(held) = self.runs.get_mut(&run) {
            held.dies = Some(held.dies.map_or(at, |dies| dies.min(at)));
        }
    }

    fn spawn(&mut self, instance: InstanceId, run: RunId, now: u64, rng: &mut fastrand::Rng) {
        let exclusive = instance.process.as_str().starts_with('x');
        self.last_run = self.last_run.max(run.0);
        let over = exclusive && self.fence_ns > 0 && self.boot(now).0 >= self.fence_ns;
        let busy = self.living().any(|(_, held)| held.instance == instance);
        if over || busy {
            self.tell(run, Happening::SpawnFailed("refused by the keeper".to_owned()), now, rng);
            return;
        }
        self.runs.insert(run, Held { instance, exclusive, dies: None, fenced: false, gone: false });
        self.tell(run, Happening::Spawned { pid: 1, ports: BTreeMap::new() }, now, rng);
    }

    /// The agent's loop, once round. Gives the reports to send.
    pub fn act(
        &mut self,
        now: u64,
        states: &[std::sync::Arc<State>],
        fault: Fault,
        rng: &mut fastrand::Rng,
    ) -> Vec<Duty> {
        let (boot, time) = (self.boot(now), self.time(now));
        let agent = self.agent.as_mut().unwrap();
        let (reports, others): (Vec<Duty>, Vec<Duty>) =
            agent.fence.tick(boot).into_iter().partition(|duty| matches!(duty, Duty::Report(_)));
        let state = &states[agent.view];
        let grounds = (agent.view, agent.fence.holds(boot));
        let mut actions = Vec::new();
        if agent.desired != Some(grounds) {
            agent.desired = Some(grounds);
            let mut wanted = wants(state, &self.name);
            agent.fence.trim(&mut wanted, state, &agent.fleet, boot);
            actions.extend(agent.fleet.desire(wanted, time));
        }
        actions.extend(agent.fleet.tick(time));
        self.obey(actions, now, rng);
        let kill = others.contains(&Duty::Kill) && fault != Fault::KeeperIgnoresFence;
        for held in self.runs.values_mut().filter(|held| kill && held.exclusive) {
            held.dies.get_or_insert(now + rng.u64(0..900));
        }
        self.give_back(states, fault);
        reports
    }

    fn give_back(&mut self, states: &[std::sync::Arc<State>], fault: Fault) {
        let agent = self.agent.as_mut().unwrap();
        let state = &states[agent.view];
        let mut releases = agent.fence.releases(state, &agent.fleet);
        if fault == Fault::NoRelease {
            releases.clear();
        }
        for event in releases {
            if !agent.outbox.iter().any(|held| held.instance == event.instance && held.kind == event.kind) {
                agent.outbox.push(event);
            }
        }
    }

    pub fn set_fence(&mut self, deadline_ns: u64) {
        self.fence_ns = deadline_ns;
    }
}
