//! Reading the directory: which runs live where, from this host's own copy of the replicated state.
//!
//! Owns the answer's shape. It is answered at memory speed and also without a quorum; how old the copy may be
//! is told by `bigbrother-index`, the last change that it has.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderName;
use axum::response::AppendHeaders;
use serde::Deserialize;

use super::problem::Refusal;
use super::router::Api;
use crate::http::view::{DirectoryView, PortView};
use crate::spec::{HostName, InstanceId, ProcessName};
use crate::state::{self, Entry};

/// The state index of the copy that answered.
pub(super) const INDEX: HeaderName = HeaderName::from_static("bigbrother-index");

/// What `GET /v1/directory` may be narrowed to.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    process: Option<ProcessName>,
    host: Option<HostName>,
    ready: Option<bool>,
}

type Listed = (AppendHeaders<[(HeaderName, String); 1]>, Json<Vec<DirectoryView>>);

/// `GET /v1/directory?process=&host=&ready=`
pub(super) async fn list(
    api: State<Api>,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Listed, Refusal> {
    let Query(filter) = filter?;
    let state = api.handle.state.borrow().clone();
    let wanted = |(_, entry): &(&InstanceId, &Entry)| {
        filter.host.as_ref().is_none_or(|host| entry.host == *host)
            && filter.ready.is_none_or(|ready| entry.ready.is_some() == ready)
    };
    let entries: Vec<DirectoryView> = match &filter.process {
        Some(name) => state::of_process(&state.directory, name).filter(wanted).map(view).collect(),
        None => state.directory.iter().filter(wanted).map(view).collect(),
    };
    Ok((AppendHeaders([(INDEX, state.index.to_string())]), Json(entries)))
}

fn view((instance, entry): (&InstanceId, &Entry)) -> DirectoryView {
    let port = |(name, (protocol, port)): (&String, &(crate::spec::Protocol, u16))| {
        (name.clone(), PortView { protocol: *protocol, port: *port })
    };
    DirectoryView {
        instance: instance.clone(),
        process: instance.process.clone(),
        host: entry.host.clone(),
        run: entry.run.0,
        address: entry.address.clone(),
        ports: entry.ports.iter().map(port).collect(),
        ready: entry.ready.is_some(),
        started: entry.started,
    }
}
