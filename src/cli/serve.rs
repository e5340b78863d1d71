//! `agent` and `keeper`: the two long-running parts of a host.
//!
//! Owns only their arguments; what they do is in [`crate::agent`] and [`crate::keeper`].

use std::path::PathBuf;

use clap::Args;

use super::exit::{Exit, Failure};

/// `agent`
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// The cluster.toml of this host.
    #[arg(long, value_name = "FILE", default_value = "/etc/bigbrother/cluster.toml")]
    config: PathBuf,
    /// This host's name, in place of the file's [host] name.
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// A keeper that the agent starts itself ends when it holds nothing any more.
    #[arg(long, hide = true)]
    keeper_exit_when_idle: bool,
}

/// `keeper`
#[derive(Debug, Args)]
pub struct KeeperArgs {
    /// The folder of sockets and ledger, [host] runtime_dir.
    #[arg(long, value_name = "DIR", default_value = "/run/bigbrother")]
    runtime_dir: PathBuf,
    /// The cgroup below which games live, or "none". Default: found by itself.
    #[arg(long, value_name = "PATH")]
    cgroup: Option<String>,
    /// End when no run is left and no agent is connected.
    #[arg(long)]
    exit_when_idle: bool,
}

/// What the agent is told by the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentOptions {
    /// The cluster.toml.
    pub config: PathBuf,
    /// This host's name, in place of the file's.
    pub host: Option<String>,
    /// The program that is started as keeper when none runs.
    pub keeper_exe: PathBuf,
    /// That keeper ends when it holds nothing any more.
    pub keeper_exit_when_idle: bool,
}

/// What the keeper is told by the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeeperOptions {
    /// The folder of sockets and ledger.
    pub runtime_dir: PathBuf,
    /// The cgroup below which games live, or "none"; `None`: found by itself.
    pub cgroup: Option<String>,
    /// End when no run is left and no agent is connected.
    pub exit_when_idle: bool,
}

/// Runs the agent until it is told to end.
pub fn agent(args: AgentArgs) -> Result<Exit, Failure> {
    let keeper_exe = own_program()?;
    let AgentArgs { config, host, keeper_exit_when_idle } = args;
    run_agent(AgentOptions { config, host, keeper_exe, keeper_exit_when_idle })
}

/// Runs the keeper until it is told to end.
pub fn keeper(args: KeeperArgs) -> Result<Exit, Failure> {
    let KeeperArgs { runtime_dir, cgroup, exit_when_idle } = args;
    run_keeper(KeeperOptions { runtime_dir, cgroup, exit_when_idle })
}

/// The path of this program.
pub fn own_program() -> Result<PathBuf, Failure> {
    std::env::current_exe()
        .map_err(|source| Failure::Local { what: "cannot find the path of this program".to_owned(), source })
}

// The seam to `crate::agent::run`, which is not merged yet.
fn run_agent(options: AgentOptions) -> Result<Exit, Failure> {
    Err(Failure::NotSo(format!("this build has no agent yet (asked to run {})", options.config.display())))
}

// The seam to `crate::keeper::run`, which is not merged yet.
fn run_keeper(options: KeeperOptions) -> Result<Exit, Failure> {
    Err(Failure::NotSo(format!("this build has no keeper yet (asked for {})", options.runtime_dir.display())))
}
