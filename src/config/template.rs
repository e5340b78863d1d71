//! The templates of a process: every placeholder is known and has a value.
//!
//! Owns which placeholder is legal where. Never expands one. Called by `check`.

use super::fault::suggestion;
use super::section::{Item, Section};
use super::{ClusterSettings, HostSettings};
use crate::spec::template::{Part, TemplateError, Variable, parse};
use crate::spec::{Population, Process};

/// What placeholders are checked against.
pub(super) struct Surroundings<'a> {
    pub source: &'a str,
    pub cluster: &'a ClusterSettings,
    pub host: Option<&'a HostSettings>,
}

/// Checks every template of a process.
pub(super) fn check(section: &Section<'_>, process: &Process, around: &Surroundings<'_>) {
    let texts = |item: Option<Item<'_>>| check_items(item, process, around);
    texts(section.item("command"));
    texts(section.item("working_dir"));
    texts(section.again("ready").item("command"));
    texts(section.again("heartbeat").item("command"));
    for variable in section.again("env").items() {
        texts(Some(variable));
    }
}

fn check_items(item: Option<Item<'_>>, process: &Process, around: &Surroundings<'_>) {
    let Some(item) = item else { return };
    match item.value.as_array() {
        // A list of something else has its own fault already.
        Some(_) => item.list("").into_iter().flatten().for_each(|part| check_text(&part, process, around)),
        None => check_text(&item, process, around),
    }
}

fn check_text(item: &Item<'_>, process: &Process, around: &Surroundings<'_>) {
    let Some(text) = item.as_str() else { return };
    let report = |at: usize, title: String, help: Option<String>| {
        item.sink.report(item.brace_span(around.source, at), title, help);
    };
    let parts = match parse(text) {
        Ok(parts) => parts,
        Err(error) => {
            let (TemplateError::Unclosed { at }
            | TemplateError::Unopened { at }
            | TemplateError::Unknown { at, .. }) = error;
            return report(at, error.to_string(), None);
        }
    };
    let mut at = 0;
    for part in parts {
        match part {
            // A brace is written twice.
            Part::Text(plain) => at += plain.len() + plain.matches(['{', '}']).count(),
            Part::Variable(variable) => {
                if let Some((title, help)) = refusal(&variable, process, around) {
                    report(at, title, help);
                }
                at += text[at..].find('}').map_or(0, |end| end + 1);
            }
        }
    }
}

/// Why this placeholder has no value in this process, and what to do.
fn refusal(
    variable: &Variable,
    process: &Process,
    around: &Surroundings<'_>,
) -> Option<(String, Option<String>)> {
    match variable {
        Variable::Port(name) if !process.ports.contains_key(name) => {
            let help = suggestion(name, process.ports.keys().map(String::as_str))
                .or_else(|| Some(format!("add ports = {{ {name} = \"udp\" }}")));
            Some((format!("{{port.{name}}}: `ports` declares no `{name}`"), help))
        }
        Variable::Ordinal if process.population == Population::PerHost => Some((
            "{ordinal}: a per_host instance has none".to_owned(),
            Some("its name is its host's: write {host}".to_owned()),
        )),
        Variable::Arg(name) if !matches!(process.population, Population::OnDemand { .. }) => Some((
            format!("{{arg.{name}}}: only on_demand instances have arguments"),
            Some("they are given at the launch; add on_demand = { max = 200 }".to_owned()),
        )),
        // With peers the instance may be placed on a host that has the label in its own file.
        Variable::HostLabel(name) if around.cluster.peers.is_empty() => {
            let labels = &around.host?.labels;
            let help = suggestion(name, labels.keys().map(String::as_str))
                .or_else(|| Some(format!("add labels = {{ {name} = \"...\" }} to [host]")));
            (!labels.contains_key(name))
                .then(|| (format!("{{host.label.{name}}}: this host has no label `{name}`"), help))
        }
        _ => None,
    }
}
