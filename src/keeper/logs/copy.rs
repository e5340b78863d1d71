//! The copier thread: FIFOs into files.
//!
//! Owns the FIFOs' reading ends and the log files. Copies with splice(2) at an explicit offset, so a byte is
//! either still in its pipe or in its file. A FIFO gets a budget a round, so that one that floods starves no
//! other; what the disk refuses is read away and counted, so that no process blocks for good.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, splice, tee};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;

use super::rotation::{Files, OVER, cut};
use super::{Attachment, Command, Counters};

/// Bytes copied of one FIFO before the next has its turn.
const BUDGET: usize = 256 * 1024;
/// A disk that refused is tried again after this.
const RETRY: Duration = Duration::from_millis(250);
const WAKE: u64 = 0;

/// The thread's state.
pub(super) struct CopyLoop {
    commands: Receiver<Command>,
    wake: Arc<EventFd>,
    news: Arc<EventFd>,
    counters: Arc<Counters>,
    poll: Epoll,
    streams: BTreeMap<u64, Stream>,
    /// A private pipe to look ahead in.
    look: (OwnedFd, OwnedFd),
    buffer: Vec<u8>,
}

struct Stream {
    fifo: OwnedFd,
    files: Files,
    refused_until: Option<Instant>,
}

impl CopyLoop {
    pub fn new(
        commands: Receiver<Command>,
        wake: Arc<EventFd>,
        news: Arc<EventFd>,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let poll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        poll.add(wake.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let look = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        Ok(CopyLoop {
            commands,
            wake,
            news,
            counters,
            poll,
            streams: BTreeMap::new(),
            look,
            buffer: Vec::new(),
        })
    }

    pub fn run(mut self) {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let count = match self.poll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(errno) => {
                    tracing::error!(%errno, "the log copier cannot wait any more");
                    break;
                }
            };
            let mut stop = false;
            for event in &events[..count] {
                match event.data() {
                    WAKE => stop |= self.obey(),
                    id => self.copy(id),
                }
            }
            if stop {
                break;
            }
        }
        drop(self.streams);
        self.counters.stopped.store(true, Ordering::SeqCst);
        let _ = self.news.write(1);
    }

    /// Carries out what the loop asked for; true: stop.
    fn obey(&mut self) -> bool {
        let _ = self.wake.read();
        loop {
            match self.commands.try_recv() {
                Ok(Command::Attach(attachment)) => self.attach(attachment),
                Ok(Command::Detach(id)) => self.detach(id),
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return true,
                Err(TryRecvError::Empty) => return false,
            }
        }
    }

    fn attach(&mut self, attachment: Attachment) {
        let Attachment { id, fifo, folder, name, size, files } = attachment;
        if let Err(errno) = self.poll.add(&fifo, EpollEvent::new(EpollFlags::EPOLLIN, id)) {
            tracing::error!(%errno, folder = %folder.display(), "cannot watch a log stream");
            return;
        }
        let files = Files::new(folder, name, size, files);
        self.streams.insert(id, Stream { fifo, files, refused_until: None });
    }

    fn detach(&mut self, id: u64) {
        // What was written before the end belongs to the log; bounded by the pipe's size.
        for _ in 0..16 {
            self.copy(id);
        }
        if let Some(stream) = self.streams.remove(&id) {
            let _ = self.poll.delete(&stream.fifo);
        }
    }

    fn copy(&mut self, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let (mut kept, mut dropped) = (0, 0);
        while kept + dropped < BUDGET {
            if !stream.refused() {
                match stream.step(&self.look, &mut self.buffer) {
                    Ok(0) => break,
                    Ok(bytes) => {
                        kept += bytes;
                        continue;
                    }
                    Err(error) => stream.refuse(&error),
                }
            }
            match stream.read_away(&mut self.buffer) {
                0 => break,
                bytes => dropped += bytes,
            }
        }
        self.count(kept as u64, dropped as u64);
    }

    fn count(&self, kept: u64, dropped: u64) {
        if kept + dropped == 0 {
            return;
        }
        self.counters.kept.fetch_add(kept, Ordering::Relaxed);
        self.counters.dropped.fetch_add(dropped, Ordering::Relaxed);
        if !self.counters.told.swap(true, Ordering::SeqCst) {
            let _ = self.news.write(1);
        }
    }
}

impl Stream {
    /// The disk has refused a moment ago.
    fn refused(&self) -> bool {
        self.refused_until.is_some_and(|until| Instant::now() < until)
    }

    fn refuse(&mut self, error: &io::Error) {
        if self.refused_until.is_none() {
            tracing::warn!(%error, "log bytes are dropped: the disk refuses them");
        }
        self.refused_until = Some(Instant::now() + RETRY);
    }

    /// Copies some; 0: the FIFO is empty. An error is the disk's.
    fn step(&mut self, look: &(OwnedFd, OwnedFd), buffer: &mut Vec<u8>) -> io::Result<usize> {
        self.files.current()?;
        let room = self.files.size.saturating_sub(self.files.length);
        if room > OVER {
            return self.move_bytes(OVER as usize);
        }
        let waiting = waiting(&self.fifo)?;
        if waiting as u64 <= room {
            return self.move_bytes(waiting);
        }
        let window = look_ahead(&self.fifo, look, buffer)?;
        let line_start = self.files.line_start()?;
        let decided = cut(window, self.files.length, self.files.size, line_start);
        let mut moved = 0;
        while moved < decided.take {
            match self.move_bytes(decided.take - moved)? {
                0 => return Ok(moved),
                bytes => moved += bytes,
            }
        }
        if decided.rotate {
            self.files.rotate()?;
        }
        // After a rotation alone the next step moves something: an empty file takes at least a byte.
        if moved == 0 { self.step(look, buffer) } else { Ok(moved) }
    }

    /// Moves up to so many bytes from the FIFO to the end of the file.
    fn move_bytes(&mut self, most: usize) -> io::Result<usize> {
        if most == 0 {
            return Ok(0);
        }
        self.files.current()?;
        let mut offset = self.files.length as i64;
        let file = self.files.current()?;
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        let moved = match splice(&self.fifo, None, file, Some(&mut offset), most, flags) {
            Ok(moved) => moved,
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        if moved > 0 {
            self.refused_until = None;
            self.files.length += moved as u64;
        }
        Ok(moved)
    }

    /// Throws away what waits, up to one buffer.
    fn read_away(&self, buffer: &mut Vec<u8>) -> usize {
        buffer.resize(OVER as usize, 0);
        nix::unistd::read(&self.fifo, buffer).unwrap_or(0)
    }
}

/// Bytes that wait in a pipe.
fn waiting(fifo: &OwnedFd) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    let done = unsafe { libc::ioctl(fifo.as_raw_fd(), libc::FIONREAD, &mut count) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(usize::try_from(count).unwrap_or(0)) }
}

/// The beginning of what waits, left in place.
fn look_ahead<'b>(
    fifo: &OwnedFd,
    look: &(OwnedFd, OwnedFd),
    buffer: &'b mut Vec<u8>,
) -> io::Result<&'b [u8]> {
    let copied = tee(fifo, &look.1, OVER as usize, SpliceFFlags::SPLICE_F_NONBLOCK)?;
    buffer.resize((OVER as usize).max(copied), 0);
    let mut length = 0;
    while length < copied {
        match nix::unistd::read(&look.0, &mut buffer[length..copied])? {
            0 => break,
            bytes => length += bytes,
        }
    }
    Ok(&buffer[..length])
}
