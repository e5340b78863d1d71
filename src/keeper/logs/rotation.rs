//! Rotated log files of one stream, and where to cut.
//!
//! Owns the current file, its length, and the files `.1`, `.2` … beside it. The cut is pure. A stream never
//! keeps more than `size * files` bytes and 64 KiB. Called by the copier thread only.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How far over `size` a file may get for the sake of a whole line.
pub const OVER: u64 = 64 * 1024;

/// What to do with the bytes that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// So many go into the current file.
    pub take: usize,
    /// Then a new file begins.
    pub rotate: bool,
}

/// Where to cut: `window` is the beginning of what waits, `length` what the current file holds, `size` what
/// it may hold; `line_start`: the file is empty or ends with a newline.
pub fn cut(window: &[u8], length: u64, size: u64, line_start: bool) -> Cut {
    let room = usize::try_from(size.saturating_sub(length)).unwrap_or(usize::MAX);
    if window.len() <= room {
        return Cut { take: window.len(), rotate: false };
    }
    if let Some(at) = window[..room].iter().rposition(|b| *b == b'\n') {
        return Cut { take: at + 1, rotate: true };
    }
    if line_start && length > 0 {
        return Cut { take: 0, rotate: true };
    }
    let last = usize::try_from((size + OVER).saturating_sub(length)).unwrap_or(usize::MAX);
    let limit = window.len().min(last);
    match window[room..limit].iter().position(|b| *b == b'\n') {
        Some(at) => Cut { take: room + at + 1, rotate: true },
        None => Cut { take: limit, rotate: limit == last },
    }
}

/// The files of one stream.
pub struct Files {
    folder: PathBuf,
    name: &'static str,
    /// Bytes of one file.
    pub size: u64,
    files: u32,
    current: Option<File>,
    /// Bytes in the current file.
    pub length: u64,
}

impl Files {
    /// Opens nothing yet.
    pub fn new(folder: PathBuf, name: &'static str, size: u64, files: u32) -> Self {
        let (size, files) = (size.max(1), files.max(1));
        Files { folder, name, size, files, current: None, length: 0 }
    }

    /// The current file, opened (with its folder made) if need be; appended to where it ends.
    pub fn current(&mut self) -> io::Result<&File> {
        if self.current.is_none() {
            fs::create_dir_all(&self.folder)?;
            let mut open = OpenOptions::new();
            // Not O_APPEND: splice(2) refuses it. Only this thread writes.
            let file = open.read(true).write(true).create(true).mode(0o640).open(self.path(0))?;
            self.length = file.metadata()?.len();
            self.current = Some(file);
        }
        self.current.as_ref().ok_or_else(|| io::Error::other("no log file"))
    }

    /// The current file is empty or ends with a newline.
    pub fn line_start(&mut self) -> io::Result<bool> {
        let mut last = [b'\n'];
        let file = self.current()?;
        let length = file.metadata()?.len();
        if length > 0 {
            file.read_exact_at(&mut last, length - 1)?;
        }
        Ok(last == [b'\n'])
    }

    /// Closes the current file and begins a new one; the oldest go first.
    pub fn rotate(&mut self) -> io::Result<()> {
        self.current = None;
        let oldest = self.files - 1;
        for number in (oldest.max(1)..=oldest + 64).rev() {
            // Also what a larger `files` of the past has left.
            if number > oldest || oldest > 0 {
                remove(&self.path(number))?;
            }
        }
        if oldest == 0 {
            remove(&self.path(0))?;
        }
        for number in (0..oldest).rev() {
            match fs::rename(self.path(number), self.path(number + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        self.remove_excess(oldest)
    }

    /// Files that went over for a whole line count in full: together the old ones keep to their bound.
    fn remove_excess(&self, oldest: u32) -> io::Result<()> {
        let bound = self.size.saturating_mul(u64::from(oldest));
        let mut sum = 0_u64;
        for number in 1..=oldest {
            let path = self.path(number);
            let Ok(metadata) = fs::metadata(&path) else { continue };
            sum = sum.saturating_add(metadata.len());
            if sum > bound {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn path(&self, number: u32) -> PathBuf {
        match number {
            0 => self.folder.join(self.name),
            n => self.folder.join(format!("{}.{n}", self.name)),
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_fits_is_taken() {
        assert_eq!(cut(b"ab\ncd", 0, 5, true), Cut { take: 5, rotate: false });
        assert_eq!(cut(b"", 5, 5, true), Cut { take: 0, rotate: false });
    }

    #[test]
    fn the_cut_is_after_the_last_newline_that_fits() {
        assert_eq!(cut(b"ab\ncd\nef", 0, 7, true), Cut { take: 6, rotate: true });
        assert_eq!(cut(b"ab\ncd\nef", 2, 7, false), Cut { take: 3, rotate: true });
    }

    #[test]
    fn a_whole_line_that_does_not_fit_begins_a_new_file() {
        assert_eq!(cut(b"abcdef\n", 3, 5, true), Cut { take: 0, rotate: true });
    }

    #[test]
    fn a_line_without_end_goes_over_by_64_kib_and_no_further() {
        let long = vec![b'x'; 200_000];
        assert_eq!(cut(&long, 0, 10, true), Cut { take: 65_546, rotate: true });
        // The line has begun in an earlier round.
        assert_eq!(cut(&long, 65_540, 10, false), Cut { take: 6, rotate: true });
        // It ends within the 64 KiB.
        let mut line = vec![b'x'; 30];
        line[20] = b'\n';
        assert_eq!(cut(&line, 0, 10, true), Cut { take: 21, rotate: true });
        // Its end is not there yet.
        assert_eq!(cut(&line[..15], 0, 10, true), Cut { take: 15, rotate: false });
    }

    proptest! {
        #[test]
        fn a_file_never_passes_its_bound_and_progress_is_made(
            window in proptest::collection::vec(prop_oneof![Just(b'x'), Just(b'\n')], 1..300),
            length in 0_u64..200, size in 1_u64..100,
        ) {
            prop_assume!(length <= size + OVER);
            let Cut { take, rotate } = cut(&window, length, size, length == 0);
            prop_assert!(take <= window.len());
            prop_assert!(take > 0 || rotate);
            prop_assert!(length + take as u64 <= (size + OVER).max(length));
        }
    }

    #[test]
    fn rotation_keeps_the_newest_within_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("stdout.log.7"), b"left by a larger setting").unwrap();
        let mut files = Files::new(dir.path().join("x/y"), "stdout.log", 10, 3);
        fs::create_dir_all(dir.path().join("x/y")).unwrap();
        fs::write(dir.path().join("x/y/stdout.log.7"), b"left by a larger setting").unwrap();
        for text in ["one\n", "two\n", "three\n", "four\n"] {
            files.current().unwrap().write_all_at(text.as_bytes(), 0).unwrap();
            files.rotate().unwrap();
        }
        let read = |name: &str| fs::read_to_string(dir.path().join("x/y").join(name)).ok();
        assert_eq!(read("stdout.log"), None);
        assert_eq!(read("stdout.log.1").as_deref(), Some("four\n"));
        assert_eq!(read("stdout.log.2").as_deref(), Some("three\n"));
        assert_eq!((read("stdout.log.3"), read("stdout.log.7")), (None, None));
        assert!(dir.path().join("stdout.log.7").exists());
    }

    #[test]
    fn old_files_that_went_over_count_in_full() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::new(dir.path().into(), "stdout.log", 10, 3);
        for _ in 0..2 {
            files.current().unwrap().write_all_at(&[b'x'; 15], 0).unwrap();
            files.rotate().unwrap();
        }
        assert!(dir.path().join("stdout.log.1").exists());
        assert!(!dir.path().join("stdout.log.2").exists());
    }

    #[test]
    fn one_file_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::new(dir.path().into(), "stdout.log", 10, 1);
        files.current().unwrap().write_all_at(b"old", 0).unwrap();
        files.rotate().unwrap();
        files.current().unwrap();
        assert_eq!(files.length, 0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_existing_file_is_continued() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("stdout.log"), b"half a li").unwrap();
        let mut files = Files::new(dir.path().into(), "stdout.log", 10, 1);
        files.current().unwrap();
        assert_eq!((files.length, files.line_start().unwrap()), (9, false));
    }
}
