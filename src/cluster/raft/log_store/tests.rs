//! The log and the machine on real files, through openraft's own suite and through faults.

use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use openraft::raft::AppendEntriesRequest;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use openraft::{StorageError, TokioRuntime};
use tempfile::TempDir;
use tokio::sync::watch;

use super::super::machine::{DiskShelf, Machine};
use super::super::{LeaderId, Types};
use super::*;

type C = Types<TokioRuntime>;

struct Folders;

impl StoreBuilder<C, LogStore, Machine<DiskShelf>, TempDir> for Folders {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine<DiskShelf>), StorageError<C>> {
        let folder = tempfile::tempdir().unwrap();
        let disk = Arc::new(Disk::open(folder.path()).unwrap());
        let shelf = DiskShelf::new(folder.path(), disk.clone());
        let (states, _) = watch::channel(Arc::default());
        let (applies, _) = watch::channel(Default::default());
        Ok((folder, LogStore::new(disk).unwrap(), Machine::new(shelf, states, applies)))
    }
}

#[tokio::test]
async fn the_suite_of_openraft_passes() {
    Suite::test_all(Folders).await.unwrap();
}

fn id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: 1 }, index }
}

async fn append(log: &mut LogStore, indices: std::ops::RangeInclusive<u64>) {
    let entries: Vec<Entry> = indices.map(|index| Entry::new_blank(id(1, index))).collect();
    let (done, written) = C::oneshot();
    RaftLogStorage::<C>::append(log, entries, IOFlushed::signal(done)).await.unwrap();
    written.await.unwrap().unwrap();
}

async fn indices(log: &mut LogStore) -> Vec<u64> {
    let entries = RaftLogReader::<C>::try_get_log_entries(log, ..).await.unwrap();
    entries.iter().map(|entry| entry.log_id.index).collect()
}

fn open(folder: &TempDir) -> LogStore {
    LogStore::new(Arc::new(Disk::open(folder.path()).unwrap())).unwrap()
}

/// Closing is done by the writing thread, after what is queued.
async fn reopened(log: LogStore, folder: &TempDir) -> LogStore {
    drop(log);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    loop {
        match Disk::open(folder.path()) {
            Ok(disk) => return LogStore::new(Arc::new(disk)).unwrap(),
            Err(OpenError::InUse { .. }) if std::time::Instant::now() < deadline => {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test]
async fn what_was_reported_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(&folder);
    append(&mut log, 0..=5000).await;
    RaftLogStorage::<C>::save_vote(&mut log, &Vote::new(7, 3)).await.unwrap();
    RaftLogStorage::<C>::save_committed(&mut log, Some(id(1, 4999))).await.unwrap();
    RaftLogStorage::<C>::truncate_after(&mut log, Some(id(1, 4999))).await.unwrap();
    RaftLogStorage::<C>::purge(&mut log, id(1, 2999)).await.unwrap();
    assert_eq!(indices(&mut log).await, (3000..5000).collect::<Vec<_>>());

    let mut log = reopened(log, &folder).await;
    assert_eq!(indices(&mut log).await, (3000..5000).collect::<Vec<_>>());
    let marks = log.cache.marks();
    assert_eq!((marks.vote, marks.committed), (Some(Vote::new(7, 3)), Some(id(1, 4999))));
    assert_eq!((marks.purged, marks.last), (Some(id(1, 2999)), Some(id(1, 4999))));
}

#[tokio::test]
async fn purged_entries_leave_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(&folder);
    append(&mut log, 0..=3000).await;
    RaftLogStorage::<C>::purge(&mut log, id(1, 2900)).await.unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    // The disk has no entry any more where the purged ones were.
    while log.disk.read(2900..2901, |_| Ok(true)).is_ok() {
        assert!(std::time::Instant::now() < deadline, "entry 2900 is still on disk");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(log.disk.read(2901..3001, |_| Ok(true)).unwrap());
}

#[tokio::test]
async fn one_read_fits_one_message() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(&folder);
    append(&mut log, 0..=3000).await;
    let few = log.read(0, 3001, 1000).unwrap();
    assert!((1..1000).contains(&few.len()), "{} entries", few.len());
    let none_lost = log.read(few.len() as u64, 3001, usize::MAX).unwrap();
    assert_eq!(few.len() + none_lost.len(), 3001);
}

#[tokio::test]
async fn a_damaged_file_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(&folder);
    append(&mut log, 0..=5000).await;
    let log = reopened(log, &folder).await;
    let good = std::fs::read(folder.path().join("raft.redb")).unwrap();
    drop(log);
    // Where the entries lie, all over the file.
    let mut bad = good.clone();
    bad[4096..].iter_mut().step_by(97).for_each(|byte| *byte ^= 0x55);
    let files = [("whole", &good[..]), ("bytes", &bad), ("cut", &good[..40 * 1024]), ("other", b"hello")];
    for (what, bytes) in files {
        let copy = tempfile::tempdir().unwrap();
        std::fs::write(copy.path().join("raft.redb"), bytes).unwrap();
        let opened = Disk::open(copy.path()).map(drop).map_err(|error| error.to_string());
        let refused = opened.as_ref().is_err_and(|text| text.contains("is damaged: move its folder away"));
        assert_eq!(refused, what != "whole", "{what}: {opened:?}");
    }
}

#[tokio::test]
async fn a_second_agent_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _first = open(&folder);
    let error = Disk::open(folder.path()).map(drop).unwrap_err();
    assert!(error.to_string().contains("another agent"), "{error}");
}

#[tokio::test]
async fn what_is_read_at_once_and_ends_with_the_largest_change_fits_one_message() {
    use crate::cluster::raft::Change;
    // All numbers as long as numbers are.
    let id = |index: u64| LogId {
        leader_id: LeaderId { term: u64::MAX, node_id: u64::MAX },
        index: u64::MAX - 9 + index,
    };
    let change = |size: usize| {
        let of = |length| Change::Expect { host: "delta".parse().unwrap(), address: "x".repeat(length) };
        let around = encode(&of(size)).unwrap().len() - size;
        let change = of(size - around);
        assert_eq!(encode(&change).unwrap().len(), size);
        change
    };
    let entry = |index, size| Entry::new(id(index), EntryPayload::Normal(change(size)));
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(&folder);
    // As much as is read before another one is: one byte less than enough.
    let head = encode(&entry(1, 300_000)).unwrap().len() - 300_000;
    let before = entry(1, READ_BYTES - 1 - head);
    let (done, written) = C::oneshot();
    let entries = vec![before, entry(2, MAX_CHANGE), entry(3, 300_000)];
    RaftLogStorage::<C>::append(&mut log, entries, IOFlushed::signal(done)).await.unwrap();
    written.await.unwrap().unwrap();
    let read = RaftLogReader::<C>::limited_get_log_entries(&mut log, id(1).index, id(4).index);
    let entries = read.await.unwrap();
    assert_eq!(entries.len(), 2, "what is read ends with the largest");
    let message = AppendEntriesRequest::<C> {
        vote: Vote::new_committed(u64::MAX, u64::MAX),
        prev_log_id: Some(id(0)),
        entries,
        leader_commit: Some(id(0)),
    };
    let length = encode(&(true, message)).unwrap().len();
    assert!((MAX_BODY - AROUND..=MAX_BODY).contains(&length), "{length} of {MAX_BODY}");
}
