//! The folders that an agent works in.
//!
//! Owns the lock on `data_dir`: two agents that write the same state, ports and run numbers would each undo what the
//! other did. (That no second one works in `runtime_dir` shows by its socket.) Called once, at an agent's start.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::lock;

/// How long an agent that was killed may take to be gone.
const DYING: Duration = Duration::from_secs(2);

/// Why a folder cannot be worked in.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It cannot be made.
    #[error("cannot make the folder {path}; set host.{key} to a folder that you may write to")]
    Make {
        /// Which key of the file.
        key: &'static str,
        /// Which folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody works in it.
    #[error("{0} is in use: another agent runs with this data_dir; stop it or give this one its own")]
    Taken(PathBuf),
}

/// Makes a folder where there is none.
pub fn make(key: &'static str, path: &Path) -> Result<(), FolderError> {
    std::fs::create_dir_all(path).map_err(|source| FolderError::Make { key, path: path.to_owned(), source })
}

/// Takes the data folder for as long as what this gives lives. A disk that knows no locks, or has no room for one, does
/// not keep the games from an agent.
pub async fn hold(data_dir: &Path) -> Result<Option<File>, FolderError> {
    let path = data_dir.join("agent.lock");
    let deadline = Instant::now() + DYING;
    loop {
        match lock::take(&path) {
            Ok(Some(held)) => return Ok(Some(held)),
            Ok(None) if Instant::now() > deadline => return Err(FolderError::Taken(data_dir.to_owned())),
            Ok(None) => tokio::time::sleep(DYING / 40).await,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "cannot lock data_dir: start no second agent there");
                return Ok(None);
            }
        }
    }
}
