//! Which role each route wants: one row for each, and nothing without a row is answered.
//!
//! Pure. Who may apply a spec may run programs as any account that the hosts allow, so what leads there is
//! [`Role::Admin`]'s: the spec, the peers, the tokens. Who operates starts, stops, moves and kills what is declared.
//! Called by `auth`.

use axum::http::Method;

use crate::state::Role;
use crate::state::Role::{Admin, Operate, Read};

/// A route and what it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// `GET` (and `HEAD`), `POST` or `DELETE`.
    pub method: &'static str,
    /// As the router has it.
    pub path: &'static str,
    /// Who may.
    pub role: Role,
}

/// Answered to whoever asks, so that a load balancer needs no token.
pub(super) const OPEN: &str = "/v1/healthz";

const fn get(path: &'static str) -> Right {
    Right { method: "GET", path, role: Read }
}

const fn post(path: &'static str, role: Role) -> Right {
    Right { method: "POST", path, role }
}

/// Every route.
pub const RIGHTS: &[Right] = &[
    get("/metrics"),
    get(OPEN),
    get("/v1/status"),
    get("/v1/directory"),
    get("/v1/openapi.json"),
    get("/v1/directory/watch"),
    get("/v1/directory/{id}"),
    get("/v1/directory/{id}/leader"),
    get("/v1/processes"),
    get("/v1/instances"),
    get("/v1/instances/{id}"),
    get("/v1/instances/{id}/hang-report"),
    get("/v1/instances/{id}/players"),
    get("/v1/instances/{id}/logs"),
    get("/v1/hosts"),
    get("/v1/hosts/{host}/metrics"),
    get("/v1/prometheus/targets"),
    get("/v1/peers"),
    get("/v1/events"),
    get("/v1/spec"),
    post("/v1/restart", Operate),
    post("/v1/stop", Operate),
    post("/v1/start", Operate),
    post("/v1/scale", Operate),
    post("/v1/launch", Operate),
    post("/v1/announce", Operate),
    post("/v1/strike", Operate),
    post("/v1/hosts/{host}/strike", Operate),
    post("/v1/hosts/{host}/drain", Operate),
    post("/v1/hosts/{host}/undrain", Operate),
    post("/v1/hosts/{host}/declare-down", Admin),
    post("/v1/peers/add", Admin),
    post("/v1/peers/remove", Admin),
    post("/v1/peers/promote", Admin),
    post("/v1/apply", Admin),
    post("/v1/reload", Admin),
    Right { method: "GET", path: "/v1/tokens", role: Admin },
    post("/v1/tokens", Admin),
    Right { method: "DELETE", path: "/v1/tokens/{name}", role: Admin },
    Right { method: "GET", path: "/v1/audit", role: Admin },
];

/// Who may; `None`: there is no such route, or it does not take the method.
pub(super) fn role(method: &Method, path: &str) -> Option<Role> {
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    RIGHTS.iter().find(|right| right.path == path && right.method == method).map(|right| right.role)
}

/// What a route takes, for the header `Allow`; "": there is none.
pub(super) fn allowed(path: &str) -> String {
    let methods = RIGHTS.iter().filter(|right| right.path == path).map(|right| match right.method {
        "GET" => "GET,HEAD",
        method => method,
    });
    methods.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_has_its_role_and_every_role_its_route() {
        let source = include_str!("router.rs");
        let mut routed: Vec<(String, String)> = Vec::new();
        for rest in source.split(".route(\"/").skip(1) {
            let (path, handlers) = rest.split_once('"').expect("a path");
            let handlers = handlers.split("\n        .").next().unwrap_or_default();
            for (word, method) in [("get(", "GET"), ("post(", "POST"), ("delete(", "DELETE"), ("put(", "PUT")]
            {
                if handlers.contains(word) {
                    routed.push((method.to_owned(), format!("/{path}")));
                }
            }
        }
        let mut known: Vec<(String, String)> =
            RIGHTS.iter().map(|right| (right.method.to_owned(), right.path.to_owned())).collect();
        routed.sort();
        known.sort();
        assert_eq!(routed, known);
    }

    #[test]
    fn who_only_looks_changes_nothing_and_who_operates_declares_nothing() {
        for right in RIGHTS {
            let (changes, role) = (right.method != "GET", right.role);
            assert!(!changes || role > Read, "{right:?}");
            let declares = ["apply", "peers/", "tokens", "audit", "reload", "declare-down"];
            let declares = declares.iter().any(|word| right.path.contains(word));
            assert_eq!(declares, role == Admin, "{right:?}");
        }
        assert_eq!(role(&Method::HEAD, "/v1/status"), Some(Read));
        assert_eq!(role(&Method::PUT, "/v1/status"), None);
        assert_eq!(allowed("/v1/tokens"), "GET,HEAD,POST");
    }
}
