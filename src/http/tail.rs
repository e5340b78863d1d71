//! Reading rotated log files: the last lines, and what is appended, across rotation.
//!
//! Owns open files. Blocking and without tokio: `logs` runs it where blocking is allowed. The files of a
//! stream are `stdout.log`, `stdout.log.1`, `stdout.log.2` …, newest first; the keeper renames them when
//! the newest is full. An open file stays the same file when it is renamed, so only files that are opened
//! can be relied on, never paths.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Bytes of one read.
const CHUNK: usize = 64 * 1024;

/// Said in place of what was rotated away before it could be read.
pub(super) const GAP: &[u8] = b"[bigbrother: some lines were rotated away before they could be read]\n";

/// A place in the files of one stream; see the module.
pub(super) struct Tail {
    newest: PathBuf,
    follow: bool,
    reading: Option<Open>,
    /// Newer than `reading`, oldest first.
    next: VecDeque<Open>,
}

struct Open {
    file: File,
    id: (u64, u64),
    at: u64,
    /// Where it ended when it was opened.
    end: u64,
}

impl Open {
    fn new(path: &Path) -> io::Result<Option<Open>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let metadata = file.metadata()?;
        Ok(Some(Open { id: identity(&metadata), at: 0, end: metadata.len(), file }))
    }

    /// The next bytes before `limit`; empty at the end.
    fn read(&mut self, limit: u64) -> io::Result<Vec<u8>> {
        let wanted = usize::try_from(limit.saturating_sub(self.at)).unwrap_or(CHUNK).min(CHUNK);
        let mut chunk = vec![0; wanted];
        let got = self.file.read_at(&mut chunk, self.at)?;
        chunk.truncate(got);
        self.at += got as u64;
        Ok(chunk)
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

impl Tail {
    /// Opens the files of which `newest` is the newest, at the last `lines` lines. With `follow`, what is
    /// appended later follows; without, the tail ends where the files end now. No file is no error: the
    /// process may not have written yet.
    pub(super) fn open(newest: &Path, lines: usize, follow: bool) -> io::Result<Tail> {
        let mut next = last_lines(open_all(newest)?, lines)?;
        let reading = next.pop_front();
        Ok(Tail { newest: newest.to_owned(), follow, reading, next })
    }

    /// Goes on from a [`Tail::place`] of an earlier tail, with `follow`; true: what came after it is not there any more.
    pub(super) fn resume(newest: &Path, place: &str) -> io::Result<(Tail, bool)> {
        let mut numbers = place.splitn(3, '.').map(|number| number.parse::<u64>().ok());
        let mut number = || numbers.next().flatten();
        let place = number().zip(number()).zip(number());
        let mut next: VecDeque<Open> = open_all(newest)?.into();
        let known = place.and_then(|(id, at)| Some((next.iter().position(|open| open.id == id)?, at)));
        if let Some((position, at)) = known {
            next.drain(..position);
            if let Some(open) = next.front_mut() {
                open.at = at;
            }
        }
        let lost = place.is_some() && known.is_none();
        let reading = next.pop_front();
        Ok((Tail { newest: newest.to_owned(), follow: true, reading, next }, lost))
    }

    /// Where it stands, in words that [`Tail::resume`] takes; `None`: nothing was there to read.
    pub(super) fn place(&self) -> Option<String> {
        let open = self.reading.as_ref()?;
        Some(format!("{}.{}.{}", open.id.0, open.id.1, open.at))
    }

    /// The next bytes, at most 64 KiB; `None`: there are none now, which without `follow` is the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let Some(open) = &mut self.reading else {
                if !self.follow || !self.find_newer(None)? {
                    return Ok(None);
                }
                continue;
            };
            let limit = if self.follow { u64::MAX } else { open.end };
            let chunk = open.read(limit)?;
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
            if let Some(newer) = self.next.pop_front() {
                self.reading = Some(newer);
                continue;
            }
            if !self.follow {
                return Ok(None);
            }
            let length = open.file.metadata()?.len();
            if length < open.at {
                // Somebody cut it off.
                open.at = 0;
                continue;
            }
            let id = open.id;
            if newest_is(&self.newest, id)? {
                return Ok(None);
            }
            // It was renamed, after which nobody writes to it, but perhaps just before.
            let last = open.read(u64::MAX)?;
            if !last.is_empty() {
                return Ok(Some(last));
            }
            let behind = self.find_newer(Some(id))?;
            if behind {
                return Ok(Some(GAP.to_vec()));
            }
            if self.next.is_empty() && self.reading.as_ref().is_some_and(|open| open.id == id) {
                // Renamed, and the new one is not there yet.
                return Ok(None);
            }
        }
    }

    /// Goes on to the files after the one just read. Without one: to the oldest there is; true when there
    /// is any. With one: true when it is not among them any more, so that some may be missing.
    fn find_newer(&mut self, read: Option<(u64, u64)>) -> io::Result<bool> {
        let mut files = open_all(&self.newest)?;
        let known = read.and_then(|id| files.iter().position(|open| open.id == id));
        if let Some(at) = known {
            files.drain(..=at);
        }
        let any = !files.is_empty();
        if any {
            self.next = files.into();
            self.reading = self.next.pop_front();
        }
        Ok(any && known.is_none())
    }
}

fn newest_is(path: &Path, id: (u64, u64)) -> io::Result<bool> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(identity(&metadata) == id),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// All files of the stream, oldest first. A rotation while they are being opened would show one twice or
/// miss one, so they are opened again until none came in between.
fn open_all(newest: &Path) -> io::Result<Vec<Open>> {
    let mut files: Vec<Open> = Vec::new();
    for _ in 0..8 {
        files.clear();
        let first = Open::new(newest)?;
        let first_id = first.as_ref().map(|open| open.id);
        files.extend(first);
        for number in 1u32.. {
            let mut name = newest.as_os_str().to_owned();
            name.push(format!(".{number}"));
            let Some(older) = Open::new(Path::new(&name))? else { break };
            if files.iter().all(|open| open.id != older.id) {
                files.push(older);
            }
        }
        if Open::new(newest)?.map(|open| open.id) == first_id {
            break;
        }
    }
    files.reverse();
    Ok(files)
}

/// Drops what lies before the last `lines` lines: whole files, and the beginning of the first that stays.
fn last_lines(files: Vec<Open>, lines: usize) -> io::Result<VecDeque<Open>> {
    let mut kept = VecDeque::new();
    // Line ends still to be passed on the way back. The very last byte ends the last line, if it is one.
    let mut to_pass = lines;
    let mut at_the_very_end = true;
    for mut open in files.into_iter().rev() {
        let start = match to_pass {
            0 => open.end,
            _ => line_start(&open, &mut to_pass, &mut at_the_very_end)?,
        };
        open.at = start;
        let complete = to_pass == 0;
        kept.push_front(open);
        if complete {
            break;
        }
    }
    Ok(kept)
}

/// Walks back from the end of the file over `to_pass` line ends; where it stops, or 0.
fn line_start(open: &Open, to_pass: &mut usize, at_the_very_end: &mut bool) -> io::Result<u64> {
    let mut block = vec![0; CHUNK];
    let mut end = open.end;
    while end > 0 {
        let start = end.saturating_sub(CHUNK as u64);
        let block = &mut block[..usize::try_from(end - start).unwrap_or(CHUNK)];
        open.file.read_exact_at(block, start)?;
        for (at, byte) in block.iter().enumerate().rev() {
            let last_byte = std::mem::take(at_the_very_end);
            if *byte != b'\n' || last_byte {
                continue;
            }
            *to_pass -= 1;
            if *to_pass == 0 {
                return Ok(start + at as u64 + 1);
            }
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{OpenOptions, rename, write};
    use std::io::Write;

    struct Logs {
        dir: tempfile::TempDir,
    }

    impl Logs {
        fn new(files: &[&str]) -> Logs {
            let logs = Logs { dir: tempfile::tempdir().unwrap() };
            for (number, text) in files.iter().enumerate() {
                write(logs.path(number), text).unwrap();
            }
            logs
        }

        fn path(&self, number: usize) -> PathBuf {
            let name = if number == 0 { "stdout.log".into() } else { format!("stdout.log.{number}") };
            self.dir.path().join(name)
        }

        fn newest(&self) -> PathBuf {
            self.path(0)
        }

        fn append(&self, text: &str) {
            let mut file = OpenOptions::new().create(true).append(true).open(self.newest()).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn rotate(&self, keep: usize) {
            for number in (0..keep).rev() {
                if self.path(number).exists() {
                    rename(self.path(number), self.path(number + 1)).unwrap();
                }
            }
        }

        fn tail(&self, lines: usize) -> String {
            drain(&mut Tail::open(&self.newest(), lines, false).unwrap())
        }
    }

    fn drain(tail: &mut Tail) -> String {
        let mut all = Vec::new();
        while let Some(chunk) = tail.next().unwrap() {
            all.extend(chunk);
        }
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn the_last_lines_are_found_over_rotated_files() {
        let logs = Logs::new(&["five\nsix\n", "three\nfour\n", "one\ntwo\n"]);
        assert_eq!(logs.tail(0), "");
        assert_eq!(logs.tail(1), "six\n");
        assert_eq!(logs.tail(2), "five\nsix\n");
        assert_eq!(logs.tail(3), "four\nfive\nsix\n");
        assert_eq!(logs.tail(5), "two\nthree\nfour\nfive\nsix\n");
        assert_eq!(logs.tail(100), "one\ntwo\nthree\nfour\nfive\nsix\n");
    }

    #[test]
    fn a_line_without_end_counts_and_may_span_files() {
        let logs = Logs::new(&["tail", "one\nlong "]);
        assert_eq!(logs.tail(1), "long tail");
        assert_eq!(logs.tail(2), "one\nlong tail");
        assert_eq!(Logs::new(&["", "one\ntwo\n"]).tail(1), "two\n");
        assert_eq!(Logs::new(&[]).tail(5), "");
    }

    #[test]
    fn many_blocks_are_walked_back() {
        let line = format!("{}\n", "x".repeat(999));
        let logs = Logs::new(&[&line.repeat(500)]);
        assert_eq!(logs.tail(200).len(), 200_000);
        assert_eq!(logs.tail(1000).len(), 500_000);
    }

    #[test]
    fn following_goes_on_over_rotations() {
        let logs = Logs::new(&["one\n"]);
        let mut tail = Tail::open(&logs.newest(), 1, true).unwrap();
        assert_eq!(drain(&mut tail), "one\n");
        // Written just before the rename, and two rotations at once.
        logs.append("two\n");
        logs.rotate(3);
        assert_eq!(drain(&mut tail), "two\n");
        logs.append("three\n");
        logs.rotate(3);
        logs.append("four\n");
        assert_eq!(drain(&mut tail), "three\nfour\n");
        logs.append("five\n");
        assert_eq!(drain(&mut tail), "five\n");
    }

    #[test]
    fn what_was_rotated_away_is_said() {
        let logs = Logs::new(&["one\n"]);
        let mut tail = Tail::open(&logs.newest(), 1, true).unwrap();
        assert_eq!(drain(&mut tail), "one\n");
        for text in ["two\n", "three\n", "four\n"] {
            logs.rotate(1);
            logs.append(text);
        }
        let gap = String::from_utf8(GAP.to_vec()).unwrap();
        assert_eq!(drain(&mut tail), format!("{gap}three\nfour\n"));
    }

    #[test]
    fn a_tail_goes_on_where_another_one_stood() {
        let logs = Logs::new(&[]);
        let (tail, lost) = Tail::resume(&logs.newest(), "start").unwrap();
        assert_eq!((tail.place(), lost), (None, false));
        logs.append("one\n");
        let (mut tail, lost) = Tail::resume(&logs.newest(), "start").unwrap();
        assert_eq!((drain(&mut tail), lost), ("one\n".to_owned(), false));
        let place = tail.place().unwrap();
        logs.append("two\n");
        logs.rotate(3);
        logs.append("three\n");
        let (mut tail, lost) = Tail::resume(&logs.newest(), &place).unwrap();
        assert_eq!((drain(&mut tail), lost), ("two\nthree\n".to_owned(), false));
        for number in 0..5 {
            logs.rotate(1);
            logs.append(&format!("{number}\n"));
        }
        let (mut tail, lost) = Tail::resume(&logs.newest(), &place).unwrap();
        assert_eq!((drain(&mut tail), lost), ("3\n4\n".to_owned(), true));
    }

    #[test]
    fn a_file_may_come_later_or_be_cut_off() {
        let logs = Logs::new(&[]);
        let mut tail = Tail::open(&logs.newest(), 10, true).unwrap();
        assert_eq!(drain(&mut tail), "");
        logs.append("first\n");
        assert_eq!(drain(&mut tail), "first\n");
        write(logs.newest(), "new\n").unwrap();
        assert_eq!(drain(&mut tail), "new\n");
    }

    #[test]
    fn without_follow_a_busy_writer_does_not_keep_the_reader() {
        let logs = Logs::new(&["one\n"]);
        let mut tail = Tail::open(&logs.newest(), 10, false).unwrap();
        logs.append("two\n");
        assert_eq!(drain(&mut tail), "one\n");
    }
}
