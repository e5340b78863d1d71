//! `hosts`, `drain` and `undrain`: which hosts there are, and which may have instances.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use super::api::Api;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::render::{self, counted};
use crate::http::view::{DoneView, HostView, InstanceView, StatusView};
use crate::spec::HostName;

/// Between two questions to the agent.
const POLL: Duration = Duration::from_millis(100);

/// `hosts`
#[derive(Debug, Args)]
pub struct HostsArgs {
    #[command(subcommand)]
    what: Option<HostsCommand>,
}

#[derive(Debug, Subcommand)]
enum HostsCommand {
    /// List hosts (the default).
    List,
    /// Give a silent host up although so many are silent that the brake holds: its instances go elsewhere once it
    /// has been silent for host_timeout. One that is heard stays up.
    DeclareDown {
        /// Which.
        #[arg(value_name = "HOST")]
        host: HostName,
    },
}

/// `drain`
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// Which.
    #[arg(value_name = "HOST")]
    host: HostName,
    /// Wait until nothing runs there any more.
    #[arg(long)]
    wait: bool,
    /// How long to wait. Default: as long as it takes; players may have hours to leave.
    #[arg(long, value_name = "SPAN", value_parser = super::read_span, requires = "wait")]
    timeout: Option<Duration>,
}

/// `undrain`
#[derive(Debug, Args)]
pub struct UndrainArgs {
    /// Which.
    #[arg(value_name = "HOST")]
    host: HostName,
}

/// The JSON of `drain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DrainedView {
    /// Which.
    pub host: HostName,
    /// Nothing runs there.
    pub empty: bool,
    /// How many instances run there still.
    pub running: usize,
}

/// `hosts`
pub async fn hosts(args: HostsArgs, api: &Api, out: &Output) -> Result<Exit, Failure> {
    match args.what {
        None | Some(HostsCommand::List) => {
            let hosts: Vec<HostView> = api.get("/v1/hosts").await?;
            let apart = apart(hosts.is_empty(), api).await;
            out.answer(&hosts, |page| render::hosts::hosts(&hosts, page) + &apart)?;
            Ok(Exit::Ok)
        }
        Some(HostsCommand::DeclareDown { host }) => done(&host, "declare-down", api, out).await,
    }
}

/// Behind an empty list: why the agent that was asked has no part in a cluster yet.
pub(super) async fn apart(empty: bool, api: &Api) -> String {
    if !empty {
        return String::new();
    }
    // Whoever does not answer now has said nothing that would help.
    let status = api.get::<StatusView>("/v1/status").await.ok();
    let why = status.and_then(|status| status.starting.or(status.apart));
    why.map(|why| format!(": {why}")).unwrap_or_default()
}

/// `undrain`
pub async fn undrain(args: &UndrainArgs, api: &Api, out: &Output) -> Result<Exit, Failure> {
    done(&args.host, "undrain", api, out).await
}

async fn done(host: &HostName, what: &str, api: &Api, out: &Output) -> Result<Exit, Failure> {
    let done: DoneView = api.post(&format!("/v1/hosts/{host}/{what}"), &json!({})).await?;
    out.answer(&json!({ "host": host, "message": done.detail }), |_| done.detail.clone())?;
    Ok(Exit::Ok)
}

/// `drain`: exit code 1 when it is not empty in time.
pub async fn drain(args: DrainArgs, api: &Api, out: &Output) -> Result<Exit, Failure> {
    let host = &args.host;
    let done: DoneView = api.post(&format!("/v1/hosts/{host}/drain"), &json!({})).await?;
    let (mut running, began) = (on(host, api).await?, Instant::now());
    if !args.wait {
        let view = DrainedView { host: host.clone(), empty: running == 0, running };
        out.answer(&view, |_| done.detail.clone())?;
        return Ok(Exit::Ok);
    }
    let bar = out.progress(running as u64, &format!("drain {host}"));
    let most = running;
    while running > 0 && args.timeout.is_none_or(|timeout| began.elapsed() < timeout) {
        tokio::time::sleep(POLL).await;
        // An agent that does not answer now may again.
        running = on(host, api).await.unwrap_or(running);
        bar.set_position(most.saturating_sub(running) as u64);
    }
    bar.finish_and_clear();
    let view = DrainedView { host: host.clone(), empty: running == 0, running };
    out.answer(&view, |_| match running {
        0 => format!("{host} is empty, after {:.1?}", began.elapsed()),
        n => format!("{} on {host} still; it goes on without this command", counted(n, "instance")),
    })?;
    Ok(if view.empty { Exit::Ok } else { Exit::NotSo })
}

/// How many instances run on a host, or may, for all that is known.
async fn on(host: &HostName, api: &Api) -> Result<usize, Failure> {
    let list: Vec<InstanceView> = api.get("/v1/instances").await?;
    Ok(list.iter().filter(|i| i.host == *host && (i.pid.is_some() || i.state == "unreachable")).count())
}
