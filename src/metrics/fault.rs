//! What can go wrong on process sockets, in spawning and in saving, as closed labels.

use crate::keeper::protocol::SpawnStep;

/// Why a message or connection on a process socket was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketFault {
    /// Not a message of the protocol.
    Malformed,
    /// Over the bound of a line or datagram.
    Oversized,
    /// Sent by a process that does not belong to the instance.
    Stranger,
    /// Dropped because there were too many.
    Flooded,
    /// A connection over the bound.
    Refused,
}

/// What kept a run from being started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpawnFault {
    /// The keeper failed at this step.
    Step(SpawnStep),
    /// The exec does not come back.
    Stuck,
    /// The user or group does not exist, or may not be used.
    Account,
    /// No free port, or a fixed one is taken.
    Port,
    /// A template has no value.
    Template,
    /// The host's policy forbids it.
    Policy,
    /// The instance's sockets or folders could not be made.
    Files,
}

/// A file in data_dir that holds what must outlive the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavedFile {
    /// Run numbers and assigned ports.
    Book,
    /// The replicated state of a host alone.
    State,
    /// The audit trail.
    Audit,
}

impl SavedFile {
    pub(super) const ALL: [SavedFile; 3] = [SavedFile::Book, SavedFile::State, SavedFile::Audit];

    pub(super) fn label(self) -> &'static str {
        match self {
            SavedFile::Book => "host.json",
            SavedFile::State => "state.bin",
            SavedFile::Audit => "audit.jsonl",
        }
    }
}

impl SocketFault {
    pub(super) const ALL: [SocketFault; 5] = [
        SocketFault::Malformed,
        SocketFault::Oversized,
        SocketFault::Stranger,
        SocketFault::Flooded,
        SocketFault::Refused,
    ];

    pub(super) fn label(self) -> &'static str {
        match self {
            SocketFault::Malformed => "malformed",
            SocketFault::Oversized => "oversized",
            SocketFault::Stranger => "stranger",
            SocketFault::Flooded => "flooded",
            SocketFault::Refused => "refused",
        }
    }
}

impl SpawnFault {
    pub(super) const ALL: [SpawnFault; 20] = [
        SpawnFault::Step(SpawnStep::Busy),
        SpawnFault::Step(SpawnStep::Ledger),
        SpawnFault::Step(SpawnStep::Cgroup),
        SpawnFault::Step(SpawnStep::Limit),
        SpawnFault::Step(SpawnStep::Logs),
        SpawnFault::Step(SpawnStep::Fork),
        SpawnFault::Step(SpawnStep::Session),
        SpawnFault::Step(SpawnStep::Rlimit),
        SpawnFault::Step(SpawnStep::Nice),
        SpawnFault::Step(SpawnStep::Descriptors),
        SpawnFault::Step(SpawnStep::WorkingDir),
        SpawnFault::Step(SpawnStep::Group),
        SpawnFault::Step(SpawnStep::User),
        SpawnFault::Step(SpawnStep::Exec),
        SpawnFault::Stuck,
        SpawnFault::Account,
        SpawnFault::Port,
        SpawnFault::Template,
        SpawnFault::Policy,
        SpawnFault::Files,
    ];

    pub(super) fn label(self) -> &'static str {
        match self {
            SpawnFault::Step(SpawnStep::Busy) => "busy",
            SpawnFault::Step(SpawnStep::Ledger) => "ledger",
            SpawnFault::Step(SpawnStep::Cgroup) => "cgroup",
            SpawnFault::Step(SpawnStep::Limit) => "limit",
            SpawnFault::Step(SpawnStep::Logs) => "logs",
            SpawnFault::Step(SpawnStep::Fork) => "fork",
            SpawnFault::Step(SpawnStep::Session) => "session",
            SpawnFault::Step(SpawnStep::Rlimit) => "rlimit",
            SpawnFault::Step(SpawnStep::Nice) => "nice",
            SpawnFault::Step(SpawnStep::Descriptors) => "descriptors",
            SpawnFault::Step(SpawnStep::WorkingDir) => "working_dir",
            SpawnFault::Step(SpawnStep::Group) => "group",
            SpawnFault::Step(SpawnStep::User) => "user",
            SpawnFault::Step(SpawnStep::Exec) => "exec",
            SpawnFault::Stuck => "stuck",
            SpawnFault::Account => "account",
            SpawnFault::Port => "port",
            SpawnFault::Template => "template",
            SpawnFault::Policy => "policy",
            SpawnFault::Files => "files",
        }
    }
}
