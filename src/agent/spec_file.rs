//! This host's cluster.toml: reading it at start and on reload, and whether its processes may be applied.
//!
//! Owns the rule of precedence: the file's processes are applied when the cluster has none, and on a reload
//! only if the cluster still has what this file last applied, in the same history; else the difference is reported as drift.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::handle::{AskError, Handle};
use super::ring::Ring;
use crate::config::{self, Config, Context, difference};
use crate::http::view::PlanView;
use crate::state::{Command, Rejected, Response, Settings};

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {path} (is it the cluster.toml that you mean?): {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It has faults; the text shows each with its place.
    #[error("{0}")]
    Faults(String),
}

/// What came of looking at the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The cluster has the file's processes, at this revision.
    InForce(u64),
    /// It has them now; this has changed.
    Applied(PlanView),
    /// The cluster has others, which came by `apply`.
    Drift(PlanView),
}

/// Attempts beside other hosts that apply their files at the same time.
const ATTEMPTS: usize = 5;

/// The memory of what the file last applied.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Memory {
    revision: u64,
    /// Of which founding of the cluster; 0: of this host alone, whose revisions are its own disk's. `None`: an earlier
    /// program did not write it.
    #[serde(default)]
    history: Option<u64>,
}

impl Memory {
    fn read(path: &Path) -> Memory {
        std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Forgetting it only makes the next reload report drift, so a full disk is no reason to stop.
    fn write(self, path: &Path) {
        let bytes = serde_json::to_vec(&self).unwrap_or_default();
        if let Err(error) = super::disk::replace(path, &bytes) {
            tracing::warn!(%error, path = %path.display(), "cannot note which revision this file applied");
        }
    }

    /// Whether the cluster still has what the file last applied. After a restore, or founded anew, it gives the same
    /// revisions again, to others.
    fn holds(&self, history: u64, revision: u64) -> bool {
        self.revision == revision && self.history.is_none_or(|of| of == history)
    }
}

/// Reads and checks the file.
pub fn read(path: &Path, host: Option<&str>, colour: bool) -> Result<Config, FileError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    config::parse(&text, &path.display().to_string(), &context(host))
        .map_err(|faults| FileError::Faults(faults.render(colour)))
}

/// What a file means on this machine; `host` overrides its `host.name`.
pub fn context(host: Option<&str>) -> Context {
    let hostname = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    Context { hostname, host_override: host.map(str::to_owned) }
}

/// Applies the file's processes if it may, and with them the spans of time that all hosts go by. That it did so is to be
/// remembered only when they are on disk: an agent that finds others than it remembers takes them for somebody else's.
/// A host alone has them there when it has begun, and calls [`remember`] then.
pub async fn apply(handle: &Handle, config: &Config, on_disk: bool) -> Result<Outcome, AskError> {
    let mut refused = None;
    for _ in 0..ATTEMPTS {
        match try_apply(handle, config, on_disk).await {
            // Another host's agent, which starts at the same time, was first.
            Err(AskError::Rejected(Rejected::Revision { expected, found })) => {
                refused = Some(Rejected::Revision { expected, found });
            }
            Ok(outcome @ (Outcome::InForce(_) | Outcome::Applied(_))) => {
                set_spans(handle, config).await?;
                return Ok(outcome);
            }
            other => return other,
        }
    }
    Err(refused.map_or(AskError::Busy, AskError::Rejected))
}

/// What the cluster has now is what this file applied, if it is the same.
pub async fn remember(handle: &Handle, config: &Config) {
    let state = handle.state.borrow().clone();
    if state.spec == config.spec && state.revision > 0 {
        note(handle, config, state.revision).await;
    }
}

async fn note(handle: &Handle, config: &Config, revision: u64) {
    let memory = Memory { revision, history: Some(history(&handle.ring)) };
    let path = memory_of(config);
    // Else the agent is ending.
    let _ = tokio::task::spawn_blocking(move || memory.write(&path)).await;
}

fn memory_of(config: &Config) -> PathBuf {
    config.host.data_dir.join("applied.json")
}

async fn try_apply(handle: &Handle, config: &Config, on_disk: bool) -> Result<Outcome, AskError> {
    let state = handle.state.borrow().clone();
    if state.spec == config.spec && state.revision > 0 {
        if on_disk {
            note(handle, config, state.revision).await;
        }
        return Ok(Outcome::InForce(state.revision));
    }
    let mut view = difference::difference(&state.spec, &config.spec);
    view.revision = state.revision;
    if state.revision != 0 && !Memory::read(&memory_of(config)).holds(history(&handle.ring), state.revision) {
        return Ok(Outcome::Drift(view));
    }
    let command = Command::ApplySpec { spec: config.spec.clone(), expected_revision: Some(state.revision) };
    if let Response::Revision(revision) = handle.propose(command).await? {
        view.revision = revision;
    }
    if on_disk {
        note(handle, config, view.revision).await;
    }
    Ok(Outcome::Applied(view))
}

/// Of the file that is in force; the state sees to it that shorter ones wait for the older ones to be over.
async fn set_spans(handle: &Handle, config: &Config) -> Result<(), AskError> {
    let cluster = &config.cluster;
    let settings = Settings {
        fence_after: cluster.fence_after,
        fence_kill: cluster.fence_kill,
        host_timeout: cluster.host_timeout,
        max_lost: cluster.max_lost,
    };
    let state = handle.state.borrow().clone();
    let coming = state.pending.map_or(state.settings, |pending| pending.settings);
    if handle.ring.is_alone() || coming == settings {
        return Ok(());
    }
    handle.propose(Command::Settings { settings }).await.map(drop)
}

/// Names what the revisions belong to.
fn history(ring: &Ring) -> u64 {
    // That of a host alone names one life of its agent.
    if ring.is_alone() { 0 } else { ring.history() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::ring::Alone;

    #[test]
    fn a_revision_is_what_the_file_applied_only_in_the_history_in_which_it_did() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("applied.json");
        assert!(!Memory::read(&path).holds(7, 9), "nothing is known");
        Memory { revision: 9, history: Some(7) }.write(&path);
        let memory = Memory::read(&path);
        assert_eq!(memory, Memory { revision: 9, history: Some(7) });
        for (history, revision, holds) in [(7, 9, true), (7, 8, false), (8, 9, false), (0, 9, false)] {
            assert_eq!(memory.holds(history, revision), holds, "{revision} of {history}");
        }
        // As an earlier program has left it.
        std::fs::write(&path, r#"{"revision":9}"#).unwrap();
        let memory = Memory::read(&path);
        assert!(memory.holds(7, 9) && memory.holds(0, 9) && !memory.holds(7, 8));
        // What a host alone is called changes with each life of its agent; its revisions go on.
        let alone = Alone::to(tokio::sync::mpsc::channel(1).0, "alpha".parse().unwrap());
        assert_eq!(history(&Ring::Alone(Alone { history: 7, ..alone })), 0);
    }
}
