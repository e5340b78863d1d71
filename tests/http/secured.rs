//! The API with tokens, over TLS or on plain loopback, and a client that knows its CA.

use std::path::Path;
use std::sync::Arc;

use bigbrother::agent::ring::{Alone, Ring};
use bigbrother::cluster::tls::issue;
use bigbrother::cluster::tunnel::Entrance;
use bigbrother::state::{ApiToken, Role, State};
use ring::digest::{SHA256, digest};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::pretended::{pretend, state, two_zones};
use super::server::{Answer, Server, exchange};

/// The secret of the token of each name.
pub const READER: &str = "bb_reader";
pub const OPERATOR: &str = "bb_operator";
pub const BOSS: &str = "bb_boss";
/// Of one that has expired.
pub const LATE: &str = "bb_late";

pub struct Secured {
    pub server: Server,
    pub state: watch::Sender<Arc<State>>,
    /// For other agents.
    pub entrance: Entrance,
    tls: bool,
}

fn hash(secret: &str) -> [u8; 32] {
    digest(&SHA256, secret.as_bytes()).as_ref().try_into().unwrap()
}

pub fn token(role: Role, secret: &str, expires_ms: Option<u64>) -> ApiToken {
    ApiToken { role, hash: hash(secret), created_ms: 1, expires_ms }
}

/// Trusts the CA of the folder and no other.
pub fn connector(folder: &Path) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(folder.join(issue::CA_CERT)).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap();
    TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

impl Secured {
    pub async fn over_tls() -> Secured {
        let dir = tempfile::tempdir().unwrap();
        issue::init(dir.path(), "pirates").unwrap();
        let alpha = "alpha".parse().unwrap();
        issue::issue_api(dir.path(), &alpha, &["127.0.0.1".to_owned()], dir.path()).unwrap();
        Secured::start(dir, true).await
    }

    pub async fn on_loopback() -> Secured {
        Secured::start(tempfile::tempdir().unwrap(), false).await
    }

    pub async fn start(dir: tempfile::TempDir, tls: bool) -> Secured {
        let mut state = state();
        for (name, token) in [
            ("reader", token(Role::Read, READER, None)),
            ("operator", token(Role::Operate, OPERATOR, None)),
            ("boss", token(Role::Admin, BOSS, None)),
            ("late", token(Role::Admin, LATE, Some(2))),
        ] {
            state.api_tokens.insert(name.parse().unwrap(), token);
        }
        let (state, seen) = watch::channel(Arc::new(state));
        let ((requests, requests_in), (proposals, proposals_in)) = (mpsc::channel(64), mpsc::channel(64));
        let (snapshot, snapshots) = watch::channel(Some(two_zones()));
        let (asked_in, asked) = mpsc::unbounded_channel();
        let agent = tokio::spawn(pretend(requests_in, proposals_in, snapshots, asked_in));
        let ring = (Ring::Alone(Alone::to(proposals, "alpha".parse().unwrap())), seen);
        let (entrance, tunnelled) = Entrance::new();
        let server = Server::of(dir, requests, ring, Some(tunnelled), agent, snapshot, asked).await;
        Secured { server, state, entrance, tls }
    }

    pub async fn connect(&self) -> TlsStream<TcpStream> {
        let socket = TcpStream::connect(self.server.tcp).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        connector(self.server.dir.path()).connect(name, socket).await.unwrap()
    }

    pub async fn send(&self, method: &str, path: &str, token: Option<&str>, body: &str) -> Answer {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(bearer.iter().map(|bearer| ("authorization", bearer.as_str())));
        self.send_with(method, path, &headers, body).await
    }

    pub async fn send_with(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let response = match self.tls {
            true => exchange(self.connect().await, method, path, headers, body).await,
            false => {
                let stream = TcpStream::connect(self.server.tcp).await.unwrap();
                exchange(stream, method, path, headers, body).await
            }
        };
        Answer::read(response).await
    }

    /// The state is another one from now on.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(|state| {
            let state = Arc::make_mut(state);
            state.index += 1;
            change(state);
        });
    }

    /// What the audit trail has.
    pub async fn trail(&self) -> Vec<bigbrother::http::view::AuditView> {
        serde_json::from_value(self.server.get("/v1/audit").await.json()).unwrap()
    }
}
