//! `kill-test`: kills or hangs random instances, one after another, and measures how fast they are back.
//!
//! For game days. The blow comes from outside (a signal to the process, not a request to the agent), so that
//! what is tested is what a real fault would meet; on other hosts their agents send it. It is announced first, so that
//! the cause is known. Times are taken on this process's monotonic clock, from the signal to the arrival of the agent's
//! event. `--host` kills a whole host.

use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use nix::sys::signal::Signal;
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use super::api::Api;
use super::exit::{Exit, Failure};
use super::look::EventStream;
use super::operate::Name;
use super::output::Output;
use crate::http::view::{InstanceView, StatusView};
use crate::spec::{HostName, InstanceId};

mod comeback;
mod figures;
mod host;
mod victim;

pub use figures::Figures;
pub use host::{HostKillView, ReturnView};

/// How often a SIGSEGV is repeated.
const INSISTENCE: u32 = 3;

/// `kill-test`
#[derive(Debug, Args)]
pub struct KillTestArgs {
    /// Only instances of this process (zone), or only this instance (zone.3).
    #[arg(value_name = "NAME")]
    name: Option<Name>,
    /// Kill this whole host at once: its agent, its keeper and all that runs there. Then everything must come back,
    /// elsewhere or there.
    #[arg(long, value_name = "HOST", conflicts_with_all = ["name", "count", "signal", "seed"])]
    host: Option<HostName>,
    /// How many blows.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// KILL: it dies at once. SEGV: it crashes. STOP: it hangs, and only its heartbeat tells.
    #[arg(long, value_enum, ignore_case = true, default_value = "KILL")]
    signal: Blow,
    /// Chooses the same victims again (given the same instances). Default: random; it is printed.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// How long each may take until it is ready again.
    #[arg(long, value_name = "SPAN", default_value = "30s", value_parser = super::read_span)]
    timeout: Duration,
    /// Do not ask on the terminal whether it is meant.
    #[arg(long)]
    yes: bool,
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Blow {
    #[value(name = "KILL")]
    Kill,
    #[value(name = "STOP")]
    Stop,
    #[value(name = "SEGV")]
    Segv,
}

impl Blow {
    fn signal(self) -> Signal {
        match self {
            Blow::Kill => Signal::SIGKILL,
            Blow::Stop => Signal::SIGSTOP,
            Blow::Segv => Signal::SIGSEGV,
        }
    }

    /// Whether the agent can notice it at all: a stopped process shows only in a heartbeat that it must
    /// answer itself (the kernel accepts TCP connections for it).
    fn shows_in(self, heartbeat: &str) -> bool {
        self != Blow::Stop || !matches!(heartbeat, "none" | "tcp")
    }
}

/// The JSON of `kill-test`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KillTestView {
    /// The signal's name.
    pub signal: String,
    /// Give it to `--seed` for the same choice.
    pub seed: u64,
    /// How many blows were asked for.
    pub count: u32,
    /// How many did not come back in time.
    pub missed: u32,
    /// From the signal to the start of the new run; null when there was none.
    pub restarted: Option<Figures>,
    /// From the signal to the new run's being ready; null when there was none.
    pub ready: Option<Figures>,
    /// Each blow, in order.
    pub kills: Vec<KillView>,
}

/// One blow.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KillView {
    /// Whom it hit.
    pub instance: InstanceId,
    /// The process that got the signal.
    pub pid: i32,
    /// When, RFC 3339.
    pub at: String,
    /// The run that was hit.
    pub run_before: u64,
    /// The run that followed; null when none was seen.
    pub run: Option<u64>,
    /// From the signal to its start.
    pub restarted_ms: Option<f64>,
    /// From the signal to its being ready.
    pub ready_ms: Option<f64>,
    /// It came back in time.
    pub ok: bool,
    /// What went wrong.
    pub detail: Option<String>,
}

/// `kill-test`: exit code 1 when an instance did not come back in time.
pub async fn run(args: &KillTestArgs, api: &Api, out: &Output) -> Result<Exit, Failure> {
    if !api.address().is_local() {
        return Err(Failure::Usage(format!(
            "kill-test sends signals itself: run it on a machine with an agent, not through {}",
            api.address()
        )));
    }
    let status: StatusView = api.get("/v1/status").await?;
    if !args.yes && !out.confirmed(&question(args))? {
        return Err(Failure::NotSo("nothing was done".to_owned()));
    }
    if let Some(host) = &args.host {
        return host::run(host, args.timeout, api, out).await;
    }
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    let mut events = EventStream::open(api, None, None).await.ok();
    let bar = out.progress(u64::from(args.count), "kill-test");
    let mut kills = Vec::new();
    while kills.len() < args.count as usize {
        let chosen = choose(args, &mut random, api).await?;
        bar.set_message(format!("{} to {}", args.signal.signal(), chosen.instance));
        let number = kills.len() + 1;
        // None: it died or changed between the choice and the blow; choose again.
        if let Some(kill) = strike(args, &chosen, number, &status.host, &mut events, api).await? {
            kills.push(kill);
        }
        bar.set_position(kills.len() as u64);
    }
    bar.finish_and_clear();
    let view = summary(args, seed, kills);
    out.answer(&view, |page| figures::render(&view, page))?;
    Ok(if view.missed == 0 { Exit::Ok } else { Exit::NotSo })
}

/// What is asked before it begins.
fn question(args: &KillTestArgs) -> String {
    let whom = args.name.as_ref().map_or("any process".to_owned(), ToString::to_string);
    match &args.host {
        Some(host) => format!("Kill the whole host {host} with all that runs there?"),
        None => format!("Send {} to {} random instances of {whom}?", args.signal.signal(), args.count),
    }
}

/// A random instance that is ready, waiting for one if need be.
async fn choose(args: &KillTestArgs, random: &mut fastrand::Rng, api: &Api) -> Result<InstanceView, Failure> {
    let path = match &args.name {
        None => "/v1/instances".to_owned(),
        Some(Name::Process(process)) => format!("/v1/instances?process={process}"),
        Some(Name::Instance(instance)) => format!("/v1/instances?instance={instance}"),
    };
    let began = Instant::now();
    loop {
        let list: Vec<InstanceView> = api.get(&path).await?;
        let fit = |i: &&InstanceView| i.state == "ready" && i.pid.is_some() && i.run.is_some();
        let ready: Vec<&InstanceView> = list.iter().filter(fit).collect();
        let victims: Vec<&&InstanceView> =
            ready.iter().filter(|i| args.signal.shows_in(&i.heartbeat.mode)).collect();
        if !victims.is_empty() {
            return Ok((*victims[random.usize(..victims.len())]).clone());
        }
        if !ready.is_empty() {
            return Err(Failure::Usage(
                "none of these instances has a heartbeat that would show SIGSTOP (its mode is none or tcp)"
                    .to_owned(),
            ));
        }
        // Without an operator none of these gets ready.
        let hopeless = list.iter().all(|i| matches!(i.state.as_str(), "failed" | "paused" | "stopped"));
        if hopeless || began.elapsed() >= args.timeout {
            let why = match list.first() {
                None => "there is no such instance".to_owned(),
                Some(i) => format!(
                    "no such instance is ready ({} is {}, `bigbrother ps` says why)",
                    i.instance, i.state
                ),
            };
            return Err(Failure::NotSo(format!("nothing to test: {why}")));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Announces, strikes and waits for the comeback. `None`: the chosen run is not what it was.
async fn strike(
    args: &KillTestArgs,
    chosen: &InstanceView,
    number: usize,
    here: &HostName,
    events: &mut Option<EventStream>,
    api: &Api,
) -> Result<Option<KillView>, Failure> {
    let signal = args.signal.signal();
    let text = format!("kill-test sends {signal} ({number} of {})", args.count);
    api.tell("/v1/announce", &json!({ "instance": chosen.instance, "text": text })).await?;
    let Some(victim) = victim::aim(chosen, here, api).await? else { return Ok(None) };
    let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let struck = Instant::now();
    if !victim.strike(signal).await? {
        return Ok(None);
    }
    let comeback = comeback::await_it(&victim, struck, args.timeout, events, api);
    let (back, ()) = tokio::join!(comeback, insist(&victim, args.signal));
    if !back.complete() && args.signal == Blow::Stop {
        // Do not leave a healthy process stopped because nobody noticed.
        victim.strike(Signal::SIGCONT).await?;
    }
    let within = humantime::format_duration(args.timeout);
    let detail = match (back.restarted, back.complete()) {
        (_, true) => None,
        (None, _) => Some(format!("no new run within {within}")),
        (Some(_), _) => Some(format!("the new run did not get ready within {within}")),
    };
    let ms = |span: Duration| span.as_secs_f64() * 1_000.0;
    Ok(Some(KillView {
        instance: chosen.instance.clone(),
        pid: victim.pid,
        at,
        run_before: victim.run,
        run: back.run,
        restarted_ms: back.restarted.map(ms),
        ready_ms: back.ready.map(ms),
        ok: back.complete(),
        detail,
    }))
}

/// A Rust program lets the first SIGSEGV of somebody else pass: its handler waits for the fault to happen
/// again.
async fn insist(victim: &victim::Victim, blow: Blow) {
    for _ in 0..if blow == Blow::Segv { INSISTENCE } else { 0 } {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if !victim.strike(blow.signal()).await.unwrap_or(false) {
            return;
        }
    }
}

fn summary(args: &KillTestArgs, seed: u64, kills: Vec<KillView>) -> KillTestView {
    KillTestView {
        signal: args.signal.signal().to_string(),
        seed,
        count: args.count,
        missed: kills.iter().filter(|k| !k.ok).count() as u32,
        restarted: Figures::of(kills.iter().filter_map(|k| k.restarted_ms)),
        ready: Figures::of(kills.iter().filter_map(|k| k.ready_ms)),
        kills,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_process_shows_only_where_it_must_answer_itself() {
        for (blow, mode, shows) in [
            (Blow::Kill, "none", true),
            (Blow::Segv, "tcp", true),
            (Blow::Stop, "native", true),
            (Blow::Stop, "query", true),
            (Blow::Stop, "tcp", false),
            (Blow::Stop, "none", false),
        ] {
            assert_eq!(blow.shows_in(mode), shows, "{blow:?} {mode}");
        }
    }
}
