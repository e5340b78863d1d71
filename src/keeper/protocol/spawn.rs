//! What a spawn is made of, and where it can fail.

use serde::{Deserialize, Serialize};

use super::RunId;
use crate::spec::InstanceId;

/// Everything that a spawn needs, resolved: the keeper looks nothing up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// The run's number.
    pub run: RunId,
    /// The instance that it is a life of; names the cgroup, the FIFOs and the log files.
    pub instance: InstanceId,
    /// Absolute path of the program.
    pub program: String,
    /// argv, the name included.
    pub args: Vec<String>,
    /// The whole environment as `KEY=value`.
    pub env: Vec<String>,
    /// The folder to start in.
    pub working_dir: String,
    /// Numbers to become; `None`: stay.
    pub account: Option<Account>,
    /// The file mode creation mask.
    pub umask: u32,
    /// The scheduling priority.
    pub nice: i32,
    /// (RLIMIT_ number, soft and hard value).
    pub rlimits: Vec<(u32, u64)>,
    /// Ignore SIGPIPE in the child.
    pub ignore_sigpipe: bool,
    /// (file, value) to write below the run's cgroup before it starts.
    pub limits: Vec<(String, String)>,
    /// Refuse the spawn when a limit cannot be written.
    pub limits_required: bool,
    /// Kill it when the fence deadline passes.
    pub exclusive: bool,
    /// Where stdout and stderr go.
    pub logs: LogTarget,
    /// Opaque bytes of the agent ([`super::MAX_NOTE`] at most), kept in the ledger and given back in [`super::Reply::Run`]:
    /// what it must know to go on after a restart of either.
    pub note: Vec<u8>,
}

/// Numbers of an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Where stdout and stderr of a run go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogTarget {
    /// `stdout.log` and `stderr.log` in a folder, rotated.
    Files {
        /// The folder; made when it is missing.
        folder: String,
        /// Bytes of one file.
        size: u64,
        /// Files kept a stream, the current one included; at least 1.
        files: u32,
    },
    /// A stream of the systemd journal.
    Journald,
    /// /dev/null.
    Null,
}

/// What a spawn was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpawnStep {
    /// Another run of the instance is alive.
    Busy,
    /// The ledger has no free slot.
    Ledger,
    /// Making or cleaning the cgroup.
    Cgroup,
    /// Writing a required limit.
    Limit,
    /// Making the log FIFOs or connecting the journal.
    Logs,
    /// fork.
    Fork,
    /// setsid.
    Session,
    /// setrlimit.
    Rlimit,
    /// setpriority.
    Nice,
    /// dup2 or close_range.
    Descriptors,
    /// chdir.
    WorkingDir,
    /// setgroups or setgid.
    Group,
    /// setuid.
    User,
    /// execve.
    Exec,
}

/// A failed spawn in words: what was being done, and why it failed.
pub fn describe_failure(step: SpawnStep, errno: i32) -> String {
    let what = match step {
        SpawnStep::Busy => return "another run of the instance is alive".to_owned(),
        SpawnStep::Ledger => "writing the ledger",
        SpawnStep::Cgroup => "making the cgroup",
        SpawnStep::Limit => "setting a required limit",
        SpawnStep::Logs => "opening the logs",
        SpawnStep::Fork => "fork",
        SpawnStep::Session => "setsid",
        SpawnStep::Rlimit => "setting resource limits",
        SpawnStep::Nice => "setting the priority",
        SpawnStep::Descriptors => "preparing descriptors",
        SpawnStep::WorkingDir => "changing to the working folder",
        SpawnStep::Group => "changing the group",
        SpawnStep::User => "changing the user",
        SpawnStep::Exec => "executing the program",
    };
    match errno {
        0 => format!("{what} failed"),
        _ => format!("{what}: {}", nix::errno::Errno::from_raw(errno).desc()),
    }
}
