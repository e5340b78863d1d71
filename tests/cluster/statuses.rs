//! What runs say about themselves, on its way between hosts: it arrives, and holds up nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bigbrother::agent::supervise::moment;
use bigbrother::cluster::statuses::Statuses;
use bigbrother::keeper::protocol::RunId;
use bigbrother::spec::{HostName, InstanceId};
use bigbrother::status::{Board, Summary};

use super::hosts::{Host, host_of};
use super::peers::{Peer, formed, launch, name, spec, until};

fn zone(number: u32) -> InstanceId {
    format!("zone.{number}").parse().unwrap()
}

fn summary(players: u32) -> Summary {
    let labels = [("mode".to_owned(), bigbrother::status::Fact::Text("capture the flag".to_owned()))].into();
    let map = Some("a map with a name of its own".to_owned());
    Summary { players: Some(players), capacity: Some(64), fps: Some(60.0), map, labels, ..Summary::default() }
}

fn say(statuses: &Statuses, number: u32, players: u32) {
    statuses.note([(zone(number), RunId(1), Some(summary(players)))]);
}

fn players(board: &Board, host: &HostName, number: u32) -> Option<u32> {
    board.of(host, &zone(number), RunId(1), moment())?.0.players
}

/// Waits until it is known how many players there are; how long that took.
fn known(statuses: &Statuses, host: &HostName, number: u32, wanted: u32) -> Duration {
    let began = Instant::now();
    until("the players", || {
        let seen = players(&statuses.look(), host, number);
        if seen == Some(wanted) { Ok(began.elapsed()) } else { Err(seen) }
    })
}

fn joined(peers: &[Peer]) {
    for (life, peer) in peers.iter().enumerate() {
        peer.node().set_incarnation(life as u64 + 1);
    }
}

/// On a machine with nothing else to do it is milliseconds.
const SOON: Duration = Duration::from_secs(2);

#[test]
fn what_a_run_says_is_known_on_every_peer_and_where_it_is_read() {
    let (_folder, mut peers) = formed(&["alpha", "beta", "gamma"]);
    joined(&peers);
    let hosts: Vec<Host> =
        ["delta", "epsilon"].iter().map(|host| Host::start(&host_of(&peers[0].settings, host))).collect();
    for (life, host) in hosts.iter().enumerate() {
        host.served();
        host.attached().set_incarnation(life as u64 + 11);
    }
    let (delta, alpha) = (name("delta"), name("alpha"));
    let (teller, reader) = (hosts[0].attached(), hosts[1].attached());
    for number in 0..3 {
        say(teller.statuses(), number, 1);
    }
    say(peers[0].node().statuses(), 9, 5);
    for peer in &peers {
        known(peer.node().statuses(), &delta, 2, 1);
        known(peer.node().statuses(), &alpha, 9, 5);
    }
    // Nobody reads on epsilon.
    for players in 2..5 {
        say(teller.statuses(), 0, players);
        for peer in &peers {
            let took = known(peer.node().statuses(), &delta, 0, players);
            assert!(took < SOON, "{took:?}");
        }
    }
    assert_eq!((reader.statuses().counts().taken, reader.statuses().board().len()), (0, 0));
    // The first to read waits for it, and goes on reading.
    let board = hosts[1].run(reader.statuses().read());
    assert_eq!((players(&board, &delta, 0), players(&board, &alpha, 9)), (Some(4), Some(5)));
    for players in 6..9 {
        say(teller.statuses(), 0, players);
        let took = known(reader.statuses(), &delta, 0, players);
        assert!(took < SOON, "{took:?}");
    }
    // A run ends, and a peer goes: the host tells another one all that it has.
    teller.statuses().note([(zone(1), RunId(1), None)]);
    until("the end of the run", || match players(&reader.statuses().look(), &delta, 1) {
        None => Ok(()),
        seen => Err(seen),
    });
    let old = hosts[0].served();
    let at = peers.iter().position(|peer| *peer.name() == old).unwrap();
    peers.remove(at).kill();
    say(teller.statuses(), 0, 9);
    for peer in &peers {
        known(peer.node().statuses(), &delta, 0, 9);
        assert_eq!(players(&peer.node().statuses().board(), &delta, 2), Some(1));
    }
    // Nobody reads any more.
    until("it is not kept", || match reader.statuses().board().len() {
        0 => Ok(()),
        seen => Err(seen),
    });
    let before = reader.statuses().counts().taken;
    say(teller.statuses(), 0, 10);
    for peer in &peers {
        known(peer.node().statuses(), &delta, 0, 10);
    }
    assert_eq!(reader.statuses().counts().taken, before);
}

/// The mean and the longest time that a change takes, of as many: what is held up for long shows in the mean.
fn proposals(peer: &Peer, count: usize) -> (Duration, Duration) {
    let took: Vec<Duration> = (0..count)
        .map(|number| {
            let began = Instant::now();
            peer.run(peer.node().propose(launch(&number.to_string()))).unwrap();
            began.elapsed()
        })
        .collect();
    let longest = took.iter().max().copied().unwrap_or_default();
    (took.iter().sum::<Duration>() / count as u32, longest)
}

/// A storm: every run says something else each second, of 10,000 over three peers.
#[test]
fn a_storm_of_statuses_does_not_hold_up_the_log() {
    const RUNS: u32 = 10_000;
    let (_folder, peers) = formed(&["alpha", "beta", "gamma"]);
    joined(&peers);
    peers[0].propose(spec());
    proposals(&peers[0], 20);
    let calm = proposals(&peers[0], 150);

    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let storm: Vec<_> = peers
        .iter()
        .map(|peer| {
            let (statuses, over) = (peer.node().statuses().clone(), over.clone());
            std::thread::spawn(move || {
                let mut round = 0;
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    let next = Instant::now() + Duration::from_secs(1);
                    round += 1;
                    statuses
                        .note((0..RUNS / 3).map(|n| (zone(n), RunId(1), Some(summary(round * 100_000 + n)))));
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
                round
            })
        })
        .collect();
    let all = 3 * u64::from(RUNS / 3);
    let counts = || peers.iter().map(|peer| peer.node().statuses().counts()).collect::<Vec<_>>();
    until("all is known everywhere", || {
        if counts().iter().all(|counts| counts.runs == all) { Ok(()) } else { Err(counts()) }
    });
    let (before, began) = (counts(), Instant::now());
    let mut stormy = (Duration::MAX, Duration::MAX);
    let mut done = 0;
    while done < 3 || began.elapsed() < Duration::from_secs(4) {
        stormy = stormy.min(proposals(&peers[0], 150));
        done += 1;
    }
    let (after, took) = (counts(), began.elapsed());
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    let rounds: Vec<u32> = storm.into_iter().map(|storm| storm.join().unwrap()).collect();

    println!("calm {calm:?}, in the storm {stormy:?} (mean, longest), {rounds:?} rounds");
    for (before, after) in before.iter().zip(&after) {
        let a_second = (after.taken - before.taken) as f64 / took.as_secs_f64();
        println!("{a_second:.0} lines a second taken, {} messages", after.messages - before.messages);
        assert!(a_second > f64::from(RUNS) / 3.0, "it was no storm: {a_second} lines a second");
        assert_eq!(after.refused, 0);
    }
    assert!(stormy.0 < 3 * calm.0 + Duration::from_millis(5), "calm {calm:?}, in the storm {stormy:?}");
    // The newest is what is known in the end.
    for (from, round) in peers.iter().zip(&rounds) {
        for peer in &peers {
            known(peer.node().statuses(), from.name(), 7, round * 100_000 + 7);
        }
    }
}
