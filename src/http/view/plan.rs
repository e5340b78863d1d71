//! What another spec changes, for programs and for people.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::spec::{ProcessName, Spec};

/// What an apply changes, or with `dry_run` would.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanView {
    /// The revision it is based on.
    pub revision: u64,
    /// Processes that are new.
    pub added: Vec<ProcessName>,
    /// Processes that go.
    pub removed: Vec<ProcessName>,
    /// Processes that differ.
    pub changed: Vec<ChangedView>,
    /// `scale` overrides that stay in force.
    pub scaled: BTreeMap<ProcessName, u32>,
    /// Those that end, since the count in the file becomes another.
    #[serde(default)]
    pub unscaled: BTreeMap<ProcessName, u32>,
    /// What to think of before.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// A process that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangedView {
    /// Which.
    pub process: ProcessName,
    /// Its instances are restarted.
    pub restarts: bool,
    /// What differs: key, old, new.
    pub changes: Vec<(String, String, String)>,
}

/// The answer to `POST /v1/apply`: what changed, or with `dry_run` what would.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppliedView {
    /// The revision of the spec now in force.
    pub revision: u64,
    /// What the applied file changes.
    pub plan: PlanView,
}

/// `GET /v1/spec`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SpecView {
    /// Its revision; 0: none was applied yet.
    pub revision: u64,
    /// The desired set.
    #[schema(value_type = Object)]
    pub spec: Spec,
}

impl PlanView {
    /// Whether applying would change anything.
    pub fn changes_something(&self) -> bool {
        !(self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty())
    }
}

/// As `bigbrother plan` shows it: a line for each process that is new (`+`), goes (`-`) or differs (`~`), then its keys.
impl fmt::Display for PlanView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for process in &self.added {
            writeln!(f, "+ {process}")?;
        }
        for process in &self.removed {
            writeln!(f, "- {process}")?;
        }
        for changed in &self.changed {
            let how = if changed.restarts { "restarts its instances" } else { "applies live" };
            writeln!(f, "~ {} ({how})", changed.process)?;
            for (key, old, new) in &changed.changes {
                writeln!(f, "    {key}: {old} -> {new}")?;
            }
        }
        for (process, count) in &self.scaled {
            let back = format!("`bigbrother scale {process} default` takes that back");
            writeln!(f, "  {process} is scaled to {count} ({back})")?;
        }
        for (process, count) in &self.unscaled {
            writeln!(f, "  {process} is not scaled to {count} any more: its count in the file is another")?;
        }
        for warning in &self.warnings {
            writeln!(f, "! {warning}")?;
        }
        if !self.changes_something() {
            writeln!(f, "nothing would change (spec revision {})", self.revision)?;
        }
        Ok(())
    }
}
