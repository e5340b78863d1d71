//! `dev`: a whole host in a fresh folder, for whoever wants to see what this is.
//!
//! Starts an agent as in production (`bigbrother agent --config …`, a process of its own), waits for its zone
//! servers, tells what happens, hangs one of them to be seen, and at the end stops and removes everything
//! that it started. Owns the folder (`folder`) and every process below it (`household`).

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use super::api::Api;
use super::exit::{Exit, Failure};
use super::look::{EventStream, print_event};
use super::output::Output;
use super::render::{counted, span};
use crate::http::view::{EventView, InstanceView, StatusView};
use crate::spec::InstanceId;

mod folder;
mod household;

use folder::Folder;
use household::Household;

/// From the start until all servers are ready.
const START: Duration = Duration::from_secs(30);
/// From ready to the fault that is shown.
const CALM: Duration = Duration::from_secs(4);
/// How often the household is looked after.
const ROUND: Duration = Duration::from_millis(200);

/// `dev`
#[derive(Debug, Args)]
pub struct DevArgs {
    /// How many zone servers.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=500))]
    zones: u32,
    /// The folder to work in; it must be empty or new, and it is kept. Default: a temporary one.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// End by itself after so many seconds.
    #[arg(long = "for", value_name = "SECS", value_parser = seconds)]
    span: Option<f64>,
    /// Do not hang a server to show what then happens.
    #[arg(long)]
    no_demo_fault: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| seconds.is_finite() && *seconds >= 0.0);
    seconds.ok_or_else(|| "a number of seconds, such as 10".to_owned())
}

/// Runs the demonstration until it is interrupted.
pub async fn run(args: DevArgs, out: Output) -> Result<Exit, Failure> {
    let mut ends = Ends::new(args.span)?;
    let folder = Folder::make(args.dir.clone(), args.zones)?;
    let api = Api::new(folder.api());
    let mut household = Household::new(&folder)?;
    let played = play(&args, &folder, &api, &mut household, &mut ends, &out).await;
    note(&out, "stopping everything …");
    let cleared = household.clear(&api).await;
    let removed = folder.remove();
    played?;
    cleared?;
    match removed? {
        Some(kept) => note(&out, &format!("nothing is left running; {} is kept", kept.display())),
        None => note(&out, "nothing is left, neither processes nor files"),
    }
    Ok(Exit::Ok)
}

/// Words for people: on stdout, or beside the JSON on stderr.
fn note(out: &Output, text: &str) {
    if out.json {
        eprintln!("{text}");
    } else {
        // When nobody reads any more there is still everything to stop.
        out.text(text).ok();
    }
}

/// What ends the demonstration.
struct Ends {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    deadline: Option<Instant>,
}

impl Ends {
    fn new(span: Option<f64>) -> Result<Ends, Failure> {
        let listen = |kind| {
            signal(kind)
                .map_err(|source| Failure::Local { what: "cannot wait for signals".to_owned(), source })
        };
        Ok(Ends {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            deadline: span.map(|secs| Instant::now() + Duration::from_secs_f64(secs.clamp(0.0, 1e6))),
        })
    }

    async fn come(&mut self) {
        let deadline = self.deadline;
        let span_over = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
            () = span_over => {}
        }
    }
}

async fn play(
    args: &DevArgs,
    folder: &Folder,
    api: &Api,
    household: &mut Household,
    ends: &mut Ends,
    out: &Output,
) -> Result<(), Failure> {
    note(
        out,
        &format!(
            "starting an agent and {} in {}",
            counted(args.zones as usize, "zone server"),
            folder.path().display()
        ),
    );
    household.start_agent()?;
    let list = tokio::select! {
        list = all_ready(args.zones, api, household) => list?,
        () = ends.come() => return Ok(()),
    };
    let status: StatusView = api.get("/v1/status").await?;
    note(out, &welcome(&list, &status, household, api));
    let mut events = Some(EventStream::open(api, None).await?);
    let mut comebacks = Comebacks::default();
    let mut rounds = tokio::time::interval(ROUND);
    let mut fault_at = (!args.no_demo_fault).then(|| Instant::now() + CALM);
    loop {
        tokio::select! {
            () = ends.come() => return Ok(()),
            heard = next(&mut events) => {
                for event in &heard {
                    print_event(event, out)?;
                    if let Some(text) = comebacks.note(event) {
                        note(out, &text);
                    }
                }
            }
            _ = rounds.tick() => {
                if let Some(text) = household.look_after()? {
                    note(out, &text);
                }
                if events.is_none() {
                    events = EventStream::open(api, None).await.ok();
                }
                if fault_at.is_some_and(|at| Instant::now() >= at) {
                    fault_at = None;
                    note(out, &hang_one(api).await);
                }
            }
        }
    }
}

/// The next events; never while the agent is away.
async fn next(events: &mut Option<EventStream>) -> Vec<EventView> {
    let Some(stream) = events else { return std::future::pending().await };
    match stream.next().await {
        Ok(heard) => heard,
        Err(_) => {
            *events = None;
            Vec::new()
        }
    }
}

/// Waits for the agent and all its servers.
async fn all_ready(zones: u32, api: &Api, household: &mut Household) -> Result<Vec<InstanceView>, Failure> {
    let began = Instant::now();
    loop {
        household.must_live()?;
        // Until it listens there is no answer, which is no failure yet.
        let list: Vec<InstanceView> = api.get("/v1/instances").await.unwrap_or_default();
        let ready = list.iter().filter(|i| i.state == "ready").count();
        if ready == zones as usize {
            return Ok(list);
        }
        let given_up = list.iter().any(|i| i.state == "failed");
        if given_up || began.elapsed() > START {
            let why = |i: &InstanceView| i.reason.as_ref().map_or(String::new(), |why| format!(": {why}"));
            let seen = list.iter().map(|i| format!("{} {}{}", i.instance, i.state, why(i)));
            return Err(Failure::NotSo(format!(
                "only {ready} of {zones} servers got ready in {} s ({}); the agent's log ends:\n{}",
                began.elapsed().as_secs(),
                seen.collect::<Vec<_>>().join(", "),
                household.agent_log()
            )));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What there is to see, and what to type in another terminal.
fn welcome(list: &[InstanceView], status: &StatusView, household: &Household, api: &Api) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "bigbrother".to_owned());
    let keeper = status.keeper.as_ref().map(|k| format!(" and a keeper (pid {})", k.pid)).unwrap_or_default();
    let mut text = format!(
        "{} ready, watched by an agent (pid {}){keeper}. In another terminal:\n\n  \
         export BIGBROTHER_API={}\n  {program} ps\n",
        counted(list.len(), "zone server"),
        household.agent_pid(),
        api.address()
    );
    if let Some((pid, instance)) = list.first().and_then(|i| Some((i.pid?, &i.instance))) {
        text.push_str(&format!("  kill -STOP {pid}        # hang {instance}\n"));
    }
    text.push_str(&format!(
        "  {program} kill-test zone --count 20\n\nCtrl-C stops everything. What happens:\n"
    ));
    text
}

/// Tells a server to hang, and says so.
async fn hang_one(api: &Api) -> String {
    let list: Vec<InstanceView> = api.get("/v1/instances").await.unwrap_or_default();
    let ready = list.iter().rev().filter(|i| i.state == "ready");
    let target = ready.filter_map(|i| Some((i, i.ports.get("game")?))).next();
    let Some((instance, port)) = target else {
        return "-- a server was to be hung now, but none is ready".to_owned();
    };
    let sent = UdpSocket::bind("127.0.0.1:0").and_then(|s| s.send_to(b"hang", ("127.0.0.1", port.port)));
    match sent {
        Ok(_) => format!(
            "-- to show you: {} is made to hang now. Its process lives but does nothing any more; after {} ms\n\
             -- without a heartbeat it is killed and started again",
            instance.instance,
            folder::HANG_TIMEOUT.as_millis()
        ),
        Err(error) => format!("-- {} was to be hung now, but could not be told: {error}", instance.instance),
    }
}

/// Measures how fast instances come back, from the events' own times.
#[derive(Default)]
struct Comebacks {
    lost: BTreeMap<InstanceId, (SystemTime, bool)>,
}

impl Comebacks {
    /// Takes note of an event; a sentence when something has come back.
    fn note(&mut self, event: &EventView) -> Option<String> {
        let at = humantime::parse_rfc3339(&event.at).ok()?;
        match (event.kind.as_str(), event.cause.as_deref()) {
            ("hang", _) => {
                self.lost.entry(event.instance.clone()).or_insert((at, true));
            }
            ("exited", Some("stop")) => {}
            ("exited", _) => {
                self.lost.entry(event.instance.clone()).or_insert((at, false));
            }
            ("ready", _) => {
                let (since, hung) = self.lost.remove(&event.instance)?;
                let took = span(at.duration_since(since).ok()?.as_secs_f64() * 1_000.0);
                let how = if hung { "its hang was noticed" } else { "its end" };
                return Some(format!("-- {} is back, {took} after {how}", event.instance));
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, cause: Option<&str>, ms: u32) -> EventView {
        EventView {
            seq: 0,
            at: format!("2026-01-02T03:04:05.{ms:03}Z"),
            host: "dev".parse().unwrap(),
            instance: "zone.1".parse().unwrap(),
            run: Some(1),
            kind: kind.to_owned(),
            cause: cause.map(str::to_owned),
            detail: None,
        }
    }

    #[test]
    fn a_comeback_is_told_from_the_first_sign_to_ready() {
        let mut comebacks = Comebacks::default();
        assert_eq!(comebacks.note(&event("ready", None, 0)), None);
        for e in [event("hang", None, 100), event("exited", Some("hang"), 105), event("started", None, 106)] {
            assert_eq!(comebacks.note(&e), None);
        }
        assert_eq!(
            comebacks.note(&event("ready", None, 120)),
            Some("-- zone.1 is back, 20.0 ms after its hang was noticed".to_owned())
        );
        assert_eq!(comebacks.note(&event("ready", None, 130)), None, "told once");
        comebacks.note(&event("exited", Some("stop"), 200));
        assert_eq!(comebacks.note(&event("ready", None, 300)), None, "a stop is no loss");
    }
}
