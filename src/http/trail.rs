//! What an instance writes, on whichever host it is: read in pieces from there, and from the next host when it moves.
//!
//! Owns the place up to which was read. Called by `logs`.

use std::io;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use super::elsewhere::{AGAIN, PATIENTLY, WAIT, host_of, refusal};
use super::logs::{PIECE, Wanted, piece};
use super::piece::{NEXT, START};
use super::problem::Refusal;
use super::router::Api;
use super::server::stopped;
use crate::cluster::tunnel::Asked;
use crate::spec::{HostName, InstanceId};

/// As many pieces of what is there already; a writer faster than this reader is not read for ever.
const PIECES: usize = 256;

/// See the module.
pub(super) struct Trail {
    api: Api,
    host: HostName,
    id: InstanceId,
    wanted: Wanted,
    after: String,
}

impl Trail {
    /// Reads the first piece, so that a refusal is the answer to whoever asked.
    pub(super) async fn begin(
        api: Api,
        host: HostName,
        id: InstanceId,
        wanted: Wanted,
    ) -> Result<(Trail, Vec<u8>), Refusal> {
        let mut trail = Trail { api, host, id, wanted, after: START.to_owned() };
        let first = trail.read(Duration::ZERO).await?;
        Ok((trail, first))
    }

    /// Sends what there is, and with `follow` what comes, until the reader or the agent goes. `permit` is held as long.
    pub(super) async fn follow(
        mut self,
        first: Vec<u8>,
        chunks: mpsc::Sender<io::Result<Vec<u8>>>,
        permit: Option<OwnedSemaphorePermit>,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let _permit = permit;
        let copying = async {
            match self.wanted.follow {
                true => self.follow_on(first, &chunks).await,
                false => self.read_out(first, &chunks).await,
            }
        };
        tokio::select! {
            _ = copying => {}
            () = chunks.closed() => {}
            () = stopped(&mut shutdown) => {}
        }
    }

    /// What is there now; `None`: nobody reads it any more.
    async fn read_out(&mut self, first: Vec<u8>, chunks: &mpsc::Sender<io::Result<Vec<u8>>>) -> Option<()> {
        let mut bytes = first;
        for _ in 0..PIECES {
            let last = bytes.len() < PIECE;
            chunks.send(Ok(bytes)).await.ok()?;
            if last {
                return Some(());
            }
            bytes = match self.read(Duration::ZERO).await {
                Ok(bytes) => bytes,
                Err(refusal) => {
                    let broken = io::Error::other(refusal.detail().to_owned());
                    return chunks.send(Err(broken)).await.ok();
                }
            };
        }
        Some(())
    }

    async fn follow_on(&mut self, first: Vec<u8>, chunks: &mpsc::Sender<io::Result<Vec<u8>>>) -> Option<()> {
        let mut bytes = first;
        loop {
            if !bytes.is_empty() {
                chunks.send(Ok(bytes)).await.ok()?;
            }
            if let Some(host) = self.moved() {
                let told = format!("[bigbrother: {} is on {host} now]\n", self.id);
                chunks.send(Ok(told.into_bytes())).await.ok()?;
                // All that it wrote there.
                (self.host, self.after, self.wanted.lines) = (host, START.to_owned(), usize::MAX);
            }
            bytes = match self.read(WAIT).await {
                Ok(bytes) => bytes,
                Err(_) => {
                    tokio::time::sleep(AGAIN).await;
                    Vec::new()
                }
            };
        }
    }

    /// The host that it belongs to now, if that is another one.
    fn moved(&self) -> Option<HostName> {
        let host = host_of(&self.api.handle.state.borrow(), &self.id)?;
        (self.wanted.host.is_none() && host != self.host).then_some(host)
    }

    /// The next piece.
    async fn read(&mut self, wait: Duration) -> Result<Vec<u8>, Refusal> {
        let Wanted { stream, lines, .. } = self.wanted;
        if self.host == self.api.handle.host {
            let wanted = self.wanted.piece(&self.after, wait);
            let (bytes, next) = piece(&self.api, &self.id, &wanted).await?;
            self.after = next;
            return Ok(bytes);
        }
        let path = format!(
            "/v1/instances/{}/logs?stream={}&lines={lines}&after={}",
            self.id,
            stream.name(),
            self.after
        );
        let answered = match wait {
            Duration::ZERO => self.api.ask(&self.host, &Asked::get(path), PATIENTLY).await?,
            _ => self.api.ask_for_more(&self.host, &path).await?,
        };
        if answered.status != 200 {
            return Err(refusal(&self.host, &answered));
        }
        self.after = answered.header(NEXT).to_owned();
        Ok(answered.body)
    }
}
