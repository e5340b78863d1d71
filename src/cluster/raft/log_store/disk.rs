//! The log's file (redb): the entries and, beside them, vote, marks, the snapshot's description and this peer's
//! identity, so that they change together.
//!
//! Owns `raft.redb` and refuses one that is damaged. Reads at once; writes are queued for the writer's
//! thread. Never reads a message.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{mpsc, oneshot};

mod writer;

use super::super::LogId;
use super::cache::{Cache, Marks};
use crate::cluster::wire::decode;
use writer::Writer;

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const MARKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("marks");
/// Its name in the folder.
pub const FILE: &str = "raft.redb";
/// Bumped when the records change their meaning.
const FORMAT: &[u8] = &[1, 0];
/// The file's pages in memory.
const PAGES: usize = 16 * 1024 * 1024;
/// Writes that wait.
const QUEUE: usize = 1024;

/// Hears what came of a write.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// An entry's bytes.
pub struct Record {
    /// Its place.
    pub index: u64,
    /// The encoded entry.
    pub bytes: Vec<u8>,
}

/// What is kept beside the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The last vote.
    Vote,
    /// Up to where all is committed.
    Committed,
    /// Up to where all is gone.
    Purged,
    /// The newest snapshot's description.
    Snapshot,
    /// This peer's number and the founding it belongs to.
    Identity,
    /// The number of which this peer heard that it is void.
    Void,
    /// The format of the records.
    Format,
}

impl Key {
    fn name(self) -> &'static str {
        match self {
            Key::Vote => "vote",
            Key::Committed => "committed",
            Key::Purged => "purged",
            Key::Snapshot => "snapshot",
            Key::Identity => "identity",
            Key::Void => "void",
            Key::Format => "format",
        }
    }
}

/// One write.
pub enum Op {
    /// Entries.
    Append {
        /// In order.
        records: Vec<Record>,
        /// Called when they are on disk.
        done: Done,
    },
    /// A mark; without `done` it is not waited for, and goes to disk with the next write or when tidied.
    Put {
        /// Which.
        key: Key,
        /// Its value.
        bytes: Vec<u8>,
        /// Called when it is on disk.
        done: Option<Done>,
    },
    /// The entries from here on are void.
    Truncate {
        /// The first void one.
        from: u64,
        /// Called when they are gone from the disk.
        done: Done,
    },
    /// The entries up to here are not needed any more.
    Purge {
        /// The last one.
        upto: u64,
        /// The encoded mark.
        mark: Vec<u8>,
    },
    /// Bring what is not waited for to the disk.
    Tidy,
}

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder.
    #[error("cannot make the folder {path}; set host.data_dir to a folder that you may write to")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent has it.
    #[error("{path} is in use: another agent runs with this data_dir")]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// The disk.
    #[error("cannot read the cluster's log {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: redb::Error,
    },
    /// The bytes.
    #[error(
        "the cluster's log {path} is damaged: move its folder away and start the agent again, it then comes back \
         as a new peer with the state of the others (a host alone begins anew with its cluster.toml)"
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A later version wrote it.
    #[error("the cluster's log {path} is of a later version: start that version of the agent")]
    Foreign {
        /// Which.
        path: PathBuf,
    },
}

/// The file, opened.
pub struct Disk {
    db: Arc<Database>,
    ops: mpsc::Sender<Op>,
    path: PathBuf,
}

/// What is said when the thread is gone.
fn stopped() -> io::Error {
    io::Error::other("the log is closed")
}

impl Disk {
    /// Opens or makes `raft.redb` in the folder and looks whether it is whole.
    pub fn open(folder: &Path) -> Result<Disk, OpenError> {
        std::fs::create_dir_all(folder)
            .map_err(|source| OpenError::Folder { path: folder.to_owned(), source })?;
        let path = folder.join(FILE);
        let fresh = !path.exists();
        // redb asserts what a damaged page must not break; that is damage like any other.
        let opened = std::panic::catch_unwind(|| {
            let mut db = Database::builder().set_cache_size(PAGES).create(&path)?;
            let whole = fresh || db.check_integrity()?;
            Ok::<_, redb::Error>((db, whole))
        });
        let damaged = |source| OpenError::Damaged { path: path.clone(), source };
        let (db, whole) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(redb::Error::DatabaseAlreadyOpen)) => return Err(OpenError::InUse { path }),
            Ok(Err(source @ redb::Error::Io(_))) if !is_damage(&source) => {
                return Err(OpenError::Read { path, source });
            }
            Ok(Err(source)) => return Err(damaged(source.into())),
            Err(_) => return Err(damaged("a page makes no sense".into())),
        };
        if !whole {
            return Err(damaged("a checksum does not fit".into()));
        }
        prepare(&db, &path)?;
        let (ops, queue) = mpsc::channel(QUEUE);
        let db = Arc::new(db);
        let writer = Writer::new(db.clone(), queue);
        let thread = std::thread::Builder::new().name("log".to_owned());
        // It ends when the last asking end is gone, and holds nothing that must be waited for.
        thread
            .spawn(move || writer.run())
            .map_err(|source| OpenError::Folder { path: folder.to_owned(), source })?;
        Ok(Disk { db, ops, path })
    }

    /// Queues a write.
    pub async fn send(&self, op: Op) -> io::Result<()> {
        self.ops.send(op).await.map_err(|_| stopped())
    }

    /// Queues a write and waits until it is on disk.
    pub async fn write(&self, op: impl FnOnce(Done) -> Op) -> io::Result<()> {
        let (done, written) = oneshot::channel();
        // Whoever stopped waiting does not hear of it.
        self.send(op(Box::new(move |result| drop(done.send(result))))).await?;
        written.await.map_err(|_| stopped())?
    }

    /// The same of a mark.
    pub async fn put(&self, key: Key, bytes: Vec<u8>) -> io::Result<()> {
        self.write(|done| Op::Put { key, bytes, done: Some(done) }).await
    }

    /// A mark as it is on disk.
    pub fn get(&self, key: Key) -> io::Result<Option<Vec<u8>>> {
        let found = || {
            let table = self.db.begin_read()?.open_table(MARKS)?;
            let value = table.get(key.name())?.map(|guard| guard.value().to_vec());
            Ok::<_, redb::Error>(value)
        };
        found().map_err(io::Error::other)
    }

    /// Where the log stands on disk.
    pub fn load(&self) -> Result<Cache, OpenError> {
        let damaged = |source| OpenError::Damaged { path: self.path.clone(), source };
        let mark = |key| self.get(key).map_err(|error| damaged(error.into()));
        let ends = || {
            let table = self.db.begin_read()?.open_table(LOG)?;
            let first = table.first()?.map(|(index, _)| index.value());
            Ok::<_, redb::Error>((first, table.last()?.map(|(_, record)| record.value().to_vec())))
        };
        let (first, last) = ends().map_err(|error| damaged(error.into()))?;
        let marks = || {
            let last: Option<super::super::Entry> = last.as_deref().map(decode).transpose()?;
            let purged: Option<LogId> =
                mark(Key::Purged).unwrap_or_default().as_deref().map(decode).transpose()?;
            Ok::<_, crate::cluster::wire::DecodeError>(Marks {
                vote: mark(Key::Vote).unwrap_or_default().as_deref().map(decode).transpose()?,
                committed: mark(Key::Committed)
                    .unwrap_or_default()
                    .as_deref()
                    .map(decode)
                    .transpose()?
                    .flatten(),
                purged,
                last: last.map(|entry| entry.log_id).max(purged),
            })
        };
        Ok(Cache::new(marks().map_err(|error| damaged(error.into()))?, first.unwrap_or_default()))
    }

    /// Gives each record of a range to `take` until it has enough; true when it took them all.
    pub fn read(
        &self,
        range: Range<u64>,
        mut take: impl FnMut(&[u8]) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let table =
            self.db.begin_read().map_err(io::Error::other)?.open_table(LOG).map_err(io::Error::other)?;
        let mut expected = range.start;
        for record in table.range(range.clone()).map_err(io::Error::other)? {
            let (index, bytes) = record.map_err(io::Error::other)?;
            if index.value() != expected {
                break;
            }
            expected += 1;
            if !take(bytes.value())? {
                return Ok(false);
            }
        }
        if expected != range.end {
            return Err(io::Error::other(format!("entry {expected} is missing from the log")));
        }
        Ok(true)
    }
}

/// redb says what is wrong with a file in words of the io module, too.
fn is_damage(error: &redb::Error) -> bool {
    matches!(error, redb::Error::Io(e) if matches!(e.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof))
}

fn prepare(db: &Database, path: &Path) -> Result<(), OpenError> {
    let made = || {
        let transaction = db.begin_write()?;
        transaction.open_table(LOG)?;
        let format = {
            let mut marks = transaction.open_table(MARKS)?;
            let format = marks.get(Key::Format.name())?.map(|found| found.value().to_vec());
            if format.is_none() {
                marks.insert(Key::Format.name(), FORMAT)?;
            }
            format
        };
        transaction.commit()?;
        Ok::<_, redb::Error>(format)
    };
    let format = made().map_err(|source| OpenError::Read { path: path.to_owned(), source })?;
    match format {
        Some(format) if format != FORMAT => Err(OpenError::Foreign { path: path.to_owned() }),
        _ => Ok(()),
    }
}
