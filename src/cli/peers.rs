//! `peers`: who keeps the cluster's state, and changing that.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use tokio::time::Instant;

use super::api::{Api, ApiError};
use super::exit::{Exit, Failure};
use super::hosts::apart;
use super::output::Output;
use super::render;
use crate::agent::spec_file::{self, FileError};
use crate::cluster::node::{self, recover};
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
    /// Make the copy of the state on this machine the cluster's: most of the peers are lost for good, or it is a backup.
    Recover(RecoverArgs),
}

/// `peers recover`
#[derive(Debug, Args)]
struct RecoverArgs {
    /// The cluster.toml of this host, whose agent must not run.
    #[arg(long, value_name = "FILE", default_value = "/etc/bigbrother/cluster.toml")]
    config: PathBuf,
    /// This host's name, in place of the file's [host] name.
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Do not ask on the terminal whether it is meant.
    #[arg(long)]
    yes: bool,
    /// Take the copy even if it shows by itself that this host did not vote, or if a program listens where a peer was
    /// that only the copy knows, and may be its agent.
    #[arg(long)]
    anyway: bool,
}

/// `peers`
pub async fn peers(args: PeersArgs, api: &Api, out: &Output) -> Result<Exit, Failure> {
    let (what, request) = match args.what {
        None | Some(PeersCommand::List) => {
            let peers: Vec<PeerView> = api.get("/v1/peers").await?;
            let apart = apart(peers.is_empty(), api).await;
            out.answer(&peers, |page| render::hosts::peers(&peers, page) + &apart)?;
            return Ok(Exit::Ok);
        }
        Some(PeersCommand::Add { host, address }) => ("add", PeerRequest { host, address: Some(address) }),
        Some(PeersCommand::Remove { host }) => ("remove", PeerRequest { host, address: None }),
        Some(PeersCommand::Promote { host }) => ("promote", PeerRequest { host, address: None }),
        Some(PeersCommand::Recover(args)) => return recover(args, out).await,
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

/// Works on the files of this host, not through an agent.
async fn recover(args: RecoverArgs, out: &Output) -> Result<Exit, Failure> {
    let read = spec_file::read(&args.config, args.host.as_deref(), false);
    let config = read.map_err(|error| match error {
        FileError::Faults(report) => Failure::Invalid(report),
        FileError::Read { path, source } => {
            Failure::Local { what: format!("cannot read {}", path.display()), source }
        }
    })?;
    let (host, data_dir) = (&config.host.name, &config.host.data_dir);
    let question = format!(
        "Make the copy in {} the cluster's? No other copy of the state counts any more.",
        data_dir.join("raft").display()
    );
    if !args.yes && !out.confirmed(&question)? {
        return Err(Failure::NotSo("nothing was done".to_owned()));
    }
    let index = recover::recover(&node::Settings::of(&config), args.anyway).await?;
    let message = format!(
        "{host} is the only peer of the cluster now, with all changes up to {index}. Before you start the agents: move \
         `raft` and `attached.bin` in the data_dir of all other hosts away, whichever there is. Afterwards \
         `bigbrother peers promote HOST` for each of the other peers"
    );
    out.answer(&json!({ "host": host, "index": index, "message": message }), |_| message.clone())?;
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
