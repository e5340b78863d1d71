//! Requests of the API from one agent to another: any agent answers for any host.
//!
//! ```text
//! tool ─ HTTP ─▶ agent ─ Kind::Tunnel ─▶ agent of the host in question ─▶ its API, as if it had come over its socket
//! ```
//!
//! A request and its answer travel whole and bounded; what streams is asked for again and again by whoever wants it.
//! What came through the tunnel does not go through it once more. Whoever may use it shows a certificate of the
//! cluster's CA (without certificates all are on one machine), and may do what the Unix socket of the other agent
//! allows. Owns the shapes and both ends; never knows what a request means: that is `http`'s. Called by `http`, and
//! by whoever listens for other agents.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use super::tls::Tls;
use super::wire::hello::Ours;
use super::wire::{
    CallError, DecodeError, Exchange, Hello, Kind, Outlet, Peerage, Purpose, Server, Service, Target, decode,
    encode,
};
use crate::spec::HostName;

/// The largest body of a request.
pub const MAX_BODY: usize = 1 << 20;
/// The largest body of an answer: some thousand instances.
pub const MAX_ANSWER: usize = 8 << 20;
/// The longest path with its query.
const MAX_PATH: usize = 8 * 1024;
/// Requests that wait for the API.
const QUEUE: usize = 64;

/// A request. Append-only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// `GET`
    pub method: String,
    /// With its query.
    pub path: String,
    /// Those that the API reads.
    pub headers: Vec<(String, String)>,
    /// At most [`MAX_BODY`].
    pub body: Vec<u8>,
}

/// Its answer. Append-only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// The HTTP status.
    pub status: u16,
    /// Those that mean something.
    pub headers: Vec<(String, String)>,
    /// At most [`MAX_ANSWER`].
    pub body: Vec<u8>,
}

impl Asked {
    /// A request without headers and body.
    pub fn get(path: impl Into<String>) -> Asked {
        Asked { method: "GET".to_owned(), path: path.into(), ..Asked::default() }
    }
}

impl Answered {
    /// The value of a header; "": it has none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

/// Why another agent gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The wire.
    #[error(transparent)]
    Call(#[from] CallError),
    /// What came cannot be read.
    #[error("its answer cannot be read: {0}")]
    Decode(#[from] DecodeError),
    /// Over the bound.
    #[error("a request of {0} bytes is over the limit of {MAX_BODY}")]
    TooLarge(usize),
}

/// Asks another agent.
pub async fn ask(
    exchange: &Exchange,
    to: &Target,
    asked: &Asked,
    ttl: Duration,
) -> Result<Answered, TunnelError> {
    let size = asked.body.len();
    let body = Some(asked).filter(|_| size <= MAX_BODY && asked.path.len() <= MAX_PATH);
    let body = body.and_then(|asked| encode(asked).ok()).ok_or(TunnelError::TooLarge(size))?;
    let answer = exchange.call(to, Purpose::Api, Kind::Tunnel, body, ttl).await?;
    Ok(decode(&answer)?)
}

/// A request on its way into the API.
pub struct Tunnelled {
    /// The host that asks.
    pub from: HostName,
    /// What.
    pub asked: Asked,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Answered>,
    /// Where it goes out to the other agent.
    pub outlet: Outlet,
}

/// Where requests of other agents come in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Entrance(mpsc::Sender<Tunnelled>);

impl Entrance {
    /// One, and the end at which the API takes what came in.
    pub fn new() -> (Entrance, mpsc::Receiver<Tunnelled>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Entrance(sender), receiver)
    }

    /// Has the API answer a request: the body of a [`Kind::Tunnel`], and that of its answer, which goes out there.
    pub async fn answer(&self, from: &Hello, body: &[u8], outlet: &Outlet) -> Result<Vec<u8>, String> {
        let asked: Asked = decode(body).map_err(|error| error.to_string())?;
        if asked.body.len() > MAX_BODY || asked.path.len() > MAX_PATH {
            return Err(TunnelError::TooLarge(asked.body.len()).to_string());
        }
        let (reply, answer) = oneshot::channel();
        let tunnelled = Tunnelled { from: from.host.clone(), asked, reply, outlet: outlet.clone() };
        self.0.try_send(tunnelled).map_err(|_| "its API is busy or ends".to_owned())?;
        let answered = answer.await.map_err(|_| "its API is ending".to_owned())?;
        encode(&answered).map_err(|error| error.to_string())
    }
}

/// Why a host that is no peer cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address.
    #[error("cannot listen on {address} for other agents; set host.listen to an address of this machine")]
    Bind {
        /// `host:port`.
        address: String,
        /// Why.
        source: io::Error,
    },
}

/// Listens for other agents where no peer does; what comes back answers them until it is dropped.
pub async fn listen(
    address: &str,
    tls: Option<Arc<Tls>>,
    ours: watch::Receiver<Ours>,
    entrance: Entrance,
) -> Result<impl Future<Output = ()> + Send + 'static, ListenError> {
    let bound = Server::bind(address, tls).await;
    let server = bound.map_err(|source| ListenError::Bind { address: address.to_owned(), source })?;
    Ok(server.run(Arc::new(ApiOnly { ours, entrance })))
}

/// What a host answers that is no peer: requests of the API, nothing else.
struct ApiOnly {
    ours: watch::Receiver<Ours>,
    entrance: Entrance,
}

impl Service for ApiOnly {
    fn ours(&self) -> Ours {
        self.ours.borrow().clone()
    }

    /// Nothing is taken from peers here; who asks hears so.
    fn peerage(&self, _: &HostName) -> Peerage {
        Peerage::Unproven
    }

    async fn answer(
        &self,
        from: &Hello,
        kind: Kind,
        body: Vec<u8>,
        outlet: &Outlet,
    ) -> Result<Vec<u8>, String> {
        match (from.purpose, kind) {
            (Purpose::Api, Kind::Tunnel) => self.entrance.answer(from, &body, outlet).await,
            _ => Err("this host is no peer".to_owned()),
        }
    }

    async fn take_snapshot(&self, _: &Hello, _: Vec<u8>, _: Vec<u8>) -> Result<Vec<u8>, String> {
        Err("this host is no peer".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_request_and_its_answer_are_these() {
        let asked = Asked {
            method: "POST".to_owned(),
            path: "/v1/stop".to_owned(),
            headers: vec![("a".to_owned(), "b".to_owned())],
            body: b"{}".to_vec(),
        };
        let golden = b"\x04POST\x08/v1/stop\x01\x01a\x01b\x02{}";
        assert_eq!(encode(&asked).unwrap(), golden);
        assert_eq!(decode::<Asked>(golden).unwrap(), asked);
        let answered = Answered { status: 503, headers: vec![], body: b"no".to_vec() };
        assert_eq!(encode(&answered).unwrap(), b"\xfb\xf7\x01\x00\x02no");
    }
}
