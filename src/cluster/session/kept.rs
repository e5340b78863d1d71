//! What an attached host keeps on disk: the last known state, where in the log it stands, and the peers.
//!
//! ```text
//! magic "BBat" | format u16 | FNV-1a of what follows u64 | Kept
//! ```
//!
//! Owns the file `attached.bin`. It is a cache: the cluster has all of it, so a file that cannot be read is
//! told of and begun anew. Written at most once a second, the less often the longer it takes, and only when
//! something changed.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::handle::Attached;
use super::message::{Members, Place};
use crate::agent::disk::replace;
use crate::cluster::wire::codec::encode_unbounded;
use crate::cluster::wire::{DecodeError, decode};
use crate::spec::fingerprint::fnv1a;
use crate::state::State;

/// The first bytes of the file.
const MAGIC: [u8; 4] = *b"BBat";
/// Bumped when the bytes behind it change their meaning.
const FORMAT: u16 = 2;
/// Its name in data_dir.
pub const FILE: &str = "attached.bin";
/// Between two writes at least.
const PAUSE: Duration = Duration::from_secs(1);
/// And so many times as long as a write takes: a large state that always changes costs no more than a fiftieth of the
/// time. It is for a host that comes back without its peers, so that its age does not matter much.
const SHARE: u32 = 50;
/// But not longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is on disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// The cluster's name.
    pub cluster: String,
    /// Which founding; `None`: none yet.
    pub history: Option<u64>,
    /// Up to where the log is applied in `state`.
    pub place: Place,
    /// The peers.
    pub members: Members,
    /// The copy.
    pub state: Arc<State>,
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Useless {
    /// Not of this program, or of another version.
    #[error("it is of another program or another version")]
    Foreign,
    /// Not the bytes that were written.
    #[error("it is damaged")]
    Damaged,
    /// The bytes make no state.
    #[error("it cannot be understood")]
    Decode(#[from] DecodeError),
    /// Of another cluster.
    #[error("it is of the cluster {0:?}")]
    Cluster(String),
}

impl Kept {
    /// The bytes of the file.
    pub fn bytes(&self) -> io::Result<Vec<u8>> {
        let body = encode_unbounded(self)?;
        Ok([&MAGIC[..], &FORMAT.to_le_bytes(), &fnv1a(&body).to_le_bytes(), &body].concat())
    }

    /// What the bytes say to a host of this cluster.
    pub fn of(bytes: &[u8], cluster: &str) -> Result<Kept, Useless> {
        let rest = bytes.strip_prefix(&MAGIC).and_then(|rest| rest.strip_prefix(&FORMAT.to_le_bytes()));
        let (sum, body) = rest.ok_or(Useless::Foreign)?.split_first_chunk::<8>().ok_or(Useless::Damaged)?;
        if u64::from_le_bytes(*sum) != fnv1a(body) {
            return Err(Useless::Damaged);
        }
        let kept: Kept = decode(body)?;
        match kept.cluster == cluster {
            true => Ok(kept),
            false => Err(Useless::Cluster(kept.cluster)),
        }
    }
}

/// What the folder holds; an empty one where there is nothing of use.
pub(super) async fn read(folder: &Path, cluster: &str) -> Kept {
    let (path, name) = (folder.join(FILE), cluster.to_owned());
    let file = path.display().to_string();
    let read = tokio::task::spawn_blocking(move || match std::fs::read(path) {
        Ok(bytes) => Kept::of(&bytes, &name).map_err(|useless| useless.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kept::default()),
        Err(error) => Err(error.to_string()),
    });
    let kept = read.await.unwrap_or_else(|error| Err(error.to_string()));
    kept.unwrap_or_else(|why| {
        tracing::warn!(%file, %why, "the last known state of the cluster is not used; it comes from a peer anew");
        Kept::default()
    })
}

/// Writes what the host has now; true when it is on disk.
pub(super) async fn write(attached: &Attached) -> bool {
    let (kept, path) = (attached.kept(), attached.settings().data_dir.join(FILE));
    let file = path.display().to_string();
    let written = tokio::task::spawn_blocking(move || replace(&path, &kept.bytes()?)).await;
    match written.unwrap_or_else(|error| Err(error.into())) {
        Ok(()) => true,
        Err(error) => {
            tracing::error!(%error, %file, "the last known state of the cluster cannot be saved; it is tried again");
            false
        }
    }
}

/// Writes what changed.
pub(super) async fn keep(attached: Attached) {
    let mut changes = attached.changes();
    let mut took = Duration::ZERO;
    loop {
        changes.changed().await;
        tokio::time::sleep(pause(took)).await;
        let began = Instant::now();
        while !write(&attached).await {
            tokio::time::sleep(5 * PAUSE).await;
        }
        took = began.elapsed();
    }
}

/// How long nothing is written after a write that took so long.
fn pause(took: Duration) -> Duration {
    (SHARE * took).clamp(PAUSE, LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Kept {
        Kept {
            cluster: "pirates".to_owned(),
            history: Some(7),
            place: Place { index: 5, term: 2 },
            members: Members { at: 3, peers: vec![("beta".parse().unwrap(), "b:1".to_owned())] },
            state: Arc::new(State { index: 4, ..State::default() }),
        }
    }

    #[test]
    fn the_bytes_of_the_file_are_these() {
        let bytes = kept().bytes().unwrap();
        assert_eq!(bytes[..6], *b"BBat\x02\x00");
        assert_eq!(bytes[14..38], *b"\x07pirates\x01\x07\x05\x02\x03\x01\x04beta\x03b:1\x04");
        assert_eq!(u64::from_le_bytes(bytes[6..14].try_into().unwrap()), fnv1a(&bytes[14..]));
        assert_eq!(Kept::of(&bytes, "pirates").unwrap(), kept());
    }

    #[test]
    fn a_write_that_takes_long_comes_seldom_but_it_comes() {
        let millis = Duration::from_millis;
        assert_eq!(pause(Duration::ZERO), millis(1_000));
        assert_eq!(pause(millis(20)), millis(1_000));
        assert_eq!(pause(millis(100)), millis(5_000));
        assert_eq!(pause(millis(60_000)), millis(30_000));
    }

    #[test]
    fn a_damaged_or_foreign_file_is_of_no_use() {
        let good = kept().bytes().unwrap();
        let of = |bytes: &[u8]| Kept::of(bytes, "pirates");
        assert!(matches!(of(b"hello"), Err(Useless::Foreign)));
        assert!(matches!(of(&[&good[..4], &[9], &good[5..]].concat()), Err(Useless::Foreign)));
        assert!(matches!(Kept::of(&good, "ninjas"), Err(Useless::Cluster(_))));
        for place in 6..good.len() {
            let mut bytes = good.clone();
            bytes[place] ^= 1;
            assert!(matches!(of(&bytes), Err(Useless::Damaged)), "byte {place}");
            assert!(of(&good[..place]).is_err());
        }
    }
}
