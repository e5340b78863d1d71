//! `hosts` and `peers` as tables.

use std::time::Duration;

use comfy_table::Color;

use super::table::{Column, Table, cell};
use super::{Page, age};
use crate::http::view::{HostView, PeerView, SILENT_MS};

const HOSTS: [Column; 10] = [
    Column { head: "HOST", weight: 100, least: 10, right: false },
    Column { head: "STATE", weight: 95, least: 7, right: false },
    Column { head: "ROLE", weight: 90, least: 7, right: false },
    Column { head: "INSTANCES", weight: 80, least: 9, right: true },
    Column { head: "HEARD", weight: 85, least: 6, right: true },
    Column { head: "ADDRESS", weight: 70, least: 9, right: false },
    Column { head: "VERSION", weight: 60, least: 7, right: false },
    Column { head: "LABELS", weight: 50, least: 8, right: false },
    Column { head: "CAPACITY", weight: 40, least: 8, right: false },
    Column { head: "JOINED", weight: 20, least: 6, right: true },
];

/// `hosts`
pub fn hosts(list: &[HostView], page: &Page) -> String {
    if list.is_empty() {
        return "no host has joined yet".to_owned();
    }
    let mut table = Table::new(&HOSTS);
    for host in list {
        // Without a primary it is only known who answered now.
        let no_answer = host.up && host.version.is_none();
        let silent = host.silent_ms.map_or(no_answer, |ms| ms >= SILENT_MS);
        let (state, colour) = match (host.up, host.drained, silent) {
            (false, _, _) => ("down", Color::Red),
            (true, false, true) => ("silent", Color::Red),
            (true, true, true) => ("drained, silent", Color::Red),
            (true, true, false) => ("drained", Color::Yellow),
            (true, false, false) => ("up", Color::Green),
        };
        table.row(vec![
            cell(host.host.to_string()),
            cell(state.to_owned()).colour(Some(colour)),
            cell(host.role.clone()),
            cell(host.instances.to_string()),
            cell(heard(host.silent_ms, no_answer)),
            cell(host.address.clone()),
            cell(host.version.clone().unwrap_or_default()),
            cell(pairs(host.labels.iter())),
            cell(pairs(host.capacity.iter())),
            cell(host.incarnation.to_string()),
        ]);
    }
    table.render(page)
}

/// `ps` of a host on which nothing is.
pub fn empty(host: &HostView) -> String {
    let name = &host.host;
    if host.drained {
        return format!(
            "no instances on {name}: it is drained; `bigbrother undrain {name}` lets them come to it again"
        );
    }
    format!("no instances on {name}; `bigbrother ps` shows what runs elsewhere")
}

const PEERS: [Column; 7] = [
    Column { head: "HOST", weight: 100, least: 10, right: false },
    Column { head: "ROLE", weight: 95, least: 7, right: false },
    Column { head: "HEARD", weight: 90, least: 6, right: true },
    Column { head: "ADDRESS", weight: 80, least: 12, right: false },
    Column { head: "INDEX", weight: 70, least: 5, right: true },
    Column { head: "NUMBER", weight: 60, least: 6, right: true },
    Column { head: "REASON", weight: 85, least: 16, right: false },
];

/// `peers`
pub fn peers(list: &[PeerView], page: &Page) -> String {
    if list.is_empty() {
        return "nobody who knows the peers answers".to_owned();
    }
    let mut table = Table::new(&PEERS);
    for peer in list {
        let role = if peer.primary { "primary".to_owned() } else { peer.role.clone() };
        table.row(vec![
            cell(peer.host.to_string()),
            cell(role),
            cell(heard(peer.silent_ms, peer.unreachable.is_some())),
            cell(peer.address.clone()),
            cell(peer.index.map(|index| index.to_string()).unwrap_or_default()),
            cell(peer.id.to_string()),
            cell(peer.unreachable.clone().unwrap_or_default()),
        ]);
    }
    let told = list.iter().filter_map(|peer| Some(format!("{}: {}\n", peer.host, peer.suggestion.as_ref()?)));
    table.render(page) + &told.collect::<String>()
}

/// How long ago; a host that reports is never more than a moment away.
fn heard(silent_ms: Option<u64>, no_answer: bool) -> String {
    match silent_ms {
        None if no_answer => "no answer".to_owned(),
        None => String::new(),
        Some(..SILENT_MS) => "now".to_owned(),
        Some(ms) => age(Duration::from_millis(ms)),
    }
}

fn pairs<'a, V: std::fmt::Display + 'a>(pairs: impl Iterator<Item = (&'a String, &'a V)>) -> String {
    pairs.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    const PLAIN: Page = Page { width: None, colour: false, now: std::time::UNIX_EPOCH };

    #[test]
    fn a_host_that_is_not_heard_is_not_said_to_be_well() {
        let silent = HostView { silent_ms: Some(3_400), version: None, ..sample::host() };
        let drained = HostView { drained: true, ..silent.clone() };
        let late = HostView { silent_ms: Some(999), ..silent.clone() };
        let unknown = HostView { silent_ms: None, ..silent.clone() };
        assert_eq!(
            hosts(&[silent, drained, late, unknown], &PLAIN),
            "\
HOST   STATE            ROLE     INSTANCES      HEARD  ADDRESS   LABELS     CAPACITY   JOINED
alpha  silent           primary          3         3s  10.0.0.1  region=eu  slots=200       4
alpha  drained, silent  primary          3         3s  10.0.0.1  region=eu  slots=200       4
alpha  up               primary          3        now  10.0.0.1  region=eu  slots=200       4
alpha  silent           primary          3  no answer  10.0.0.1  region=eu  slots=200       4
"
        );
    }
}
