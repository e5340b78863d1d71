//! The shapes that are about hosts and peers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::spec::HostName;

/// How many hosts there are, in `GET /v1/status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostCounts {
    /// Those that count as up.
    pub up: u64,
    /// Those that were declared down and are not back.
    pub down: u64,
    /// Those of the first that the primary does not hear now; null when no primary answers.
    pub silent: Option<u64>,
}

/// One element of `GET /v1/hosts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostView {
    /// Its name.
    pub host: HostName,
    /// Instances may be placed there; false: it was declared down and has not joined again.
    pub up: bool,
    /// It is to be empty.
    pub drained: bool,
    /// Which life of the host.
    pub incarnation: u64,
    /// `primary`, `peer` (it votes), `learner` or `attached`.
    pub role: String,
    /// What clients reach it by.
    pub address: String,
    /// Where its agent listens for other agents; empty: nowhere.
    pub agent: String,
    /// Labels for placement.
    pub labels: BTreeMap<String, String>,
    /// What instances may take; no entry: no bound.
    pub capacity: BTreeMap<String, u64>,
    /// How many instances belong there.
    pub instances: u64,
    /// For how long the primary has not heard it; null when that is not known, or it is down.
    pub silent_ms: Option<u64>,
    /// The version of its program; null when its agent does not answer.
    pub version: Option<String>,
}

/// One element of `GET /v1/peers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PeerView {
    /// Its name.
    pub host: HostName,
    /// Where its agent listens for the other peers.
    pub address: String,
    /// Its number, which no other peer ever has.
    pub id: u64,
    /// `voter` or `learner`.
    pub role: String,
    /// It is the primary.
    pub primary: bool,
    /// For how long it has not answered the primary, or without one the peer that was asked; null when that one does
    /// not know.
    pub silent_ms: Option<u64>,
    /// Why it does not answer the peer that was asked; null when it does, or a primary tells.
    #[serde(default)]
    pub unreachable: Option<String>,
    /// What to do about a voter that is dead for `dead_voter_after`, and that no other peer replaces by itself; null when
    /// there is nothing to do, or no primary to know.
    #[serde(default)]
    pub suggestion: Option<String>,
    /// The last entry that it is known to have; null when that is not known.
    pub index: Option<u64>,
}

/// The body of `POST /v1/peers/add`, `/v1/peers/remove` and `/v1/peers/promote`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PeerRequest {
    /// Which host.
    pub host: HostName,
    /// Where its agent listens, `host:port`: to add it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}
