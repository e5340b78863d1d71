//! Where a peer keeps its newest snapshot: a file beside the log, described in the log's own file.
//!
//! Owns `snapshot-*.bin`. A file counts from the moment on which the log's file describes it; a crash before
//! that leaves the older one in force. One is kept at a time, and a newer one is never replaced by an older: openraft makes
//! one aside while another comes from the primary.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::{Shelf, SnapshotBytes, SnapshotMeta};
use crate::agent::disk::replace;
use crate::cluster::raft::log_store::Disk;
use crate::cluster::raft::log_store::disk::Key;
use crate::cluster::wire::{decode, encode};

/// What the log's file says of a snapshot.
#[derive(Debug, Serialize, Deserialize)]
struct Label {
    meta: SnapshotMeta,
    file: String,
    length: u64,
}

/// See the module.
#[derive(Clone)]
pub struct DiskShelf {
    folder: PathBuf,
    disk: Arc<Disk>,
    /// Had by whoever keeps one.
    turn: Arc<Mutex<()>>,
}

impl DiskShelf {
    /// Snapshots of the log in the same folder.
    pub fn new(folder: &Path, disk: Arc<Disk>) -> DiskShelf {
        DiskShelf { folder: folder.to_owned(), disk, turn: Arc::default() }
    }

    /// Of what the newest one is.
    pub fn described(&self) -> io::Result<Option<SnapshotMeta>> {
        Ok(self.label()?.map(|label| label.meta))
    }

    fn label(&self) -> io::Result<Option<Label>> {
        Ok(self.disk.get(Key::Snapshot)?.as_deref().map(decode).transpose()?)
    }

    fn clear_away(&self, but: &str) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("snapshot-") && name != but {
                std::fs::remove_file(self.folder.join(&*name))?;
            }
        }
        Ok(())
    }
}

impl Shelf for DiskShelf {
    async fn keep(
        &self,
        meta: SnapshotMeta,
        bytes: impl FnOnce() -> io::Result<SnapshotBytes> + Send + 'static,
    ) -> io::Result<SnapshotBytes> {
        let _turn = self.turn.lock().await;
        // As new, or newer: what is committed has one order.
        let known = self.label()?.is_some_and(|label| label.meta.last_log_id >= meta.last_log_id);
        // Which entry is the last one names the content: the same log gives the same state.
        let file = match &meta.last_log_id {
            Some(last) => {
                format!("snapshot-{}-{}-{}.bin", last.leader_id.term, last.leader_id.node_id, last.index)
            }
            None => "snapshot-0.bin".to_owned(),
        };
        let path = self.folder.join(&file);
        // Encoding and writing take long, and neither may hold up a vote.
        let bytes = tokio::task::spawn_blocking(move || {
            let bytes = bytes()?;
            if !known {
                replace(&path, &bytes)?;
            }
            Ok::<_, io::Error>(bytes)
        })
        .await
        .map_err(io::Error::other)??;
        if known {
            return Ok(bytes);
        }
        let label = encode(&Label { meta, file: file.clone(), length: bytes.len() as u64 })?;
        self.disk.put(Key::Snapshot, label).await?;
        // An older file that stays costs room, nothing else.
        if let Err(error) = self.clear_away(&file) {
            tracing::warn!(%error, "an older snapshot cannot be removed");
        }
        Ok(bytes)
    }

    async fn newest(&self) -> io::Result<Option<(SnapshotMeta, SnapshotBytes)>> {
        loop {
            let Some(label) = self.label()? else { return Ok(None) };
            let path = self.folder.join(&label.file);
            let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
            let bytes = match read.map_err(io::Error::other)? {
                // Unless a newer one has just taken its place.
                Err(gone) if gone.kind() == io::ErrorKind::NotFound => match self.label()? {
                    Some(now) if now.file != label.file => continue,
                    _ => return Err(gone),
                },
                read => read?,
            };
            if bytes.len() as u64 != label.length {
                return Err(io::Error::other(format!("the snapshot {} is damaged", label.file)));
            }
            return Ok(Some((label.meta, Arc::new(bytes))));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::cluster::raft::{LeaderId, LogId};

    fn meta(index: u64) -> SnapshotMeta {
        let last = LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index };
        SnapshotMeta { last_log_id: Some(last), ..SnapshotMeta::default() }
    }

    async fn index_and_bytes(shelf: &DiskShelf) -> (u64, Vec<u8>) {
        let (meta, bytes) = shelf.newest().await.unwrap().expect("a snapshot");
        (meta.last_log_id.expect("its place").index, bytes.to_vec())
    }

    /// openraft makes one of 100 entries in a task of its own, and installs one of 40,000 meanwhile.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_that_is_made_while_a_newer_one_comes_neither_breaks_nor_replaces_it() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = DiskShelf::new(folder.path(), Arc::new(Disk::open(folder.path()).unwrap()));
        let of = |text: &str| Ok(Arc::new(text.as_bytes().to_vec()));
        let (begun, begins) = tokio::sync::oneshot::channel();
        let (go, goes) = mpsc::channel::<()>();
        let own = shelf.clone();
        let made = tokio::spawn(async move {
            own.keep(meta(100), move || {
                begun.send(()).expect("the test");
                let _ = goes.recv();
                of("made")
            })
            .await
        });
        begins.await.unwrap();
        let other = shelf.clone();
        let mut came = tokio::spawn(async move { other.keep(meta(40_000), move || of("came")).await });
        // It waits for its turn; without turns it is done by then.
        let early = tokio::time::timeout(Duration::from_millis(500), &mut came).await;
        drop(go);
        assert_eq!(*made.await.unwrap().unwrap(), b"made");
        let came = if let Ok(came) = early { came } else { came.await };
        assert_eq!(*came.unwrap().unwrap(), b"came");
        assert_eq!(index_and_bytes(&shelf).await, (40_000, b"came".to_vec()));
        // Nor does one that comes to an end later.
        assert_eq!(*shelf.keep(meta(200), move || of("late")).await.unwrap(), b"late");
        assert_eq!(index_and_bytes(&shelf).await, (40_000, b"came".to_vec()));
        shelf.keep(meta(40_001), move || of("next")).await.unwrap();
        assert_eq!(index_and_bytes(&shelf).await, (40_001, b"next".to_vec()));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whoever_reads_one_that_is_replaced_gets_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = DiskShelf::new(folder.path(), Arc::new(Disk::open(folder.path()).unwrap()));
        let bytes = |index: u64| Arc::new(index.to_le_bytes().to_vec());
        shelf.keep(meta(0), move || Ok(bytes(0))).await.unwrap();
        let own = shelf.clone();
        let kept = tokio::spawn(async move {
            for index in 1..=200 {
                own.keep(meta(index), move || Ok(bytes(index))).await.unwrap();
            }
        });
        while !kept.is_finished() {
            let (index, read) = index_and_bytes(&shelf).await;
            assert_eq!(read, *bytes(index));
        }
        kept.await.unwrap();
    }
}
