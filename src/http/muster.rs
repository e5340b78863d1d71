//! All instances of the cluster, from what each host said and from the replicated state where one said nothing.
//!
//! Pure. Owns what is shown of a host that does not answer, and of a run beside the one that belongs. Called by
//! `instances`.

use std::collections::{BTreeMap, BTreeSet};

use crate::http::view::{HeartbeatView, InstanceView, PortView};
use crate::spec::{HostName, InstanceId, ProcessName};
use crate::state::{Entry, State};

/// Belongs to a host that does not answer.
pub(super) const UNREACHABLE: &str = "unreachable";
/// Runs where it does not belong any more.
pub(super) const SUPERSEDED: &str = "superseded";

/// What is asked of other hosts, too.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    pub(super) process: Option<ProcessName>,
    pub(super) instance: Option<InstanceId>,
    /// Only what this host says.
    pub(super) host: Option<HostName>,
}

impl Filter {
    pub(super) fn takes(&self, id: &InstanceId) -> bool {
        self.process.as_ref().is_none_or(|name| id.process == *name)
            && self.instance.as_ref().is_none_or(|wanted| id == wanted)
    }

    /// The same question for another host.
    pub(super) fn path(&self) -> String {
        let process = self.process.as_ref().map(|name| format!("process={name}"));
        let instance = self.instance.as_ref().map(|id| format!("instance={id}"));
        let query: Vec<String> = process.into_iter().chain(instance).collect();
        match query.is_empty() {
            true => "/v1/instances".to_owned(),
            false => format!("/v1/instances?{}", query.join("&")),
        }
    }
}

/// Which of these hosts may have something of what is wanted: the primary (it knows what fits nowhere), and where it
/// belongs or runs. All of them where nothing is wanted in particular.
pub(super) fn concerned(
    state: &State,
    wanted: &Filter,
    primary: Option<&HostName>,
    others: BTreeSet<HostName>,
) -> BTreeSet<HostName> {
    if wanted.process.is_none() && wanted.instance.is_none() {
        return others;
    }
    let placed = state.placements.iter().map(|(id, placement)| (id, &placement.host));
    let running = state.directory.iter().map(|(id, entry)| (id, &entry.host));
    let beside = state.superseded.iter().flat_map(|(id, runs)| runs.keys().map(move |host| (id, host)));
    let concerned = placed.chain(running).chain(beside).filter(|(id, _)| wanted.takes(id));
    let hosts: BTreeSet<&HostName> = concerned.map(|(_, host)| host).chain(primary).collect();
    others.into_iter().filter(|host| hosts.contains(host)).collect()
}

/// All instances in order; one that runs where it does not belong comes after the one that does.
pub(super) fn muster(
    state: &State,
    wanted: &Filter,
    own: Vec<InstanceView>,
    heard: Vec<(HostName, Result<Vec<InstanceView>, String>)>,
) -> Vec<InstanceView> {
    let mut all = own;
    for (host, said) in heard {
        match said {
            Ok(views) => all.extend(views),
            Err(why) => all.extend(unheard(state, wanted, &host, &why)),
        }
    }
    let belongs =
        |view: &InstanceView| state.placements.get(&view.instance).map(|placement| placement.host.clone());
    let elsewhere = |view: &InstanceView| belongs(view).filter(|host| *host != view.host);
    // Without a run there is only something to say of it where it belongs.
    all.retain(|view| view.run.is_some() || elsewhere(view).is_none());
    for view in &mut all {
        if let Some(host) = elsewhere(view) {
            supersede(view, &host);
        }
    }
    all.sort_by_key(|view| (view.instance.clone(), view.state == SUPERSEDED, view.run.is_none()));
    // What fits nowhere is told by whoever was the primary, too.
    all.dedup_by(|b, a| a.instance == b.instance && a.run.is_none() && b.run.is_none());
    all
}

fn supersede(view: &mut InstanceView, host: &HostName) {
    let was = std::mem::replace(&mut view.state, SUPERSEDED.to_owned());
    view.reason = Some(match was.as_str() {
        SUPERSEDED => return,
        "ready" | "starting" => format!("it belongs to {host} now"),
        was => format!("it belongs to {host} now; {was}"),
    });
}

/// What the replicated state says of a host that says nothing.
fn unheard(state: &State, wanted: &Filter, host: &HostName, why: &str) -> Vec<InstanceView> {
    let placed = state.placements.iter().filter(|(_, placement)| placement.host == *host);
    let mut known: BTreeMap<&InstanceId, Option<&Entry>> = placed.map(|(id, _)| (id, None)).collect();
    let beside = state.superseded.iter().flat_map(|(id, runs)| runs.values().map(move |entry| (id, entry)));
    let running = state.directory.iter().chain(beside).filter(|(_, entry)| entry.host == *host);
    known.extend(running.map(|(id, entry)| (id, Some(entry))));
    let shown = |(id, entry): (&InstanceId, Option<&Entry>)| InstanceView {
        instance: id.clone(),
        process: id.process.clone(),
        host: host.clone(),
        state: UNREACHABLE.to_owned(),
        reason: Some(match entry.map(|entry| entry.ready.is_some()) {
            Some(true) => format!("ready when last heard; {why}"),
            Some(false) => format!("starting when last heard; {why}"),
            None => format!("not running when last heard; {why}"),
        }),
        pid: None,
        run: entry.map(|entry| entry.run.0),
        restarts: 0,
        started_at: None,
        ready_at: None,
        last_exit: None,
        ports: ports(entry),
        heartbeat: HeartbeatView { mode: "none".to_owned(), age_ms: None },
        status: serde_json::Map::new(),
    };
    known.into_iter().filter(|(id, _)| wanted.takes(id)).map(shown).collect()
}

fn ports(entry: Option<&Entry>) -> BTreeMap<String, PortView> {
    let ports = entry.into_iter().flat_map(|entry| entry.ports.iter());
    ports.map(|(name, (protocol, port))| (name.to_owned(), PortView { protocol, port })).collect()
}

#[cfg(test)]
mod tests;
