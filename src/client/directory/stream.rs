//! A connection to an agent for a thread that waits, and the moment by which what it does there must be done.
//!
//! Owns the socket. However many system calls a handshake or a read over TLS takes, and however slowly bytes come, all
//! of them together end by then; only looking a name up takes as long as the system lets it. Never knows what is said
//! there. Called by `blocking`.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::{Address, Trusting, no_tls, silent};

#[derive(Debug)]
pub(super) enum Stream {
    Plain(Timed),
    #[cfg(feature = "client-tls")]
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, Timed>>),
}

impl Stream {
    /// Connected, with TLS agreed on, by then.
    pub fn connect(agent: &Address, trusting: &Trusting, until: Instant) -> io::Result<Stream> {
        match agent {
            Address::Unix(path) => {
                let socket = Socket::Unix(UnixStream::connect(path)?);
                Ok(Stream::Plain(Timed { socket, until }))
            }
            Address::Http(host) => Ok(Stream::Plain(dial(host, until)?)),
            Address::Https(host) => Stream::secure(host, trusting, until),
        }
    }

    #[cfg(feature = "client-tls")]
    fn secure(host: &str, trusting: &Trusting, until: Instant) -> io::Result<Stream> {
        let (rules, name) = trusting.0.as_ref().ok_or_else(no_tls)?.rules(host)?;
        let mut socket = dial(host, until)?;
        let mut session = rustls::ClientConnection::new(rules, name).map_err(io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut socket)?;
        }
        Ok(Stream::Tls(Box::new(rustls::StreamOwned::new(session, socket))))
    }

    #[cfg(not(feature = "client-tls"))]
    fn secure(_: &str, _: &Trusting, _: Instant) -> io::Result<Stream> {
        Err(no_tls())
    }

    /// Writes all of it, by the moment that counted last.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => socket.write_all(bytes),
            #[cfg(feature = "client-tls")]
            Stream::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }

    /// What comes by then; `None`: nothing. 0 bytes: the other end is closed.
    pub fn read(&mut self, bytes: &mut [u8], until: Instant) -> io::Result<Option<usize>> {
        let read = match self {
            Stream::Plain(socket) => {
                socket.until = until;
                socket.read(bytes)
            }
            #[cfg(feature = "client-tls")]
            Stream::Tls(stream) => {
                stream.sock.until = until;
                stream.read(bytes)
            }
        };
        match read {
            Ok(read) => Ok(Some(read)),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[derive(Debug)]
enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// A socket of which every read and write waits until one and the same moment at most.
#[derive(Debug)]
pub(super) struct Timed {
    socket: Socket,
    until: Instant,
}

impl Timed {
    /// Does it again when a signal comes in between.
    fn by_then(
        &mut self,
        mut act: impl FnMut(&mut Socket, Duration) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match act(&mut self.socket, left(self.until)?) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(silent()),
                done => return done,
            }
        }
    }
}

impl Read for Timed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.by_then(|socket, left| match socket {
            Socket::Unix(stream) => stream.set_read_timeout(Some(left)).and_then(|()| stream.read(bytes)),
            Socket::Tcp(stream) => stream.set_read_timeout(Some(left)).and_then(|()| stream.read(bytes)),
        })
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.by_then(|socket, left| match socket {
            Socket::Unix(stream) => stream.set_write_timeout(Some(left)).and_then(|()| stream.write(bytes)),
            Socket::Tcp(stream) => stream.set_write_timeout(Some(left)).and_then(|()| stream.write(bytes)),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How long it is until then; an error: it is over.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(silent()) } else { Ok(left) }
}

/// Tries the addresses of a name, each for its part of the time.
fn dial(host: &str, until: Instant) -> io::Result<Timed> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut addresses = host.to_socket_addrs()?.collect::<Vec<_>>().into_iter();
    while let Some(address) = addresses.next() {
        let part = u32::try_from(addresses.len() + 1).unwrap_or(u32::MAX);
        match TcpStream::connect_timeout(&address, left(until)? / part) {
            Ok(stream) => return Ok(Timed { socket: Socket::Tcp(stream), until }),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests;
