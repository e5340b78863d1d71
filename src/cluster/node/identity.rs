//! Who this peer is: its number, and the founding of the cluster that it belongs to.
//!
//! Owns the record in the log's file. A number is bound to the disk that holds the votes given under it: a
//! disk without a record is a newcomer, whatever its host was before. Before a host has a number it has a
//! random token, made with its disk; a founder lists the tokens it heard, and only whoever still has its
//! token takes the seat meant for it. So a host whose disk was lost can never vote twice. [`decide`] is pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cluster::raft::membership::founders;
use crate::cluster::raft::{Peer, PeerId};
use crate::spec::HostName;

/// The record on disk. Append-only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Identity {
    /// No number yet.
    Fresh {
        /// Made with the disk.
        token: u64,
    },
    /// A peer.
    Peer {
        /// Its number.
        id: PeerId,
        /// Which founding; random.
        history: u64,
        /// If it was there: the first members.
        founding: Option<Founding>,
    },
}

/// The first members of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founding {
    /// Random; tells two clusters of one name apart.
    pub history: u64,
    /// By number.
    pub members: BTreeMap<PeerId, Founder>,
}

/// A seat at the founding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founder {
    /// Whose.
    pub peer: Peer,
    /// Of the disk that may take it; `None`: a record of a build that founded without this host.
    pub token: Option<u64>,
}

/// What a host answers to one that looks around.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// Its record.
    pub identity: Identity,
    /// The peers of its file.
    pub peers: BTreeMap<HostName, String>,
}

/// What a host without a number does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Takes the seat that was kept for it.
    Take(PeerId, Founding),
    /// Asks one of these for a number.
    Join(Vec<HostName>),
    /// Founds the cluster.
    Found(Founding),
    /// Asks again later; says why.
    Wait(String),
    /// The same, since this host founds the cluster, and it has not done so yet.
    Await(HostName),
}

impl Founding {
    /// The members as Raft wants them.
    pub fn peers(&self) -> BTreeMap<PeerId, Peer> {
        self.members.iter().map(|(id, founder)| (*id, founder.peer.clone())).collect()
    }

    /// Whoever is to found the cluster, with the number that its seat has.
    pub fn first(&self) -> Option<(PeerId, &Founder)> {
        self.members.first_key_value().map(|(id, founder)| (*id, founder))
    }

    /// Has the disk of whoever was to found the cluster been lost since? Then nobody founds this one any more.
    pub fn has_lost_its_founder(&self, founder: &Probed) -> bool {
        let kept = self.first().and_then(|(_, first)| first.token);
        matches!((kept, &founder.identity), (Some(kept), Identity::Fresh { token }) if *token != kept)
    }

    fn seat(&self, host: &HostName, token: u64) -> Option<PeerId> {
        let mine = |founder: &Founder| founder.peer.name == host.as_str() && founder.token == Some(token);
        self.members.iter().find(|(_, founder)| mine(founder)).map(|(id, _)| *id)
    }
}

/// What a host without a number does next, by what the other peers of its file answered.
///
/// Only the first of the founding peers founds, and only when every peer of the file answers that it has no number
/// either. A majority would not do: the only disk that knows of a cluster may be that of a host which does not answer
/// yet, as after `recover`. `history` is random.
pub fn decide(
    host: &HostName,
    token: u64,
    peers: &BTreeMap<HostName, String>,
    heard: &BTreeMap<HostName, Probed>,
    history: u64,
) -> Decision {
    let mut formed = Vec::new();
    let mut tokens = BTreeMap::from([(host, token)]);
    for (name, probed) in heard {
        match &probed.identity {
            Identity::Fresh { token } => drop(tokens.insert(name, *token)),
            Identity::Peer { founding, .. } => {
                let seat =
                    founding.as_ref().and_then(|founding| Some((founding.seat(host, token)?, founding)));
                if let Some((id, founding)) = seat {
                    return Decision::Take(id, founding.clone());
                }
                formed.push(name.clone());
            }
        }
    }
    if !formed.is_empty() {
        return Decision::Join(formed);
    }
    if let Some((name, _)) = heard.iter().find(|(_, probed)| probed.peers != *peers) {
        return Decision::Wait(format!("`peers` in the cluster.toml of {name} differ from those of {host}"));
    }
    let founders = founders(peers);
    if let Some(first) = founders.keys().next().filter(|first| **first != *host) {
        return Decision::Await(first.clone());
    }
    let missing: Vec<&str> = peers.keys().filter(|n| !tokens.contains_key(n)).map(HostName::as_str).collect();
    if !missing.is_empty() {
        return Decision::Wait(format!(
            "the cluster is founded once all its peers answer; missing: {}. Start them, or leave them out of `peers` in \
             every cluster.toml for now",
            missing.join(", ")
        ));
    }
    let seat = |(number, (name, address)): (u64, (&HostName, &String))| {
        let peer = Peer { name: name.to_string(), address: address.clone() };
        (number, Founder { peer, token: tokens.get(name).copied() })
    };
    Decision::Found(Founding { history, members: (1..).zip(&founders).map(seat).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    fn peers() -> BTreeMap<HostName, String> {
        ["alpha", "beta", "gamma"].map(|host| (name(host), format!("{host}:1"))).into()
    }

    fn fresh(host: &str, token: u64) -> (HostName, Probed) {
        (name(host), Probed { identity: Identity::Fresh { token }, peers: peers() })
    }

    fn member(host: &str, founding: Option<Founding>) -> (HostName, Probed) {
        let identity = Identity::Peer { id: 2, history: 9, founding };
        (name(host), Probed { identity, peers: peers() })
    }

    fn asked<const N: usize>(host: &str, heard: [(HostName, Probed); N]) -> Decision {
        decide(&name(host), 11, &peers(), &heard.into(), 9)
    }

    fn founding() -> Founding {
        match asked("alpha", [fresh("beta", 22), fresh("gamma", 33)]) {
            Decision::Found(founding) => founding,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_peer_founds_when_all_are_there() {
        let tokens: Vec<_> =
            founding().members.into_iter().map(|(id, f)| (id, f.peer.name, f.token)).collect();
        let all = [(1, "alpha", 11), (2, "beta", 22), (3, "gamma", 33)];
        assert_eq!(tokens, all.map(|(id, host, token)| (id, host.to_owned(), Some(token))));
        for heard in [vec![fresh("alpha", 1), fresh("gamma", 33)], vec![fresh("gamma", 33)], vec![]] {
            let decision = decide(&name("beta"), 22, &peers(), &heard.into_iter().collect(), 9);
            assert_eq!(decision, Decision::Await(name("alpha")));
        }
    }

    /// Whoever is not heard may be the one that has the cluster's state.
    #[test]
    fn nobody_founds_without_a_peer_of_the_file_whether_it_would_vote_or_not() {
        let waits = |decision: Decision, missing: &str| {
            let Decision::Wait(why) = decision else { panic!("{decision:?}") };
            assert!(why.contains(&format!("missing: {missing}.")), "{why}");
        };
        waits(asked("alpha", []), "beta, gamma");
        waits(asked("alpha", [fresh("beta", 22)]), "gamma");
        // Of two only the first founds and votes.
        let two = [("alpha", "alpha:1"), ("beta", "beta:1")];
        let two = two.map(|(host, address)| (name(host), address.to_owned())).into();
        waits(decide(&name("alpha"), 11, &two, &BTreeMap::new(), 9), "beta");
        let beta = Probed { identity: Identity::Fresh { token: 22 }, peers: two.clone() };
        let heard = [(name("beta"), beta)].into();
        let Decision::Found(founding) = decide(&name("alpha"), 11, &two, &heard, 9) else { panic!() };
        assert_eq!(founding.members.keys().collect::<Vec<_>>(), [&1]);
    }

    #[test]
    fn only_the_disk_that_was_there_takes_its_seat() {
        let heard = || [member("alpha", Some(founding()))];
        let decision = decide(&name("beta"), 22, &peers(), &heard().into(), 0);
        assert_eq!(decision, Decision::Take(2, founding()));
        // The same host with another disk.
        let decision = decide(&name("beta"), 23, &peers(), &heard().into(), 0);
        assert_eq!(decision, Decision::Join(vec![name("alpha")]));
    }

    #[test]
    fn a_founder_has_lost_its_disk_when_it_has_another_one_and_no_number() {
        let lost = |founder: (HostName, Probed)| founding().has_lost_its_founder(&founder.1);
        assert!(lost(fresh("alpha", 12)));
        assert!(!lost(fresh("alpha", 11)), "it is about to write its number down");
        assert!(!lost(member("alpha", Some(founding()))) && !lost(member("alpha", None)));
    }

    #[test]
    fn a_wiped_first_peer_does_not_found_again() {
        assert_eq!(
            asked("alpha", [member("beta", None), fresh("gamma", 33)]),
            Decision::Join(vec![name("beta")])
        );
    }

    #[test]
    fn files_that_differ_are_told_of() {
        let (host, mut probed) = fresh("beta", 22);
        probed.peers.remove(&name("gamma"));
        let Decision::Wait(why) = asked("alpha", [(host, probed), fresh("gamma", 33)]) else { panic!() };
        assert!(why.contains("cluster.toml of beta differ"), "{why}");
    }

    #[test]
    fn a_host_alone_founds_at_once() {
        let alone = [(name("alpha"), "alpha:1".to_owned())].into();
        let decision = decide(&name("alpha"), 11, &alone, &BTreeMap::new(), 9);
        assert!(matches!(decision, Decision::Found(founding) if founding.members.len() == 1));
    }
}
