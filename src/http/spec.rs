//! The desired set: reading it, and applying a new one.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{QueryRejection, StringRejection};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use super::problem::Refusal;
use super::reading::{Copy, Switch};
use super::router::Api;
use super::status::PRIMARY;
use super::tables::{Table, Wait};
use crate::config::{self, Context};
use crate::http::view::{AppliedView, PlanView, Problem, SpecView};
use crate::plan::liveness::SILENT;
use crate::spec::{HostName, ProcessName, Spec};
use crate::state::{self, Command, Rejected};

/// Content types of a cluster.toml.
const TOML: [&str; 2] = ["application/toml", "text/plain"];

/// How the spec is read.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Fresh {
    /// Answered when the copy has all that was committed anywhere before; needs a quorum.
    #[serde(default)]
    #[param(value_type = bool)]
    consistent: Switch,
    /// Long poll: answered when something has changed after this index, or after `wait`.
    index: Option<u64>,
    /// How long that waits, such as `30s`; at most and by default a minute.
    #[param(value_type = Option<String>)]
    wait: Option<Wait>,
}

/// The spec
///
/// The whole desired set. Its `ETag` is its revision, to be shown as `If-Match` when another one is applied.
#[utoipa::path(get, path = "/v1/spec", tag = "The desired set", params(Fresh),
    responses((status = 200, description = "the spec in force", body = SpecView)))]
pub(super) async fn current(
    api: State<Api>,
    headers: HeaderMap,
    fresh: Result<Query<Fresh>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(Fresh { consistent, index, wait }) = fresh?;
    api.tables.poll(Table::Spec, index, wait).await;
    let copy = Copy::get(&api, consistent, &headers).await?;
    let tag = revision_tag(copy.state.revision);
    copy.answer_as(&tag, |state| Ok(SpecView { revision: state.revision, spec: state.spec.clone() }))
}

fn revision_tag(revision: u64) -> String {
    format!("\"{revision}\"")
}

/// How to apply.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct How {
    /// Only tells what would change.
    #[serde(default)]
    dry_run: bool,
    /// Refused (409) unless the spec in force has this revision.
    expected_revision: Option<u64>,
}

/// Applies a cluster.toml
///
/// Makes its processes the cluster's; all else in it is each host's own. `dry_run` tells what would change, as text for
/// people to whom the header `Accept` asks for `text/plain`.
#[utoipa::path(post, path = "/v1/apply", tag = "The desired set",
    params(How, ("If-Match" = Option<String>, Header, pattern = "^\"[0-9]{1,18}\"$",
        description = "refused (412) unless the spec in force has this revision, as the `ETag` of `/v1/spec` has it")),
    request_body(content((String = "application/toml"), (String = "text/plain")), description = "a cluster.toml"),
    responses(
        (status = 200, description = "what was changed, or would be",
            content((AppliedView = "application/json"), (String = "text/plain; charset=utf-8"))),
        (status = 409, description = "another revision is in force", body = Problem),
        (status = 412, description = "another revision is in force", body = Problem),
        (status = 422, description = "the file has faults: all of them", body = Problem)))]
pub(super) async fn apply(
    api: State<Api>,
    how: Result<Query<How>, QueryRejection>,
    headers: HeaderMap,
    body: Result<String, StringRejection>,
) -> Result<Response, Refusal> {
    let Query(How { dry_run, expected_revision }) = how?;
    let condition = if_match(&headers)?;
    only_toml(&headers)?;
    let spec = parse(&body?, &api)?;
    let state = api.handle.state.borrow().clone();
    let mut plan = difference(&state, &spec);
    plan.warnings.extend(nothing_left(&state.spec, &spec));
    plan.warnings.extend(twice(&api, &state, &spec).await);
    let expected = both(expected_revision, condition, state.revision).map_err(Refusal::of_a_condition)?;
    let applied = match dry_run {
        true => tried(state.revision, expected).map(|()| state.revision),
        false => put_in_force(&api, spec, expected).await,
    };
    let revision = applied.map_err(|refusal| match condition {
        Some(_) => refusal.of_a_condition(),
        None => refusal,
    })?;
    let tag = HeaderValue::from_str(&revision_tag(revision)).ok().map(|tag| (header::ETAG, tag));
    let mut response = match wants_text(&headers) {
        true => plan.to_string().into_response(),
        false => Json(AppliedView { revision, plan }).into_response(),
    };
    response.headers_mut().extend(tag);
    Ok(response)
}

/// The revision that query and header expect; where they differ, the one that is not in force.
fn both(query: Option<u64>, header: Option<u64>, found: u64) -> Result<Option<u64>, Refusal> {
    match (query, header) {
        (Some(query), Some(header)) if query != header => {
            let expected = if query == found { header } else { query };
            Err(Rejected::Revision { expected, found }.into())
        }
        _ => Ok(query.or(header)),
    }
}

fn tried(found: u64, expected: Option<u64>) -> Result<(), Refusal> {
    match expected {
        Some(expected) if expected != found => Err(Rejected::Revision { expected, found }.into()),
        _ => Ok(()),
    }
}

async fn put_in_force(api: &Api, spec: Spec, expected_revision: Option<u64>) -> Result<u64, Refusal> {
    match api.handle.propose(Command::ApplySpec { spec, expected_revision }).await? {
        state::Response::Revision(revision) => Ok(revision),
        other => Err(Refusal::internal(format!("an apply was answered by {other:?}"))),
    }
}

/// The revision that `If-Match` names.
fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let revision = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).map(str::parse);
    match revision {
        Some(Ok(revision)) => Ok(Some(revision)),
        _ => Err(Refusal::query(format!(
            "If-Match: {text} is no revision: it is written as the ETag of /v1/spec, \"7\""
        ))),
    }
}

/// True when somebody reads it.
fn wants_text(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).is_some_and(|value| {
        let first = value.split([',', ';']).next().unwrap_or_default();
        first.trim().eq_ignore_ascii_case("text/plain")
    })
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

/// What another spec changes, and what becomes of the overrides by it.
fn difference(state: &state::State, new: &Spec) -> PlanView {
    let mut plan = PlanView { revision: state.revision, ..config::difference::difference(&state.spec, new) };
    for (name, scale) in &state.scales {
        match new.processes.get(name) {
            process if scale.lasts(process.map(|process| &**process)) => {
                plan.scaled.insert(name.clone(), scale.count);
            }
            Some(_) => drop(plan.unscaled.insert(name.clone(), scale.count)),
            // It goes as a whole.
            None => {}
        }
    }
    plan
}

/// A host's own file often has no processes; applied, it ends all that others have applied.
fn nothing_left(old: &Spec, new: &Spec) -> Option<String> {
    let ends = new.processes.is_empty() && !old.processes.is_empty();
    ends.then(|| {
        "this file has no process: every process of the cluster ends. Is it the right file?".to_owned()
    })
}

/// Processes that are to be exclusive from now on may run on hosts that cannot hear of it now.
async fn twice(api: &Api, state: &state::State, new: &Spec) -> Option<String> {
    let names = become_exclusive(&state.spec, new);
    if names.is_empty() {
        return None;
    }
    // Who is silent only the primary knows; without one nothing is applied.
    let watched = api.handle.ring.watched(PRIMARY).await.unwrap_or_default();
    let is_silent = |host: &HostName| {
        watched.silent_ms.get(host).is_some_and(|silent_ms| Duration::from_millis(*silent_ms) > SILENT)
    };
    let away = state.hosts.iter().filter(|(name, host)| !host.up || is_silent(name));
    warning(&names, &away.map(|(name, _)| name.clone()).collect::<Vec<_>>())
}

fn become_exclusive(old: &Spec, new: &Spec) -> Vec<ProcessName> {
    let shared = |name: &ProcessName| old.processes.get(name).is_some_and(|process| !process.exclusive());
    let exclusive = new.processes.iter().filter(|(_, process)| process.exclusive());
    exclusive.map(|(name, _)| name.clone()).filter(shared).collect()
}

fn warning(processes: &[ProcessName], away: &[HostName]) -> Option<String> {
    let listed = |names: Vec<String>| names.join(", ");
    let hosts = listed(away.iter().map(ToString::to_string).collect());
    let names = listed(processes.iter().map(ToString::to_string).collect());
    (!away.is_empty()).then(|| {
        format!(
            "a host that is away does not hear that there may be one run only of each instance of {names}: runs that it \
             still has go on beside their successors until it is back. Away: {hosts}. Wait for it, or be sure that it is off"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Scale, State};

    fn spec(text: &str) -> Spec {
        let context = Context { hostname: "alpha".to_owned(), host_override: None };
        config::parse(text, "t", &context).unwrap().spec
    }

    #[test]
    fn hosts_that_do_not_hear_of_a_process_that_becomes_exclusive_are_named() {
        let keep = "[process.zone]\ncommand = ['/z']\n[process.more]\ncommand = ['/m']\n";
        let stop = keep.replace("['/z']", "['/z']\non_partition = 'stop'");
        let fresh = format!("{stop}[process.new]\ncommand = ['/n']\non_partition = 'stop'\n");
        let [keep, stop, fresh] = [keep, &stop, &fresh].map(spec);
        let zone = ["zone".parse().unwrap()];
        assert_eq!(become_exclusive(&keep, &fresh), zone, "a new one runs nowhere yet");
        assert_eq!(become_exclusive(&stop, &keep), []);
        assert_eq!(become_exclusive(&stop, &fresh), []);
        assert_eq!(warning(&zone, &[]), None);
        let plan = PlanView {
            warnings: warning(&zone, &["beta".parse().unwrap()]).into_iter().collect(),
            ..difference(&State { spec: keep, ..State::default() }, &stop)
        };
        let told = plan.to_string();
        assert!(told.contains("\n! ") && told.contains("of zone:") && told.contains("Away: beta."), "{told}");
    }

    #[test]
    fn a_file_without_processes_is_warned_of_where_there_are_some() {
        let [none, one] = ["", "[process.zone]\ncommand = ['/z']\n"].map(spec);
        assert!(nothing_left(&one, &none).is_some_and(|told| told.contains("every process")));
        assert_eq!(
            [nothing_left(&none, &none), nothing_left(&none, &one), nothing_left(&one, &one)],
            [None, None, None]
        );
    }

    #[test]
    fn a_plan_tells_which_overrides_last_and_which_end() {
        let zone = |count: u32| format!("[process.zone]\ncommand = ['/z']\ncount = {count}\n");
        let per_host = "[process.zone]\ncommand = ['/z']\nper_host = true\n";
        let mut state = State { spec: spec(&zone(4)), ..State::default() };
        state.scales.insert("zone".parse().unwrap(), Scale { count: 7, declared: 4 });
        let lasts = "  zone is scaled to 7 (`bigbrother scale zone default` takes that back)\n";
        let ends = "  zone is not scaled to 7 any more: its count in the file is another\n";
        for (new, last_line) in [
            (zone(4), lasts),
            (zone(4) + "user = 'games'\n", lasts),
            (zone(5), ends),
            (per_host.to_owned(), ends),
            (String::new(), "- zone\n"),
        ] {
            let told = difference(&state, &spec(&new)).to_string();
            let told = told.strip_suffix("nothing would change (spec revision 0)\n").unwrap_or(&told);
            assert!(told.ends_with(last_line), "{new}: {told}");
            assert_eq!(told.matches("scaled").count(), last_line.matches("scaled").count(), "{new}: {told}");
        }
    }
}
