//! The ledger: what a new keeper must know about the runs of the one before it.
//!
//! Owns the file `ledger` in the runtime folder (a tmpfs), mapped shared: a header page and 4,096 slots of
//! 1 KiB, one a run. A slot is filled before the fork (the intent); the child writes the time and its own
//! pid into it before exec, so that a keeper killed in between loses nobody. Space is allocated before it
//! is touched: a full tmpfs is an error, never SIGBUS. Nothing is ever synced; a ledger of another boot is
//! worthless and wiped. Written by the loop (and, two words a slot, by the child); read by `adopt`.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::protocol::MAX_NOTE;

mod slot;

pub use slot::{ChildWords, Entry, Intent, Phase, Place, Record, Slot, failure_word};

/// Runs that fit.
pub const SLOTS: usize = 4096;

const HEADER: usize = 4096;
const SLOT: usize = 1024;
const CHUNK: usize = 64;
const MAGIC: [u8; 8] = *b"bbledger";
const LAYOUT: u64 = 1;

/// The first page. `magic` is written last, so that a half-made file is no ledger.
#[repr(C)]
struct Header {
    magic: AtomicU64,
    layout: AtomicU64,
    boot_id: [AtomicU64; 5],
    /// Slots whose space is allocated; the others must not be touched.
    allocated: AtomicU64,
    fence_ns: AtomicU64,
    keeper_pid: AtomicU64,
    keeper_start: AtomicU64,
    root_len: AtomicU64,
    root: [AtomicU64; 128],
}

/// A ledger that could not be opened or extended.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file.
    #[error("cannot use the ledger {path}; it must lie on a writable file system with some MiB free")]
    File {
        /// Where it is.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// All slots are taken.
    #[error("all {SLOTS} slots of the ledger are taken")]
    Full,
    /// The record does not fit a slot.
    #[error("the names and the log folder of a run are too long for the ledger")]
    TooLong,
}

impl LedgerError {
    /// The errno that a reply names.
    pub fn errno(&self) -> i32 {
        match self {
            LedgerError::File { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            LedgerError::Full => libc::ENOSPC,
            LedgerError::TooLong => libc::ENAMETOOLONG,
        }
    }
}

/// The mapped file.
pub struct Ledger {
    base: NonNull<u8>,
    file: File,
    path: PathBuf,
    free: BTreeSet<usize>,
}

// The pointer is to a shared mapping that lives as long as the value; only the loop's thread uses it.

impl Ledger {
    /// Opens or makes the ledger. One of another boot or layout is emptied; the flag says that this one is new.
    pub fn open(path: &Path, boot_id: &str) -> Result<(Ledger, bool), LedgerError> {
        let failed = |source| LedgerError::File { path: path.to_owned(), source };
        let mut open = OpenOptions::new();
        open.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = open.open(path).map_err(failed)?;
        let fresh = !is_ours(&file, boot_id).map_err(failed)?;
        if fresh {
            file.set_len(0).map_err(failed)?;
        }
        file.set_len((HEADER + SLOTS * SLOT) as u64).map_err(failed)?;
        reserve(&file, 0, HEADER + if fresh { CHUNK * SLOT } else { 0 }).map_err(failed)?;
        let length =
            NonZeroUsize::new(HEADER + SLOTS * SLOT).ok_or_else(|| failed(io::Error::other("empty")))?;
        // SAFETY: a fresh shared mapping of a file that nobody truncates while we hold the runtime folder's lock.
        let base = unsafe {
            mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, &file, 0)
        }
        .map_err(|errno| failed(errno.into()))?;
        let mut ledger = Ledger { base: base.cast(), file, path: path.to_owned(), free: BTreeSet::new() };
        if fresh {
            ledger.initialise(boot_id);
        }
        ledger.free = (0..ledger.allocated()).filter(|at| ledger.slot(*at).phase() == Phase::Free).collect();
        Ok((ledger, fresh))
    }

    fn initialise(&self, boot_id: &str) {
        let header = self.header();
        store_bytes(&header.boot_id, boot_id.as_bytes());
        header.layout.store(LAYOUT, Ordering::Relaxed);
        header.allocated.store(CHUNK as u64, Ordering::Relaxed);
        header.magic.store(u64::from_ne_bytes(MAGIC), Ordering::Release);
    }

    fn header(&self) -> &Header {
        const { assert!(size_of::<Header>() <= HEADER) };
        // SAFETY: the first page is mapped and allocated, and Header is all atomics.
        unsafe { self.base.cast::<Header>().as_ref() }
    }

    fn allocated(&self) -> usize {
        (self.header().allocated.load(Ordering::Relaxed) as usize).min(SLOTS)
    }

    /// The slot at this place; it must be allocated.
    pub fn slot(&self, at: usize) -> &Slot {
        const { assert!(size_of::<Slot>() == SLOT) };
        assert!(at < self.allocated(), "slot {at} has no space");
        // SAFETY: within the mapping, allocated (asserted), aligned, and Slot is all atomics.
        unsafe { self.base.add(HEADER + at * SLOT).cast::<Slot>().as_ref() }
    }

    /// It has a free slot, or can have one.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty() || self.allocated() < SLOTS
    }

    /// Writes an intent into a free slot and tells which.
    pub fn enter(&mut self, intent: &Intent<'_>) -> Result<usize, LedgerError> {
        if self.free.is_empty() {
            self.extend()?;
        }
        let at = *self.free.first().ok_or(LedgerError::Full)?;
        if !self.slot(at).fill(intent) {
            return Err(LedgerError::TooLong);
        }
        self.free.pop_first();
        Ok(at)
    }

    fn extend(&mut self) -> Result<(), LedgerError> {
        let allocated = self.allocated();
        let more = CHUNK.min(SLOTS - allocated);
        if more == 0 {
            return Err(LedgerError::Full);
        }
        reserve(&self.file, HEADER + allocated * SLOT, more * SLOT)
            .map_err(|source| LedgerError::File { path: self.path.clone(), source })?;
        self.header().allocated.store((allocated + more) as u64, Ordering::Relaxed);
        self.free.extend(allocated..allocated + more);
        Ok(())
    }

    /// Empties a slot.
    pub fn leave(&mut self, at: usize) {
        self.slot(at).clear();
        self.free.insert(at);
    }

    /// Every used slot.
    pub fn entries(&self) -> Vec<(usize, Entry)> {
        (0..self.allocated()).filter_map(|at| Some((at, self.slot(at).read()?))).collect()
    }

    /// The fence deadline; 0: none.
    pub fn fence_ns(&self) -> u64 {
        self.header().fence_ns.load(Ordering::Relaxed)
    }

    /// Keeps the fence deadline.
    pub fn set_fence_ns(&self, deadline_ns: u64) {
        self.header().fence_ns.store(deadline_ns, Ordering::Relaxed);
    }

    /// The keeper that wrote last: its pid and start time in ticks; pid 0: none.
    pub fn keeper(&self) -> (i32, u64) {
        let header = self.header();
        (header.keeper_pid.load(Ordering::Relaxed) as i32, header.keeper_start.load(Ordering::Relaxed))
    }

    /// Signs the ledger as this keeper's.
    pub fn set_keeper(&self, pid: i32, start_ticks: u64) {
        self.header().keeper_start.store(start_ticks, Ordering::Relaxed);
        self.header().keeper_pid.store(pid as u64, Ordering::Relaxed);
    }

    /// The games cgroup that the runs are in; `None`: no cgroups.
    pub fn games_root(&self) -> Option<PathBuf> {
        let header = self.header();
        let len = header.root_len.load(Ordering::Acquire) as usize;
        let bytes = load_bytes(&header.root, len);
        (len > 0).then(|| PathBuf::from(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Keeps the games cgroup. One whose path is too long is not kept; a new keeper then finds it by itself.
    pub fn set_games_root(&self, root: Option<&Path>) {
        let header = self.header();
        let text = root.map(|r| r.to_string_lossy()).unwrap_or_default();
        header.root_len.store(0, Ordering::Release);
        if text.len() <= header.root.len() * 8 {
            store_bytes(&header.root, text.as_bytes());
            header.root_len.store(text.len() as u64, Ordering::Release);
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `open`, unmapped once; no reference outlives self.
        let _ = unsafe { munmap(self.base.cast(), HEADER + SLOTS * SLOT) };
    }
}

/// Reads the header without the mapping: a short file must not be touched through it.
fn is_ours(file: &File, boot_id: &str) -> io::Result<bool> {
    let mut head = [0_u8; 56];
    match file.read_exact_at(&mut head, 0) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        other => other?,
    }
    let mut id = [0_u8; 40];
    let take = boot_id.len().min(40);
    id[..take].copy_from_slice(&boot_id.as_bytes()[..take]);
    Ok(head[..8] == MAGIC && head[8..16] == LAYOUT.to_ne_bytes() && head[16..] == id)
}

fn reserve(file: &File, at: usize, length: usize) -> io::Result<()> {
    nix::fcntl::posix_fallocate(file, at as i64, length as i64).map_err(Into::into)
}

/// Writes bytes into words, zero-filled.
fn store_bytes(words: &[AtomicU64], bytes: &[u8]) {
    for (word, at) in words.iter().zip((0..).step_by(8)) {
        let mut piece = [0_u8; 8];
        let rest = bytes.get(at..).unwrap_or_default();
        let take = rest.len().min(8);
        piece[..take].copy_from_slice(&rest[..take]);
        word.store(u64::from_ne_bytes(piece), Ordering::Relaxed);
    }
}

/// Reads `length` bytes back (as many as there are).
fn load_bytes(words: &[AtomicU64], length: usize) -> Vec<u8> {
    let length = length.min(words.len() * 8);
    let mut bytes: Vec<u8> =
        words.iter().take(length.div_ceil(8)).flat_map(|w| w.load(Ordering::Relaxed).to_ne_bytes()).collect();
    bytes.truncate(length);
    bytes
}

const _: () = assert!(MAX_NOTE.is_multiple_of(8));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::protocol::{End, LogTarget, RunId, SpawnStep};

    fn record(run: u64) -> Record {
        Record {
            run: RunId(run),
            instance: "zone.3".parse().unwrap(),
            exclusive: run.is_multiple_of(2),
            in_cgroup: true,
            logs: LogTarget::Files { folder: "/var/lib/x".into(), size: 10, files: 2 },
            note: vec![7; 256],
        }
    }

    fn enter(ledger: &mut Ledger, record: &Record) -> Result<usize, LedgerError> {
        let Record { run, exclusive, in_cgroup, ref note, .. } = *record;
        let place = &Place::of(&record.instance, &record.logs)?;
        let (keeper_pid, intent_ns) = (99, 1_000);
        ledger.enter(&Intent { run, exclusive, in_cgroup, place, note, keeper_pid, intent_ns })
    }

    #[test]
    fn what_was_entered_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let (mut ledger, fresh) = Ledger::open(&path, "boot-a").unwrap();
        assert!(fresh);
        let at = enter(&mut ledger, &record(4)).unwrap();
        ledger.set_fence_ns(77);
        ledger.set_keeper(99, 5);
        ledger.set_games_root(Some(Path::new("/sys/fs/cgroup/x")));
        ledger.slot(at).set_note(b"changed");
        drop(ledger);

        let (ledger, fresh) = Ledger::open(&path, "boot-a").unwrap();
        assert!(!fresh);
        assert_eq!((ledger.fence_ns(), ledger.keeper()), (77, (99, 5)));
        assert_eq!(ledger.games_root(), Some(PathBuf::from("/sys/fs/cgroup/x")));
        let entries = ledger.entries();
        assert_eq!(entries.len(), 1);
        let entry = &entries[0].1;
        assert_eq!(entry.record, Record { note: b"changed".to_vec(), ..record(4) });
        assert_eq!((entry.keeper_pid, entry.intent_ns, entry.pid, entry.phase), (99, 1_000, 0, Phase::Live));
    }

    #[test]
    fn another_boot_finds_an_empty_ledger() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let (mut ledger, _) = Ledger::open(&path, "boot-a").unwrap();
        enter(&mut ledger, &record(1)).unwrap();
        ledger.set_fence_ns(5);
        drop(ledger);
        let (ledger, fresh) = Ledger::open(&path, "boot-b").unwrap();
        assert!(fresh);
        assert_eq!((ledger.entries().len(), ledger.fence_ns()), (0, 0));
    }

    #[test]
    fn a_torn_file_is_a_new_ledger() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        std::fs::write(&path, b"bbled").unwrap();
        assert!(Ledger::open(&path, "boot-a").unwrap().1);
    }

    #[test]
    fn slots_run_out_with_an_error_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let (mut ledger, _) = Ledger::open(&dir.path().join("ledger"), "boot-a").unwrap();
        for run in 0..SLOTS as u64 {
            enter(&mut ledger, &record(run)).unwrap();
        }
        assert!(matches!(enter(&mut ledger, &record(1)), Err(LedgerError::Full)));
        ledger.leave(17);
        assert_eq!(enter(&mut ledger, &record(5000)).unwrap(), 17);
    }

    #[test]
    fn a_record_that_does_not_fit_is_refused_and_takes_no_slot() {
        let dir = tempfile::tempdir().unwrap();
        let (mut ledger, _) = Ledger::open(&dir.path().join("ledger"), "boot-a").unwrap();
        let mut long = record(1);
        long.logs = LogTarget::Files { folder: "x".repeat(400), size: 1, files: 1 };
        assert!(matches!(enter(&mut ledger, &long), Err(LedgerError::TooLong)));
        assert_eq!(enter(&mut ledger, &record(1)).unwrap(), 0);
    }

    #[test]
    fn ends_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (mut ledger, _) = Ledger::open(&dir.path().join("ledger"), "boot-a").unwrap();
        for (run, phase) in [
            Phase::Exited(End::Code(-1)),
            Phase::Gone(End::Signal { signal: 11, core: true }),
            Phase::Gone(End::Unknown),
            Phase::SpawnFailed(SpawnStep::Exec, 2),
        ]
        .into_iter()
        .enumerate()
        {
            let at = enter(&mut ledger, &record(run as u64)).unwrap();
            ledger.slot(at).set_phase(phase);
            assert_eq!(ledger.slot(at).read().unwrap().phase, phase);
        }
    }
}
