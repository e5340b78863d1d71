//! `status`, `ps`, `events`, `logs` and `hang-report`: what is and what was.

use std::collections::BTreeSet;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::api::{Api, ApiError, lines};
use super::exit::{Exit, Failure};
use super::operate::Name;
use super::output::Output;
use super::render;
use crate::client::event_stream::Events;
use crate::http::events::UNREACHABLE;
use crate::http::view::{EventView, HostView, InstanceView, StatusView};
use crate::spec::{HostName, InstanceId};

/// Which host is asked.
#[derive(Clone, Debug, Default, Args)]
pub struct At {
    /// Only what this host says. Default: all of the cluster that concerns this.
    #[arg(long, value_name = "HOST")]
    pub host: Option<HostName>,
}

impl At {
    /// A path with what narrows it.
    pub fn path(&self, path: &str, narrowed: &[Option<String>]) -> String {
        let host = self.host.as_ref().map(|host| format!("host={host}"));
        let query: Vec<String> = narrowed.iter().flatten().cloned().chain(host).collect();
        if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) }
    }
}

/// `status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The status of this host. Default: that of the agent that is asked.
    #[arg(long, value_name = "HOST")]
    host: Option<HostName>,
}

/// `ps`
#[derive(Debug, Args)]
pub struct PsArgs {
    #[command(flatten)]
    at: At,
    /// Only this process (zone) or instance (zone.3).
    #[arg(value_name = "NAME")]
    name: Option<Name>,
}

/// `events`
#[derive(Debug, Args)]
pub struct EventsArgs {
    #[command(flatten)]
    at: At,
    /// Go on with what happens, until interrupted.
    #[arg(long, short)]
    follow: bool,
    /// Only this instance.
    #[arg(value_name = "INSTANCE")]
    instance: Option<InstanceId>,
}

/// `logs`
#[derive(Debug, Args)]
pub struct LogsArgs {
    #[command(flatten)]
    at: At,
    /// Go on with what is written, until interrupted.
    #[arg(long, short)]
    follow: bool,
    /// How many of the last lines.
    #[arg(long, value_name = "N", default_value_t = 100)]
    lines: u64,
    /// What it wrote to stderr.
    #[arg(long, conflicts_with = "stdout")]
    stderr: bool,
    /// What it wrote to stdout (the default).
    #[arg(long)]
    stdout: bool,
    /// Whose.
    #[arg(value_name = "INSTANCE")]
    instance: InstanceId,
}

/// `hang-report`
#[derive(Debug, Args)]
pub struct HangReportArgs {
    #[command(flatten)]
    at: At,
    /// Of which instance.
    #[arg(value_name = "INSTANCE")]
    instance: InstanceId,
}

/// One line of `logs --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLineView {
    /// Whose.
    pub instance: InstanceId,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Without its end; bytes that are no UTF-8 are replaced.
    pub line: String,
}

/// The JSON of `hang-report`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HangReportView {
    /// Whose.
    pub instance: InstanceId,
    /// The report.
    pub report: String,
}

/// `status`: exit code 1 when something is not healthy.
pub async fn status(args: &StatusArgs, api: &Api, out: &Output) -> Result<Exit, Failure> {
    let at = At { host: args.host.clone() };
    let status: StatusView = api.get(&at.path("/v1/status", &[])).await?;
    out.answer(&status, |page| render::status(&status, page))?;
    Ok(if render::complaints(&status).is_empty() { Exit::Ok } else { Exit::NotSo })
}

/// The query that names a process or an instance.
pub fn named(name: &Name) -> String {
    match name {
        Name::Process(process) => format!("process={process}"),
        Name::Instance(instance) => format!("instance={instance}"),
    }
}

/// `ps`: exit code 1 when there is nothing of that name.
pub async fn ps(args: &PsArgs, api: &Api, out: &Output) -> Result<Exit, Failure> {
    let path = args.at.path("/v1/instances", &[args.name.as_ref().map(named)]);
    let list: Vec<InstanceView> = api.get(&path).await?;
    match &args.name {
        Some(name) if list.is_empty() && !out.json => {
            let there = args.at.host.as_ref().map(|host| format!(" on {host}")).unwrap_or_default();
            let told = format!("there is no instance of {name}{there}; `bigbrother ps` lists all");
            return Err(Failure::NotSo(told));
        }
        None if list.is_empty() && !out.json && args.at.host.is_some() => {
            let hosts: Vec<HostView> = api.get(&args.at.path("/v1/hosts", &[])).await?;
            out.text(&hosts.first().map(render::hosts::empty).unwrap_or_default())?;
        }
        Some(_) if list.is_empty() => {
            out.value(&list)?;
            return Ok(Exit::NotSo);
        }
        _ => out.answer(&list, |page| render::instances(&list, page))?,
    }
    Ok(Exit::Ok)
}

/// `events`
pub async fn events(args: &EventsArgs, api: &Api, out: &Output) -> Result<Exit, Failure> {
    let path = args.at.path("/v1/events", &[args.instance.as_ref().map(|i| format!("instance={i}"))]);
    // The stream is opened before the past is asked for, so that nothing falls in between.
    let stream = match args.follow {
        true => Some(EventStream::open(api, args.instance.as_ref(), args.at.host.as_ref()).await?),
        false => None,
    };
    let (past, missing) = api.get_noting::<Vec<EventView>>(&path, UNREACHABLE).await?;
    past.iter().try_for_each(|event| print_event(event, out))?;
    if let Some(hosts) = missing {
        eprintln!("no events of {hosts}: not reachable");
    }
    let Some(mut stream) = stream else { return Ok(Exit::Ok) };
    // The stream begins with the past, too: what was shown is not shown again.
    let shown: BTreeSet<_> = past.iter().map(EventView::mark).collect();
    loop {
        for event in stream.next().await?.iter().filter(|event| !shown.contains(&event.mark())) {
            print_event(event, out)?;
        }
    }
}

/// Prints an event as a sentence or a line of JSON.
pub fn print_event(event: &EventView, out: &Output) -> Result<(), Failure> {
    if out.json { out.line(event) } else { out.text(&render::event::sentence(event, &out.page())) }
}

/// Events as they happen.
pub struct EventStream {
    api: Api,
    stream: super::api::Stream,
    parser: Events,
}

impl EventStream {
    const PATH: &str = "/v1/events?follow=true";

    /// Starts to follow; what happens from now on is seen.
    pub async fn open(
        api: &Api,
        instance: Option<&InstanceId>,
        host: Option<&HostName>,
    ) -> Result<EventStream, ApiError> {
        let filter = instance.map(|i| format!("&instance={i}")).unwrap_or_default();
        let host = host.map(|host| format!("&host={host}")).unwrap_or_default();
        let stream = api.stream(&format!("{}{filter}{host}", Self::PATH)).await?;
        Ok(EventStream { api: api.clone(), stream, parser: Events::default() })
    }

    /// The next events, at least one. Loses nothing when it is dropped before it is done.
    pub async fn next(&mut self) -> Result<Vec<EventView>, ApiError> {
        loop {
            let Some(piece) = self.stream.next().await? else {
                return Err(ApiError::Ended { address: self.api.address().clone() });
            };
            let strange = |why: String| ApiError::Strange {
                address: self.api.address().clone(),
                path: Self::PATH.to_owned(),
                why,
            };
            let told = self.parser.feed(&piece).map_err(|e| strange(e.to_string()))?;
            // One with a name says that some were missed.
            let told = told.iter().filter(|event| event.name.is_empty());
            let events: Result<Vec<EventView>, _> =
                told.map(|event| serde_json::from_str(&event.data)).collect();
            let events = events.map_err(|e| strange(e.to_string()))?;
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }
}

/// `logs`
pub async fn logs(args: &LogsArgs, api: &Api, out: &Output) -> Result<Exit, Failure> {
    let stream = if args.stderr { "stderr" } else { "stdout" };
    let narrowed = [
        Some(format!("stream={stream}")),
        Some(format!("lines={}", args.lines)),
        args.follow.then(|| "follow=true".to_owned()),
    ];
    let path = args.at.path(&format!("/v1/instances/{}/logs", args.instance), &narrowed);
    let print = |line: String| {
        out.line(&LogLineView { instance: args.instance.clone(), stream: stream.to_owned(), line })
    };
    let mut body = api.stream(&path).await?;
    let mut lines = lines::Lines::default();
    while let Some(piece) = body.next().await? {
        if out.json {
            lines.feed(&piece).into_iter().try_for_each(print)?;
        } else {
            out.bytes(&piece)?;
        }
    }
    lines.end().map_or(Ok(()), print)?;
    Ok(Exit::Ok)
}

/// `hang-report`
pub async fn hang_report(args: &HangReportArgs, api: &Api, out: &Output) -> Result<Exit, Failure> {
    let path = args.at.path(&format!("/v1/instances/{}/hang-report", args.instance), &[]);
    let report = api.text(&path).await?;
    let view = HangReportView { instance: args.instance.clone(), report };
    out.answer(&view, |_| view.report.clone())?;
    Ok(Exit::Ok)
}
