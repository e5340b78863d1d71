//! Making the cluster's CA and the certificates of its hosts (`bigbrother ca`).
//!
//! Owns what stands in a certificate: the host's name, for both ends of a connection. Keys are written
//! for their owner's eyes only, and nothing is ever overwritten. Called by `cli::ca`.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::spec::HostName;

/// The CA's certificate: every host needs it.
pub const CA_CERT: &str = "ca.pem";
/// The CA's key: it stays where `ca init` was run.
pub const CA_KEY: &str = "ca.key";

/// Why a certificate was not made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// A file cannot be written; an older one is never replaced.
    #[error("cannot write {path} (a file that is there is never replaced)")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is nowhere to write.
    #[error("there is no folder {0}: make it, for nobody but you, with `install -d -m 700 {0}`")]
    NoFolder(PathBuf),
    /// The CA cannot be read.
    #[error("cannot read {path}: make a CA with `bigbrother ca init`")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The files of the CA hold something else.
    #[error("{path} is no CA of `bigbrother ca init`")]
    NoCa {
        /// Which.
        path: PathBuf,
        /// Why.
        source: rcgen::Error,
    },
    /// It cannot be made.
    #[error("cannot make the certificate")]
    Make(#[from] rcgen::Error),
}

/// Makes a CA in the folder; returns the files.
pub fn init(folder: &Path, cluster: &str) -> Result<[PathBuf; 2], IssueError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("Big Brother CA of {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    let paths = [folder.join(CA_CERT), folder.join(CA_KEY)];
    write(&paths[1], &key.serialize_pem(), 0o600)?;
    write(&paths[0], &certificate.pem(), 0o644)?;
    Ok(paths)
}

/// Issues the certificate of a host with the CA of `folder`; writes `HOST.pem` and `HOST.key` into `out`.
pub fn issue(folder: &Path, host: &HostName, out: &Path) -> Result<[PathBuf; 2], IssueError> {
    let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    signed(folder, host, vec![host.to_string()], usages, &out.join(host.as_str()))
}

/// Issues what a host's API shows to those who ask it by these names and addresses; writes `HOST-api.pem` and
/// `HOST-api.key` into `out`. It is a server's only: no agent takes whoever shows it for a host.
pub fn issue_api(
    folder: &Path,
    host: &HostName,
    names: &[String],
    out: &Path,
) -> Result<[PathBuf; 2], IssueError> {
    let usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    signed(folder, host, names.to_vec(), usages, &out.join(format!("{host}-api")))
}

fn signed(
    folder: &Path,
    host: &HostName,
    names: Vec<String>,
    usages: Vec<ExtendedKeyUsagePurpose>,
    to: &Path,
) -> Result<[PathBuf; 2], IssueError> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|source| IssueError::Read { path: path.to_owned(), source })
    };
    let (ca_cert, ca_key) = (folder.join(CA_CERT), folder.join(CA_KEY));
    let no_ca = |path: &Path| {
        let path = path.to_owned();
        move |source| IssueError::NoCa { path, source }
    };
    let key = KeyPair::from_pem(&read(&ca_key)?).map_err(no_ca(&ca_key))?;
    let issuer = Issuer::from_ca_cert_pem(&read(&ca_cert)?, key).map_err(no_ca(&ca_cert))?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, host.as_str());
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages;
    let certificate = params.signed_by(&key, &issuer)?;
    let with = |end: &str| {
        let mut path = to.as_os_str().to_owned();
        path.push(end);
        PathBuf::from(path)
    };
    let paths = [with(".pem"), with(".key")];
    write(&paths[1], &key.serialize_pem(), 0o600)?;
    write(&paths[0], &certificate.pem(), 0o644)?;
    Ok(paths)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), IssueError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|source| match path.parent() {
        Some(folder) if source.kind() == ErrorKind::NotFound => IssueError::NoFolder(folder.to_owned()),
        _ => IssueError::Write { path: path.to_owned(), source },
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::super::{Tls, TlsError};
    use super::*;
    use crate::config::TlsFiles;

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    /// A CA and the certificate of one host, loaded.
    fn tls_of(folder: &Path, host: &str) -> Tls {
        let [cert, key] = issue(folder, &name(host), folder).unwrap();
        Tls::load(&TlsFiles { ca: folder.join(CA_CERT), cert, key }, &name(host)).unwrap()
    }

    /// What the accepting side finds when `client` dials it as `dialled`.
    async fn meet(server: Tls, client: Tls, dialled: &str) -> std::io::Result<(bool, bool)> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, certificate) = server.accept(listener.accept().await?.0).await?;
            stream.write_all(b"x").await?;
            Ok((certificate.names(&name("beta")), certificate.names(&name("alpha"))))
        });
        let mut stream = client.connect(&name(dialled), TcpStream::connect(address).await?).await?;
        stream.read_u8().await?;
        served.await.unwrap()
    }

    #[tokio::test]
    async fn both_ends_know_each_other_by_name() {
        let folder = tempfile::tempdir().unwrap();
        init(folder.path(), "pirates").unwrap();
        let (alpha, beta) = (tls_of(folder.path(), "alpha"), tls_of(folder.path(), "beta"));
        assert_eq!(meet(alpha, beta, "alpha").await.unwrap(), (true, false));
    }

    #[tokio::test]
    async fn another_name_and_another_ca_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        init(folder.path(), "pirates").unwrap();
        let (alpha, beta) = (tls_of(folder.path(), "alpha"), tls_of(folder.path(), "beta"));
        let error = meet(alpha, beta, "gamma").await.unwrap_err();
        assert!(error.to_string().contains("not valid for name"), "{error}");

        let other = tempfile::tempdir().unwrap();
        init(other.path(), "pirates").unwrap();
        let (alpha, stranger) = (tls_of(other.path(), "alpha"), tls_of(folder.path(), "gamma"));
        let error = meet(alpha, stranger, "alpha").await.unwrap_err();
        assert!(
            error.to_string().contains("UnknownIssuer") || error.to_string().contains("BadSignature"),
            "{error}"
        );
    }

    #[test]
    fn a_certificate_of_another_host_is_not_loaded() {
        let folder = tempfile::tempdir().unwrap();
        init(folder.path(), "pirates").unwrap();
        let [cert, key] = issue(folder.path(), &name("beta"), folder.path()).unwrap();
        let files = TlsFiles { ca: folder.path().join(CA_CERT), cert, key };
        assert!(matches!(Tls::load(&files, &name("alpha")), Err(TlsError::OtherHost { .. })));
    }

    #[test]
    fn a_key_that_others_may_read_and_a_file_without_certificates_are_told_of() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        init(folder.path(), "pirates").unwrap();
        let key = folder.path().join(CA_KEY);
        for (mode, told) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true), (0o620, true)] {
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
            let warning = super::super::exposed(&key).unwrap_or_default();
            assert_eq!(warning.contains(&format!("(mode {mode:03o}): chmod 600 ")), told, "{warning}");
        }
        // Somebody else's: as one of its group the agent reads it, and as its owner it could not.
        for (mode, told) in [(0o640, None), (0o440, None), (0o644, Some("o=")), (0o604, Some("o="))] {
            assert_eq!(super::super::remedy(mode, false), told, "{mode:o}");
        }
        let junk = folder.path().join("junk.pem");
        std::fs::write(&junk, "junk\n").unwrap();
        let error = super::super::certificates(&junk).unwrap_err().to_string();
        assert!(error.contains("junk.pem: make one with `bigbrother ca`"), "{error}");
    }

    #[test]
    fn nothing_is_replaced_and_keys_are_for_their_owner() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        init(folder.path(), "pirates").unwrap();
        assert!(matches!(init(folder.path(), "pirates"), Err(IssueError::Write { .. })));
        let nowhere = folder.path().join("nowhere");
        for error in [init(&nowhere, "pirates"), issue(folder.path(), &name("alpha"), &nowhere)] {
            let (said, wanted) =
                (error.unwrap_err().to_string(), format!("no folder {}:", nowhere.display()));
            assert!(said.contains(&wanted), "{said}");
        }
        let mode = std::fs::metadata(folder.path().join(CA_KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
