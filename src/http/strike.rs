//! What `kill-test` asks of an agent: a signal to a run of its host, or the end of the whole host.
//!
//! Whoever may use the Unix socket may run and stop programs anyway; announced first, like a blow from outside.

use std::time::Duration;

use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, State};
use axum::{Extension, Json};
use nix::sys::signal::Signal;

use super::elsewhere::Place;
use super::names::Names;
use super::problem::Refusal;
use super::router::Api;
use crate::agent::handle::{HostRequest, HostSnapshot};
use crate::agent::strike::{self, Held};
use crate::cluster::wire::Outlet;
use crate::http::view::{AffectedView, Problem, StrikeRequest, StruckView};
use crate::spec::HostName;

/// The host dies when the answer has gone out; by then in any case, though whoever asked reads nothing.
const AFTERWARDS: Duration = Duration::from_secs(2);
/// Signals that a game day needs.
const SIGNALS: [Signal; 4] = [Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGCONT, Signal::SIGSEGV];

/// Strikes a run
///
/// A signal to the main process of exactly this run, to see what becomes of it.
#[utoipa::path(post, path = "/v1/strike", tag = "Testing", request_body = StrikeRequest,
    responses((status = 200, description = "whether it was there", body = StruckView),
        (status = 404, description = "there is no such instance or host", body = Problem),
        (status = 422, description = "not that signal", body = Problem)))]
pub(super) async fn run(
    api: State<Api>,
    body: Result<Json<StrikeRequest>, JsonRejection>,
) -> Result<Json<StruckView>, Refusal> {
    let Json(request) = body?;
    let signal = request.signal.parse::<Signal>().ok().filter(|signal| SIGNALS.contains(signal));
    let signal = signal.ok_or_else(|| Refusal::bad_signal(&request.signal))?;
    Names::read(&api).await?.instance(&request.instance)?;
    if let Place::There(host) = api.place_of(&request.instance, request.host.as_ref())? {
        return Ok(Json(api.tell(&host, "/v1/strike", &[], &request).await?));
    }
    let failed = |error: std::io::Error| Refusal::internal(format!("cannot send {signal}: {error}"));
    let missed = Ok(Json(StruckView { struck: false }));
    let Some(pid) = main_process(&*api.snapshots.get().await?, &request) else { return missed };
    let Some(held) = Held::take(pid).map_err(failed)? else { return missed };
    // Asked once more: what is held now is the run's process, whatever became of the pid before.
    if main_process(&*api.snapshots.get().await?, &request) != Some(pid) {
        return missed;
    }
    Ok(Json(StruckView { struck: held.strike(signal).map_err(failed)? }))
}

fn main_process(snapshot: &HostSnapshot, request: &StrikeRequest) -> Option<i32> {
    let mut views = snapshot.instances.iter();
    views.find(|view| view.instance == request.instance && view.run == Some(request.run))?.pid
}

/// Strikes a host
///
/// Kills all its runs, its keeper and its agent at once, just after the answer.
#[utoipa::path(post, path = "/v1/hosts/{host}/strike", tag = "Testing",
    params(("host" = HostName, Path, description = "a host")),
    responses((status = 200, description = "the runs that are killed", body = AffectedView),
        (status = 404, description = "there is no such host", body = Problem)))]
pub(super) async fn host(
    api: State<Api>,
    outlet: Option<Extension<Outlet>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<AffectedView>, Refusal> {
    let name: HostName = name?.0.parse()?;
    if let Place::There(host) = api.place_of_host(Some(&name))? {
        return Ok(Json(api.tell(&host, &format!("/v1/hosts/{host}/strike"), &[], &()).await?));
    }
    let snapshot = api.snapshots.get().await?;
    let runs: Vec<_> =
        snapshot.instances.iter().filter_map(|view| Some((view.instance.clone(), view.pid?))).collect();
    for (instance, _) in &runs {
        let text = format!("kill-test kills the host {name}");
        api.handle.ask(|reply| HostRequest::Announce(instance.clone(), text, reply)).await?;
    }
    let keeper = snapshot.keeper.as_ref().map(|keeper| keeper.pid);
    tracing::warn!("kill-test kills this host: all runs, the keeper and this agent");
    let instances = runs.iter().map(|(instance, _)| instance.clone()).collect();
    let written = outlet.map(|Extension(outlet)| outlet.written());
    tokio::spawn(async move {
        if let Some(written) = written {
            // Either way it is time.
            let _ = tokio::time::timeout(AFTERWARDS, written).await;
        }
        tokio::task::spawn_blocking(move || strike::everything(&runs, keeper)).await
    });
    Ok(Json(AffectedView { instances }))
}
