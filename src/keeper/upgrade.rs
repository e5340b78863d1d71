//! Upgrade: another program in the same process, children and descriptors kept.
//!
//! Owns the hand-over: the ledger has the runs, so only descriptors are handed over (the lock, the listener,
//! the held sockets, the FIFOs, drained datagrams), listed in a memfd as JSON, because tomorrow's program
//! must read what today's has written. The agent's connection is closed; it comes back by itself. Called by
//! the loop.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{AccessFlags, access};
use serde::{Deserialize, Serialize};

use super::Keeper;
use super::logs::Copier;
use super::notify::Kept;
use super::poll::Source;
use super::protocol::Reply;
use crate::spec::InstanceId;

/// Names the memfd to the new program.
const VARIABLE: &str = "BIGBROTHER_KEEPER_CARRIED";

/// What the memfd holds. Fields may be added, with a default; none may change its meaning.
#[derive(Default, Serialize, Deserialize)]
struct Manifest {
    lock: RawFd,
    listener: RawFd,
    #[serde(default)]
    fifos: Vec<RawFd>,
    #[serde(default)]
    instances: Vec<HeldInstance>,
}

#[derive(Serialize, Deserialize)]
struct HeldInstance {
    instance: InstanceId,
    #[serde(default)]
    sockets: Option<(RawFd, RawFd)>,
    #[serde(default)]
    kept: Kept,
}

/// What an upgraded keeper finds; everything empty when it is none.
#[derive(Default)]
pub struct Carried {
    /// The lock of the runtime folder.
    pub lock: Option<OwnedFd>,
    /// The listener of keeper.sock.
    pub listener: Option<OwnedFd>,
    /// Keep the FIFOs alive until they are open again.
    pub fifos: Vec<OwnedFd>,
    /// Sockets and drained datagrams.
    pub instances: Vec<CarriedInstance>,
}

/// What is handed over of one instance.
pub struct CarriedInstance {
    /// Which.
    pub id: InstanceId,
    /// The process socket's listener and the notify socket.
    pub held: Option<(OwnedFd, OwnedFd)>,
    /// Drained datagrams.
    pub kept: Kept,
}

impl Carried {
    /// Reads the memfd that the environment names, if any.
    pub fn from_environment() -> io::Result<Self> {
        let Ok(text) = std::env::var(VARIABLE) else { return Ok(Carried::default()) };
        // SAFETY: nothing else runs yet, and the variable means this process only.
        unsafe { std::env::remove_var(VARIABLE) };
        let fd: RawFd = text.parse().map_err(io::Error::other)?;
        let mut file = File::from(take(fd)?);
        file.rewind()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let manifest: Manifest = serde_json::from_str(&text)?;
        let mut instances = Vec::new();
        for held in manifest.instances {
            let sockets = match held.sockets {
                Some((listener, socket)) => Some((take(listener)?, take(socket)?)),
                None => None,
            };
            instances.push(CarriedInstance { id: held.instance, held: sockets, kept: held.kept });
        }
        Ok(Carried {
            lock: Some(take(manifest.lock)?),
            listener: Some(take(manifest.listener)?),
            fifos: manifest.fifos.into_iter().map(take).collect::<io::Result<_>>()?,
            instances,
        })
    }
}

/// Takes a descriptor that came through the exec, and makes it close-on-exec again.
fn take(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the number came from the program before this one in the same process, which left it open for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

fn keep_open(fd: BorrowedFd<'_>, open: bool) -> io::Result<RawFd> {
    let flag = if open { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(fd, FcntlArg::F_SETFD(flag))?;
    Ok(fd.as_raw_fd())
}

impl Keeper {
    /// Plans an upgrade to this program, or to whatever now lies at the path of the one that runs.
    pub(super) fn begin_upgrade(&mut self, program: Option<PathBuf>) {
        let program = program.or_else(own_path);
        match program.filter(|p| access(p.as_path(), AccessFlags::X_OK).is_ok()) {
            Some(program) => {
                tracing::info!(program = %program.display(), "upgrading");
                self.upgrade = Some(program);
            }
            None => self.refuse_upgrade("there is no program that could be executed"),
        }
    }

    /// Goes on with it: first every spawn in flight, then the copier, then the exec.
    pub(super) fn continue_upgrade(&mut self) {
        if self.upgrade.is_none() || !self.pending.is_empty() {
            return;
        }
        if !self.stopping_copier {
            self.stopping_copier = true;
            self.copier.stop();
        }
        if !self.copier.stopped() {
            return;
        }
        if let Some(program) = self.upgrade.take() {
            let error = self.execute(&program);
            tracing::error!(%error, "the upgrade failed; going on");
            self.refuse_upgrade(&format!("cannot execute {}: {error}", program.display()));
            self.go_on();
        }
    }

    fn refuse_upgrade(&mut self, why: &str) {
        self.link.send(&Reply::Refused { run: None, reason: format!("upgrade: {why}") });
    }

    /// Comes back only with an error.
    fn execute(&self, program: &Path) -> io::Error {
        let fifos: Vec<OwnedFd> = self.instances.iter().flat_map(|(_, i)| i.fifos.descriptors()).collect();
        match self.try_execute(program, &fifos) {
            Ok(never) => match never {},
            Err(error) => {
                let _ = self.manifest(&fifos, false);
                error
            }
        }
    }

    fn try_execute(&self, program: &Path, fifos: &[OwnedFd]) -> io::Result<std::convert::Infallible> {
        let text = |s: std::ffi::OsString| CString::new(s.into_vec()).map_err(io::Error::from);
        let manifest = serde_json::to_string(&self.manifest(fifos, true)?)?;
        let mut memory = File::from(memfd_create(c"keeper", MFdFlags::empty())?);
        memory.write_all(manifest.as_bytes())?;
        let args = std::env::args_os().map(text).collect::<io::Result<Vec<_>>>()?;
        let mut env = Vec::new();
        for (name, value) in std::env::vars_os() {
            let mut entry = name;
            entry.push("=");
            entry.push(value);
            env.push(text(entry)?);
        }
        env.push(CString::new(format!("{VARIABLE}={}", memory.as_raw_fd()))?);
        let program = text(program.as_os_str().to_owned())?;
        Ok(nix::unistd::execve(&program, &args, &env)?)
    }

    /// Lists what is handed over, and marks it to be kept (or not).
    fn manifest(&self, fifos: &[OwnedFd], open: bool) -> io::Result<Manifest> {
        let mut manifest = Manifest {
            lock: keep_open(self.lock.as_fd(), open)?,
            listener: keep_open(self.link.listener(), open)?,
            ..Manifest::default()
        };
        for fifo in fifos {
            manifest.fifos.push(keep_open(fifo.as_fd(), open)?);
        }
        for (id, instance) in self.instances.iter() {
            let sockets = match &instance.held {
                Some((listener, socket)) => {
                    Some((keep_open(listener.as_fd(), open)?, keep_open(socket.as_fd(), open)?))
                }
                None => None,
            };
            let kept = instance.kept.clone();
            if sockets.is_some() || !kept.is_empty() {
                manifest.instances.push(HeldInstance { instance: id.clone(), sockets, kept });
            }
        }
        Ok(manifest)
    }

    /// After an upgrade that failed: the logs need a copier again.
    fn go_on(&mut self) {
        self.stopping_copier = false;
        let copier = Copier::start().and_then(|copier| {
            self.poll.add(copier.news(), Source::Logs, nix::sys::epoll::EpollFlags::EPOLLIN)?;
            Ok(copier)
        });
        match copier {
            Ok(copier) => self.copier = copier,
            Err(error) => {
                tracing::error!(%error, "cannot copy logs any more");
                return;
            }
        }
        for (id, instance) in self.instances.iter_mut() {
            if let Err(error) = instance.fifos.attach_again(&mut self.copier) {
                tracing::error!(%error, instance = %id, "cannot go on copying logs");
            }
        }
    }
}

/// The path that this program was started from, also when another file lies there by now.
fn own_path() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?;
    let text = path.to_str()?;
    Some(PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(text)))
}
