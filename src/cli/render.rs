//! Views as text for people.
//!
//! Pure: the width, the colours and the time are in [`Page`]. Programs read the JSON instead, so the text
//! may change between versions. Called by the commands through [`super::output::Output::answer`].

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use comfy_table::Color;

use crate::http::view::{ExitView, HostCounts, InstanceView, PlanView, StatusView};
use crate::spec::HostName;

pub mod access;
pub mod event;
pub mod hosts;
#[cfg(test)]
pub mod sample;
pub mod table;

use table::{Column, Table, cell};

/// What is rendered for.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Columns; `None`: no bound.
    pub width: Option<u16>,
    /// Whether colours may be used.
    pub colour: bool,
    /// The time that ages are counted to.
    pub now: SystemTime,
}

impl Page {
    /// Text in a colour.
    pub fn paint(&self, text: &str, colour: Option<Color>) -> String {
        use clap::builder::styling::{AnsiColor, Style};
        let ansi = match colour {
            Some(Color::Green) => AnsiColor::Green,
            Some(Color::Yellow) => AnsiColor::Yellow,
            Some(Color::Red) => AnsiColor::Red,
            Some(Color::Cyan) => AnsiColor::Cyan,
            Some(Color::DarkGrey) => AnsiColor::BrightBlack,
            _ => return text.to_owned(),
        };
        if !self.colour {
            return text.to_owned();
        }
        let style = Style::new().fg_color(Some(ansi.into()));
        format!("{style}{text}{style:#}")
    }

    /// How long ago an RFC 3339 time was; empty when it is none.
    fn since(&self, at: &str) -> String {
        let Ok(at) = humantime::parse_rfc3339(at) else { return String::new() };
        // Clocks of two machines may differ a little: never a negative age.
        age(self.now.duration_since(at).unwrap_or_default())
    }
}

/// A duration in its two largest units: `4s`, `3m12s`, `2h03m`, `5d07h`.
pub fn age(span: Duration) -> String {
    let s = span.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3_600 => format!("{}m{:02}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h{:02}m", s / 3_600, s % 3_600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// A measured span: `412 us`, `8.3 ms`, `1.25 s`.
pub fn span(ms: f64) -> String {
    match ms {
        ms if ms < 1.0 => format!("{:.0} us", ms * 1_000.0),
        ms if ms < 1_000.0 => format!("{ms:.1} ms"),
        ms => format!("{:.2} s", ms / 1_000.0),
    }
}

/// A count and its noun: `1 instance`, `3 instances`.
pub fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// The colour of an instance's state.
pub fn state_colour(state: &str) -> Option<Color> {
    match state {
        "ready" => Some(Color::Green),
        "failed" | "unreachable" => Some(Color::Red),
        "superseded" => Some(Color::Yellow),
        "waiting" | "starting" | "draining" | "stopping" | "backoff" => Some(Color::Yellow),
        "paused" | "stopped" => Some(Color::DarkGrey),
        _ => None,
    }
}

/// The columns of `ps`, the most important ones with the highest number.
const INSTANCES: [Column; 12] = [
    Column { head: "INSTANCE", weight: 100, least: 16, right: false },
    Column { head: "STATE", weight: 95, least: 8, right: false },
    Column { head: "PID", weight: 85, least: 7, right: true },
    Column { head: "RUN", weight: 30, least: 5, right: true },
    Column { head: "RESTARTS", weight: 70, least: 8, right: true },
    Column { head: "UP", weight: 75, least: 6, right: true },
    Column { head: "PORTS", weight: 65, least: 12, right: false },
    Column { head: "BEAT", weight: 40, least: 6, right: false },
    Column { head: "PLAYERS", weight: 60, least: 7, right: true },
    Column { head: "LAST EXIT", weight: 50, least: 12, right: false },
    Column { head: "HOST", weight: 20, least: 6, right: false },
    Column { head: "REASON", weight: 90, least: 16, right: false },
];

/// `ps`
pub fn instances(list: &[InstanceView], page: &Page) -> String {
    if list.is_empty() {
        return "no instances; `bigbrother plan` and `bigbrother apply` bring some".to_owned();
    }
    let mut table = Table::new(&INSTANCES);
    for i in list {
        table.row(vec![
            cell(i.instance.to_string()),
            cell(i.state.clone()).colour(state_colour(&i.state)),
            cell(i.pid.map(|p| p.to_string()).unwrap_or_default()),
            cell(i.run.map(|r| r.to_string()).unwrap_or_default()),
            cell(i.restarts.to_string()),
            cell(i.started_at.as_deref().map(|at| page.since(at)).unwrap_or_default()),
            cell(ports(i)),
            cell(beat(i)),
            cell(players(i)),
            cell(i.last_exit.as_ref().map(|e| last_exit(e, page)).unwrap_or_default()),
            cell(i.host.to_string()),
            cell(i.reason.clone().unwrap_or_default()),
        ]);
    }
    table.render(page)
}

fn ports(i: &InstanceView) -> String {
    let one =
        |(name, p): (&String, &crate::http::view::PortView)| format!("{name} {}/{}", p.port, p.protocol);
    i.ports.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn beat(i: &InstanceView) -> String {
    match i.heartbeat.age_ms {
        Some(ms) => format!("{ms} ms"),
        None if i.heartbeat.mode == "none" => String::new(),
        None => "-".to_owned(),
    }
}

fn players(i: &InstanceView) -> String {
    let number = |key| i.status.get(key).and_then(serde_json::Value::as_u64);
    match (number("players"), number("capacity")) {
        (Some(players), Some(capacity)) => format!("{players}/{capacity}"),
        (Some(players), None) => players.to_string(),
        _ => String::new(),
    }
}

/// The end of a run in few words: `hang 12s ago`, `SIGSEGV 3m02s ago`, `exit 1 5s ago`.
fn last_exit(exit: &ExitView, page: &Page) -> String {
    let how = match (exit.cause.as_str(), &exit.signal, exit.code) {
        ("signal", Some(signal), _) => signal.clone(),
        ("exit", _, Some(code)) => format!("exit {code}"),
        (cause, _, _) => cause.to_owned(),
    };
    match page.since(&exit.at) {
        since if since.is_empty() => how,
        since => format!("{how} {since} ago"),
    }
}

/// What of a status is not healthy, in words; empty when it is.
pub fn complaints(status: &StatusView) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(waits) = &status.starting {
        all.push(format!("the agent is starting: {waits}"));
    } else if status.keeper.is_none() {
        all.push("the agent has no keeper: nothing can be started".to_owned());
    }
    if let Some(why) = &status.broken {
        all.push(format!("nothing changes here until the agent is started again: {why}"));
    }
    let names = |hosts: &[HostName]| hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !status.quorum {
        let why = match (&status.apart, status.missing.as_slice()) {
            // Told with what it waits for.
            (Some(why), _) if status.starting.as_ref().is_some_and(|waits| waits.contains(why)) => {
                String::new()
            }
            (Some(why), _) => format!("; {why}"),
            (None, []) => String::new(),
            (None, missing) => format!("; no answer from {} (`bigbrother peers` says why)", names(missing)),
        };
        all.push(format!("there is no quorum: nothing can be changed{why}"));
    }
    if !status.brake.is_empty() {
        let hosts = names(&status.brake);
        all.push(format!(
            "so many hosts are silent that none is declared down: {hosts}; `bigbrother hosts declare-down HOST` \
             goes on by hand"
        ));
    }
    match status.instances.get("failed") {
        None | Some(0) => {}
        Some(1) => all.push("1 instance has failed: `bigbrother ps` says why".to_owned()),
        Some(n) => all.push(format!("{n} instances have failed: `bigbrother ps` says why")),
    }
    all
}

/// How many instances that fit nowhere `status` names.
const UNPLACED: usize = 10;

/// `status`
pub fn status(status: &StatusView, page: &Page) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: String| {
        // Writing to a String cannot fail.
        writeln!(text, "{key:<10} {value}").ok();
    };
    line("cluster", format!("{}, spec revision {}, index {}", status.cluster, status.revision, status.index));
    let primary = match &status.primary {
        Some(primary) if *primary == status.host => " (primary)".to_owned(),
        Some(primary) => format!(" (primary: {primary})"),
        None => " (no primary known)".to_owned(),
    };
    line("host", format!("{}{primary}", status.host));
    if status.role != "alone" {
        line("hosts", hosts_of(status));
    }
    let starting = if status.starting.is_some() { ", starting" } else { "" };
    line("agent", format!("version {}, up {}{starting}", status.version, page.since(&status.started_at)));
    line(
        "keeper",
        match &status.keeper {
            Some(k) => format!("version {}, pid {}, cgroups {}", k.version, k.pid, k.cgroups),
            None => page.paint("none", Some(Color::Red)),
        },
    );
    let total: u64 = status.instances.values().sum();
    let states: Vec<String> = status
        .instances
        .iter()
        .filter(|(_, n)| **n > 0)
        .map(|(state, n)| page.paint(&format!("{n} {state}"), state_colour(state)))
        .collect();
    line(
        "instances",
        if states.is_empty() { "0".to_owned() } else { format!("{total}: {}", states.join(", ")) },
    );
    for (instance, why) in status.unplaced.iter().take(UNPLACED) {
        line("unplaced", format!("{instance}: {why}"));
    }
    if status.unplaced.len() > UNPLACED {
        line("unplaced", format!("{} more (`bigbrother ps` shows all)", status.unplaced.len() - UNPLACED));
    }
    if status.superseded > 0 {
        line(
            "superseded",
            format!("{} (`bigbrother ps` shows them)", counted(status.superseded as usize, "run")),
        );
    }
    if let Some(drift) = &status.spec_drift {
        line("drift", page.paint(drift, Some(Color::Yellow)));
    }
    for complaint in complaints(status) {
        line("unhealthy", page.paint(&complaint, Some(Color::Red)));
    }
    text
}

/// `3 up, 1 down; this is a peer`
fn hosts_of(status: &StatusView) -> String {
    let HostCounts { up, down, silent } = status.hosts;
    let of = |n: u64, what: &str| (n > 0).then(|| format!("{n} {what}"));
    let counts = [Some(format!("{up} up")), of(silent.unwrap_or(0), "silent"), of(down, "down")];
    let counts = counts.into_iter().flatten().collect::<Vec<_>>().join(", ");
    let place = match (&status.peer, status.role.as_str()) {
        (Some(peer), _) => format!("this one is attached to {peer}"),
        (None, "attached") => "this one is attached to nobody now".to_owned(),
        (None, role) => format!("this one is a {role}"),
    };
    format!("{counts}; {place}, term {}", status.term)
}

/// `plan` and what `apply` did.
pub fn plan(plan: &PlanView, page: &Page) -> String {
    let painted = |line: &str| match line.chars().next() {
        Some('+') => page.paint(line, Some(Color::Green)),
        Some('-') => page.paint(line, Some(Color::Red)),
        Some('~' | '!') => page.paint(line, Some(Color::Yellow)),
        _ => line.to_owned(),
    };
    plan.to_string().lines().map(|line| painted(line) + "\n").collect()
}

#[cfg(test)]
mod tests;
