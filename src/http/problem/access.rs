//! Refusals of who may not, or not so often: 401, 403, 429, and what they say in `WWW-Authenticate`.

use axum::http::{HeaderValue, StatusCode};

use super::Refusal;
use crate::state::Role;

/// No token was shown.
const NO_TOKEN: &str = "no-token";
/// The token is not good for anything (any more).
const BAD_TOKEN: &str = "bad-token";

impl Refusal {
    /// Without a token, where one is needed.
    pub(in crate::http) fn no_token(role: Role) -> Self {
        let detail = format!(
            "a token with the role {role} is needed: `bigbrother token create NAME --role {role}` on a host makes one, \
             --token-file or BIGBROTHER_TOKEN shows it; or use the Unix socket, api.sock in host.runtime_dir"
        );
        Refusal::new(StatusCode::UNAUTHORIZED, NO_TOKEN, "no token", detail)
    }

    /// One that was never there, was revoked or has expired: which of these is nobody's business who has no token.
    pub(in crate::http) fn bad_token() -> Self {
        let detail = "the token is not known here, is revoked or has expired; on a host, `bigbrother token list` \
                      shows those that hold";
        Refusal::new(StatusCode::UNAUTHORIZED, BAD_TOKEN, "not a token", detail)
    }

    /// A token that holds, for less.
    pub(in crate::http) fn role(needed: Role, has: Role) -> Self {
        let detail = format!("this needs a token with the role {needed}; the one that was shown has {has}");
        Refusal::new(StatusCode::FORBIDDEN, "role", "not with this role", detail)
    }

    /// More than may be asked in this time.
    pub(in crate::http) fn too_often(what: &str) -> Self {
        let detail = format!("{what}: wait a second and ask again, more slowly");
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too-often", "too many requests", detail)
    }

    /// RFC 6750: how to ask instead.
    pub(super) fn challenge(&self) -> Option<HeaderValue> {
        let challenge = match (self.status, &*self.kind) {
            (StatusCode::UNAUTHORIZED, BAD_TOKEN) => "Bearer realm=\"bigbrother\", error=\"invalid_token\"",
            (StatusCode::UNAUTHORIZED, _) => "Bearer realm=\"bigbrother\"",
            (StatusCode::FORBIDDEN, "role") => "Bearer realm=\"bigbrother\", error=\"insufficient_scope\"",
            _ => return None,
        };
        Some(HeaderValue::from_static(challenge))
    }
}
