//! The machines, the network between them, the log, and chance.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bigbrother::config::{Context, parse};
use bigbrother::host::fence::Duty;
use bigbrother::plan::Liveness;
use bigbrother::plan::liveness::{Confirm, Report};
use bigbrother::spec::Spec;
use bigbrother::state::{Command, Envelope, HostFacts, Rejected, Response, State};

use crate::invariants::{convergence, directory, exclusive, replicated};
use crate::primary::Primary;
use crate::site::Site;

/// One round of the world.
const STEP: u64 = 50;
/// How long it is troubled, and then left alone.
const TROUBLE: u64 = 60_000;
const QUIET: u64 = 45_000;

/// What is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    KeeperIgnoresFence,
    HoldTooLong,
    NoReadIndex,
    NoWait,
    NoRelease,
    LostEvents,
    LostHostStays,
}

enum Message {
    Report(Report),
    Confirm(Confirm),
    Propose(Command),
    Joined(u64),
    Listed(u64),
}

pub struct World {
    pub now: u64,
    pub sites: Vec<Site>,
    states: Vec<Arc<State>>,
    /// The last is the real one.
    primaries: Vec<Primary>,
    terms: u64,
    leaderless: u64,
    peers: usize,
    /// (due, number) to (from, to, what).
    mail: BTreeMap<(u64, u64), (usize, usize, Message)>,
    sent: u64,
    /// Nothing goes from the first to the second.
    cuts: BTreeSet<(usize, usize)>,
    skew: u64,
    fault: Fault,
    rng: fastrand::Rng,
}

fn spec(count: u32, exclusive: u32) -> Spec {
    let common = "restart = { backoff = false, give_up = false }\nready = { mode = \"spawned\", after = \"100ms\" }\n\
                  heartbeat = { mode = \"none\" }\nstop = { timeout = \"3s\" }\n";
    let text = format!(
        "[process.keep]\ncommand = [\"/k\"]\ncount = {count}\n{common}\
         [process.xone]\ncommand = [\"/x\"]\ncount = {exclusive}\non_partition = \"stop\"\n{common}\
         [process.each]\ncommand = [\"/e\"]\nper_host = true\n{common}"
    );
    let context = Context { hostname: "a".to_owned(), host_override: None };
    parse(&text, "simulation.toml", &context).unwrap_or_else(|faults| panic!("{}", faults.render(false))).spec
}

impl World {
    pub fn new(seed: u64, fault: Fault) -> World {
        let mut rng = fastrand::Rng::with_seed(seed);
        let hosts = if seed % 20 == 19 { rng.usize(20..=50) } else { rng.usize(5..=8) };
        let site = |n: usize| format!("h{n:02}").parse().unwrap();
        let sites = (0..hosts).map(|n| Site::new(site(n), rng.i64(-10_000..=10_000))).collect();
        let mut state = State::default();
        let spec = spec(rng.u32(2..8), rng.u32(2..6));
        let command = Command::ApplySpec { spec, expected_revision: None };
        state.apply(&Envelope { stamp_ms: 1, command }).unwrap();
        World {
            now: 0,
            sites,
            states: vec![Arc::new(state)],
            primaries: Vec::new(),
            terms: 0,
            leaderless: 0,
            peers: if hosts > 6 { 5 } else { 3 },
            mail: BTreeMap::new(),
            sent: 0,
            cuts: BTreeSet::new(),
            skew: 0,
            fault,
            rng,
        }
    }

    pub fn latest(&self) -> Arc<State> {
        self.states[self.states.len() - 1].clone()
    }

    /// Trouble, then quiet; the first invariant that breaks.
    pub fn live(mut self) -> Result<(), String> {
        while self.now < TROUBLE {
            self.trouble();
            self.step()?;
        }
        self.heal();
        while self.now < TROUBLE + QUIET {
            self.step()?;
        }
        directory::check(&self)?;
        convergence::check(&self)
    }

    fn step(&mut self) -> Result<(), String> {
        self.now += STEP;
        self.deliver()?;
        for n in 0..self.sites.len() {
            let index = self.states.len() - 1;
            self.sites[n].come_back(self.now, index, &mut self.rng);
            self.sites[n].keep(self.now, self.fault, &mut self.rng);
            if self.sites[n].works(self.now) {
                self.act(n);
            }
        }
        self.elect();
        for n in 0..self.primaries.len() {
            self.lead(n)?;
        }
        exclusive::check(self)
    }

    fn trouble(&mut self) {
        let hosts = self.sites.len();
        let (now, any) = (self.now, self.rng.usize(..hosts));
        let span = self.rng.u64(200..20_000);
        // About one trouble a second in a small cluster.
        match self.rng.u32(0..160) {
            0 => self.sites[any].lose_power(now + span),
            1 => (self.sites[any].agent, self.sites[any].agent_comes) = (None, now + span),
            2 => self.sites[any].stalled = now + span,
            3 => {
                for other in 0..hosts {
                    self.cuts.insert((any, other));
                    if self.rng.bool() {
                        self.cuts.insert((other, any));
                    }
                }
            }
            4 => drop(self.cuts.insert((any, self.rng.usize(..hosts)))),
            5 | 6 => self.cuts.clear(),
            7 | 8 => self.sites[any].crash(now, &mut self.rng),
            9 => self.skew = self.rng.u64(0..3_600_000),
            10 => {
                let host = self.sites[any].name.clone();
                let drained = self.rng.bool();
                let _ = self.commit(Command::DrainHost { host, drained });
            }
            11 if !self.primaries.is_empty() => {
                let at = self.primaries[self.primaries.len() - 1].at;
                self.cuts.extend((0..hosts).map(|other| (at, other)));
                if self.rng.bool() {
                    self.cuts.extend((0..hosts).map(|other| (other, at)));
                }
            }
            _ => {}
        }
    }

    fn heal(&mut self) {
        self.cuts.clear();
        for site in &mut self.sites {
            (site.boots, site.agent_comes, site.stalled) = (0, 0, 0);
        }
        for n in 0..self.sites.len() {
            let host = self.sites[n].name.clone();
            if self.latest().hosts.contains_key(&host) {
                // Straight into the log: what operators do is not what is tried here. One stays drained, so that
                // what it has must move.
                let drained = n + 1 == self.sites.len();
                let _ = self.append(Command::DrainHost { host, drained });
            }
        }
    }

    fn reaches(&self, from: usize, to: usize) -> bool {
        from == to || !self.cuts.contains(&(from, to))
    }

    fn send(&mut self, from: usize, to: usize, make: impl Fn() -> Message) {
        let troubled = self.now < TROUBLE;
        let copies = match self.rng.u32(0..100) {
            0..10 if troubled => 0,
            10..20 if troubled => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let slow = troubled && self.rng.u32(0..50) == 0;
            let delay = if slow { self.rng.u64(100..6_000) } else { self.rng.u64(1..60) };
            self.sent += 1;
            self.mail.insert((self.now + delay, self.sent), (from, to, make()));
        }
    }

    fn deliver(&mut self) -> Result<(), String> {
        let later = self.mail.split_off(&(self.now + 1, 0));
        for (_, (from, to, message)) in std::mem::replace(&mut self.mail, later) {
            if self.reaches(from, to) && self.sites[to].works(self.now) {
                self.receive(from, to, message)?;
            }
        }
        Ok(())
    }

    fn receive(&mut self, from: usize, to: usize, message: Message) -> Result<(), String> {
        let (boot, time) = (self.sites[to].boot(self.now), self.sites[to].time(self.now));
        match message {
            Message::Report(report) => {
                let here = self.primaries.iter_mut().filter(|primary| primary.at == to);
                here.for_each(|primary| primary.hear(report.clone(), time.at));
            }
            Message::Confirm(mut confirm) => {
                if self.fault == Fault::HoldTooLong {
                    confirm.hold += Duration::from_secs(5);
                }
                let agent = self.sites[to].agent.as_mut().unwrap();
                if let Some(Duty::Tell { deadline_ns }) = agent.fence.confirmed(&confirm, boot) {
                    self.sites[to].set_fence(deadline_ns);
                }
            }
            Message::Propose(command) => {
                let joins = matches!(command, Command::JoinHost { .. });
                let lists = match &command {
                    Command::Inventory { incarnation, .. } => Some(*incarnation),
                    _ => None,
                };
                if !self.is_real(to) {
                    return Ok(());
                }
                match self.commit(command)? {
                    Ok(Response::Incarnation(n)) if joins => self.send(to, from, || Message::Joined(n)),
                    Ok(_) => lists.into_iter().for_each(|n| self.send(to, from, || Message::Listed(n))),
                    Err(_) => {}
                }
            }
            Message::Joined(incarnation) => {
                let agent = self.sites[to].agent.as_mut().unwrap();
                if agent.fence.incarnation() < incarnation {
                    agent.fence.joined(incarnation);
                    agent.outbox.clear();
                    (agent.first, agent.listed) = (1, false);
                    agent.forget_wants();
                }
            }
            Message::Listed(incarnation) => {
                let agent = self.sites[to].agent.as_mut().unwrap();
                agent.listed |= agent.fence.incarnation() == incarnation;
            }
        }
        Ok(())
    }

    /// One round of a host's agent: the state comes, it acts, it tells.
    fn act(&mut self, n: usize) {
        let real = self.primaries.last().map(|primary| primary.at);
        let linked = real.is_some_and(|at| self.reaches(at, n) && self.sites[at].works(self.now));
        if linked && self.rng.u32(0..10) < 7 {
            let newest = self.states.len() - 1;
            let site = &mut self.sites[n];
            site.agent.as_mut().unwrap().view = newest;
            site.disk = newest;
        }
        let duties = self.sites[n].act(self.now, &self.states, self.fault, &mut self.rng);
        let leaders: BTreeSet<usize> = self.primaries.iter().map(|primary| primary.at).collect();
        for duty in duties {
            let Duty::Report(report) = duty else { continue };
            for at in &leaders {
                self.send(n, *at, || Message::Report(report.clone()));
            }
        }
        let Some(at) = real else { return };
        // Not each round: what is under way would be said many times.
        if self.rng.u32(0..4) == 0
            && let Some(command) = self.word(n)
        {
            self.send(n, at, || Message::Propose(command.clone()));
        }
    }

    /// What the host's reporter proposes next.
    fn word(&mut self, n: usize) -> Option<Command> {
        let fault = self.fault;
        let site = &mut self.sites[n];
        let host = site.name.clone();
        let agent = site.agent.as_mut()?;
        let known = self.states[agent.view].hosts.get(&host).cloned();
        let incarnation = agent.fence.incarnation();
        let refused = known.as_ref().is_some_and(|known| {
            known.incarnation > incarnation || known.incarnation == incarnation && !known.up
        });
        if incarnation == 0 || refused {
            let facts = HostFacts { machine_id: host.to_string(), ..HostFacts::default() };
            return Some(Command::JoinHost { host, facts });
        }
        if !agent.listed {
            // The list holds what the events before it would say.
            let seq = agent.first + agent.outbox.len() as u64 - 1;
            let (runs, rests) = (agent.fleet.inventory(), agent.fleet.rests());
            return Some(Command::Inventory { host, incarnation, seq, runs, rests });
        }
        let seen = known.filter(|known| known.incarnation == incarnation).map_or(0, |known| known.last_seq);
        while agent.first <= seen && !agent.outbox.is_empty() {
            agent.outbox.remove(0);
            agent.first += 1;
        }
        if fault == Fault::LostEvents && agent.outbox.len() > 1 {
            agent.outbox.pop();
        }
        let events = agent.outbox.clone();
        (!events.is_empty()).then_some(Command::Events { host, incarnation, first_seq: agent.first, events })
    }

    fn is_real(&self, at: usize) -> bool {
        self.primaries.last().is_some_and(|primary| primary.at == at) && self.has_quorum(at)
    }

    fn has_quorum(&self, at: usize) -> bool {
        let works = |n: usize| self.sites[n].works(self.now);
        let both = |n: usize| self.reaches(at, n) && self.reaches(n, at) && works(n);
        works(at) && (0..self.peers).filter(|n| both(*n)).count() > self.peers / 2
    }

    fn elect(&mut self) {
        // A primary lives in its agent.
        let (sites, real) = (&self.sites, self.primaries.last().map(|primary| primary.term));
        self.primaries.retain(|primary| sites[primary.at].agent.is_some() || Some(primary.term) == real);
        if self.primaries.last().is_some_and(|primary| self.has_quorum(primary.at)) {
            self.leaderless = self.now;
            return;
        }
        if self.now - self.leaderless < 300 + self.rng.u64(0..1_500) {
            return;
        }
        let first = self.rng.usize(..self.peers);
        let peers = (0..self.peers).map(|n| (first + n) % self.peers);
        let Some(at) = peers.into_iter().find(|n| self.has_quorum(*n)) else { return };
        self.terms += 1;
        let committed = self.sites[at].time(self.now).at;
        self.primaries.retain(|primary| primary.at != at);
        self.primaries.push(Primary::new(at, self.terms, committed, self.fault));
        self.leaderless = self.now;
    }

    fn lead(&mut self, n: usize) -> Result<(), String> {
        let at = self.primaries[n].at;
        if !self.sites[at].works(self.now) {
            return Ok(());
        }
        let real = n + 1 == self.primaries.len() && self.has_quorum(at);
        let time = self.sites[at].time(self.now);
        let state = match n + 1 == self.primaries.len() {
            true => self.latest(),
            false => self.states[self.sites[at].agent.as_ref().unwrap().view].clone(),
        };
        for confirm in self.primaries[n].answer(self.now, real, &state, self.fault) {
            let to = self.sites.iter().position(|site| site.name == confirm.report.host).unwrap();
            self.send(at, to, || Message::Confirm(confirm.clone()));
        }
        if self.now < self.primaries[n].ticks + 250 {
            return Ok(());
        }
        self.primaries[n].ticks = self.now;
        let ends = self.now + self.rng.u64(1..200);
        let round = self.primaries[n].roll.begin_round();
        self.primaries[n].rounds.push((ends, round));
        let mut commands = self.primaries[n].judge(&state, time.at);
        if real && self.primaries[n].planned != Some(state.basis) {
            let plan = self.primaries[n].planner.plan(&state, &Liveness::default(), self.now);
            self.primaries[n].planned = plan.commands.is_empty().then_some(state.basis);
            commands.extend(plan.commands);
        }
        for command in commands.into_iter().filter(|_| real) {
            let _ = self.commit(command)?;
        }
        Ok(())
    }

    fn commit(&mut self, command: Command) -> Result<Result<Response, Rejected>, String> {
        match self.primaries.last().is_some_and(|primary| self.has_quorum(primary.at)) {
            true => self.append(command),
            false => Ok(Err(Rejected::Unsafe)),
        }
    }

    fn append(&mut self, command: Command) -> Result<Result<Response, Rejected>, String> {
        let before = self.latest();
        let mut after = (*before).clone();
        let response = after.apply(&Envelope { stamp_ms: self.now + self.skew, command: command.clone() });
        if self.fault == Fault::LostHostStays && matches!(command, Command::HostDown { .. }) {
            after.directory = before.directory.clone();
        }
        replicated::check(&before, &after)?;
        self.states.push(Arc::new(after));
        Ok(response)
    }
}
