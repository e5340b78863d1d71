//! Mutual TLS between agents: every certificate is of the cluster's own CA and names its host.
//!
//! Owns the certificates and the rules by which they are checked: TLS 1.3 only, both sides show one, and
//! the name in it is the host's. They are read at the start and again on a reload, and this host's own is judged as the
//! others will judge it; who was let in by a CA that counts no more is put out ([`Tls::distrusts`]). Never decides whom a
//! host may be. [`issue`] makes them. Called by `wire`; the API, which shows a certificate of its
//! own, reads files by the same functions.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::geteuid;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

pub mod issue;

use crate::config::TlsFiles;
use crate::spec::HostName;

/// Why the certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or holds something else.
    #[error("cannot read a {what} from {path}: make one with `bigbrother ca`")]
    File {
        /// What it should hold.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The files are sound and do not fit together.
    #[error("the certificate {path} cannot be used")]
    Unfit {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The certificate is of another host.
    #[error("the certificate {path} is not that of {host}: issue one with `bigbrother ca issue {host}`")]
    OtherHost {
        /// Which.
        path: PathBuf,
        /// This host.
        host: HostName,
    },
    /// The other hosts would not take it.
    #[error("no other host would take the certificate {path}: {advice}")]
    Distrusted {
        /// Which.
        path: PathBuf,
        /// What to do.
        advice: String,
        /// Why.
        source: rustls::Error,
    },
    /// Its time is over, or has not come.
    #[error(
        "the certificate {path} holds from {from} until {until}, which is not now: put another one there, or set this \
         machine's clock right"
    )]
    Dates {
        /// Which.
        path: PathBuf,
        /// Its first moment.
        from: String,
        /// Its last one.
        until: String,
    },
}

/// What both sides of a connection need.
pub struct Tls {
    files: TlsFiles,
    host: HostName,
    read: watch::Sender<Read>,
    /// How often a CA was taken out.
    distrusts: watch::Sender<u64>,
}

/// What the files hold.
#[derive(Clone)]
pub struct Read {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
    /// Of the CAs.
    roots: Arc<RootCertStore>,
    certificates: Vec<CertificateDer<'static>>,
}

/// The certificate of whoever dialled.
pub struct Certificate(CertificateDer<'static>);

impl Certificate {
    /// True when it is that of the host.
    pub fn names(&self, host: &HostName) -> bool {
        let parsed = ParsedCertificate::try_from(&self.0);
        let name = ServerName::try_from(host.as_str());
        parsed
            .is_ok_and(|cert| name.is_ok_and(|name| rustls::client::verify_server_name(&cert, &name).is_ok()))
    }
}

impl Tls {
    /// Reads the certificates of this host. One that the others will not take is told of, and leaves the host cut off.
    pub fn load(files: &TlsFiles, host: &HostName) -> Result<Tls, TlsError> {
        let read = Read::from(files, host)?;
        // The games need the agent, whoever talks to it.
        if let Err(error) = read.judge(files, host) {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "this host is cut off until it has another certificate and is reloaded");
        }
        let read = watch::channel(read).0;
        Ok(Tls { files: files.clone(), host: host.clone(), read, distrusts: watch::channel(0).0 })
    }

    /// The same of a host that may have none and speaks in plain then.
    pub fn if_any(files: Option<&TlsFiles>, host: &HostName) -> Result<Option<Arc<Tls>>, TlsError> {
        files.map(|files| Tls::load(files, host).map(Arc::new)).transpose()
    }

    /// Reads the files again; nothing changes by that.
    pub fn read_again(&self) -> Result<Read, TlsError> {
        let read = Read::from(&self.files, &self.host)?;
        read.judge(&self.files, &self.host).map(|()| read)
    }

    /// This counts for every connection from now on. False: it is what counted before.
    pub fn renew(&self, read: Read) -> bool {
        let before = self.read.borrow().clone();
        if read.roots.roots == before.roots.roots && read.certificates == before.certificates {
            return false;
        }
        let fewer = before.roots.roots.iter().any(|ca| !read.roots.roots.contains(ca));
        self.read.send_replace(read);
        if fewer {
            self.distrusts.send_modify(|times| *times += 1);
        }
        true
    }

    /// Changes whenever a CA counts no more: who was let in by it must show something better.
    pub fn distrusts(&self) -> watch::Receiver<u64> {
        self.distrusts.subscribe()
    }

    /// Dialled `host`: its certificate must name it.
    pub async fn connect(
        &self,
        host: &HostName,
        socket: TcpStream,
    ) -> io::Result<client::TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.as_str().to_owned()).map_err(io::Error::other)?;
        let connector = self.read.borrow().connector.clone();
        connector.connect(name, socket).await
    }

    /// Was dialled: the other side must show a certificate of the CA.
    pub async fn accept(&self, socket: TcpStream) -> io::Result<(server::TlsStream<TcpStream>, Certificate)> {
        let acceptor = self.read.borrow().acceptor.clone();
        let stream = acceptor.accept(socket).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
        let certificate = shown.ok_or_else(|| io::Error::other("no certificate was shown"))?;
        Ok((stream, Certificate(certificate.into_owned())))
    }
}

impl Read {
    fn from(files: &TlsFiles, host: &HostName) -> Result<Read, TlsError> {
        let roots = roots(&files.ca)?;
        let certificates = certificates(&files.cert)?;
        if !certificates.first().is_some_and(|first| Certificate(first.clone()).names(host)) {
            return Err(TlsError::OtherHost { path: files.cert.clone(), host: host.clone() });
        }
        let key = key(&files.key)?;
        let unfit = |source: Box<dyn std::error::Error + Send + Sync>| TlsError::Unfit {
            path: files.cert.clone(),
            source,
        };
        let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
        let versions = &[&rustls::version::TLS13];
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| unfit(error.into()))?;
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .and_then(|config| {
                config
                    .with_client_cert_verifier(verifier)
                    .with_single_cert(certificates.clone(), key.clone_key())
            })
            .map_err(|error| unfit(error.into()))?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .and_then(|config| {
                config.with_root_certificates(roots.clone()).with_client_auth_cert(certificates.clone(), key)
            })
            .map_err(|error| unfit(error.into()))?;
        let (connector, acceptor) =
            (TlsConnector::from(Arc::new(client)), TlsAcceptor::from(Arc::new(server)));
        Ok(Read { connector, acceptor, roots, certificates })
    }

    /// As the others will.
    fn judge(&self, files: &TlsFiles, host: &HostName) -> Result<(), TlsError> {
        judge(&self.certificates, host, &self.roots).map_err(|source| TlsError::Distrusted {
            path: files.cert.clone(),
            advice: advice(&source, host, &files.ca),
            source,
        })
    }
}

/// What the others will find: when this host dials them, and when it is dialled.
fn judge(
    certificates: &[CertificateDer<'_>],
    host: &HostName,
    roots: &Arc<RootCertStore>,
) -> Result<(), rustls::Error> {
    let general = |error: &dyn std::fmt::Display| rustls::Error::General(error.to_string());
    let (own, between) = certificates.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
    let (now, provider) = (UnixTime::now(), Arc::new(ring::default_provider()));
    let dials = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
    dials.map_err(|error| general(&error))?.verify_client_cert(own, between, now)?;
    let dialled = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider).build();
    let name = ServerName::try_from(host.as_str()).map_err(|error| general(&error))?;
    dialled.map_err(|error| general(&error))?.verify_server_cert(own, between, &name, &[], now).map(drop)
}

fn advice(error: &rustls::Error, host: &HostName, ca: &Path) -> String {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    let dates = match error {
        rustls::Error::InvalidCertificate(why) => {
            matches!(why, Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. })
        }
        _ => false,
    };
    if dates {
        return format!("issue another with `bigbrother ca issue {host}`, or set this machine's clock right");
    }
    format!(
        "issue one with `bigbrother ca issue {host}` by a CA of {}, or write the certificate of its CA there, too",
        ca.display()
    )
}

pub(crate) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let file = |source| TlsError::File { what: "key", path: path.to_owned(), source };
    let key = PrivateKeyDer::from_pem_file(path).map_err(file)?;
    exposed(path).inspect(|warning| tracing::warn!("{warning}"));
    Ok(key)
}

/// What to say of a key that more may read than have to.
fn exposed(path: &Path) -> Option<String> {
    let file = std::fs::metadata(path).ok()?;
    let mode = file.mode() & 0o777;
    let remedy = remedy(mode, file.uid() == geteuid().as_raw())?;
    let path = path.display();
    Some(format!("others may read the key {path} (mode {mode:03o}): chmod {remedy} {path}"))
}

/// What `chmod` is to be told of a key of this mode. One that belongs to somebody else is read by this agent as one of
/// its group: root's, say, for the agent's account.
fn remedy(mode: u32, own: bool) -> Option<&'static str> {
    match own {
        true => (mode & 0o077 != 0).then_some("600"),
        false => (mode & 0o007 != 0).then_some("o="),
    }
}

pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file = |source| TlsError::File { what: "certificate", path: path.to_owned(), source };
    let all: Vec<_> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(file)?;
    if all.is_empty() { Err(file(rustls::pki_types::pem::Error::NoItemsFound)) } else { Ok(all) }
}

pub(crate) fn roots(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| TlsError::Unfit { path: path.to_owned(), source: error.into() })?;
    }
    Ok(Arc::new(roots))
}
