//! What a snapshot holds, and its bytes.
//!
//! ```text
//! format u16 | state | roll | recent outcomes
//! ```
//!
//! Owns the format: all snapshots are written and read here, those on the disk and those of another peer. The layout is
//! that of the types themselves, so that a field more or less is another format. Called by `machine`.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::SnapshotBytes;
use crate::cluster::raft::change::{Recent, Roll};
use crate::cluster::wire::codec::{decode_front, encode_unbounded};
use crate::cluster::wire::decode;
use crate::state::State;

/// Bumped when a snapshot changes its layout or its meaning.
const FORMAT: u16 = 4;

/// All that a snapshot holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Content {
    pub(super) state: Arc<State>,
    pub(super) roll: Arc<Roll>,
    pub(super) recent: Arc<Recent>,
}

impl Content {
    /// The bytes of a snapshot. An older program reads no other format: one that follows this must not be written before
    /// `state.version` says that all programs read it.
    pub(super) fn bytes(&self) -> io::Result<SnapshotBytes> {
        Ok(Arc::new(encode_unbounded(&(FORMAT, self))?))
    }

    /// What the bytes say. Those of the format before are still about when a program is newer than its disk, or than the
    /// primary: whoever bumps `FORMAT` reads them here, too.
    pub(super) fn of(bytes: &[u8]) -> io::Result<Content> {
        let (format, used) = decode_front::<u16>(bytes)?;
        match format {
            FORMAT => Ok(decode(bytes.get(used..).unwrap_or_default())?),
            _ => Err(io::Error::other(format!("a snapshot of format {format}, this program reads {FORMAT}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_format_is_named_whatever_it_holds() {
        let bytes = Content::default().bytes().unwrap();
        assert_eq!(Content::of(&bytes).unwrap(), Content::default());
        for rest in [&bytes[1..], b"", b"of another layout"] {
            let said = Content::of(&[&[FORMAT as u8 + 1], rest].concat()).unwrap_err().to_string();
            assert!(said.contains("a snapshot of format 5, this program reads 4"), "{said}");
        }
        assert!(Content::of(b"").is_err());
    }
}
