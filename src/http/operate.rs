//! What operators do: restart, stop, start, scale, launch, announce, reload.

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderMap, StatusCode};

use super::idempotency;
use super::names::Names;
use super::problem::Refusal;
use super::router::Api;
use crate::agent::handle::HostRequest;
use crate::http::view::{
    AffectedView, AnnounceRequest, DoneView, LaunchRequest, LaunchedView, RestartRequest, RestartedView,
    ScaleRequest, TargetRequest,
};
use crate::state::{Command, Response, Target};

type Body<T> = Result<Json<T>, JsonRejection>;

/// `POST /v1/restart`: new runs in place of the present ones.
pub(super) async fn restart(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body<RestartRequest>,
) -> Result<Json<RestartedView>, Refusal> {
    let Json(request) = body?;
    let key = idempotency::key(&headers, request.key.clone())?;
    let request = RestartRequest { key: None, ..request };
    let keys = api.keys.clone();
    keys.once(key, &request.clone(), replace(api, request)).await.map(Json)
}

async fn replace(api: Api, request: RestartRequest) -> Result<RestartedView, Refusal> {
    let RestartRequest { target, rolling, .. } = request;
    let snapshot = api.snapshots.get().await?;
    let state = api.handle.state.borrow().clone();
    let instances = Names::of(&state, &snapshot).target(&target)?;
    let living = snapshot.instances.iter().filter(|view| view.pid.is_some());
    let runs = living.filter_map(|view| Some((view.instance.clone(), view.run?)));
    let runs = runs.filter(|(id, _)| instances.contains(id)).collect();
    match (rolling, target) {
        (false, _) => api.handle.ask(|reply| HostRequest::Restart(instances.clone(), reply)).await?,
        (true, Target::Process(process)) => {
            let epoch = state.epochs.get(&process).map_or(1, |epoch| epoch.saturating_add(1));
            api.handle.propose(Command::Roll { process, epoch }).await?;
        }
        (true, _) => return Err(Refusal::not_rolling()),
    }
    Ok(RestartedView { instances, runs })
}

/// `POST /v1/stop`: they end and stay down until started.
pub(super) async fn stop(api: State<Api>, body: Body<TargetRequest>) -> Result<Json<AffectedView>, Refusal> {
    pause_or_resume(&api, body, |target| Command::Pause { target }).await
}

/// `POST /v1/start`: stopped and failed ones run again.
pub(super) async fn start(api: State<Api>, body: Body<TargetRequest>) -> Result<Json<AffectedView>, Refusal> {
    pause_or_resume(&api, body, |target| Command::Resume { target }).await
}

async fn pause_or_resume(
    api: &Api,
    body: Body<TargetRequest>,
    command: impl FnOnce(Target) -> Command,
) -> Result<Json<AffectedView>, Refusal> {
    let Json(TargetRequest { target }) = body?;
    let instances = Names::read(api).await?.target(&target)?;
    api.handle.propose(command(target)).await?;
    Ok(Json(AffectedView { instances }))
}

/// `POST /v1/scale`
pub(super) async fn scale(api: State<Api>, body: Body<ScaleRequest>) -> Result<Json<ScaleRequest>, Refusal> {
    let Json(request) = body?;
    Names::read(&api).await?.process(&request.process)?;
    let ScaleRequest { process, count } = request.clone();
    api.handle.propose(Command::Scale { process, count }).await?;
    Ok(Json(request))
}

/// `POST /v1/launch`
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

/// `POST /v1/announce`: an event of kind `announce`, written before something is done by hand.
pub(super) async fn announce(
    api: State<Api>,
    body: Body<AnnounceRequest>,
) -> Result<Json<DoneView>, Refusal> {
    let Json(AnnounceRequest { instance, text }) = body?;
    Names::read(&api).await?.instance(&instance)?;
    let detail = format!("announced for {instance}");
    api.handle.ask(|reply| HostRequest::Announce(instance, text, reply)).await?;
    Ok(Json(DoneView { detail }))
}

/// `POST /v1/reload`: the agent reads its file again.
pub(super) async fn reload(api: State<Api>) -> Result<Json<DoneView>, Refusal> {
    let detail = api.handle.ask(HostRequest::Reload).await?.map_err(Refusal::reload)?;
    Ok(Json(DoneView { detail }))
}
