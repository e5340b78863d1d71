//! A file server that does not answer: a FUSE file system with one program on it.
//!
//! Speaks the kernel's protocol of include/uapi/linux/fuse.h, version 7.31, as far as looking up, opening and
//! reading one file needs it. Its answers to reads (or to look-ups) are held back until
//! [`FileServer::answer`]; a server that is dropped has died: what waits fails with ECONNABORTED, what comes
//! later with ENOTCONN. The test itself must never touch the mounted folder.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

const ROOT: u64 = 1;
const PROGRAM: u64 = 2;
/// Attributes and names stay known for so many seconds.
const KNOWN: u64 = 3600;

/// What the server leaves unanswered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silent {
    /// Reads. The kernel waits for them so that SIGKILL ends the waiting process.
    Reads,
    /// Reads. The kernel waits for them where no signal reaches, as NFS mounted `hard` does.
    ReadsDeaf,
    /// Look-ups: already `stat` does not come back.
    Names,
}

struct Desk {
    silent: bool,
    held: Vec<Vec<u8>>,
}

pub struct FileServer {
    /// The folder, which holds `game`.
    at: PathBuf,
    desk: Arc<Mutex<Desk>>,
    device: Arc<File>,
    /// Dropping it ends the thread.
    life: Option<std::io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl FileServer {
    /// Mounts it there with this as its program.
    pub fn mount(at: &Path, program: &str, silent: Silent) -> FileServer {
        fs::create_dir_all(at).unwrap();
        let mut options = OpenOptions::new();
        let device = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/fuse");
        let device = Arc::new(device.expect("these tests need /dev/fuse (a kernel with FUSE)"));
        let settings = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        mount(Some("silent"), at, Some("fuse"), MsFlags::empty(), Some(settings.as_str()))
            .expect("these tests need root, to mount");
        let desk = Arc::new(Mutex::new(Desk { silent: true, held: Vec::new() }));
        let (end, life) = std::io::pipe().unwrap();
        let server = Server { device: device.clone(), desk: desk.clone(), program: program.into(), silent };
        let thread = std::thread::spawn(move || server.serve(&end));
        FileServer { at: at.to_owned(), desk, device, life: Some(life), thread: Some(thread) }
    }

    /// The path of the program.
    pub fn program(&self) -> String {
        self.at.join("game").to_str().unwrap().to_owned()
    }

    /// How many questions it owes an answer to.
    pub fn owes(&self) -> usize {
        self.desk.lock().unwrap().held.len()
    }

    /// Answers all that waits, and from now on at once.
    pub fn answer(&self) {
        let mut desk = self.desk.lock().unwrap();
        desk.silent = false;
        for answer in desk.held.drain(..) {
            // Who asked may have gone meanwhile.
            let _ = (&*self.device).write(&answer);
        }
    }

    /// Dies: the mount stays, as after SIGKILL of a server.
    pub fn die(mut self) -> DeadServer {
        self.end();
        DeadServer { _at: Mounted(std::mem::take(&mut self.at)) }
    }

    fn end(&mut self) {
        drop(self.life.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        // The last descriptor of the device: with it the kernel ends the connection.
        self.device = Arc::new(File::open("/dev/null").unwrap());
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.end();
        drop(Mounted(std::mem::take(&mut self.at)));
    }
}

/// The folder of a server that has died.
pub struct DeadServer {
    _at: Mounted,
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

struct Server {
    device: Arc<File>,
    desk: Arc<Mutex<Desk>>,
    program: Vec<u8>,
    silent: Silent,
}

impl Server {
    fn serve(self, end: &std::io::PipeReader) {
        let mut packet = vec![0; 256 << 10];
        loop {
            let ask = PollFlags::POLLIN;
            let mut fds = [PollFd::new(self.device.as_fd(), ask), PollFd::new(end.as_fd(), ask)];
            let _ = poll(&mut fds, PollTimeout::try_from(Duration::from_secs(1)).unwrap());
            if fds[1].any().unwrap_or(true) {
                return;
            }
            // An error means that nothing is there, or that who asked was killed.
            let Ok(len) = (&*self.device).read(&mut packet) else { continue };
            let Some((opcode, answer)) = self.answer(&packet[..len]) else { continue };
            let mut desk = self.desk.lock().unwrap();
            let held = if self.silent == Silent::Names { LOOKUP } else { READ };
            match desk.silent && opcode == held {
                true => desk.held.push(answer),
                false => drop((&*self.device).write(&answer)),
            }
        }
    }

    /// The answer to a question; `None`: it wants none.
    fn answer(&self, packet: &[u8]) -> Option<(u32, Vec<u8>)> {
        let word = |at: usize| u32::from_ne_bytes(packet[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_ne_bytes(packet[at..at + 8].try_into().unwrap());
        let (opcode, unique, node) = (word(4), long(8), long(16));
        let body = match opcode {
            FORGET | BATCH_FORGET | INTERRUPT => return None,
            INIT => Ok(self.greeting()),
            LOOKUP if packet[40..].starts_with(b"game\0") => {
                let ids = [PROGRAM, 0, KNOWN, KNOWN, 0];
                Ok([ids.map(u64::to_ne_bytes).concat(), self.attributes(PROGRAM)].concat())
            }
            LOOKUP => Err(libc::ENOENT),
            GETATTR => Ok([[KNOWN, 0].map(u64::to_ne_bytes).concat(), self.attributes(node)].concat()),
            OPEN => Ok(vec![0; 16]),
            READ => {
                let (from, size) = (long(48) as usize, word(56) as usize);
                let rest = self.program.get(from..).unwrap_or_default();
                Ok(rest[..rest.len().min(size)].to_vec())
            }
            RELEASE | FLUSH => Ok(Vec::new()),
            _ => Err(libc::ENOSYS),
        };
        let (error, body) = body.map_or_else(|errno| (-errno, Vec::new()), |body| (0, body));
        let mut answer = (body.len() as u32 + 16).to_ne_bytes().to_vec();
        answer.extend(error.to_ne_bytes());
        answer.extend(unique.to_ne_bytes());
        answer.extend(body);
        Some((opcode, answer))
    }

    /// `struct fuse_init_out`. Asynchronous reads are those that a kill ends.
    fn greeting(&self) -> Vec<u8> {
        const FUSE_ASYNC_READ: u32 = 1;
        let (ahead, flags) = match self.silent {
            Silent::ReadsDeaf => (0, 0),
            _ => (128 << 10, FUSE_ASYNC_READ),
        };
        let background = 16 | 12 << 16;
        let mut words = vec![7, 31, ahead, flags, background, 128 << 10];
        words.resize(16, 0_u32);
        words.into_iter().flat_map(u32::to_ne_bytes).collect()
    }

    /// `struct fuse_attr`
    fn attributes(&self, node: u64) -> Vec<u8> {
        let (mode, size) = match node {
            ROOT => (libc::S_IFDIR | 0o755, 0),
            _ => (libc::S_IFREG | 0o755, self.program.len() as u64),
        };
        let longs = [node, size, 1, 0, 0, 0].map(u64::to_ne_bytes).concat();
        let words = [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0].map(u32::to_ne_bytes).concat();
        [longs, words].concat()
    }
}
