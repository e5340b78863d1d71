//! `token`: who may ask the API over TCP.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::api::Api;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::render;
use crate::http::view::{DoneView, NewTokenView, TokenRequest, TokenView};
use crate::spec::TokenName;
use crate::state::Role;

/// `token`
#[derive(Debug, Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    what: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token and print it, this once.
    Create(CreateArgs),
    /// List the tokens, without their secrets.
    List,
    /// Let a token be good for nothing, on all hosts.
    Revoke {
        /// Which.
        #[arg(value_name = "NAME")]
        name: TokenName,
    },
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// What to call it: for whom, or what for.
    #[arg(value_name = "NAME")]
    name: TokenName,
    /// What it is good for: read, operate (and change what runs) or admin (and declare what runs).
    #[arg(long, value_name = "ROLE")]
    role: Role,
    /// For how long, such as 90d. Default: until it is revoked.
    #[arg(long, value_name = "SPAN", value_parser = super::read_span)]
    expires: Option<Duration>,
}

/// `token`
pub async fn token(args: TokenArgs, api: &Api, out: &Output) -> Result<Exit, Failure> {
    match args.what {
        TokenCommand::Create(CreateArgs { name, role, expires }) => {
            let expires_in_ms = expires.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
            let request = TokenRequest { name, role, expires_in_ms };
            let made: NewTokenView = api.post("/v1/tokens", &request).await?;
            // Nothing else on stdout: it goes into a file, or into another program.
            out.answer(&made, |_| made.token.clone())?;
        }
        TokenCommand::List => {
            let tokens: Vec<TokenView> = api.get("/v1/tokens").await?;
            out.answer(&tokens, |page| render::access::tokens(&tokens, page))?;
        }
        TokenCommand::Revoke { name } => {
            let done: DoneView = api.delete(&format!("/v1/tokens/{name}")).await?;
            out.answer(&json!({ "name": name, "message": done.detail }), |_| done.detail.clone())?;
        }
    }
    Ok(Exit::Ok)
}
