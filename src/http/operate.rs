//! What operators do: restart, stop, start, scale, launch, announce, reload.

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderMap, StatusCode};

use super::names::Names;
use super::problem::Refusal;
use super::router::Api;
use crate::agent::handle::HostRequest;
use crate::http::view::{
    AffectedView, AnnounceRequest, DoneView, LaunchRequest, LaunchedView, ScaleRequest, TargetRequest,
};
use crate::state::{Command, Response, Target};

type Body<T> = Result<Json<T>, JsonRejection>;

/// `POST /v1/restart`: new runs in place of the present ones.
pub(super) async fn restart(
    api: State<Api>,
    body: Body<TargetRequest>,
) -> Result<Json<AffectedView>, Refusal> {
    let Json(TargetRequest { target }) = body?;
    let instances = Names::read(&api).await?.target(&target)?;
    api.handle.ask(|reply| HostRequest::Restart(instances.clone(), reply)).await?;
    Ok(Json(AffectedView { instances }))
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
    let header = headers.get("idempotency-key").and_then(|value| value.to_str().ok());
    let key = key.or_else(|| header.map(str::to_owned));
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
