//! Whom the directory trusts over TLS (feature `client-tls`): whoever shows a certificate of these CAs for the host that
//! was dialled.
//!
//! Owns the rules: TLS 1.3 only, as agents speak it, and no certificate of its own: a token says who asks. The command
//! line goes by the same.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

/// Why a CA cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file cannot be read, or holds something else.
    #[error("cannot read a certificate from {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// What it holds is of no use.
    #[error("{path} holds no certificate of a CA")]
    Unfit {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Trust(Arc<ClientConfig>);

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trust")
    }
}

impl Trust {
    /// In the CAs of this file alone, such as the `ca.pem` of `bigbrother ca init`.
    pub fn in_cas_of(path: &Path) -> Result<Trust, TrustError> {
        let file = |source| TrustError::File { path: path.to_owned(), source };
        let unfit = |source| TrustError::Unfit { path: path.to_owned(), source };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).map_err(file)? {
            roots.add(certificate.map_err(file)?).map_err(unfit)?;
        }
        if roots.is_empty() {
            return Err(unfit(rustls::Error::General("the file has no certificate".to_owned())));
        }
        Trust::of(roots)
    }

    /// In those that the system trusts.
    pub fn as_the_system() -> Result<Trust, TrustError> {
        let mut roots = RootCertStore::empty();
        // Those that cannot be read are of no use; with none left nobody is trusted, and that is told.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Trust::of(roots)
    }

    fn of(roots: RootCertStore) -> Result<Trust, TrustError> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Trust(Arc::new(config)))
    }

    /// The rules of a connection to `HOST:PORT`, and the name that a certificate must have.
    pub(crate) fn rules(&self, host: &str) -> io::Result<(Arc<ClientConfig>, ServerName<'static>)> {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok((self.0.clone(), ServerName::try_from(name).map_err(io::Error::other)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_no_ca() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, "nothing\n").unwrap();
        assert!(matches!(Trust::in_cas_of(&path), Err(TrustError::Unfit { .. })));
    }
}
