//! Waiting until instances are as an operator wants them.
//!
//! [`verdict`] is pure and judges one instance; [`until`] asks the agent again and again. Never changes
//! anything. Called by `restart`, `stop` and `start`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::api::Api;
use super::exit::Failure;
use super::output::Output;
use crate::http::view::InstanceView;
use crate::spec::InstanceId;
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

/// Instances by name, as they were or are.
pub type Instances = BTreeMap<InstanceId, InstanceView>;

/// Whether an instance, as it was `before` the request and as it is `now`, is as wanted.
pub fn verdict(goal: Goal, before: Option<&InstanceView>, now: Option<&InstanceView>) -> Verdict {
    let run_before = before.and_then(|i| i.run);
    let Some(now) = now else {
        return match goal {
            Goal::Gone => Verdict::Reached,
            Goal::Replaced | Goal::Ready => Verdict::Missed("it is not wanted any more".to_owned()),
        };
    };
    let replaced = now.run != run_before;
    let failed_before = before.is_some_and(|i| i.state == "failed");
    match goal {
        Goal::Gone if now.pid.is_none() && matches!(now.state.as_str(), "paused" | "stopped" | "failed") => {
            Verdict::Reached
        }
        Goal::Gone => Verdict::Pending,
        // A failed instance is only news when it failed after the request.
        _ if now.state == "failed" && (replaced || !failed_before) => {
            Verdict::Missed(now.reason.clone().unwrap_or_else(|| "it has failed".to_owned()))
        }
        // A run that is never followed by another has done its work.
        _ if now.state == "stopped" && replaced => Verdict::Reached,
        Goal::Replaced if now.state == "ready" && replaced => Verdict::Reached,
        Goal::Ready if now.state == "ready" => Verdict::Reached,
        Goal::Replaced | Goal::Ready => Verdict::Pending,
    }
}

/// The instances of this host that any of the targets means.
pub async fn targeted(api: &Api, targets: &[Target]) -> Result<Instances, Failure> {
    let all: Vec<InstanceView> = api.get("/v1/instances").await?;
    let meant = |id: &InstanceId| {
        targets.iter().any(|target| match target {
            Target::All => true,
            Target::Process(process) => id.process == *process,
            Target::Instance(instance) => id == instance,
        })
    };
    Ok(all.into_iter().filter(|i| meant(&i.instance)).map(|i| (i.instance.clone(), i)).collect())
}

/// Waits until every targeted instance is as wanted, or will not be, or the time is over.
pub async fn until(
    goal: Goal,
    targets: &[Target],
    before: &Instances,
    timeout: Duration,
    api: &Api,
    out: &Output,
) -> Result<Vec<OutcomeView>, Failure> {
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
        let timed_out = began.elapsed() >= timeout;
        let mut pending = 0;
        let concerned: Vec<InstanceId> = match goal {
            // What had no run before is not replaced; what is new is not ours to wait for.
            Goal::Replaced => {
                before.values().filter(|i| i.pid.is_some()).map(|i| i.instance.clone()).collect()
            }
            Goal::Gone | Goal::Ready => before.keys().chain(now.keys()).cloned().collect(),
        };
        for id in concerned {
            if outcomes.contains_key(&id) {
                continue;
            }
            let (was, is) = (before.get(&id), now.get(&id));
            let detail = match verdict(goal, was, is) {
                Verdict::Reached => None,
                Verdict::Missed(why) => Some(why),
                Verdict::Pending if timed_out => Some(too_late(is, timeout)),
                Verdict::Pending => {
                    pending += 1;
                    continue;
                }
            };
            outcomes.insert(id.clone(), outcome(id, was, is, began.elapsed(), detail));
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

fn too_late(now: Option<&InstanceView>, timeout: Duration) -> String {
    let state = now.map_or("not listed", |i| i.state.as_str());
    let reason = now.and_then(|i| i.reason.as_ref()).map(|r| format!(" ({r})")).unwrap_or_default();
    format!("still {state}{reason} after {}", humantime::format_duration(timeout))
}

fn outcome(
    instance: InstanceId,
    was: Option<&InstanceView>,
    is: Option<&InstanceView>,
    elapsed: Duration,
    detail: Option<String>,
) -> OutcomeView {
    OutcomeView {
        instance,
        ok: detail.is_none(),
        state: is.map(|i| i.state.clone()),
        run_before: was.and_then(|i| i.run),
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
        let was = view("ready", Some(1));
        let judge = |now: InstanceView| verdict(Goal::Replaced, Some(&was), Some(&now));
        assert_eq!(judge(view("ready", Some(1))), Verdict::Pending);
        assert_eq!(judge(view("stopping", Some(1))), Verdict::Pending);
        assert_eq!(judge(view("starting", Some(2))), Verdict::Pending);
        assert_eq!(judge(view("ready", Some(2))), Verdict::Reached);
        assert!(matches!(judge(view("failed", Some(2))), Verdict::Missed(_)));
        assert!(matches!(verdict(Goal::Replaced, Some(&was), None), Verdict::Missed(_)));
    }

    #[test]
    fn gone_means_without_a_process_and_not_about_to_have_one() {
        let was = view("ready", Some(1));
        let judge = |now: InstanceView| verdict(Goal::Gone, Some(&was), Some(&now));
        assert_eq!(judge(view("ready", Some(1))), Verdict::Pending);
        assert_eq!(judge(view("stopping", Some(1))), Verdict::Pending);
        assert_eq!(judge(view("backoff", Some(1))), Verdict::Pending);
        assert_eq!(judge(view("paused", Some(1))), Verdict::Reached);
        assert_eq!(verdict(Goal::Gone, Some(&was), None), Verdict::Reached);
    }

    #[test]
    fn a_failure_from_before_is_no_news() {
        let was = view("failed", Some(1));
        let judge = |now: InstanceView| verdict(Goal::Ready, Some(&was), Some(&now));
        assert_eq!(judge(view("failed", Some(1))), Verdict::Pending, "the request has not arrived yet");
        assert!(matches!(judge(view("failed", Some(2))), Verdict::Missed(_)));
        assert_eq!(judge(view("ready", Some(2))), Verdict::Reached);
    }
}
