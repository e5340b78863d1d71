//! What a host keeps over reboots for its own use: assigned ports and the run numbers given out.
//!
//! Owns `host.json` in the data folder. Ports are chosen here and stay with their instance; the file is
//! written by a task of its own, so that a slow disk never holds up a spawn.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use super::disk::Saving;
use crate::host::Ports;
use crate::keeper::fault::{self, Point};
use crate::metrics::{Metrics, SavedFile};
use crate::spec::{InstanceId, PortRequest, Protocol};

/// Run numbers are reserved in blocks, so that the file is not written for each run. A keeper's table is the
/// surer source; this one counts after a reboot.
const RUN_BLOCK: u64 = 1_000;

/// How long a range that was found full passes for full: what another program holds in it may be let go any time.
const FULL: Duration = Duration::from_secs(1);

/// Why the book could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// The file cannot be read or written.
    #[error("cannot read or write {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no book.
    #[error("{path} is damaged; remove it (instances then get new ports)")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// No port could be given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no free {protocol} port in {low}-{high} for ports.{name}; widen `host.ports`")]
pub struct NoPort {
    protocol: Protocol,
    low: u16,
    high: u16,
    name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Page {
    /// Run numbers up to this one may have been used.
    runs: u64,
    /// Ports by instance and name.
    ports: BTreeMap<InstanceId, Ports>,
}

/// The open book.
pub struct Book {
    page: Page,
    last_run: u64,
    range: (u16, u16),
    /// Numbers in use, for a fast search.
    taken: BTreeSet<(Protocol, u16)>,
    /// Numbers that some process of the spec asks for by name, here or on another host.
    fixed: BTreeSet<(Protocol, u16)>,
    next: u16,
    /// At most so many were free, and until when that holds: a search through the whole range is not repeated for
    /// each of thousands that want a port.
    left: BTreeMap<Protocol, (usize, Instant)>,
    /// The page differs from what was published.
    changed: bool,
    out: watch::Sender<Vec<u8>>,
}

impl Book {
    /// Opens the book of a data folder; `writer` must be run for the reserve of run numbers and for changes to last.
    pub fn open(data_dir: &Path, range: (u16, u16)) -> Result<(Book, Writer), BookError> {
        let path = data_dir.join("host.json");
        let mut page = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Page>(&bytes)
                .map_err(|source| BookError::Damaged { path: path.clone(), source })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Page::default(),
            Err(source) => return Err(BookError::File { path, source }),
        };
        let last_run = page.runs;
        page.runs += RUN_BLOCK;
        let saving = Saving::new(path, SavedFile::Book);
        let (out, changes) = watch::channel(encode(&page));
        let taken = page.ports.values().flat_map(|ports| ports.values().copied()).collect();
        Ok((
            Book {
                page,
                last_run,
                range,
                taken,
                fixed: BTreeSet::new(),
                next: range.0,
                left: BTreeMap::new(),
                changed: false,
                out,
            },
            Writer { saving, changes },
        ))
    }

    /// The last run number that may have been used before this start.
    pub fn last_run(&self) -> u64 {
        self.last_run
    }

    /// A run number is in use: the reserve is kept ahead of it.
    pub fn use_run(&mut self, run: u64) {
        if run + RUN_BLOCK / 2 > self.page.runs {
            self.page.runs = run + RUN_BLOCK;
            self.changed = true;
        }
    }

    /// The range for new ports; those given out stay.
    pub fn set_range(&mut self, range: (u16, u16)) {
        self.range = range;
        self.next = range.0;
        self.left.clear();
    }

    /// The fixed ports of the spec: never given out as free ones.
    pub fn keep_off(&mut self, fixed: BTreeSet<(Protocol, u16)>) {
        if self.fixed != fixed {
            self.fixed = fixed;
            self.left.clear();
        }
    }

    /// The ports of an instance as given out before.
    pub fn ports(&self, instance: &InstanceId) -> Ports {
        self.page.ports.get(instance).cloned().unwrap_or_default()
    }

    /// The ports of an instance: those that it has, and new ones for what is missing. After a time in which it was
    /// down (`cold`) also for those that somebody else holds now: else it could not start any more.
    pub fn assign(
        &mut self,
        instance: &InstanceId,
        requests: &BTreeMap<String, PortRequest>,
        cold: bool,
    ) -> Result<Ports, NoPort> {
        let held = self.page.ports.get(instance).cloned();
        let kept = |name: &String, request: &PortRequest| {
            held.as_ref().and_then(|held| held.get(name)).copied().filter(|(protocol, number)| {
                *protocol == request.protocol && request.fixed.is_none_or(|fixed| fixed == *number)
            })
        };
        self.may_suffice(requests.iter().filter(|(name, r)| r.fixed.is_none() && kept(name, r).is_none()))?;
        let mut ports = Ports::new();
        for (name, request) in requests {
            let kept = kept(name, request);
            let number = match (request.fixed, kept) {
                (Some(fixed), _) => fixed,
                (None, Some((protocol, number))) if !cold || !is_taken((protocol, number)) => number,
                (None, _) => self.free(name, request.protocol, &ports)?,
            };
            ports.insert(name.clone(), (request.protocol, number));
        }
        if held.as_ref() != Some(&ports) && !(held.is_none() && ports.is_empty()) {
            self.release(instance);
            self.taken.extend(ports.values().copied());
            self.page.ports.insert(instance.clone(), ports.clone());
            self.changed = true;
        }
        Ok(ports)
    }

    /// Ports that a run has which an agent before has started: it may have died before they were on disk.
    pub fn learn(&mut self, instance: &InstanceId, ports: Ports) {
        if !ports.is_empty() && !self.page.ports.contains_key(instance) {
            self.taken.extend(ports.values().copied());
            self.page.ports.insert(instance.clone(), ports);
            self.changed = true;
        }
    }

    /// Gives the ports of an instance back.
    pub fn release(&mut self, instance: &InstanceId) {
        if let Some(ports) = self.page.ports.remove(instance) {
            for port in ports.values() {
                self.taken.remove(port);
                self.left.remove(&port.0);
            }
            self.changed = true;
        }
    }

    /// Refuses at once what a search a moment ago showed not to be there.
    fn may_suffice<'a>(
        &self,
        missing: impl Iterator<Item = (&'a String, &'a PortRequest)>,
    ) -> Result<(), NoPort> {
        let mut wanted: BTreeMap<Protocol, usize> = BTreeMap::new();
        for (name, PortRequest { protocol, .. }) in missing {
            let wanted = wanted.entry(*protocol).or_default();
            *wanted += 1;
            let left = self.left.get(protocol).filter(|(_, until)| Instant::now() < *until);
            if left.is_some_and(|(most, _)| *wanted > *most) {
                return Err(self.no_port(name, *protocol));
            }
        }
        Ok(())
    }

    fn free(&mut self, name: &str, protocol: Protocol, also: &Ports) -> Result<u16, NoPort> {
        let (low, high) = self.range;
        for _ in low..=high {
            let number = self.next;
            self.next = if number >= high { low } else { number + 1 };
            let port = (protocol, number);
            let ours =
                self.taken.contains(&port) || self.fixed.contains(&port) || also.values().any(|p| *p == port);
            if !ours && bind(port).is_ok() {
                return Ok(number);
            }
        }
        let found = also.values().filter(|(of, _)| *of == protocol).count();
        self.left.insert(protocol, (found, Instant::now() + FULL));
        Err(self.no_port(name, protocol))
    }

    fn no_port(&self, name: &str, protocol: Protocol) -> NoPort {
        let (low, high) = self.range;
        NoPort { protocol, low, high, name: name.to_owned() }
    }

    /// Hands what has changed to the writer: all changes of a turn together, since a page is as long as the host is
    /// full.
    pub fn publish(&mut self) {
        if std::mem::take(&mut self.changed) {
            self.out.send_replace(encode(&self.page));
        }
    }
}

/// The last changes are not lost with it.
impl Drop for Book {
    fn drop(&mut self) {
        self.publish();
    }
}

/// Somebody on this machine holds the port, on one of its addresses.
pub fn is_taken(port: (Protocol, u16)) -> bool {
    bind(port).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

fn bind((protocol, number): (Protocol, u16)) -> io::Result<()> {
    let any = (Ipv4Addr::UNSPECIFIED, number);
    match protocol {
        Protocol::Udp => UdpSocket::bind(any).map(drop),
        Protocol::Tcp => TcpListener::bind(any).map(drop),
    }
}

fn encode(page: &Page) -> Vec<u8> {
    // Strings, numbers and maps with string keys always have a JSON form.
    serde_json::to_vec_pretty(page).unwrap_or_default()
}

/// Writes the book's changes; the newest one wins.
pub struct Writer {
    saving: Saving,
    changes: watch::Receiver<Vec<u8>>,
}

impl Writer {
    /// Writes until the book is closed and its last change is on disk. Run numbers may be given out when it says that
    /// they are reserved, or cannot be: a full disk must not keep the games from a new agent, and the numbers then come
    /// from the keeper's table.
    pub async fn run(mut self, metrics: Arc<Metrics>, reserved: oneshot::Sender<()>) {
        self.saving = self.saving.measured(metrics);
        self.save().await;
        // Whoever waited for it is gone when the agent is ending.
        let _ = reserved.send(());
        loop {
            tokio::select! {
                changed = self.changes.changed() => if changed.is_err() {
                    return;
                },
                () = self.saving.retry() => {}
            }
            fault::pass(Point::AgentBeforeBook);
            self.save().await;
            fault::pass(Point::AgentAfterBook);
        }
    }

    async fn save(&mut self) {
        let bytes = self.changes.borrow_and_update().clone();
        self.saving.save(move || Ok(bytes)).await;
    }
}

#[cfg(test)]
mod tests;
