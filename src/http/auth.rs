//! Who asks, and whether they may: every request comes by here before anything of it is read but its head.
//!
//! ```text
//! Unix socket ─ the mode of its file ─────────▶ admin
//! other agent ─ its certificate, it has asked ▶ admin, in the name of whom it names
//! TCP, plain ── loopback; no token ───────────▶ read          a token: its role
//! TCP, TLS ──── no token ─────────────────────▶ nothing       a token: its role
//! ```
//!
//! Owns the secrets' making and comparing: a secret has 256 random bits, so there is nothing to guess and one SHA-256
//! keeps it; a slow hash is for passwords. Which role a route wants is `rights`'; what is written down of a change is
//! `audit`'s. Called by `router`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use tokio::sync::watch;

use super::audit;
use super::pace::Pace;
use super::problem::Refusal;
use super::rights;
use super::router::Api;
use crate::agent::replica::wall_ms;
use crate::cluster::wire::hall::neighbourhood;
use crate::spec::{HostName, TokenName};
use crate::state::{self, ApiToken, Role};

/// By this a secret is known for one, by people and by programs that look for secrets where none belong.
const PREFIX: &str = "bb_";
/// What another agent says of whom it asks for.
pub(super) const CALLER: &str = "bigbrother-caller";
/// The longest of that.
const MAX_CALLER: usize = 512;

/// A new secret.
pub(super) fn new_secret() -> Result<String, Refusal> {
    let mut random = [0; 32];
    let drawn = SystemRandom::new().fill(&mut random);
    drawn.map_err(|_| Refusal::internal("the machine has no random numbers".to_owned()))?;
    let hex = random.iter().map(|byte| format!("{byte:02x}"));
    Ok(PREFIX.chars().map(String::from).chain(hex).collect())
}

/// What is kept of a secret.
pub(super) fn hash(secret: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, secret.as_bytes()).as_ref());
    hash
}

/// Whose secret it is, if it is good for something now. All are compared, each in the same time: how long it takes
/// tells nothing.
fn known<'a>(state: &'a state::State, secret: &str, now_ms: u64) -> Option<(&'a TokenName, &'a ApiToken)> {
    let hash = hash(secret);
    let same = |token: &ApiToken| bool::from(token.hash.ct_eq(&hash));
    let found = state.api_tokens.iter().fold(None, |found, (name, token)| match same(token) {
        true => Some((name, token)),
        false => found,
    });
    found.filter(|(_, token)| token.holds(now_ms))
}

/// How a request came: put into it by whoever took it.
#[derive(Clone, Debug)]
pub(super) enum Origin {
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

/// A token by its name and its hash: another one may have the name later.
pub(super) type Known = (TokenName, [u8; 32]);

/// The token that a connection last showed.
#[derive(Clone, Debug, Default)]
pub(super) struct Badge(Arc<watch::Sender<Option<Known>>>);

impl Badge {
    /// What is shown, from now on.
    pub(super) fn shown(&self) -> watch::Receiver<Option<Known>> {
        self.0.subscribe()
    }

    fn show(&self, name: &TokenName, token: &ApiToken) {
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
pub(super) struct Caller {
    /// `unix uid=0`, `token deploy`, `host beta`, `nobody`.
    pub(super) who: String,
    /// `local`, or the address.
    pub(super) from: String,
    /// The agent that has passed it on.
    #[serde(default, skip)]
    pub(super) via: Option<HostName>,
}

tokio::task_local! {
    static ASKING: Caller;
}

/// For whom this task works; `None`: for nobody but the agent itself.
pub(super) fn asking() -> Option<Caller> {
    ASKING.try_with(Clone::clone).ok()
}

/// Work of another task, for whom this one works.
pub(super) async fn on_behalf<T>(asking: Option<Caller>, work: impl Future<Output = T>) -> T {
    match asking {
        Some(caller) => ASKING.scope(caller, work).await,
        None => work.await,
    }
}

/// A caller with what it may do; no role: nothing.
struct Admitted {
    caller: Caller,
    role: Option<Role>,
    token: Option<TokenName>,
}

/// How often what may be asked.
pub(super) struct Gate {
    /// Without a token that holds, of each address.
    strangers: Pace<IpAddr>,
    /// Changes, of each token.
    changes: Pace<TokenName>,
}

impl Default for Gate {
    fn default() -> Gate {
        Gate { strangers: Pace::new(50, 10), changes: Pace::new(100, 50) }
    }
}

/// The layer: answers in place of the route unless the caller may.
pub(super) async fn admit(State(api): State<Api>, request: Request, next: Next) -> Response {
    let changes = !request.method().is_safe();
    let Some(origin) = request.extensions().get::<Origin>().cloned() else {
        return Refusal::internal("a request came from nowhere".to_owned()).into_response();
    };
    let admitted = api.identify(&origin, request.headers());
    let judged = match &admitted {
        Ok(admitted) => api.judge(&origin, admitted, &request),
        Err(refusal) => Err(refusal.clone()),
    };
    let caller = match admitted {
        Ok(Admitted { caller, .. }) => caller,
        Err(_) => stranger(&origin),
    };
    match judged {
        Err(refusal) => {
            api.audit.refused(&api.handle.host, &caller, &request, &refusal);
            let allowed =
                request.extensions().get::<MatchedPath>().map(|path| rights::allowed(path.as_str()));
            let mut response = refusal.into_response();
            let wrong_method = response.status() == axum::http::StatusCode::METHOD_NOT_ALLOWED;
            if let Some(allowed) = allowed.and_then(|allowed| allowed.parse().ok()).filter(|_| wrong_method) {
                response.headers_mut().insert(header::ALLOW, allowed);
            }
            response
        }
        Ok(()) if changes => ASKING.scope(caller, audit::recorded(api, request, next)).await,
        Ok(()) => ASKING.scope(caller, next.run(request)).await,
    }
}

impl Api {
    fn identify(&self, origin: &Origin, headers: &HeaderMap) -> Result<Admitted, Refusal> {
        let (address, least, badge) = match origin {
            Origin::Unix { .. } => return Ok(admin(stranger(origin))),
            Origin::Host(host) => return Ok(admin(vouched(host, headers))),
            Origin::Tcp { address, tls, badge } => (*address, (!tls).then_some(Role::Read), badge),
        };
        let Some(secret) = bearer(headers)? else {
            return Ok(Admitted { caller: stranger(origin), role: least, token: None });
        };
        let state = self.handle.state.borrow().clone();
        let Some((name, token)) = known(&state, secret, wall_ms()) else {
            return Err(self.unless_too_often(address, Refusal::bad_token()));
        };
        badge.show(name, token);
        let caller = Caller { who: format!("token {name}"), from: address.to_string(), via: None };
        Ok(Admitted { caller, role: Some(token.role), token: Some(name.clone()) })
    }

    fn judge(&self, origin: &Origin, admitted: &Admitted, request: &Request) -> Result<(), Refusal> {
        let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        // Also what is not there tells nobody anything who may not look.
        let needed = match path {
            Some(path) => rights::role(request.method(), path),
            None => Some(Role::Read),
        };
        if path == Some(rights::OPEN) && needed.is_some() {
            return Ok(());
        }
        match (admitted.role, needed.unwrap_or(Role::Read)) {
            (Some(has), needed) if has >= needed => {}
            (Some(has), needed) if admitted.token.is_some() => return Err(Refusal::role(needed, has)),
            (_, needed) => {
                let refusal = Refusal::no_token(needed);
                return Err(match origin {
                    Origin::Tcp { address, .. } => self.unless_too_often(*address, refusal),
                    Origin::Unix { .. } | Origin::Host(_) => refusal,
                });
            }
        }
        if needed.is_none() {
            return Err(Refusal::method(request.method().as_str(), request.uri().path()));
        }
        let changes = admitted.token.as_ref().filter(|_| *request.method() != Method::GET);
        if changes.is_some_and(|token| !self.gate.changes.allows(token, Instant::now())) {
            return Err(Refusal::too_often("more changes with one token than are taken"));
        }
        Ok(())
    }

    fn unless_too_often(&self, address: IpAddr, refusal: Refusal) -> Refusal {
        match self.gate.strangers.allows(&neighbourhood(address), Instant::now()) {
            true => refusal,
            false => Refusal::too_often("more requests without a token that holds than are answered"),
        }
    }
}

fn admin(caller: Caller) -> Admitted {
    Admitted { caller, role: Some(Role::Admin), token: None }
}

/// Whoever shows nothing.
fn stranger(origin: &Origin) -> Caller {
    let (who, from) = match origin {
        Origin::Unix { uid: Some(uid) } => (format!("unix uid={uid}"), "local".to_owned()),
        Origin::Unix { uid: None } => ("unix".to_owned(), "local".to_owned()),
        Origin::Host(host) => (format!("host {host}"), host.to_string()),
        Origin::Tcp { address, .. } => ("nobody".to_owned(), address.to_string()),
    };
    Caller { who, from, via: None }
}

/// Whom another agent asks for: it has looked whether they may. Itself, if it names nobody.
fn vouched(host: &HostName, headers: &HeaderMap) -> Caller {
    let said = headers.get(CALLER).map(|value| value.as_bytes()).filter(|said| said.len() <= MAX_CALLER);
    let named = said.and_then(|said| serde_json::from_slice::<Caller>(said).ok());
    let caller = named.unwrap_or_else(|| stranger(&Origin::Host(host.clone())));
    Caller { via: Some(host.clone()), ..caller }
}

/// The secret of `Authorization: Bearer`, if there is such a header; another scheme, or two headers, hold nothing.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(first), None) = (given.next(), given.next()) else {
        return if headers.contains_key(header::AUTHORIZATION) {
            Err(Refusal::bad_token())
        } else {
            Ok(None)
        };
    };
    let secret = first.to_str().ok().and_then(|text| text.split_once(' '));
    let secret = secret.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    secret.map(|(_, secret)| Some(secret.trim())).ok_or_else(Refusal::bad_token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn secrets_are_long_known_for_what_they_are_and_never_the_same() {
        let (one, other) = (new_secret().unwrap(), new_secret().unwrap());
        assert!(one.starts_with("bb_") && one.len() == 67, "{one}");
        assert_ne!(one, other);
        let hex: String = hash("abc").iter().map(|byte| format!("{byte:02x}")).collect();
        // FIPS 180-2, B.1.
        assert_eq!(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_token_is_found_by_its_whole_secret_while_it_holds() {
        let mut state = state::State::default();
        for (name, secret, expires_ms) in [("a", "one", None), ("b", "two", Some(10)), ("c", "three", None)] {
            let token = ApiToken { role: Role::Read, hash: hash(secret), created_ms: 0, expires_ms };
            state.api_tokens.insert(name.parse().unwrap(), token);
        }
        let found = |secret, now| known(&state, secret, now).map(|(name, _)| name.to_string());
        assert_eq!(found("one", 99).as_deref(), Some("a"));
        assert_eq!(found("three", 99).as_deref(), Some("c"));
        assert_eq!(found("two", 9).as_deref(), Some("b"));
        assert_eq!(found("two", 10), None);
        for wrong in ["", "on", "one ", "One", "four"] {
            assert_eq!(found(wrong, 0), None, "{wrong:?}");
        }
    }

    #[test]
    fn one_header_of_the_right_kind_holds_a_secret() {
        let read = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
            }
            bearer(&headers).map(|secret| secret.map(str::to_owned))
        };
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&["Bearer bb_1"]), Ok(Some("bb_1".to_owned())));
        assert_eq!(read(&["bearer  bb_1"]), Ok(Some("bb_1".to_owned())));
        for wrong in [&["Basic YTpi"][..], &["bb_1"], &["Bearer a", "Bearer b"], &[""]] {
            assert_eq!(read(wrong), Err(Refusal::bad_token()), "{wrong:?}");
        }
    }

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
