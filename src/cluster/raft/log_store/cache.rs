//! The newest entries and the marks of the log, in memory.
//!
//! Owns what a reader sees before it is on disk. Entries leave it when they are on disk and there are many.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::{Entry, LogId, Vote};

/// Entries on disk that stay in memory: what followers are sent.
const KEEP: usize = 2048;
/// Their bytes at most.
const KEEP_BYTES: usize = 16 * 1024 * 1024;

/// Where the log stands.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Marks {
    /// The last vote.
    pub vote: Option<Vote>,
    /// Up to here all is committed, as far as this peer knows.
    pub committed: Option<LogId>,
    /// Up to here all is gone.
    pub purged: Option<LogId>,
    /// The last entry, or `purged` when there is none.
    pub last: Option<LogId>,
}

#[derive(Debug, Default)]
struct Inner {
    marks: Marks,
    /// All entries from `from` to the last, with their sizes.
    entries: BTreeMap<u64, (Entry, usize)>,
    from: u64,
    /// The log's first entry; without entries it means nothing.
    first: u64,
    bytes: usize,
    /// Up to here (inclusive) all is on disk.
    flushed: Option<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Cache(Mutex<Inner>);

impl Cache {
    /// An empty cache of a log that is on disk, from entry `first` on.
    pub fn new(marks: Marks, first: u64) -> Cache {
        let last = marks.last.map(|last| last.index);
        let from = last.map_or(0, |last| last + 1);
        Cache(Mutex::new(Inner { marks, from, first, flushed: last, ..Inner::default() }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change below is whole when it is made.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the log stands.
    pub fn marks(&self) -> Marks {
        self.inner().marks
    }

    /// Changes a mark.
    pub fn mark(&self, change: impl FnOnce(&mut Marks)) {
        change(&mut self.inner().marks);
    }

    /// Adds the next entry.
    pub fn append(&self, entry: Entry, size: usize) {
        let mut inner = self.inner();
        let index = entry.log_id.index;
        if inner.marks.last == inner.marks.purged {
            inner.first = index;
        }
        if inner.entries.is_empty() {
            inner.from = index;
        }
        inner.marks.last = Some(entry.log_id);
        inner.bytes += size;
        inner.entries.insert(index, (entry, size));
    }

    /// All up to `last` is on disk.
    pub fn flushed(&self, last: Option<u64>) {
        let inner = &mut *self.inner();
        inner.flushed = inner.flushed.max(last);
        while inner.entries.len() > KEEP || inner.bytes > KEEP_BYTES {
            let Some(first) = inner.entries.first_entry().filter(|e| Some(*e.key()) <= inner.flushed) else {
                return;
            };
            inner.from = first.key() + 1;
            inner.bytes -= first.remove().1;
        }
    }

    /// The entries after `last` are void.
    pub fn truncate(&self, last: Option<LogId>) {
        let inner = &mut *self.inner();
        let end = last.map_or(0, |last| last.index + 1);
        let void = inner.entries.split_off(&end);
        inner.bytes -= void.values().map(|(_, size)| size).sum::<usize>();
        inner.from = inner.from.min(end);
        inner.flushed = inner.flushed.min(end.checked_sub(1));
        inner.marks.last = inner.marks.last.min(last).max(inner.marks.purged);
    }

    /// The entries up to `upto` are gone.
    pub fn purge(&self, upto: LogId) {
        let inner = &mut *self.inner();
        let kept = inner.entries.split_off(&(upto.index + 1));
        let gone = std::mem::replace(&mut inner.entries, kept);
        inner.bytes -= gone.values().map(|(_, size)| size).sum::<usize>();
        inner.from = inner.from.max(upto.index + 1);
        inner.marks.purged = inner.marks.purged.max(Some(upto));
        inner.marks.last = inner.marks.last.max(Some(upto));
    }

    /// What there is of a range: the part that only the disk has, and the entries after it.
    pub fn range(&self, first: u64, end: u64) -> (Option<Range<u64>>, Vec<(Entry, usize)>) {
        let inner = self.inner();
        let first = first.max(inner.first).max(inner.marks.purged.map_or(0, |purged| purged.index + 1));
        let end = end.min(inner.marks.last.map_or(0, |last| last.index + 1));
        if first >= end {
            return (None, Vec::new());
        }
        let below = (first < inner.from).then_some(first..end.min(inner.from));
        let here = first.max(inner.from);
        let cached = if here < end {
            inner.entries.range(here..end).map(|(_, e)| e.clone()).collect()
        } else {
            Vec::new()
        };
        (below, cached)
    }
}

#[cfg(test)]
mod tests {
    use openraft::entry::RaftEntry;

    use super::*;

    fn id(index: u64) -> LogId {
        LogId { leader_id: super::super::super::LeaderId { term: 1, node_id: 1 }, index }
    }

    fn filled(entries: u64) -> Cache {
        let cache = Cache::default();
        for index in 1..=entries {
            cache.append(Entry::new_blank(id(index)), 10);
        }
        cache
    }

    fn indices(cache: &Cache, first: u64, end: u64) -> (Option<Range<u64>>, Vec<u64>) {
        let (below, cached) = cache.range(first, end);
        (below, cached.iter().map(|(entry, _)| entry.log_id.index).collect())
    }

    #[test]
    fn only_what_is_on_disk_leaves() {
        let cache = filled(KEEP as u64 + 10);
        cache.flushed(Some(4));
        assert_eq!(indices(&cache, 3, 7), (Some(3..5), vec![5, 6]));
        cache.flushed(Some(KEEP as u64 + 10));
        assert_eq!(indices(&cache, 3, 12), (Some(3..11), vec![11]));
    }

    #[test]
    fn what_was_truncated_or_purged_is_not_read() {
        let cache = filled(10);
        cache.flushed(Some(10));
        cache.truncate(Some(id(8)));
        cache.purge(id(3));
        assert_eq!(indices(&cache, 0, u64::MAX), (None, vec![4, 5, 6, 7, 8]));
        assert_eq!(cache.marks().last, Some(id(8)));
        cache.purge(id(20));
        assert_eq!(indices(&cache, 0, u64::MAX), (None, vec![]));
        assert_eq!((cache.marks().last, cache.marks().purged), (Some(id(20)), Some(id(20))));
        cache.append(Entry::new_blank(id(21)), 10);
        assert_eq!(indices(&cache, 0, u64::MAX), (None, vec![21]));
    }

    #[test]
    fn a_truncation_into_what_only_the_disk_has_keeps_the_rest_there() {
        let cache = Cache::new(Marks { last: Some(id(10)), ..Marks::default() }, 0);
        cache.truncate(Some(id(6)));
        cache.append(Entry::new_blank(id(7)), 10);
        assert_eq!(indices(&cache, 5, 9), (Some(5..7), vec![7]));
    }
}
