//! Dialling another agent: name, socket, TLS, handshake.
//!
//! Owns nothing that lasts: a connection goes to whoever asked for it. Names are resolved anew each time.
//! Called by `line` and for snapshots.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;

use super::codec::{DecodeError, EncodeError, decode, encode};
use super::frame::{Frame, Kind};
use super::hello::{Ours, Purpose, Refusal, Welcome};
use super::stream::{Duplex, ReadError, Reader, Writer, split};
use crate::cluster::tls::Tls;
use crate::spec::HostName;

/// The longest that dialling takes: three round trips around the world.
pub const DIAL_TIMEOUT: Duration = Duration::from_millis(1000);

/// Who is dialled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The host.
    pub host: HostName,
    /// Its number among the peers; `None`: whatever it is.
    pub id: Option<u64>,
    /// `host:port`.
    pub address: String,
}

/// Why no connection came to be.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody listens there, or the name means nothing.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// `host:port`.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody listens there, and the connection broke before anything was agreed on.
    #[error(
        "the connection to {address} broke at the handshake ({source}): does that agent still run, and have both hosts \
         `tls`, or neither?"
    )]
    Broken {
        /// `host:port`.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// TLS: this side finds the other's certificate wanting, or the other this one's.
    #[error(
        "cannot agree on TLS with {address} ({source}): are the certificates of both hosts of one CA, and dated right?"
    )]
    Tls {
        /// `host:port`.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The other side said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nothing came in time.
    #[error("{address} does not answer")]
    Silent {
        /// `host:port`.
        address: String,
    },
    /// What came is no handshake.
    #[error(
        "{address} answers with something else ({source}): is that the agent of that host, and has it `tls`, too?"
    )]
    Garbled {
        /// `host:port`.
        address: String,
        /// Why.
        source: ReadError,
    },
    /// What came is no handshake of this version.
    #[error("the handshake cannot be read")]
    Decode(#[from] DecodeError),
    /// The handshake cannot be written.
    #[error("the handshake cannot be written")]
    Encode(#[from] EncodeError),
}

/// What TLS itself finds is a matter of certificates; all else is one of the network, or of an agent that ended.
pub(super) fn is_of_tls(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

impl DialError {
    fn at_the_handshake(address: String, source: std::io::Error) -> DialError {
        match is_of_tls(&source) {
            true => DialError::Tls { address, source },
            false => DialError::Broken { address, source },
        }
    }
}

/// Dials in this host's name.
#[derive(Clone)]
pub struct Dialer {
    ours: watch::Receiver<Ours>,
    tls: Option<Arc<Tls>>,
}

impl Dialer {
    /// `ours` changes when this host becomes a peer.
    pub fn new(ours: watch::Receiver<Ours>, tls: Option<Arc<Tls>>) -> Dialer {
        Dialer { ours, tls }
    }

    /// The certificates; `None`: in plain.
    pub fn tls(&self) -> Option<&Arc<Tls>> {
        self.tls.as_ref()
    }

    /// A connection whose handshake is over.
    pub async fn dial(&self, to: &Target, purpose: Purpose) -> Result<(Reader, Writer, Welcome), DialError> {
        let silent = |_| DialError::Silent { address: to.address.clone() };
        tokio::time::timeout(DIAL_TIMEOUT, self.connect(to, purpose)).await.map_err(silent)?
    }

    async fn connect(&self, to: &Target, purpose: Purpose) -> Result<(Reader, Writer, Welcome), DialError> {
        let address = || to.address.clone();
        let connect = |source| DialError::Connect { address: address(), source };
        let broken = |source| DialError::at_the_handshake(address(), source);
        let socket = TcpStream::connect(&to.address).await.map_err(connect)?;
        socket.set_nodelay(true).map_err(connect)?;
        let socket: Box<dyn Duplex> = match &self.tls {
            None => Box::new(socket),
            Some(tls) => Box::new(tls.connect(&to.host, socket).await.map_err(broken)?),
        };
        let (mut reader, mut writer) = split(socket);
        let hello = encode(&self.ours.borrow().hello(&to.host, to.id, purpose))?;
        let hello = Frame { kind: Kind::Hello, request: 0, ttl_ms: 0, body: hello };
        // A certificate is refused only after the one that shows it takes TLS for agreed on.
        writer.send(&[hello]).await.map_err(broken)?;
        let answer = reader.next().await.map_err(|error| match error {
            ReadError::Io(source) => broken(source),
            source => DialError::Garbled { address: address(), source },
        })?;
        match answer.kind {
            Kind::Welcome => {
                reader.greeted();
                Ok((reader, writer, decode(&answer.body)?))
            }
            Kind::Refusal => Err(DialError::Refused(decode(&answer.body)?)),
            _ => Err(DialError::Garbled { address: address(), source: ReadError::Closed }),
        }
    }
}
