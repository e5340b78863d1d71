//! What an entry of the log says, what comes of it, and the parts of the replicated state that are about the
//! peers themselves.
//!
//! Owns the handing out of peer numbers and the memory of what was applied already. Pure; called by
//! `machine`. Enums are append-only: the position is the tag in the log.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Peer, PeerId};
use crate::spec::HostName;
use crate::state::{Command, Envelope, Rejected, Response};

/// Outcomes are remembered for so long by the time of the state, for a proposer that asks again. It may do so for some
/// seconds, in which a new primary's clock may move that time on by a minute.
const REMEMBERED_MS: u64 = 120_000;
/// As many are remembered whatever their age: that time may jump.
const FEWEST: usize = 1024;
/// And no more than so many: five seconds of 13,000 changes each.
const MOST: usize = 65_536;

/// One change. Append-only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Of the cluster's state; the command itself is guarded against being applied twice.
    State(Arc<Envelope>),
    /// Of the cluster's state, at most once for this key however often it is proposed.
    Once {
        /// Who proposes and which of its proposals: random per life of the proposer, then counted.
        key: (u64, u64),
        /// The command.
        envelope: Arc<Envelope>,
    },
    /// A new number for a host that is about to become a peer.
    HandOut {
        /// The host.
        host: HostName,
        /// `host:port`.
        address: String,
    },
    /// The host may become a peer although it is not in the founders' file.
    Expect {
        /// The host.
        host: HostName,
        /// `host:port`.
        address: String,
    },
    /// The host may not become a peer (again).
    Forget {
        /// The host.
        host: HostName,
    },
}

impl Change {
    /// A command on its way, safe to be asked for again under the same key.
    pub fn of(envelope: Arc<Envelope>, key: (u64, u64)) -> Change {
        match envelope.command {
            // Guarded by their sequence numbers; there are many of them.
            Command::Events { .. } | Command::Inventory { .. } => Change::State(envelope),
            _ => Change::Once { key, envelope },
        }
    }

    /// The same, stamped anew: the state takes the latest stamp for its time, so another host's clock is not to be asked.
    pub fn stamped(mut self, now_ms: u64) -> Change {
        if let Change::State(envelope) | Change::Once { envelope, .. } = &mut self {
            Arc::make_mut(envelope).stamp_ms = now_ms;
        }
        self
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::State(_) => f.write_str("state"),
            Change::Once { key, .. } => write!(f, "once {:x}.{}", key.0, key.1),
            Change::HandOut { host, .. } => write!(f, "hand out a number to {host}"),
            Change::Expect { host, .. } => write!(f, "expect {host}"),
            Change::Forget { host } => write!(f, "forget {host}"),
        }
    }
}

/// What came of an entry. Append-only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Nothing that anybody waits for.
    Nothing,
    /// Of a command.
    State(Result<Response, Rejected>),
    /// The number that was handed out.
    Number(PeerId),
}

/// The peers' own part of the replicated state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roll {
    /// The next number; only grows.
    next: PeerId,
    /// Handed out, and not among the peers yet.
    pub pending: BTreeMap<PeerId, Peer>,
    /// Hosts that may become peers beside those of the file.
    pub expected: BTreeMap<HostName, String>,
}

impl Roll {
    /// A number that nobody has had. An older number that the host never used is void.
    pub fn hand_out(&mut self, host: &HostName, address: &str) -> PeerId {
        self.pending.retain(|_, peer| peer.name != host.as_str());
        let id = self.next.max(1);
        self.next = id + 1;
        self.pending.insert(id, Peer { name: host.to_string(), address: address.to_owned() });
        id
    }

    /// True when the host was added, or has a number, and is no peer yet.
    pub fn knows(&self, host: &HostName) -> bool {
        self.expected.contains_key(host) || self.pending.values().any(|peer| peer.name == host.as_str())
    }

    /// These are the peers now.
    pub fn take_note(&mut self, peers: impl IntoIterator<Item = PeerId>) {
        let peers: BTreeSet<PeerId> = peers.into_iter().collect();
        self.next = self.next.max(peers.last().map_or(1, |last| last + 1));
        self.pending.retain(|id, _| !peers.contains(id));
    }
}

/// The last outcomes of [`Change::Once`], oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recent {
    outcomes: BTreeMap<(u64, u64), Outcome>,
    /// With the time of the state when each was applied.
    order: VecDeque<((u64, u64), u64)>,
}

impl Recent {
    /// What came of it, if it was applied already.
    pub fn outcome(&self, key: (u64, u64)) -> Option<&Outcome> {
        self.outcomes.get(&key)
    }

    /// It was applied, at this time of the state.
    pub fn remember(&mut self, key: (u64, u64), outcome: Outcome, now_ms: u64) {
        self.outcomes.insert(key, outcome);
        self.order.push_back((key, now_ms));
        while let Some((oldest, at_ms)) = self.order.front()
            && self.order.len() > FEWEST
            && (self.order.len() > MOST || now_ms.saturating_sub(*at_ms) >= REMEMBERED_MS)
        {
            self.outcomes.remove(oldest);
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::wire::{decode, encode};
    use super::*;
    use crate::state::Target;

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    #[test]
    fn a_number_is_given_once() {
        let mut roll = Roll::default();
        roll.take_note([1, 2, 3]);
        assert_eq!(roll.hand_out(&name("delta"), "d:1"), 4);
        assert_eq!(roll.hand_out(&name("delta"), "d:1"), 5);
        assert_eq!(roll.pending.keys().copied().collect::<Vec<_>>(), [5], "the unused number is void");
        roll.take_note([1, 2, 5]);
        assert!(roll.pending.is_empty());
        roll.take_note([1, 2]);
        assert_eq!(roll.hand_out(&name("gamma"), "g:1"), 6, "the number of one that left is not given again");
    }

    #[test]
    fn only_who_takes_a_change_says_what_time_it_is() {
        let envelope =
            |stamp_ms| Arc::new(Envelope { stamp_ms, command: Command::Pause { target: Target::All } });
        let once = |stamp_ms| Change::Once { key: (1, 2), envelope: envelope(stamp_ms) };
        for stamp in [4, 5, u64::MAX] {
            assert_eq!(Change::State(envelope(stamp)).stamped(5), Change::State(envelope(5)));
            assert_eq!(once(stamp).stamped(5), once(5));
        }
        let forget = Change::Forget { host: name("delta") };
        assert_eq!(forget.clone().stamped(5), forget);
    }

    #[test]
    fn outcomes_are_remembered_for_a_time_but_not_without_bound() {
        let filled = |count: usize, at_ms: u64| {
            let mut recent = Recent::default();
            (0..count as u64).for_each(|number| recent.remember((7, number), Outcome::Number(number), at_ms));
            recent
        };
        let held = |recent: &Recent, count: usize| {
            assert_eq!((recent.outcomes.len(), recent.order.len()), (count, count));
            recent.outcomes.keys().next().map(|key| key.1)
        };
        // Many in a short time are all remembered, whoever is among them asks again.
        let mut recent = filled(5_000, 1_000);
        recent.remember((7, 5_000), Outcome::Nothing, 999 + REMEMBERED_MS);
        assert_eq!(held(&recent, 5_001), Some(0));
        assert_eq!(recent.outcome((7, 0)), Some(&Outcome::Number(0)));
        // Later only the last ones.
        recent.remember((7, 5_001), Outcome::Nothing, 1_000 + REMEMBERED_MS);
        assert_eq!(held(&recent, FEWEST), Some(5_002 - FEWEST as u64));
        assert_eq!(recent.outcome((7, 0)), None);
        let recent = filled(MOST + 3, 1_000);
        assert_eq!(held(&recent, MOST), Some(3));
    }

    #[test]
    fn the_bytes_of_the_changes_are_these() {
        let envelope = || Arc::new(Envelope { stamp_ms: 5, command: Command::Pause { target: Target::All } });
        let golden: &[(Change, &[u8])] = &[
            (Change::State(envelope()), b"\x00\x05\x02\x00"),
            (Change::Once { key: (1, 2), envelope: envelope() }, b"\x01\x01\x02\x05\x02\x00"),
            (Change::HandOut { host: name("delta"), address: "d:1".into() }, b"\x02\x05delta\x03d:1"),
            (Change::Expect { host: name("delta"), address: "d:1".into() }, b"\x03\x05delta\x03d:1"),
            (Change::Forget { host: name("delta") }, b"\x04\x05delta"),
        ];
        for (change, bytes) in golden {
            assert_eq!(encode(change).unwrap(), *bytes, "{change}");
            assert_eq!(decode::<Change>(bytes).unwrap(), *change);
        }
    }
}
