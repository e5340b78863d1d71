//! What another spec would change: the words of `bigbrother plan`.
//!
//! Pure. Called by the agent (`GET /v1/plan`, dry-run apply, spec drift). Never looks at instances: what
//! the change does to them is the plan's business, but for the restart that the spec hash foretells.

use std::collections::BTreeSet;

use super::written;
use crate::http::view::{ChangedView, PlanView};
use crate::spec::fingerprint::spec_hash;
use crate::spec::{Process, ProcessName, Spec};

/// Stands for a key that one side does not set.
pub const NOT_SET: &str = "not set";

/// What `new` adds, removes and changes. `revision` and `scaled` are left for the caller to fill.
pub fn difference(old: &Spec, new: &Spec) -> PlanView {
    let missing_in = |other: &Spec, spec: &Spec| -> Vec<ProcessName> {
        spec.processes.keys().filter(|name| !other.processes.contains_key(*name)).cloned().collect()
    };
    let changed = old.processes.iter().filter_map(|(name, before)| {
        let after = new.processes.get(name).filter(|after| *after != before)?;
        Some(ChangedView {
            process: name.clone(),
            restarts: spec_hash(before) != spec_hash(after),
            changes: changes(before, after),
        })
    });
    PlanView {
        added: missing_in(old, new),
        removed: missing_in(new, old),
        changed: changed.collect(),
        ..PlanView::default()
    }
}

fn changes(old: &Process, new: &Process) -> Vec<(String, String, String)> {
    let (old, new) = (written::process(old), written::process(new));
    let shown = |value: Option<&String>| value.cloned().unwrap_or_else(|| NOT_SET.to_owned());
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    keys.into_iter()
        .filter(|key| old.get(*key) != new.get(*key))
        .map(|key| (key.clone(), shown(old.get(key)), shown(new.get(key))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Context, parse};

    fn spec(text: &str) -> Spec {
        let context = Context { hostname: "alpha".into(), host_override: None };
        parse(text, "t", &context).unwrap().spec
    }

    #[test]
    fn every_kind_of_change_is_told() {
        let old = spec(
            "[process.gone]\ncommand=['/a']\n[process.same]\ncommand=['/a']\n\
             [process.live]\ncommand=['/a']\n[process.again]\ncommand=['/a']\nuser='games'",
        );
        let new = spec(
            "[process.fresh]\ncommand=['/a']\n[process.same]\ncommand=['/a']\n\
             [process.live]\ncommand=['/a']\ncount=3\nstop.timeout='20s'\n[process.again]\ncommand=['/b']",
        );
        let plan = difference(&old, &new);
        assert_eq!(plan.added, ["fresh".parse().unwrap()]);
        assert_eq!(plan.removed, ["gone".parse().unwrap()]);
        let change = |key: &str, old: &str, new: &str| (key.to_owned(), old.to_owned(), new.to_owned());
        assert_eq!(
            plan.changed,
            [
                ChangedView {
                    process: "again".parse().unwrap(),
                    restarts: true,
                    changes: vec![
                        change("command", "[\"/a\"]", "[\"/b\"]"),
                        change("user", "\"games\"", NOT_SET)
                    ],
                },
                ChangedView {
                    process: "live".parse().unwrap(),
                    restarts: false,
                    changes: vec![change("count", "1", "3"), change("stop.timeout", "\"10s\"", "\"20s\"")],
                },
            ]
        );
    }

    #[test]
    fn a_spec_does_not_differ_from_itself() {
        let spec = spec("[process.a]\ncommand=['/a']");
        assert_eq!(difference(&spec, &spec), PlanView::default());
    }
}
