//! The desired set: reading it, and applying a new one.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::{QueryRejection, StringRejection};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use serde::Deserialize;

use super::problem::Refusal;
use super::router::Api;
use crate::http::view::{AppliedView, ChangedView, PlanView, SpecView};
use crate::spec::fingerprint::spec_hash;
use crate::spec::{ProcessName, Spec};
use crate::state::{self, Command, Rejected, Response};

/// Content types of a cluster.toml.
const TOML: [&str; 2] = ["application/toml", "text/plain"];

/// `GET /v1/spec`
pub(super) async fn current(api: State<Api>) -> Json<SpecView> {
    let state = api.handle.state.borrow().clone();
    Json(SpecView { revision: state.revision, spec: state.spec.clone() })
}

/// How to apply.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct How {
    #[serde(default)]
    dry_run: bool,
    expected_revision: Option<u64>,
}

/// `POST /v1/apply?dry_run=&expected_revision=`, the body a cluster.toml of which the processes count.
pub(super) async fn apply(
    api: State<Api>,
    how: Result<Query<How>, QueryRejection>,
    headers: HeaderMap,
    body: Result<String, StringRejection>,
) -> Result<Json<AppliedView>, Refusal> {
    let Query(How { dry_run, expected_revision }) = how?;
    only_toml(&headers)?;
    let spec = parse(&body?)?;
    let state = api.handle.state.borrow().clone();
    let plan = difference(&state, &spec);
    if dry_run {
        let found = state.revision;
        return match expected_revision {
            Some(expected) if expected != found => Err(Rejected::Revision { expected, found }.into()),
            _ => Ok(Json(AppliedView { revision: found, plan })),
        };
    }
    match api.handle.propose(Command::ApplySpec { spec, expected_revision }).await? {
        Response::Revision(revision) => Ok(Json(AppliedView { revision, plan })),
        other => Err(Refusal::internal(format!("an apply was answered by {other:?}"))),
    }
}

fn only_toml(headers: &HeaderMap) -> Result<(), Refusal> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if TOML.contains(&essence.as_str()) {
        return Ok(());
    }
    Err(Refusal::media_type(&format!("apply takes a cluster.toml as {}, not {given:?}", TOML.join(" or "))))
}

/// Stands in for `config::parse` until it is there: reads `command` and `count`, and gives the rest of a
/// process its plainest value.
fn parse(text: &str) -> Result<Spec, Refusal> {
    #[derive(Deserialize)]
    struct File {
        process: BTreeMap<ProcessName, Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        command: Vec<String>,
        count: u32,
    }
    let file: File = toml::from_str(text).map_err(|e| Refusal::faults(e.to_string()))?;
    let span = |secs: u64| serde_json::json!({ "secs": secs, "nanos": 0 });
    let processes: serde_json::Map<String, serde_json::Value> = file
        .process
        .into_iter()
        .map(|(name, Entry { command, count })| {
            let process = serde_json::json!({
                "command": command, "population": { "Count": count }, "ports": {}, "user": null,
                "group": null, "working_dir": null, "env": {}, "umask": 0o022, "nice": 0,
                "ignore_sigpipe": true,
                "ready": { "mode": { "Spawned": { "after": span(1) } }, "timeout": span(30) },
                "heartbeat": { "mode": "None", "interval": span(1), "timeout": span(5), "on_hang": "kill",
                    "abort_timeout": span(10) },
                "restart": { "policy": "always", "backoff": null, "healthy_after": span(60), "give_up": null },
                "stop": { "signal": 15, "timeout": span(10) }, "drain": { "timeout": span(0) },
                "limits": { "memory": null, "cpu_milli": null, "pids": null, "files": null, "core": null,
                    "required": false },
                "placement": { "labels": {}, "strategy": "spread", "max_per_host": null, "needs": {} },
                "update": { "max_unavailable": 1, "when_empty": false, "deadline": null },
                "after": [], "on_partition": "keep", "logs": { "Files": { "size": 10485760, "files": 5 } },
                "build": null, "launch": [], "labels": {},
            });
            (name.to_string(), process)
        })
        .collect();
    serde_json::from_value(serde_json::json!({ "processes": processes }))
        .map_err(|e| Refusal::faults(e.to_string()))
}

/// Stands in for `config::difference` until it is there: names what differs, not yet in which keys.
fn difference(state: &state::State, new: &Spec) -> PlanView {
    let old = &state.spec.processes;
    let new = &new.processes;
    let changed = new.iter().filter_map(|(name, process)| {
        let before = old.get(name).filter(|before| *before != process)?;
        let restarts = spec_hash(before) != spec_hash(process);
        Some(ChangedView { process: name.clone(), restarts, changes: Vec::new() })
    });
    PlanView {
        revision: state.revision,
        added: new.keys().filter(|name| !old.contains_key(name)).cloned().collect(),
        removed: old.keys().filter(|name| !new.contains_key(name)).cloned().collect(),
        changed: changed.collect(),
        scaled: state.scales.iter().map(|(name, scale)| (name.clone(), scale.count)).collect(),
    }
}
