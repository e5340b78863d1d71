//! The peers: who keeps the replicated state, and changing that.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;

use super::elsewhere::{PATIENTLY, read};
use super::problem::Refusal;
use super::router::{Api, Transport};
use crate::agent::ring::RingError;
use crate::cluster::raft::membership::{Member, Role, SUGGESTION};
use crate::cluster::tunnel::Asked;
use crate::config::host::is_endpoint;
use crate::http::view::{DoneView, PeerRequest, PeerView, Problem};
use crate::spec::HostName;

/// How long what has just ended on a drained host may take to be known here.
const EMPTY: Duration = Duration::from_secs(2);

type Body = Result<Json<PeerRequest>, JsonRejection>;

/// The peers
///
/// As the primary sees them, if it answers; otherwise as a peer does that asks all others.
#[utoipa::path(get, path = "/v1/peers", tag = "Hosts and peers",
    responses((status = 200, description = "in order of their numbers", body = Vec<PeerView>),
        (status = 409, description = "this host is alone", body = Problem)))]
pub(super) async fn list(api: State<Api>) -> Result<Json<Vec<PeerView>>, Refusal> {
    if api.handle.ring.is_alone() {
        return Err(RingError::Alone.into());
    }
    Ok(Json(known(&api).await))
}

/// The peers by whoever knows most of them; none: nobody who knows answers.
pub(super) async fn known(api: &Api) -> Vec<PeerView> {
    let ring = &api.handle.ring;
    let primary = ring.standing().and_then(|standing| standing.primary);
    let knows = primary.clone().or_else(|| ring.served_by()).filter(|host| *host != api.handle.host);
    if let Some(host) = knows.filter(|_| api.transport != Transport::Tunnel) {
        let asked = api.ask(&host, &Asked::get("/v1/peers"), Duration::from_secs(1)).await;
        if let Ok(peers) = asked.and_then(|answered| read(&host, &answered)) {
            return peers;
        }
    }
    let members = ring.peers().unwrap_or_default();
    // A primary hears them all the time.
    let leads = primary.as_ref() == Some(&api.handle.host);
    let mut missing = if leads { BTreeMap::new() } else { ring.missing().await };
    let dead = ring.to_replace();
    let view = |member: Member| {
        let unreachable = missing.remove(&member.id);
        let suggestion = dead.contains(&member.id).then(|| SUGGESTION.to_owned());
        Some(PeerView { suggestion, ..view(member, primary.as_ref(), unreachable)? })
    };
    members.into_iter().filter_map(view).collect()
}

fn view(member: Member, primary: Option<&HostName>, unreachable: Option<String>) -> Option<PeerView> {
    let host: HostName = member.peer.name.parse().ok()?;
    let role = match member.role {
        Role::Voter => "voter",
        Role::Learner => "learner",
    };
    let silent = member.silent.or(unreachable.is_none().then_some(Duration::ZERO));
    Some(PeerView {
        primary: primary == Some(&host),
        address: member.peer.address.clone(),
        id: member.id,
        role: role.to_owned(),
        silent_ms: silent.map(|silent| u64::try_from(silent.as_millis()).unwrap_or(u64::MAX)),
        unreachable,
        suggestion: None,
        index: member.matched,
        host,
    })
}

/// Adds a peer
///
/// It becomes one when its agent starts with a cluster.toml that has it. 504 `under-way`: it goes on.
#[utoipa::path(post, path = "/v1/peers/add", tag = "Hosts and peers", request_body = PeerRequest,
    responses((status = 200, description = "it is so", body = DoneView),
        (status = 409, description = "the peers stay as they are", body = Problem),
        (status = 422, description = "the address is missing or has no port", body = Problem)))]
pub(super) async fn add(State(api): State<Api>, body: Body) -> Result<Json<DoneView>, Refusal> {
    let Json(PeerRequest { host, address }) = body?;
    let address = address.ok_or_else(|| Refusal::no_address(&host))?;
    if !is_endpoint(&address) {
        return Err(Refusal::bad_address(&host, &address));
    }
    let detail = format!(
        "{host} may become a peer: give it a cluster.toml with the same `peers` and `{host} = \"{address}\"`, and start \
         its agent"
    );
    change(detail, async move { api.handle.ring.add_peer(host, address).await }).await
}

/// Removes a peer
///
/// Before it leaves for good, or when it is lost. 504 `under-way`: it goes on.
#[utoipa::path(post, path = "/v1/peers/remove", tag = "Hosts and peers", request_body = PeerRequest,
    responses((status = 200, description = "it is so", body = DoneView),
        (status = 409, description = "the peers stay as they are", body = Problem)))]
pub(super) async fn remove(State(api): State<Api>, body: Body) -> Result<Json<DoneView>, Refusal> {
    let Json(PeerRequest { host, .. }) = body?;
    let peers = known(&api).await;
    refuse_attached(&api, &peers, &host)?;
    if peers.iter().any(|peer| peer.host == host) {
        let mut states = api.handle.state.clone();
        let free = tokio::time::timeout(EMPTY, states.wait_for(|state| may_leave(state, &host))).await;
        free.map_err(|_| Refusal::peer_in_use(&host))?.map_err(|_| Refusal::no_quorum())?;
    }
    let detail =
        format!("{host} is a peer no more: stop its agent and keeper, or let it attach as another host");
    change(detail, async move { api.handle.ring.remove_peer(host).await }).await
}

/// Whoever has joined and is none of the peers, where those are known. The primary would only say that it is none.
fn refuse_attached(api: &Api, peers: &[PeerView], host: &HostName) -> Result<(), Refusal> {
    let state = api.handle.state.borrow();
    match state.hosts.get(host).filter(|known| known.up) {
        Some(known) if !peers.is_empty() && peers.iter().all(|peer| peer.host != *host) => {
            Err(Refusal::attached(host, &known.facts.agent))
        }
        _ => Ok(()),
    }
}

/// True when nothing is left on a host that hears of no change any more: it is down, or drained and empty.
fn may_leave(state: &crate::state::State, host: &HostName) -> bool {
    let Some(known) = state.hosts.get(host).filter(|known| known.up) else { return true };
    let superseded = state.superseded.values().flat_map(BTreeMap::values);
    let mut entries = state.directory.values().chain(superseded);
    let placed = state.placements.values().any(|placement| placement.host == *host);
    known.drained && !placed && !entries.any(|entry| entry.host == *host)
}

/// Lets a peer vote
///
/// A learner, once it has caught up. 504 `under-way`: it goes on.
#[utoipa::path(post, path = "/v1/peers/promote", tag = "Hosts and peers", request_body = PeerRequest,
    responses((status = 200, description = "it is so", body = DoneView),
        (status = 409, description = "the peers stay as they are", body = Problem)))]
pub(super) async fn promote(State(api): State<Api>, body: Body) -> Result<Json<DoneView>, Refusal> {
    let Json(PeerRequest { host, .. }) = body?;
    refuse_attached(&api, &known(&api).await, &host)?;
    let detail = format!("{host} votes now");
    change(detail, async move { api.handle.ring.promote_peer(host).await }).await
}

/// Carried out to its end, also when nobody waits for it any more: a newcomer may have much to catch up with.
async fn change(
    detail: String,
    work: impl Future<Output = Result<(), RingError>> + Send + 'static,
) -> Result<Json<DoneView>, Refusal> {
    let changed = tokio::time::timeout(PATIENTLY, tokio::spawn(work)).await;
    let changed = changed.map_err(|_| Refusal::under_way())?;
    changed.map_err(|error| Refusal::internal(format!("the peers were not changed: {error}")))??;
    Ok(Json(DoneView { detail }))
}
