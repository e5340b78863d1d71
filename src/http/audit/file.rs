//! The file of the audit trail: lines of JSON that are only ever added, on disk before the answer goes out.
//!
//! Owns `audit.jsonl` in data_dir and the older ones behind it, [`FILES`] of [`SIZE`]; the oldest goes first. A disk that
//! takes nothing holds up no change: what could not be written is kept, as much as is bearable, and tried again.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::agent::disk::Saving;
use crate::http::view::AuditView;
use crate::metrics::{Metrics, SavedFile};

/// How large one file may grow.
const SIZE: u64 = 4 << 20;
/// How many there are.
const FILES: u32 = 5;
/// The most that is read of them for one answer, in bytes: less than fits into the answer to another agent.
const MOST_READ: usize = 4 << 20;
/// Entries that wait to be written.
const QUEUE: usize = 1_024;
/// Of these, such as nobody waits for: what was refused leaves room for what was done.
pub(super) const NOTES: usize = QUEUE / 2;
/// Entries that are kept while the disk takes nothing.
const MOST_KEPT: usize = 1_024;
/// How long an answer waits for the disk.
const PATIENCE: Duration = Duration::from_secs(2);

/// An entry as it is written, or nothing; who waits for it to be on disk.
type Line = (String, Option<oneshot::Sender<()>>);

/// The writing and reading end. Cheap to clone.
#[derive(Clone)]
pub(super) struct Ledger {
    path: Arc<PathBuf>,
    lines: mpsc::Sender<Line>,
}

/// The ledger in this file, and the work behind it, which ends when the last writing end is gone.
pub(super) fn open(path: PathBuf, metrics: Arc<Metrics>) -> (Ledger, impl Future<Output = ()> + Send) {
    let (lines, to_write) = mpsc::channel(QUEUE);
    let saving = Saving::new(path.clone(), SavedFile::Audit).measured(metrics);
    let work = write_all(path.clone(), saving, to_write);
    (Ledger { path: Arc::new(path), lines }, work)
}

async fn write_all(path: PathBuf, mut saving: Saving, mut lines: mpsc::Receiver<Line>) {
    let (mut batch, mut unwritten) = (Vec::new(), VecDeque::new());
    loop {
        tokio::select! {
            taken = lines.recv_many(&mut batch, QUEUE) => if taken == 0 {
                return;
            },
            () = saving.retry() => {}
        }
        let mut waiting = Vec::new();
        for (line, waits) in batch.drain(..) {
            unwritten.push_back((line, waits.is_some()));
            waiting.extend(waits);
        }
        make_room(&mut unwritten);
        let (to, text) = (path.clone(), unwritten.iter().map(|(line, _)| line.as_str()).collect::<String>());
        // Else the agent is ending.
        if let Ok(written) = tokio::task::spawn_blocking(move || append(&to, text.as_bytes())).await {
            if written.is_ok() {
                unwritten.clear();
            }
            saving.note(written);
        }
        for waiting in waiting {
            let _ = waiting.send(());
        }
    }
}

/// Of too many that are kept those go first that nobody waited for, and then the oldest.
fn make_room(kept: &mut VecDeque<(String, bool)>) {
    let mut over = kept.len().saturating_sub(MOST_KEPT);
    kept.retain(|(_, waited_for)| {
        let goes = over > 0 && !waited_for;
        over -= usize::from(goes);
        !goes
    });
    kept.drain(..over);
}

impl Ledger {
    /// Writes an entry; comes back when it is on disk, or the disk takes too long. False: it will never be there.
    pub(super) async fn write(&self, entry: &AuditView) -> bool {
        let Some((line, told)) = line(entry) else { return false };
        let (reply, written) = oneshot::channel();
        let deadline = Instant::now() + PATIENCE;
        let taken = self.lines.send_timeout((line, Some(reply)), PATIENCE).await.is_ok();
        if !taken || tokio::time::timeout_at(deadline, written).await.is_err() {
            tracing::error!(target: "bigbrother::audit", entry = told, "the audit trail is not written in time");
        }
        taken
    }

    /// Writes an entry that nobody waits for. False: it will never be there.
    pub(super) fn note(&self, entry: &AuditView) -> bool {
        let room = self.lines.capacity() > QUEUE - NOTES;
        room && line(entry).is_some_and(|(line, _)| self.lines.try_send((line, None)).is_ok())
    }

    /// Comes back when all is on disk that came before, or the disk takes too long.
    pub(super) async fn settled(&self) {
        let (reply, written) = oneshot::channel();
        let settling = async {
            if self.lines.send((String::new(), Some(reply))).await.is_ok() {
                let _ = written.await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, settling).await;
    }

    /// The newest entries, oldest first; those before `since` (RFC 3339, as entries have it) are left out. Blocks.
    pub(super) fn read(&self, since: &str, most: usize) -> io::Result<Vec<AuditView>> {
        let mut found = VecDeque::new();
        let mut bytes = 0;
        for number in 0..FILES {
            let text = match std::fs::read(numbered(&self.path, number)) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            };
            for line in text.rsplit(|byte| *byte == b'\n') {
                // What a power cut left of a line is none.
                let Ok(entry) = serde_json::from_slice::<AuditView>(line) else { continue };
                bytes += line.len();
                if found.len() == most || bytes > MOST_READ {
                    return Ok(found.into());
                }
                if entry.at.as_str() >= since {
                    found.push_front(entry);
                }
            }
        }
        Ok(found.into())
    }
}

/// The line of an entry, which is in the agent's log from now on, too.
fn line(entry: &AuditView) -> Option<(String, String)> {
    let text = serde_json::to_string(entry).ok()?;
    tracing::info!(target: "bigbrother::audit", entry = text, "audit");
    Some((format!("{text}\n"), text))
}

/// The newest has no number.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    if number > 0 {
        name.push(format!(".{number}"));
    }
    name.into()
}

fn append(path: &Path, text: &[u8]) -> io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let mut file = open_to_append(path)?;
    let mut length = file.metadata()?.len();
    if length > 0 && length + text.len() as u64 > SIZE {
        for number in (0..FILES - 1).rev() {
            match std::fs::rename(numbered(path, number), numbered(path, number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        (file, length) = (open_to_append(path)?, 0);
    }
    let written = file.write_all(text).and_then(|()| file.sync_data());
    if written.is_err() {
        // It is tried again as a whole.
        let _ = file.set_len(length);
    }
    written
}

fn open_to_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: usize, padding: usize) -> AuditView {
        AuditView {
            at: format!("2026-01-01T00:00:00.{:03}Z", number % 1000),
            host: "alpha".parse().unwrap(),
            who: format!("token t{number}"),
            from: "192.0.2.7".to_owned(),
            via: None,
            what: "POST /v1/scale".to_owned(),
            request: Some(serde_json::json!("x".repeat(padding))),
            status: 200,
            refused: None,
            change: None,
            missed: 0,
        }
    }

    fn whos(entries: &[AuditView]) -> Vec<&str> {
        entries.iter().map(|entry| entry.who.as_str()).collect()
    }

    #[tokio::test]
    async fn what_was_written_is_read_newest_last_and_a_torn_line_is_none() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let (ledger, work) = open(path.clone(), Arc::default());
        let work = tokio::spawn(work);
        for number in 1..4 {
            ledger.write(&entry(number, 0)).await;
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(whos(&ledger.read("", 10).unwrap()), ["token t1", "token t2", "token t3"]);
        assert_eq!(whos(&ledger.read("", 2).unwrap()), ["token t2", "token t3"]);
        assert_eq!(whos(&ledger.read("2026-01-01T00:00:00.003Z", 10).unwrap()), ["token t3"]);
        let mut text = std::fs::read(&path).unwrap();
        text.extend(b"{\"at\":\"2026");
        std::fs::write(&path, text).unwrap();
        assert_eq!(ledger.read("", 10).unwrap().len(), 3);
        drop(ledger);
        tokio::time::timeout(Duration::from_secs(10), work).await.expect("it ends with its writers").unwrap();
    }

    #[test]
    fn the_oldest_files_go_first_and_all_together_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let line = serde_json::to_string(&entry(1, 1 << 20)).unwrap() + "\n";
        for _ in 0..30 {
            append(&path, line.as_bytes()).unwrap();
        }
        let files: Vec<u64> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|file| file.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(files.len(), FILES as usize);
        assert!(files.iter().all(|length| *length <= SIZE), "{files:?}");
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_holds_up_no_change_and_what_was_to_be_written_comes_later() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("gone");
        let metrics = Arc::new(Metrics::new());
        let (ledger, work) = open(folder.join("audit.jsonl"), metrics.clone());
        tokio::spawn(work);
        ledger.write(&entry(1, 0)).await;
        let unsaved = |value: u8| {
            let shown = metrics.render(None, &Default::default());
            shown.contains(&format!("unsaved{{file=\"audit.jsonl\"}} {value}\n"))
        };
        assert!(unsaved(1));
        std::fs::create_dir(&folder).unwrap();
        ledger.write(&entry(2, 0)).await;
        assert!(unsaved(0));
        assert_eq!(whos(&ledger.read("", 10).unwrap()), ["token t1", "token t2"]);
    }

    #[test]
    fn of_what_is_kept_for_later_the_refused_goes_first_and_then_the_oldest() {
        let kept = |entries: Vec<(usize, bool)>| {
            let mut kept = entries.into_iter().map(|(n, waited)| (n.to_string(), waited)).collect();
            make_room(&mut kept);
            kept.into_iter().map(|(n, _)| n.parse::<usize>().unwrap()).collect::<Vec<_>>()
        };
        // Every second one was waited for.
        let all = kept((0..MOST_KEPT + 2).map(|n| (n, n % 2 == 0)).collect());
        assert_eq!((all.len(), &all[..4]), (MOST_KEPT, &[0, 2, 4, 5][..]));
        let all = kept((0..MOST_KEPT + 2).map(|n| (n, n != 7)).collect());
        assert_eq!((all.len(), all[0], all.contains(&7)), (MOST_KEPT, 1, false));
        assert_eq!(kept(vec![(1, false), (2, true)]), [1, 2]);
    }
}
