//! `check`, `plan` and `apply`: the desired set, from a file.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::api::Api;
use super::exit::{Exit, Failure};
use super::output::Output;
use super::render;
use crate::agent::spec_file;
use crate::config::{self, Config};
use crate::http::view::PlanView;

/// The file when none is named.
const DEFAULT_FILE: &str = "cluster.toml";

/// `check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The cluster.toml.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// `plan`
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The cluster.toml.
    #[arg(value_name = "FILE", default_value = DEFAULT_FILE)]
    file: PathBuf,
}

/// `apply`
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// The cluster.toml.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Refuse unless the spec in force has this revision (`plan` shows it): nobody applied in between.
    #[arg(long, value_name = "N")]
    expected_revision: Option<u64>,
}

/// The JSON of `check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckView {
    /// The file, as named.
    pub file: String,
    /// It has no faults.
    pub valid: bool,
    /// The report with every fault; null when there is none.
    pub report: Option<String>,
}

/// The JSON of `apply`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedView {
    /// The revision of the spec now.
    pub revision: u64,
    /// What was changed.
    pub plan: PlanView,
}

/// `check`: exit code 2 when there are faults.
pub fn check(args: &CheckArgs, out: &Output) -> Result<Exit, Failure> {
    let text = read(&args.file)?;
    let file = args.file.display().to_string();
    match (parsed(&args.file, &text), out.json) {
        (Ok(_), true) => out.value(&CheckView { file, valid: true, report: None })?,
        (Ok(config), false) if config.spec.processes.is_empty() => {
            out.text(&format!("{file}: no faults, and no process: applied, it ends all that there are"))?;
        }
        (Ok(_), false) => out.text(&format!("{file}: no faults"))?,
        (Err(report), true) => {
            out.value(&CheckView { file, valid: false, report: Some(report) })?;
            return Ok(Exit::Usage);
        }
        (Err(report), false) => return Err(Failure::Invalid(report)),
    }
    Ok(Exit::Ok)
}

/// `plan`: exit code 10 when something would change.
pub async fn plan(args: &PlanArgs, api: &Api, out: &Output) -> Result<Exit, Failure> {
    let text = read_valid(&args.file)?;
    let answer: AppliedView = api.post_toml("/v1/apply?dry_run=true", &text).await?;
    out.answer(&answer.plan, |page| {
        let text = render::plan(&answer.plan, page);
        match answer.plan.changes_something() {
            true => format!("{text}the spec has revision {} now", answer.plan.revision),
            false => text,
        }
    })?;
    Ok(if answer.plan.changes_something() { Exit::WouldChange } else { Exit::Ok })
}

/// `apply`
pub async fn apply(args: &ApplyArgs, api: &Api, out: &Output) -> Result<Exit, Failure> {
    let text = read_valid(&args.file)?;
    let path = match args.expected_revision {
        Some(revision) => format!("/v1/apply?expected_revision={revision}"),
        None => "/v1/apply".to_owned(),
    };
    let applied: AppliedView = api.post_toml(&path, &text).await?;
    out.answer(&applied, |page| {
        if applied.plan.changes_something() {
            format!(
                "{}applied: the spec has revision {}",
                render::plan(&applied.plan, page),
                applied.revision
            )
        } else {
            format!("nothing to change: the spec has revision {}", applied.revision)
        }
    })?;
    Ok(Exit::Ok)
}

fn read(file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file).map_err(|source| Failure::Local {
        what: format!("cannot read {} (is it the cluster.toml that you mean?)", file.display()),
        source,
    })
}

fn read_valid(file: &Path) -> Result<String, Failure> {
    let text = read(file)?;
    parsed(file, &text).map_err(Failure::Invalid)?;
    Ok(text)
}

/// What the file says, or the report of its faults.
fn parsed(file: &Path, text: &str) -> Result<Config, String> {
    let read = config::parse(text, &file.display().to_string(), &spec_file::context(None));
    read.map_err(|faults| faults.render(std::io::stderr().is_terminal()))
}
