//! Reading cluster.toml again, on SIGHUP or on request.
//!
//! Owns the file's path and the drift that is shown. Host settings that can change in a running agent are
//! handed on; of those that cannot, it says so. Certificates are read again, too: all of them or none.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::handle::{AskError, Handle};
use super::reporter::Report;
use super::spec_file::{self, Outcome};
use super::start::facts;
use crate::cluster::tls::TlsError;
use crate::config::{Config, HostSettings};
use crate::http::Shown;
use crate::http::view::PlanView;
use crate::keeper::protocol::CgroupSupport;
use crate::spec::ProcessName;

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
    /// What the API shows over TLS.
    pub shown: Option<Shown>,
    /// To the reporter.
    pub reports: mpsc::Sender<Report>,
    /// Reloads asked for over the API.
    pub requests: mpsc::Receiver<oneshot::Sender<Result<String, String>>>,
}

/// The processes are not in force; what is by now?
fn in_part(why: &str, certificates: bool, settings: bool) -> String {
    match (certificates, settings) {
        (false, false) => why.to_owned(),
        (true, false) => format!("{why}\nin force already: the certificates"),
        (false, true) => format!("{why}\nin force already: the settings of the host"),
        (true, true) => format!("{why}\nin force already: the certificates and the settings of the host"),
    }
}

impl Reloader {
    /// Applies the file's processes at the start, if they may be applied.
    pub async fn begin(&self, config: &Config) -> Result<(), AskError> {
        let on_disk = !self.handle.ring.is_alone();
        let outcome = spec_file::apply(&self.handle, config, on_disk).await?;
        self.show(outcome);
        Ok(())
    }

    /// They are on disk.
    pub async fn begun(&self, config: &Config) {
        if self.handle.ring.is_alone() {
            spec_file::remember(&self.handle, config).await;
        }
    }

    /// Reloads whenever it is asked to, and tells of a keeper that can do more or less than the one before.
    pub async fn run(
        mut self,
        mut cgroups: watch::Receiver<Option<CgroupSupport>>,
        mut hung_up: mpsc::Receiver<()>,
    ) {
        loop {
            let reply = tokio::select! {
                Some(reply) = self.requests.recv() => Some(reply),
                Some(()) = hung_up.recv() => None,
                Ok(()) = cgroups.changed() => {
                    let met = cgroups.borrow_and_update().clone();
                    self.tell(met).await;
                    continue;
                }
                else => return,
            };
            let met = cgroups.borrow_and_update().clone();
            let result = self.reload(met).await;
            self.handle.metrics.reloaded(result.is_ok());
            match &result {
                Ok(done) => tracing::info!("{done}"),
                Err(why) => tracing::error!("the file was not reloaded:\n{why}"),
            }
            match reply {
                Some(reply) => drop(reply.send(result)),
                None => self.handle.audit.reloaded(&self.handle.host, &result).await,
            }
        }
    }

    async fn tell(&self, cgroups: Option<CgroupSupport>) {
        let facts = facts(&self.settings.borrow(), &cgroups.unwrap_or(CgroupSupport::None));
        // A reporter that is gone ends with the agent.
        let _ = self.reports.send(Report::Facts(facts)).await;
    }

    async fn reload(&self, cgroups: Option<CgroupSupport>) -> Result<String, String> {
        let (path, host) = (self.path.clone(), self.host.clone());
        let read = tokio::task::spawn_blocking(move || spec_file::read(&path, host.as_deref(), false));
        let config = read.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let renewed = self.renew_certificates().await?;
        let before = self.settings.borrow().clone();
        let (now, fixed) = reconcile(&before, &config.host);
        let others = *before != now;
        if others {
            self.settings.send_replace(Arc::new(now));
            self.tell(cgroups).await;
        }
        let outcome = spec_file::apply(&self.handle, &config, true).await;
        let outcome = outcome.map_err(|error| in_part(&error.to_string(), renewed, others))?;
        let mut told = self.show(outcome);
        if renewed {
            told.push_str("; other certificates are shown and asked for");
        }
        if !fixed.is_empty() {
            told = format!("{told}; host.{} change only when the agent is restarted", fixed.join(", host."));
        }
        Ok(told)
    }

    /// Reads the files that are named already; true: they hold others than before.
    async fn renew_certificates(&self) -> Result<bool, String> {
        let (tls, shown) = (self.handle.ring.tls().cloned(), self.shown.clone());
        let read = tokio::task::spawn_blocking(move || {
            let peers = tls.map(|tls| Ok((tls.read_again()?, tls))).transpose();
            let api = shown.map(|shown| Ok((shown.read_again()?, shown))).transpose();
            Ok::<_, TlsError>((peers?, api?))
        });
        let (peers, api) = read.await.map_err(|e| e.to_string())?.map_err(|error| reason(&error))?;
        let peers = peers.is_some_and(|(read, tls)| tls.renew(read));
        Ok(api.is_some_and(|(read, shown)| shown.renew(read)) || peers)
    }

    fn show(&self, outcome: Outcome) -> String {
        let (told, drift) = match outcome {
            Outcome::InForce(revision) => {
                (format!("the file's processes are in force (revision {revision})"), None)
            }
            Outcome::Applied(view) => {
                let (revision, changes) = (view.revision, changes(&view));
                (format!("the file's processes are in force (revision {revision}; {changes})"), None)
            }
            Outcome::Drift(view) => {
                let drift = format!(
                    "spec-drift: the cluster's processes (revision {}) came by `bigbrother apply`, the file differs \
                     ({}); see `bigbrother plan`, then `bigbrother apply`",
                    view.revision,
                    changes(&view)
                );
                (drift.clone(), Some(drift))
            }
        };
        self.drift.send_replace(drift);
        told
    }
}

fn changes(view: &PlanView) -> String {
    let names = |list: &[ProcessName]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let changed: Vec<_> = view.changed.iter().map(|changed| changed.process.clone()).collect();
    let lists = [("added", &view.added), ("removed", &view.removed), ("changed", &changed)];
    let some = lists.into_iter().filter(|(_, list)| !list.is_empty());
    some.map(|(what, list)| format!("{what}: {}", names(list))).collect::<Vec<_>>().join("; ")
}

/// An error and its causes.
fn reason(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
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
    check("api_tls", before.api_tls == file.api_tls);
    let now = HostSettings {
        name: before.name.clone(),
        data_dir: before.data_dir.clone(),
        runtime_dir: before.runtime_dir.clone(),
        listen: before.listen.clone(),
        api: before.api.clone(),
        api_tls: before.api_tls.clone(),
        ..file.clone()
    };
    (now, fixed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_changes_only_what_there_is_is_named() {
        let names = |text: &str| text.split_whitespace().map(|name| name.parse().unwrap()).collect();
        let change = |process| crate::http::view::ChangedView { process, restarts: false, changes: vec![] };
        let of = |added, removed, changed| {
            let changed: Vec<_> = names(changed);
            let changed = changed.into_iter().map(change).collect();
            changes(&PlanView {
                added: names(added),
                removed: names(removed),
                changed,
                ..PlanView::default()
            })
        };
        assert_eq!(of("a b", "", ""), "added: a, b");
        assert_eq!(of("", "c", "d"), "removed: c; changed: d");
        assert_eq!(of("a", "c", "d"), "added: a; removed: c; changed: d");
    }

    #[tokio::test]
    async fn what_a_new_keeper_can_do_is_told_without_a_reload() {
        let context = crate::config::Context { hostname: "alpha".to_owned(), host_override: None };
        let host = crate::config::parse("", "cluster.toml", &context).unwrap().host;
        let ((reports, mut told), (_asks, requests)) = (mpsc::channel(8), mpsc::channel(1));
        let (proposals, _proposed) = mpsc::channel(1);
        let handle = Handle::of_test(proposals, watch::channel(Default::default()).1);
        let settings = watch::channel(Arc::new(host)).0;
        let drift = watch::channel(None).0;
        let reloader = Reloader {
            path: PathBuf::new(),
            host: None,
            handle,
            settings,
            drift,
            shown: None,
            reports,
            requests,
        };
        let (met, seen) = watch::channel(Some(CgroupSupport::KillOnly));
        let (_hang_up, hung_up) = mpsc::channel(1);
        let task = tokio::spawn(reloader.run(seen, hung_up));
        met.send_replace(Some(CgroupSupport::Full { controllers: vec!["memory".to_owned()] }));
        let wait = std::time::Duration::from_secs(10);
        let report = tokio::time::timeout(wait, told.recv()).await.expect("a report within 10 s");
        let Some(Report::Facts(facts)) = report else { panic!("another report") };
        assert_eq!(facts.enforces, ["memory"]);
        task.abort();
    }
}
