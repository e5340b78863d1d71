//! `dev`: a whole cluster in a fresh folder, for whoever wants to see what this is.
//!
//! Starts an agent for each host as in production (`bigbrother agent --config …`, a process of its own), waits for
//! the zone servers, tells what happens (`ears`), hangs one of them and loses a host to be seen (`show`), and at the
//! end stops and removes everything that it started. Owns the folder (`folder`) and every process below it
//! (`household`).

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior};

use super::api::Api;
use super::exit::{Exit, Failure};
use super::look::print_event;
use super::output::Output;
use super::render::counted;
use crate::config::read_duration;
use crate::spec::HostName;

mod ears;
mod folder;
mod household;
mod show;

use ears::{Comebacks, Ears};
use folder::{Folder, Plan};
use household::Household;
use show::Show;

/// A host of the demonstration, as its API shows it.
#[derive(Clone, Debug)]
struct Seen {
    name: HostName,
    api: Api,
}

/// Nobody watches for longer.
const LONGEST: Duration = Duration::from_secs(1_000_000);

/// How often the household is looked after.
const ROUND: Duration = Duration::from_millis(200);

/// `dev`
#[derive(Debug, Args)]
pub struct DevArgs {
    /// How many hosts, each with its own agent; 1: no cluster.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    hosts: u8,
    /// How many zone servers.
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=500))]
    zones: u32,
    /// The folder to work in; it must be empty or new, and it is kept. Default: a temporary one.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// End by itself so long after all servers are ready, such as 90s or 2m; a plain number is in seconds.
    #[arg(long = "for", value_name = "SPAN", value_parser = span)]
    span: Option<Duration>,
    /// Do not hang a server, nor lose a host, to show what then happens.
    #[arg(long)]
    no_demo_fault: bool,
}

fn span(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds: f64| Duration::try_from_secs_f64(seconds).ok());
    seconds
        .or_else(|| read_duration(text))
        .map(|span| span.min(LONGEST))
        .ok_or_else(|| "a span such as 90s or 2m, or a number of seconds".to_owned())
}

/// Runs the demonstration until it is interrupted.
pub async fn run(args: DevArgs, out: Output) -> Result<Exit, Failure> {
    let mut ends = Ends::new()?;
    let folder = Folder::make(args.dir.clone(), Plan { hosts: args.hosts, zones: args.zones })?;
    let mut household = Household::new(&folder)?;
    let played = play(&args, &folder, &mut household, &mut ends, &out).await;
    note(&out, "stopping everything …");
    let cleared = household.clear().await;
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
    fn new() -> Result<Ends, Failure> {
        let listen = |kind| {
            signal(kind)
                .map_err(|source| Failure::Local { what: "cannot wait for signals".to_owned(), source })
        };
        Ok(Ends {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            deadline: None,
        })
    }

    fn come_after(&mut self, span: Duration) {
        self.deadline = Some(Instant::now() + span);
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
    household: &mut Household,
    ends: &mut Ends,
    out: &Output,
) -> Result<(), Failure> {
    let (hosts, zones) = (usize::from(args.hosts), args.zones as usize);
    let what = match hosts {
        1 => format!("an agent and {}", counted(zones, "zone server")),
        _ => format!(
            "a cluster of {}, each with its agent, and {}",
            counted(hosts, "host"),
            counted(zones, "zone server")
        ),
    };
    note(out, &format!("starting {what} in {}", folder.path().display()));
    household.start_agents()?;
    let mut show = Show::new(folder);
    let list = tokio::select! {
        list = show.all_ready(args.zones, household) => list?,
        () = ends.come() => return Ok(()),
    };
    note(out, &show.welcome(&list, household).await?);
    // Only now: how long the start takes is up to the machine, and it has a limit of its own.
    args.span.into_iter().for_each(|span| ends.come_after(span));
    let mut ears = Ears::open(show.hosts()).await;
    let mut comebacks = Comebacks::default();
    let mut rounds = tokio::time::interval(ROUND);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    if !args.no_demo_fault {
        show.begin();
    }
    loop {
        tokio::select! {
            () = ends.come() => return Ok(()),
            event = ears.next() => {
                print_event(&event, out)?;
                if let Some(text) = comebacks.note(&event) {
                    note(out, &text);
                }
            }
            _ = rounds.tick() => {
                for text in household.look_after()?.into_iter().chain(show.go_on(household).await?) {
                    note(out, &text);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_is_read_as_in_the_file_and_a_plain_number_is_in_seconds() {
        for (text, millis) in [("3", 3_000), ("0.5", 500), ("0", 0), ("90s", 90_000), ("2m", 120_000)] {
            assert_eq!(span(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(span("1e9"), Ok(LONGEST), "its end can be told");
        for text in ["", "-1", "soon", "nan", "inf", "90 quux", "99999999999s"] {
            assert!(span(text).is_err_and(|why| why.contains("90s")), "{text}");
        }
    }
}
