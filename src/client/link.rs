//! The connection under a client: never blocks a tick, comes back after a loss.
//!
//! Owns the socket, what is not written yet (bounded) and what is half read. Knows lines, not their meaning.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::line::{Line, Lines, MAX_ANSWER, MAX_LINE};
use super::message::{BEAT, Fault};

/// Bytes that wait for an agent that does not read; more is a lost connection.
const MAX_UNWRITTEN: usize = 4 * MAX_LINE;

/// Bytes read in one call, so that a flood of answers does not hold up a tick.
const MAX_READ: usize = 64 * 1024;

/// The first wait between two tries to connect; doubles up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Link {
    path: PathBuf,
    stream: Option<UnixStream>,
    lines: Lines,
    unwritten: Vec<u8>,
    pause: Duration,
    next_try: Option<Instant>,
}

#[derive(Serialize)]
struct Frame<'a, P> {
    jsonrpc: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<&'a P>,
}

/// Any line of the agent.
#[derive(Deserialize)]
pub(super) struct Heard {
    pub id: Option<u64>,
    pub method: Option<String>,
    #[serde(default)]
    pub params: serde_json::Value,
    #[serde(default)]
    pub result: serde_json::Value,
    pub error: Option<Fault>,
}

impl Link {
    pub(super) fn connect(path: &Path) -> std::io::Result<Self> {
        let mut link = Link {
            path: path.to_owned(),
            stream: None,
            lines: Lines::new(MAX_ANSWER),
            unwritten: Vec::new(),
            pause: PAUSE,
            next_try: None,
        };
        link.open()?;
        Ok(link)
    }

    fn open(&mut self) -> std::io::Result<()> {
        let stream = UnixStream::connect(&self.path)?;
        stream.set_nonblocking(true)?;
        self.stream = Some(stream);
        Ok(())
    }

    pub(super) fn connected(&self) -> bool {
        self.stream.is_some()
    }

    /// Connects again if it is time to; true when there is a new connection.
    pub(super) fn try_again(&mut self, now: Instant) -> bool {
        if self.next_try.is_some_and(|at| now < at) {
            return false;
        }
        if self.open().is_err() {
            self.next_try = Some(now + self.pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            return false;
        }
        true
    }

    /// The agent has welcomed this process: the next loss is a new story.
    pub(super) fn settled(&mut self) {
        self.pause = PAUSE;
    }

    fn lose(&mut self) {
        self.stream = None;
        self.unwritten.clear();
        self.lines = Lines::new(MAX_ANSWER);
        // A socket that takes connections only to close them is not asked in every tick.
        self.next_try = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// Sends the plain heartbeat unless earlier bytes still wait; false when it was left out.
    pub(super) fn beat(&mut self) -> bool {
        self.flush();
        self.unwritten.is_empty() && self.queue(BEAT.as_bytes())
    }

    pub(super) fn request<P: Serialize>(&mut self, id: Option<u64>, method: &str, params: Option<&P>) {
        // Shapes of this crate: they have string keys and no failing serializers.
        if let Ok(line) = serde_json::to_vec(&Frame { jsonrpc: "2.0", id, method, params }) {
            self.queue(&line);
        }
    }

    /// Sends a line, now or as soon as the socket takes it; false without a connection.
    pub(super) fn queue(&mut self, line: &[u8]) -> bool {
        if self.stream.is_none() {
            return false;
        }
        if self.unwritten.len() + line.len() >= MAX_UNWRITTEN {
            // What was promised cannot be kept: start anew, with a hello that tells all.
            self.lose();
            return false;
        }
        self.unwritten.extend_from_slice(line);
        self.unwritten.push(b'\n');
        self.flush();
        self.stream.is_some()
    }

    fn flush(&mut self) {
        let mut written = 0;
        while let Some(stream) = self.stream.as_mut().filter(|_| written < self.unwritten.len()) {
            match stream.write(&self.unwritten[written..]) {
                Ok(length) => written += length,
                Err(e) if e.kind() == ErrorKind::Interrupted => (),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return self.lose(),
            }
        }
        self.unwritten.drain(..written);
    }

    /// The lines that have arrived; with `wait`, waits that long for the first.
    pub(super) fn read(&mut self, wait: Option<Duration>) -> Vec<Vec<u8>> {
        self.flush();
        let mut found = Vec::new();
        let mut buffer = [0; 4096];
        let mut total = 0;
        while total < MAX_READ {
            let Some(stream) = &mut self.stream else { break };
            match receive(stream, &mut buffer, wait.filter(|_| total == 0)) {
                Ok(0) => self.lose(),
                Ok(length) => {
                    total += length;
                    self.lines.feed(&buffer[..length], |line| {
                        if let Line::Whole(line) = line {
                            found.push(line.to_vec());
                        }
                    });
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => (),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(_) => self.lose(),
            }
        }
        found
    }
}

fn receive(stream: &mut UnixStream, buffer: &mut [u8], wait: Option<Duration>) -> std::io::Result<usize> {
    let Some(wait) = wait else { return stream.read(buffer) };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
    let read = stream.read(buffer);
    stream.set_nonblocking(true)?;
    read
}
