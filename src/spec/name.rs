//! Names of processes, hosts and instances: what is legal, how they are written and ordered.
//!
//! Pure. Used by everything; a value of these types is always a legal name. Short ones lie within the value:
//! comparing the keys of a map then follows no pointers, and a restart compares hundreds.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

/// The longest process or host name, in bytes; short enough for socket paths.
pub const MAX_NAME: usize = 32;

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Empty or too long.
    #[error("a name has 1 to {MAX_NAME} characters, this one has {0}")]
    Length(usize),
    /// A character that is not allowed.
    #[error(
        "a name holds a-z, 0-9, '-' and '_' and starts with a letter or digit; {0:?} is not allowed here"
    )]
    Character(char),
    /// A host name that could be taken for an ordinal.
    #[error("a host name must not be all digits")]
    AllDigits,
    /// Not `process.ordinal` or `process.host`.
    #[error("an instance is written process.number or process.host, as in zone.3")]
    Instance,
}

fn check(text: &str) -> Result<(), InvalidName> {
    if text.is_empty() || text.len() > MAX_NAME {
        return Err(InvalidName::Length(text.chars().count()));
    }
    for (at, c) in text.char_indices() {
        let legal = c.is_ascii_lowercase() || c.is_ascii_digit() || (at > 0 && (c == '-' || c == '_'));
        if !legal {
            return Err(InvalidName::Character(c));
        }
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(SmolStr);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.into()
            }
        }
    };
}

name_type! {
    /// The name of a declared process: `zone`.
    ProcessName
}

name_type! {
    /// The name of a host, unique in the cluster: `alpha`.
    HostName
}

name_type! {
    /// The name of a token of the API: `deploy`.
    TokenName
}

impl FromStr for TokenName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        check(text)?;
        Ok(TokenName(text.into()))
    }
}

impl FromStr for ProcessName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        check(text)?;
        Ok(ProcessName(text.into()))
    }
}

impl HostName {
    /// No legal name comes after it: the upper bound of a range over hosts.
    pub fn last() -> HostName {
        HostName("z".repeat(MAX_NAME).into())
    }
}

impl FromStr for HostName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        check(text)?;
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(InvalidName::AllDigits);
        }
        Ok(HostName(text.into()))
    }
}

/// What tells the instances of one process apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum InstanceKey {
    /// An ordinal (`count`) or a counter (`on_demand`).
    Number(u64),
    /// The host of a `per_host` instance.
    Host(HostName),
}

/// One copy of a process: `zone.3`, `logd.alpha`, `dungeon.1042`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId {
    /// The process it is a copy of.
    pub process: ProcessName,
    /// Which copy.
    pub key: InstanceKey,
}

impl InstanceId {
    /// The instance with this ordinal or counter.
    pub fn numbered(process: ProcessName, number: u64) -> Self {
        InstanceId { process, key: InstanceKey::Number(number) }
    }

    /// The instance of a `per_host` process on this host.
    pub fn on_host(process: ProcessName, host: HostName) -> Self {
        InstanceId { process, key: InstanceKey::Host(host) }
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            InstanceKey::Number(n) => f.pad(&format!("{}.{n}", self.process)),
            InstanceKey::Host(h) => f.pad(&format!("{}.{h}", self.process)),
        }
    }
}

impl FromStr for InstanceId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (process, key) = text.split_once('.').ok_or(InvalidName::Instance)?;
        let process = process.parse()?;
        let digits = !key.is_empty() && key.bytes().all(|b| b.is_ascii_digit());
        let key = if digits {
            // "03" would be a second spelling of "3".
            if key.len() > 1 && key.starts_with('0') {
                return Err(InvalidName::Instance);
            }
            InstanceKey::Number(key.parse().map_err(|_| InvalidName::Instance)?)
        } else {
            InstanceKey::Host(key.parse()?)
        };
        Ok(InstanceId { process, key })
    }
}

impl TryFrom<String> for InstanceId {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> String {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_written_and_read_alike() {
        for text in ["zone.3", "logd.alpha", "dungeon.1042", "a-b_c.0"] {
            assert_eq!(text.parse::<InstanceId>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn illegal_names_are_refused_with_the_reason() {
        assert_eq!("".parse::<ProcessName>(), Err(InvalidName::Length(0)));
        assert_eq!("Zone".parse::<ProcessName>(), Err(InvalidName::Character('Z')));
        assert_eq!("-zone".parse::<ProcessName>(), Err(InvalidName::Character('-')));
        assert_eq!("a/b".parse::<ProcessName>(), Err(InvalidName::Character('/')));
        assert_eq!("12".parse::<HostName>(), Err(InvalidName::AllDigits));
        assert_eq!("zone".parse::<InstanceId>(), Err(InvalidName::Instance));
        assert_eq!("zone.03".parse::<InstanceId>(), Err(InvalidName::Instance));
        assert_eq!("x".repeat(33).parse::<HostName>(), Err(InvalidName::Length(33)));
    }

    #[test]
    fn no_legal_host_name_comes_after_the_last() {
        for text in ["z", "a-b_c", "zz9", &"z".repeat(MAX_NAME)] {
            assert!(text.parse::<HostName>().unwrap() <= HostName::last(), "{text}");
        }
        assert!(HostName::last().as_str().parse::<HostName>().is_ok());
        let greatest =
            (0..=127u8).map(char::from).filter(|c| c.to_string().parse::<ProcessName>().is_ok()).max();
        assert_eq!(greatest, Some('z'));
    }

    #[test]
    fn ordinals_are_ordered_as_numbers() {
        let mut ids: Vec<InstanceId> =
            ["z.10", "z.9", "z.alpha"].iter().map(|t| t.parse().unwrap()).collect();
        ids.sort();
        assert_eq!(ids.iter().map(ToString::to_string).collect::<Vec<_>>(), ["z.9", "z.10", "z.alpha"]);
    }
}
