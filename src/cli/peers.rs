//! `peers`: who keeps the cluster's state, and changing that.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use tokio::time::Instant;

use super::api::{Api, ApiError};
use super::exit::{Exit, Failure};
use super::output::Output;
use super::render;
use crate::http::view::{DoneView, PeerRequest, PeerView};
use crate::spec::HostName;

/// Between two looks whether a change is through.
const POLL: Duration = Duration::from_millis(500);
/// How long a newcomer may take to catch up.
const CATCH_UP: Duration = Duration::from_secs(120);

/// `peers`
#[derive(Debug, Args)]
pub struct PeersArgs {
    #[command(subcommand)]
    what: Option<PeersCommand>,
}

#[derive(Debug, Subcommand)]
enum PeersCommand {
    /// List the peers (the default).
    List,
    /// Let a host become a peer that is not in the file of the others.
    Add {
        /// Which.
        #[arg(value_name = "HOST")]
        host: HostName,
        /// Where its agent listens for other agents.
        #[arg(value_name = "HOST:PORT")]
        address: String,
    },
    /// Take a host out of the peers: before it leaves for good, or when it is lost.
    Remove {
        /// Which.
        #[arg(value_name = "HOST")]
        host: HostName,
    },
    /// Let a peer vote that only keeps a copy so far.
    Promote {
        /// Which.
        #[arg(value_name = "HOST")]
        host: HostName,
    },
}

/// `peers`
pub async fn peers(args: PeersArgs, api: &Api, out: &Output) -> Result<Exit, Failure> {
    let (what, request) = match args.what {
        None | Some(PeersCommand::List) => {
            let peers: Vec<PeerView> = api.get("/v1/peers").await?;
            out.answer(&peers, |page| render::hosts::peers(&peers, page))?;
            return Ok(Exit::Ok);
        }
        Some(PeersCommand::Add { host, address }) => ("add", PeerRequest { host, address: Some(address) }),
        Some(PeersCommand::Remove { host }) => ("remove", PeerRequest { host, address: None }),
        Some(PeersCommand::Promote { host }) => ("promote", PeerRequest { host, address: None }),
    };
    let host = request.host.clone();
    let message = match api.post::<DoneView>(&format!("/v1/peers/{what}"), &request).await {
        Ok(done) => done.detail,
        Err(ApiError::Refused(problem)) if problem.kind == "under-way" => through(what, &host, api).await?,
        Err(error) => return Err(error.into()),
    };
    out.answer(&json!({ "host": host, "message": message }), |_| message.clone())?;
    Ok(Exit::Ok)
}

/// Waits until a change that takes longer than a request may is through.
async fn through(what: &str, host: &HostName, api: &Api) -> Result<String, Failure> {
    let began = Instant::now();
    while began.elapsed() < CATCH_UP {
        tokio::time::sleep(POLL).await;
        let peers: Vec<PeerView> = api.get("/v1/peers").await?;
        let peer = peers.iter().find(|peer| peer.host == *host);
        match what {
            "promote" if peer.is_some_and(|peer| peer.role == "voter") => {
                return Ok(format!("{host} votes now"));
            }
            "remove" if peer.is_none() => return Ok(format!("{host} is a peer no more")),
            _ => {}
        }
    }
    Err(Failure::NotSo(format!(
        "not through after {} s: `bigbrother peers list` shows it",
        CATCH_UP.as_secs()
    )))
}
