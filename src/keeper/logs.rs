//! Logs: the FIFOs that processes write to, and the thread that copies them into files.
//!
//! Owns the FIFOs (made here, on the loop's thread: the runtime folder is a tmpfs) and the copier thread,
//! which alone touches the disk. The loop hands it streams over a channel and never waits for it. Bytes
//! leave a FIFO only when they are in a file, so that a keeper that is killed loses none. Called by the loop.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::Mode;

use super::process::boottime_ns;
use super::protocol::LogTarget;
use crate::spec::InstanceId;

mod copy;
mod journal;
mod rotation;

pub use journal::connect as connect_journal;

/// Commands on their way to the thread; beyond that they wait in the loop's own queue.
const CHANNEL: usize = 1024;
/// Commands that may wait when the disk hangs; then spawns are refused.
const MAX_OWED: usize = 16 * 1024;

/// What is to be copied waits so long for more: in a start of many the thread is woken once for a crowd of them. A
/// FIFO holds what is written meanwhile.
const GATHER_NS: u64 = 5_000_000;
/// How soon it is tried again when the channel was full.
const FULL_NS: u64 = 10_000_000;

/// To the copier.
pub(super) enum Command {
    /// Copy this FIFO into files.
    Attach(Attachment),
    /// No longer copy it, after what is in it.
    Detach(u64),
    /// End; what is in the FIFOs stays there.
    Stop,
}

/// A stream to copy.
pub(super) struct Attachment {
    /// Its number.
    pub id: u64,
    /// Open for reading and writing, non-blocking.
    pub fifo: OwnedFd,
    /// Folder of the files.
    pub folder: PathBuf,
    /// `stdout.log` or `stderr.log`.
    pub name: &'static str,
    /// Bytes of one file.
    pub size: u64,
    /// Files kept.
    pub files: u32,
}

/// Bytes copied and dropped since the loop last asked.
#[derive(Default)]
pub(super) struct Counters {
    pub kept: AtomicU64,
    pub dropped: AtomicU64,
    /// The loop knows that there is something to report.
    pub told: AtomicBool,
    /// The thread has ended as asked.
    pub stopped: AtomicBool,
}

/// The loop's end of the copier.
pub struct Copier {
    commands: SyncSender<Command>,
    owed: VecDeque<Command>,
    /// When some of it is handed over.
    due_ns: Option<u64>,
    wake: Arc<EventFd>,
    news: Arc<EventFd>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
    next: u64,
}

impl Copier {
    /// Starts the thread. Signals must be blocked already, so that they all come to the loop.
    pub fn start() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_flags(flags)?);
        let news = Arc::new(EventFd::from_flags(flags)?);
        let counters = Arc::new(Counters::default());
        let (commands, receiver) = sync_channel(CHANNEL);
        let thread = copy::CopyLoop::new(receiver, wake.clone(), news.clone(), counters.clone())?;
        let thread = std::thread::Builder::new()
            .name("logs".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || thread.run())?;
        let (owed, due_ns) = (VecDeque::new(), None);
        Ok(Copier { commands, owed, due_ns, wake, news, counters, thread: Some(thread), next: 1 })
    }

    /// Readable when there is something to report, or the thread has stopped.
    pub fn news(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }

    /// Takes note of the news; [`Copier::take_counts`] asks what they are.
    pub fn clear_news(&self) {
        let _ = self.news.read();
    }

    /// (kept, dropped) bytes since the last call.
    pub fn take_counts(&self) -> (u64, u64) {
        self.counters.told.store(false, Ordering::SeqCst);
        (self.counters.kept.swap(0, Ordering::Relaxed), self.counters.dropped.swap(0, Ordering::Relaxed))
    }

    /// Copies a FIFO soon; the number is for [`Copier::detach`]. Refused when
    /// the disk has hung for long.
    pub fn attach(
        &mut self,
        fifo: OwnedFd,
        folder: &str,
        name: &'static str,
        size: u64,
        files: u32,
    ) -> io::Result<u64> {
        if self.owed.len() > MAX_OWED {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        let id = self.next;
        self.next += 1;
        let attachment = Attachment { id, fifo, folder: folder.into(), name, size, files };
        self.owed.push_back(Command::Attach(attachment));
        self.due_ns.get_or_insert(boottime_ns() + GATHER_NS);
        Ok(id)
    }

    /// Ends copying after what is in the FIFO.
    pub fn detach(&mut self, id: u64) {
        self.push(Command::Detach(id));
    }

    /// Asks the thread to end; [`Copier::stopped`] becomes true, and the news readable.
    pub fn stop(&mut self) {
        self.push(Command::Stop);
    }

    /// The thread has ended as asked; joins it.
    pub fn stopped(&mut self) -> bool {
        let stopped = self.counters.stopped.load(Ordering::SeqCst);
        if stopped && let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        stopped
    }

    /// When [`Copier::tend`] has something to hand over.
    pub fn due_ns(&self) -> Option<u64> {
        self.due_ns
    }

    /// Hands over what has waited long enough.
    pub fn tend(&mut self, now: u64) {
        if self.due_ns.is_some_and(|due| now >= due) {
            self.hand_over();
        }
    }

    fn push(&mut self, command: Command) {
        self.owed.push_back(command);
        self.hand_over();
    }

    /// Hands over what waits, as far as the thread takes it.
    fn hand_over(&mut self) {
        self.due_ns = None;
        while let Some(command) = self.owed.pop_front() {
            match self.commands.try_send(command) {
                Ok(()) => {}
                Err(TrySendError::Full(command)) => {
                    self.owed.push_front(command);
                    self.due_ns = Some(boottime_ns() + FULL_NS);
                    break;
                }
                // It was stopped.
                Err(TrySendError::Disconnected(_)) => {}
            }
        }
        let _ = self.wake.write(1);
    }
}

/// The two FIFOs of an instance.
pub struct Fifos {
    paths: [PathBuf; 2],
    owner: Option<(u32, u32)>,
    attached: Option<(LogTarget, [u64; 2])>,
}

impl Fifos {
    /// The FIFOs of an instance below a folder; nothing is made yet.
    pub fn new(folder: &Path, instance: &InstanceId) -> Self {
        let paths = ["out", "err"].map(|end| folder.join(format!("{instance}.{end}")));
        Fifos { paths, owner: None, attached: None }
    }

    /// Their paths, stdout first.
    pub fn paths(&self) -> io::Result<(CString, CString)> {
        let [out, err] = &self.paths;
        Ok((CString::new(out.as_os_str().as_bytes())?, CString::new(err.as_os_str().as_bytes())?))
    }

    /// Makes them for this owner if need be, and has them copied to this target.
    pub fn ready(
        &mut self,
        copier: &mut Copier,
        target: &LogTarget,
        owner: Option<(u32, u32)>,
    ) -> io::Result<()> {
        let LogTarget::Files { folder, size, files } = target else { return Ok(()) };
        let kept = self.attached.as_ref().is_some_and(|(t, _)| t == target);
        if kept && self.owner == owner {
            return Ok(());
        }
        for path in &self.paths {
            make_fifo(path, owner)?;
        }
        self.owner = owner;
        if !kept {
            // The new reader is there before the old one goes, so that the pipe is never without one.
            let old = self.attached.take();
            let out = copier.attach(open_fifo(&self.paths[0])?, folder, "stdout.log", *size, *files)?;
            let err = copier.attach(open_fifo(&self.paths[1])?, folder, "stderr.log", *size, *files)?;
            self.attached = Some((target.clone(), [out, err]));
            for id in old.into_iter().flat_map(|(_, ids)| ids) {
                copier.detach(id);
            }
        }
        Ok(())
    }

    /// Has them copied to another target, if they are copied at all.
    pub fn redirect(&mut self, copier: &mut Copier, target: &LogTarget) -> io::Result<()> {
        match self.attached {
            Some(_) => self.ready(copier, target, self.owner),
            None => Ok(()),
        }
    }

    /// Ends copying and removes them.
    pub fn remove(&mut self, copier: &mut Copier) {
        for id in self.attached.take().into_iter().flat_map(|(_, ids)| ids) {
            copier.detach(id);
        }
        for path in &self.paths {
            let _ = std::fs::remove_file(path);
        }
    }

    /// New descriptors of both, to keep them alive over an upgrade.
    pub fn descriptors(&self) -> Vec<OwnedFd> {
        if self.attached.is_none() {
            return Vec::new();
        }
        self.paths.iter().filter_map(|p| open_fifo(p).ok()).collect()
    }

    /// Has them copied by another copier: the one before has ended.
    pub fn attach_again(&mut self, copier: &mut Copier) -> io::Result<()> {
        match self.attached.take() {
            Some((target, _)) => self.ready(copier, &target, self.owner),
            None => Ok(()),
        }
    }
}

fn make_fifo(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    match nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
        Err(Errno::EEXIST) => {}
        other => other?,
    }
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))?;
    }
    Ok(())
}

/// Open for reading and writing, an end of file never comes.
fn open_fifo(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    Ok(nix::fcntl::open(path, flags, Mode::empty())?)
}
