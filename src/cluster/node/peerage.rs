//! Whom this host hears as a peer: a certificate of the cluster makes nobody one.
//!
//! Owns nothing. Asked by `service` at each handshake and again at each request, since peers come and go while their
//! connections last.

use std::collections::BTreeMap;

use openraft::async_runtime::watch::WatchReceiver;

use super::Shared;
use super::identity::Identity;
use crate::cluster::raft::Peer;
use crate::cluster::raft::change::Roll;
use crate::cluster::wire::Peerage;
use crate::spec::HostName;

/// All that says who is a peer.
struct Register<'a> {
    /// The peers of this host's log, and those of what it has applied: a primary that takes itself out is heard until
    /// it has said that this is done.
    members: &'a [Peer],
    roll: &'a Roll,
    /// Those of the file. A follower that was away may know a new primary from there only.
    file: &'a BTreeMap<HostName, String>,
    /// A newcomer that was given a number, and nothing yet: its file need not name who is the primary now.
    newcomer: bool,
}

impl Register<'_> {
    fn of(&self, host: &HostName) -> Peerage {
        let named = |peer: &Peer| peer.name == host.as_str();
        let known = self.file.contains_key(host)
            || self.roll.expected.contains_key(host)
            || self.roll.pending.values().chain(self.members).any(named);
        match known {
            true => Peerage::Peer,
            false if self.newcomer && self.members.is_empty() => Peerage::Unproven,
            false => Peerage::Stranger,
        }
    }
}

impl Shared {
    /// What the host is by all that is known here.
    pub(super) fn peerage(&self, host: &HostName) -> Peerage {
        let newcomer = matches!(*self.identity.borrow(), Identity::Peer { founding: None, .. });
        let applied = self.applies.borrow().clone();
        let mut members: Vec<Peer> =
            applied.membership.membership().nodes().map(|(_, peer)| peer.clone()).collect();
        if let Some(raft) = self.raft() {
            let metrics = raft.metrics();
            let metrics = metrics.borrow_watched();
            members.extend(metrics.membership_config.membership().nodes().map(|(_, peer)| peer.clone()));
        }
        let file = &self.settings.peers;
        Register { members: &members, roll: &applied.roll, file, newcomer }.of(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_whoever_the_log_the_roll_or_the_file_names() {
        let name = |text: &str| text.parse::<HostName>().unwrap();
        let peer = |text: &str| Peer { name: text.to_owned(), address: String::new() };
        let mut roll = Roll::default();
        roll.expected.insert(name("delta"), String::new());
        roll.hand_out(&name("epsilon"), "");
        let file = [(name("alpha"), String::new())].into();
        let of = |members: &[Peer], newcomer, host: &str| {
            Register { members, roll: &roll, file: &file, newcomer }.of(&name(host))
        };
        let members = [peer("beta")];
        for host in ["alpha", "beta", "delta", "epsilon"] {
            assert_eq!(of(&members, false, host), Peerage::Peer, "{host}");
        }
        assert_eq!(of(&members, true, "omega"), Peerage::Stranger);
        assert_eq!(of(&[], false, "omega"), Peerage::Stranger);
        assert_eq!(of(&[], true, "omega"), Peerage::Unproven);
    }
}
