//! All sheets that this host has: its own, and those of the others.
//!
//! Owns which sheets there are, and the count of changes by which others notice one.

use std::collections::BTreeMap;
use std::time::Duration;

use super::sheet::{Delta, FRESH, Line, Place, Sheet};
use super::summary::Summary;
use crate::host::Moment;
use crate::keeper::protocol::RunId;
use crate::spec::{HostName, InstanceId};

/// Hosts whose sheets are kept.
const MAX_HOSTS: usize = 4096;
/// A sheet that its host has not vouched for within this time goes.
const FORGET: Duration = Duration::from_secs(60);

/// How far somebody has each sheet.
pub type Places = BTreeMap<HostName, Place>;

/// What came of a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// It goes on from what is here: so many lines of it are new.
    Taken(u64),
    /// It is older than what is here, or does not go on from it.
    Stale,
    /// It makes no sense, or there is no room.
    Refused,
}

/// See the module. A copy costs little.
#[derive(Clone, Debug)]
pub struct Board {
    own: HostName,
    sheets: BTreeMap<HostName, Sheet>,
    version: u64,
}

impl Board {
    /// The board of this host, with an empty sheet of its own.
    pub fn new(own: HostName) -> Board {
        let sheets = [(own.clone(), Sheet::default())].into();
        Board { own, sheets, version: 0 }
    }

    /// Grows with each change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many runs something is known of.
    pub fn len(&self) -> usize {
        self.sheets.values().map(Sheet::len).sum()
    }

    /// True when nothing is known of any run.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whose board it is.
    pub fn own_name(&self) -> &HostName {
        &self.own
    }

    /// This host's own sheet.
    pub fn own(&self) -> &Sheet {
        // It is there from the beginning.
        &self.sheets[&self.own]
    }

    fn own_mut(&mut self) -> &mut Sheet {
        self.sheets.entry(self.own.clone()).or_default()
    }

    /// This host has joined, as this life of it. Until then nobody is told anything.
    pub fn begin(&mut self, life: u64) {
        if self.own().place().life != life {
            self.own_mut().begin(life);
            self.version += 1;
        }
    }

    /// A run of this host says so, or has ended (`None`). False: there is no room for it.
    pub fn note(&mut self, id: InstanceId, run: RunId, summary: Option<Summary>, now: Moment) -> bool {
        let noted = self.own_mut().note(id, run, summary, now);
        self.version += u64::from(noted == Some(true));
        noted.is_some()
    }

    /// Takes over what another host wrote.
    pub fn merge(&mut self, delta: Delta, now: Moment) -> Merged {
        let room = self.sheets.len() < MAX_HOSTS || self.sheets.contains_key(&delta.host);
        if delta.host == self.own || !room || !delta.is_sound() {
            return Merged::Refused;
        }
        let (host, news) = (delta.host.clone(), delta.is_news());
        let Some(sheet) = self.sheets.get_mut(&host) else {
            if delta.from.is_some() {
                return Merged::Stale;
            }
            let mut sheet = Sheet::default();
            let taken = sheet.take(delta, now).unwrap_or_default();
            self.sheets.insert(host, sheet);
            self.version += 1;
            return Merged::Taken(taken);
        };
        match sheet.take(delta, now) {
            Some(taken) => {
                self.version += u64::from(news);
                Merged::Taken(taken)
            }
            None => Merged::Stale,
        }
    }

    /// Forgets the sheets of hosts of which nothing was heard for long.
    pub fn forget(&mut self, now: Moment) {
        let own = self.own.clone();
        self.sheets.retain(|host, sheet| *host == own || now.since(sheet.vouched()) < FORGET);
    }

    /// Forgets the sheets of all other hosts.
    pub fn forget_others(&mut self) {
        let own = self.own.clone();
        self.sheets.retain(|host, _| *host == own);
    }

    /// The sheets, as far as their hosts vouch for them.
    fn fresh(&self, now: Moment) -> impl Iterator<Item = (&HostName, &Sheet)> {
        self.sheets.iter().filter(move |(host, sheet)| self.is_fresh(host, sheet, now))
    }

    fn is_fresh(&self, host: &HostName, sheet: &Sheet, now: Moment) -> bool {
        *host == self.own || now.since(sheet.vouched()) <= FRESH
    }

    /// What a run says about itself, and for how long; `None`: that is not known.
    pub fn of(
        &self,
        host: &HostName,
        id: &InstanceId,
        run: RunId,
        now: Moment,
    ) -> Option<(&Summary, Duration)> {
        let sheet = self.sheets.get(host).filter(|sheet| self.is_fresh(host, sheet, now))?;
        let line = sheet.line(id, run)?;
        Some((line.summary.as_deref()?, now.since(line.at)))
    }

    /// How far each sheet of another host goes.
    pub fn places(&self) -> Places {
        let others = self.sheets.iter().filter(|(host, _)| **host != self.own);
        others.map(|(host, sheet)| (host.clone(), sheet.place())).collect()
    }

    /// What somebody lacks who has so much of them, of the hosts that are wanted: about `bytes` of it, beginning with
    /// any sheet (`first`: a random number), so that none has to wait for the others for ever. True: there is more.
    pub fn since(
        &mut self,
        wanted: impl Fn(&HostName) -> bool,
        have: &Places,
        now: Moment,
        (bytes, first): (usize, usize),
    ) -> (Vec<Delta>, bool) {
        self.own_mut().vouch(now);
        let told = |host: &HostName, sheet: &Sheet| wanted(host) && sheet.place().life > 0;
        let sheets: Vec<_> = self.fresh(now).filter(|(host, sheet)| told(host, sheet)).collect();
        let (mut deltas, mut size, mut more) = (Vec::new(), 0, false);
        let (before, from) = sheets.split_at(first.checked_rem(sheets.len()).unwrap_or(0));
        for (host, sheet) in from.iter().chain(before) {
            let Some(delta) = sheet.since(host, have.get(*host).copied(), now) else { continue };
            let news = if delta.is_news() { delta.size() } else { 0 };
            if news > 0 && size > 0 && size + news > bytes {
                more = true;
                continue;
            }
            size += news;
            deltas.push(delta);
        }
        (deltas, more)
    }

    /// What somebody lacks of the own sheet; `None`: this host has not joined yet.
    pub fn own_since(&mut self, have: Option<Place>, now: Moment) -> Option<Delta> {
        self.own_mut().vouch(now);
        let own = self.own().place();
        // What is beyond this sheet is of a life that is over.
        self.own().since(&self.own, have.filter(|have| *have <= own), now).filter(|_| own.life > 0)
    }

    /// The lines of living runs that somebody has not seen who has seen so much, and how far they go.
    pub fn news(&self, seen: &Places, now: Moment) -> (Vec<(&HostName, &InstanceId, &Line)>, Places) {
        let (mut news, mut places) = (Vec::new(), Places::new());
        for (host, sheet) in self.fresh(now) {
            let last = seen.get(host).filter(|seen| seen.life == sheet.place().life);
            let lines = sheet.after(last.map_or(0, |last| last.seq));
            news.extend(lines.filter(|(_, line)| line.summary.is_some()).map(|(id, line)| (host, id, line)));
            places.insert(host.clone(), sheet.place());
        }
        (news, places)
    }
}
