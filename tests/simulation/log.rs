//! The replicated log, small and honest: terms, votes, a quorum of disks that lag, a primary that may be deposed
//! and not know it.
//!
//! Stands in for openraft, which `tests/consensus` runs; this one costs microseconds. A peer is a value: it is
//! given messages and the time, and leaves what it sends in `out`.

use std::rc::Rc;

use bigbrother::cluster::raft::Change;

use crate::faults::Fault;

/// Between two beats of a leader, milliseconds.
const BEAT: u64 = 120;
/// Who heard a leader so lately helps nobody to depose it.
const LOYAL: u64 = 300;
/// Entries in one message.
const BATCH: usize = 64;

#[derive(Clone)]
pub struct Entry {
    pub term: u64,
    /// Names it among all that were ever proposed.
    pub id: u64,
    /// `None`: the first of a term.
    pub change: Option<Rc<Change>>,
}

#[derive(Clone)]
pub enum Message {
    Ask {
        term: u64,
        last: (u64, usize),
    },
    Vote {
        term: u64,
    },
    Append {
        term: u64,
        prev: (u64, usize),
        entries: Vec<Entry>,
        commit: usize,
        round: u64,
    },
    /// `matched`: on disk and like the leader's up to here; `None`: not at all, ask from `have` on.
    Appended {
        term: u64,
        matched: Option<usize>,
        have: usize,
        round: u64,
    },
}

enum Role {
    Follower,
    Candidate(Vec<usize>),
    Leader(Reign),
}

struct Reign {
    next: Vec<usize>,
    matched: Vec<usize>,
    /// The last round that each has answered, and when.
    echoed: Vec<(u64, u64)>,
    round: u64,
    beat: u64,
    /// The length of the log with its own first entry.
    first: usize,
}

pub struct Peer {
    me: usize,
    count: usize,
    pub term: u64,
    voted: Option<usize>,
    pub log: Vec<Entry>,
    /// So much of the log survives a crash.
    written: usize,
    /// On its way to the disk: up to here.
    flushing: Option<usize>,
    /// It tells of more than it has written.
    lies: bool,
    /// It forgets whom it gave its vote.
    forgets: bool,
    pub commit: usize,
    pub leader: Option<usize>,
    role: Role,
    heard: u64,
    patience: u64,
    /// Like the log of this term's leader up to here, and that leader's last round.
    verified: usize,
    round: u64,
    pub out: Vec<(usize, Message)>,
}

impl Peer {
    pub fn new(me: usize, count: usize, fault: Fault) -> Peer {
        Peer {
            me,
            count,
            term: 0,
            voted: None,
            log: Vec::new(),
            written: 0,
            flushing: None,
            lies: fault == Fault::DiskLies,
            forgets: fault == Fault::VoteForgotten,
            commit: 0,
            leader: None,
            role: Role::Follower,
            heard: 0,
            patience: 0,
            verified: 0,
            round: 0,
            out: Vec::new(),
        }
    }

    /// What was not on disk is gone; up to `applied` the disk has a snapshot.
    pub fn crash(&mut self, applied: usize, now: u64) {
        self.log.truncate(self.written);
        (self.flushing, self.leader, self.role) = (None, None, Role::Follower);
        (self.commit, self.verified, self.heard, self.patience) = (applied, 0, now, 0);
        self.out.clear();
    }

    pub fn leads(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// It leads, and its own first entry is committed.
    pub fn reigns(&self) -> bool {
        matches!(&self.role, Role::Leader(reign) if self.commit >= reign.first)
    }

    fn last(&self) -> (u64, usize) {
        (self.log.last().map_or(0, |entry| entry.term), self.log.len())
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let me = self.me;
        (0..self.count).filter(move |other| *other != me)
    }

    fn durable(&self) -> usize {
        if self.lies { self.log.len() } else { self.written }
    }

    fn quorum(&self) -> usize {
        self.count / 2 + 1
    }

    pub fn tick(&mut self, now: u64, rng: &mut fastrand::Rng) {
        match &mut self.role {
            Role::Leader(reign) if now >= reign.beat => {
                reign.beat = now + BEAT;
                self.replicate();
            }
            Role::Leader(_) => {}
            _ => {
                if self.patience == 0 {
                    self.patience = rng.u64(400..1_000);
                }
                if now >= self.heard + self.patience {
                    self.stand(now);
                }
            }
        }
    }

    fn stand(&mut self, now: u64) {
        self.term += 1;
        (self.voted, self.leader, self.heard, self.patience) = (Some(self.me), None, now, 0);
        self.role = Role::Candidate(vec![self.me]);
        let (term, last) = (self.term, self.last());
        self.out.extend(self.others().map(|to| (to, Message::Ask { term, last })));
    }

    fn follow(&mut self, term: u64) {
        if term > self.term {
            (self.term, self.voted) = (term, None);
        }
        (self.role, self.leader, self.verified, self.round) = (Role::Follower, None, 0, 0);
    }

    /// Gives the index of the entry, which may yet be lost.
    pub fn propose(&mut self, id: u64, change: Rc<Change>) -> usize {
        self.log.push(Entry { term: self.term, id, change: Some(change) });
        self.replicate();
        self.log.len()
    }

    /// A read begins: it may be answered when this round is heard by a quorum.
    pub fn begin_round(&mut self) -> u64 {
        let Role::Leader(reign) = &mut self.role else { return u64::MAX };
        reign.round += 1;
        let round = reign.round;
        self.replicate();
        round
    }

    /// A quorum has heard this round, in this term.
    pub fn confirmed(&self, round: u64) -> bool {
        let Role::Leader(reign) = &self.role else { return false };
        let heard = self.others().filter(|other| reign.echoed[*other].0 >= round).count();
        heard + 1 >= self.quorum()
    }

    /// A quorum was heard just now.
    pub fn has_quorum(&self, now: u64) -> bool {
        let Role::Leader(reign) = &self.role else { return false };
        let fresh = |other: &usize| now < reign.echoed[*other].1 + LOYAL;
        self.others().filter(fresh).count() + 1 >= self.quorum()
    }

    fn replicate(&mut self) {
        let others = self.others();
        let Role::Leader(reign) = &mut self.role else { return };
        for to in others {
            let from = reign.next[to].min(self.log.len());
            let end = self.log.len().min(from + BATCH);
            let prev = (if from == 0 { 0 } else { self.log[from - 1].term }, from);
            let entries = self.log[from..end].to_vec();
            reign.next[to] = end;
            let (term, commit, round) = (self.term, self.commit, reign.round);
            self.out.push((to, Message::Append { term, prev, entries, commit, round }));
        }
    }

    pub fn receive(&mut self, from: usize, message: Message, now: u64) {
        match message {
            Message::Ask { term, last } => self.asked(from, term, last, now),
            Message::Vote { term } => self.elected(from, term, now),
            Message::Append { term, prev, entries, commit, round } => {
                if term < self.term {
                    let refusal = Message::Appended { term: self.term, matched: None, have: 0, round: 0 };
                    return self.out.push((from, refusal));
                }
                if term > self.term || self.leader != Some(from) {
                    self.follow(term);
                    self.leader = Some(from);
                }
                (self.heard, self.patience) = (now, 0);
                self.round = self.round.max(round);
                self.append(from, prev, entries, commit);
            }
            Message::Appended { term, .. } if term > self.term => self.follow(term),
            Message::Appended { term, matched, have, round } if term == self.term => {
                self.appended(from, matched, have, round, now);
            }
            Message::Appended { .. } => {}
        }
    }

    fn asked(&mut self, from: usize, term: u64, last: (u64, usize), now: u64) {
        let loyal = match &self.role {
            Role::Leader(_) => self.has_quorum(now),
            _ => self.leader.is_some() && now < self.heard + LOYAL,
        };
        if loyal || term < self.term {
            return;
        }
        if term > self.term {
            self.follow(term);
        }
        let free = self.voted.is_none_or(|voted| voted == from) || self.forgets;
        if last >= self.last() && free {
            (self.voted, self.heard, self.patience) = (Some(from), now, 0);
            self.out.push((from, Message::Vote { term }));
        }
    }

    fn elected(&mut self, from: usize, term: u64, now: u64) {
        let quorum = self.quorum();
        let Role::Candidate(votes) = &mut self.role else { return };
        if term != self.term || votes.contains(&from) {
            return;
        }
        votes.push(from);
        if votes.len() < quorum {
            return;
        }
        self.log.push(Entry { term, id: term << 32, change: None });
        let end = self.log.len();
        let reign = Reign {
            next: vec![end - 1; self.count],
            matched: vec![0; self.count],
            echoed: vec![(0, now); self.count],
            round: 0,
            beat: now + BEAT,
            first: end,
        };
        (self.role, self.leader) = (Role::Leader(reign), Some(self.me));
        self.replicate();
    }

    fn append(&mut self, from: usize, prev: (u64, usize), entries: Vec<Entry>, commit: usize) {
        let (term, (prev_term, start)) = (self.term, prev);
        let fits = start == 0 || self.log.get(start - 1).is_some_and(|entry| entry.term == prev_term);
        if !fits {
            // What is committed is like the leader's in any case.
            let refusal = Message::Appended { term, matched: None, have: self.commit, round: self.round };
            return self.out.push((from, refusal));
        }
        let end = start + entries.len();
        for (at, entry) in (start..).zip(entries) {
            if self.log.get(at).is_some_and(|held| held.term != entry.term) {
                self.log.truncate(at);
                self.written = self.written.min(at);
                self.flushing = self.flushing.map(|end| end.min(at));
            }
            if at == self.log.len() {
                self.log.push(entry);
            }
        }
        self.verified = self.verified.max(end);
        self.commit = self.commit.max(commit.min(self.verified));
        self.acknowledge(from);
    }

    fn acknowledge(&mut self, to: usize) {
        let matched = Some(self.verified.min(self.durable()));
        self.out.push((to, Message::Appended { term: self.term, matched, have: 0, round: self.round }));
    }

    fn appended(&mut self, from: usize, matched: Option<usize>, have: usize, round: u64, now: u64) {
        let Role::Leader(reign) = &mut self.role else { return };
        let echoed = &mut reign.echoed[from];
        *echoed = (echoed.0.max(round), now);
        match matched {
            Some(matched) => reign.matched[from] = reign.matched[from].max(matched),
            None => reign.next[from] = have.max(reign.matched[from]),
        }
        self.advance();
    }

    fn advance(&mut self) {
        let (quorum, durable) = (self.quorum(), self.durable());
        let Role::Leader(reign) = &mut self.role else { return };
        reign.matched[self.me] = durable;
        let mut matched = reign.matched.clone();
        matched.sort_unstable();
        let held = matched[self.count - quorum];
        if held > self.commit && self.log[held - 1].term == self.term {
            self.commit = held;
        }
    }

    /// So much of the log is on disk.
    pub fn has_written(&self, length: usize) -> bool {
        length <= self.written
    }

    /// Something waits for the disk, and the disk is free: it is begun to be written.
    pub fn begins_flush(&mut self) -> bool {
        if self.flushing.is_some() || self.written == self.log.len() {
            return false;
        }
        self.flushing = Some(self.log.len());
        true
    }

    pub fn flushed(&mut self) {
        let Some(end) = self.flushing.take() else { return };
        self.written = self.written.max(end);
        match (self.leads(), self.leader) {
            (true, _) => self.advance(),
            (false, Some(leader)) => self.acknowledge(leader),
            (false, None) => {}
        }
    }
}
