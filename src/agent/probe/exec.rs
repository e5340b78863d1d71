//! Commands as probes: exit code 0 is a sign of life.
//!
//! Owns the command from fork to reap: it runs as the instance's account in a process group of its own,
//! its output is kept for the reason, and the group is killed when the main process ends or the time is
//! over. Never a shell. A child that leaves its group is not followed.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Gid, Pid, Uid};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::answer::Answer;
use super::{ProbeError, Report, thread};
use crate::keeper::process;
use crate::keeper::protocol::Account;

/// How much of the output is kept: its beginning.
const MAX_OUTPUT: usize = 4096;

/// A command, everything in it resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecRequest {
    /// The program and its arguments; a name without `/` is looked up in the `PATH` of `env`.
    pub command: Vec<String>,
    /// The whole environment as `KEY=value`, as in the keeper's `Spawn`.
    pub env: Vec<String>,
    /// The folder to start in.
    pub working_dir: String,
    /// Numbers to become; `None`: stay.
    pub account: Option<Account>,
    /// The priority to run with: an agent that comes before the games does not ask them with its own.
    pub nice: i32,
}

/// Runs the command and reports by `timeout`. Holds `place` until nothing is left to wait for, which may be
/// later: a program on a dead network file system neither starts nor dies.
pub(super) async fn ask(
    request: ExecRequest,
    timeout: Duration,
    threads: Arc<Semaphore>,
    place: Arc<()>,
    report: Report,
) {
    let deadline = Instant::now() + timeout;
    let permit = match thread(threads, deadline).await {
        Ok(permit) => permit,
        Err(error) => return report.send(Err(error)).await,
    };
    // Blocks until the exec has succeeded or failed.
    let mut starting = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        start(&request).map_err(|source| ProbeError::Start {
            program: request.command.first().cloned().unwrap_or_default(),
            source,
        })
    });
    let mut started = None;
    let mut output = Vec::new();
    let ended = timeout_at(deadline, async {
        let command =
            (&mut starting).await.map_err(|e| ProbeError::Watch { source: io::Error::other(e) })??;
        started.insert(command).ended(&mut output).await.map_err(|source| ProbeError::Watch { source })
    });
    if let Ok(ended) = ended.await {
        drop((started, place));
        report.send(ended.and_then(|status| verdict(status, &output))).await;
        return;
    }
    if let Some(command) = &started {
        command.kill();
    }
    report.send(Err(ProbeError::Unfinished { after: timeout, output: text(&output) })).await;
    if started.is_none() {
        started = starting.await.ok().and_then(Result::ok).inspect(Started::kill);
    }
    if let Some(mut command) = started {
        let _ = command.ended(&mut output).await;
    }
    drop(place);
}

fn verdict(status: ExitStatus, output: &[u8]) -> Result<Answer, ProbeError> {
    if status.success() {
        return Ok(Answer::default());
    }
    Err(match (status.code(), status.signal()) {
        (Some(code), _) => ProbeError::Exit { code, output: text(output) },
        (None, signal) => ProbeError::Signalled { signal: signal.unwrap_or(0), output: text(output) },
    })
}

/// Output as one line fit to be shown.
fn text(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>().trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect();
    lines.join("; ")
}

/// A command that has been started.
struct Started {
    /// `None` once reaped.
    child: Option<Child>,
    group: Pid,
    /// Readable when the main process has ended, before it is reaped: until then its number cannot become
    /// another group's.
    exit: AsyncFd<OwnedFd>,
    /// The reading end of stdout and stderr.
    pipe: Receiver,
}

impl Started {
    /// Waits for the main process, ends what is left of its group, and reaps it. Fills `output`.
    async fn ended(&mut self, output: &mut Vec<u8>) -> io::Result<ExitStatus> {
        let mut chunk = [0; MAX_OUTPUT];
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                ready = self.exit.readable() => {
                    ready?.retain_ready();
                    break;
                }
                // Read on beyond what is kept, or the command would wait for its reader.
                read = self.pipe.read(&mut chunk), if open => match read? {
                    0 => open = false,
                    length => keep(output, &chunk[..length]),
                },
            }
        }
        self.kill();
        // What is still in the pipe; its other end may be held by somebody who left the group.
        while output.len() < MAX_OUTPUT {
            match self.pipe.try_read(&mut chunk) {
                Ok(length) if length > 0 => keep(output, &chunk[..length]),
                _ => break,
            }
        }
        let mut child = self.child.take().ok_or_else(|| io::Error::other("reaped already"))?;
        child.wait()
    }

    fn kill(&self) {
        if self.child.is_some() {
            // It fails only when nobody is left.
            let _ = killpg(self.group, Signal::SIGKILL);
        }
    }
}

impl Drop for Started {
    /// The runtime is ending: leave neither a process nor a zombie.
    fn drop(&mut self) {
        self.kill();
        if let Some(mut child) = self.child.take() {
            std::thread::spawn(move || child.wait());
        }
    }
}

fn keep(output: &mut Vec<u8>, chunk: &[u8]) {
    let room = MAX_OUTPUT - output.len();
    output.extend_from_slice(&chunk[..chunk.len().min(room)]);
}

fn start(request: &ExecRequest) -> io::Result<Started> {
    let (program, args) = request
        .command
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"))?;
    let (output, writer) = io::pipe()?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(request.env.iter().filter_map(|pair| pair.split_once('=')))
        .current_dir(&request.working_dir)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0);
    let nice = request.nice;
    // SAFETY: getpriority touches no memory.
    if nice != unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) } {
        // SAFETY: between fork and exec a system call is made here, and no more.
        unsafe {
            command.pre_exec(move || match libc::setpriority(libc::PRIO_PROCESS, 0, nice) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
    }
    if let Some(account) = request.account.clone() {
        let groups: Vec<Gid> = account.groups.iter().copied().map(Gid::from_raw).collect();
        let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
        // SAFETY: between fork and exec only system calls are made here; nothing is allocated or locked.
        unsafe {
            command.pre_exec(move || {
                nix::unistd::setgroups(&groups)?;
                nix::unistd::setgid(gid)?;
                nix::unistd::setuid(uid)?;
                Ok(())
            });
        }
    }
    let mut child = command.spawn()?;
    let group = Pid::from_raw(child.id().cast_signed());
    match Receiver::from_owned_fd(output.into()).and_then(|pipe| Ok((pipe, exit_of(group)?))) {
        Ok((pipe, exit)) => Ok(Started { child: Some(child), group, exit, pipe }),
        Err(error) => {
            let _ = killpg(group, Signal::SIGKILL);
            child.wait()?;
            Err(error)
        }
    }
}

fn exit_of(pid: Pid) -> io::Result<AsyncFd<OwnedFd>> {
    let pidfd = process::open(pid.as_raw())?;
    // SAFETY: an `OwnedFd` is one descriptor, open until the `AsyncFd` drops it.
    Ok(unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?)
}
