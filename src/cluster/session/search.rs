//! Looking for a peer, and what comes after one was found or lost.
//!
//! Owns the life of a session: search, attach, be served, leave, search again. Addresses are those of the file,
//! of the disk and those that were learnt; each dialling resolves names anew. Chance and clocks are here, what is
//! made of them is `choice`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::choice::{self, Heard};
use super::handle::Attached;
use super::message::{Admission, Attach, Load};
use super::{follow, pulse};
use crate::cluster::wire::{CallError, Kind, Purpose, Target, decode, encode};
use crate::spec::HostName;

/// How long a peer may take to say its load.
const QUESTION: Duration = Duration::from_millis(1000);
/// How long a peer may take to take a host in.
const ADMISSION: Duration = Duration::from_millis(500);
/// The shortest and the longest wait for the other peers once a good one has answered.
const GATHER: (Duration, Duration) = (Duration::from_millis(150), Duration::from_millis(250));
/// How long a host lets itself be sent on: one that has just lost its peer, and any other.
const POLITE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_millis(500));
/// The first and the longest pause between two searches.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// How often it is said why nobody serves this host.
const SAY: Duration = Duration::from_secs(60);

/// A peer that has taken this host in.
pub(super) struct Found {
    pub(super) target: Target,
    pub(super) history: u64,
    pub(super) session: u64,
}

/// Why the host is not served by its peer any more.
pub(super) enum End {
    /// It left it, and why.
    Left(String),
    /// The peer has forgotten it: it was not heard for too long. That says nothing against the peer.
    Forgotten,
    /// It has a better one.
    Moved(Found),
}

/// Goes on until it is dropped.
pub(super) async fn run(attached: Attached) {
    let mut left = None;
    let mut found = None;
    let mut said: Option<Instant> = None;
    let mut pause = PAUSE.0;
    loop {
        let now = match found.take() {
            Some(found) => Ok(found),
            None => search(&attached, left.as_ref()).await,
        };
        match now {
            Ok(peer) => {
                pause = PAUSE.0;
                attached.arrived(&peer.target, peer.history);
                attached.exchange().keep(|target| *target == peer.target);
                let host = peer.target.host.clone();
                tracing::info!(peer = %host, "attached");
                left = match serve(&attached, peer).await {
                    End::Moved(better) => {
                        found = Some(better);
                        Some(host)
                    }
                    End::Left(why) => {
                        tracing::warn!(peer = %host, %why, "the peer is left");
                        attached.left();
                        Some(host)
                    }
                    End::Forgotten => {
                        tracing::info!(peer = %host, "the peer had given this host up");
                        attached.left();
                        // Two hosts of one name would take each other's seat for ever.
                        tokio::time::sleep(PAUSE.0.mul_f64(0.5 + fastrand::f64())).await;
                        None
                    }
                };
            }
            Err(why) => {
                if said.is_none_or(|said| said.elapsed() >= SAY) {
                    tracing::warn!(%why, "no peer serves this host");
                    said = Some(Instant::now());
                }
                attached.set_trouble(why);
                tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
                pause = PAUSE.1.min(2 * pause);
            }
        }
    }
}

async fn serve(attached: &Attached, peer: Found) -> End {
    let (unreachable, seen) = watch::channel(false);
    tokio::select! {
        end = follow::run(attached, &peer, unreachable) => end,
        end = pulse::run(attached, &peer, seen) => end,
        () = pulse::beat(attached, &peer) => End::Left("its pulse is not felt".to_owned()),
        better = pulse::better(attached, &peer) => End::Moved(better),
    }
}

/// Asks for loads and attaches to one; why not, in words.
async fn search(attached: &Attached, left: Option<&HostName>) -> Result<Found, String> {
    let asked = ask(attached, left, |_| true).await;
    attach(attached, asked, left, None).await
}

/// What was heard of the peers.
#[derive(Default)]
pub(super) struct Asked {
    pub(super) heard: Vec<Heard>,
    targets: BTreeMap<HostName, Target>,
    troubles: Vec<String>,
}

/// Asks some of the peers for their load.
pub(super) async fn ask(
    attached: &Attached,
    left: Option<&HostName>,
    wanted: impl Fn(&HostName) -> bool,
) -> Asked {
    let peers = addresses(attached).into_iter().filter(|(host, _)| wanted(host)).collect();
    let (mut asking, mut waited) = (JoinSet::new(), 0);
    for (host, addresses) in choice::to_ask(peers, || fastrand::u64(..)) {
        for address in addresses {
            let target = Target { host: host.clone(), id: None, address };
            waited += usize::from(Some(&host) != left);
            let attached = attached.clone();
            asking.spawn(async move {
                let since = Instant::now();
                let load = load(&attached, &target).await;
                (target, since.elapsed(), load)
            });
        }
    }
    let mut asked = Asked::default();
    let mut until = tokio::time::Instant::now() + QUESTION;
    // The one that was left is not waited for where there is another.
    let (mut others, mut good) = (waited, false);
    while let Ok(Some(answer)) = tokio::time::timeout_at(until, asking.join_next()).await {
        let Ok((target, latency, load)) = answer else { continue };
        others -= usize::from(Some(&target.host) != left);
        match load {
            Ok(load) => {
                if load.formed && load.sight.quorum && Some(&target.host) != left {
                    let gather = (4 * latency).clamp(GATHER.0, GATHER.1);
                    until = until.min(tokio::time::Instant::now() + gather);
                    good = true;
                }
                let peer = target.host.clone();
                if asked.targets.insert(peer.clone(), target).is_none() {
                    asked.heard.push(Heard { peer, latency, load });
                }
            }
            Err(why) => asked.troubles.push(format!("{}: {why}", target.host)),
        }
        if good && others == 0 {
            break;
        }
    }
    asked
}

pub(super) async fn load(attached: &Attached, target: &Target) -> Result<Load, String> {
    let answer = attached.call_peer(target, Purpose::Host, Kind::Load, Vec::new(), QUESTION).await;
    answer
        .map_err(|error: CallError| error.to_string())
        .and_then(|body| decode(&body).map_err(|e| e.to_string()))
}

/// By peer: those that were learnt first.
fn addresses(attached: &Attached) -> Vec<(HostName, Vec<String>)> {
    let settings = attached.settings();
    let file = settings.peers.iter().map(|(host, address)| (host.clone(), address.clone()));
    let mut all: BTreeMap<HostName, BTreeSet<String>> = BTreeMap::new();
    for (host, address) in attached.known().peers.into_iter().chain(file) {
        if host != settings.host {
            all.entry(host).or_default().insert(address);
        }
    }
    all.into_iter().map(|(host, addresses)| (host, addresses.into_iter().collect())).collect()
}

/// Attaches to the best one. `most`: only if it has no more hosts than that.
pub(super) async fn attach(
    attached: &Attached,
    mut asked: Asked,
    left: Option<&HostName>,
    most: Option<u64>,
) -> Result<Found, String> {
    let host = &attached.settings().host;
    let began = Instant::now();
    let polite = if left.is_some() { POLITE.0 } else { POLITE.1 };
    while let Some(chosen) = choice::choose(&asked.heard, host, left).cloned() {
        let bearable = match most {
            Some(most) => most,
            None if began.elapsed() < polite => choice::bearable(&asked.heard, &chosen, left),
            None => u64::MAX,
        };
        let Some(target) = asked.targets.get(&chosen.peer) else { break };
        match begin(attached, target, bearable).await {
            Ok(Admission::Admitted { history, session, members }) => {
                attached.told(chosen.load.sight, Some(members));
                return Ok(Found { target: target.clone(), history, session });
            }
            Ok(Admission::Crowded { hosts }) if most.is_none() => {
                let crowded = |heard: &&mut Heard| heard.peer == chosen.peer;
                asked.heard.iter_mut().filter(crowded).for_each(|heard| heard.load.hosts = hosts);
                continue;
            }
            Ok(Admission::Crowded { hosts }) => {
                asked.troubles.push(format!("{}: has {hosts} hosts by now", chosen.peer));
            }
            Ok(Admission::Unfit(why)) | Err(why) => asked.troubles.push(format!("{}: {why}", chosen.peer)),
        }
        asked.heard.retain(|heard| heard.peer != chosen.peer);
    }
    let unformed =
        asked.heard.iter().map(|heard| format!("{}: is no peer of a founded cluster yet", heard.peer));
    asked.troubles.extend(unformed);
    asked.troubles.sort();
    asked.troubles.dedup();
    match asked.troubles.is_empty() {
        true => Err("no peer answers".to_owned()),
        false => Err(asked.troubles.join("; ")),
    }
}

async fn begin(attached: &Attached, target: &Target, most: u64) -> Result<Admission, String> {
    let ours = attached.ours();
    let body = encode(&Attach { incarnation: ours.incarnation, history: ours.history, most });
    let body = body.map_err(|error| error.to_string())?;
    let answer = attached.call_peer(target, Purpose::HostBulk, Kind::Attach, body, ADMISSION).await;
    decode(&answer.map_err(|error| error.to_string())?).map_err(|error| error.to_string())
}
