//! `agent` and `keeper`: the two long-running parts of a host.
//!
//! Owns only their arguments; what they do is in [`crate::agent`] and [`crate::keeper`].

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;

use super::exit::{Exit, Failure};
use crate::agent::keeper_link::KeeperSource;
use crate::agent::{self, AgentOptions};
use crate::keeper;

/// `agent`
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// The cluster.toml of this host.
    #[arg(long, value_name = "FILE", default_value = "/etc/bigbrother/cluster.toml")]
    config: PathBuf,
    /// This host's name, in place of the file's [host] name.
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// systemd (or somebody else) starts the keeper; without this the agent does.
    #[arg(long)]
    external_keeper: bool,
    /// Given to a keeper that the agent starts: the cgroup below which games live, or "none".
    #[arg(long, value_name = "PATH", conflicts_with = "external_keeper")]
    cgroup: Option<String>,
}

/// `keeper`
#[derive(Debug, Args)]
pub struct KeeperArgs {
    /// The folder of sockets and ledger, [host] runtime_dir.
    #[arg(long, value_name = "DIR", default_value = "/run/bigbrother")]
    runtime_dir: PathBuf,
    /// The cgroup below which games live, or "none"; a relative path lies below wherever cgroup v2 is mounted.
    /// Default: found by itself.
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// End when no run is left and no agent is connected.
    #[arg(long)]
    exit_when_idle: bool,
}

/// Runs the agent until it is told to end.
pub fn agent(args: AgentArgs) -> Result<Exit, Failure> {
    let AgentArgs { config, host, external_keeper, cgroup } = args;
    let keeper = match external_keeper {
        true => KeeperSource::External,
        false => KeeperSource::Own { program: own_program()?, cgroup },
    };
    log();
    agent::run(&AgentOptions { config, host, keeper })?;
    Ok(Exit::Ok)
}

/// Runs the keeper until it is told to end.
pub fn keeper(args: KeeperArgs) -> Result<Exit, Failure> {
    let KeeperArgs { runtime_dir, cgroup, exit_when_idle } = args;
    log();
    keeper::run(keeper::Options { runtime_dir, cgroup, exit_when_idle })?;
    Ok(Exit::Ok)
}

/// What is logged unless BIGBROTHER_LOG says otherwise. Raft tells of each attempt to reach a peer that is down; what
/// an operator needs of that is told by this program itself.
const LOG: &str = "info,openraft=error";

/// Structured messages on stderr, where journald finds them: for people, or an object a line. docs/operations.md has the
/// variables.
fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("BIGBROTHER_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(LOG));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // A log on a full disk must not end the program: telling of it on stderr would fail, too, and panic.
        .log_internal_errors(false);
    match std::env::var("BIGBROTHER_LOG_FORMAT").as_deref() {
        Ok("json") => log.json().flatten_event(true).init(),
        _ => log.init(),
    }
}

/// The path of this program.
pub fn own_program() -> Result<PathBuf, Failure> {
    std::env::current_exe()
        .map_err(|source| Failure::Local { what: "cannot find the path of this program".to_owned(), source })
}
