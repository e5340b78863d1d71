//! The sockets of one instance and its connections.
//!
//! Owns the listener, the notify socket and at most [`MAX_CONNECTIONS`] connections; answers what needs no
//! thought (taken, refused) and hands the rest out as events. Every step does a bounded piece of work.
//! Called by [`super::Sockets`].

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{MsgFlags, SockFlag, accept4, getsockopt, send, sockopt};

use super::connection::{Connection, Sent, Taken};
use super::datagram::{self, Control, Datagram};
use super::{ConnId, Counters, Identity, KnownBy, Said, SocketEvent, Stranger, token};
use crate::client::message::{Fault, MAX_WATCHES};
use crate::process_api::notify::{self, MAX_DATAGRAM};
use crate::process_api::rpc::{Call, Id, Outgoing, Request};
use crate::spec::InstanceId;

/// The largest number of connections to one process socket.
pub const MAX_CONNECTIONS: usize = 8;

/// Connections taken in one step.
const ACCEPTS: usize = 16;

/// Datagrams taken in one step.
const DATAGRAMS: usize = 32;

/// Bytes taken from a connection in one step.
pub(super) const READ: usize = 8 * 1024;

/// Calls of one connection in one step that cost the agent more than a note (find, launch ...).
const QUESTIONS: usize = 16;
const _: () = assert!(1 + MAX_WATCHES < QUESTIONS, "a client that is back says hello and all its watches");

/// What all endpoints share in one round of the loop.
pub(super) struct Round<'a> {
    pub epoll: &'a Epoll,
    pub counters: &'a mut Counters,
    pub text: &'a mut [u8],
    pub control: &'a mut Control,
    pub number: u64,
    pub last_conn: &'a mut u64,
    pub events: &'a mut Vec<SocketEvent>,
}

pub(super) struct Endpoint {
    pub instance: Arc<InstanceId>,
    pub slot: usize,
    pub identity: Identity,
    pub listener: OwnedFd,
    pub notify: OwnedFd,
    pub connections: [Option<Connection>; MAX_CONNECTIONS],
    /// The round and sender of the last `WATCHDOG=1` handed out.
    beat_in: (u64, i32),
    /// The round in which a stranger was last reported.
    rejected_in: u64,
}

impl Endpoint {
    pub(super) fn new(
        instance: InstanceId,
        slot: usize,
        identity: Identity,
        listener: OwnedFd,
        notify: OwnedFd,
    ) -> Self {
        Endpoint {
            instance: Arc::new(instance),
            slot,
            identity,
            listener,
            notify,
            connections: Default::default(),
            beat_in: (0, 0),
            rejected_in: 0,
        }
    }

    /// Whether callers wait, and whether datagrams do. When it cannot be known, both may.
    pub(super) fn waits(&self) -> (bool, bool) {
        let asked = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut sockets = [asked(self.listener.as_fd()), asked(self.notify.as_fd())];
        match poll(&mut sockets, PollTimeout::ZERO) {
            Ok(_) => (sockets[0].any() != Some(false), sockets[1].any() != Some(false)),
            Err(_) => (true, true),
        }
    }

    fn event(&self, conn: Option<ConnId>, pid: i32, said: Said) -> SocketEvent {
        SocketEvent { instance: Arc::clone(&self.instance), conn, pid, said }
    }

    fn reject(&mut self, round: &mut Round<'_>, pid: i32, stranger: Stranger) {
        round.counters.strangers += 1;
        if self.rejected_in != round.number {
            self.rejected_in = round.number;
            round.events.push(self.event(None, pid, Said::Rejected(stranger)));
        }
    }

    /// Takes waiting connections; true when it took one: it may have spoken already.
    pub(super) fn accept(&mut self, round: &mut Round<'_>) -> bool {
        if self.identity.known_by == KnownBy::CgroupToCome {
            return false;
        }
        for taken in 0..ACCEPTS {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = match accept4(self.listener.as_raw_fd(), flags) {
                // SAFETY: accept4 has just made this descriptor; nobody else knows it.
                Ok(number) => unsafe { OwnedFd::from_raw_fd(number) },
                Err(Errno::ECONNABORTED | Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return taken > 0,
                // No descriptors left, or no memory: the connection waits in the backlog.
                Err(_) => {
                    round.counters.accept_failures += 1;
                    return false;
                }
            };
            self.welcome(round, socket);
        }
        true
    }

    fn welcome(&mut self, round: &mut Round<'_>, socket: OwnedFd) {
        round.counters.connections += 1;
        let Ok(caller) = getsockopt(&socket, sockopt::PeerCredentials) else { return };
        if let Err(stranger) = self.identity.admit(caller.pid(), caller.uid()) {
            turn_away(&socket, Fault::STRANGER, &stranger.to_string());
            self.reject(round, caller.pid(), stranger);
            return;
        }
        let Some(at) = self.free_place(round) else {
            round.counters.refused_connections += 1;
            let why = format!("{MAX_CONNECTIONS} connections are open already: use one and keep it");
            turn_away(&socket, Fault::CONNECTIONS, &why);
            return;
        };
        let interest = EpollEvent::new(EpollFlags::EPOLLIN, token::connection(self.slot, at));
        if round.epoll.add(&socket, interest).is_err() {
            round.counters.accept_failures += 1;
            return;
        }
        *round.last_conn += 1;
        let id = ConnId(*round.last_conn);
        self.connections[at] = Some(Connection::new(id, socket, caller.pid()));
        round.events.push(self.event(Some(id), caller.pid(), Said::Connected));
    }

    /// A place for a new connection; the oldest one that never said anything makes room.
    fn free_place(&mut self, round: &mut Round<'_>) -> Option<usize> {
        if let Some(at) = self.connections.iter().position(Option::is_none) {
            return Some(at);
        }
        let silent =
            self.connections.iter().enumerate().filter_map(|(at, connection)| {
                connection.as_ref().filter(|c| c.is_silent()).map(|c| (c.id, at))
            });
        let (_, at) = silent.min()?;
        round.counters.refused_connections += 1;
        if let Some(connection) = &self.connections[at] {
            let why = format!("more than {MAX_CONNECTIONS} connections, and this one never spoke");
            turn_away(&connection.socket, Fault::CONNECTIONS, &why);
        }
        self.hang_up(round, at);
        Some(at)
    }

    pub(super) fn hang_up(&mut self, round: &mut Round<'_>, at: usize) {
        if let Some(connection) = self.connections[at].take() {
            round.events.push(self.event(Some(connection.id), connection.pid, Said::Disconnected));
        }
    }

    /// Reads once from a connection; true when more may wait.
    pub(super) fn read(&mut self, round: &mut Round<'_>, at: usize) -> bool {
        let Some(connection) = &mut self.connections[at] else { return false };
        let length = match connection.take(round.text) {
            Taken::Bytes(length) => length,
            Taken::Nothing => return false,
            Taken::End => {
                round.counters.malformed_lines += u64::from(connection.decoder.is_amid_line());
                self.hang_up(round, at);
                return false;
            }
        };
        // Taken out for the while: the decoder lends its lines to a closure that needs the connection.
        let mut decoder = std::mem::take(&mut connection.decoder);
        let mut turn = Turn { connection, instance: &self.instance, round, questions: 0, keep: true };
        let text = std::mem::take(&mut turn.round.text);
        decoder.feed(&text[..length], |message| match message {
            Ok(request) => turn.hear(request),
            Err(refusal) => turn.refuse(Outgoing::Refused(refusal)),
        });
        let keep = turn.keep;
        turn.round.text = text;
        connection.decoder = decoder;
        if !keep {
            self.hang_up(round, at);
            return false;
        }
        self.attend(round, at);
        length == round.text.len()
    }

    /// Has epoll tell when a connection with unread answers can be written to again.
    pub(super) fn attend(&mut self, round: &mut Round<'_>, at: usize) {
        let Some(connection) = &mut self.connections[at] else { return };
        let waits = connection.waits();
        if connection.attended == waits {
            return;
        }
        connection.attended = waits;
        let mut flags = EpollFlags::EPOLLIN;
        flags.set(EpollFlags::EPOLLOUT, waits);
        let mut interest = EpollEvent::new(flags, token::connection(self.slot, at));
        if round.epoll.modify(&connection.socket, &mut interest).is_err() {
            self.hang_up(round, at);
        }
    }

    /// Writes what waits on a connection.
    pub(super) fn write(&mut self, round: &mut Round<'_>, at: usize) {
        let Some(connection) = &mut self.connections[at] else { return };
        connection.flush();
        self.attend(round, at);
    }

    /// Says something on a connection; false when it is not on its way.
    pub(super) fn say(&mut self, round: &mut Round<'_>, at: usize, message: &Outgoing) -> bool {
        let Some(connection) = &mut self.connections[at] else { return false };
        let sent = connection.say(message);
        match sent {
            Sent::Taken => self.attend(round, at),
            Sent::Dropped => round.counters.dropped_answers += 1,
            Sent::Stuck => {
                round.counters.stuck_connections += 1;
                self.hang_up(round, at);
            }
            Sent::End => (),
        }
        sent == Sent::Taken && self.connections[at].is_some()
    }

    /// Takes waiting datagrams; true when more may wait.
    pub(super) fn read_notices(&mut self, round: &mut Round<'_>) -> bool {
        if self.identity.known_by == KnownBy::CgroupToCome {
            return false;
        }
        for _ in 0..DATAGRAMS {
            let text = &mut round.text[..MAX_DATAGRAM + 1];
            match datagram::receive(self.notify.as_fd(), text, round.control) {
                Ok(datagram) => self.hear_notice(round, datagram),
                Err(Errno::EINTR) => continue,
                Err(_) => return false,
            }
        }
        true
    }

    fn hear_notice(&mut self, round: &mut Round<'_>, datagram: Datagram) {
        let Datagram { length, pid, uid, mut descriptors } = datagram;
        if let Err(stranger) = self.identity.admit(pid, uid) {
            round.counters.closed_descriptors += descriptors.len() as u64;
            self.reject(round, pid, stranger);
            return;
        }
        let notice = match notify::read(&round.text[..length]) {
            Ok(notice) => notice,
            Err(_) => {
                round.counters.malformed_notices += 1;
                round.counters.closed_descriptors += descriptors.len() as u64;
                return;
            }
        };
        if notice.barrier && descriptors.len() == 1 {
            if let Some(barrier) = descriptors.pop() {
                round.events.push(self.event(None, pid, Said::Barrier(barrier)));
            }
            return;
        }
        round.counters.closed_descriptors += descriptors.len() as u64;
        round.counters.malformed_notices += u64::from(notice.malformed > 0 || notice.barrier);
        if notice.is_beat() {
            if self.beat_in == (round.number, pid) {
                round.counters.coalesced_beats += 1;
                return;
            }
            self.beat_in = (round.number, pid);
        }
        if !notice.barrier {
            round.events.push(self.event(None, pid, Said::Notice(notice)));
        }
    }
}

/// The messages of one read of one connection.
struct Turn<'a, 'b> {
    connection: &'a mut Connection,
    instance: &'a Arc<InstanceId>,
    round: &'a mut Round<'b>,
    questions: usize,
    keep: bool,
}

impl Turn<'_, '_> {
    fn hear(&mut self, Request { mut id, call }: Request) {
        self.connection.spoke = true;
        if call.plain() {
            if let Some(id) = id.take() {
                self.say(&Outgoing::answer(id, &()));
            }
        } else {
            self.questions += 1;
            if self.questions > QUESTIONS {
                self.round.counters.busy_answers += 1;
                let id = id.unwrap_or(Id::NULL);
                self.say(&Outgoing::refused(id, Fault::BUSY, "too many questions at once; try again"));
                return;
            }
        }
        match call {
            Call::Hello(_) => self.connection.greeted = true,
            Call::Heartbeat if self.connection.beat_in == self.round.number => {
                self.round.counters.coalesced_beats += 1;
                return;
            }
            Call::Heartbeat => self.connection.beat_in = self.round.number,
            _ => (),
        }
        self.round.events.push(SocketEvent {
            instance: Arc::clone(self.instance),
            conn: Some(self.connection.id),
            pid: self.connection.pid,
            said: Said::Request(Request { id, call }),
        });
    }

    fn refuse(&mut self, refusal: Outgoing) {
        match &refusal {
            Outgoing::Refused(refusal) if refusal.fault.code == Fault::LINE => {
                self.round.counters.oversized_lines += 1;
            }
            _ => self.round.counters.malformed_lines += 1,
        }
        self.say(&refusal);
    }

    fn say(&mut self, message: &Outgoing) {
        match self.connection.say(message) {
            Sent::Taken => (),
            Sent::Dropped => self.round.counters.dropped_answers += 1,
            Sent::Stuck => {
                self.round.counters.stuck_connections += 1;
                self.keep = false;
            }
            // Its last words may still wait to be read.
            Sent::End => (),
        }
    }
}

/// Tells a caller why it is not served; the caller closes. Not more than one try: it may not listen.
fn turn_away(socket: &OwnedFd, code: i64, why: &str) {
    let mut line = Vec::new();
    Outgoing::refused(Id::NULL, code, why).write(&mut line);
    let _ = send(socket.as_raw_fd(), &line, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
}
