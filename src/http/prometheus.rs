//! What Prometheus asks for: the metrics of this host and of any other, and what there is to be scraped.
//!
//! Owns nothing. `host.api` is on loopback, so one agent stands for all: the targets that it names for the hosts of
//! the cluster are its own address with the path of each host's metrics, which come through the tunnel. The ports of
//! processes are named as they are, to be reached from where Prometheus runs.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::elsewhere::Place;
use super::hosts::{Named, named};
use super::problem::Refusal;
use super::router::Api;
use super::status::{PRIMARY, alone, count};
use crate::http::view::Problem;
use crate::metrics::{self, ClusterReading};
use crate::spec::{HostName, Protocol};
use crate::state;

/// How long the supervision loop is waited for before what is known without it is shown.
const LOOP: Duration = Duration::from_secs(2);
/// The name that a process gives to the port of its metrics.
const PORT: &str = "metrics";

/// Targets that have their labels in common: <https://prometheus.io/docs/prometheus/latest/http_sd/>.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct Group {
    targets: Vec<String>,
    labels: BTreeMap<String, String>,
}

/// Metrics
///
/// In Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "Observing",
    responses((status = 200, description = "the metrics", body = String, content_type = "text/plain")))]
pub(super) async fn scrape(api: State<Api>) -> Result<Response, Refusal> {
    let (snapshot, cluster) = tokio::join!(tokio::time::timeout(LOOP, api.snapshots.get()), standing(&api));
    // Without an answer: bigbrother_supervision_loop_up is 0.
    let snapshot = snapshot.ok().and_then(Result::ok);
    let metrics = api.handle.metrics.clone();
    let text = tokio::task::spawn_blocking(move || metrics.render(snapshot.as_deref(), &cluster))
        .await
        .map_err(|e| Refusal::internal(format!("the metrics could not be read: {e}")))?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

/// Metrics of a host
///
/// The same of any host of the cluster.
#[utoipa::path(get, path = "/v1/hosts/{host}/metrics", tag = "Observing",
    params(("host" = HostName, Path, description = "a host")),
    responses((status = 200, description = "the metrics", body = String, content_type = "text/plain"),
        (status = 404, description = "there is no such host", body = Problem)))]
pub(super) async fn of_host(api: State<Api>, name: Named) -> Result<Response, Refusal> {
    let host = named(&api, name)?;
    match api.place_of_host(Some(&host))? {
        Place::Here => scrape(api).await,
        Place::There(host) => api.pass_on_get(&host, "/metrics").await,
    }
}

/// What Prometheus is to scrape
///
/// For its HTTP service discovery: every host, through the agent that is asked, and every run with a TCP port named
/// `metrics`.
#[utoipa::path(get, path = "/v1/prometheus/targets", tag = "Observing",
    responses((status = 200, description = "the targets", body = Vec<Group>)))]
pub(super) async fn targets(api: State<Api>, headers: HeaderMap) -> Result<Json<Vec<Group>>, Refusal> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    // As Prometheus reaches this agent for the targets, so it does for the metrics.
    let here: Authority =
        host.parse().map_err(|_| Refusal::query(format!("the header Host is no address: {host:?}")))?;
    let state = api.handle.state.borrow().clone();
    Ok(Json(groups(&state, &api.handle.cluster, here.as_str())))
}

/// The agents, in order, then the runs that have metrics of their own.
fn groups(state: &state::State, cluster: &str, here: &str) -> Vec<Group> {
    let own = |labels: &[(&str, String)]| -> BTreeMap<String, String> {
        let labels = [&[("cluster", cluster.to_owned())], labels].concat();
        labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    };
    let agent = |(name, host): (&HostName, &state::Host)| Group {
        targets: vec![here.to_owned()],
        labels: own(&[
            ("host", name.to_string()),
            ("instance", name.to_string()),
            ("__metrics_path__", format!("/v1/hosts/{name}/metrics")),
            ("__meta_bigbrother_up", host.up.to_string()),
        ]),
    };
    let runs = state.directory.iter().filter_map(|(id, entry)| {
        let (_, port) = entry.ports.get(PORT).filter(|(protocol, _)| *protocol == Protocol::Tcp)?;
        let mut labels = own(&[
            ("host", entry.host.to_string()),
            ("process", id.process.to_string()),
            ("instance", id.to_string()),
            ("__meta_bigbrother_ready", entry.ready.is_some().to_string()),
        ]);
        let process = state.spec.processes.get(&id.process);
        for (name, value) in process.into_iter().flat_map(|process| &process.labels) {
            let Some(name) = label_name(name) else { continue };
            labels.entry(name).or_insert_with(|| value.clone());
        }
        Some(Group { targets: vec![endpoint(&entry.address, port)], labels })
    });
    state.hosts.iter().map(agent).chain(runs).collect()
}

fn endpoint(address: &str, port: u16) -> String {
    if address.contains(':') && !address.starts_with('[') {
        return format!("[{address}]:{port}");
    }
    format!("{address}:{port}")
}

/// One illegal name would cost Prometheus the whole list. Those with two underscores in front are its own, and say
/// where to scrape.
fn label_name(name: &str) -> Option<String> {
    let legal = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let mut written: String = name.chars().map(legal).collect();
    if written.starts_with(|c: char| c.is_ascii_digit()) {
        written.insert(0, '_');
    }
    (!written.is_empty() && !written.starts_with("__")).then_some(written)
}

/// How the cluster stands. Only the primary tells who is silent: it knows without asking anybody.
async fn standing(api: &Api) -> ClusterReading {
    let ring = &api.handle.ring;
    let state = api.handle.state.borrow().clone();
    let primary = ring.leads().is_none_or(|leads| *leads.borrow());
    let watched = if primary { ring.watched(PRIMARY).await.ok() } else { None };
    let hosts = count(&state, watched.as_ref(), ring.is_alone());
    let standing = ring.standing().unwrap_or_else(|| alone(api, &state));
    ClusterReading {
        primary,
        quorum: standing.quorum,
        term: standing.term,
        index: state.index,
        entries: state.directory.len() as u64,
        up: hosts.up,
        down: hosts.down,
        silent: hosts.silent.unwrap_or_default(),
        braked: watched.map_or(0, |watched| watched.brake.len() as u64),
        attached: ring.attached_here(),
        status: ring.statuses().counts(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_names_that_prometheus_takes() {
        let shown = |name| label_name(name).unwrap_or_default();
        assert_eq!(["zone", "build.id", "3d", "größe"].map(shown), ["zone", "build_id", "_3d", "gr__e"]);
        assert_eq!(["__address__", "..secret", ""].map(shown), ["", "", ""]);
    }

    #[test]
    fn the_targets_are_every_host_and_every_run_with_a_port_named_metrics() {
        let file = "[process.zone]\ncommand = [\"/bin/true\"]\n\
                    labels = { team = \"ground\", \"build.id\" = \"7\", host = \"x\", __address__ = \"x\" }\n";
        let context = crate::config::Context { hostname: "alpha".to_owned(), host_override: None };
        let spec = crate::config::parse(file, "cluster.toml", &context).unwrap().spec;
        let mut state = state::State { spec, ..state::State::default() };
        for name in ["alpha", "beta"] {
            let facts = state::HostFacts { machine_id: name.to_owned(), ..Default::default() };
            let command = state::Command::JoinHost { host: name.parse().unwrap(), facts };
            state.apply(&state::Envelope { stamp_ms: 1, command }).unwrap();
        }
        state.hosts.get_mut(&"beta".parse::<HostName>().unwrap()).unwrap().up = false;
        let ports =
            |name: &str, protocol| state::Ports::from(&BTreeMap::from([(name.to_owned(), (protocol, 9001))]));
        let entry = |ports, ready| state::Entry {
            host: "beta".parse().unwrap(),
            run: crate::keeper::protocol::RunId(7),
            hash: Default::default(),
            address: "fd00::2".to_owned(),
            ports,
            started: 3,
            ready,
        };
        for (id, entry) in [
            ("zone.0", entry(ports("metrics", Protocol::Tcp), None)),
            ("zone.1", entry(ports("metrics", Protocol::Udp), Some(4))),
            ("zone.2", entry(ports("game", Protocol::Tcp), Some(4))),
        ] {
            state.directory.insert(id.parse().unwrap(), entry);
        }
        let agent = |name: &str, up: &str| {
            serde_json::json!({ "targets": ["localhost:7610"], "labels": {
                "cluster": "pirates", "host": name, "instance": name, "__meta_bigbrother_up": up,
                "__metrics_path__": format!("/v1/hosts/{name}/metrics"),
            }})
        };
        let zone = serde_json::json!({ "targets": ["[fd00::2]:9001"], "labels": {
            "cluster": "pirates", "host": "beta", "process": "zone", "instance": "zone.0",
            "__meta_bigbrother_ready": "false", "team": "ground", "build_id": "7",
        }});
        let shown = serde_json::to_value(groups(&state, "pirates", "localhost:7610")).unwrap();
        assert_eq!(shown, serde_json::json!([agent("alpha", "true"), agent("beta", "false"), zone]));
    }

    #[test]
    fn addresses_of_version_6_stand_in_brackets() {
        assert_eq!(endpoint("10.0.0.1", 9), "10.0.0.1:9");
        assert_eq!(endpoint("fd00::1", 9), "[fd00::1]:9");
        assert_eq!(endpoint("[fd00::1]", 9), "[fd00::1]:9");
    }
}
