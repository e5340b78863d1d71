//! What agent and keeper say to each other.
//!
//! One Unix seqpacket socket, `keeper.sock` in the runtime folder; one message a packet, encoded by
//! [`encode`]: a version byte, then bincode with fixed-width little-endian integers. Descriptors travel
//! with SCM_RIGHTS on the messages that say so. Pure: bytes in, bytes out. Called by the keeper's loop
//! and by `agent::keeper_link`; the golden tests below hold the bytes, because an upgraded agent talks
//! to yesterday's keeper.
//!
//! A conversation: the agent sends [`Request::Hello`]; the keeper answers [`Reply::Welcome`], then
//! one [`Reply::Held`] per instance whose sockets it holds (with descriptors), one [`Reply::Run`] per run
//! in its table, the datagrams that it drained while no agent listened ([`Reply::Datagram`]), and
//! [`Reply::Listed`]. After that both sides send as things happen. A newer connection replaces an older.

use serde::{Deserialize, Serialize};

use crate::spec::InstanceId;

/// Version of the messages below; another one is refused at the first byte.
pub const VERSION: u8 = 1;

/// The largest packet; `check` refuses a command and environment that would not fit.
pub const MAX_PACKET: usize = 128 * 1024;

/// The longest note, so that it fits the ledger.
pub const MAX_NOTE: usize = 256;

/// An agent that says nothing for this long is taken for stalled: the keeper then drains the notify
/// sockets, so that no process blocks in `sd_notify`. Agents therefore send [`Request::Ping`] each second.
pub const AGENT_SILENCE_MS: u64 = 2_500;

/// A number that names one life of an instance; grows over the life of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub u64);

impl std::fmt::Display for RunId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Agent to keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The first message of a connection.
    Hello {
        /// The agent's program version, for the keeper's log.
        agent: String,
    },
    /// Nothing; shows that the agent runs.
    Ping,
    /// Keep the sockets of an instance. Descriptors: the process socket's listener, the notify socket.
    Hold {
        /// Whose they are.
        instance: InstanceId,
    },
    /// Close the sockets of an instance, remove its cgroup and FIFOs; it has no run any more.
    Release {
        /// Which instance.
        instance: InstanceId,
    },
    /// Start a run. Refused (with [`Reply::SpawnFailed`], step `Busy`) while another run of the instance lives.
    Spawn(Box<Spawn>),
    /// Send a signal.
    Signal {
        /// To which run.
        run: RunId,
        /// Which signal.
        signal: i32,
        /// To whom in the run.
        to: Target,
    },
    /// End a run and all that it started: cgroup.kill, or the fall-backs. [`Reply::Gone`] follows.
    Kill {
        /// Which run.
        run: RunId,
    },
    /// The agent has taken note of the end of a run; the keeper may forget it.
    Acknowledge {
        /// Which run.
        run: RunId,
    },
    /// The main process is now another one of the same run (`MAINPID=`).
    Follow {
        /// Which run.
        run: RunId,
        /// The process whose end ends the run. Ignored unless it belongs to the run.
        pid: i32,
    },
    /// Replace the note of a run (see [`Spawn::note`]).
    Note {
        /// Which run.
        run: RunId,
        /// At most [`MAX_NOTE`] bytes.
        note: Vec<u8>,
    },
    /// Apply changed cgroup limits to a living run: (file, value) below its cgroup.
    Limit {
        /// Which run.
        run: RunId,
        /// As in [`Spawn::limits`].
        limits: Vec<(String, String)>,
    },
    /// Kill the exclusive runs when CLOCK_BOOTTIME passes this; 0: no deadline.
    Fence {
        /// Nanoseconds of CLOCK_BOOTTIME.
        deadline_ns: u64,
    },
    /// Execute the program at this path in place, keeping children and descriptors.
    Upgrade {
        /// The new program.
        program: String,
    },
    /// Kill all runs and exit.
    Shutdown,
}

/// Who gets a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// The main process only.
    Main,
    /// The main process's process group.
    Group,
    /// Every process of the run.
    All,
}

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
    /// Opaque bytes of the agent ([`MAX_NOTE`] at most), kept in the ledger and given back in [`Reply::Run`]:
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

/// Keeper to agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The first answer.
    Welcome {
        /// The keeper's program version.
        keeper: String,
        /// Its process.
        pid: i32,
        /// What it can do with cgroups.
        cgroups: CgroupSupport,
        /// The fence deadline in force, nanoseconds of CLOCK_BOOTTIME; 0: none.
        fence_deadline_ns: u64,
    },
    /// Descriptors: the process socket's listener and the notify socket of an instance.
    Held {
        /// Whose they are.
        instance: InstanceId,
    },
    /// One run of the table.
    Run(RunRecord),
    /// A datagram of a notify socket that arrived while no agent was reading.
    Datagram {
        /// To whose socket.
        instance: InstanceId,
        /// The sender.
        pid: i32,
        /// Its bytes (4 KiB at most).
        data: Vec<u8>,
    },
    /// The table is complete.
    Listed {
        /// Instances of which leftovers (no certain record) were killed by this keeper when it started.
        strays: Vec<InstanceId>,
    },
    /// The run's program is being executed.
    Spawned {
        /// Which run.
        run: RunId,
        /// Its main process.
        pid: i32,
    },
    /// The run could not be started; nothing of it is left.
    SpawnFailed {
        /// Which run.
        run: RunId,
        /// What was being done.
        step: SpawnStep,
        /// errno, or 0.
        errno: i32,
    },
    /// The exec does not come back (dead network file system?). The run stays in the table until it does.
    SpawnStuck {
        /// Which run.
        run: RunId,
    },
    /// The main process has ended; others of the run may remain.
    Exited {
        /// Which run.
        run: RunId,
        /// How it ended.
        end: End,
    },
    /// No process of the run is left. Always the last word on a run; kept until acknowledged.
    Gone {
        /// Which run.
        run: RunId,
        /// How the main process ended.
        end: End,
        /// The keeper killed it because the fence deadline passed.
        fenced: bool,
    },
    /// Some limits could not be written (and were not required).
    Unenforced {
        /// Which run.
        run: RunId,
        /// The files.
        files: Vec<String>,
    },
    /// A request that could not be carried out.
    Refused {
        /// About which run, if any.
        run: Option<RunId>,
        /// What failed and why.
        reason: String,
    },
    /// Log bytes since the last report (sent at most once a second, when not zero).
    LogBytes {
        /// Bytes written to log files.
        kept: u64,
        /// Bytes thrown away because the disk refused them.
        dropped: u64,
    },
}

/// A run as the keeper knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Its number.
    pub run: RunId,
    /// Its instance.
    pub instance: InstanceId,
    /// Its main process; 0 when none was started.
    pub pid: i32,
    /// When it was spawned, nanoseconds of CLOCK_BOOTTIME.
    pub spawned_ns: u64,
    /// How far it is.
    pub stage: Stage,
    /// See [`Spawn::exclusive`].
    pub exclusive: bool,
    /// See [`Spawn::note`].
    pub note: Vec<u8>,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Between fork and exec.
    Spawning,
    /// Alive.
    Running,
    /// The main process has ended, others are left.
    Exited(End),
    /// Nothing is left.
    Gone {
        /// How the main process ended.
        end: End,
        /// See [`Reply::Gone`].
        fenced: bool,
    },
    /// It never started; nothing is left.
    SpawnFailed {
        /// What was being done.
        step: SpawnStep,
        /// errno, or 0.
        errno: i32,
    },
}

/// How a main process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// exit(code).
    Code(i32),
    /// Killed by a signal.
    Signal {
        /// Which.
        signal: i32,
        /// It left a core.
        core: bool,
    },
    /// Nobody could watch it end.
    Unknown,
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

/// What the keeper can do with cgroups on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupSupport {
    /// Version 2 with these controllers.
    Full {
        /// Enabled controllers.
        controllers: Vec<String>,
    },
    /// Version 2 for kill and freeze only.
    KillOnly,
    /// None: killpg and a walk over descendants.
    None,
}

/// A packet that is not a message.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// No byte at all.
    #[error("empty packet")]
    Empty,
    /// The other side speaks another version.
    #[error("protocol version {0}, this program speaks {VERSION}")]
    Version(u8),
    /// Larger than [`MAX_PACKET`].
    #[error("a packet of {0} bytes is over the limit of {MAX_PACKET}")]
    TooLarge(usize),
    /// Bytes that are no message.
    #[error("malformed packet")]
    Malformed(#[source] bincode::error::DecodeError),
    /// Bytes after the message.
    #[error("{0} bytes after the end of the message")]
    Trailing(usize),
}

/// A message that does not fit.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// Larger than [`MAX_PACKET`].
    #[error("a message of {0} bytes is over the limit of {MAX_PACKET}")]
    TooLarge(usize),
    /// bincode refused it.
    #[error("cannot encode the message")]
    Bincode(#[source] bincode::error::EncodeError),
}

fn layout() -> impl bincode::config::Config {
    bincode::config::standard().with_fixed_int_encoding().with_little_endian().with_limit::<MAX_PACKET>()
}

/// The bytes of a message, version first.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, EncodeError> {
    let mut out = vec![VERSION];
    bincode::serde::encode_into_std_write(message, &mut out, layout()).map_err(EncodeError::Bincode)?;
    if out.len() > MAX_PACKET {
        return Err(EncodeError::TooLarge(out.len()));
    }
    Ok(out)
}

/// The message of one packet.
pub fn decode<M: for<'de> Deserialize<'de>>(packet: &[u8]) -> Result<M, DecodeError> {
    if packet.len() > MAX_PACKET {
        return Err(DecodeError::TooLarge(packet.len()));
    }
    let (version, body) = packet.split_first().ok_or(DecodeError::Empty)?;
    if *version != VERSION {
        return Err(DecodeError::Version(*version));
    }
    let (message, used) =
        bincode::serde::decode_from_slice(body, layout()).map_err(DecodeError::Malformed)?;
    if used != body.len() {
        return Err(DecodeError::Trailing(body.len() - used));
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Compares the bytes with the golden ones, and reads them back.
    fn golden<M>(message: &M, bytes: &str)
    where
        M: Serialize + for<'de> Deserialize<'de> + PartialEq + std::fmt::Debug,
    {
        let packet = encode(message).unwrap();
        assert_eq!(hex(&packet), bytes.replace([' ', '\n'], ""), "{message:?}");
        assert_eq!(&decode::<M>(&packet).unwrap(), message);
    }

    fn zone() -> InstanceId {
        "zone.3".parse().unwrap()
    }

    const ZONE: &str = "0600000000000000 7a6f6e652e33";

    fn spawn(logs: LogTarget) -> Spawn {
        Spawn {
            run: RunId(7),
            instance: zone(),
            program: "/p".into(),
            args: vec!["a".into()],
            env: vec!["K=v".into()],
            working_dir: "/".into(),
            account: Some(Account { uid: 1, gid: 2, groups: vec![3] }),
            umask: 0o22,
            nice: -5,
            rlimits: vec![(7, 1024)],
            ignore_sigpipe: true,
            limits: vec![("pids.max".into(), "9".into())],
            limits_required: false,
            exclusive: true,
            logs,
            note: vec![0xAA],
        }
    }

    #[test]
    fn requests_have_their_golden_bytes() {
        let run = RunId(7);
        let seven = "0700000000000000";
        golden(&Request::Hello { agent: "1.0".into() }, "01 00000000 0300000000000000 312e30");
        golden(&Request::Ping, "01 01000000");
        golden(&Request::Hold { instance: zone() }, &format!("01 02000000 {ZONE}"));
        golden(&Request::Release { instance: zone() }, &format!("01 03000000 {ZONE}"));
        let signal = Request::Signal { run, signal: 15, to: Target::Group };
        golden(&signal, &format!("01 05000000 {seven} 0f000000 01000000"));
        golden(&Request::Kill { run }, &format!("01 06000000 {seven}"));
        golden(&Request::Acknowledge { run }, &format!("01 07000000 {seven}"));
        golden(&Request::Follow { run, pid: 258 }, &format!("01 08000000 {seven} 02010000"));
        golden(
            &Request::Note { run, note: vec![1, 2] },
            &format!("01 09000000 {seven} 0200000000000000 0102"),
        );
        golden(
            &Request::Limit { run, limits: vec![("f".into(), "v".into())] },
            &format!("01 0a000000 {seven} 0100000000000000 0100000000000000 66 0100000000000000 76"),
        );
        golden(&Request::Fence { deadline_ns: 1 << 40 }, "01 0b000000 0000000000010000");
        golden(&Request::Upgrade { program: "/b".into() }, "01 0c000000 0200000000000000 2f62");
        golden(&Request::Shutdown, "01 0d000000");
    }

    #[test]
    fn a_spawn_has_its_golden_bytes() {
        let head = format!(
            "01 04000000 0700000000000000 {ZONE} 0200000000000000 2f70
             0100000000000000 0100000000000000 61
             0100000000000000 0300000000000000 4b3d76
             0100000000000000 2f
             01 01000000 02000000 0100000000000000 03000000
             12000000 fbffffff
             0100000000000000 07000000 0004000000000000
             01
             0100000000000000 0800000000000000 706964732e6d6178 0100000000000000 39
             00 01"
        );
        let note = "0100000000000000 aa";
        let files = LogTarget::Files { folder: "/l".into(), size: 10, files: 2 };
        for (logs, bytes) in [
            (files, "00000000 0200000000000000 2f6c 0a00000000000000 02000000"),
            (LogTarget::Journald, "01000000"),
            (LogTarget::Null, "02000000"),
        ] {
            golden(&Request::Spawn(Box::new(spawn(logs))), &format!("{head} {bytes} {note}"));
        }
    }

    #[test]
    fn replies_have_their_golden_bytes() {
        let run = RunId(7);
        let seven = "0700000000000000";
        let full = CgroupSupport::Full { controllers: vec!["cpu".into()] };
        for (cgroups, bytes) in [
            (full, "00000000 0100000000000000 0300000000000000 637075"),
            (CgroupSupport::KillOnly, "01000000"),
            (CgroupSupport::None, "02000000"),
        ] {
            let welcome = Reply::Welcome { keeper: "1".into(), pid: 5, cgroups, fence_deadline_ns: 9 };
            golden(&welcome, &format!("01 00000000 0100000000000000 31 05000000 {bytes} 0900000000000000"));
        }
        golden(&Reply::Held { instance: zone() }, &format!("01 01000000 {ZONE}"));
        golden(
            &Reply::Datagram { instance: zone(), pid: 5, data: vec![0x41] },
            &format!("01 03000000 {ZONE} 05000000 0100000000000000 41"),
        );
        golden(&Reply::Listed { strays: vec![zone()] }, &format!("01 04000000 0100000000000000 {ZONE}"));
        golden(&Reply::Spawned { run, pid: 5 }, &format!("01 05000000 {seven} 05000000"));
        let failed = Reply::SpawnFailed { run, step: SpawnStep::Exec, errno: 2 };
        golden(&failed, &format!("01 06000000 {seven} 0d000000 02000000"));
        golden(&Reply::SpawnStuck { run }, &format!("01 07000000 {seven}"));
        golden(&Reply::Exited { run, end: End::Code(3) }, &format!("01 08000000 {seven} 00000000 03000000"));
        let end = End::Signal { signal: 11, core: true };
        let gone = Reply::Gone { run, end, fenced: true };
        golden(&gone, &format!("01 09000000 {seven} 01000000 0b000000 01 01"));
        golden(
            &Reply::Unenforced { run, files: vec!["f".into()] },
            &format!("01 0a000000 {seven} 0100000000000000 0100000000000000 66"),
        );
        let refused = Reply::Refused { run: Some(run), reason: "r".into() };
        golden(&refused, &format!("01 0b000000 01 {seven} 0100000000000000 72"));
        golden(&Reply::LogBytes { kept: 1, dropped: 2 }, "01 0c000000 0100000000000000 0200000000000000");
    }

    #[test]
    fn a_run_has_its_golden_bytes_in_every_stage() {
        for (stage, bytes) in [
            (Stage::Spawning, "00000000"),
            (Stage::Running, "01000000"),
            (Stage::Exited(End::Unknown), "02000000 02000000"),
            (Stage::Gone { end: End::Code(1), fenced: false }, "03000000 00000000 01000000 00"),
            (Stage::SpawnFailed { step: SpawnStep::Busy, errno: 16 }, "04000000 00000000 10000000"),
        ] {
            let record = RunRecord {
                run: RunId(7),
                instance: zone(),
                pid: 5,
                spawned_ns: 8,
                stage,
                exclusive: true,
                note: vec![0xAA],
            };
            let tail = "01 0100000000000000 aa";
            let head = format!("01 02000000 0700000000000000 {ZONE} 05000000 0800000000000000");
            golden(&Reply::Run(record), &format!("{head} {bytes} {tail}"));
        }
    }

    #[test]
    fn what_is_no_message_is_told_apart() {
        assert!(matches!(decode::<Request>(&[]), Err(DecodeError::Empty)));
        assert!(matches!(decode::<Request>(&[2, 1, 0, 0, 0]), Err(DecodeError::Version(2))));
        assert!(matches!(decode::<Request>(&[1, 1, 0, 0]), Err(DecodeError::Malformed(_))));
        assert!(matches!(decode::<Request>(&[1, 1, 0, 0, 0, 9]), Err(DecodeError::Trailing(1))));
        assert!(matches!(decode::<Request>(&vec![1; MAX_PACKET + 1]), Err(DecodeError::TooLarge(_))));
        // A length that lies does not allocate.
        let lie = [1, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 127];
        assert!(matches!(decode::<Request>(&lie), Err(DecodeError::Malformed(_))));
        let note = Request::Note { run: RunId(1), note: vec![0; MAX_PACKET] };
        assert!(matches!(encode(&note), Err(EncodeError::TooLarge(_))));
    }
}
