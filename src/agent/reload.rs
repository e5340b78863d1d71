//! Reading cluster.toml again, on SIGHUP or on request.
//!
//! Owns the file's path and the drift that is shown. Host settings that can change in a running agent are
//! handed on; of those that cannot, it says so.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::handle::{AskError, Handle};
use super::reporter::Report;
use super::spec_file::{self, Outcome};
use super::start::facts;
use crate::config::{Config, HostSettings};
use crate::keeper::protocol::CgroupSupport;

/// See the module.
pub struct Reloader {
    /// cluster.toml.
    pub path: PathBuf,
    /// Overrides `host.name`.
    pub host: Option<String>,
    /// To the replicated state.
    pub handle: Handle,
    /// The host's settings for the supervision loop.
    pub settings: watch::Sender<Arc<HostSettings>>,
    /// The difference between file and cluster, for people.
    pub drift: watch::Sender<Option<String>>,
    /// To the reporter.
    pub reports: mpsc::Sender<Report>,
    /// Reloads asked for over the API.
    pub requests: mpsc::Receiver<oneshot::Sender<Result<String, String>>>,
}

impl Reloader {
    /// Applies the file's processes at the start, if they may be applied.
    pub async fn begin(&self, config: &Config) -> Result<(), AskError> {
        let outcome = spec_file::apply(&self.handle, config).await?;
        self.show(outcome);
        Ok(())
    }

    /// Reloads whenever it is asked to.
    pub async fn run(mut self, cgroups: CgroupSupport, mut hung_up: mpsc::Receiver<()>) {
        loop {
            let reply = tokio::select! {
                Some(reply) = self.requests.recv() => Some(reply),
                Some(()) = hung_up.recv() => None,
                else => return,
            };
            let result = self.reload(&cgroups).await;
            match &result {
                Ok(done) => tracing::info!("{done}"),
                Err(why) => tracing::error!("the file was not reloaded:\n{why}"),
            }
            if let Some(reply) = reply {
                let _ = reply.send(result);
            }
        }
    }

    async fn reload(&self, cgroups: &CgroupSupport) -> Result<String, String> {
        let (path, host) = (self.path.clone(), self.host.clone());
        let read = tokio::task::spawn_blocking(move || spec_file::read(&path, host.as_deref(), false));
        let config = read.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let before = self.settings.borrow().clone();
        let (now, fixed) = reconcile(&before, &config.host);
        if *before != now {
            let facts = facts(&now, cgroups);
            self.settings.send_replace(Arc::new(now));
            let _ = self.reports.send(Report::Facts(facts)).await;
        }
        let outcome = spec_file::apply(&self.handle, &config).await.map_err(|e| e.to_string())?;
        let mut told = self.show(outcome);
        if !fixed.is_empty() {
            told = format!("{told}; host.{} change only when the agent is restarted", fixed.join(", host."));
        }
        Ok(told)
    }

    fn show(&self, outcome: Outcome) -> String {
        let (told, drift) = match outcome {
            Outcome::InForce(revision) => {
                (format!("the file's processes are in force (revision {revision})"), None)
            }
            Outcome::Drift(view) => {
                let names = |list: &[crate::spec::ProcessName]| {
                    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
                };
                let changed: Vec<_> = view.changed.iter().map(|c| c.process.clone()).collect();
                let drift = format!(
                    "spec-drift: the cluster's processes (revision {}) came by `bigbrother apply`, the file differs \
                     (added: {}; removed: {}; changed: {}); see `bigbrother plan`, then `bigbrother apply`",
                    view.revision,
                    names(&view.added),
                    names(&view.removed),
                    names(&changed)
                );
                (drift.clone(), Some(drift))
            }
        };
        self.drift.send_replace(drift);
        told
    }
}

/// The settings that take effect, and the keys that cannot change in a running agent.
fn reconcile(before: &HostSettings, file: &HostSettings) -> (HostSettings, Vec<&'static str>) {
    let mut fixed = Vec::new();
    let mut check = |key, same: bool| {
        if !same {
            fixed.push(key)
        }
    };
    check("name", before.name == file.name);
    check("data_dir", before.data_dir == file.data_dir);
    check("runtime_dir", before.runtime_dir == file.runtime_dir);
    check("listen", before.listen == file.listen);
    check("api", before.api == file.api);
    let now = HostSettings {
        name: before.name.clone(),
        data_dir: before.data_dir.clone(),
        runtime_dir: before.runtime_dir.clone(),
        listen: before.listen.clone(),
        api: before.api.clone(),
        ..file.clone()
    };
    (now, fixed)
}
