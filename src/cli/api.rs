//! The client of an agent's HTTP API.
//!
//! Owns one address; opens a connection per request, because an operator's command makes few. Knows the
//! routes only as paths: shapes come from [`crate::http::view`]. Called by every command that needs an agent.

use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{TcpStream, UnixStream};

use crate::client::directory::trust::TrustError;
use crate::http::view::Problem;

mod access;
mod address;
pub mod lines;

pub use access::Access;
pub use address::find;

pub use crate::client::directory::{Address, InvalidAddress};

/// An agent that says nothing for this long does not answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// The largest answer that is read whole: some ten thousand instances.
const MAX_ANSWER: usize = 64 << 20;

/// Why the agent gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Nobody listens there.
    #[error(
        "no agent answers at {address}: is `bigbrother agent` running? (say where with --api or BIGBROTHER_API)"
    )]
    NoAgent {
        /// Where.
        address: Address,
        /// What the system said.
        source: std::io::Error,
    },
    /// This user may not.
    #[error("not allowed to open {address}: run this as the agent's user or as root")]
    Forbidden {
        /// Where.
        address: Address,
        /// What the system said.
        source: std::io::Error,
    },
    /// The connection was opened, and then nothing came.
    #[error("the agent at {address} has not answered within {} s: is it hung? Look at its log", PATIENCE.as_secs())]
    Silent {
        /// Where.
        address: Address,
    },
    /// The connection broke before the answer's end.
    #[error("the agent at {address} broke off: has it just been stopped? Try again")]
    BrokeOff {
        /// Where.
        address: Address,
        /// What happened to the connection.
        source: hyper::Error,
    },
    /// Something came that is no HTTP.
    #[error("what answers at {address} speaks no HTTP: if it speaks TLS, as an API with `api_tls` does, ask https://{}", .address.host())]
    NoHttp {
        /// Where.
        address: Address,
        /// What is wrong with what came.
        source: hyper::Error,
    },
    /// A stream that should not end has ended.
    #[error("the agent at {address} has ended the stream: has it just been stopped?")]
    Ended {
        /// Where.
        address: Address,
    },
    /// It was answered, but not in a form that this version knows.
    #[error(
        "the answer of {address} to {path} is not understood ({why}): are agent and command of the same version?"
    )]
    Strange {
        /// Where.
        address: Address,
        /// Which route.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The other end is not whom it should be, or speaks no TLS.
    #[error(
        "{address} cannot be trusted: does its certificate name that host, is its CA known? --ca FILE names one"
    )]
    Untrusted {
        /// Where.
        address: Address,
        /// What is wrong.
        source: std::io::Error,
    },
    /// The CA that was named.
    #[error("--ca is of no use")]
    Ca {
        /// Why.
        source: TrustError,
    },
    /// Everybody on the way would read it.
    #[error("a token is not sent to {address} in the clear: use https://HOST:PORT")]
    InTheClear {
        /// Where.
        address: Address,
    },
    /// What was given as a token is none.
    #[error(
        "what --token-file or BIGBROTHER_TOKEN holds is no token: one line, as `bigbrother token create` printed it"
    )]
    NoToken,
    /// The agent said no.
    #[error("{}: {} ({})", .0.title, .0.detail, .0.kind)]
    Refused(Problem),
}

/// A client; see the module.
#[derive(Clone, Debug)]
pub struct Api {
    address: Address,
    access: Access,
}

/// The body of an answer as it comes.
pub struct Stream {
    address: Address,
    body: Incoming,
}

impl Api {
    /// A client of the agent there; connects with each request.
    pub fn new(address: Address) -> Api {
        Api { address, access: Access::default() }
    }

    /// The same, with a token to show, or a CA to trust.
    pub fn with(self, access: Access) -> Api {
        Api { access, ..self }
    }

    /// Where the agent is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// `GET`, the answer as JSON.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let bytes = self.whole(Method::GET, path, "", Bytes::new()).await?;
        self.parse(path, &bytes)
    }

    /// `GET`, the answer as JSON, and the value of a header that it may have.
    pub async fn get_noting<T: DeserializeOwned>(
        &self,
        path: &str,
        header: &str,
    ) -> Result<(T, Option<String>), ApiError> {
        let response = self.send(Method::GET, path, "", Bytes::new()).await?;
        let note = response.headers().get(header).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let bytes = self.read_out(path, response).await?;
        Ok((self.parse(path, &bytes)?, note))
    }

    /// `GET`, the answer as text.
    pub async fn text(&self, path: &str) -> Result<String, ApiError> {
        let bytes = self.whole(Method::GET, path, "", Bytes::new()).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// `GET`, the answer as it comes, without an end.
    pub async fn stream(&self, path: &str) -> Result<Stream, ApiError> {
        let response = self.send(Method::GET, path, "", Bytes::new()).await?;
        Ok(Stream { address: self.address.clone(), body: response.into_body() })
    }

    /// `POST` of JSON, the answer as JSON.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiError> {
        let bytes = self.post_json(path, body).await?;
        self.parse(path, &bytes)
    }

    /// `DELETE`, the answer as JSON.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let bytes = self.whole(Method::DELETE, path, "", Bytes::new()).await?;
        self.parse(path, &bytes)
    }

    /// `POST` of JSON where only success matters.
    pub async fn tell(&self, path: &str, body: &impl Serialize) -> Result<(), ApiError> {
        self.post_json(path, body).await.map(|_| ())
    }

    /// `POST` of a cluster.toml, the answer as JSON.
    pub async fn post_toml<T: DeserializeOwned>(&self, path: &str, text: &str) -> Result<T, ApiError> {
        let body = Bytes::copy_from_slice(text.as_bytes());
        let bytes = self.whole(Method::POST, path, "application/toml", body).await?;
        self.parse(path, &bytes)
    }

    /// `POST` of JSON, the answer as text.
    pub async fn post_json(&self, path: &str, body: &impl Serialize) -> Result<Bytes, ApiError> {
        let body = serde_json::to_vec(body).map_err(|e| self.strange(path, &e.to_string()))?;
        self.whole(Method::POST, path, "application/json", body.into()).await
    }

    /// One request, its whole answer.
    async fn whole(&self, method: Method, path: &str, kind: &str, body: Bytes) -> Result<Bytes, ApiError> {
        let response = self.send(method, path, kind, body).await?;
        self.read_out(path, response).await
    }

    async fn read_out(&self, path: &str, response: Response<Incoming>) -> Result<Bytes, ApiError> {
        let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER);
        let read = tokio::time::timeout(PATIENCE, body.collect()).await;
        match read.map_err(|_| ApiError::Silent { address: self.address.clone() })? {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) => match error.downcast::<hyper::Error>() {
                Ok(source) => Err(ApiError::BrokeOff { address: self.address.clone(), source: *source }),
                Err(error) => Err(self.strange(path, &error.to_string())),
            },
        }
    }

    /// One request, the head of its answer; a refusal is an error.
    async fn send(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, ApiError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address.host())
            .header(header::ACCEPT, "*/*");
        if !kind.is_empty() {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        if let Some(token) = self.access.shown(&self.address)? {
            request = request.header(header::AUTHORIZATION, token);
        }
        let request = request.body(Full::new(body)).map_err(|e| self.strange(path, &e.to_string()))?;
        let exchange = tokio::time::timeout(PATIENCE, self.exchange(request)).await;
        let response = exchange.map_err(|_| ApiError::Silent { address: self.address.clone() })??;
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(path, response).await) }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, ApiError> {
        let broke_off = |source: hyper::Error| {
            let address = self.address.clone();
            match source.is_parse() {
                true => ApiError::NoHttp { address, source },
                false => ApiError::BrokeOff { address, source },
            }
        };
        let result = match &self.address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|e| self.unreachable(e))?;
                converse(stream, request).await
            }
            Address::Http(host) => {
                let stream = TcpStream::connect(host).await.map_err(|e| self.unreachable(e))?;
                converse(stream, request).await
            }
            Address::Https(host) => {
                let stream = TcpStream::connect(host).await.map_err(|e| self.unreachable(e))?;
                converse(self.access.secure(&self.address, host, stream).await?, request).await
            }
        };
        result.map_err(broke_off)
    }

    fn unreachable(&self, source: std::io::Error) -> ApiError {
        let address = self.address.clone();
        if source.kind() == std::io::ErrorKind::PermissionDenied {
            ApiError::Forbidden { address, source }
        } else {
            ApiError::NoAgent { address, source }
        }
    }

    /// What a status that is no success says.
    async fn refusal(&self, path: &str, response: Response<Incoming>) -> ApiError {
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), 1 << 20);
        let text = match tokio::time::timeout(PATIENCE, body.collect()).await {
            Ok(Ok(collected)) => collected.to_bytes(),
            Ok(Err(_)) | Err(_) => Bytes::new(),
        };
        match serde_json::from_slice::<Problem>(&text) {
            Ok(problem) => ApiError::Refused(problem),
            Err(_) => self.plain_refusal(path, status, &String::from_utf8_lossy(&text)),
        }
    }

    /// A refusal without problem details: of something between, or of another version.
    fn plain_refusal(&self, path: &str, status: StatusCode, text: &str) -> ApiError {
        let detail = text.lines().next().unwrap_or("").trim();
        let detail = if detail.is_empty() { "without a reason" } else { detail };
        ApiError::Refused(Problem {
            kind: status.as_str().to_owned(),
            title: format!("{} refused {path}", self.address),
            status: status.as_u16(),
            detail: detail.to_owned(),
        })
    }

    fn parse<T: DeserializeOwned>(&self, path: &str, bytes: &[u8]) -> Result<T, ApiError> {
        serde_json::from_slice(bytes).map_err(|e| self.strange(path, &e.to_string()))
    }

    fn strange(&self, path: &str, why: &str) -> ApiError {
        ApiError::Strange { address: self.address.clone(), path: path.to_owned(), why: why.to_owned() }
    }
}

/// Sends one request over a fresh connection. The connection lives on, in a task of its own, until the
/// body is read or dropped.
async fn converse<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, hyper::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Its error is also the request's or the body's; there is nobody else to tell.
    tokio::spawn(async move { connection.await.ok() });
    sender.send_request(request).await
}

impl Stream {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(source)) => {
                    return Err(ApiError::BrokeOff { address: self.address.clone(), source });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What a request over plain HTTP comes to where this is answered.
    async fn asked(answer: &'static [u8]) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.read_u8().await.unwrap();
            socket.write_all(answer).await.unwrap();
            socket.shutdown().await.unwrap();
            // A socket with bytes that nobody read would reset the connection, and the answer with it.
            let _ = socket.read_to_end(&mut Vec::new()).await;
        });
        let api = Api::new(format!("http://{address}").parse().unwrap());
        let error = api.get::<serde_json::Value>("/v1/status").await.unwrap_err();
        error.to_string().replace(&address.to_string(), "HERE")
    }

    #[tokio::test]
    async fn plain_http_to_a_port_that_speaks_tls_is_told_as_such() {
        // A TLS alert: unexpected message.
        let told = asked(b"\x15\x03\x03\x00\x02\x02\x0a").await;
        assert!(told.starts_with("what answers at http://HERE speaks no HTTP"), "{told}");
        assert!(told.ends_with("ask https://HERE"), "{told}");
        let told = asked(b"").await;
        assert!(told.contains("broke off"), "{told}");
    }
}
