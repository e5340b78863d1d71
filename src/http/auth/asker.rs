//! Whoever asks: how the request came, which token it showed, and both in words for those who want them.
//!
//! Owns whom a task works for ([`asking`]). What that may is for [`super`] to say.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::spec::{HostName, TokenName};
use crate::state::ApiToken;

/// What another agent says of whom it asks for.
pub(in crate::http) const CALLER: &str = "bigbrother-caller";
/// The longest of that.
const MAX_CALLER: usize = 512;

/// How a request came: put into it by whoever took it.
#[derive(Clone, Debug)]
pub(in crate::http) enum Origin {
    /// Over the Unix socket, from a process of this account.
    Unix {
        /// `None`: the system does not say.
        uid: Option<u32>,
    },
    /// Over TCP.
    Tcp {
        /// From here.
        address: IpAddr,
        /// In the clear on loopback only, where everybody may look.
        tls: bool,
        /// The tokens that it shows.
        badge: Badge,
    },
    /// Through another agent.
    Host(HostName),
}

impl Origin {
    /// `local`, the address, or the host.
    pub(in crate::http) fn place(&self) -> String {
        match self {
            Origin::Unix { .. } => "local".to_owned(),
            Origin::Host(host) => host.to_string(),
            Origin::Tcp { address, .. } => address.to_string(),
        }
    }
}

/// A token by its name and its hash: another one may have the name later.
pub(in crate::http) type Known = (TokenName, [u8; 32]);

/// The token that a connection last showed.
#[derive(Clone, Debug, Default)]
pub(in crate::http) struct Badge(Arc<watch::Sender<Option<Known>>>);

impl Badge {
    /// What is shown, from now on.
    pub(in crate::http) fn shown(&self) -> watch::Receiver<Option<Known>> {
        self.0.subscribe()
    }

    pub(super) fn show(&self, name: &TokenName, token: &ApiToken) {
        self.0.send_if_modified(|shown| {
            let other = shown.as_ref().is_none_or(|(known, hash)| known != name || *hash != token.hash);
            if other {
                *shown = Some((name.clone(), token.hash));
            }
            other
        });
    }
}

/// Whoever asks, in words: for the audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::http) struct Caller {
    /// `unix uid=0`, `token deploy`, `host beta`, `nobody`.
    pub(in crate::http) who: String,
    /// `local`, or the address.
    pub(in crate::http) from: String,
    /// The agent that has passed it on.
    #[serde(default, skip)]
    pub(in crate::http) via: Option<HostName>,
}

/// Whoever asks, as it came: most requests are answered without a word about it.
#[derive(Clone, Debug)]
pub(super) enum Asker {
    /// With this token, if with any that holds.
    Came(Origin, Option<TokenName>),
    /// In words already.
    Named(Caller),
}

impl Asker {
    pub(super) fn token(&self) -> Option<&TokenName> {
        match self {
            Asker::Came(_, token) => token.as_ref(),
            Asker::Named(_) => None,
        }
    }

    pub(super) fn caller(&self) -> Caller {
        let (origin, token) = match self {
            Asker::Named(caller) => return caller.clone(),
            Asker::Came(origin, token) => (origin, token),
        };
        let who = match origin {
            Origin::Unix { uid: Some(uid) } => format!("unix uid={uid}"),
            Origin::Unix { uid: None } => "unix".to_owned(),
            Origin::Host(host) => format!("host {host}"),
            Origin::Tcp { .. } => "nobody".to_owned(),
        };
        let who = token.as_ref().map_or(who, |token| format!("token {token}"));
        Caller { who, from: origin.place(), via: None }
    }
}

tokio::task_local! {
    pub(super) static ASKING: Asker;
}

/// For whom this task works; `None`: for nobody but the agent itself.
pub(in crate::http) fn asking() -> Option<Caller> {
    ASKING.try_with(Asker::caller).ok()
}

/// Work of another task, for whom this one works.
pub(in crate::http) async fn on_behalf<T>(asking: Option<Caller>, work: impl Future<Output = T>) -> T {
    match asking {
        Some(caller) => ASKING.scope(Asker::Named(caller), work).await,
        None => work.await,
    }
}

/// Whom another agent asks for: it has looked whether they may. Itself, if it names nobody.
pub(super) fn vouched(host: &HostName, headers: &HeaderMap) -> Caller {
    let said = headers.get(CALLER).map(|value| value.as_bytes()).filter(|said| said.len() <= MAX_CALLER);
    let named = said.and_then(|said| serde_json::from_slice::<Caller>(said).ok());
    let caller = named.unwrap_or_else(|| Asker::Came(Origin::Host(host.clone()), None).caller());
    Caller { via: Some(host.clone()), ..caller }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_agent_names_whom_it_asks_for_and_nobody_else_can() {
        let host: HostName = "beta".parse().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(CALLER, r#"{"who":"token deploy","from":"192.0.2.7"}"#.parse().unwrap());
        let caller = vouched(&host, &headers);
        assert_eq!((caller.who.as_str(), caller.from.as_str()), ("token deploy", "192.0.2.7"));
        assert_eq!(caller.via, Some(host.clone()));
        headers.insert(CALLER, "token deploy".parse().unwrap());
        assert_eq!(vouched(&host, &headers).who, "host beta");
        headers.insert(CALLER, format!(r#"{{"who":"{}","from":""}}"#, "x".repeat(600)).parse().unwrap());
        assert_eq!(vouched(&host, &headers).who, "host beta");
    }
}
