//! A sorted map of which a copy costs nothing and shares what neither side has changed since.
//!
//! Owns how the large maps of the state lie in memory: short sorted runs of entries, each behind an `Arc`. The
//! newest state is published after each batch, so the next one is written while others hold the last: it
//! copies the runs that it touches, not the map. [`SharedMap::changes`] finds what differs between two such
//! copies by passing over what they share. The order of iteration and the serialized bytes are those of a
//! `BTreeMap`. Pure; knows nothing of the state.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::ops::{Bound, Index, RangeBounds};
use std::sync::Arc;

mod bytes;
mod walk;

pub use walk::Iter;

/// The most entries of a run: few are copied for one that changes, and a map has few runs.
const LONGEST: usize = 32;
/// A run shorter than this joins the one beside it.
const SHORTEST: usize = LONGEST / 4;

type Run<K, V> = Vec<(K, V)>;

/// See the module.
pub struct SharedMap<K, V> {
    /// Sorted, none of them empty.
    runs: Arc<Vec<Arc<Run<K, V>>>>,
    len: usize,
}

impl<K, V> SharedMap<K, V> {
    /// An empty map.
    pub fn new() -> Self {
        SharedMap { runs: Arc::default(), len: 0 }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Removes all entries.
    pub fn clear(&mut self) {
        *self = SharedMap::new();
    }

    /// All entries, in order.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter { front: [].iter(), runs: self.runs.iter(), back: [].iter() }
    }

    /// All keys, in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// All values, in the order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }

    /// The run that may hold the key: the last one that begins with none greater.
    fn run_of<Q: Ord + ?Sized>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        let after = self.runs.partition_point(|run| run.first().is_some_and(|(k, _)| k.borrow() <= key));
        after.saturating_sub(1)
    }

    /// Where the key is, by run and place, or where it would be.
    fn find<Q: Ord + ?Sized>(&self, key: &Q) -> (usize, Result<usize, usize>)
    where
        K: Borrow<Q>,
    {
        let at = self.run_of(key);
        let found =
            self.runs.get(at).map_or(Err(0), |run| run.binary_search_by(|(k, _)| k.borrow().cmp(key)));
        (at, found)
    }

    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let (at, place) = self.find(key);
        place.ok().map(|place| &self.runs[at][place].1)
    }

    /// True when there is an entry of this key.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.find(key).1.is_ok()
    }

    /// The entries between two keys, in order.
    pub fn range<Q: Ord + ?Sized, R: RangeBounds<Q>>(&self, bounds: R) -> Iter<'_, K, V>
    where
        K: Borrow<Q>,
    {
        let end = (self.runs.len(), 0);
        let place = |key: &Q, past: bool| {
            let (at, found) = self.find(key);
            (at, found.map_or_else(|place| place, |place| place + usize::from(past)))
        };
        let from = match bounds.start_bound() {
            Bound::Included(key) => place(key, false),
            Bound::Excluded(key) => place(key, true),
            Bound::Unbounded => (0, 0),
        };
        let to = match bounds.end_bound() {
            Bound::Included(key) => place(key, true),
            Bound::Excluded(key) => place(key, false),
            Bound::Unbounded => end,
        };
        let part = |at: usize, from: usize, to: Option<usize>| {
            let run = self.runs.get(at).map_or(&[][..], |run| &run[..]);
            run.get(from..to.unwrap_or(run.len())).unwrap_or(&[]).iter()
        };
        match from.0.cmp(&to.0) {
            Ordering::Less => Iter {
                front: part(from.0, from.1, None),
                runs: self.runs[from.0 + 1..to.0].iter(),
                back: part(to.0, 0, Some(to.1)),
            },
            // An empty range when they are the wrong way round.
            Ordering::Equal => {
                Iter { front: part(from.0, from.1, Some(to.1)), runs: [].iter(), back: [].iter() }
            }
            Ordering::Greater => Iter { front: [].iter(), runs: [].iter(), back: [].iter() },
        }
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    fn run_mut(&mut self, at: usize) -> &mut Run<K, V> {
        Arc::make_mut(&mut Arc::make_mut(&mut self.runs)[at])
    }

    /// The value of a key, to be changed. Its run is shared no more, whether or not it is.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let (at, place) = self.find(key);
        let place = place.ok()?;
        Some(&mut self.run_mut(at)[place].1)
    }

    /// The value of a key, which is entered where there is none.
    pub fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        let (at, place) = self.find(&key);
        let (at, place) = match place {
            Ok(place) => (at, place),
            Err(place) => self.put(at, place, key, make()),
        };
        &mut self.run_mut(at)[place].1
    }

    /// Enters a value; gives back the one that was there.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (at, place) = self.find(&key);
        match place {
            Ok(place) => Some(std::mem::replace(&mut self.run_mut(at)[place].1, value)),
            Err(place) => {
                self.put(at, place, key, value);
                None
            }
        }
    }

    /// Enters what is not there, and says where it is now.
    fn put(&mut self, mut at: usize, mut place: usize, key: K, value: V) -> (usize, usize) {
        self.len += 1;
        let runs = Arc::make_mut(&mut self.runs);
        if runs.is_empty() {
            runs.push(Arc::default());
        }
        if runs[at].len() >= LONGEST {
            // What is entered in order fills one run after the other.
            let appended = place == runs[at].len() && at + 1 == runs.len();
            let half = if appended { LONGEST } else { LONGEST / 2 };
            let mut later = Vec::with_capacity(LONGEST);
            later.extend(Arc::make_mut(&mut runs[at]).drain(half..));
            runs.insert(at + 1, Arc::new(later));
            if place >= half && (appended || place > half) {
                (at, place) = (at + 1, place - half);
            }
        }
        Arc::make_mut(&mut runs[at]).insert(place, (key, value));
        (at, place)
    }

    /// Removes an entry; gives back its value.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let (at, place) = self.find(key);
        let place = place.ok()?;
        let (_, value) = self.run_mut(at).remove(place);
        self.len -= 1;
        self.join(at);
        Some(value)
    }

    /// A run that has become short joins one beside it, and an empty one goes.
    fn join(&mut self, at: usize) {
        let runs = Arc::make_mut(&mut self.runs);
        let short = runs[at].len();
        if short == 0 {
            runs.remove(at);
            return;
        }
        if short >= SHORTEST {
            return;
        }
        let fits = |with: usize| runs.get(with).is_some_and(|run| run.len() + short <= LONGEST);
        let first = match (at.checked_sub(1).filter(|with| fits(*with)), fits(at + 1)) {
            (Some(before), _) => before,
            (None, true) => at,
            (None, false) => return,
        };
        let later = Arc::unwrap_or_clone(runs.remove(first + 1));
        Arc::make_mut(&mut runs[first]).extend(later);
    }

    /// Keeps the entries for which this is true. Runs that stay whole stay shared.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        let mut rest: Vec<Arc<Run<K, V>>> = Vec::with_capacity(self.runs.len());
        let mut len = 0;
        let mut kept = Vec::with_capacity(LONGEST);
        for run in self.runs.iter() {
            kept.clear();
            kept.extend(run.iter().map(|(key, value)| keep(key, value)));
            let left = kept.iter().filter(|kept| **kept).count();
            len += left;
            if left == run.len() {
                rest.push(run.clone());
                continue;
            }
            let stays = run.iter().zip(&kept).filter(|(_, kept)| **kept).map(|(entry, _)| entry.clone());
            match rest.last_mut().filter(|last| last.len() + left <= LONGEST && left < SHORTEST) {
                Some(last) if left > 0 => Arc::make_mut(last).extend(stays),
                _ if left > 0 => rest.push(Arc::new(stays.collect())),
                _ => {}
            }
        }
        if len != self.len {
            *self = SharedMap { runs: Arc::new(rest), len };
        }
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        SharedMap { runs: self.runs.clone(), len: self.len }
    }
}

impl<K, V> SharedMap<K, V> {
    /// True when nothing was changed in one of them since they were one; seen at once, however many there are.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.runs, &other.runs)
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        SharedMap::new()
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.runs, &other.runs) || (self.len == other.len && self.iter().eq(other.iter()))
    }
}

impl<K: Eq, V: Eq> Eq for SharedMap<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Borrow<Q>, V, Q: Ord + ?Sized> Index<&Q> for SharedMap<K, V> {
    type Output = V;

    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("no entry of this key")
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for SharedMap<K, V> {
    fn extend<T: IntoIterator<Item = (K, V)>>(&mut self, entries: T) {
        entries.into_iter().for_each(|(key, value)| drop(self.insert(key, value)));
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(entries: T) -> Self {
        let mut map = SharedMap::new();
        map.extend(entries);
        map
    }
}

impl<K: Ord + Clone, V: Clone, const N: usize> From<[(K, V); N]> for SharedMap<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<'a, K, V> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Iter<'a, K, V> {
        self.iter()
    }
}

impl<K: Clone, V: Clone> IntoIterator for SharedMap<K, V> {
    type Item = (K, V);
    type IntoIter = std::vec::IntoIter<(K, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter().map(|(key, value)| (key.clone(), value.clone())).collect::<Vec<_>>().into_iter()
    }
}

#[cfg(test)]
mod tests;
