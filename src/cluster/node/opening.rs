//! Why a peer cannot be opened, and what becomes of a log that is nobody's any more.
//!
//! Owns nothing. Called by `node` and `settle`.

use std::io;
use std::path::{Path, PathBuf};

use crate::cluster::raft::log_store::OpenError as LogError;
use crate::cluster::tls::TlsError;

/// Why a peer cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The listener.
    #[error("cannot listen on {address} for the other peers; set host.listen to an address of this machine")]
    Listen {
        /// `host:port`.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// Its number is nobody's any more; [`super::Node::open`] itself goes on as a newcomer then.
    #[error("the number {id} of this peer is void")]
    Void {
        /// Which.
        id: u64,
    },
    /// What is left of a peer that was removed.
    #[error(
        "this host is no peer any more, and to come back as a new one {path} has to be moved away, which is refused: \
         move it away and start the agent again"
    )]
    Aside {
        /// Which folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The record of who this peer is.
    #[error("cannot read or write this peer's number")]
    Identity(#[source] io::Error),
    /// Raft found the log and the snapshot not to fit.
    #[error(
        "the cluster's log in {path} makes no sense: move the folder away and start the agent again, it then comes \
         back as a new peer with the state of the others: {reason}"
    )]
    Raft {
        /// The folder.
        path: PathBuf,
        /// Raft's words.
        reason: String,
    },
}

/// The log of a number that is void: its votes count no more; whoever wonders later what it had finds it there.
pub(super) fn set_aside(folder: &Path, id: u64) -> Result<(), OpenError> {
    let (mut aside, mut times) = (folder.with_extension(format!("removed.{id}")), 1);
    // A backup or another cluster may give a host a number that it had before.
    while aside.exists() {
        times += 1;
        aside = folder.with_extension(format!("removed.{id}.{times}"));
    }
    std::fs::rename(folder, &aside).map_err(|source| OpenError::Aside { path: folder.to_owned(), source })?;
    tracing::warn!(
        number = id,
        "this host was removed from the peers, or replaced, while it was away: it comes back as a new peer, with the \
         state of the others; what it had lies in {}",
        aside.display()
    );
    Ok(())
}
