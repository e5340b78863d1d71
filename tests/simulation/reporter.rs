//! What an agent tells the replicated state: that it joins, what runs, what happens. One proposal at a time, again and
//! again until it is answered.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use bigbrother::cluster::raft::{Change, Outcome};
use bigbrother::host::{Action, Host};
use bigbrother::keeper::protocol::RunId;
use bigbrother::spec::HostName;
use bigbrother::state::{Command, Envelope, Event, EventKind, HostFacts, Rejected, Response, State};

use crate::chronicle::plain;
use crate::faults::Fault;
use crate::session::Up;

/// An answer that takes longer is lost, milliseconds.
const LOST: u64 = 1_200;
const BATCH: usize = 64;

enum Said {
    Join,
    /// With the last runs of what rests.
    List(Vec<RunId>),
    Events(usize),
}

struct Flight {
    number: u64,
    said: Said,
    change: Rc<Change>,
    sent: u64,
}

pub struct Reporter {
    host: HostName,
    life: u64,
    numbers: u64,
    joined: u64,
    /// The life that it had is over.
    joins: bool,
    listed: bool,
    outbox: VecDeque<Event>,
    /// The sequence number of the first event of the outbox.
    first: u64,
    flight: Option<Flight>,
    settled: Vec<RunId>,
}

impl Reporter {
    pub fn new(host: HostName, life: u64) -> Reporter {
        Reporter {
            host,
            life,
            numbers: 0,
            joined: 0,
            joins: true,
            listed: false,
            outbox: VecDeque::new(),
            first: 1,
            flight: None,
            settled: Vec::new(),
        }
    }

    pub fn tell(&mut self, event: Event) {
        self.outbox.push_back(event);
    }

    pub fn tell_once(&mut self, event: Event) {
        if !self.outbox.iter().any(|held| held.instance == event.instance && held.kind == event.kind) {
            self.outbox.push_back(event);
        }
    }

    pub fn list_anew(&mut self) {
        self.listed = false;
    }

    pub fn is_listed(&self) -> bool {
        self.listed
    }

    /// Runs of which the state holds that nothing follows them.
    pub fn settled(&mut self) -> Vec<Action> {
        self.settled.drain(..).map(|run| Action::Acknowledge { run }).collect()
    }

    /// The keys of proposals that are applied once.
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        (self.life << 20) | self.numbers
    }

    pub fn speak(
        &mut self,
        view: &State,
        fleet: &Host,
        facts: &HostFacts,
        now: u64,
        stamp_ms: u64,
        fault: Fault,
    ) -> Option<Up> {
        if let Some(flight) = &mut self.flight {
            if now < flight.sent + LOST {
                return None;
            }
            flight.sent = now;
            return Some(Up::Propose(flight.number, flight.change.clone()));
        }
        let known = view.hosts.get(&self.host);
        self.joins |= known.is_some_and(|known| {
            known.incarnation > self.joined || known.incarnation == self.joined && !known.up
        });
        let (host, incarnation) = (self.host.clone(), self.joined);
        let (said, command) = if self.joins {
            (Said::Join, Command::JoinHost { host, facts: facts.clone() })
        } else if !self.listed {
            // The list holds what the events before it would say.
            let seq = self.first + self.outbox.len() as u64 - 1;
            self.outbox.clear();
            self.first = seq + 1;
            let (runs, rests) = (fleet.inventory(), fleet.rests());
            let last = rests.values().map(|rest| rest.run).collect();
            (Said::List(last), Command::Inventory { host, incarnation, seq, runs, rests })
        } else {
            if fault == Fault::EventsLost && self.outbox.len() > 1 {
                self.outbox.pop_back();
            }
            let events: Vec<Event> = self.outbox.iter().take(BATCH).cloned().collect();
            if events.is_empty() {
                return None;
            }
            let first_seq = self.first;
            (Said::Events(events.len()), Command::Events { host, incarnation, first_seq, events })
        };
        let number = self.number();
        let change = match said {
            Said::Join => once(&self.host, number, stamp_ms, command),
            _ => plain(stamp_ms, command),
        };
        self.flight = Some(Flight { number, said, change: change.clone(), sent: now });
        Some(Up::Propose(number, change))
    }

    /// Gives the incarnation, where the answer is one.
    pub fn answered(&mut self, number: u64, outcome: Outcome) -> Option<u64> {
        let flight = self.flight.take_if(|flight| flight.number == number)?;
        let Outcome::State(outcome) = outcome else { return None };
        match (flight.said, outcome) {
            (Said::Join, Ok(Response::Incarnation(incarnation))) => {
                (self.joined, self.joins, self.listed, self.first) = (incarnation, false, false, 1);
                self.outbox.clear();
                return Some(incarnation);
            }
            (Said::List(resting), Ok(_)) => {
                self.listed = true;
                self.settled.extend(resting);
            }
            (Said::Events(count), Ok(_)) => {
                self.first += count as u64;
                for event in self.outbox.drain(..count.min(self.outbox.len())) {
                    if let EventKind::Rests(rest) = event.kind {
                        self.settled.push(rest.run);
                    }
                }
            }
            (_, Err(Rejected::OldIncarnation(_))) => self.joins = true,
            (_, Err(Rejected::Gap { .. })) => self.listed = false,
            _ => {}
        }
        None
    }
}

/// A change that is applied once for this number of this host.
pub fn once(host: &HostName, number: u64, stamp_ms: u64, command: Command) -> Rc<Change> {
    let name = host.as_str().bytes().fold(0, |name, byte| (name << 8) | u64::from(byte));
    Rc::new(Change::Once { key: (name, number), envelope: Arc::new(Envelope { stamp_ms, command }) })
}
