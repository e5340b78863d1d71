//! The command line.

use std::process::ExitCode;

/// Parses the arguments, runs the command and gives its exit code.
pub fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).map(String::as_str) != Some("keeper") {
        return ExitCode::SUCCESS;
    }
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|at| args.get(at + 1)).cloned();
    let options = crate::keeper::Options {
        runtime_dir: value("--runtime-dir").unwrap_or_default().into(),
        cgroup: value("--cgroup").map(Into::into),
        exit_when_idle: args.iter().any(|a| a == "--exit-when-idle"),
    };
    match crate::keeper::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}: {:?}", std::error::Error::source(&error));
            ExitCode::FAILURE
        }
    }
}
