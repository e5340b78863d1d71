//! What an attached host and its peer say to each other.
//!
//! Pure. Enums and fields are append-only; the golden test holds the bytes. An answer to [`Follow`] is a head
//! ([`Followed`]) and, behind it, bytes as they are: the commands and states in it are encoded once for all
//! hosts that need them.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cluster::raft::Outcome;
use crate::cluster::raft::membership::PeersRefused;
use crate::cluster::wire::{DecodeError, EncodeError, decode, encode};
use crate::spec::HostName;

/// A place in the cluster's log: everything up to it is applied. The default is the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The index of the entry.
    pub index: u64,
    /// The term of the primary that wrote it: one index has one term in one history.
    pub term: u64,
}

/// The peers and how they are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// The index of the entry that made them so; 0: the founding, or not known.
    pub at: u64,
    /// By name: `host:port`.
    pub peers: Vec<(HostName, String)>,
}

/// How the cluster stands, as a peer tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sight {
    /// The primary; `None`: there is none, or the peer does not hear it.
    pub primary: Option<HostName>,
    /// The term of the last election.
    pub term: u64,
    /// A primary with a quorum was heard just now.
    pub quorum: bool,
}

/// The answer to [`crate::cluster::wire::Kind::Load`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// How many hosts are attached to it.
    pub hosts: u64,
    /// It belongs to a founded cluster, and its log goes on.
    pub formed: bool,
    /// How the cluster stands.
    pub sight: Sight,
    /// The peers.
    pub members: Members,
}

/// A host begins a session: the body of [`crate::cluster::wire::Kind::Attach`]. Its name is that of the handshake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Which life of the host; 0: not known yet.
    pub incarnation: u64,
    /// Which founding it knows; `None`: none yet.
    pub history: Option<u64>,
    /// It goes elsewhere when more hosts than this are attached already.
    pub most: u64,
}

/// The answer to [`Attach`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admission {
    /// The session has begun.
    Admitted {
        /// Which founding.
        history: u64,
        /// Names the session.
        session: u64,
        /// The peers.
        members: Members,
    },
    /// More hosts than it asked for are attached.
    Crowded {
        /// How many.
        hosts: u64,
    },
    /// This peer serves nobody now, and why.
    Unfit(String),
}

/// What a host has, and waits to go beyond: the body of [`crate::cluster::wire::Kind::Follow`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// [`Admission::Admitted::session`].
    pub session: u64,
    /// Which founding.
    pub history: u64,
    /// Up to where it has applied the log.
    pub have: Place,
    /// What it was told last of how the cluster stands.
    pub sight: Sight,
    /// [`Members::at`] of what it was told last.
    pub members: u64,
    /// It is in the middle of a whole state: of which place, and how many bytes it has.
    pub part: Option<(Place, u64)>,
}

/// The head of the answer to [`Follow`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// How the cluster stands.
    pub sight: Sight,
    /// The peers, when they changed.
    pub members: Option<Members>,
    /// What follows.
    pub news: News,
}

/// What comes behind the head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum News {
    /// Nothing.
    Nothing,
    /// Envelopes, one after another, as they were applied.
    Changes {
        /// Where the host is afterwards.
        to: Place,
        /// How many envelopes.
        count: u64,
    },
    /// A part of a whole state: the host begins anew with it.
    Part {
        /// Of which place the state is.
        of: Place,
        /// Bytes of all parts.
        total: u64,
        /// Where this one begins.
        offset: u64,
    },
    /// No such session: attach again.
    Gone,
}

/// The answer to a host's proposal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proposed {
    /// Applied, at this place of the log.
    Applied(Outcome, u64),
    /// No primary took it in time.
    NoPrimary,
    /// A primary was given it and did not confirm it: it may be applied later.
    Unknown,
}

/// The answer to a host's change of the peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeersChanged {
    /// Done.
    Done,
    /// The primary said no.
    Refused(PeersRefused),
    /// No primary in time; it may be carried out later.
    NoPrimary,
}

/// Why an answer to [`Follow`] cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Shorter than its own head.
    #[error("the answer is cut short")]
    Short,
    /// The head.
    #[error(transparent)]
    Head(#[from] DecodeError),
}

/// Head and bytes in one body.
pub fn seal(head: &Followed, raw: &[u8]) -> Result<Vec<u8>, EncodeError> {
    let head = encode(head)?;
    let length = u32::try_from(head.len()).map_err(|_| EncodeError::TooLarge(head.len()))?;
    Ok([&length.to_le_bytes(), &head[..], raw].concat())
}

/// The head, and the bytes behind it.
pub fn open<T: DeserializeOwned>(body: &[u8]) -> Result<(T, &[u8]), OpenError> {
    let (length, rest) = body.split_first_chunk::<4>().ok_or(OpenError::Short)?;
    let (head, raw) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or(OpenError::Short)?;
    Ok((decode(head)?, raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight() -> Sight {
        Sight { primary: "beta".parse().ok(), term: 3, quorum: true }
    }

    fn members() -> Members {
        Members { at: 9, peers: vec![("beta".parse().unwrap(), "b:1".to_owned())] }
    }

    #[test]
    fn the_bytes_of_the_messages_are_these() {
        let place = Place { index: 300, term: 2 };
        let load = Load { hosts: 7, formed: true, sight: sight(), members: members() };
        assert_eq!(encode(&load).unwrap(), b"\x07\x01\x01\x04beta\x03\x01\x09\x01\x04beta\x03b:1");
        let attach = Attach { incarnation: 5, history: Some(8), most: 2 };
        assert_eq!(encode(&attach).unwrap(), b"\x05\x01\x08\x02");
        let admitted = Admission::Admitted { history: 8, session: 4, members: members() };
        assert_eq!(encode(&admitted).unwrap(), b"\x00\x08\x04\x09\x01\x04beta\x03b:1");
        assert_eq!(encode(&Admission::Crowded { hosts: 4 }).unwrap(), b"\x01\x04");
        assert_eq!(encode(&Admission::Unfit("no".to_owned())).unwrap(), b"\x02\x02no");
        let part = Some((place, 1));
        let follow = Follow { session: 4, history: 8, have: place, sight: sight(), members: 9, part };
        let golden = b"\x04\x08\xfb\x2c\x01\x02\x01\x04beta\x03\x01\x09\x01\xfb\x2c\x01\x02\x01";
        assert_eq!(encode(&follow).unwrap(), golden);
        assert_eq!(decode::<Follow>(golden).unwrap(), follow);
        let followed = |news| Followed { sight: Sight::default(), members: None, news };
        let golden: &[(News, &[u8])] = &[
            (News::Nothing, b"\x05\0\0\0\0\0\0\0\x00raw"),
            (News::Changes { to: place, count: 2 }, b"\x0a\0\0\0\0\0\0\0\x01\xfb\x2c\x01\x02\x02raw"),
            (
                News::Part { of: place, total: 3, offset: 0 },
                b"\x0b\0\0\0\0\0\0\0\x02\xfb\x2c\x01\x02\x03\x00raw",
            ),
            (News::Gone, b"\x05\0\0\0\0\0\0\0\x03raw"),
        ];
        for (news, bytes) in golden {
            let head = followed(news.clone());
            assert_eq!(seal(&head, b"raw").unwrap(), *bytes, "{news:?}");
            assert_eq!(open::<Followed>(bytes).unwrap(), (head, &b"raw"[..]));
        }
        assert_eq!(encode(&Proposed::Applied(Outcome::Nothing, 3)).unwrap(), b"\x00\x00\x03");
        assert_eq!(encode(&Proposed::NoPrimary).unwrap(), b"\x01");
        assert_eq!(encode(&Proposed::Unknown).unwrap(), b"\x02");
        assert_eq!(encode(&PeersChanged::Refused(PeersRefused::Full)).unwrap()[0], 1);
    }

    #[test]
    fn an_answer_that_is_cut_short_is_refused() {
        for body in [&b""[..], b"\x05\0\0", b"\x05\0\0\0\0\0\0"] {
            assert!(matches!(open::<Followed>(body), Err(OpenError::Short)));
        }
        assert!(matches!(open::<Followed>(b"\x02\0\0\0\0\0"), Err(OpenError::Head(_))));
    }
}
