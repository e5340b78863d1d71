//! Changes of the peers, asked for on a host that is none.
//!
//! Owns the asking again: an attempt without an answer may have been carried out. Called by `agent::ring`.

use std::time::{Duration, Instant};

use super::Attached;
use super::message::PeersChanged;
use crate::cluster::node::PeersError;
use crate::cluster::raft::membership::PeersChange;
use crate::cluster::wire::{Kind, encode};
use crate::spec::HostName;

/// How long a change of the peers is tried: a newcomer has to catch up.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(100);

impl Attached {
    /// Lets a host become a peer that is not in the founders' file.
    pub async fn add_peer(&self, host: HostName, address: String) -> Result<(), PeersError> {
        self.change_peers(&PeersChange::Add { host, address }).await
    }

    /// Takes a host out of the peers.
    pub async fn remove_peer(&self, host: HostName) -> Result<(), PeersError> {
        self.change_peers(&PeersChange::Remove { host }).await
    }

    /// Lets a peer vote.
    pub async fn promote_peer(&self, host: HostName) -> Result<(), PeersError> {
        self.change_peers(&PeersChange::Promote { host }).await
    }

    async fn change_peers(&self, change: &PeersChange) -> Result<(), PeersError> {
        let body = encode(change).map_err(|_| PeersError::NoPrimary(PATIENCE))?;
        let deadline = Instant::now() + PATIENCE;
        // An attempt without an answer may have been carried out.
        let mut unknown = false;
        while Instant::now() < deadline {
            match self.ask_for(Kind::Peers, &body, deadline, PATIENCE).await {
                Ok(PeersChanged::Done) => return Ok(()),
                Ok(PeersChanged::Refused(refused)) if unknown && refused.says_done(change) => return Ok(()),
                Ok(PeersChanged::Refused(refused)) => return Err(refused.into()),
                Ok(PeersChanged::NoPrimary) => break,
                Err(_) => unknown = true,
            }
            tokio::time::sleep(AGAIN).await;
        }
        Err(PeersError::NoPrimary(PATIENCE))
    }
}
