//! Hosts that are no peers: how they attach to a peer, and how a peer serves them.
//!
//! ```text
//! host: search ▶ choice ▶ Attach ▶ follow ◀──── applied envelopes, or the whole state ──── desk ◀ trail ◀ machine
//!       pulse: nothing heard for peer_silence ▶ search again                                  :peer
//! ```
//!
//! A host has a copy of the replicated state that is behind by one message, because the same commands in the
//! same order give the same state. It asks the peers how many hosts each serves, attaches to the least loaded,
//! and goes on where it stood when it comes to another one: by the log's index, in the same founding. Owns the
//! copy, the addresses of the peers and their file; never judges a command: that is the primary's. [`Session`]
//! is the host's end and [`Attached`] what the agent uses of it; [`desk`] is the peer's end, called by
//! `cluster::node`, [`trail`] what it serves from, filled by `raft::machine`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinSet;

pub mod choice;
pub mod desk;
mod follow;
mod handle;
pub mod kept;
pub mod message;
mod peers;
mod pulse;
pub mod rights;
mod search;
mod soft;
pub mod trail;

pub use handle::Attached;

use super::tls::{Tls, TlsError};
use crate::config::TlsFiles;
use crate::spec::HostName;

/// A host moves to a much less loaded peer after between once and twice this time.
pub const MOVE_AFTER: Duration = Duration::from_secs(180);

/// How a host attaches.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cluster's name.
    pub cluster: String,
    /// This host, none of the peers.
    pub host: HostName,
    /// The peers of cluster.toml.
    pub peers: BTreeMap<HostName, String>,
    /// The file `attached.bin` lies there.
    pub data_dir: PathBuf,
    /// The certificates; `None`: in plain.
    pub tls: Option<TlsFiles>,
    /// A peer that is silent for this long (and a random part of `config::cluster::ATTACH_JITTER`) is left.
    pub peer_silence: Duration,
    /// [`MOVE_AFTER`], unless a test wants it sooner.
    pub move_after: Duration,
}

/// Why a host cannot attach.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Nobody to ask.
    #[error(
        "no peer is known: set `peers` in [cluster] to the peers' names and addresses, as on the peers themselves"
    )]
    NoPeers,
}

/// The host's end: its tasks. Dropping it ends them at once.
pub struct Session {
    attached: Attached,
    tasks: JoinSet<()>,
}

impl Session {
    /// Reads the last known state and begins to look for a peer. Returns at once: what it can say without a
    /// peer, [`Attached::states`] says from the beginning.
    pub async fn open(settings: Settings) -> Result<Session, OpenError> {
        let tls = Tls::if_any(settings.tls.as_ref(), &settings.host)?;
        let kept = kept::read(&settings.data_dir, &settings.cluster).await;
        if settings.peers.is_empty() && kept.members.peers.is_empty() {
            return Err(OpenError::NoPeers);
        }
        let attached = Attached::new(settings, tls, kept);
        let mut tasks = JoinSet::new();
        tasks.spawn(search::run(attached.clone()));
        tasks.spawn(kept::keep(attached.clone()));
        tasks.spawn(soft::tell(attached.clone()));
        tasks.spawn(soft::hear(attached.clone()));
        Ok(Session { attached, tasks })
    }

    /// What the rest of the agent uses.
    pub fn attached(&self) -> Attached {
        self.attached.clone()
    }

    /// Writes what changed last and ends all tasks.
    pub async fn close(mut self) {
        self.tasks.shutdown().await;
        self.attached.left();
        kept::write(&self.attached).await;
    }
}
