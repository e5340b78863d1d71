//! Files that are either the old or the new one, never half of both, and that are tried again until they are saved.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::metrics::{Metrics, SavedFile};

/// How soon a file that could not be saved is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Replaces a file: written beside it, synced, renamed over it, the folder synced.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    std::fs::rename(&beside, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// A file whose owner goes on when it cannot be saved, says so and tries again.
pub struct Saving {
    path: PathBuf,
    file: SavedFile,
    metrics: Option<Arc<Metrics>>,
    unsaved: bool,
}

impl Saving {
    /// One that is on disk as it should be.
    pub fn new(path: PathBuf, file: SavedFile) -> Saving {
        Saving { path, file, metrics: None, unsaved: false }
    }

    /// From now on whether it is saved is a metric, too.
    pub fn measured(mut self, metrics: Arc<Metrics>) -> Saving {
        metrics.unsaved(self.file, self.unsaved);
        self.metrics = Some(metrics);
        self
    }

    /// Replaces the file, where blocking is allowed; the bytes are made there, too.
    pub async fn save(&mut self, bytes: impl FnOnce() -> io::Result<Vec<u8>> + Send + 'static) {
        let path = self.path.clone();
        let saved = tokio::task::spawn_blocking(move || replace(&path, &bytes()?)).await;
        // Else the agent is ending.
        if let Ok(saved) = saved {
            self.note(saved);
        }
    }

    /// What came of an attempt to save it.
    pub fn note(&mut self, saved: io::Result<()>) {
        let file = self.path.display();
        match &saved {
            Err(error) if !self.unsaved => tracing::error!(
                %error, %file,
                "it is not saved; until it is (tried again every {RETRY:?}) a restart of the agent loses what changed"
            ),
            Ok(()) if self.unsaved => tracing::info!(%file, "it is saved again"),
            _ => {}
        }
        self.unsaved = saved.is_err();
        if let Some(metrics) = &self.metrics {
            metrics.unsaved(self.file, self.unsaved);
        }
    }

    /// Comes back when it is to be tried again; never, while it is saved.
    pub async fn retry(&self) {
        match self.unsaved {
            true => tokio::time::sleep(RETRY).await,
            false => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_could_not_be_saved_is_a_metric_until_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("gone");
        let metrics = Arc::new(Metrics::new());
        let mut saving = Saving::new(folder.join("host.json"), SavedFile::Book).measured(metrics.clone());
        let shown = |value: u8| {
            metrics
                .render(None, &Default::default())
                .contains(&format!("unsaved{{file=\"host.json\"}} {value}\n"))
        };
        assert!(shown(0));
        saving.save(|| Ok(b"one".to_vec())).await;
        assert!(shown(1));
        std::fs::create_dir(&folder).unwrap();
        saving.save(|| Ok(b"two".to_vec())).await;
        assert!(shown(0));
        assert_eq!(std::fs::read(folder.join("host.json")).unwrap(), b"two");
    }
}
