//! The world: the machines, what is on its way between them, and the order in which things happen.
//!
//! Owns time and chance. One event at a time; after each the invariants that it may have touched are looked at.

use std::collections::BTreeMap;
use std::sync::Arc;

use bigbrother::state::{Command, State};

use crate::chronicle::{Chronicle, plain};
use crate::faults::Fault;
use crate::invariants::exclusive;
use crate::network::Network;
use crate::operator;
use crate::primary::Primary;
use crate::reporter::once;
use crate::session::{Down, Message, Up};
use crate::site::Site;
use crate::trouble::Weather;

/// Relays between an origin and the primary, at most.
const HOPS: u8 = 3;

enum Event {
    /// A machine's loops turn.
    Turn(usize),
    /// A peer's disk has written, unless the peer has crashed since.
    Flushed(usize, u64),
    Mail {
        from: usize,
        to: usize,
        message: Box<Message>,
    },
    Trouble,
    Heal,
    Request,
}

pub struct World {
    pub now: u64,
    pub sites: Vec<Site>,
    pub peers: usize,
    pub chronicle: Chronicle,
    pub network: Network,
    pub weather: Weather,
    pub fault: Fault,
    pub rng: fastrand::Rng,
    events: BTreeMap<(u64, u64), Event>,
    /// Events so far; also names entries of the log and requests of operators.
    count: u64,
    /// Peers take over what one of them has applied: for many instances.
    pub shares: bool,
}

impl World {
    pub fn new(seed: u64, hosts: usize, trouble: u64, fault: Fault) -> World {
        let mut rng = fastrand::Rng::with_seed(seed);
        let weather = Weather::any(fault, &mut rng);
        let peers = if hosts > 6 { 5 } else { 3 };
        let mut site = |n| Site::new(n, rng.i64(-10_000..=10_000), peers, fault);
        let sites = (0..hosts).map(&mut site).collect();
        let mut world = World {
            now: 1,
            sites,
            peers,
            chronicle: Chronicle::new(hosts),
            network: Network::new(trouble),
            weather,
            fault,
            rng,
            events: BTreeMap::new(),
            count: 0,
            shares: false,
        };
        for n in 0..hosts {
            let at = world.rng.u64(1..60);
            world.schedule(at, Event::Turn(n));
        }
        if trouble > 0 {
            world.schedule(1_500, Event::Trouble);
            world.schedule(1_000, Event::Request);
        }
        world
    }

    pub fn state(&self) -> &Arc<State> {
        self.chronicle.state()
    }

    /// Names what has happened.
    pub fn digest(&self) -> u64 {
        let running = self.sites.iter().flat_map(|site| site.machine.keeper.living());
        let running = running.fold(self.count, |digest, (run, _)| digest.rotate_left(9) ^ run.0);
        self.chronicle.digest(running)
    }

    fn schedule(&mut self, after: u64, event: Event) {
        self.count += 1;
        self.events.insert((self.now + after, self.count), event);
    }

    /// Goes on until then, or until something breaks.
    pub fn live_until(&mut self, until: u64) -> Result<(), String> {
        while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= until) {
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            self.happen(event)?;
        }
        self.now = until;
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Turn(n) => {
                self.turn(n)?;
                let next = self.rng.u64(30..60);
                self.schedule(next, Event::Turn(n));
            }
            Event::Flushed(n, life) => {
                let site = &mut self.sites[n];
                let same = site.lives == life && site.agent.is_some();
                site.peer.iter_mut().filter(|_| same).for_each(|peer| peer.flushed());
                self.settle(n)?;
            }
            Event::Mail { from, to, message } => {
                let site = &mut self.sites[to];
                match site.works(self.now) {
                    _ if !self.network.reaches(from, to) => {}
                    true => self.receive(to, from, *message)?,
                    false if site.agent.is_some() => site.hold_back(from, *message),
                    false => {}
                }
            }
            Event::Trouble if self.now < self.network.calm => {
                let next = self.trouble();
                self.schedule(next, Event::Trouble);
            }
            Event::Request if self.now < self.network.calm => {
                let command = operator::request(&self.state().clone(), &mut self.rng);
                self.ask(command);
                let next = self.rng.u64(self.weather.bustle / 10..self.weather.bustle);
                self.schedule(next, Event::Request);
            }
            Event::Heal => self.network.heal(),
            Event::Trouble | Event::Request => {}
        }
        Ok(())
    }

    /// An operator asks any host; nobody repeats it.
    pub fn ask(&mut self, command: Command) {
        let n = self.rng.usize(..self.sites.len());
        self.count += 1;
        let site = &self.sites[n];
        let (number, stamp_ms) = (self.count | 1 << 60, site.machine.wall_ms(self.now));
        let change = once(&site.machine.name, number, stamp_ms, command);
        self.go_up(n, n, Up::Propose(number, change), 0);
    }

    /// A machine's loops, once round.
    fn turn(&mut self, n: usize) -> Result<(), String> {
        let (now, fault) = (self.now, self.fault);
        let site = &mut self.sites[n];
        site.come_back(now, &mut self.rng);
        if !site.powered {
            return self.look(n);
        }
        let boot = site.machine.boot(now).0;
        site.machine.keeper.tick(now, boot, fault, &mut self.rng);
        self.look(n)?;
        if !self.sites[n].works(now) {
            return Ok(());
        }
        for (from, message) in self.sites[n].held_back() {
            self.receive(n, from, message)?;
        }
        let site = &mut self.sites[n];
        site.save(&mut self.rng);
        if let Some(peer) = &mut site.peer {
            peer.tick(now, &mut self.rng);
            self.settle(n)?;
            self.lead(n);
        } else if let Some(peer) = site.session.tick(self.peers, now, &mut self.rng) {
            self.send(n, peer, Message::Attach);
        }
        let site = &mut self.sites[n];
        let Some(agent) = &mut site.agent else { return Ok(()) };
        for up in agent.act(&mut site.machine, now, fault, &mut self.rng) {
            self.go_up(n, n, up, 0);
        }
        self.settle(n)
    }

    /// Something may live that must not.
    fn look(&mut self, n: usize) -> Result<(), String> {
        match std::mem::take(&mut self.sites[n].machine.keeper.changed) {
            true => exclusive::check(self),
            false => Ok(()),
        }
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        let delays = self.network.delays(self.now, &mut self.rng);
        let [first, second] = delays;
        let message = Box::new(message);
        if let Some(delay) = second {
            self.schedule(delay, Event::Mail { from, to, message: message.clone() });
        }
        if let Some(delay) = first {
            self.schedule(delay, Event::Mail { from, to, message });
        }
    }

    /// What is cut off now is whole again some time.
    pub fn heal_later(&mut self) {
        let after = self.rng.u64(500..25_000);
        self.schedule(after, Event::Heal);
    }

    fn receive(&mut self, n: usize, from: usize, message: Message) -> Result<(), String> {
        let now = self.now;
        let site = &mut self.sites[n];
        match message {
            Message::Raft(message) => {
                if let Some(peer) = &mut site.peer {
                    peer.receive(from, message, now);
                }
                return self.settle(n);
            }
            Message::Attach => {
                site.attached.heard(from, now);
                let state = site.copy.state.clone();
                self.send(n, from, Message::Push(state));
            }
            Message::Push(state) => {
                site.session.heard(from, now);
                site.agent.iter_mut().for_each(|agent| agent.hear_state(&state));
            }
            Message::Up { origin, body, hops } => self.relay_up(n, from, origin, body, hops),
            Message::Down { target, body } if target == n => self.hear(n, body),
            Message::Down { target, body } => self.send(n, target, Message::Down { target, body }),
        }
        Ok(())
    }

    fn go_up(&mut self, n: usize, origin: usize, body: Up, hops: u8) {
        match self.sites[n].session.peer().filter(|_| self.sites[n].peer.is_none()) {
            Some(peer) => self.send(n, peer, Message::Up { origin, body, hops }),
            None => self.relay_up(n, n, origin, body, hops),
        }
    }

    /// A peer has a host's word: the primary takes it, others pass it on.
    fn relay_up(&mut self, n: usize, from: usize, origin: usize, body: Up, hops: u8) {
        let site = &mut self.sites[n];
        let Some(peer) = &mut site.peer else { return };
        if !peer.leads() {
            let leader = peer.leader.filter(|_| hops < HOPS);
            let message = Message::Up { origin, body, hops: hops + 1 };
            leader.into_iter().for_each(|leader| self.send(n, leader, message.clone()));
            return;
        }
        let Some(primary) = &mut site.primary else { return };
        primary.via.insert(origin, from);
        match body {
            Up::Report(report) => primary.hear(report, site.machine.moment(self.now)),
            Up::Propose(number, change) => {
                self.count += 1;
                let index = peer.propose(self.count, change);
                primary.pending.insert(index, (peer.term, origin, number));
            }
        }
    }

    /// The primary's word for a host, by the way that the host's came.
    fn go_down(&mut self, n: usize, target: usize, body: Down) {
        let via = self.sites[n].primary.as_ref().and_then(|primary| primary.via.get(&target).copied());
        match via {
            _ if target == n => self.hear(n, body),
            Some(via) if via != n => self.send(n, via, Message::Down { target, body }),
            _ => self.send(n, target, Message::Down { target, body }),
        }
    }

    fn hear(&mut self, n: usize, body: Down) {
        let (now, fault) = (self.now, self.fault);
        let site = &mut self.sites[n];
        let Some(agent) = &mut site.agent else { return };
        match body {
            Down::Confirm(confirm) => agent.confirmed(&mut site.machine, confirm, now, fault),
            Down::Answer(number, outcome) => agent.answered(number, outcome),
        }
    }

    /// What follows from whatever a peer has heard or written.
    fn settle(&mut self, n: usize) -> Result<(), String> {
        let Some(peer) = &self.sites[n].peer else { return Ok(()) };
        let (term, leads, reigns) = (peer.term, peer.leads(), peer.reigns());
        if leads {
            self.chronicle.leads(term, n)?;
        }
        let site = &mut self.sites[n];
        if let Some(before) = site.primary.take_if(|primary| !leads || primary.term != term) {
            site.given_up = before.given_up;
        }
        if reigns && site.primary.is_none() {
            let committed = site.machine.moment(self.now);
            let mut primary = Primary::new(term, committed, &site.copy.state, self.fault);
            primary.given_up = std::mem::take(&mut site.given_up);
            site.primary = Some(primary);
        }
        self.apply(n)?;
        let site = &mut self.sites[n];
        let Some(peer) = &mut site.peer else { return Ok(()) };
        let out = std::mem::take(&mut peer.out);
        if peer.begins_flush() {
            let slow = self.now < site.slow || self.fault == Fault::DiskLies;
            let delay = if slow { self.rng.u64(100..1_500) } else { self.rng.u64(1..12) };
            let life = site.lives;
            self.schedule(delay, Event::Flushed(n, life));
        }
        for (to, message) in out {
            self.send(n, to, Message::Raft(message));
        }
        self.confirm(n);
        Ok(())
    }

    fn apply(&mut self, n: usize) -> Result<(), String> {
        let (fault, shares) = (self.fault, self.shares);
        let mut answers = Vec::new();
        let site = &mut self.sites[n];
        let Some(peer) = &site.peer else { return Ok(()) };
        let before = site.copy.applied;
        for (at, entry) in peer.log.iter().enumerate().take(peer.commit).skip(before) {
            self.chronicle.committed(at, entry, fault)?;
            let outcome = match shares {
                true => self.chronicle.outcome(at).cloned(),
                false => Some(site.copy.apply(entry, fault)),
            };
            if !shares {
                self.chronicle.compare(n, &site.copy)?;
            }
            let awaited = site.primary.as_mut().and_then(|primary| primary.settle(at + 1, entry.term));
            answers.extend(awaited.zip(outcome));
        }
        if shares && peer.commit == self.chronicle.copy.applied {
            site.copy = self.chronicle.copy.clone();
        }
        if site.copy.applied == before {
            return Ok(());
        }
        let state = site.copy.state.clone();
        site.agent.iter_mut().for_each(|agent| agent.hear_state(&state));
        for host in self.sites[n].attached.served(self.now) {
            self.send(n, host, Message::Push(state.clone()));
        }
        for ((origin, number), outcome) in answers {
            self.go_down(n, origin, Down::Answer(number, outcome));
        }
        Ok(())
    }

    fn confirm(&mut self, n: usize) {
        let site = &mut self.sites[n];
        let (Some(primary), Some(peer)) = (&mut site.primary, &site.peer) else { return };
        let confirms = primary.confirm(peer, site.copy.applied, &site.copy.state, self.fault);
        for confirm in confirms {
            let name = &confirm.report.host;
            let Some(target) = self.sites.iter().position(|site| site.machine.name == *name) else {
                continue;
            };
            self.go_down(n, target, Down::Confirm(confirm));
        }
    }

    /// The primary's own part of a turn.
    fn lead(&mut self, n: usize) {
        let (now, fault) = (self.now, self.fault);
        let site = &mut self.sites[n];
        let (Some(primary), Some(peer)) = (&mut site.primary, &mut site.peer) else { return };
        let (at, wall_ms) = (site.machine.moment(now), site.machine.wall_ms(now));
        for command in primary.tick(peer, &site.copy.state, at, now, fault) {
            self.count += 1;
            peer.propose(self.count, plain(wall_ms, command));
        }
    }
}
