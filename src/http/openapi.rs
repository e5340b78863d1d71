//! `GET /v1/openapi.json`: the API described for programs, OpenAPI 3.1.
//!
//! Owns the list of the handlers. What a route takes and gives stands above its handler, what holds for all is in
//! `rules`, names are in `names`: a test holds the document and the routes together, and another one real answers to
//! the document (tests/agents/openapi.rs).

use std::sync::OnceLock;

use axum::body::Bytes;
use axum::http::header;
use axum::response::IntoResponse;
use utoipa::OpenApi;

use super::{
    audit, directory, events, hosts, instances, logs, operate, peers, prometheus, router, spec, status,
    strike, tokens, watchers,
};

mod names;
mod rules;

use rules::ForAll;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Big Brother",
        description = "Any host's agent answers, none is special. Times are RFC 3339 UTC, spans are milliseconds in \
                       fields named `_ms`; new fields may be added. docs/api.md is the tutorial.",
        license(name = "MIT OR Apache-2.0")
    ),
    paths(
        read,
        router::healthz,
        status::read,
        directory::list,
        watchers::follow,
        directory::one,
        directory::leader,
        directory::processes,
        instances::list,
        instances::one,
        instances::hang_report,
        instances::players,
        logs::read,
        hosts::list,
        hosts::drain,
        hosts::undrain,
        hosts::declare_down,
        strike::host,
        strike::run,
        prometheus::scrape,
        prometheus::of_host,
        prometheus::targets,
        peers::list,
        peers::add,
        peers::remove,
        peers::promote,
        events::read,
        spec::current,
        spec::apply,
        operate::restart,
        operate::stop,
        operate::start,
        operate::scale,
        operate::launch,
        operate::announce,
        operate::reload,
        tokens::list,
        tokens::create,
        tokens::revoke,
        audit::list,
    ),
    tags(
        (name = "Directory", description = "where everything is"),
        (name = "Instances", description = "each one, by the host that it is on"),
        (name = "Hosts and peers"),
        (name = "The desired set"),
        (name = "Operating"),
        (name = "Observing"),
        (name = "Access", description = "who may, and who did"),
        (name = "Testing", description = "blows, to see what becomes of them"),
    ),
    modifiers(&ForAll)
)]
struct Document;

/// This document
#[utoipa::path(get, path = "/v1/openapi.json", tag = "Observing",
    responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
pub(super) async fn read() -> impl IntoResponse {
    static TEXT: OnceLock<Bytes> = OnceLock::new();
    let text = TEXT.get_or_init(|| document().to_json().unwrap_or_default().into());
    ([(header::CONTENT_TYPE, "application/json")], text.clone())
}

fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use utoipa::openapi::RefOr;
    use utoipa::openapi::path::Operation;

    /// Method and path of every route, as the router has them.
    fn routes() -> BTreeSet<String> {
        let source = include_str!("router.rs");
        let calls = source.split(".route(\"").skip(1).filter_map(|rest| rest.split_once("\", "));
        let calls = calls.filter(|(path, _)| path.starts_with('/')).map(|(path, rest)| {
            let methods = rest.split('\n').next().unwrap_or_default();
            let known = ["get", "post", "delete"];
            let used = known.iter().filter(move |method| methods.contains(&format!("{method}(")));
            used.map(move |method| format!("{method} {path}")).collect::<Vec<_>>()
        });
        calls.flatten().collect()
    }

    fn described() -> Vec<(String, Operation)> {
        let mut found = Vec::new();
        for (path, item) in document().paths.paths {
            for (method, operation) in [("get", item.get), ("post", item.post), ("delete", item.delete)] {
                found.extend(operation.map(|operation| (format!("{method} {path}"), operation)));
            }
        }
        found
    }

    #[test]
    fn every_route_is_in_the_document_and_nothing_else() {
        let routes = routes();
        assert!(routes.len() >= 35 && routes.contains("post /v1/apply"), "{routes:?}");
        let described: BTreeSet<String> = described().into_iter().map(|(route, _)| route).collect();
        let missing: Vec<_> = routes.difference(&described).collect();
        let invented: Vec<_> = described.difference(&routes).collect();
        assert!(missing.is_empty() && invented.is_empty(), "missing: {missing:?}, invented: {invented:?}");
    }

    #[test]
    fn every_refusal_is_a_problem_and_every_answer_is_described() {
        let mut names = BTreeSet::new();
        for (route, operation) in described() {
            assert!(names.insert(operation.operation_id), "{route} has the name of another one");
            assert!(operation.summary.is_some() && operation.tags.is_some(), "{route}");
            for (status, response) in &operation.responses.responses {
                let RefOr::T(response) = response else { panic!("{route}: {status}") };
                let types: Vec<&str> = response.content.keys().map(String::as_str).collect();
                match status.as_str() {
                    "304" => assert!(types.is_empty(), "{route}: {status}: {types:?}"),
                    status if status >= "400" => {
                        assert_eq!(types, ["application/problem+json"], "{route}: {status}");
                    }
                    status => assert!(!types.is_empty(), "{route}: {status} has no body"),
                }
            }
        }
    }

    #[test]
    fn the_document_names_its_version_and_what_it_refers_to_is_there() {
        let text = document().to_json().expect("JSON");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert!(value["openapi"].as_str().expect("a version").starts_with("3.1"), "{}", value["openapi"]);
        assert!(!text.contains("\"in\":\"query\",\"required\":true"), "no query has to be there");
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap_or_default();
            assert!(value["components"]["schemas"].get(name).is_some(), "there is no {name}");
        }
        let runs = &value["paths"]["/v1/directory"]["get"];
        let fields = runs["parameters"].as_array().expect("parameters");
        let fields = fields.iter().find(|one| one["name"] == "fields").expect("fields");
        let pattern = fields["schema"]["pattern"].as_str().expect("a pattern");
        assert!(pattern.contains("|ports|"), "{pattern}");
        assert!(runs["responses"].get("304").is_some() && runs["responses"].get("400").is_some(), "{runs}");
    }
}
