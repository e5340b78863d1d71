//! Waiting until instances are as an operator wants them.
//!
//! [`verdict`] is pure and judges one instance; [`until`] asks the agent again and again. Never changes
//! anything. Called by `restart`, `stop` and `start`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::api::Api;
use super::exit::Failure;
use super::output::Output;
use crate::http::view::InstanceView;
use crate::spec::{InstanceId, ProcessName};
use crate::state::Target;

/// Between two questions to the agent.
const POLL: Duration = Duration::from_millis(50);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Another run than before, and ready.
    Replaced,
    /// No process.
    Gone,
    /// Ready.
    Ready,
}

/// What can be said of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not yet.
    Pending,
    /// As wanted.
    Reached,
    /// It will not become so.
    Missed(String),
}

/// What became of one instance: the JSON of `restart`, `stop` and `start`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OutcomeView {
    /// Which.
    pub instance: InstanceId,
    /// It is as asked.
    pub ok: bool,
    /// Its state at the end; null when it is not listed any more.
    pub state: Option<String>,
    /// Its run before.
    pub run_before: Option<u64>,
    /// Its run at the end.
    pub run: Option<u64>,
    /// From the request to this outcome.
    pub elapsed_ms: u64,
    /// What is not as asked.
    pub detail: Option<String>,
}

/// Instances by name, as they are.
pub type Instances = BTreeMap<InstanceId, InstanceView>;

/// An instance before it was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Was {
    /// Its run.
    pub run: Option<u64>,
    /// It had failed, and its last run ended then.
    pub failed: Option<String>,
}

/// What was asked, and how long its outcome is waited for.
#[derive(Clone, Debug)]
pub struct Change {
    /// What is waited for.
    pub goal: Goal,
    /// Of whom.
    pub targets: Vec<Target>,
    /// As they were; with [`Goal::Replaced`] these and no others are waited for.
    pub before: BTreeMap<InstanceId, Was>,
    /// `None`: as long as it takes.
    pub timeout: Option<Duration>,
    /// As many instances of a process that have failed stop the change for the others of it.
    pub bounds: BTreeMap<ProcessName, usize>,
}

/// Whether an instance, as it `was` before the request and as it is `now`, is as wanted.
pub fn verdict(goal: Goal, was: Option<&Was>, now: Option<&InstanceView>) -> Verdict {
    let Some(now) = now else {
        return match goal {
            Goal::Gone => Verdict::Reached,
            Goal::Replaced | Goal::Ready => Verdict::Missed("it is not wanted any more".to_owned()),
        };
    };
    let (run, failed) = was.map_or((None, None), |was| (was.run, was.failed.as_deref()));
    let idle = run.is_none() && failed.is_none();
    // One that has failed is only news when it failed after the request.
    let replaced = now.run != run || now.failed_at() != failed;
    match goal {
        Goal::Gone if now.pid.is_none() && matches!(now.state.as_str(), "paused" | "stopped" | "failed") => {
            Verdict::Reached
        }
        Goal::Gone => Verdict::Pending,
        Goal::Replaced if now.state == "paused" => {
            Verdict::Missed(format!("it is stopped, and stays so until `bigbrother start {}`", now.instance))
        }
        // It is looked at after the request, which starts it wherever it may be started.
        Goal::Replaced if idle && is_held_back(now) => {
            let why = now.reason.as_deref().unwrap_or("it has not been placed yet");
            Verdict::Missed(format!("it does not run, so there is nothing to restart: {why}"))
        }
        Goal::Replaced if idle && now.state == "stopped" => Verdict::Reached,
        _ if now.state == "failed" && replaced => {
            Verdict::Missed(now.reason.clone().unwrap_or_else(|| "it has failed".to_owned()))
        }
        // A run that is never followed by another has done its work.
        _ if now.state == "stopped" && replaced => Verdict::Reached,
        Goal::Replaced if now.state == "ready" && replaced => Verdict::Reached,
        Goal::Ready if now.state == "ready" => Verdict::Reached,
        Goal::Replaced | Goal::Ready => Verdict::Pending,
    }
}

/// It has no run, and a restart gives it none.
pub fn is_held_back(now: &InstanceView) -> bool {
    matches!(now.state.as_str(), "paused" | "waiting" | "superseded")
}

/// The instances that any of the targets means.
pub async fn targeted(api: &Api, targets: &[Target]) -> Result<Instances, Failure> {
    let all: Vec<InstanceView> = api.get("/v1/instances").await?;
    let meant = |id: &InstanceId| {
        targets.iter().any(|target| match target {
            Target::All => true,
            Target::Process(process) => id.process == *process,
            Target::Instance(instance) => id == instance,
        })
    };
    // One that is superseded comes after the one that belongs, which counts.
    let meant = all.into_iter().rev().filter(|i| meant(&i.instance));
    Ok(meant.map(|i| (i.instance.clone(), i)).collect())
}

/// Waits until every targeted instance is as wanted, or will not be, or the time is over.
pub async fn until(change: &Change, api: &Api, out: &Output) -> Result<Vec<OutcomeView>, Failure> {
    let Change { goal, targets, before, timeout, bounds } = change;
    let began = Instant::now();
    let mut outcomes: BTreeMap<InstanceId, OutcomeView> = BTreeMap::new();
    let bar = out.progress(
        before.len() as u64,
        match goal {
            Goal::Replaced => "restarting",
            Goal::Gone => "stopping",
            Goal::Ready => "starting",
        },
    );
    loop {
        let now = targeted(api, targets).await?;
        let over = timeout.filter(|timeout| began.elapsed() >= *timeout);
        let stopped = stopped(bounds, &outcomes);
        let mut pending = 0;
        let concerned: Vec<&InstanceId> = match goal {
            // What is new is not ours to wait for.
            Goal::Replaced => before.keys().collect(),
            Goal::Gone | Goal::Ready => before.keys().chain(now.keys()).collect(),
        };
        for id in concerned {
            if outcomes.contains_key(id) {
                continue;
            }
            let (was, is) = (before.get(id), now.get(id));
            let detail = match (verdict(*goal, was, is), over) {
                (Verdict::Reached, _) => None,
                (Verdict::Missed(why), _) => Some(why),
                (Verdict::Pending, _) if stopped.contains(&id.process) => {
                    Some("its turn has not come: the restart has stopped at those that failed".to_owned())
                }
                (Verdict::Pending, Some(timeout)) => Some(too_late(is, timeout)),
                (Verdict::Pending, None) => {
                    pending += 1;
                    continue;
                }
            };
            outcomes.insert(id.clone(), outcome(id.clone(), was, is, began.elapsed(), detail));
        }
        bar.set_length((outcomes.len() + pending) as u64);
        bar.set_position(outcomes.len() as u64);
        if pending == 0 {
            bar.finish_and_clear();
            return Ok(outcomes.into_values().collect());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Processes of which as many instances have failed as stop the change.
fn stopped(
    bounds: &BTreeMap<ProcessName, usize>,
    outcomes: &BTreeMap<InstanceId, OutcomeView>,
) -> BTreeSet<ProcessName> {
    let failed =
        |process: &ProcessName| outcomes.values().filter(|o| o.instance.process == *process && !o.ok).count();
    let stopped = bounds.iter().filter(|(process, bound)| failed(process) >= **bound);
    stopped.map(|(process, _)| process.clone()).collect()
}

fn too_late(now: Option<&InstanceView>, timeout: Duration) -> String {
    let state = now.map_or("not listed", |i| i.state.as_str());
    let reason = now.and_then(|i| i.reason.as_ref()).map(|r| format!(" ({r})")).unwrap_or_default();
    format!("still {state}{reason} after {}", humantime::format_duration(timeout))
}

fn outcome(
    instance: InstanceId,
    was: Option<&Was>,
    is: Option<&InstanceView>,
    elapsed: Duration,
    detail: Option<String>,
) -> OutcomeView {
    OutcomeView {
        instance,
        ok: detail.is_none(),
        state: is.map(|i| i.state.clone()),
        run_before: was.and_then(|was| was.run),
        run: is.and_then(|i| i.run),
        elapsed_ms: elapsed.as_millis() as u64,
        detail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::sample;

    fn view(state: &str, run: Option<u64>) -> InstanceView {
        InstanceView {
            state: state.to_owned(),
            run,
            pid: run.filter(|_| !matches!(state, "failed" | "paused" | "stopped" | "backoff")).map(|_| 10),
            ..sample::instance("zone.0", "ready")
        }
    }

    #[test]
    fn replaced_means_another_run_that_is_ready() {
        let was = Was { run: Some(1), failed: None };
        let judge = |now: InstanceView| verdict(Goal::Replaced, Some(&was), Some(&now));
        assert_eq!(judge(view("ready", Some(1))), Verdict::Pending);
        assert_eq!(judge(view("stopping", Some(1))), Verdict::Pending);
        assert_eq!(judge(view("starting", Some(2))), Verdict::Pending);
        assert_eq!(judge(view("ready", Some(2))), Verdict::Reached);
        assert!(matches!(judge(view("failed", Some(2))), Verdict::Missed(_)));
        assert!(matches!(verdict(Goal::Replaced, Some(&was), None), Verdict::Missed(_)));
    }

    #[test]
    fn what_had_no_run_is_restarted_or_it_is_said_why_not() {
        let was = Was::default();
        let judge = |now: InstanceView| verdict(Goal::Replaced, Some(&was), Some(&now));
        let missed = |now: InstanceView| match judge(now) {
            Verdict::Missed(why) => why,
            other => panic!("{other:?}"),
        };
        assert!(missed(view("paused", None)).contains("`bigbrother start zone.0`"));
        let nowhere = InstanceView { reason: Some("no host has room".to_owned()), ..view("waiting", None) };
        assert!(missed(nowhere).ends_with("nothing to restart: no host has room"));
        // These were started.
        assert_eq!(judge(view("backoff", None)), Verdict::Pending);
        assert_eq!(judge(view("starting", Some(4))), Verdict::Pending);
        assert_eq!(judge(view("ready", Some(4))), Verdict::Reached);
        assert_eq!(judge(view("stopped", None)), Verdict::Reached, "its work was done again");
        assert!(matches!(judge(view("failed", None)), Verdict::Missed(_)), "it has failed again");
        // One that ran and waits on another host now is on its way.
        let ran = Was { run: Some(3), failed: None };
        assert_eq!(verdict(Goal::Replaced, Some(&ran), Some(&view("waiting", None))), Verdict::Pending);
    }

    #[test]
    fn gone_means_without_a_process_and_not_about_to_have_one() {
        let was = Was { run: Some(1), failed: None };
        let judge = |now: InstanceView| verdict(Goal::Gone, Some(&was), Some(&now));
        assert_eq!(judge(view("ready", Some(1))), Verdict::Pending);
        assert_eq!(judge(view("stopping", Some(1))), Verdict::Pending);
        assert_eq!(judge(view("backoff", Some(1))), Verdict::Pending);
        assert_eq!(judge(view("paused", Some(1))), Verdict::Reached);
        assert_eq!(verdict(Goal::Gone, Some(&was), None), Verdict::Reached);
    }

    #[test]
    fn a_rolling_change_stops_at_as_many_failures_as_its_process_bears() {
        let failed = |id: &str, ok: bool| {
            let detail = Some("it has failed".to_owned()).filter(|_| !ok);
            let id: InstanceId = id.parse().unwrap();
            (id.clone(), outcome(id, None, None, Duration::ZERO, detail))
        };
        let bounds = [("zone".parse().unwrap(), 2), ("login".parse().unwrap(), 1)].into();
        let one = [failed("zone.0", false), failed("zone.1", true), failed("login.0", true)].into();
        assert_eq!(stopped(&bounds, &one), BTreeSet::new());
        let two = [failed("zone.0", false), failed("zone.1", false), failed("login.0", true)].into();
        assert_eq!(stopped(&bounds, &two), ["zone".parse().unwrap()].into());
    }

    #[test]
    fn a_failure_from_before_is_no_news() {
        let failed = view("failed", None);
        let was = Was { run: None, failed: failed.failed_at().map(str::to_owned) };
        let mut again = failed.clone();
        again.last_exit.as_mut().unwrap().at = "2026-01-02T04:00:00.000Z".to_owned();
        for goal in [Goal::Ready, Goal::Replaced] {
            let judge = |now: &InstanceView| verdict(goal, Some(&was), Some(now));
            assert_eq!(
                judge(&failed),
                Verdict::Pending,
                "the request has not arrived, or its turn has not come"
            );
            assert_eq!(judge(&view("starting", Some(2))), Verdict::Pending);
            assert!(matches!(judge(&again), Verdict::Missed(_)));
            assert_eq!(judge(&view("ready", Some(2))), Verdict::Reached);
            assert_eq!(judge(&view("stopped", None)), Verdict::Reached);
        }
    }
}
