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
