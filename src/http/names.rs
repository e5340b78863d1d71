//! Names in requests: which are known, and which one was meant.

use std::collections::BTreeSet;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

use super::problem::Refusal;
use super::router::Api;
use crate::agent::handle::HostSnapshot;
use crate::spec::{HostName, InstanceId, ProcessName};
use crate::state::{State, Target, of_process};

/// Names less alike than this are not what was meant (0 to 1, Jaro-Winkler).
const ALIKE: f64 = 0.75;

/// The `{id}` of a path.
pub(super) struct Id(pub InstanceId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path(text) = Path::<String>::from_request_parts(parts, state).await?;
        Ok(Id(text.parse()?))
    }
}

/// The `{process}` of a path.
pub(super) struct Name(pub ProcessName);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path(text) = Path::<String>::from_request_parts(parts, state).await?;
        Ok(Name(text.parse()?))
    }
}

/// The names of one moment, in the cluster's state and on this host.
pub(super) struct Names {
    processes: BTreeSet<ProcessName>,
    instances: BTreeSet<InstanceId>,
    here: Vec<InstanceId>,
}

impl Names {
    /// All names known now.
    pub(super) async fn read(api: &Api) -> Result<Names, Refusal> {
        let snapshot = api.snapshots.get().await?;
        let state = api.handle.state.borrow().clone();
        Ok(Names::of(&state, &snapshot))
    }

    /// All names known to these.
    pub(super) fn of(state: &State, snapshot: &HostSnapshot) -> Names {
        let here: Vec<InstanceId> = snapshot.instances.iter().map(|i| i.instance.clone()).collect();
        let cluster = state.placements.keys().chain(state.directory.keys()).chain(state.superseded.keys());
        let instances: BTreeSet<InstanceId> = here.iter().chain(cluster).cloned().collect();
        let processes = state.spec.processes.keys().chain(instances.iter().map(|i| &i.process));
        Names { processes: processes.cloned().collect(), instances, here }
    }

    /// Refuses a process that nobody knows.
    pub(super) fn process(&self, name: &ProcessName) -> Result<(), Refusal> {
        if self.processes.contains(name) {
            return Ok(());
        }
        let name = name.to_string();
        let known = self.processes.iter().map(ToString::to_string);
        Err(Refusal::unknown("process", &name, nearest(&name, known).as_deref()))
    }

    /// Refuses an instance that nobody knows.
    pub(super) fn instance(&self, id: &InstanceId) -> Result<(), Refusal> {
        if self.instances.contains(id) {
            return Ok(());
        }
        let name = id.to_string();
        let known = self.instances.iter().map(ToString::to_string);
        Err(Refusal::unknown("instance", &name, nearest(&name, known).as_deref()))
    }

    /// The instances that the target names: of the whole cluster.
    pub(super) fn target(&self, target: &Target) -> Result<Vec<InstanceId>, Refusal> {
        self.known(target)?;
        Ok(self.instances.iter().filter(|id| names(target, id)).cloned().collect())
    }

    /// The instances on this host that the target names.
    pub(super) fn here(&self, target: &Target) -> Result<Vec<InstanceId>, Refusal> {
        self.known(target)?;
        Ok(self.here.iter().filter(|id| names(target, id)).cloned().collect())
    }

    fn known(&self, target: &Target) -> Result<(), Refusal> {
        match target {
            Target::All => Ok(()),
            Target::Process(name) => self.process(name),
            Target::Instance(id) => self.instance(id),
        }
    }
}

/// Whether the target names the instance.
pub(super) fn names(target: &Target, id: &InstanceId) -> bool {
    match target {
        Target::All => true,
        Target::Process(name) => id.process == *name,
        Target::Instance(wanted) => id == wanted,
    }
}

/// Refuses a process that is not declared and of which nothing runs, by the replicated state.
pub(super) fn process(state: &State, name: &ProcessName) -> Result<(), Refusal> {
    let declared = &state.spec.processes;
    if declared.contains_key(name) || of_process(&state.directory, name).next().is_some() {
        return Ok(());
    }
    let known = declared.keys().map(ToString::to_string);
    Err(Refusal::unknown("process", name.as_str(), nearest(name.as_str(), known).as_deref()))
}

/// Refuses a host that nobody knows; `own` is always known.
pub(super) fn host(state: &State, own: &HostName, name: &HostName) -> Result<(), Refusal> {
    if name == own || state.hosts.contains_key(name) {
        return Ok(());
    }
    let known = state.hosts.keys().map(ToString::to_string);
    Err(Refusal::unknown("host", name.as_str(), nearest(name.as_str(), known).as_deref()))
}

fn nearest(name: &str, known: impl Iterator<Item = String>) -> Option<String> {
    known
        .map(|candidate| (strsim::jaro_winkler(name, &candidate), candidate))
        .filter(|(alike, _)| *alike >= ALIKE)
        // The first of those that are equally alike.
        .min_by(|a, b| b.0.total_cmp(&a.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_named_and_a_far_one_is_not() {
        let known = || ["zone", "login", "dungeon"].into_iter().map(String::from);
        assert_eq!(nearest("zoen", known()).as_deref(), Some("zone"));
        assert_eq!(nearest("logins", known()).as_deref(), Some("login"));
        assert_eq!(nearest("arena", known()), None);
    }
}
