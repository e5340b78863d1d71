//! Tokens: making, listing, revoking them. The state keeps them, so that they hold and are revoked on all hosts.
//!
//! A secret exists in one answer and nowhere else.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::auth;
use super::problem::Refusal;
use super::router::Api;
use crate::agent::chronicle::rfc3339;
use crate::agent::replica::wall_ms;
use crate::http::view::{DoneView, NewTokenView, Problem, TokenRequest, TokenView};
use crate::spec::TokenName;
use crate::state::Command;

/// The longest that a token may hold that expires at all: a longer span is a mistake.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The tokens
///
/// Without their secrets.
#[utoipa::path(get, path = "/v1/tokens", tag = "Access",
    responses((status = 200, description = "in order of their names", body = Vec<TokenView>)))]
pub(super) async fn list(api: State<Api>) -> Json<Vec<TokenView>> {
    let (state, now_ms) = (api.handle.state.borrow().clone(), wall_ms());
    let view = |(name, token): (&TokenName, &crate::state::ApiToken)| TokenView {
        name: name.clone(),
        role: token.role,
        created_at: rfc3339(token.created_ms),
        expires_at: token.expires_ms.map(rfc3339),
        expired: !token.holds(now_ms),
    };
    Json(state.api_tokens.iter().map(view).collect())
}

/// Makes a token
///
/// The answer has its secret, this once.
#[utoipa::path(post, path = "/v1/tokens", tag = "Access", request_body = TokenRequest,
    responses((status = 201, description = "the token", body = NewTokenView),
        (status = 409, description = "the name is taken, or there are as many as may be", body = Problem),
        (status = 422, description = "not for that long", body = Problem)))]
pub(super) async fn create(
    api: State<Api>,
    body: Result<Json<TokenRequest>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(TokenRequest { name, role, expires_in_ms }) = body?;
    let span = expires_in_ms.map(Duration::from_millis);
    if span.is_some_and(|span| span.is_zero() || span > LONGEST) {
        return Err(Refusal::bad_span());
    }
    let expires_ms = expires_in_ms.map(|span| wall_ms().saturating_add(span));
    let token = auth::new_secret()?;
    let hash = auth::hash(&token);
    api.handle.propose(Command::TokenCreate { name: name.clone(), role, hash, expires_ms }).await?;
    let view = NewTokenView { name, role, token, expires_at: expires_ms.map(rfc3339) };
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], Json(view)).into_response())
}

/// Revokes a token
///
/// It is good for nothing any more, on any host that hears of it.
#[utoipa::path(delete, path = "/v1/tokens/{name}", tag = "Access",
    params(("name" = TokenName, Path, description = "a token")),
    responses((status = 200, description = "it is so", body = DoneView),
        (status = 404, description = "there is no such token", body = Problem)))]
pub(super) async fn revoke(
    api: State<Api>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<DoneView>, Refusal> {
    let name: TokenName = name?.0.parse()?;
    api.handle.propose(Command::TokenRevoke { name: name.clone() }).await?;
    let detail = format!("{name} is good for nothing any more, on any host that hears of it");
    Ok(Json(DoneView { detail }))
}
