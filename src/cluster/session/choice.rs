//! Which peer a host attaches to, and when it leaves one.
//!
//! Pure: loads, latencies and chance come in. The least loaded peer is taken; what a peer says of its load is
//! old as soon as many hosts ask at once, so a host also says how much it bears ([`bearable`]) and is sent on
//! when the peer has more by then. Called by `search` and `pulse`.

use std::cmp::Reverse;
use std::time::Duration;

use super::message::Load;
use crate::config::cluster::ATTACH_JITTER;
use crate::spec::HostName;
use crate::spec::fingerprint::fnv1a;

/// As many peers are asked for their load at most: the least loaded of a few is good enough, and all of 16
/// would be asked by all hosts at once when one of them dies.
pub const ASKED: usize = 5;
/// An answer that took longer than this, and much longer than another one, is of a peer to be avoided.
const SLOW: Duration = Duration::from_millis(400);

/// A peer that answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Heard {
    /// Which.
    pub peer: HostName,
    /// How long it took to answer.
    pub latency: Duration,
    /// What it said.
    pub load: Load,
}

/// What counts before the load: a quorum, not the one that was left just now, and not a slow one.
fn merit(heard: &[Heard], one: &Heard, left: Option<&HostName>) -> (bool, bool, bool) {
    let quickest = heard.iter().map(|heard| heard.latency).min().unwrap_or_default();
    let slow = one.latency > SLOW && one.latency > 4 * quickest;
    (one.load.sight.quorum, Some(&one.peer) != left, !slow)
}

/// The peer to attach to, of those that answered; `None`: none of them belongs to a cluster.
///
/// One without a quorum only if there is no other, and so the one that was left just now.
pub fn choose<'a>(heard: &'a [Heard], host: &HostName, left: Option<&HostName>) -> Option<&'a Heard> {
    let rank = |one: &&Heard| (Reverse(merit(heard, one, left)), one.load.hosts, spread(host, &one.peer));
    heard.iter().filter(|one| one.load.formed).min_by_key(rank)
}

/// The most hosts that the chosen peer may have by now: no more than the least loaded of its like, give or
/// take a sixteenth, so that few are sent on where it hardly matters. No bound, where there is no other.
pub fn bearable(heard: &[Heard], chosen: &Heard, left: Option<&HostName>) -> u64 {
    let alike = |one: &&Heard| {
        let same = merit(heard, one, left) == merit(heard, chosen, left);
        same && one.peer != chosen.peer && one.load.formed
    };
    let least = heard.iter().filter(alike).map(|one| one.load.hosts).min();
    least.map_or(u64::MAX, |least| least + least / 16)
}

/// Hosts with the same choice take different peers, and each the same one again.
fn spread(host: &HostName, peer: &HostName) -> u64 {
    // The last bytes count most in FNV's high bits; the fold brings them down.
    let hash = fnv1a(format!("{peer}\0{host}").as_bytes());
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16
}

/// Which peers are asked: `chance` of them, different for each host and each time.
pub fn to_ask<T>(mut peers: Vec<T>, chance: impl FnMut() -> u64) -> Vec<T> {
    let mut chance = chance;
    while peers.len() > ASKED {
        let place = chance() % peers.len() as u64;
        // Below the length, which is a usize.
        peers.swap_remove(place as usize);
    }
    peers
}

/// How long nothing may be heard of a peer before it is left; `chance` is from 0 to 1. A peer to which there is
/// no connection any more, and none comes to be, is left without the wait, and not by all hosts at once.
pub fn patience(silence: Duration, unreachable: bool, chance: f64) -> Duration {
    let jitter = ATTACH_JITTER.mul_f64(chance.clamp(0.0, 1.0));
    if unreachable { jitter } else { silence + jitter }
}

/// Whether a host whose peer serves `own` hosts would be better off with one that serves `least`.
pub fn may_move(own: u64, least: u64) -> bool {
    own >= least.saturating_mul(2).saturating_add(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    /// A peer as it is in the tables: formed, with a quorum, 1 ms away.
    fn peer(peer: &str, hosts: u64) -> Heard {
        let mut load = Load { hosts, formed: true, sight: Default::default(), members: Default::default() };
        load.sight.quorum = true;
        Heard { peer: name(peer), latency: Duration::from_millis(1), load }
    }

    fn chosen(heard: &[Heard], left: Option<&str>) -> Option<String> {
        let left = left.map(name);
        choose(heard, &name("delta"), left.as_ref()).map(|heard| heard.peer.to_string())
    }

    #[test]
    fn the_least_loaded_peer_of_use_is_chosen() {
        let without = |what: &str, hosts: u64, change: &dyn Fn(&mut Heard)| {
            let mut heard = peer(what, hosts);
            change(&mut heard);
            heard
        };
        let unformed = |heard: &mut Heard| heard.load.formed = false;
        let blind = |heard: &mut Heard| heard.load.sight.quorum = false;
        let far = |heard: &mut Heard| heard.latency = Duration::from_millis(450);
        type Row = (&'static str, Vec<Heard>, Option<&'static str>, Option<&'static str>);
        let table: &[Row] = &[
            ("nobody", vec![], None, None),
            ("the least", vec![peer("a", 3), peer("b", 2), peer("c", 9)], None, Some("b")),
            ("unformed", vec![peer("a", 3), without("b", 0, &unformed)], None, Some("a")),
            ("all unformed", vec![without("b", 0, &unformed)], None, None),
            ("a quorum", vec![peer("a", 300), without("b", 0, &blind)], None, Some("a")),
            ("no quorum at all", vec![without("a", 3, &blind), without("b", 0, &blind)], None, Some("b")),
            ("left just now", vec![peer("a", 300), peer("b", 0)], Some("b"), Some("a")),
            ("left, and alone", vec![peer("b", 0)], Some("b"), Some("b")),
            ("left, with a quorum", vec![without("a", 0, &blind), peer("b", 0)], Some("b"), Some("b")),
            ("slow", vec![peer("a", 300), without("b", 0, &far)], None, Some("a")),
            ("all slow", vec![without("a", 3, &far), without("b", 0, &far)], None, Some("b")),
        ];
        for (what, heard, left, wanted) in table {
            assert_eq!(chosen(heard, *left).as_deref(), *wanted, "{what}");
        }
    }

    #[test]
    fn hosts_with_the_same_choice_spread() {
        let heard = [peer("alpha", 7), peer("beta", 7), peer("gamma", 7)];
        let mut counts = [0; 3];
        for number in 0..300 {
            let host = name(&format!("host{number}"));
            let chosen = choose(&heard, &host, None).unwrap();
            assert_eq!(choose(&heard, &host, None), Some(chosen), "the same one again");
            counts[heard.iter().position(|heard| heard == chosen).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (70..=130).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_host_bears_as_many_as_the_least_loaded_of_the_others_has() {
        let mut heard = vec![peer("a", 5), peer("b", 6), peer("c", 9)];
        assert_eq!(bearable(&heard, &heard[0], None), 6);
        assert_eq!(bearable(&heard, &heard[0], Some(&name("b"))), 9, "what was left does not count");
        heard[1].load.sight.quorum = false;
        assert_eq!(bearable(&heard, &heard[0], None), 9, "nor what has no quorum");
        assert_eq!(bearable(&heard[..1], &heard[0], None), u64::MAX);
        let heard = [peer("a", 160), peer("b", 160)];
        assert_eq!(bearable(&heard, &heard[0], None), 170);
    }

    #[test]
    fn a_few_of_many_are_asked() {
        let mut chance = 0;
        let mut next = || {
            chance += 7;
            chance
        };
        assert_eq!(to_ask(vec![1, 2, 3], &mut next), [1, 2, 3]);
        let few = to_ask((0..16).collect(), &mut next);
        assert_eq!(few.len(), ASKED);
        assert_ne!(few, to_ask((0..16).collect(), &mut next));
    }

    #[test]
    fn a_peer_is_left_after_its_silence_and_a_random_time() {
        let second = Duration::from_secs(1);
        assert_eq!(patience(second, false, 0.0), second);
        assert_eq!(patience(second, false, 1.0), second + ATTACH_JITTER);
        assert_eq!(patience(second, true, 0.5), ATTACH_JITTER / 2);
    }

    #[test]
    fn a_host_moves_only_where_it_matters() {
        let table =
            [(1, 0, false), (2, 0, true), (3, 1, false), (4, 1, true), (100, 50, false), (102, 50, true)];
        for (own, least, wanted) in table {
            assert_eq!(may_move(own, least), wanted, "{own} and {least}");
            // Whoever has moved does not want to go back.
            assert!(!wanted || !may_move(least + 1, own - 1), "{own} and {least}");
        }
    }
}
