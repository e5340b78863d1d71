//! Going through a shared map: in order, and side by side with an older copy of it. Called by the map's users.

use std::cmp::Ordering;
use std::iter::FusedIterator;
use std::slice;
use std::sync::Arc;

use super::{Run, SharedMap};

impl<K: Ord, V: PartialEq> SharedMap<K, V> {
    /// Tells of each key that has another value than in an older copy: what it had, and what it has.
    pub fn changes<'a>(&'a self, older: &'a Self, mut tell: impl FnMut(&'a K, Option<&'a V>, Option<&'a V>)) {
        let (mut was, mut is) = (Cursor::new(older), Cursor::new(self));
        loop {
            match (was.whole(), is.whole()) {
                (Some(old), Some(new)) if Arc::ptr_eq(old, new) => {
                    was.pass();
                    is.pass();
                    continue;
                }
                _ => {}
            }
            let (old, new) = (was.entry(), is.entry());
            let order = match (old, new) {
                (None, None) => return,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((old, _)), Some((new, _))) => old.cmp(new),
            };
            let old = old.filter(|_| order.is_le()).inspect(|_| was.step());
            let new = new.filter(|_| order.is_ge()).inspect(|_| is.step());
            let (old_value, new_value) = (old.map(|(_, value)| value), new.map(|(_, value)| value));
            if let Some((key, _)) = old.or(new).filter(|_| old_value != new_value) {
                tell(key, old_value, new_value);
            }
        }
    }
}

/// A place in a map, for the comparison of two.
struct Cursor<'a, K, V> {
    runs: &'a [Arc<Run<K, V>>],
    place: usize,
}

impl<'a, K, V> Cursor<'a, K, V> {
    fn new(map: &'a SharedMap<K, V>) -> Self {
        Cursor { runs: &map.runs, place: 0 }
    }

    /// The run of which nothing was looked at yet.
    fn whole(&self) -> Option<&'a Arc<Run<K, V>>> {
        self.runs.first().filter(|_| self.place == 0)
    }

    fn pass(&mut self) {
        self.runs = &self.runs[1..];
    }

    fn entry(&self) -> Option<&'a (K, V)> {
        self.runs.first().map(|run| &run[self.place])
    }

    fn step(&mut self) {
        self.place += 1;
        if self.runs[0].len() == self.place {
            self.pass();
            self.place = 0;
        }
    }
}

/// The entries of a map or of a part of it, in order.
pub struct Iter<'a, K, V> {
    pub(super) front: slice::Iter<'a, (K, V)>,
    pub(super) runs: slice::Iter<'a, Arc<Run<K, V>>>,
    pub(super) back: slice::Iter<'a, (K, V)>,
}

impl<K, V> Clone for Iter<'_, K, V> {
    fn clone(&self) -> Self {
        Iter { front: self.front.clone(), runs: self.runs.clone(), back: self.back.clone() }
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.front.next() {
                return Some((key, value));
            }
            match self.runs.next() {
                Some(run) => self.front = run.iter(),
                None => return self.back.next().map(|(key, value)| (key, value)),
            }
        }
    }
}

impl<K, V> DoubleEndedIterator for Iter<'_, K, V> {
    fn next_back(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.back.next_back() {
                return Some((key, value));
            }
            match self.runs.next_back() {
                Some(run) => self.back = run.iter(),
                None => return self.front.next_back().map(|(key, value)| (key, value)),
            }
        }
    }
}

impl<K, V> FusedIterator for Iter<'_, K, V> {}
