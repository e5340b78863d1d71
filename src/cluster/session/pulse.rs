//! Whether the peer lives, and whether another one would serve this host better.
//!
//! Owns the measure of silence. Anything that the peer answers is a sign of life; where nothing else is asked, its
//! load is. A host that stood still itself blames nobody: of a pause between two looks only a little counts.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::choice;
use super::handle::Attached;
use super::search::{self, End, Found};

/// Between two looks; of a longer pause twice as much counts.
const LOOK: Duration = Duration::from_millis(100);
/// A peer that was not heard for this long is asked something; reports come more often.
const BEAT: Duration = Duration::from_millis(300);
/// The longest pause between two searches for a quorum, when there is none anywhere.
const BLIND: Duration = Duration::from_secs(10);

/// Asks the peer for its load where nothing else is asked.
pub(super) async fn beat(attached: &Attached, peer: &Found) {
    loop {
        tokio::time::sleep(LOOK).await;
        if attached.heard().elapsed() < BEAT {
            continue;
        }
        // What it says of the cluster comes by the other line, in order.
        let _ = search::load(attached, &peer.target).await;
    }
}

/// Until the peer is silent for too long, or without a quorum while another one has it.
pub(super) async fn run(attached: &Attached, peer: &Found, unreachable: watch::Receiver<bool>) -> End {
    let chance = fastrand::f64();
    let silence = attached.settings().peer_silence;
    let standing = attached.standing();
    let (mut silent, mut blind) = (Duration::ZERO, Duration::ZERO);
    let mut bearable = choice::patience(silence, false, chance);
    let (mut heard, mut looked) = (attached.heard(), Instant::now());
    loop {
        tokio::time::sleep(LOOK).await;
        let passed = looked.elapsed().min(2 * LOOK);
        looked = Instant::now();
        let last = attached.heard();
        silent = if last == heard { silent + passed } else { looked.duration_since(last).min(passed) };
        heard = last;
        if silent > choice::patience(silence, *unreachable.borrow(), chance) {
            return End::Left(format!("it is silent for {} ms", silent.as_millis()));
        }
        if standing.borrow().quorum {
            (blind, bearable) = (Duration::ZERO, choice::patience(silence, false, chance));
            continue;
        }
        blind += passed;
        if blind > bearable {
            if others_have_a_quorum(attached, peer).await {
                return End::Left("it hears no quorum, and another peer does".to_owned());
            }
            bearable = BLIND.max(bearable).min(2 * bearable);
            (blind, looked) = (Duration::ZERO, Instant::now());
        }
    }
}

async fn others_have_a_quorum(attached: &Attached, peer: &Found) -> bool {
    let asked = search::ask(attached, Some(&peer.target.host), |host| *host != peer.target.host).await;
    attached.exchange().keep(|target| *target == peer.target);
    asked.heard.iter().any(|heard| heard.load.formed && heard.load.sight.quorum)
}

/// Once in a long time: a peer with far fewer hosts, if there is one that has taken this host in.
pub(super) async fn better(attached: &Attached, peer: &Found) -> Found {
    let own = &peer.target.host;
    loop {
        tokio::time::sleep(attached.settings().move_after.mul_f64(1.0 + fastrand::f64())).await;
        let Ok(load) = search::load(attached, &peer.target).await else { continue };
        let mut asked = search::ask(attached, Some(own), |host| host != own).await;
        asked.heard.retain(|heard| heard.load.sight.quorum && choice::may_move(load.hosts, heard.load.hosts));
        if asked.heard.is_empty() {
            attached.exchange().keep(|target| *target == peer.target);
            continue;
        }
        let most = load.hosts.saturating_sub(2) / 2;
        if let Ok(found) = search::attach(attached, asked, Some(own), Some(most)).await {
            tracing::info!(peer = %found.target.host, from = %own, "moving to a peer with fewer hosts");
            return found;
        }
    }
}
