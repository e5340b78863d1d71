//! `restart`, `stop`, `start`, `scale`, `launch` and `reload`: what changes things.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::api::Api;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::render::{counted, span};
use super::wait::{self, Change, Goal, OutcomeView, Was};
use crate::http::view::{DoneView, InstanceView, RestartRequest, RestartedView, SpecView};
use crate::spec::{InstanceId, InvalidName, Process, ProcessName};
use crate::state::Target;

/// A process (`zone`) or an instance (`zone.3`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// All instances of a process.
    Process(ProcessName),
    /// One instance.
    Instance(InstanceId),
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Name, InvalidName> {
        if text.contains('.') { text.parse().map(Name::Instance) } else { text.parse().map(Name::Process) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Process(process) => process.fmt(f),
            Name::Instance(instance) => instance.fmt(f),
        }
    }
}

impl From<Name> for Target {
    fn from(name: Name) -> Target {
        match name {
            Name::Process(process) => Target::Process(process),
            Name::Instance(instance) => Target::Instance(instance),
        }
    }
}

/// Whether and how long to wait.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Do not wait until it is so.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait [default: 60s; with --rolling: until it is done].
    #[arg(long, value_name = "SPAN", value_parser = super::read_span)]
    timeout: Option<Duration>,
}

/// How long a change may take unless the command says.
const TIMEOUT: Duration = Duration::from_secs(60);

/// `restart`
#[derive(Debug, Args)]
pub struct RestartArgs {
    /// Processes (zone) or instances (zone.3).
    #[arg(value_name = "NAME", required = true)]
    names: Vec<Name>,
    /// Take turns, at the pace of the process's `update`: for a new binary at the same path.
    #[arg(long)]
    rolling: bool,
    /// The same key within an hour restarts once, so that a restart can be asked for again. With one NAME.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    #[command(flatten)]
    wait: WaitArgs,
}

/// `stop` and `start`
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// Processes (zone) or instances (zone.3).
    #[arg(value_name = "NAME", required_unless_present = "all", conflicts_with = "all")]
    names: Vec<Name>,
    /// Everything.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

/// `scale`
#[derive(Debug, Args)]
pub struct ScaleArgs {
    /// Which; it must have a `count`.
    #[arg(value_name = "PROCESS")]
    process: ProcessName,
    /// How many instances, or "default" for the file's count.
    #[arg(value_name = "N|default")]
    count: Count,
}

/// A count, or the file's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count(Option<u32>);

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Count, String> {
        match text {
            "default" => Ok(Count(None)),
            _ => text.parse().map(|n| Count(Some(n))).map_err(|_| "a number or \"default\"".to_owned()),
        }
    }
}

/// `launch`
#[derive(Debug, Args)]
pub struct LaunchArgs {
    /// Which; it must be on_demand.
    #[arg(value_name = "PROCESS")]
    process: ProcessName,
    /// A value for {arg.KEY} in its templates; may be given several times.
    #[arg(long = "arg", value_name = "KEY=VALUE", value_parser = key_value)]
    args: Vec<(String, String)>,
    /// The same key gives the same instance while it lives, so that a launch can be tried again.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

/// The JSON of `scale`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaledView {
    /// Which.
    pub process: ProcessName,
    /// The override; null: the file's count is in force.
    pub count: Option<u32>,
}

/// The JSON of `launch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchedView {
    /// The launched instance.
    pub instance: InstanceId,
}

/// The JSON of `reload`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadedView {
    /// What came of it, in words.
    pub message: String,
}

/// `restart`
pub async fn restart(args: RestartArgs, api: &Api, out: &Output) -> Result<Exit, Failure> {
    let RestartArgs { names, rolling, key, wait } = args;
    if key.is_some() && names.len() > 1 {
        return Err(Failure::Usage("--key goes with one NAME: each restart has a key of its own".to_owned()));
    }
    if let Some(Name::Instance(id)) = names.iter().find(|name| rolling && matches!(name, Name::Instance(_))) {
        let why =
            format!("--rolling is for whole processes, whose instances take turns: name {}", id.process);
        return Err(Failure::Usage(why));
    }
    let targets = targets(names, false);
    let bounds = if rolling { failures_borne(api).await? } else { BTreeMap::new() };
    let mut asked = RestartedView::default();
    for target in &targets {
        let request = RestartRequest { target: target.clone(), rolling, key: key.clone() };
        let told: RestartedView = api.post("/v1/restart", &request).await?;
        asked.instances.extend(told.instances);
        asked.runs.extend(told.runs);
        asked.failed.extend(told.failed);
    }
    if wait.no_wait {
        return told("restart", &asked.instances, out);
    }
    let there = wait::targeted(api, &targets).await?;
    let held = there.into_iter().filter(|(_, view)| wait::is_held_back(view)).map(|(id, _)| id);
    // One that has failed or is done has no run: a restart starts it at once, a rolling one begins with what has failed.
    let idle: Vec<InstanceId> = if rolling { held.collect() } else { held.chain(asked.instances).collect() };
    let mut before: BTreeMap<InstanceId, Was> = idle.into_iter().map(|id| (id, Was::default())).collect();
    before.extend(asked.failed.into_iter().map(|(id, at)| (id, Was { run: None, failed: Some(at) })));
    before.extend(asked.runs.into_iter().map(|(id, run)| (id, Was { run: Some(run), failed: None })));
    let timeout = wait.timeout.or((!rolling).then_some(TIMEOUT));
    conclude(&Change { goal: Goal::Replaced, targets, before, timeout, bounds }, api, out).await
}

/// How many failed instances stop a rolling restart of each process.
async fn failures_borne(api: &Api) -> Result<BTreeMap<ProcessName, usize>, Failure> {
    let view: SpecView = api.get("/v1/spec").await?;
    let bound = |process: &Process| process.update.max_unavailable as usize;
    Ok(view.spec.processes.iter().map(|(name, process)| (name.clone(), bound(process))).collect())
}

/// `stop`
pub async fn stop(args: TargetArgs, api: &Api, out: &Output) -> Result<Exit, Failure> {
    pause_or_resume("stop", Goal::Gone, args, api, out).await
}

/// `start`
pub async fn start(args: TargetArgs, api: &Api, out: &Output) -> Result<Exit, Failure> {
    pause_or_resume("start", Goal::Ready, args, api, out).await
}

fn targets(names: Vec<Name>, all: bool) -> Vec<Target> {
    if all { vec![Target::All] } else { names.into_iter().map(Target::from).collect() }
}

/// Asks for a change of some targets and waits until it has happened.
async fn pause_or_resume(
    verb: &str,
    goal: Goal,
    args: TargetArgs,
    api: &Api,
    out: &Output,
) -> Result<Exit, Failure> {
    let targets = targets(args.names, args.all);
    let before = wait::targeted(api, &targets).await?;
    for target in &targets {
        api.tell(&format!("/v1/{verb}"), &json!({ "target": target })).await?;
    }
    let known: Vec<InstanceId> = before.keys().cloned().collect();
    if args.wait.no_wait {
        return told(verb, &known, out);
    }
    let was = |view: InstanceView| Was { run: view.run, failed: view.failed_at().map(str::to_owned) };
    let before = before.into_iter().map(|(id, view)| (id, was(view))).collect();
    let timeout = args.wait.timeout.or(Some(TIMEOUT));
    conclude(&Change { goal, targets, before, timeout, bounds: BTreeMap::new() }, api, out).await
}

/// What was asked, for who does not wait.
fn told(verb: &str, asked: &[InstanceId], out: &Output) -> Result<Exit, Failure> {
    let words = |_: &_| format!("asked to {verb} {}", counted(asked.len(), "instance"));
    out.answer(&json!({ "asked": asked }), words)?;
    Ok(Exit::Ok)
}

/// Waits until a change has happened and says so.
async fn conclude(change: &Change, api: &Api, out: &Output) -> Result<Exit, Failure> {
    let outcomes = wait::until(change, api, out).await?;
    if out.json {
        out.value(&outcomes)?;
    } else {
        out.text(&summary(change.goal, &outcomes))?;
    }
    // Who asks for a new run and there is none to be had has not got what was asked for.
    let nothing = change.goal == Goal::Replaced && outcomes.is_empty();
    Ok(if !nothing && outcomes.iter().all(|o| o.ok) { Exit::Ok } else { Exit::NotSo })
}

/// What became of a change, in words.
fn summary(goal: Goal, outcomes: &[OutcomeView]) -> String {
    let done = outcomes.iter().filter(|o| o.ok).count();
    let slowest = outcomes.iter().filter(|o| o.ok).map(|o| o.elapsed_ms).max().unwrap_or(0);
    let what = match goal {
        Goal::Replaced => "restarted and ready again",
        Goal::Gone => "stopped",
        Goal::Ready => "ready",
    };
    let after = if slowest == 0 { "at once".to_owned() } else { format!("after {}", span(slowest as f64)) };
    let mut text = format!("{} {what}, {after}\n", counted(done, "instance"));
    if outcomes.is_empty() {
        text = match goal {
            Goal::Replaced => {
                "nothing to restart: no such instance has a run now (`bigbrother start` starts)\n"
            }
            _ => "there is no such instance now\n",
        }
        .to_owned();
    }
    for missed in outcomes.iter().filter(|o| !o.ok) {
        let why = missed.detail.as_deref().unwrap_or("");
        text.push_str(&format!("{} is not: {why}\n", missed.instance));
    }
    text
}

/// `scale`
pub async fn scale(args: &ScaleArgs, api: &Api, out: &Output) -> Result<Exit, Failure> {
    let view = ScaledView { process: args.process.clone(), count: args.count.0 };
    api.tell("/v1/scale", &view).await?;
    out.answer(&view, |_| match view.count {
        Some(count) => {
            format!(
                "{} has {} now, until the file's count changes",
                view.process,
                counted(count as usize, "instance")
            )
        }
        None => format!("{} has the file's count again", view.process),
    })?;
    Ok(Exit::Ok)
}

/// `launch`
pub async fn launch(args: LaunchArgs, api: &Api, out: &Output) -> Result<Exit, Failure> {
    let values: BTreeMap<String, String> = args.args.into_iter().collect();
    let request = json!({ "process": args.process, "args": values, "key": args.key });
    let launched: LaunchedView = api.post("/v1/launch", &request).await?;
    out.answer(&launched, |_| launched.instance.to_string())?;
    Ok(Exit::Ok)
}

/// `reload`
pub async fn reload(api: &Api, out: &Output) -> Result<Exit, Failure> {
    let done: DoneView = api.post("/v1/reload", &json!({})).await?;
    let view = ReloadedView { message: done.detail };
    out.answer(&view, |_| view.message.clone())?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_a_dot_are_instances() {
        assert_eq!(Target::from("zone".parse::<Name>().unwrap()), Target::Process("zone".parse().unwrap()));
        assert_eq!(
            Target::from("zone.3".parse::<Name>().unwrap()),
            Target::Instance("zone.3".parse().unwrap())
        );
        assert!("Zone!".parse::<Name>().is_err());
    }

    #[test]
    fn targets_are_sent_as_the_api_reads_them() {
        let json = |names: &[&str], all| {
            let names = names.iter().map(|n| n.parse().unwrap()).collect();
            serde_json::to_string(&targets(names, all)).unwrap()
        };
        assert_eq!(json(&["zone", "zone.3"], false), r#"[{"process":"zone"},{"instance":"zone.3"}]"#);
        assert_eq!(json(&[], true), r#"["all"]"#);
    }

    #[test]
    fn counts_and_arguments_are_checked() {
        assert_eq!("default".parse(), Ok(Count(None)));
        assert_eq!("0".parse(), Ok(Count(Some(0))));
        assert!("-1".parse::<Count>().is_err());
        assert_eq!(key_value("map=dm=1"), Ok(("map".to_owned(), "dm=1".to_owned())));
        assert!(key_value("=x").is_err());
        assert!(key_value("map").is_err());
    }
}
