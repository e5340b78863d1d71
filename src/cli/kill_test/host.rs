//! `kill-test --host`: a whole host is killed, and all that ran there has to come back: elsewhere once the host is
//! declared down, or there when its service manager starts the agent again.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use super::Figures;
use crate::cli::api::Api;
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::Output;
use crate::cli::render::{Page, counted, span};
use crate::http::view::{AffectedView, HostView, InstanceView};
use crate::spec::{HostName, InstanceId, InstanceKey};

/// Between two questions to the agent.
const POLL: Duration = Duration::from_millis(50);

/// The JSON of `kill-test --host`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HostKillView {
    /// Which host was killed.
    pub host: HostName,
    /// When, RFC 3339.
    pub at: String,
    /// How many instances did not come back in time.
    pub missed: u32,
    /// From the blow to the start of the new runs; null when there was none.
    pub restarted: Option<Figures>,
    /// From the blow to the new runs' being ready; null when there was none.
    pub ready: Option<Figures>,
    /// Each instance that ran there.
    pub instances: Vec<ReturnView>,
}

/// What became of an instance of the killed host.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReturnView {
    /// Which.
    pub instance: InstanceId,
    /// The run that was killed.
    pub run_before: u64,
    /// Where it runs now; null when it does not.
    pub host: Option<HostName>,
    /// The run that followed, by the count of that host.
    pub run: Option<u64>,
    /// From the blow to its start, as it was seen.
    pub restarted_ms: Option<f64>,
    /// From the blow to its being ready, as it was seen.
    pub ready_ms: Option<f64>,
    /// It is back, or goes with its host, which is down.
    pub ok: bool,
    /// What is not as it was.
    pub detail: Option<String>,
}

impl ReturnView {
    fn of(view: &InstanceView) -> Option<ReturnView> {
        Some(ReturnView {
            instance: view.instance.clone(),
            run_before: view.run.filter(|_| view.pid.is_some())?,
            host: None,
            run: None,
            restarted_ms: None,
            ready_ms: None,
            ok: false,
            detail: None,
        })
    }

    /// Takes note of how it is seen, so long after the blow.
    fn see(&mut self, view: &InstanceView, killed: &HostName, after: Duration) {
        let Some(run) = view.run.filter(|_| view.pid.is_some() && view.state != "superseded") else { return };
        if view.host == *killed && run <= self.run_before {
            return;
        }
        let ms = after.as_secs_f64() * 1_000.0;
        (self.host, self.run) = (Some(view.host.clone()), Some(run));
        self.restarted_ms.get_or_insert(ms);
        self.ok = view.state == "ready";
        if self.ok {
            self.ready_ms.get_or_insert(ms);
        }
    }

    /// One a host: it has nowhere else to go.
    fn goes_with(&self, host: &HostName) -> bool {
        matches!(&self.instance.key, InstanceKey::Host(own) if own == host)
    }
}

/// Kills the host and waits for all of its instances.
pub async fn run(host: &HostName, timeout: Duration, api: &Api, out: &Output) -> Result<Exit, Failure> {
    let list: Vec<InstanceView> = api.get("/v1/instances").await?;
    let theirs = list.iter().filter(|view| view.host == *host && view.state != "superseded");
    let mut returns: Vec<ReturnView> = theirs.filter_map(ReturnView::of).collect();
    if returns.is_empty() {
        return Err(Failure::NotSo(format!("nothing to test: no instance runs on {host}")));
    }
    let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let _: AffectedView = api.post(&format!("/v1/hosts/{host}/strike"), &json!(null)).await?;
    let struck = Instant::now();
    let bar = out.progress(returns.len() as u64, &format!("kill-test {host}"));
    let mut down = false;
    while struck.elapsed() < timeout {
        // The agent that is asked may be the one that was killed.
        let list: Vec<InstanceView> = api.get("/v1/instances").await.unwrap_or_default();
        let after = struck.elapsed();
        for back in &mut returns {
            if let Some(view) = list.iter().find(|view| view.instance == back.instance) {
                back.see(view, host, after);
            }
        }
        bar.set_position(returns.iter().filter(|back| back.ok).count() as u64);
        down = down || is_down(host, api).await;
        if returns.iter().all(|back| back.ok || down && back.goes_with(host)) {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    bar.finish_and_clear();
    let view = conclude(host, at, timeout, down, returns);
    out.answer(&view, |page| render(&view, page))?;
    Ok(if view.missed == 0 { Exit::Ok } else { Exit::NotSo })
}

async fn is_down(host: &HostName, api: &Api) -> bool {
    let hosts: Vec<HostView> = api.get("/v1/hosts").await.unwrap_or_default();
    hosts.iter().any(|known| known.host == *host && !known.up)
}

fn conclude(
    host: &HostName,
    at: String,
    timeout: Duration,
    down: bool,
    mut returns: Vec<ReturnView>,
) -> HostKillView {
    for back in returns.iter_mut().filter(|back| !back.ok) {
        let within = humantime::format_duration(timeout);
        back.ok = down && back.goes_with(host);
        back.detail = Some(match (back.ok, back.run) {
            (true, _) => format!("one a host: it comes back with {host}"),
            (false, None) => format!("no new run within {within}"),
            (false, Some(_)) => format!("the new run did not get ready within {within}"),
        });
    }
    HostKillView {
        host: host.clone(),
        at,
        missed: returns.iter().filter(|back| !back.ok).count() as u32,
        restarted: Figures::of(returns.iter().filter_map(|back| back.restarted_ms)),
        ready: Figures::of(returns.iter().filter_map(|back| back.ready_ms)),
        instances: returns,
    }
}

/// The whole result as text.
fn render(view: &HostKillView, page: &Page) -> String {
    let mut text =
        format!("{} was killed, and with it {}\n", view.host, counted(view.instances.len(), "run"));
    if view.restarted.is_some() {
        text.push_str(&super::figures::table(&super::figures::KILLED, view.restarted, view.ready, page));
    }
    for back in &view.instances {
        text.push_str(&match (&back.host, &back.detail, back.ready_ms) {
            (_, Some(detail), _) => format!("{}: {detail}\n", back.instance),
            (Some(host), None, Some(ms)) => {
                format!("{}: ready on {host} after {}\n", back.instance, span(ms))
            }
            _ => format!("{}\n", back.instance),
        });
    }
    text.push_str(&match view.missed {
        0 => "all came back\n".to_owned(),
        missed => format!("{missed} did not come back in time\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::render::sample;

    fn view(id: &str, host: &str, state: &str, run: u64) -> InstanceView {
        InstanceView { host: host.parse().unwrap(), run: Some(run), ..sample::instance(id, state) }
    }

    fn killed() -> HostName {
        "beta".parse().unwrap()
    }

    #[test]
    fn back_is_a_ready_run_elsewhere_or_a_later_one_there() {
        for (host, state, run, restarted, ok) in [
            ("beta", "ready", 7, false, false),
            ("beta", "unreachable", 7, false, false),
            ("beta", "ready", 8, true, true),
            ("alpha", "starting", 3, true, false),
            // Another host counts by itself: the same number is another run.
            ("alpha", "ready", 7, true, true),
            ("alpha", "superseded", 9, false, false),
        ] {
            let mut back = ReturnView::of(&view("zone.0", "beta", "ready", 7)).unwrap();
            back.see(&view("zone.0", host, state, run), &killed(), Duration::from_secs(1));
            assert_eq!((back.restarted_ms.is_some(), back.ok), (restarted, ok), "{host} {state} {run}");
        }
    }

    #[test]
    fn what_is_one_a_host_goes_with_it_only_while_it_is_down() {
        let returns = || {
            let mut zone = ReturnView::of(&view("zone.0", "beta", "ready", 7)).unwrap();
            zone.see(&view("zone.0", "alpha", "ready", 1), &killed(), Duration::from_millis(5_100));
            vec![ReturnView::of(&view("logd.beta", "beta", "ready", 3)).unwrap(), zone]
        };
        let concluded = |down| {
            conclude(
                &killed(),
                "2026-01-02T03:04:05.678Z".to_owned(),
                Duration::from_secs(30),
                down,
                returns(),
            )
        };
        assert_eq!((concluded(true).missed, concluded(false).missed), (0, 1));
        let page = Page { width: None, colour: false, now: std::time::UNIX_EPOCH };
        assert_eq!(
            render(&concluded(true), &page),
            "beta was killed, and with it 2 runs\n\
             KILLED TO     MIN  MEDIAN     P95     MAX\n\
             restarted  5.10 s  5.10 s  5.10 s  5.10 s\n\
             ready      5.10 s  5.10 s  5.10 s  5.10 s\n\
             logd.beta: one a host: it comes back with beta\n\
             zone.0: ready on alpha after 5.10 s\n\
             all came back\n"
        );
    }
}
