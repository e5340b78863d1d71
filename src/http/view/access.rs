//! The shapes that are about tokens and the audit trail.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::spec::{HostName, TokenName};
use crate::state::Role;

/// The body of `POST /v1/tokens`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// What it is called; no other one may be.
    pub name: TokenName,
    /// What it is good for.
    pub role: Role,
    /// For how long, at most ten years; left out: until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 315360000000u64)]
    pub expires_in_ms: Option<u64>,
}

/// The answer to `POST /v1/tokens`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewTokenView {
    /// What it is called.
    pub name: TokenName,
    /// What it is good for.
    pub role: Role,
    /// The secret itself, which nobody can tell again.
    pub token: String,
    /// From when on it is good for nothing; null: it does not expire.
    pub expires_at: Option<String>,
}

/// One element of `GET /v1/tokens`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    /// What it is called.
    pub name: TokenName,
    /// What it is good for.
    pub role: Role,
    /// When it was made.
    pub created_at: String,
    /// From when on it is good for nothing; null: it does not expire.
    pub expires_at: Option<String>,
    /// It is good for nothing any more.
    pub expired: bool,
}

/// One element of `GET /v1/audit`: a change that was asked for, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditView {
    /// When it was answered.
    pub at: String,
    /// The host whose agent was asked.
    pub host: HostName,
    /// `token NAME`, `unix uid=N`, `host NAME`, `nobody`, who showed no token that holds; beside the API `instance NAME`
    /// (a game process) and `SIGHUP`.
    pub who: String,
    /// The address, or `local`.
    pub from: String,
    /// The agent that passed it on; null: it was asked for here.
    pub via: Option<HostName>,
    /// `POST /v1/scale`; `launch` by a game process, `reload` by SIGHUP.
    pub what: String,
    /// The body, if it is JSON and not large.
    #[schema(value_type = serde_json::Value)]
    pub request: Option<serde_json::Value>,
    /// The HTTP status of the answer, or what it would be.
    pub status: u16,
    /// Why it was refused; null: it was not.
    pub refused: Option<String>,
    /// Of `apply` and `scale`: what it changed; of `reload`: what came of it.
    #[schema(value_type = serde_json::Value)]
    pub change: Option<serde_json::Value>,
    /// Refusals, and launches by game processes, before this one that are not written down, because there were too many.
    #[serde(default)]
    pub missed: u64,
}
