//! Where a peer keeps its newest snapshot: a file beside the log, described in the log's own file.
//!
//! Owns `snapshot-*.bin`. A file counts from the moment on which the log's file describes it; a crash before
//! that leaves the older one in force.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

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
}

impl DiskShelf {
    /// Snapshots of the log in the same folder.
    pub fn new(folder: &Path, disk: Arc<Disk>) -> DiskShelf {
        DiskShelf { folder: folder.to_owned(), disk }
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
        let known = self.label()?.is_some_and(|label| label.meta == meta);
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
        let Some(label) = self.label()? else { return Ok(None) };
        let path = self.folder.join(&label.file);
        let bytes =
            tokio::task::spawn_blocking(move || std::fs::read(path)).await.map_err(io::Error::other)??;
        if bytes.len() as u64 != label.length {
            return Err(io::Error::other(format!("the snapshot {} is damaged", label.file)));
        }
        Ok(Some((label.meta, Arc::new(bytes))))
    }
}
