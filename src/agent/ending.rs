//! By what an agent ends, from its first moment to its last; and the reloads that signals ask for meanwhile.
//!
//! Owns the signals. An agent that begins hears the same as one that has begun: it may wait for its cluster for days. Ends
//! nothing itself, and reads no file. Called by `start`.

use std::path::{Path, PathBuf};

use tokio::sync::{mpsc, watch};

use super::signals::{Signals, Told};
use super::start::AgentError;
use crate::cluster::node::Standing;
use crate::keeper::protocol::CgroupSupport;

/// What a disk must take before a log that has stopped is tried again, in bytes.
const ROOM: usize = 1 << 20;
/// How often it is asked to.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// See the module.
pub struct Ending {
    signals: Signals,
    /// To the reloader. It holds one: a reload that is under way or to come reads the file as it is then anyway.
    hang_up: mpsc::Sender<()>,
    /// Told by the supervision loop, so closed when that has ended.
    met: watch::Receiver<Option<CgroupSupport>>,
    /// `None`: a host alone, whose state is no log of a peer.
    standing: Option<watch::Receiver<Standing>>,
    /// Written to see whether the disk takes something again.
    room: PathBuf,
    begun: bool,
}

impl Ending {
    /// Of an agent that begins.
    pub fn new(
        signals: Signals,
        hang_up: mpsc::Sender<()>,
        met: watch::Receiver<Option<CgroupSupport>>,
        standing: Option<watch::Receiver<Standing>>,
        data_dir: &Path,
    ) -> Ending {
        Ending { signals, hang_up, met, standing, room: data_dir.join("room"), begun: false }
    }

    /// Does the work of the beginning. `None`: the agent is told to end before that is done.
    pub async fn unless<T>(
        &mut self,
        begin: impl Future<Output = Result<T, AgentError>>,
    ) -> Result<Option<T>, AgentError> {
        let begun = tokio::select! {
            begun = begin => begun.map(Some),
            ended = self.reached() => ended.map(|()| None),
        };
        self.begun = matches!(begun, Ok(Some(_)));
        begun
    }

    /// Until the agent is told to end, or has to.
    pub async fn reached(&mut self) -> Result<(), AgentError> {
        let stopped = log_stopped(self.standing.clone(), self.room.clone());
        tokio::select! {
            told = self.told() => told,
            error = stopped => Err(error),
        }
    }

    async fn told(&mut self) -> Result<(), AgentError> {
        loop {
            tokio::select! {
                told = self.signals.next() => match told {
                    Told::End => return Ok(()),
                    Told::Reload => self.reload(),
                },
                met = self.met.changed() => if met.is_err() {
                    return Err(AgentError::Supervision);
                }
            }
        }
    }

    fn reload(&self) {
        if self.hang_up.try_send(()).is_ok() && !self.begun {
            tracing::info!(
                "SIGHUP: the file is read again as soon as this agent has begun; `bigbrother status` says what it waits for"
            );
        }
    }
}

/// A peer whose log has stopped goes on by itself, as if it were cut off. It can only begin anew; as soon as its disk
/// takes something, the agent ends for that, so that its service manager starts it again.
async fn log_stopped(standing: Option<watch::Receiver<Standing>>, room: PathBuf) -> AgentError {
    let Some(mut standing) = standing else { return std::future::pending().await };
    loop {
        let broken = standing.wait_for(|standing| standing.broken.is_some() && !standing.removed).await;
        let Ok(Some(why)) = broken.map(|standing| standing.broken.clone()) else {
            return std::future::pending().await;
        };
        tokio::time::sleep(AGAIN).await;
        let path = room.clone();
        let taken = tokio::task::spawn_blocking(move || {
            let taken = super::disk::replace(&path, &vec![0; ROOM]);
            // What was written in part takes room, too.
            let _ = std::fs::remove_file(path.with_extension("new"));
            let _ = std::fs::remove_file(&path);
            taken
        });
        match taken.await {
            Ok(Ok(())) => return AgentError::LogStopped(why),
            _ => tracing::error!(why, "this peer's log has stopped; is the disk full?"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// An ending, and what it is told by.
    struct Told {
        ending: Ending,
        met: watch::Sender<Option<CgroupSupport>>,
        standing: watch::Sender<Standing>,
        reloads: mpsc::Receiver<()>,
        _folder: tempfile::TempDir,
    }

    fn told() -> Told {
        let (folder, signals) = (tempfile::tempdir().unwrap(), Signals::new().unwrap());
        let ((met, seen), (hang_up, reloads)) = (watch::channel(None), mpsc::channel(1));
        let (standing, stands) = watch::channel(Standing::default());
        let ending = Ending::new(signals, hang_up, seen, Some(stands), folder.path());
        Told { ending, met, standing, reloads, _folder: folder }
    }

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(10);

    /// A beginning that waits for its cluster.
    async fn waits() -> Result<(), AgentError> {
        std::future::pending().await
    }

    /// The thread has no runtime of the agent's to be told by when it panics: what it tells by closes.
    #[tokio::test]
    async fn an_agent_ends_when_its_supervision_has_ended_also_while_it_begins() {
        let Told { mut ending, met, .. } = told();
        let mut ended = std::pin::pin!(ending.unless(waits()));
        met.send_replace(Some(CgroupSupport::None));
        assert!(tokio::time::timeout(SHORT, &mut ended).await.is_err(), "it lives, and has met its keeper");
        drop(met);
        let ended = tokio::time::timeout(LONG, ended).await;
        assert!(matches!(ended, Ok(Err(AgentError::Supervision))), "{ended:?}");
        let Told { mut ending, met, .. } = told();
        assert!(matches!(ending.unless(async { Ok(7) }).await, Ok(Some(7))));
        drop(met);
        let ended = tokio::time::timeout(LONG, ending.reached()).await;
        assert!(matches!(ended, Ok(Err(AgentError::Supervision))), "{ended:?}");
    }

    #[tokio::test]
    async fn a_log_that_has_stopped_ends_an_agent_that_begins_but_not_one_that_was_removed() {
        let Told { mut ending, standing, met: _met, _folder, .. } = told();
        let mut ended = std::pin::pin!(ending.unless(waits()));
        let broken = || Standing { broken: Some("no room".to_owned()), ..Standing::default() };
        standing.send_replace(Standing { removed: true, ..broken() });
        assert!(tokio::time::timeout(SHORT, &mut ended).await.is_err());
        standing.send_replace(broken());
        let ended = tokio::time::timeout(LONG, ended).await;
        assert!(matches!(&ended, Ok(Err(AgentError::LogStopped(why))) if why == "no room"), "{ended:?}");
    }

    #[tokio::test]
    async fn a_reload_that_is_asked_for_while_the_agent_begins_is_kept_for_afterwards() {
        let Told { mut ending, mut reloads, met: _met, .. } = told();
        let (begins, begin) = tokio::sync::oneshot::channel();
        let mut begun =
            std::pin::pin!(ending.unless(async { begin.await.map_err(|_| AgentError::Supervision) }));
        // Twice is once: the file is read afterwards.
        for _ in 0..2 {
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).unwrap();
            assert!(tokio::time::timeout(SHORT, &mut begun).await.is_err(), "it goes on");
        }
        begins.send(7).unwrap();
        assert!(matches!(begun.await, Ok(Some(7))));
        assert_eq!(tokio::time::timeout(LONG, reloads.recv()).await.ok().flatten(), Some(()));
        assert!(reloads.try_recv().is_err());
    }
}
