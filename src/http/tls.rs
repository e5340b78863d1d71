//! TLS of the API: it shows a certificate of its own, and knows those who ask by their tokens.
//!
//! Owns the reading of that certificate, once at the start of the agent. TLS 1.3 only, as between agents.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::cluster::tls::{TlsError, certificates, key};
use crate::config::ApiTls;

/// What the API shows. Cheap to clone.
#[derive(Clone)]
pub(super) struct Shown(TlsAcceptor);

impl Shown {
    /// Reads certificate and key.
    pub(super) fn load(files: &ApiTls) -> Result<Shown, TlsError> {
        let (certificates, key) = (certificates(&files.cert)?, key(&files.key)?);
        let unfit = |error: rustls::Error| TlsError::Unfit { path: files.cert.clone(), source: error.into() };
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|config| config.with_no_client_auth().with_single_cert(certificates, key));
        let mut config = config.map_err(unfit)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Shown(TlsAcceptor::from(Arc::new(config))))
    }

    /// The handshake; `None`: it fails, or takes too long.
    pub(super) async fn accept<S>(&self, stream: S, within: Duration) -> Option<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match tokio::time::timeout(within, self.0.accept(stream)).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                tracing::debug!(%error, "no TLS with somebody who asks the API");
                None
            }
            Err(_) => None,
        }
    }
}
