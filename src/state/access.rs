//! Who may ask what of the API: its tokens.
//!
//! Owns [`State::api_tokens`] and its bound. Holds only what a secret hashes to; secrets are made and compared by
//! `http::auth`, which also looks at the clock: what has expired is of no use there long before it is forgotten here.
//! Called as commands are applied.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Rejected, Response, State};
use crate::spec::TokenName;

/// Tokens at once.
pub const MAX_TOKENS: usize = 1_000;
/// How long a token is remembered that has expired, milliseconds: so long it is seen in the list why it is of no use.
pub const FORGET_TOKEN_MS: u64 = 7 * 24 * 3_600_000;

/// What somebody may do. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look.
    Read,
    /// And change what runs of what is declared.
    Operate,
    /// And declare what runs, on which hosts, for whom.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 3] = [Role::Read, Role::Operate, Role::Admin];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Read => "read",
            Role::Operate => "operate",
            Role::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Not a role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role: it is one of read, operate, admin")]
pub struct NoRole(String);

impl FromStr for Role {
    type Err = NoRole;

    fn from_str(text: &str) -> Result<Role, NoRole> {
        Role::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| NoRole(text.to_owned()))
    }
}

/// A token of the API, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiToken {
    /// What it is good for.
    pub role: Role,
    /// The SHA-256 of its secret.
    pub hash: [u8; 32],
    /// When it was made, milliseconds since 1970.
    pub created_ms: u64,
    /// From when on it is good for nothing, milliseconds since 1970; `None`: it does not expire.
    pub expires_ms: Option<u64>,
}

impl ApiToken {
    /// True while it is good for something.
    pub fn holds(&self, now_ms: u64) -> bool {
        self.expires_ms.is_none_or(|expires_ms| now_ms < expires_ms)
    }
}

impl State {
    pub(super) fn create_token(
        &mut self,
        name: &TokenName,
        role: Role,
        hash: [u8; 32],
        expires_ms: Option<u64>,
    ) -> Result<Response, Rejected> {
        match self.api_tokens.get(name) {
            Some(token) if (token.role, token.hash, token.expires_ms) == (role, hash, expires_ms) => {
                return Ok(Response::Done);
            }
            Some(_) => return Err(Rejected::TokenExists(name.clone())),
            None if self.api_tokens.len() >= MAX_TOKENS => return Err(Rejected::TooManyTokens),
            None => {}
        }
        let token = ApiToken { role, hash, created_ms: self.now_ms, expires_ms };
        self.api_tokens.insert(name.clone(), token);
        Ok(Response::Done)
    }

    pub(super) fn revoke_token(&mut self, name: &TokenName) -> Result<Response, Rejected> {
        self.api_tokens.remove(name).ok_or_else(|| Rejected::NoToken(name.clone()))?;
        Ok(Response::Done)
    }

    /// Drops tokens that expired long ago.
    pub(super) fn forget_tokens(&mut self) {
        let now_ms = self.now_ms;
        self.api_tokens.retain(|_, token| {
            token.expires_ms.is_none_or(|expired| now_ms.saturating_sub(expired) < FORGET_TOKEN_MS)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Command, Envelope, check};

    fn take(state: &mut State, stamp_ms: u64, command: Command) -> Result<Response, Rejected> {
        let taken = state.apply(&Envelope { stamp_ms, command });
        assert_eq!(check::violations(state), []);
        taken
    }

    fn create(name: &str, role: Role, expires_ms: Option<u64>) -> Command {
        Command::TokenCreate { name: name.parse().unwrap(), role, hash: [7; 32], expires_ms }
    }

    #[test]
    fn a_token_is_made_once_and_gone_when_it_is_revoked() {
        let mut state = State::default();
        take(&mut state, 5, create("deploy", Role::Admin, None)).unwrap();
        let token = state.api_tokens.values().next().unwrap().clone();
        assert_eq!((token.role, token.created_ms), (Role::Admin, 5));
        // The same once more, as a proposer that got no answer asks, changes nothing; another one is refused.
        take(&mut state, 6, create("deploy", Role::Admin, None)).unwrap();
        assert_eq!(state.api_tokens.values().next(), Some(&token));
        let name = "deploy".parse().unwrap();
        let other = take(&mut state, 6, create("deploy", Role::Read, None));
        assert_eq!(other, Err(Rejected::TokenExists("deploy".parse().unwrap())));
        take(&mut state, 7, Command::TokenRevoke { name }).unwrap();
        assert!(state.api_tokens.is_empty());
        let again = take(&mut state, 8, Command::TokenRevoke { name: "deploy".parse().unwrap() });
        assert_eq!(again, Err(Rejected::NoToken("deploy".parse().unwrap())));
    }

    #[test]
    fn tokens_are_bounded_and_those_that_expired_are_forgotten_in_the_end() {
        let mut state = State::default();
        for number in 0..MAX_TOKENS {
            take(&mut state, 1, create(&format!("t{number}"), Role::Read, Some(1_000))).unwrap();
        }
        assert_eq!(take(&mut state, 1, create("more", Role::Read, None)), Err(Rejected::TooManyTokens));
        let token = state.api_tokens.values().next().unwrap().clone();
        assert!(token.holds(999) && !token.holds(1_000));
        take(&mut state, 1_000 + FORGET_TOKEN_MS - 60_000, create("t0", Role::Read, Some(1_000))).unwrap();
        assert_eq!(state.api_tokens.len(), MAX_TOKENS);
        take(&mut state, 1_000 + FORGET_TOKEN_MS + 60_000, create("more", Role::Read, None)).unwrap();
        assert_eq!(state.api_tokens.len(), 1);
    }

    #[test]
    fn each_role_includes_those_before_it_and_is_read_as_it_is_written() {
        assert!(Role::Read < Role::Operate && Role::Operate < Role::Admin);
        assert!(Role::ALL.into_iter().all(|role| role.to_string().parse() == Ok(role)));
        assert!("root".parse::<Role>().is_err());
    }
}
