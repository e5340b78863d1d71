//! One host's sheet: a line for each of its runs, numbered as they change.
//!
//! Owns the numbers. Only the host itself writes; all others repeat what it wrote, under its numbers, so that any of
//! them can say what comes after a place. A run that has ended keeps an empty line for a while, so that it can be
//! told; who was away for longer takes the whole sheet.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::summary::{MAX_SUMMARY, Summary};
use crate::host::Moment;
use crate::keeper::protocol::RunId;
use crate::spec::{HostName, InstanceId};
use crate::state::SharedMap;

/// Lines of one sheet.
pub const MAX_RUNS: usize = 16 * 1024;
/// Bytes of its summaries: it must go into one message.
pub const MAX_BYTES: usize = 8 << 20;
/// A sheet that its host has not vouched for within this time shows nothing.
pub const FRESH: Duration = Duration::from_secs(15);
/// Lines of a delta that are taken over at once.
const PART: usize = 512;
/// Lines of runs that have ended.
const KEPT: usize = 256;

/// How far somebody has a sheet. A later life of the host begins anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The incarnation of the host that wrote it.
    pub life: u64,
    /// The number of the last change.
    pub seq: u64,
}

/// What is known of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Which life of the instance.
    pub run: RunId,
    /// The number of the change that made it so.
    pub seq: u64,
    /// When the run said so.
    pub at: Moment,
    /// `None`: it has ended.
    pub summary: Option<Arc<Summary>>,
}

/// See the module. A copy costs little.
#[derive(Clone, Debug, Default)]
pub struct Sheet {
    place: Place,
    /// Whoever has less than this needs the whole: which runs have ended until then is forgotten.
    floor: u64,
    lines: SharedMap<InstanceId, Line>,
    /// By the numbers of their changes.
    order: SharedMap<u64, InstanceId>,
    /// Those of the lines that are empty.
    ended: SharedMap<u64, InstanceId>,
    bytes: usize,
    /// When its host last said that this is how it is.
    vouched: Moment,
}

/// What somebody lacks of a sheet. Append-only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// Whose.
    pub host: HostName,
    /// Where one is afterwards.
    pub to: Place,
    /// For those who have as much of this life; `None`: it is the whole.
    pub from: Option<u64>,
    /// How long ago its host said that this is how it is.
    pub age_ms: u64,
    /// By their numbers.
    pub lines: Vec<Told>,
}

/// A line on its way. Append-only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Of which instance.
    pub instance: InstanceId,
    /// Which life of it.
    pub run: RunId,
    /// [`Line::seq`].
    pub seq: u64,
    /// How long ago the run said so.
    pub age_ms: u64,
    /// `None`: it has ended.
    pub summary: Option<Arc<Summary>>,
}

impl Delta {
    /// True when it has more than the word that nothing has changed.
    pub fn is_news(&self) -> bool {
        self.from.is_none() || !self.lines.is_empty()
    }

    /// The same in parts to be taken over one after another, so that whoever else needs the board waits for one of
    /// them only. The whole of a sheet has to be one.
    pub fn parts(mut self) -> Vec<Delta> {
        if self.from.is_none() || self.lines.len() <= PART {
            return vec![self];
        }
        let mut lines = std::mem::take(&mut self.lines).into_iter().peekable();
        let mut parts = Vec::new();
        while lines.peek().is_some() {
            let some: Vec<Told> = lines.by_ref().take(PART).collect();
            let last = some.last().filter(|_| lines.peek().is_some());
            let seq = last.map_or(self.to.seq, |last| last.seq);
            let (host, to) = (self.host.clone(), Place { seq, ..self.to });
            parts.push(Delta { host, to, from: self.from.replace(seq), age_ms: self.age_ms, lines: some });
        }
        parts
    }

    /// True when its numbers can be right, and nothing is too large.
    pub(super) fn is_sound(&self) -> bool {
        let mut last = self.from.unwrap_or(0);
        let rises = |told: &Told| std::mem::replace(&mut last, told.seq) < told.seq;
        let small = |told: &Told| told.summary.as_ref().is_none_or(|s| s.size() <= MAX_SUMMARY);
        self.lines.len() <= MAX_RUNS + KEPT
            && self.lines.iter().all(small)
            && self.lines.iter().all(rises)
            && last <= self.to.seq
    }

    /// Bytes that it takes, about.
    pub fn size(&self) -> usize {
        let line = |told: &Told| 48 + told.summary.as_ref().map_or(0, |summary| summary.size());
        48 + self.lines.iter().map(line).sum::<usize>()
    }
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn before(now: Moment, age_ms: u64) -> Moment {
    Moment(now.0.saturating_sub(age_ms.saturating_mul(1_000_000)))
}

impl Sheet {
    /// How far it goes.
    pub fn place(&self) -> Place {
        self.place
    }

    /// When its host last said that this is how it is.
    pub fn vouched(&self) -> Moment {
        self.vouched
    }

    /// The runs that have not ended.
    pub fn lines(&self) -> impl Iterator<Item = (&InstanceId, &Line)> {
        self.lines.iter().filter(|(_, line)| line.summary.is_some())
    }

    /// How many runs have not ended.
    pub fn len(&self) -> usize {
        self.lines.len() - self.ended.len()
    }

    /// True when there is no such run.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The line of this run.
    pub fn line(&self, instance: &InstanceId, run: RunId) -> Option<&Line> {
        self.lines.get(instance).filter(|line| line.run == run && line.summary.is_some())
    }

    /// The lines behind a number, by their numbers.
    pub fn after(&self, seq: u64) -> impl Iterator<Item = (&InstanceId, &Line)> {
        let later = self.order.range::<u64, _>(seq.saturating_add(1)..);
        later.filter_map(|(_, id)| Some((id, self.lines.get(id)?)))
    }

    /// Another life of the host: all that it says is said anew.
    pub(super) fn begin(&mut self, life: u64) {
        let lines: Vec<_> = self.lines().map(|(id, line)| (id.clone(), line.clone())).collect();
        *self = Sheet { place: Place { life, seq: 0 }, vouched: self.vouched, ..Sheet::default() };
        for (id, line) in lines {
            self.write(id, line);
        }
    }

    /// The host writes a line, or strikes it out. True when that is a change; `None`: there is no room.
    pub(super) fn note(
        &mut self,
        id: InstanceId,
        run: RunId,
        summary: Option<Summary>,
        now: Moment,
    ) -> Option<bool> {
        let known = self.lines.get(&id);
        let same_run = known.is_some_and(|line| line.run == run);
        let same = known.is_some_and(|line| same_run && line.summary.as_deref() == summary.as_ref());
        // Of another run than this one nothing is struck out.
        if same || summary.is_none() && !same_run {
            return Some(false);
        }
        let room = self.lines.len() < MAX_RUNS || known.is_some();
        if summary.as_ref().is_some_and(|summary| !room || self.bytes + summary.size() > MAX_BYTES) {
            return None;
        }
        self.write(id, Line { run, seq: 0, at: now, summary: summary.map(Arc::new) });
        Some(true)
    }

    /// The next number is that of this line.
    fn write(&mut self, id: InstanceId, line: Line) {
        self.place.seq += 1;
        let seq = self.place.seq;
        self.set(id, Line { seq, ..line });
    }

    fn set(&mut self, id: InstanceId, line: Line) {
        self.bytes += line.summary.as_ref().map_or(0, |summary| summary.size());
        if line.summary.is_none() {
            self.ended.insert(line.seq, id.clone());
        }
        self.order.insert(line.seq, id.clone());
        if let Some(older) = self.lines.insert(id, line) {
            self.unset(&older);
        }
        while self.ended.len() > KEPT
            && let Some((seq, id)) = self.ended.iter().next().map(|(seq, id)| (*seq, id.clone()))
        {
            self.floor = self.floor.max(seq);
            if let Some(line) = self.lines.remove(&id) {
                self.unset(&line);
            }
        }
    }

    /// What is known of a line beside it.
    fn unset(&mut self, line: &Line) {
        self.bytes -= line.summary.as_ref().map_or(0, |summary| summary.size());
        self.order.remove(&line.seq);
        self.ended.remove(&line.seq);
    }

    /// What somebody lacks who has so much; `None`: it has more.
    pub(super) fn since(&self, host: &HostName, have: Option<Place>, now: Moment) -> Option<Delta> {
        if have.is_some_and(|have| have > self.place) {
            return None;
        }
        let have = have.filter(|have| have.life == self.place.life && have.seq >= self.floor);
        let told = |(id, line): (&InstanceId, &Line)| Told {
            instance: id.clone(),
            run: line.run,
            seq: line.seq,
            age_ms: ms(now.since(line.at)),
            summary: line.summary.clone(),
        };
        let lines = self.after(have.map_or(0, |have| have.seq));
        Some(Delta {
            host: host.clone(),
            to: self.place,
            from: have.map(|have| have.seq),
            age_ms: ms(now.since(self.vouched)),
            lines: lines.filter(|(_, line)| have.is_some() || line.summary.is_some()).map(told).collect(),
        })
    }

    /// The host itself says so now.
    pub(super) fn vouch(&mut self, now: Moment) {
        self.vouched = now;
    }

    /// Takes over what the host wrote; how many lines are new to this one. `None`: it does not go on from here.
    pub(super) fn take(&mut self, delta: Delta, now: Moment) -> Option<u64> {
        match delta.from {
            None if delta.to > self.place || self.place == Place::default() => {
                let place = Place { life: delta.to.life, seq: 0 };
                *self = Sheet { place, floor: delta.to.seq, vouched: self.vouched, ..Sheet::default() };
            }
            None if delta.to == self.place => {}
            Some(from) if delta.to.life == self.place.life && from <= self.place.seq => {}
            _ => return None,
        }
        if delta.to >= self.place {
            self.vouched = self.vouched.max(before(now, delta.age_ms));
        }
        let (known, mut taken) = (self.place.seq, 0);
        for Told { instance, run, seq, age_ms, summary } in delta.lines {
            let fits = summary.as_ref().is_none_or(|summary| self.bytes + summary.size() <= MAX_BYTES);
            if seq > known && fits {
                self.set(instance, Line { run, seq, at: before(now, age_ms), summary });
                taken += 1;
            }
        }
        self.place = self.place.max(delta.to);
        Some(taken)
    }
}
