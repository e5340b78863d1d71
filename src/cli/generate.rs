//! `completions` and `man`: what is derived from the definition of the command line.

use std::io;
use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use super::definition;
use super::exit::{Exit, Failure};
use super::output::Output;

/// `completions`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// For which shell.
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// `man`
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write a page for each command into this folder instead of printing the first one.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// `completions`
pub fn completions(args: &CompletionsArgs, out: &Output) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut definition(), "bigbrother", &mut script);
    out.bytes(&script)?;
    Ok(Exit::Ok)
}

/// `man`
pub fn man(args: &ManArgs, out: &Output) -> Result<Exit, Failure> {
    match &args.out {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(definition()).render(&mut page).map_err(Failure::Output)?;
            out.bytes(&page)?;
        }
        Some(folder) => {
            let failed = |source: io::Error| Failure::Local {
                what: format!(
                    "cannot write manual pages into {}; name a folder that you may write to",
                    folder.display()
                ),
                source,
            };
            std::fs::create_dir_all(folder).map_err(failed)?;
            clap_mangen::generate_to(definition(), folder).map_err(failed)?;
        }
    }
    Ok(Exit::Ok)
}
