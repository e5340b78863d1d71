//! What a command shows to an agent over TCP, and what it wants to be shown: a token, and a certificate of a CA.
//!
//! Owns both, and never lets the token out over plain HTTP to another machine. Over the Unix socket neither is needed.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use hyper::header::HeaderValue;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Address, ApiError};
use crate::client::directory::trust::Trust;

/// The token itself, where there is no --token-file.
const VARIABLE: &str = "BIGBROTHER_TOKEN";

/// See the module.
#[derive(Clone, Default)]
pub struct Access {
    token: Option<String>,
    ca: Option<PathBuf>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("token", &self.token.is_some()).field("ca", &self.ca).finish()
    }
}

impl Access {
    /// The token of the file, or of the environment; the CA of the file, or those that the system trusts.
    pub fn gather(token_file: Option<&Path>, ca: Option<PathBuf>) -> io::Result<Access> {
        let token = match token_file {
            Some(path) => Some(std::fs::read_to_string(path)?),
            None => std::env::var(VARIABLE).ok(),
        };
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        Ok(Access { token, ca })
    }

    /// The header that shows the token there, if there is one to be shown.
    pub(super) fn shown(&self, address: &Address) -> Result<Option<HeaderValue>, ApiError> {
        let Some(token) = self.token.as_ref().filter(|_| !matches!(address, Address::Unix(_))) else {
            return Ok(None);
        };
        if matches!(address, Address::Http(_)) && !address.is_local() {
            return Err(ApiError::InTheClear { address: address.clone() });
        }
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| ApiError::NoToken)?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// A connection to `HOST:PORT` whose other end has shown a certificate for that host.
    pub(super) async fn secure(
        &self,
        address: &Address,
        host: &str,
        socket: TcpStream,
    ) -> Result<TlsStream<TcpStream>, ApiError> {
        let untrusted = |source| ApiError::Untrusted { address: address.clone(), source };
        let trust = match &self.ca {
            Some(path) => Trust::in_cas_of(path),
            None => Trust::as_the_system(),
        };
        let trust = trust.map_err(|source| ApiError::Ca { source })?;
        let (rules, name) = trust.rules(host).map_err(untrusted)?;
        TlsConnector::from(rules).connect(name, socket).await.map_err(untrusted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(token: &str) -> Access {
        Access { token: Some(token.to_owned()), ca: None }
    }

    #[test]
    fn a_token_is_shown_over_tls_and_on_this_machine_only() {
        let shown = |address: &str| access("bb_1").shown(&address.parse().unwrap());
        assert_eq!(shown("https://10.0.0.1:7610").unwrap().unwrap(), "Bearer bb_1");
        assert_eq!(shown("http://127.0.0.1:7610").unwrap().unwrap(), "Bearer bb_1");
        assert_eq!(shown("unix:/run/x").unwrap(), None);
        assert!(matches!(shown("http://10.0.0.1:7610"), Err(ApiError::InTheClear { .. })));
        assert!(Access::default().shown(&"http://10.0.0.1:7610".parse().unwrap()).unwrap().is_none());
        assert!(matches!(
            access("a\nb").shown(&"http://localhost:1".parse().unwrap()),
            Err(ApiError::NoToken)
        ));
        assert!(!format!("{:?}", access("bb_secret")).contains("secret"));
    }

    #[test]
    fn a_file_holds_a_token_and_white_space() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "bb_2\n").unwrap();
        assert_eq!(Access::gather(Some(&path), None).unwrap().token.as_deref(), Some("bb_2"));
        std::fs::write(&path, "\n").unwrap();
        assert_eq!(Access::gather(Some(&path), None).unwrap().token, None);
        assert!(Access::gather(Some(&dir.path().join("none")), None).is_err());
    }
}
