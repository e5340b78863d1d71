//! The process sockets and notify sockets of all instances of a host.
//!
//! [`Sockets`] owns them, their connections, and one epoll descriptor that is readable when one of them has
//! something to say. The supervision loop alone owns a `Sockets`: it waits for the descriptor
//! (`agent::readiness`), calls [`Sockets::poll`] and handles the events in order. No task per connection, no lock; every
//! call does a bounded piece of work, so that a flood on one socket costs the others nothing. Never decides
//! what a message means. The keeper holds copies of the listening ends, so that they outlive the agent.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::keeper::process;
use crate::process_api::notify::{self, Notice};
use crate::process_api::rpc::{Outgoing, Request};
use crate::spec::InstanceId;

mod bound;
mod connection;
mod datagram;
mod endpoint;
mod identity;
#[cfg(test)]
mod tests;
mod token;

pub use bound::{OpenError, door};
pub use endpoint::MAX_CONNECTIONS;
pub use identity::{Games, Identity, KnownBy, Stranger};

use datagram::Control;
use endpoint::{Endpoint, READ, Round};
use token::Role;

/// Descriptors looked at in one [`Sockets::poll`].
const BATCH: usize = 64;

/// Rounds of [`Sockets::drain`]: enough for all that a kernel buffer holds.
const DRAIN_ROUNDS: usize = 64;

/// One connection; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Something that was said on a socket of an instance.
#[derive(Debug)]
pub struct SocketEvent {
    /// On whose socket.
    pub instance: Arc<InstanceId>,
    /// On which connection; `None` on the notify socket and for strangers.
    pub conn: Option<ConnId>,
    /// By which process (of a connection: the one that opened it); 0 when the kernel does not say.
    pub pid: i32,
    /// What.
    pub said: Said,
}

impl SocketEvent {
    /// Whoever said it lives.
    pub fn is_of_the_living(&self) -> bool {
        process::lives(self.pid)
    }
}

/// What was said.
#[derive(Debug)]
pub enum Said {
    /// A connection is open.
    Connected,
    /// A connection is closed.
    Disconnected,
    /// A stranger was turned away; told once a round, counted always.
    Rejected(Stranger),
    /// A JSON-RPC call. An id is left only where the agent must answer (hello, find, watch, launch).
    Request(Request),
    /// An sd_notify message, never a barrier.
    Notice(Notice),
    /// `BARRIER=1`: the sender waits until this is dropped.
    Barrier(OwnedFd),
}

/// What has happened since the start, for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections taken, strangers' included.
    pub connections: u64,
    /// Connections refused or closed because there were too many.
    pub refused_connections: u64,
    /// Connections and datagrams of strangers.
    pub strangers: u64,
    /// Lines that were no call, or ended with their connection.
    pub malformed_lines: u64,
    /// Lines over the limit.
    pub oversized_lines: u64,
    /// Datagrams that could not be read, wholly or in part.
    pub malformed_notices: u64,
    /// Descriptors that came with datagrams and were closed.
    pub closed_descriptors: u64,
    /// Heartbeats that were one with another of the same round.
    pub coalesced_beats: u64,
    /// Questions answered with "busy".
    pub busy_answers: u64,
    /// Answers left out because the process does not read.
    pub dropped_answers: u64,
    /// Connections closed because the process does not read.
    pub stuck_connections: u64,
    /// Connections that could not be taken: no descriptors or no memory left.
    pub accept_failures: u64,
}

/// See the module.
pub struct Sockets {
    epoll: Epoll,
    endpoints: Vec<Option<Endpoint>>,
    slots: BTreeMap<InstanceId, usize>,
    counters: Counters,
    text: Box<[u8; READ]>,
    control: Box<Control>,
    round: u64,
    last_conn: u64,
    /// What `send` and `broadcast` found out; told by the next `poll`.
    late: Vec<SocketEvent>,
}

impl AsFd for Sockets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

impl Sockets {
    /// No sockets yet. Fails only when the machine is out of descriptors.
    pub fn new() -> std::io::Result<Self> {
        Ok(Sockets {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            endpoints: Vec::new(),
            slots: BTreeMap::new(),
            counters: Counters::default(),
            text: Box::new([0; READ]),
            control: Box::new([0; 160]),
            round: 0,
            last_conn: 0,
            late: Vec::new(),
        })
    }

    /// Makes `<folder>/api.sock` and `<folder>/notify.sock`, owned by the identity's account, in place of older
    /// ones; mode 0600, or 0666 where a cgroup tells who may speak ([`door`] gives the folder). Gives the listener
    /// and the notify socket, for the keeper to hold.
    pub fn open(
        &mut self,
        instance: &InstanceId,
        folder: &Path,
        identity: Identity,
    ) -> Result<[BorrowedFd<'_>; 2], OpenError> {
        let (listener, notify) = bound::bind(folder, &identity)?;
        let slot = self.insert(instance, listener, notify, identity)?;
        match &self.endpoints[slot] {
            Some(endpoint) => Ok([endpoint.listener.as_fd(), endpoint.notify.as_fd()]),
            None => Err(OpenError::Watch { source: Errno::EBADF }),
        }
    }

    /// Takes over the sockets that the keeper has held.
    pub fn adopt(
        &mut self,
        instance: &InstanceId,
        listener: OwnedFd,
        notify: OwnedFd,
        identity: Identity,
    ) -> Result<(), OpenError> {
        bound::prepare(&listener, &notify)?;
        self.insert(instance, listener, notify, identity).map(drop)
    }

    fn insert(
        &mut self,
        instance: &InstanceId,
        listener: OwnedFd,
        notify: OwnedFd,
        identity: Identity,
    ) -> Result<usize, OpenError> {
        self.close(instance);
        // Looked for only where there is one: a host that starts opens hundreds, one after another.
        let free = self.slots.len() < self.endpoints.len();
        let free = free.then(|| self.endpoints.iter().position(Option::is_none)).flatten();
        let slot = free.unwrap_or(self.endpoints.len());
        for (socket, role) in [(&listener, Role::Listener), (&notify, Role::Notify)] {
            let interest = EpollEvent::new(EpollFlags::EPOLLIN, token::of(slot, role));
            self.epoll.add(socket, interest).map_err(|source| OpenError::Watch { source })?;
        }
        if slot == self.endpoints.len() {
            self.endpoints.push(None);
        }
        self.endpoints[slot] = Some(Endpoint::new(instance.clone(), slot, identity, listener, notify));
        self.slots.insert(instance.clone(), slot);
        Ok(slot)
    }

    /// Tells who may speak from now on: a new run has a new main process. Open connections stay. What waited for
    /// [`KnownBy::CgroupToCome`] is read by [`Sockets::drain`].
    pub fn identify(&mut self, instance: &InstanceId, identity: Identity) {
        if let Some(endpoint) = self.endpoint(instance) {
            endpoint.identity = identity;
        }
    }

    /// Who may speak on an instance's sockets.
    pub fn identity(&self, instance: &InstanceId) -> Option<&Identity> {
        Some(&self.known(instance)?.identity)
    }

    /// Forgets all that an earlier run said or left open, so that nothing of it counts for the next one.
    pub fn reset(&mut self, instance: &InstanceId) {
        if let Some(endpoint) = self.endpoint(instance) {
            endpoint.connections = Default::default();
        }
        // Those that are taken only now go, too.
        drop(self.drain(instance));
        if let Some(endpoint) = self.endpoint(instance) {
            endpoint.connections = Default::default();
        }
    }

    /// All processes of the run before have ended, and the next one has begun already: gives, in order, what that has said,
    /// of what was heard and of what waits. Its connections stay. Whoever speaks from now on waits until
    /// [`Sockets::identify`] tells who may.
    pub fn pass_on(&mut self, instance: &InstanceId, heard: Vec<SocketEvent>) -> Vec<SocketEvent> {
        // Reads connections of the dead to their end, and closes them.
        let read = self.drain(instance);
        let Some(endpoint) = self.endpoint(instance) else { return Vec::new() };
        let next = endpoint.identity.begin_anew();
        let before = std::mem::replace(&mut endpoint.identity, next);
        let all = heard.into_iter().chain(read);
        all.filter(|event| before.is_another(event.pid)).collect()
    }

    /// Closes the sockets of an instance and its connections. The files stay; the next `open` replaces them.
    pub fn close(&mut self, instance: &InstanceId) {
        let Some(slot) = self.slots.remove(instance) else { return };
        if let Some(endpoint) = self.endpoints[slot].take() {
            // The keeper's copies would keep them in the epoll set. Both were added, so this cannot fail.
            let _ = self.epoll.delete(&endpoint.listener);
            let _ = self.epoll.delete(&endpoint.notify);
        }
    }

    /// The listener and the notify socket of an instance, for the keeper to hold.
    pub fn descriptors(&self, instance: &InstanceId) -> Option<[BorrowedFd<'_>; 2]> {
        let endpoint = self.known(instance)?;
        Some([endpoint.listener.as_fd(), endpoint.notify.as_fd()])
    }

    /// Takes what waits on the sockets, a bounded piece of it, and appends it to `events`. True: more waits;
    /// do something else and call again before the descriptor is waited for.
    pub fn poll(&mut self, events: &mut Vec<SocketEvent>) -> bool {
        events.append(&mut self.late);
        let mut ready = [EpollEvent::empty(); BATCH];
        // An interrupted wait has found nothing; the descriptor stays readable.
        let found = self.epoll.wait(&mut ready, EpollTimeout::ZERO).unwrap_or(0);
        let (endpoints, mut round) = self.begin(events);
        let mut more = found == BATCH;
        for event in &ready[..found] {
            let Some((slot, role)) = token::read(event.data()) else { continue };
            let Some(Some(endpoint)) = endpoints.get_mut(slot) else { continue };
            more |= match role {
                Role::Listener => endpoint.accept(&mut round),
                Role::Notify => endpoint.read_notices(&mut round),
                Role::Connection(at) => {
                    if event.events().contains(EpollFlags::EPOLLOUT) {
                        endpoint.write(&mut round, at);
                    }
                    endpoint.read(&mut round, at)
                }
            };
        }
        more
    }

    /// Reads all that waits on the sockets of one instance: called before it is judged hung, and before its end counts.
    pub fn drain(&mut self, instance: &InstanceId) -> Vec<SocketEvent> {
        let mut events = self.late.extract_if(.., |event| *event.instance == *instance).collect();
        let Some(&slot) = self.slots.get(instance) else { return events };
        let (endpoints, mut round) = self.begin(&mut events);
        if let Some(Some(endpoint)) = endpoints.get_mut(slot) {
            let (callers, notices) = endpoint.waits();
            for _ in 0..DRAIN_ROUNDS {
                let mut more = callers && endpoint.accept(&mut round);
                more |= notices && endpoint.read_notices(&mut round);
                for at in 0..MAX_CONNECTIONS {
                    more |= endpoint.read(&mut round, at);
                }
                if !more {
                    break;
                }
            }
        }
        events
    }

    /// A datagram that the keeper took while no agent listened, read like one of our own.
    pub fn replay(&mut self, instance: &InstanceId, pid: i32, datagram: &[u8]) -> Option<SocketEvent> {
        // Its account the socket's mode has checked, where it counts.
        if let Some(endpoint) = self.endpoint(instance)
            && endpoint.identity.admit(pid, endpoint.identity.uid).is_err()
        {
            self.counters.strangers += 1;
            return None;
        }
        let said = match notify::read(datagram) {
            // Its descriptor is closed long since.
            Ok(notice) if notice.barrier => return None,
            Ok(notice) => Said::Notice(notice),
            Err(_) => {
                self.counters.malformed_notices += 1;
                return None;
            }
        };
        Some(SocketEvent { instance: Arc::new(instance.clone()), conn: None, pid, said })
    }

    /// Says something on one connection; false when the connection is gone or does not take it.
    pub fn send(&mut self, instance: &InstanceId, conn: ConnId, message: &Outgoing) -> bool {
        self.say(instance, message, |connection| connection.id == conn) > 0
    }

    /// Says something on every connection that has said hello; gives their number. 0: nobody listens, a
    /// signal must do.
    pub fn broadcast(&mut self, instance: &InstanceId, message: &Outgoing) -> usize {
        self.say(instance, message, |connection| connection.greeted)
    }

    fn say(
        &mut self,
        instance: &InstanceId,
        message: &Outgoing,
        to: impl Fn(&connection::Connection) -> bool,
    ) -> usize {
        let Some(&slot) = self.slots.get(instance) else { return 0 };
        let mut late = std::mem::take(&mut self.late);
        let (endpoints, mut round) = self.begin(&mut late);
        let mut said = 0;
        if let Some(Some(endpoint)) = endpoints.get_mut(slot) {
            for at in 0..MAX_CONNECTIONS {
                if endpoint.connections[at].as_ref().is_some_and(&to) {
                    said += usize::from(endpoint.say(&mut round, at, message));
                }
            }
        }
        self.late = late;
        said
    }

    /// How many connections of an instance have said hello.
    pub fn listeners(&self, instance: &InstanceId) -> usize {
        self.known(instance).map_or(0, |e| e.connections.iter().flatten().filter(|c| c.greeted).count())
    }

    /// What has happened since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn known(&self, instance: &InstanceId) -> Option<&Endpoint> {
        self.endpoints.get(*self.slots.get(instance)?)?.as_ref()
    }

    fn endpoint(&mut self, instance: &InstanceId) -> Option<&mut Endpoint> {
        self.endpoints.get_mut(*self.slots.get(instance)?)?.as_mut()
    }

    fn begin<'a>(
        &'a mut self,
        events: &'a mut Vec<SocketEvent>,
    ) -> (&'a mut Vec<Option<Endpoint>>, Round<'a>) {
        self.round += 1;
        let round = Round {
            epoll: &self.epoll,
            counters: &mut self.counters,
            text: &mut self.text[..],
            control: &mut self.control,
            number: self.round,
            last_conn: &mut self.last_conn,
            events,
        };
        (&mut self.endpoints, round)
    }
}
