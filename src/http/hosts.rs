//! Hosts: which there are, emptying one, giving one up.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::names;
use super::peers;
use super::problem::Refusal;
use super::reading::{Copy, Label, Part, Switch, link_next};
use super::router::Api;
use super::status::PRIMARY;
use super::tables::{Table, Wait};
use crate::http::view::{DoneView, HealthView, HostView, PeerView, Problem};
use crate::plan::liveness::SILENT;
use crate::spec::HostName;
use crate::state::{self, Command};

/// How long the primary is waited for when a host is given up.
const GIVE_UP: Duration = Duration::from_secs(3);

/// What the hosts may be narrowed to.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// This one.
    host: Option<HostName>,
    /// Only those that are so.
    #[param(inline)]
    state: Option<HostState>,
    /// `KEY=VALUE`: with this label.
    #[param(value_type = Option<String>, pattern = "^[^=]*=")]
    label: Option<Label>,
    /// Only these fields, with commas between. Without `version` no other agent is asked.
    fields: Option<String>,
    /// At most so many; the header `Link` names the next page.
    #[param(value_type = Option<u32>, minimum = 1)]
    limit: Option<NonZeroU32>,
    /// Those behind this one, in order.
    after: Option<HostName>,
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

/// How a host stands, in a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum HostState {
    /// It counts as up, drained or not.
    Up,
    /// It was declared down.
    Down,
    /// It is to be empty.
    Drained,
}

impl Filter {
    fn takes(&self, name: &HostName, host: &state::Host) -> bool {
        self.host.as_ref().is_none_or(|wanted| name == wanted)
            && self.after.as_ref().is_none_or(|after| name > after)
            && self.label.as_ref().is_none_or(|label| label.is_among(&host.facts.labels))
            && self.state.is_none_or(|state| match state {
                HostState::Up => host.up,
                HostState::Down => !host.up,
                HostState::Drained => host.drained,
            })
    }
}

/// The hosts
///
/// What is not in the replicated state (`silent_ms`, `version`) is asked of the primary and of the hosts themselves,
/// a second at most.
#[utoipa::path(get, path = "/v1/hosts", tag = "Hosts and peers", params(Filter),
    responses((status = 200, description = "in order of their names", body = Vec<HostView>)))]
pub(super) async fn list(
    api: State<Api>,
    headers: HeaderMap,
    uri: Uri,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(filter) = filter?;
    api.tables.poll(Table::Hosts, filter.index, filter.wait).await;
    let part = Part::of::<HostView>(filter.limit, filter.fields.clone())?;
    let ring = &api.handle.ring;
    let asked = if part.shows("version") { api.others() } else { Default::default() };
    let (watched, versions, peers) = tokio::join!(
        ring.watched(PRIMARY),
        api.ask_each::<HealthView>(asked, "/v1/healthz"),
        peers::known(&api)
    );
    let silent = watched.map(|watched| watched.silent_ms).unwrap_or_default();
    let versions = versions.into_iter().filter_map(|(host, health)| Some((host, health.ok()?.version)));
    let own = (api.handle.host.clone(), env!("CARGO_PKG_VERSION").to_owned());
    let versions: BTreeMap<HostName, String> = versions.chain([own]).collect();
    let copy = Copy::get(&api, filter.consistent, &headers).await?;
    let mut placed: BTreeMap<&HostName, u64> = BTreeMap::new();
    for placement in copy.state.placements.values() {
        *placed.entry(&placement.host).or_default() += 1;
    }
    let view = |(name, host): (&HostName, &state::Host)| HostView {
        host: name.clone(),
        up: host.up,
        drained: host.drained,
        incarnation: host.incarnation,
        role: role(name, &peers, ring.is_alone()).to_owned(),
        address: host.facts.address.clone(),
        agent: host.facts.agent.clone(),
        labels: host.facts.labels.clone(),
        capacity: host.facts.capacity.clone(),
        instances: placed.get(name).copied().unwrap_or(0),
        silent_ms: silent.get(name).copied().or(ring.is_alone().then_some(0)).filter(|_| host.up),
        version: versions.get(name).cloned(),
    };
    let wanted = copy.state.hosts.iter().filter(|(name, host)| filter.takes(name, host));
    let (page, more) = part.cut(wanted.map(view), |row| &row.host);
    let next = page.last().filter(|_| more).map(|last| last.host.to_string());
    let mut response = copy.answer_with(&part.project(page)?)?;
    link_next(&mut response, &uri, next.as_deref());
    Ok(response)
}

fn role(host: &HostName, peers: &[PeerView], alone: bool) -> &'static str {
    match peers.iter().find(|peer| peer.host == *host) {
        _ if alone => "primary",
        Some(peer) if peer.primary => "primary",
        Some(peer) if peer.role == "learner" => "learner",
        Some(_) => "peer",
        None => "attached",
    }
}

/// A host as a path names it.
pub(super) type Named = Result<Path<String>, PathRejection>;

/// One that there is.
pub(super) fn named(api: &Api, name: Named) -> Result<HostName, Refusal> {
    let host = name?.0.parse()?;
    let state = api.handle.state.borrow().clone();
    names::host(&state, &api.handle.host, &host)?;
    Ok(host)
}

/// Empties a host
///
/// Its instances go elsewhere, and none comes to it.
#[utoipa::path(post, path = "/v1/hosts/{host}/drain", tag = "Hosts and peers",
    params(("host" = HostName, Path, description = "a host")),
    responses((status = 200, description = "it is so", body = DoneView),
        (status = 404, description = "there is no such host", body = Problem),
        (status = 409, description = "it is alone", body = Problem)))]
pub(super) async fn drain(api: State<Api>, name: Named) -> Result<Json<DoneView>, Refusal> {
    let host = named(&api, name)?;
    if api.handle.ring.is_alone() {
        return Err(Refusal::nowhere_to_go(&host));
    }
    api.handle.propose(Command::DrainHost { host: host.clone(), drained: true }).await?;
    let takes = |(name, other): (&HostName, &state::Host)| *name != host && other.up && !other.drained;
    let detail = match api.handle.state.borrow().hosts.iter().any(takes) {
        true => format!("the instances of {host} go elsewhere, and none comes to it until `undrain`"),
        false => format!(
            "{host} is drained, and no other host is up and takes instances: those of {host} end, and start when one is, \
             or after `bigbrother undrain {host}`"
        ),
    };
    Ok(Json(DoneView { detail }))
}

/// Fills a host again
///
/// Instances may come to it again; what runs elsewhere stays there.
#[utoipa::path(post, path = "/v1/hosts/{host}/undrain", tag = "Hosts and peers",
    params(("host" = HostName, Path, description = "a host")),
    responses((status = 200, description = "it is so", body = DoneView),
        (status = 404, description = "there is no such host", body = Problem)))]
pub(super) async fn undrain(api: State<Api>, name: Named) -> Result<Json<DoneView>, Refusal> {
    let host = named(&api, name)?;
    api.handle.propose(Command::DrainHost { host: host.clone(), drained: false }).await?;
    let detail = format!("instances may come to {host} again; what runs elsewhere stays there");
    Ok(Json(DoneView { detail }))
}

/// Gives a silent host up
///
/// It is declared down once it has been silent for `host_timeout`, whatever the brake says. The primary alone takes note
/// of it, until the host is heard: the next primary must be told again.
#[utoipa::path(post, path = "/v1/hosts/{host}/declare-down", tag = "Hosts and peers",
    params(("host" = HostName, Path, description = "a host")),
    responses((status = 200, description = "it is so", body = DoneView),
        (status = 404, description = "there is no such host", body = Problem),
        (status = 409, description = "it is down already, is heard, or is alone", body = Problem)))]
pub(super) async fn declare_down(api: State<Api>, name: Named) -> Result<Json<DoneView>, Refusal> {
    let host = named(&api, name)?;
    let state = api.handle.state.borrow().clone();
    if state.hosts.get(&host).is_some_and(|known| !known.up) {
        return Err(Refusal::down_already(&host));
    }
    let ring = &api.handle.ring;
    // A primary that has lost its quorum takes note of it, and can do nothing.
    if ring.standing().is_some_and(|standing| !standing.quorum) {
        return Err(Refusal::no_quorum());
    }
    let silent = ring.watched(PRIMARY).await.ok();
    let silent = silent.and_then(|watched| watched.silent_ms.get(&host).copied()).map(Duration::from_millis);
    if silent.is_some_and(|silent| silent <= SILENT) {
        return Err(Refusal::still_heard(&host));
    }
    ring.give_up(&host, GIVE_UP).await?;
    let timeout = state.settings.host_timeout;
    let shown = humantime::format_duration(timeout);
    let detail = match silent {
        Some(silent) if silent >= timeout => {
            format!("{host} is declared down now, whatever the brake says: its instances go elsewhere")
        }
        Some(silent) => format!(
            "{host} was heard {silent:.1?} ago: it is declared down once it has been silent for {shown}, whatever the \
             brake says; if it is heard before that, it stays up, and if another primary is elected before that, say it again"
        ),
        None => format!(
            "{host} is declared down once it has been silent for {shown}, whatever the brake says; if another primary is \
             elected before that, say it again"
        ),
    };
    Ok(Json(DoneView { detail }))
}
