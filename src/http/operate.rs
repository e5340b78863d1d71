//! What operators do: restart, stop, start, scale, launch, announce, reload.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderMap, StatusCode};

use tokio::task::JoinSet;

use super::auth;
use super::elsewhere::Place;
use super::muster::{Filter, SUPERSEDED};
use super::names::{Names, names};
use super::problem::Refusal;
use super::router::{Api, Transport};
use super::{idempotency, instances};
use crate::agent::handle::HostRequest;
use crate::http::view::{
    AffectedView, AnnounceRequest, DoneView, InstanceView, LaunchRequest, LaunchedView, Problem,
    RestartRequest, RestartedView, ScaleRequest, TargetRequest,
};
use crate::spec::{InstanceId, MAX_COUNT, ProcessName};
use crate::state::{Command, Response, Target};

type Body<T> = Result<Json<T>, JsonRejection>;

/// For the document; `idempotency` reads it.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "it is described, not read")]
struct Key {
    /// The same again under the same key is done once, and answered alike; in place of `key` in the body.
    #[param(rename = "Idempotency-Key", pattern = "^[\\t -~]{1,128}$")]
    idempotency_key: Option<String>,
}

/// Restarts
///
/// New runs in place of the present ones, which change after the answer. `rolling`: a process at the pace of its
/// `update`, for a new binary at the same path.
#[utoipa::path(post, path = "/v1/restart", tag = "Operating", params(Key),
    request_body = RestartRequest,
    responses((status = 200, description = "what was asked for", body = RestartedView),
        (status = 404, description = "there is no such process or instance", body = Problem),
        (status = 409, description = "the request with this key is under way", body = Problem),
        (status = 422, description = "the key was used for another request, or only a process is rolled", body = Problem)))]
pub(super) async fn restart(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body<RestartRequest>,
) -> Result<Json<RestartedView>, Refusal> {
    let Json(request) = body?;
    let key = idempotency::key(&headers, request.key.clone())?;
    let request = RestartRequest { key: None, ..request };
    // A share is remembered as one (`shares`), never as the whole: who asked that agent may ask this one.
    if api.transport == Transport::Tunnel {
        return replace(api, request, key).await.map(Json);
    }
    let keys = api.keys.clone();
    keys.once(key.clone(), &request.clone(), replace(api, request, key)).await.map(Json)
}

async fn replace(api: Api, request: RestartRequest, key: Option<String>) -> Result<RestartedView, Refusal> {
    match (request.rolling, &request.target) {
        (false, _) => replace_at_once(&api, request, key).await,
        (true, Target::Process(process)) => roll(&api, process.clone()).await,
        (true, _) => Err(Refusal::not_rolling()),
    }
}

/// Each host replaces its own, under a key once each: asked for again because one did not answer, the others have done
/// their share already.
async fn replace_at_once(
    api: &Api,
    request: RestartRequest,
    key: Option<String>,
) -> Result<RestartedView, Refusal> {
    let state = api.handle.state.borrow().clone();
    let others = api.others().into_iter().filter(|host| {
        let mut placed = state.placements.iter().filter(|(id, _)| names(&request.target, id));
        placed.any(|(_, placement)| placement.host == *host)
    });
    let mut asking = JoinSet::new();
    for host in others {
        let (api, request, key) = (api.clone(), request.clone(), key.clone());
        asking.spawn(auth::on_behalf(auth::asking(), async move {
            // The same key there: what is asked for again, through whichever agent, is done once.
            let key = key.as_deref().map(|key| ("idempotency-key", key));
            api.tell::<RestartedView>(&host, "/v1/restart", key.as_slice(), &request).await
        }));
    }
    let share = replace_here(api.clone(), request.target.clone());
    let mut done = api.shares.once(key, &request, share).await?;
    for told in asking.join_all().await {
        let told = told?;
        done.instances.extend(told.instances);
        done.runs.extend(told.runs);
    }
    done.instances.sort();
    Ok(done)
}

/// This host's share.
async fn replace_here(api: Api, target: Target) -> Result<RestartedView, Refusal> {
    let snapshot = api.snapshots.get().await?;
    let instances = Names::of(&api.handle.state.borrow().clone(), &snapshot).here(&target)?;
    let runs = living(&snapshot.instances, &instances);
    api.handle.ask(|reply| HostRequest::Restart(instances.clone(), reply)).await?;
    Ok(RestartedView { instances, runs, ..RestartedView::default() })
}

/// The plan does it, wherever they are.
async fn roll(api: &Api, process: ProcessName) -> Result<RestartedView, Refusal> {
    let instances = targeted(api, &Target::Process(process.clone())).await?;
    let filter = Filter { process: Some(process.clone()), ..Filter::default() };
    let views = instances::everywhere(api, &filter).await?;
    let runs = living(&views, &instances);
    let failed = views.iter().filter_map(|view| Some((view.instance.clone(), view.failed_at()?.to_owned())));
    let failed = failed.collect();
    let state = api.handle.state.borrow().clone();
    let epoch = state.epochs.get(&process).map_or(1, |epoch| epoch.saturating_add(1));
    api.handle.propose(Command::Roll { process, epoch }).await?;
    Ok(RestartedView { instances, runs, failed })
}

fn living(views: &[InstanceView], of: &[InstanceId]) -> BTreeMap<InstanceId, u64> {
    let living = views.iter().filter(|view| view.pid.is_some() && view.state != SUPERSEDED);
    let runs = living.filter_map(|view| Some((view.instance.clone(), view.run?)));
    runs.filter(|(id, _)| of.contains(id)).collect()
}

/// The instances that a target names: in the whole cluster, or of this host for another agent.
async fn targeted(api: &Api, target: &Target) -> Result<Vec<InstanceId>, Refusal> {
    let names = Names::read(api).await?;
    if api.reaches() { names.target(target) } else { names.here(target) }
}

/// Stops
///
/// They end and stay down until started, over restarts and reboots.
#[utoipa::path(post, path = "/v1/stop", tag = "Operating", request_body = TargetRequest,
    responses((status = 200, description = "what was asked for", body = AffectedView),
        (status = 404, description = "there is no such process or instance", body = Problem)))]
pub(super) async fn stop(api: State<Api>, body: Body<TargetRequest>) -> Result<Json<AffectedView>, Refusal> {
    pause_or_resume(&api, body, |target| Command::Pause { target }).await
}

/// Starts
///
/// Stopped and failed ones run again.
#[utoipa::path(post, path = "/v1/start", tag = "Operating", request_body = TargetRequest,
    responses((status = 200, description = "what was asked for", body = AffectedView),
        (status = 404, description = "there is no such process or instance", body = Problem)))]
pub(super) async fn start(api: State<Api>, body: Body<TargetRequest>) -> Result<Json<AffectedView>, Refusal> {
    pause_or_resume(&api, body, |target| Command::Resume { target }).await
}

async fn pause_or_resume(
    api: &Api,
    body: Body<TargetRequest>,
    command: impl FnOnce(Target) -> Command,
) -> Result<Json<AffectedView>, Refusal> {
    let Json(TargetRequest { target }) = body?;
    let instances = targeted(api, &target).await?;
    api.handle.propose(command(target)).await?;
    Ok(Json(AffectedView { instances }))
}

/// Scales
///
/// Overrides the count of a process until the file's count itself changes; null takes that back.
#[utoipa::path(post, path = "/v1/scale", tag = "Operating", request_body = ScaleRequest,
    responses((status = 200, description = "the request", body = ScaleRequest),
        (status = 404, description = "there is no such process", body = Problem),
        (status = 409, description = "it has no count", body = Problem),
        (status = 422, description = "more than may be", body = Problem)))]
pub(super) async fn scale(api: State<Api>, body: Body<ScaleRequest>) -> Result<Json<ScaleRequest>, Refusal> {
    let Json(request) = body?;
    if request.count.is_some_and(|count| count > MAX_COUNT) {
        return Err(Refusal::too_many_instances(MAX_COUNT));
    }
    Names::read(&api).await?.process(&request.process)?;
    let ScaleRequest { process, count } = request.clone();
    api.handle.propose(Command::Scale { process, count }).await?;
    Ok(Json(request))
}

/// Launches
///
/// An instance of an on-demand process, with arguments for `{arg.NAME}`.
#[utoipa::path(post, path = "/v1/launch", tag = "Operating", params(Key), request_body = LaunchRequest,
    responses((status = 201, description = "the instance; it is listed once it runs", body = LaunchedView),
        (status = 404, description = "there is no such process", body = Problem),
        (status = 409, description = "it is not on demand, or as many live as may", body = Problem),
        (status = 422, description = "an argument is missing, or the key was used for another launch", body = Problem)))]
pub(super) async fn launch(
    api: State<Api>,
    headers: HeaderMap,
    body: Body<LaunchRequest>,
) -> Result<(StatusCode, Json<LaunchedView>), Refusal> {
    let Json(LaunchRequest { process, args, key }) = body?;
    Names::read(&api).await?.process(&process)?;
    let key = idempotency::key(&headers, key)?;
    match api.handle.propose(Command::Launch { process, args, key }).await? {
        Response::Launched(instance) => Ok((StatusCode::CREATED, Json(LaunchedView { instance }))),
        other => Err(Refusal::internal(format!("a launch was answered by {other:?}"))),
    }
}

/// Announces
///
/// An event of kind `announce`, written before something is done by hand.
#[utoipa::path(post, path = "/v1/announce", tag = "Operating", request_body = AnnounceRequest,
    responses((status = 200, description = "it is written", body = DoneView),
        (status = 404, description = "there is no such instance", body = Problem)))]
pub(super) async fn announce(
    api: State<Api>,
    body: Body<AnnounceRequest>,
) -> Result<Json<DoneView>, Refusal> {
    let Json(request) = body?;
    Names::read(&api).await?.instance(&request.instance)?;
    if let Place::There(host) = api.place_of(&request.instance, None)? {
        return Ok(Json(api.tell(&host, "/v1/announce", &[], &request).await?));
    }
    let AnnounceRequest { instance, text } = request;
    let detail = format!("announced for {instance}");
    api.handle.ask(|reply| HostRequest::Announce(instance, text, reply)).await?;
    Ok(Json(DoneView { detail }))
}

/// Reloads
///
/// The agent reads its file again.
#[utoipa::path(post, path = "/v1/reload", tag = "The desired set",
    responses((status = 200, description = "what came of it", body = DoneView),
        (status = 422, description = "the old settings stay in force", body = Problem)))]
pub(super) async fn reload(api: State<Api>) -> Result<Json<DoneView>, Refusal> {
    let detail = api.handle.ask(HostRequest::Reload).await?.map_err(Refusal::reload)?;
    Ok(Json(DoneView { detail }))
}
