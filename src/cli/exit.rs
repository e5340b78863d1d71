//! How a command ends: exit codes and failures, in one place.

use std::io;

use super::api::ApiError;
use crate::agent::AgentError;
use crate::agent::spec_file::FileError;
use crate::cluster::node::recover::RecoverError;
use crate::cluster::tls::issue::IssueError;
use crate::keeper::KeeperError;

/// The exit codes of the program (docs/cli.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done; what was asked about is so.
    Ok = 0,
    /// What was asked about is not so (not healthy, did not come back in time), or a local failure.
    NotSo = 1,
    /// Wrong arguments, or a file with faults.
    Usage = 2,
    /// No agent answers.
    NoAgent = 3,
    /// The agent refused.
    Refused = 4,
    /// `plan`: applying the file would change something.
    WouldChange = 10,
}

impl Exit {
    /// Every code.
    pub const ALL: [Exit; 6] =
        [Exit::Ok, Exit::NotSo, Exit::Usage, Exit::NoAgent, Exit::Refused, Exit::WouldChange];
}

/// Why a command did not do what it was asked to do.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It did, and the answer is no.
    #[error("{0}")]
    NotSo(String),
    /// The arguments make no sense together.
    #[error("{0}")]
    Usage(String),
    /// The file has faults; the text is a whole report.
    #[error("{0}")]
    Invalid(String),
    /// The agent could not be asked, or refused.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The agent could not start or had to end.
    #[error("the agent cannot run")]
    Agent(#[from] AgentError),
    /// The keeper could not start or go on.
    #[error("the keeper cannot run")]
    Keeper(#[from] KeeperError),
    /// A certificate could not be made.
    #[error(transparent)]
    Ca(#[from] IssueError),
    /// A copy of the state could not be made the cluster's.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// The machine refused.
    #[error("{what}")]
    Local {
        /// What failed.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// Nobody reads what is printed any more, or it cannot be written.
    #[error("cannot print")]
    Output(#[source] io::Error),
}

impl Failure {
    /// Its exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Failure::Agent(AgentError::File(FileError::Faults(_))) => Exit::Usage,
            Failure::NotSo(_) | Failure::Local { .. } | Failure::Ca(_) => Exit::NotSo,
            Failure::Agent(_) | Failure::Keeper(_) | Failure::Recover(_) => Exit::NotSo,
            Failure::Usage(_) | Failure::Invalid(_) => Exit::Usage,
            Failure::Api(ApiError::Refused(_)) => Exit::Refused,
            Failure::Api(_) => Exit::NoAgent,
            // `bigbrother events | head`: the reader has had enough, which is no failure.
            Failure::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
            Failure::Output(_) => Exit::NotSo,
        }
    }

    /// Says it on stderr, with its causes.
    pub fn tell(&self) {
        match self {
            Failure::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
            Failure::Invalid(report) | Failure::Agent(AgentError::File(FileError::Faults(report))) => {
                eprintln!("{}", report.trim_end())
            }
            other => eprintln!("error: {}", with_causes(other)),
        }
    }
}

/// An error and its causes on one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        // Some libraries repeat their cause in their own words.
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let failure =
            Failure::Local { what: "cannot read x.toml".to_owned(), source: io::Error::other("bad disk") };
        assert_eq!(with_causes(&failure), "cannot read x.toml: bad disk");
    }

    #[test]
    fn a_reader_that_leaves_is_no_failure() {
        assert_eq!(Failure::Output(io::ErrorKind::BrokenPipe.into()).exit(), Exit::Ok);
        assert_eq!(Failure::Output(io::ErrorKind::StorageFull.into()).exit(), Exit::NotSo);
    }
}
