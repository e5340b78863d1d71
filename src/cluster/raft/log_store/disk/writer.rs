//! The thread that writes the log's file.
//!
//! Owns the queue of writes. What is queued while a transaction is on its way to the disk goes into the next
//! one. Purged entries are deleted in small portions when nothing else waits. After a failed write nothing is
//! written any more: the log must not have a hole.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use redb::{Database, Durability, ReadableTable};
use tokio::sync::mpsc;

use super::{Key, LOG, MARKS, Op};

/// Writes of one transaction.
const BATCH: usize = 256;
/// Purged entries deleted at once.
const PORTION: u64 = 512;
/// After so many transactions a portion is deleted although others wait.
const PATIENCE: u32 = 32;

pub(super) struct Writer {
    db: Arc<Database>,
    queue: mpsc::Receiver<Op>,
    /// Marks that nobody waits for.
    lazy: BTreeMap<Key, Vec<u8>>,
    /// Purged entries that are still on disk.
    doomed: Range<u64>,
    /// Why nothing is written any more.
    broken: Option<String>,
    /// Transactions since the last portion was deleted.
    since: u32,
}

impl Writer {
    pub(super) fn new(db: Arc<Database>, queue: mpsc::Receiver<Op>) -> Writer {
        Writer { db, queue, lazy: BTreeMap::new(), doomed: 0..0, broken: None, since: 0 }
    }

    pub(super) fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            let busy = match self.queue.try_recv() {
                Ok(op) => Some(op),
                Err(_) if !self.doomed.is_empty() && self.broken.is_none() => None,
                Err(_) => match self.queue.blocking_recv() {
                    Some(op) => Some(op),
                    None => break,
                },
            };
            let idle = busy.is_none();
            batch.extend(busy);
            while batch.len() < BATCH {
                let Ok(op) = self.queue.try_recv() else { break };
                batch.push(op);
            }
            self.since += 1;
            let portion = idle || self.since > PATIENCE;
            self.carry_out(&mut batch, portion);
        }
        // What nobody waited for.
        self.carry_out(&mut vec![Op::Tidy], false);
    }

    fn carry_out(&mut self, batch: &mut Vec<Op>, portion: bool) {
        let due = batch.iter().any(|op| match op {
            Op::Put { done: None, .. } | Op::Purge { .. } => false,
            Op::Tidy => !self.lazy.is_empty(),
            _ => true,
        });
        let result = match &self.broken {
            Some(why) => Err(why.clone()),
            None if due || portion => self.commit(batch, portion).map_err(|error| error.to_string()),
            None => {
                self.put_off(batch);
                Ok(())
            }
        };
        if let Err(why) = &result
            && self.broken.is_none()
        {
            tracing::error!(why, "the cluster's log cannot be written");
            self.broken = Some(why.clone());
        }
        for op in batch.drain(..) {
            if let Op::Append { done, .. } | Op::Put { done: Some(done), .. } | Op::Truncate { done, .. } = op
            {
                done(result.clone().map_err(io::Error::other));
            }
        }
    }

    /// Takes note of what nobody waits for.
    fn put_off(&mut self, batch: &mut [Op]) {
        for op in batch {
            match op {
                Op::Put { key, bytes, done: None } => drop(self.lazy.insert(*key, std::mem::take(bytes))),
                Op::Purge { upto, mark } => {
                    self.doomed.end = self.doomed.end.max(*upto + 1);
                    self.lazy.insert(Key::Purged, std::mem::take(mark));
                }
                _ => {}
            }
        }
    }

    /// One transaction for all.
    fn commit(&mut self, batch: &mut [Op], portion: bool) -> Result<(), redb::Error> {
        self.put_off(batch);
        let mut transaction = self.db.begin_write()?;
        let due = !self.lazy.is_empty() || !batch.is_empty();
        if !due {
            // Deletions alone may be lost: they are made again.
            transaction.set_durability(Durability::None)?;
        }
        {
            let mut log = transaction.open_table(LOG)?;
            let mut marks = transaction.open_table(MARKS)?;
            for (key, bytes) in &self.lazy {
                marks.insert(key.name(), bytes.as_slice())?;
            }
            for op in batch.iter() {
                match op {
                    Op::Append { records, .. } => {
                        for record in records {
                            log.insert(record.index, record.bytes.as_slice())?;
                        }
                    }
                    Op::Put { key, bytes, done: Some(_) } => {
                        drop(marks.insert(key.name(), bytes.as_slice())?)
                    }
                    Op::Truncate { from, .. } => log.retain_in(*from.., |_, _| false)?,
                    Op::Put { done: None, .. } | Op::Purge { .. } | Op::Tidy => {}
                }
            }
            if portion && !self.doomed.is_empty() {
                self.since = 0;
                if self.doomed.start == 0 {
                    self.doomed.start = log.first()?.map_or(self.doomed.end, |(first, _)| first.value());
                }
                let end = self.doomed.end.min(self.doomed.start + PORTION);
                log.retain_in(self.doomed.start..end, |_, _| false)?;
                self.doomed.start = end;
            }
        }
        transaction.commit()?;
        self.lazy.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use redb::{ReadableDatabase, ReadableTableMetadata};

    use super::super::Record;
    use super::*;

    fn append(indices: Range<u64>) -> Vec<Op> {
        let records = indices.map(|index| Record { index, bytes: vec![7; 32] }).collect();
        vec![Op::Append { records, done: Box::new(|written| written.unwrap()) }]
    }

    #[test]
    fn what_is_purged_goes_in_portions_beside_the_writes() {
        let folder = tempfile::tempdir().unwrap();
        let db = Arc::new(Database::create(folder.path().join("log.redb")).unwrap());
        let mut writer = Writer::new(db.clone(), mpsc::channel(1).1);
        let length = || db.begin_read().unwrap().open_table(LOG).unwrap().len().unwrap();
        writer.carry_out(&mut append(0..5_000), false);
        writer.carry_out(&mut vec![Op::Purge { upto: 3_999, mark: vec![1] }], false);
        writer.carry_out(&mut append(5_000..5_001), false);
        assert_eq!(length(), 5_001, "a write has waited for what is purged");
        writer.carry_out(&mut append(5_001..5_002), true);
        assert_eq!(length(), 5_002 - PORTION, "more than a portion goes with one write");
        (0..4_000 / PORTION).for_each(|_| writer.carry_out(&mut Vec::new(), true));
        assert_eq!(length(), 1_002);
    }
}
