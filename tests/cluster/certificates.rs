//! Certificates that open no door between agents: expired ones, others' ones, those of the API, another host's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bigbrother::cluster::tls::{Tls, issue};
use bigbrother::cluster::wire::hello::Ours;
use bigbrother::cluster::wire::{
    CallError, DialError, Dialer, Frame, Hello, Kind, Outlet, Peerage, Purpose, Refusal, Server, Service,
    Target, decode, encode, parcel,
};
use bigbrother::config::TlsFiles;
use bigbrother::spec::HostName;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::peers::name;

const PATIENCE: Duration = Duration::from_secs(10);

/// Gives back what it is given.
#[derive(Default)]
struct Echo {
    /// A snapshot is told here, and never comes to an end.
    taking: Option<mpsc::Sender<()>>,
}

fn ours(host: &str) -> Ours {
    let cluster = "pirates".to_owned();
    Ours { cluster, host: name(host), incarnation: 1, history: Some(7), id: Some(1) }
}

impl Service for Echo {
    fn ours(&self) -> Ours {
        ours("alpha")
    }

    fn peerage(&self, _: &HostName) -> Peerage {
        Peerage::Peer
    }

    async fn answer(&self, _: &Hello, _: Kind, body: Vec<u8>, _: &Outlet) -> Result<Vec<u8>, String> {
        Ok(body)
    }

    async fn take_snapshot(&self, _: &Hello, head: Vec<u8>, _: Vec<u8>) -> Result<Vec<u8>, String> {
        let Some(taking) = &self.taking else { return Ok(head) };
        taking.send(()).await.unwrap();
        std::future::pending().await
    }
}

/// A certificate of the folder's CA for a host, valid in these years only.
pub fn valid_in(folder: &Path, host: &str, years: (i32, i32)) -> [PathBuf; 2] {
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
    let key = KeyPair::from_pem(&read(issue::CA_KEY)).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read(issue::CA_CERT), key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) = (date_time_ymd(years.0, 1, 1), date_time_ymd(years.1, 1, 1));
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let paths =
        [folder.join(format!("{host}-{}.pem", years.0)), folder.join(format!("{host}-{}.key", years.0))];
    std::fs::write(&paths[0], certificate.pem()).unwrap();
    std::fs::write(&paths[1], key.serialize_pem()).unwrap();
    paths
}

pub fn files(folder: &Path, [cert, key]: [PathBuf; 2]) -> TlsFiles {
    TlsFiles { ca: folder.join(issue::CA_CERT), cert, key }
}

/// An agent of alpha with this certificate; where it listens.
async fn agent(files: &TlsFiles) -> (String, tokio::task::JoinHandle<()>) {
    let tls = Tls::load(files, &name("alpha")).unwrap();
    let server = Server::bind("127.0.0.1:0", Some(Arc::new(tls))).await.unwrap();
    let address = server.address().unwrap().to_string();
    (address, tokio::spawn(server.run(Arc::new(Echo::default()))))
}

/// What alpha says to whoever shows this certificate and says hello as this host.
async fn hear(address: &str, trusted: &Path, shown: Option<&[PathBuf; 2]>, host: &str) -> Vec<u8> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(trusted.join(issue::CA_CERT)).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let config = match shown {
        None => config.with_no_client_auth(),
        Some([cert, key]) => {
            let cert = CertificateDer::from_pem_file(cert).unwrap();
            config.with_client_auth_cert(vec![cert], PrivateKeyDer::from_pem_file(key).unwrap()).unwrap()
        }
    };
    let socket = TcpStream::connect(address).await.unwrap();
    let alpha = ServerName::try_from("alpha").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(alpha, socket).await.unwrap();
    let hello = ours(host).hello(&name("alpha"), None, Purpose::Urgent);
    let mut bytes = Vec::new();
    Frame { kind: Kind::Hello, request: 0, ttl_ms: 0, body: encode(&hello).unwrap() }.write(&mut bytes);
    // It may have hung up already.
    let _ = stream.write_all(&bytes).await;
    let mut heard = vec![0; 4096];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut heard)).await.expect("it answers or hangs up");
    heard.truncate(read.unwrap_or(0));
    heard
}

#[tokio::test]
async fn only_a_certificate_of_the_ca_that_holds_now_and_is_a_hosts_own_is_heard() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = dir.path();
    for folder in [folder, other.path()] {
        issue::init(folder, "pirates").unwrap();
    }
    let (alpha, beta) = (name("alpha"), name("beta"));
    let own = files(folder, issue::issue(folder, &alpha, folder).unwrap());
    let (address, _agent) = agent(&own).await;
    let good = issue::issue(folder, &beta, folder).unwrap();
    let foreign = issue::issue(other.path(), &beta, other.path()).unwrap();
    let of_the_api = issue::issue_api(folder, &beta, &["beta".to_owned()], folder).unwrap();
    let (expired, to_come) = (valid_in(folder, "beta", (2019, 2020)), valid_in(folder, "beta", (4000, 4090)));
    for (what, shown) in [
        ("none", None),
        ("another CA's", Some(&foreign)),
        ("the API's", Some(&of_the_api)),
        ("an expired one", Some(&expired)),
        ("one that does not hold yet", Some(&to_come)),
    ] {
        assert_eq!(hear(&address, folder, shown, "beta").await, b"", "{what} is answered");
    }
    let kind = |heard: &[u8]| u16::from_le_bytes(heard[8..10].try_into().unwrap());
    let welcome = hear(&address, folder, Some(&good), "beta").await;
    assert_eq!(kind(&welcome), Kind::Welcome as u16);
    let refused = hear(&address, folder, Some(&good), "gamma").await;
    assert_eq!(kind(&refused), Kind::Refusal as u16);
    assert_eq!(decode::<Refusal>(&refused[22..]).unwrap(), Refusal::Certificate(name("gamma")));
}

/// Somebody who shows this certificate to whoever comes, as no agent would; where that is.
async fn somebody([cert, key]: &[PathBuf; 2]) -> String {
    let cert = CertificateDer::from_pem_file(cert).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert], PrivateKeyDer::from_pem_file(key).unwrap())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        TlsAcceptor::from(Arc::new(config)).accept(socket).await
    });
    address
}

/// A new cluster's authority in the folder, and who dials with a certificate of it.
fn dialer_of_beta(folder: &Path) -> Dialer {
    issue::init(folder, "pirates").unwrap();
    let beta = files(folder, issue::issue(folder, &name("beta"), folder).unwrap());
    let tls = Arc::new(Tls::load(&beta, &name("beta")).unwrap());
    Dialer::new(watch::channel(ours("beta")).1, Some(tls))
}

#[tokio::test]
async fn who_dials_wants_a_certificate_that_holds_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let dialer = dialer_of_beta(folder);
    let address = somebody(&valid_in(folder, "alpha", (2019, 2020))).await;
    let target = Target { host: name("alpha"), id: None, address };
    let Err(DialError::Tls { source, .. }) = dialer.dial(&target, Purpose::Urgent).await.map(drop) else {
        panic!("an expired certificate is trusted");
    };
    assert!(source.to_string().contains("xpired"), "{source}");
    let own = issue::issue(folder, &name("alpha"), folder).unwrap();
    let (address, _agent) = agent(&files(folder, own)).await;
    let target = Target { address, ..target };
    assert!(dialer.dial(&target, Purpose::Urgent).await.is_ok());
}

#[tokio::test]
async fn a_connection_that_ends_or_never_comes_is_no_fault_of_a_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let dialer = dialer_of_beta(folder);
    let dialled = async |address: String| {
        let target = Target { host: name("alpha"), id: None, address };
        dialer.dial(&target, Purpose::Urgent).await.map(drop).unwrap_err()
    };
    let bound = async || {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (listener, address)
    };
    // One that ends while it is greeted.
    let (listener, address) = bound().await;
    tokio::spawn(async move { listener.accept().await.map(drop) });
    let ended = dialled(address).await;
    // An agent in plain takes the greeting for no frame, and hangs up.
    let plain = Server::bind("127.0.0.1:0", None).await.unwrap();
    let address = plain.address().unwrap().to_string();
    let _plain = tokio::spawn(plain.run(Arc::new(Echo::default())));
    let in_plain = dialled(address).await;
    for error in [ended, in_plain] {
        assert!(matches!(error, DialError::Broken { .. }), "{error:?}");
        let said = error.to_string();
        assert!(said.contains("broke at the handshake") && !said.contains("certificate"), "{said}");
    }
    let (_silent, address) = bound().await;
    let error = dialled(address).await;
    assert!(matches!(error, DialError::Silent { .. }), "{error:?}");
    // Nobody listens, and nobody else is given the port.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let error = dialled(closed.local_addr().unwrap().to_string()).await;
    assert!(matches!(error, DialError::Connect { .. }), "{error:?}");
}

#[test]
fn what_no_other_host_would_take_is_not_taken_on_a_reload_and_ends_no_agent() {
    let (dir, other, own) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [dir.path(), other.path()] {
        issue::init(folder, "pirates").unwrap();
    }
    let folder = dir.path();
    let alpha = name("alpha");
    let file = |file: &str| own.path().join(file);
    let alphas = TlsFiles { ca: file("ca.pem"), cert: file("alpha.pem"), key: file("alpha.key") };
    let good = issue::issue(folder, &alpha, folder).unwrap();
    replace(&alphas, folder, good.clone());
    let tls = Tls::load(&alphas, &alpha).unwrap();
    for (what, issued, why, advice) in [
        ("expired", valid_in(folder, "alpha", (2019, 2020)), "expired", "clock right"),
        ("to come", valid_in(folder, "alpha", (4000, 4090)), "not valid yet", "clock right"),
        ("another CA's", issue::issue(other.path(), &alpha, other.path()).unwrap(), "", "by a CA of"),
        (
            "the API's",
            issue::issue_api(folder, &alpha, &["alpha".to_owned()], folder).unwrap(),
            "",
            "bigbrother ca issue alpha",
        ),
    ] {
        replace(&alphas, folder, issued);
        let refused = tls.read_again().err().unwrap_or_else(|| panic!("{what} is taken"));
        let said = refused.to_string();
        assert!(said.contains(alphas.cert.to_str().unwrap()) && said.contains(advice), "{what}: {said}");
        let source = std::error::Error::source(&refused).expect("a reason").to_string();
        assert!(source.contains(why), "{what}: {source}");
        // The games need the agent.
        Tls::load(&alphas, &alpha).unwrap_or_else(|error| panic!("{what}: no agent: {error}"));
    }
    replace(&alphas, folder, good);
    assert!(!tls.renew(tls.read_again().unwrap()), "what counted all the time");
}

/// Two CAs in one file, so that one follows the other without a stop.
#[tokio::test]
async fn hosts_of_two_cas_know_each_other_while_one_follows_the_other() {
    let (old, new, both) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&old, &new] {
        issue::init(dir.path(), "pirates").unwrap();
    }
    let read = |dir: &tempfile::TempDir| std::fs::read_to_string(dir.path().join(issue::CA_CERT)).unwrap();
    std::fs::write(both.path().join(issue::CA_CERT), read(&old) + &read(&new)).unwrap();
    let of = |dir: &tempfile::TempDir, host: &str| {
        files(both.path(), issue::issue(dir.path(), &name(host), dir.path()).unwrap())
    };
    let (address, _agent) = agent(&of(&old, "alpha")).await;
    let tls = Arc::new(Tls::load(&of(&new, "beta"), &name("beta")).unwrap());
    let dialer = Dialer::new(watch::channel(ours("beta")).1, Some(tls));
    let target = Target { host: name("alpha"), id: None, address };
    assert!(dialer.dial(&target, Purpose::Urgent).await.is_ok());
}

/// The files of one host, replaced by those of a CA.
fn replace(files: &TlsFiles, ca: &Path, issued: [PathBuf; 2]) {
    std::fs::copy(ca.join(issue::CA_CERT), &files.ca).unwrap();
    std::fs::copy(&issued[0], &files.cert).unwrap();
    std::fs::copy(&issued[1], &files.key).unwrap();
}

#[tokio::test]
async fn certificates_that_were_read_again_count_from_then_on_and_a_lost_ca_lets_nobody_stay() {
    let (old, new, own) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&old, &new] {
        issue::init(dir.path(), "pirates").unwrap();
    }
    let issued =
        |dir: &tempfile::TempDir, host: &str| issue::issue(dir.path(), &name(host), dir.path()).unwrap();
    let file = |file: &str| own.path().join(file);
    let alphas = TlsFiles { ca: file("ca.pem"), cert: file("alpha.pem"), key: file("alpha.key") };
    replace(&alphas, old.path(), issued(&old, "alpha"));
    let tls = Arc::new(Tls::load(&alphas, &name("alpha")).unwrap());
    let server = Server::bind("127.0.0.1:0", Some(tls.clone())).await.unwrap();
    let address = server.address().unwrap().to_string();
    let _serving = tokio::spawn(server.run(Arc::new(Echo::default())));

    let both =
        [&old, &new].map(|dir| std::fs::read_to_string(dir.path().join(issue::CA_CERT)).unwrap()).concat();
    std::fs::write(file("both.pem"), both).unwrap();
    let dialer = |[cert, key]: [PathBuf; 2]| {
        let tls = Tls::load(&TlsFiles { ca: file("both.pem"), cert, key }, &name("beta")).unwrap();
        Dialer::new(watch::channel(ours("beta")).1, Some(Arc::new(tls)))
    };
    let (before, after) = (dialer(issued(&old, "beta")), dialer(issued(&new, "beta")));
    let target = Target { host: name("alpha"), id: None, address };
    let mut stays = before.dial(&target, Purpose::Urgent).await.expect("the old CA counts");
    assert!(after.dial(&target, Purpose::Urgent).await.is_err(), "the new one does not yet");

    // What cannot be used changes nothing, nor does what is the same.
    std::fs::write(&alphas.key, "nothing").unwrap();
    assert!(tls.read_again().is_err());
    replace(&alphas, old.path(), issued_again(&old));
    assert!(!tls.renew(tls.read_again().unwrap()), "it is the same");
    assert!(before.dial(&target, Purpose::Urgent).await.is_ok());

    replace(&alphas, new.path(), issued(&new, "alpha"));
    assert!(tls.renew(tls.read_again().unwrap()));
    let put_out = tokio::time::timeout(PATIENCE, stays.0.next()).await;
    assert!(put_out.expect("the connection of before ends").is_err());
    assert!(before.dial(&target, Purpose::Urgent).await.is_err(), "the old CA counts no more");
    assert!(after.dial(&target, Purpose::Urgent).await.is_ok(), "the new one does");
}

/// What was issued to alpha before.
fn issued_again(dir: &tempfile::TempDir) -> [PathBuf; 2] {
    ["alpha.pem", "alpha.key"].map(|file| dir.path().join(file))
}

#[tokio::test]
async fn who_dialled_leaves_those_that_a_lost_ca_has_let_in() {
    use bigbrother::cluster::wire::Exchange;
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&old, &new] {
        issue::init(dir.path(), "pirates").unwrap();
    }
    let (address, _agent) =
        agent(&files(old.path(), issue::issue(old.path(), &name("alpha"), old.path()).unwrap())).await;
    let betas = files(old.path(), issue::issue(old.path(), &name("beta"), old.path()).unwrap());
    let tls = Arc::new(Tls::load(&betas, &name("beta")).unwrap());
    let dialer = Dialer::new(watch::channel(ours("beta")).1, Some(tls.clone()));
    let exchange = Exchange::new(dialer, mpsc::channel(8).0);
    let target = Target { host: name("alpha"), id: None, address };
    let ask = || exchange.call(&target, Purpose::Urgent, Kind::Vote, b"x".to_vec(), PATIENCE);
    assert_eq!(ask().await.unwrap(), b"x");
    replace(&betas, new.path(), issue::issue(new.path(), &name("beta"), new.path()).unwrap());
    assert!(tls.renew(tls.read_again().unwrap()));
    assert!(ask().await.is_err(), "alpha is asked although its CA counts no more");
}

#[tokio::test]
async fn a_snapshot_under_way_ends_with_the_ca_that_let_it_begin() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&old, &new] {
        issue::init(dir.path(), "pirates").unwrap();
    }
    let issued = |host: &str| files(old.path(), issue::issue(old.path(), &name(host), old.path()).unwrap());
    let alpha = Arc::new(Tls::load(&issued("alpha"), &name("alpha")).unwrap());
    let server = Server::bind("127.0.0.1:0", Some(alpha)).await.unwrap();
    let address = server.address().unwrap().to_string();
    let (taking, mut taken) = mpsc::channel(1);
    let _serving = tokio::spawn(server.run(Arc::new(Echo { taking: Some(taking) })));
    let betas = issued("beta");
    let tls = Arc::new(Tls::load(&betas, &name("beta")).unwrap());
    let dialer = Dialer::new(watch::channel(ours("beta")).1, Some(tls.clone()));
    let target = Target { host: name("alpha"), id: None, address };
    let sending =
        tokio::spawn(async move { parcel::send(&dialer, &target, vec![1], &[2; 1000], 6 * PATIENCE).await });
    tokio::time::timeout(PATIENCE, taken.recv()).await.expect("all of it is there").unwrap();
    replace(&betas, new.path(), issue::issue(new.path(), &name("beta"), new.path()).unwrap());
    assert!(tls.renew(tls.read_again().unwrap()));
    let sent = tokio::time::timeout(PATIENCE, sending).await.expect("it is given up").unwrap();
    assert_eq!(sent, Err(CallError::Broken));
}
