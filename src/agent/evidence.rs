//! Hang reports: what a silent run was doing right before it is killed.
//!
//! Owns the newest report of each instance, and the thread that reads the ends of logs: a disk that does not
//! answer holds up that one and nobody else. So the ends may be read after the kill, with what the next run has said
//! by then; the title has the moment. Reading /proc is bounded in threads and bytes, so that it costs the
//! other instances nothing. Called by the supervision loop, before the kill.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};

use crate::spec::InstanceId;

/// Threads that are looked at.
const MOST_THREADS: usize = 64;
/// Bytes of the end of each log.
const LOG_TAIL: u64 = 2_048;
/// Hung runs whose logs wait to be read.
const MOST_WAITING: usize = 1_024;

/// The newest hang report of each instance.
#[derive(Default)]
pub struct Evidence {
    reports: BTreeMap<InstanceId, Report>,
    /// To the thread; `None`: nothing has hung yet.
    reader: Option<SyncSender<Errand>>,
}

struct Report {
    text: String,
    /// The ends of its logs, when they are read.
    ends: Option<Receiver<String>>,
}

/// Logs to be read, and where what they end with is to go.
struct Errand {
    folder: PathBuf,
    reply: Sender<String>,
}

impl Evidence {
    /// Looks at the process, and has somebody look at its logs.
    pub fn collect(&mut self, instance: &InstanceId, title: &str, pid: Option<i32>, logs: &Path) {
        let mut text = format!("{title}\n");
        if let Some(pid) = pid {
            threads(&mut text, pid);
        }
        let (reply, ends) = channel();
        let errand = Errand { folder: logs.join(instance.to_string()), reply };
        self.reader = self.reader.take().or_else(reader);
        // One that cannot be sent is dropped, and with it its `reply`: the report says so.
        let _ = self.reader.as_ref().map(|reader| reader.try_send(errand));
        self.reports.insert(instance.clone(), Report { text, ends: Some(ends) });
    }

    /// The newest report.
    pub fn report(&mut self, instance: &InstanceId) -> Option<String> {
        let report = self.reports.get_mut(instance)?;
        match report.ends.as_ref().map(Receiver::try_recv) {
            None => {}
            Some(Err(TryRecvError::Empty)) => {
                return Some(format!(
                    "{}\n--- its logs are not read yet; does the disk answer?\n",
                    report.text
                ));
            }
            Some(ends) => {
                report
                    .text
                    .push_str(&ends.unwrap_or_else(|_| "\n--- its logs could not be read\n".to_owned()));
                report.ends = None;
            }
        }
        Some(report.text.clone())
    }

    /// Forgets an instance that is gone.
    pub fn forget(&mut self, instance: &InstanceId) {
        self.reports.remove(instance);
    }
}

/// Starts the thread, which ends with the sending end; `None`: there is none to be had now.
fn reader() -> Option<SyncSender<Errand>> {
    let (sender, errands) = sync_channel::<Errand>(MOST_WAITING);
    let read = move || {
        for Errand { folder, reply } in errands {
            // A newer report may have taken the place of the one that this is for.
            let _ = reply.send(ends(&folder));
        }
    };
    match std::thread::Builder::new().name("log-ends".to_owned()).spawn(read) {
        Ok(_) => Some(sender),
        Err(error) => {
            tracing::error!(%error, "no thread for the logs of hung runs");
            None
        }
    }
}

fn ends(folder: &Path) -> String {
    let mut text = String::new();
    for name in ["stdout.log", "stderr.log"] {
        if let Some(tail) = tail(&folder.join(name)) {
            let _ = writeln!(text, "\n--- the end of {name}\n{}", tail.trim_end());
        }
    }
    text
}

fn threads(report: &mut String, pid: i32) {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        let _ = writeln!(report, "pid {pid} is gone");
        return;
    };
    let mut tasks = tasks.flatten();
    for task in tasks.by_ref().take(MOST_THREADS) {
        let folder = task.path();
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        let status = read("status");
        let field = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or("?").trim().to_owned()
        };
        let id = task.file_name();
        let _ = writeln!(
            report,
            "thread {} {:?} state {} wchan {}",
            id.to_string_lossy(),
            field("Name:"),
            field("State:"),
            read("wchan")
        );
        for line in read("stack").lines() {
            let _ = writeln!(report, "    {line}");
        }
    }
    match tasks.count() {
        0 => {}
        more => drop(writeln!(report, "and {more} threads more, which were not looked at")),
    }
}

/// The last lines that fit; of a line that does not fit alone, its end.
fn tail(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    let before = length.saturating_sub(LOG_TAIL);
    // One byte more shows whether a line begins right there.
    file.seek(SeekFrom::Start(before.saturating_sub(1))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL + 1).read_to_end(&mut bytes).ok()?;
    let begins = bytes.iter().position(|byte| *byte == b'\n').map(|end| end + 1);
    let begins = begins.filter(|begins| before > 0 && *begins < bytes.len()).unwrap_or(0);
    let lines = &bytes[begins..];
    if lines.is_empty() { None } else { Some(String::from_utf8_lossy(lines).into_owned()) }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn id(text: &str) -> InstanceId {
        text.parse().unwrap()
    }

    /// The report when it is as asked for.
    fn report(evidence: &mut Evidence, instance: &str, is: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let report = evidence.report(&id(instance)).unwrap();
            if is(&report) {
                return report;
            }
            assert!(Instant::now() < deadline, "{report}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_report_names_threads_and_the_end_of_the_logs() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("zone.0")).unwrap();
        std::fs::write(dir.path().join("zone.0/stderr.log"), "x".repeat(5000) + "\nlast words\n").unwrap();
        let mut evidence = Evidence::default();
        let pid = i32::try_from(std::process::id()).unwrap();
        evidence.collect(&id("zone.0"), "no heartbeat for 5s", Some(pid), dir.path());
        let report = report(&mut evidence, "zone.0", |report| report.contains("last words"));
        assert!(report.contains("no heartbeat for 5s") && report.len() < 100_000, "{report}");
        assert!(report.contains(&format!("thread {pid}")), "{report}");
        assert_eq!(evidence.report(&id("zone.0")), Some(report), "and it stays so");
    }

    #[test]
    fn the_end_of_a_log_begins_at_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdout.log");
        let most = usize::try_from(LOG_TAIL).unwrap();
        let (fits, long) = ("y".repeat(most - 1), "x".repeat(5_000));
        let last = &long[..most + 1];
        for (log, shown) in [
            (String::new(), None),
            ("all\nof it\n".to_owned(), Some("all\nof it\n")),
            (format!("{long}\nlast words\n"), Some("last words\n")),
            // Exactly the last bytes are a line, and one byte more than they is none.
            (format!("before\n{fits}\n"), Some(format!("{fits}\n").as_str())),
            (format!("before\ny{fits}\nlast\n"), Some("last\n")),
            (long.clone(), Some(last)),
        ] {
            std::fs::write(&path, &log).unwrap();
            assert_eq!(tail(&path).as_deref(), shown, "of {} bytes", log.len());
        }
    }

    #[test]
    fn a_disk_that_does_not_answer_holds_up_no_kill() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["zone.0", "zone.1"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        // Who opens it waits for a writer, as for a dead file server.
        let fifo = dir.path().join("zone.0/stdout.log");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut evidence = Evidence::default();
        let pid = Some(i32::try_from(std::process::id()).unwrap());
        evidence.collect(&id("zone.0"), "hung", pid, dir.path());
        evidence.collect(&id("zone.1"), "hung", pid, dir.path());
        for name in ["zone.0", "zone.1"] {
            let report = evidence.report(&id(name)).unwrap();
            assert!(report.contains("thread") && report.contains("not read yet"), "{report}");
        }
        // The disk answers again. Whoever reads the fifo never gets more than this one writer.
        drop(std::fs::File::options().write(true).open(&fifo).unwrap());
        for name in ["zone.0", "zone.1"] {
            report(&mut evidence, name, |report| !report.contains("not read"));
        }
    }
}
