//! TLS of the API: it shows a certificate of its own, and knows those who ask by their tokens.
//!
//! Owns the reading of that certificate, at the start of the agent and on a reload; a connection goes on with the one
//! that it was shown. Who has issued it is the business of those who ask; that it holds now is looked at here. TLS 1.3
//! only, as between agents.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::certificate::Validity;
use x509_parser::parse_x509_certificate;

use crate::cluster::tls::{TlsError, certificates, key};
use crate::config::ApiTls;

/// What the API shows. Cheap to clone; all clones show the same.
#[derive(Clone)]
pub struct Shown {
    files: Arc<ApiTls>,
    read: Arc<watch::Sender<Read>>,
}

/// What the files hold.
#[derive(Clone)]
pub struct Read {
    acceptor: TlsAcceptor,
    certificates: Vec<CertificateDer<'static>>,
}

impl Shown {
    /// Reads certificate and key.
    pub(super) fn load(files: &ApiTls) -> Result<Shown, TlsError> {
        let read = Read::from(files)?;
        // The games need the agent, whoever asks it.
        if let Err(error) = read.holds_now(files) {
            tracing::warn!(%error, "the API shows a certificate that nobody should trust");
        }
        let read = Arc::new(watch::channel(read).0);
        Ok(Shown { files: Arc::new(files.clone()), read })
    }

    /// Reads the files again; nothing changes by that.
    pub fn read_again(&self) -> Result<Read, TlsError> {
        let read = Read::from(&self.files)?;
        read.holds_now(&self.files).map(|()| read)
    }

    /// This is shown on every connection from now on. False: it is what was shown before.
    pub fn renew(&self, read: Read) -> bool {
        let changed = read.certificates != self.read.borrow().certificates;
        self.read.send_replace(read);
        changed
    }

    /// The handshake; `None`: it fails, or takes too long.
    pub(super) async fn accept<S>(&self, stream: S, within: Duration) -> Option<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = self.read.borrow().acceptor.clone();
        match tokio::time::timeout(within, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                tracing::debug!(%error, "no TLS with somebody who asks the API");
                None
            }
            Err(_) => None,
        }
    }
}

impl Read {
    fn from(files: &ApiTls) -> Result<Read, TlsError> {
        let (certificates, key) = (certificates(&files.cert)?, key(&files.key)?);
        let unfit = |error: rustls::Error| TlsError::Unfit { path: files.cert.clone(), source: error.into() };
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|config| config.with_no_client_auth().with_single_cert(certificates.clone(), key));
        let mut config = config.map_err(unfit)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Read { acceptor: TlsAcceptor::from(Arc::new(config)), certificates })
    }

    fn holds_now(&self, files: &ApiTls) -> Result<(), TlsError> {
        let path = || files.cert.clone();
        let own = self.certificates.first().map_or(&[][..], |own| own);
        let (_, own) = parse_x509_certificate(own)
            .map_err(|error| TlsError::Unfit { path: path(), source: error.to_string().into() })?;
        let Validity { not_before, not_after } = own.validity();
        match own.validity().is_valid() {
            true => Ok(()),
            false => {
                let (from, until) = (not_before.to_string(), not_after.to_string());
                Err(TlsError::Dates { path: path(), from, until })
            }
        }
    }
}
