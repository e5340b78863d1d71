//! The desired set: reading it, and applying a new one.

use axum::Json;
use axum::extract::rejection::{QueryRejection, StringRejection};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use serde::Deserialize;

use super::problem::Refusal;
use super::router::Api;
use crate::config::{self, Context};
use crate::http::view::{AppliedView, PlanView, SpecView};
use crate::spec::Spec;
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
    let spec = parse(&body?, &api)?;
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

/// The processes of a cluster.toml, checked as on this host.
fn parse(text: &str, api: &Api) -> Result<Spec, Refusal> {
    let host = api.handle.host.to_string();
    let context = Context { hostname: host.clone(), host_override: Some(host) };
    let config = config::parse(text, "cluster.toml", &context);
    config.map(|config| config.spec).map_err(|faults| Refusal::faults(faults.render(false)))
}

fn difference(state: &state::State, new: &Spec) -> PlanView {
    let scaled = state.scales.iter().map(|(name, scale)| (name.clone(), scale.count)).collect();
    PlanView { revision: state.revision, scaled, ..config::difference::difference(&state.spec, new) }
}
