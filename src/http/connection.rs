//! One connection, from the moment it is accepted: its TLS, who is on it, how long it may take, what ends it.
//!
//! ```text
//! accepted ─▶ too many of that address? ─▶ TLS, in time ─▶ a request with a token that holds ─▶ known
//!                                          └── over TLS only so many at once; who lingers makes room ──┘
//! ```
//!
//! Owns nothing that outlives the connection. A connection ends when its token holds no more, so that a stream, too, is
//! over when its token is revoked. Called by `server`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Method, Request};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use super::auth::{Badge, Origin};
use super::patience::Patient;
use super::server::{Limits, stopped};
use super::tls::Shown;
use crate::agent::replica::wall_ms;
use crate::cluster::wire::Outlet;
use crate::cluster::wire::hall::{Guest, neighbourhood};
use crate::metrics::Metrics;
use crate::spec::TokenName;
use crate::state::{ApiToken, State};

/// About the largest head, in bytes.
const MAX_HEAD: usize = 32 * 1024;
/// The most headers.
const MAX_HEADERS: usize = 100;

/// The tokens that there are.
pub(super) type Tokens = BTreeMap<TokenName, ApiToken>;

/// Tells when the tokens change, and does not wake anybody when anything else does.
pub(super) async fn follow_tokens(
    mut states: watch::Receiver<Arc<State>>,
    tokens: watch::Sender<Tokens>,
) -> Infallible {
    loop {
        {
            let state = states.borrow_and_update();
            tokens.send_if_modified(|known| {
                let changed = *known != state.api_tokens;
                if changed {
                    known.clone_from(&state.api_tokens);
                }
                changed
            });
        }
        if states.changed().await.is_err() {
            // The last state stays.
            return std::future::pending().await;
        }
    }
}

/// What the connections of one listener have in common.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) router: Router,
    pub(super) limits: Limits,
    /// Tells that the tokens are others.
    pub(super) tokens: watch::Receiver<Tokens>,
    pub(super) states: watch::Receiver<Arc<State>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shutdown: watch::Receiver<bool>,
    pub(super) tls: Option<Shown>,
}

impl Door {
    /// One that is guarded by others means.
    pub(super) async fn serve(self, stream: impl Stream, origin: Origin) {
        let badge = match &origin {
            Origin::Tcp { badge, .. } => badge.clone(),
            Origin::Unix { .. } | Origin::Host(_) => Badge::default(),
        };
        let over = self.revoked(badge);
        tokio::select! {
            () = seldom(over) => {}
            () = self.answer(stream, origin) => {}
        }
    }

    /// One over TLS; whoever shows no token that holds makes room for the next.
    pub(super) async fn serve_tls(self, stream: impl Stream, address: IpAddr, guest: Guest) {
        let Some(tls) = self.tls.clone() else { return };
        let badge = Badge::default();
        let mut shown = badge.shown();
        let known = guest.while_unknown(async { shown.wait_for(Option::is_some).await.is_ok() });
        let over = async {
            if known.await.is_some() {
                self.revoked(badge.clone()).await;
            }
        };
        let asked = async {
            if let Some(stream) = tls.accept(stream, self.limits.handshake).await {
                self.answer(stream, Origin::Tcp { address, tls: true, badge: badge.clone() }).await;
            }
        };
        tokio::select! {
            () = seldom(over) => {}
            () = asked => {}
        }
    }

    /// Until the token that was last shown is good for nothing any more.
    async fn revoked(&self, badge: Badge) {
        let (mut shown, mut tokens) = (badge.shown(), self.tokens.clone());
        loop {
            let badge = shown.wait_for(Option::is_some).await.ok().and_then(|badge| badge.clone());
            drop(tokens.borrow_and_update());
            let token = badge.and_then(|(name, hash)| {
                let token = self.states.borrow().api_tokens.get(&name).cloned();
                token.filter(|token| token.hash == hash && token.holds(wall_ms()))
            });
            let Some(token) = token else { return };
            let left = token
                .expires_ms
                .map(|expires_ms| Duration::from_millis(expires_ms.saturating_sub(wall_ms())));
            let expired = async {
                match left {
                    Some(left) => tokio::time::sleep(left).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = expired => {}
                // Whoever tells of tokens ends with the listener.
                _ = tokens.changed() => {}
                _ = shown.changed() => {}
            }
        }
    }

    async fn answer(&self, stream: impl Stream, origin: Origin) {
        let (routes, from) = (TowerToHyperService::new(self.router.clone()), origin.clone());
        let outlet = Outlet::default();
        let patient = Patient::new(stream, self.limits.stall, outlet.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(origin.clone());
            // Who only reads has nothing to wait for.
            if request.method() == Method::POST {
                request.extensions_mut().insert(outlet.clone());
            }
            routes.call(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(patient), service);
        let mut connection = pin!(connection);
        let mut shutdown = self.shutdown.clone();
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = seldom(stopped(&mut shutdown)) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            if stalled(&error) {
                self.metrics.reader_given_up();
                let (from, stall) = (from.place(), self.limits.stall);
                tracing::info!(%from, "who asked here took nothing of the answer for {stall:?}: its connection is closed");
            }
            tracing::debug!(error = &error as &dyn std::error::Error, "an API connection broke");
        }
    }
}

/// Asked only when it is woken itself, and not whenever what it is beside in a `select!` is: with each event of a watch.
async fn seldom(future: impl Future<Output = ()>) {
    FuturesUnordered::from_iter([future]).select_next_some().await;
}

/// Nothing of its answer was taken any more.
fn stalled(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::TimedOut)
}

/// What bytes come and go on.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

/// How many connections each address has.
#[derive(Clone, Default)]
pub(super) struct Crowd(Arc<Mutex<BTreeMap<IpAddr, usize>>>);

/// One of them.
pub(super) struct Counted(Crowd, IpAddr);

impl Crowd {
    /// One more, if it is not too many; this machine's own are not counted.
    pub(super) fn enter(&self, address: IpAddr, most: usize) -> Option<Option<Counted>> {
        if address.to_canonical().is_loopback() {
            return Some(None);
        }
        let address = neighbourhood(address);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Some(Counted(self.clone(), address)))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_so_many_and_gives_them_back() {
        let crowd = Crowd::default();
        let (one, other): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let held: Vec<_> = (0..3).map(|_| crowd.enter(one, 3).expect("there is room")).collect();
        assert!(crowd.enter(one, 3).is_none());
        assert!(crowd.enter("::ffff:192.0.2.1".parse().unwrap(), 3).is_none(), "the same one");
        assert!(crowd.enter(other, 3).is_some());
        assert!((0..9).all(|_| crowd.enter("127.0.0.1".parse().unwrap(), 3).is_some()));
        drop(held);
        assert!(crowd.enter(one, 3).is_some());
        assert!(crowd.0.lock().unwrap().is_empty());
    }
}
