//! The command line: what operators type.
//!
//! Owns the commands, their arguments, what they print and their exit codes (docs/cli.md). Everything that
//! asks or changes goes through the HTTP API of an agent ([`api`]); nothing here touches an instance, with
//! one exception: `kill-test` sends its signals itself, from outside, as a real fault would come. One file
//! per command group; [`render`] is pure. Called by `main`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};

pub mod api;
pub mod audit;
pub mod ca;
pub mod declare;
pub mod demo_zone;
pub mod dev;
pub mod exit;
pub mod generate;
pub mod hosts;
pub mod kill_test;
pub mod look;
pub mod operate;
pub mod output;
pub mod peers;
mod pidfd;
pub mod render;
pub mod serve;
pub mod token;
pub mod wait;

use api::{Access, Address, Api, find};
use exit::{Exit, Failure};
use output::Output;

use crate::config::read_duration;

/// A SPAN on the command line, read as those in cluster.toml are.
fn read_span(text: &str) -> Result<Duration, &'static str> {
    read_duration(text).ok_or("a span such as 90s or 2m")
}

/// What all commands take.
#[derive(Debug, Args)]
struct Common {
    /// Where the agent answers: unix:/path/to/api.sock, https://HOST:PORT, or on this machine http://HOST:PORT.
    ///
    /// Default: /run/bigbrother/api.sock if it is there, else the socket in the runtime_dir of ./cluster.toml.
    #[arg(long, global = true, env = "BIGBROTHER_API", value_name = "ADDRESS")]
    api: Option<Address>,

    /// A file with the token to show over TCP (also BIGBROTHER_TOKEN, which holds the token itself).
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// The certificate of the CA that the agent's is to be of, over https. Default: those that this system trusts.
    #[arg(long, global = true, env = "BIGBROTHER_CA", value_name = "FILE")]
    ca: Option<PathBuf>,

    /// Print JSON (one value a line where it streams) instead of text.
    #[arg(long, global = true)]
    json: bool,
}

/// Keeps the declared processes of a game cluster running.
#[derive(Debug, Parser)]
#[command(name = "bigbrother", version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(flatten)]
    common: Common,

    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Exit codes: 0 done; 1 what was asked about is not so; 2 wrong usage or invalid file;
3 no agent answers; 4 the agent refused; 10 `plan` found changes.

Try it: bigbrother dev";

/// Every command.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run a demonstration: a few zone servers under an agent of their own, in a fresh folder.
    Dev(dev::DevArgs),
    /// Run this host's agent.
    Agent(serve::AgentArgs),
    /// Run this host's keeper, the parent of all game processes.
    Keeper(serve::KeeperArgs),
    /// Make the cluster's CA and the certificates of its hosts.
    Ca(ca::CaArgs),
    /// Look for faults in a cluster.toml, without an agent.
    Check(declare::CheckArgs),
    /// Show what `apply` would change. Exits 0 if nothing, 10 if something.
    Plan(declare::PlanArgs),
    /// Make the processes of a cluster.toml the cluster's.
    Apply(declare::ApplyArgs),
    /// Show the state of cluster, agent and keeper. Exits 1 if it is not healthy.
    Status(look::StatusArgs),
    /// List instances.
    ///
    /// BEAT is how long ago the last heartbeat of the run was, PLAYERS what it says of itself.
    Ps(look::PsArgs),
    /// Show what happened, and with -f what happens.
    Events(look::EventsArgs),
    /// Show what an instance wrote.
    Logs(look::LogsArgs),
    /// Show what was found out about an instance when it last hung.
    HangReport(look::HangReportArgs),
    /// List hosts, or give one up by hand.
    Hosts(hosts::HostsArgs),
    /// Let all instances of a host go elsewhere, and none come to it.
    Drain(hosts::DrainArgs),
    /// Let instances come to a host again.
    Undrain(hosts::UndrainArgs),
    /// List the peers, which keep the cluster's state, or change them.
    Peers(peers::PeersArgs),
    /// Make, list or revoke tokens: who may ask the API over TCP.
    Token(token::TokenArgs),
    /// Show which changes were asked for, by whom, and what came of them.
    Audit(audit::AuditArgs),
    /// Replace runs by new ones.
    Restart(operate::RestartArgs),
    /// Stop instances until `start`; restarts and reboots do not bring them back.
    Stop(operate::TargetArgs),
    /// Let stopped and failed instances run again.
    Start(operate::TargetArgs),
    /// Override the count of a process.
    Scale(operate::ScaleArgs),
    /// Launch an instance of an on-demand process.
    Launch(operate::LaunchArgs),
    /// Make the agent read its file again.
    Reload,
    /// Kill or hang random instances and measure how fast they are back. Exits 1 if one is not.
    KillTest(kill_test::KillTestArgs),
    /// Print the completions for a shell.
    Completions(generate::CompletionsArgs),
    /// Print or write the manual pages.
    Man(generate::ManArgs),
    /// Be a small zone server, for `dev` and for tests.
    #[command(hide = true)]
    DemoZone(demo_zone::DemoZoneArgs),
}

/// The two commands that the start of a host waits for, one after the other: to make all the others, too, takes each of
/// them half a millisecond.
#[derive(Debug, Parser)]
#[command(name = "bigbrother", version, max_term_width = 100)]
struct Parts {
    #[command(flatten)]
    common: Common,

    #[command(subcommand)]
    part: Part,
}

/// As in [`Command`].
#[derive(Debug, Subcommand)]
enum Part {
    /// Run this host's agent.
    Agent(serve::AgentArgs),
    /// Run this host's keeper, the parent of all game processes.
    Keeper(serve::KeeperArgs),
}

fn parse() -> Cli {
    let first = std::env::args_os().nth(1);
    if !first.is_some_and(|first| first == "agent" || first == "keeper") {
        return Cli::parse();
    }
    let Parts { common, part } = Parts::parse();
    let command = match part {
        Part::Agent(args) => Command::Agent(args),
        Part::Keeper(args) => Command::Keeper(args),
    };
    Cli { common, command }
}

/// Parses the arguments, runs the command and gives its exit code.
pub fn main() -> ExitCode {
    let Cli { common: Common { api, token_file, ca, json }, command } = parse();
    let outcome = command.run(|| client(api, token_file, ca), Output::new(json));
    let exit = match outcome {
        Ok(exit) => exit,
        Err(failure) => {
            failure.tell();
            failure.exit()
        }
    };
    ExitCode::from(exit as u8)
}

/// The client of the agent that is meant.
fn client(api: Option<Address>, token_file: Option<PathBuf>, ca: Option<PathBuf>) -> Result<Api, Failure> {
    let access = Access::gather(token_file.as_deref(), ca).map_err(|source| Failure::Local {
        what: format!("cannot read the token from {}", token_file.unwrap_or_default().display()),
        source,
    })?;
    Ok(Api::new(api.unwrap_or_else(find)).with(access))
}

/// The definition of the command line, for completions and manual pages.
pub fn definition() -> clap::Command {
    Cli::command()
}

impl Command {
    fn run(self, client: impl FnOnce() -> Result<Api, Failure>, out: Output) -> Result<Exit, Failure> {
        match self {
            Command::Agent(args) => serve::agent(args),
            Command::Keeper(args) => serve::keeper(args),
            Command::DemoZone(args) => demo_zone::run(args),
            Command::Check(args) => declare::check(&args, &out),
            Command::Ca(args) => ca::run(args, &out),
            Command::Completions(args) => generate::completions(&args, &out),
            Command::Man(args) => generate::man(&args, &out),
            Command::Dev(args) => block_on(dev::run(args, out)),
            command => {
                let api = client()?;
                block_on(command.ask(&api, &out))
            }
        }
    }

    /// The commands that need an agent.
    async fn ask(self, api: &Api, out: &Output) -> Result<Exit, Failure> {
        match self {
            Command::Plan(args) => declare::plan(&args, api, out).await,
            Command::Apply(args) => declare::apply(&args, api, out).await,
            Command::Status(args) => look::status(&args, api, out).await,
            Command::Ps(args) => look::ps(&args, api, out).await,
            Command::Events(args) => look::events(&args, api, out).await,
            Command::Logs(args) => look::logs(&args, api, out).await,
            Command::HangReport(args) => look::hang_report(&args, api, out).await,
            Command::Hosts(args) => hosts::hosts(args, api, out).await,
            Command::Drain(args) => hosts::drain(args, api, out).await,
            Command::Undrain(args) => hosts::undrain(&args, api, out).await,
            Command::Peers(args) => peers::peers(args, api, out).await,
            Command::Token(args) => token::token(args, api, out).await,
            Command::Audit(args) => audit::audit(&args, api, out).await,
            Command::Restart(args) => operate::restart(args, api, out).await,
            Command::Stop(args) => operate::stop(args, api, out).await,
            Command::Start(args) => operate::start(args, api, out).await,
            Command::Scale(args) => operate::scale(&args, api, out).await,
            Command::Launch(args) => operate::launch(args, api, out).await,
            Command::Reload => operate::reload(api, out).await,
            Command::KillTest(args) => kill_test::run(&args, api, out).await,
            Command::Agent(_)
            | Command::Keeper(_)
            | Command::DemoZone(_)
            | Command::Ca(_)
            | Command::Check(_)
            | Command::Completions(_)
            | Command::Man(_)
            | Command::Dev(_) => unreachable!("run without an agent"),
        }
    }
}

fn block_on(work: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Failure::Local { what: "cannot start the runtime".to_owned(), source })?
        .block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        definition().debug_assert();
    }

    #[test]
    fn agent_and_keeper_are_the_same_among_all_commands_and_by_themselves() {
        let help = |mut of: clap::Command, name: &str| {
            of.build();
            of.find_subcommand_mut(name).unwrap().render_long_help().to_string()
        };
        for name in ["agent", "keeper"] {
            let alone = help(Parts::command(), name);
            assert_eq!(alone, help(definition(), name));
            assert!(alone.contains("--api") && alone.contains("--cgroup"), "{alone}");
        }
        assert_eq!(Parts::command().get_subcommands().count(), 2);
        Parts::command().debug_assert();
    }

    #[test]
    fn every_command_and_argument_has_its_help() {
        for command in definition().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
        }
    }

    /// What stands in the document as it is to be typed: between backticks, or on a line of its own.
    fn commands(doc: &str) -> Vec<String> {
        let spans = doc.split('`').skip(1).step_by(2).map(str::to_owned);
        let lines = doc.lines().filter(|line| !line.contains('`')).map(|line| {
            let typed = line.trim().trim_start_matches("$ ").split(" #").next();
            typed.unwrap_or_default().trim_start_matches("target/release/").to_owned()
        });
        let all = spans.chain(lines).map(|typed| typed.split_whitespace().collect::<Vec<_>>().join(" "));
        // Pictures are not typed.
        all.filter(|typed| typed.starts_with("bigbrother ") && typed.is_ascii()).collect()
    }

    #[test]
    fn every_command_of_the_manual_works_as_it_is_typed() {
        for (doc, at_least) in [
            (include_str!("../docs/operations.md"), 30),
            (include_str!("../README.md"), 5),
            (include_str!("../cluster.toml.example"), 2),
        ] {
            let commands = commands(doc);
            assert!(commands.len() >= at_least, "only {commands:#?} were found");
            for typed in commands {
                // What stands for a name is none.
                let words = typed.split(' ').map(|word| word.trim_matches('"').to_lowercase());
                let parsed = definition().try_get_matches_from(words);
                assert!(parsed.is_ok(), "{typed}\n{}", parsed.unwrap_err());
            }
        }
    }

    #[test]
    fn every_command_option_and_exit_code_is_documented() {
        let doc = include_str!("../docs/cli.md");
        for command in definition().get_subcommands().filter(|c| !c.is_hide_set()) {
            let name = command.get_name();
            assert!(doc.contains(&format!("`{name}")), "docs/cli.md says nothing about `{name}`");
            for option in command.get_arguments().filter(|a| !a.is_hide_set()).filter_map(|a| a.get_long()) {
                assert!(doc.contains(&format!("--{option}")), "docs/cli.md: `{name} --{option}` is missing");
            }
        }
        for exit in Exit::ALL {
            assert!(
                doc.contains(&format!("| {} |", exit as u8)),
                "docs/cli.md: exit code {exit:?} is missing"
            );
        }
    }
}
