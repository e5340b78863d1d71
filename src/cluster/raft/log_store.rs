//! The log of this peer: votes and entries, on disk before they count.
//!
//! Owns the newest entries in memory and answers reads from them; the disk belongs to [`disk`], whose thread
//! writes what is queued in one transaction and then reports. Entries can be read as soon as they are
//! appended. Never decides what to append or purge: openraft does.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{AsyncRuntime, OptionalSend};

use super::{Entry, LogId, Types, Vote};
use crate::cluster::wire::frame::MAX_BODY;
use crate::cluster::wire::{decode, encode};

pub mod cache;
pub mod disk;

use cache::Cache;
pub use disk::{Disk, OpenError};
use disk::{Key, Op, Record};

/// A read gives entries until it has so many bytes.
const READ_BYTES: usize = 2 * 1024 * 1024;
/// What a message to another peer and the last of its entries have beside the change in it, at most.
const AROUND: usize = 128;
/// The largest change, in bytes: a message must hold it and what a read gives before it. A larger one would never get to
/// another peer, nor would anything after it.
pub const MAX_CHANGE: usize = MAX_BODY - READ_BYTES - AROUND;

/// The log. Cheap to clone: all clones are the same log.
#[derive(Clone)]
pub struct LogStore {
    disk: Arc<Disk>,
    cache: Arc<Cache>,
}

impl LogStore {
    /// The log of an opened disk.
    pub fn new(disk: Arc<Disk>) -> Result<LogStore, OpenError> {
        let cache = Arc::new(disk.load()?);
        Ok(LogStore { disk, cache })
    }

    fn read(&self, first: u64, end: u64, limit: usize) -> io::Result<Vec<Entry>> {
        let (below, mut cached) = self.cache.range(first, end);
        let mut entries = Vec::new();
        let mut bytes = 0;
        if let Some(below) = below {
            let complete = self.disk.read(below, |record| {
                bytes += record.len();
                entries.push(decode(record)?);
                Ok(bytes < limit)
            })?;
            if !complete {
                return Ok(entries);
            }
        }
        for (entry, size) in cached.drain(..) {
            if bytes >= limit {
                break;
            }
            bytes += size;
            entries.push(entry);
        }
        Ok(entries)
    }
}

impl<RT: AsyncRuntime> RaftLogReader<Types<RT>> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let first = match range.start_bound() {
            Bound::Included(first) => *first,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(first, end, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, READ_BYTES)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.cache.marks().vote)
    }
}

impl<RT: AsyncRuntime> RaftLogStorage<Types<RT>> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<Types<RT>>, io::Error> {
        let marks = self.cache.marks();
        Ok(LogState { last_purged_log_id: marks.purged, last_log_id: marks.last })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.disk.put(Key::Vote, encode(vote)?).await?;
        self.cache.mark(|marks| marks.vote = Some(*vote));
        Ok(())
    }

    /// Not waited for: it goes to disk with what is written next, or when the disk is tidied.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.cache.mark(|marks| marks.committed = committed);
        self.disk.send(Op::Put { key: Key::Committed, bytes: encode(&committed)?, done: None }).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.cache.marks().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types<RT>>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        for entry in entries {
            let (index, bytes) = (entry.log_id.index, encode(&entry)?);
            self.cache.append(entry, bytes.len());
            records.push(Record { index, bytes });
        }
        let cache = self.cache.clone();
        let last = records.last().map(|record| record.index);
        let done = move |result: io::Result<()>| {
            if result.is_ok() {
                cache.flushed(last);
            }
            callback.io_completed(result);
        };
        self.disk.send(Op::Append { records, done: Box::new(done) }).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        self.cache.truncate(last_log_id);
        let from = last_log_id.map_or(0, |last| last.index + 1);
        self.disk.write(|done| Op::Truncate { from, done }).await
    }

    /// Not waited for: the entries count as gone at once, the disk forgets them when it has time.
    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.cache.purge(log_id);
        self.disk.send(Op::Purge { upto: log_id.index, mark: encode(&log_id)? }).await
    }
}

#[cfg(test)]
mod tests;
