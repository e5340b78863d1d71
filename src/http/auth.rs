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

mod asker;

use std::net::IpAddr;
use std::time::Instant;

use axum::body::HttpBody;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use subtle::ConstantTimeEq;

use super::audit;
use super::pace::Pace;
use super::problem::Refusal;
use super::rights;
use super::router::{self, Api};
use crate::agent::replica::wall_ms;
use crate::cluster::wire::hall::neighbourhood;
use crate::spec::TokenName;
use crate::state::{self, ApiToken, Role};
use asker::{ASKING, Asker, vouched};
pub(super) use asker::{Badge, CALLER, Caller, Origin, asking, on_behalf};

/// By this a secret is known for one, by people and by programs that look for secrets where none belong.
const PREFIX: &str = "bb_";

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

/// Whoever asks, with what it may do; no role: nothing.
struct Admitted {
    asker: Asker,
    role: Option<Role>,
}

/// Whose share something is. What monitoring reads is one apart: on plain loopback all are one address, and who reads
/// many lists there takes nothing of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Share {
    of: Reader,
    monitoring: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reader {
    Token(TokenName),
    Address(IpAddr),
}

/// How often what may be asked.
pub(super) struct Gate {
    /// Without a token that holds, of each address.
    strangers: Pace<IpAddr>,
    /// Changes, of each token.
    changes: Pace<TokenName>,
    /// What lists and the like have given, in pieces of [`PIECE`].
    given: Pace<Share>,
}

/// What is asked for every few seconds, whatever else goes on.
const MONITORING: [&str; 2] = ["/metrics", "/v1/prometheus/targets"];

/// What counts as one, in bytes: an answer that has less counts as much.
const PIECE: u64 = 4 << 10;

impl Gate {
    /// `given`: so many pieces at once, and so many a second.
    pub(super) fn new((at_once, a_second): (u32, u32)) -> Gate {
        let given = Pace::new(at_once, a_second);
        Gate { strangers: Pace::new(50, 10), changes: Pace::new(100, 50), given }
    }
}

/// Answers in place of the route unless the caller may.
pub(super) async fn admit(api: &Api, request: Request, next: Next) -> Response {
    let changes = !request.method().is_safe();
    let Some(origin) = request.extensions().get::<Origin>().cloned() else {
        return Refusal::internal("a request came from nowhere".to_owned()).into_response();
    };
    let admitted = api.identify(&origin, request.headers());
    let judged = match &admitted {
        Ok(admitted) => api.judge(&origin, admitted, &request),
        Err(refusal) => Err(refusal.clone()),
    };
    let asker = match admitted {
        Ok(Admitted { asker, .. }) => asker,
        Err(_) => Asker::Came(origin, None),
    };
    match judged {
        Err(refusal) => {
            api.handle.audit.refused(&api.handle.host, &asker.caller(), &request, &refusal);
            let allowed =
                request.extensions().get::<MatchedPath>().map(|path| rights::allowed(path.as_str()));
            let mut response = refusal.into_response();
            let wrong_method = response.status() == axum::http::StatusCode::METHOD_NOT_ALLOWED;
            if let Some(allowed) = allowed.and_then(|allowed| allowed.parse().ok()).filter(|_| wrong_method) {
                response.headers_mut().insert(header::ALLOW, allowed);
            }
            response
        }
        Ok(()) if changes => ASKING.scope(asker, audit::recorded(api.clone(), request, next)).await,
        Ok(()) => {
            let share = share(&asker, &request);
            let response = ASKING.scope(asker, router::answer(api, request, next)).await;
            if let Some(share) = share {
                let size = response.body().size_hint().exact().unwrap_or_default();
                api.gate.given.charge(
                    &share,
                    u32::try_from(size / PIECE + 1).unwrap_or(u32::MAX),
                    Instant::now(),
                );
            }
            response
        }
    }
}

/// Whose share an answer is of: of those that may be large, over TCP. One that is about one thing alone is small.
fn share(asker: &Asker, request: &Request) -> Option<Share> {
    let path = request.extensions().get::<MatchedPath>()?.as_str();
    let large = !path.contains('{') && path != rights::OPEN;
    let of = match asker {
        Asker::Came(Origin::Tcp { .. }, Some(token)) if large => Reader::Token(token.clone()),
        Asker::Came(Origin::Tcp { address, .. }, None) if large => Reader::Address(neighbourhood(*address)),
        _ => return None,
    };
    Some(Share { of, monitoring: MONITORING.contains(&path) })
}

impl Api {
    fn identify(&self, origin: &Origin, headers: &HeaderMap) -> Result<Admitted, Refusal> {
        let (address, least, badge) = match origin {
            Origin::Unix { .. } => return Ok(admin(Asker::Came(origin.clone(), None))),
            Origin::Host(host) => return Ok(admin(Asker::Named(vouched(host, headers)))),
            Origin::Tcp { address, tls, badge } => (*address, (!tls).then_some(Role::Read), badge),
        };
        let Some(secret) = bearer(headers)? else {
            return Ok(Admitted { asker: Asker::Came(origin.clone(), None), role: least });
        };
        let state = self.handle.state.borrow().clone();
        let Some((name, token)) = known(&state, secret, wall_ms()) else {
            return Err(self.unless_too_often(address, Refusal::bad_token()));
        };
        badge.show(name, token);
        Ok(Admitted { asker: Asker::Came(origin.clone(), Some(name.clone())), role: Some(token.role) })
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
            (Some(has), needed) if admitted.asker.token().is_some() => {
                return Err(Refusal::role(needed, has));
            }
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
        if share(&admitted.asker, request).is_some_and(|share| self.gate.given.owes(&share, Instant::now())) {
            return Err(Refusal::too_often("more bytes of lists than are given in that time"));
        }
        let changes = admitted.asker.token().filter(|_| *request.method() != Method::GET);
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

fn admin(asker: Asker) -> Admitted {
    Admitted { asker, role: Some(Role::Admin) }
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
}
