//! `[cluster]`: the peers, and the spans of time that keep two hosts from running one exclusive instance.
//!
//! Owns the rules between those spans (design: liveness and fencing). Never resolves an address. Called by `parse`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::host::is_loopback;
use super::section::{Item, Section};
use super::{ClusterSettings, TlsFiles};
use crate::spec::HostName;
use crate::state::{MARGIN, Settings};

/// The most peers that a cluster may have.
pub const MAX_PEERS: usize = 16;

/// How often a host reports to the primary.
pub const REPORT: Duration = Duration::from_millis(250);

/// By how much hosts spread the moment at which they give a peer up.
pub const ATTACH_JITTER: Duration = Duration::from_millis(500);

/// The longest that an election without a split vote takes.
pub const ELECTION_MAX: Duration = Duration::from_secs(2);

pub(super) fn read(section: &Section<'_>) -> ClusterSettings {
    let duration = |key: &str, default: u64| {
        section.read(key, Item::span_of_time).unwrap_or(Duration::from_secs(default))
    };
    let settings = ClusterSettings {
        name: section.read("name", Item::text).unwrap_or_else(|| "local".to_owned()),
        peers: section.read("peers", peers).unwrap_or_default(),
        host_timeout: duration("host_timeout", 8),
        fence_after: duration("fence_after", 5),
        fence_kill: duration("fence_kill", 1),
        peer_silence: duration("peer_silence", 1),
        max_lost: section.read("max_lost", |item| item.count(1)),
        dead_voter_after: duration("dead_voter_after", 600),
        tls: section.read("tls", tls).flatten(),
    };
    check_spans(section, &settings);
    check_plain(section, &settings);
    settings
}

fn peers(item: &Item<'_>) -> Option<BTreeMap<HostName, String>> {
    let section = item.section("a table such as { alpha = \"10.0.0.1:7600\" }")?;
    let mut peers = BTreeMap::new();
    for peer in section.items() {
        let name = match peer.key.parse::<HostName>() {
            Ok(name) => Some(name),
            Err(reason) => {
                peer.sink.report(
                    peer.key_span.clone(),
                    format!("{:?} is no host name: {reason}", peer.key),
                    None,
                );
                None
            }
        };
        let address = peer.endpoint("a host and port such as \"10.0.0.1:7600\"");
        peers.extend(name.zip(address));
    }
    if section.items().len() > MAX_PEERS {
        item.refuse::<()>(
            format!("{} peers, at most {MAX_PEERS} are possible", section.items().len()),
            Some("all other hosts attach to a peer; they are not listed"),
        );
    }
    Some(peers)
}

/// All three files, or a fault.
fn tls(item: &Item<'_>) -> Option<Option<TlsFiles>> {
    const WANTED: &str = "a table such as { ca = \"/etc/bigbrother/ca.pem\", cert = \"/etc/bigbrother/host.pem\", \
                          key = \"/etc/bigbrother/host.key\" }";
    let section = item.section(WANTED)?;
    let file = |key: &str| {
        if !section.has(key) {
            section.fault(key, format!("`tls` has no `{key}`"), Some("it takes `ca`, `cert` and `key`"));
        }
        section.read(key, super::host::absolute)
    };
    let (ca, cert, key) = (file("ca"), file("cert"), file("key"));
    Some(ca.zip(cert).zip(key).map(|((ca, cert), key)| TlsFiles { ca, cert, key }))
}

/// Without certificates nobody knows who is who: such a cluster stays on one machine.
fn check_plain(section: &Section<'_>, settings: &ClusterSettings) {
    if section.has("tls") {
        return;
    }
    let far = settings.peers.iter().find(|(_, address)| !is_loopback(address));
    if let Some((name, address)) = far {
        section.fault(
            "peers",
            format!("without `tls` peers are possible on loopback only, and {name} is at {address}"),
            Some("make certificates with `bigbrother ca init` and `bigbrother ca issue HOST`, and set `tls` in [cluster]"),
        );
    }
}

fn check_spans(section: &Section<'_>, settings: &ClusterSettings) {
    let shown = humantime::format_duration;
    let least = REPORT + (settings.peer_silence + ATTACH_JITTER).max(ELECTION_MAX) + MARGIN;
    if settings.fence_after < least {
        let key = if section.has("fence_after") { "fence_after" } else { "peer_silence" };
        section.fault(
            key,
            format!(
                "`fence_after` is {}, it must be at least {}",
                shown(settings.fence_after),
                shown(least)
            ),
            Some(
                "a report, the larger of `peer_silence` with its jitter and an election, and 1 s must pass in it: \
                 otherwise an ordinary failover would kill exclusive processes",
            ),
        );
    }
    let least = Settings::least_timeout(settings.fence_after, settings.fence_kill);
    if settings.host_timeout < least {
        let key = ["host_timeout", "fence_after"].into_iter().find(|key| section.has(key));
        section.fault(
            key.unwrap_or("fence_kill"),
            format!(
                "`host_timeout` is {}, it must be at least {}",
                shown(settings.host_timeout),
                shown(least)
            ),
            Some("`fence_after` + `fence_kill` + 1 s: before that the cut-off host may still run its exclusive processes"),
        );
    }
}
