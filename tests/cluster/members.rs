//! Peers that come, go, and come back without their disk.

use std::time::Duration;

use bigbrother::cluster::feed::END;
use bigbrother::cluster::node::{ProposeError, Settings};
use bigbrother::cluster::raft::log_store::MAX_CHANGE;
use bigbrother::cluster::wire::hello::Ours;
use bigbrother::cluster::wire::{CallError, Dialer, Exchange, Kind, Purpose, Target, encode};
use tokio::sync::{mpsc, watch};

use super::peers::*;

fn entry(host: &str, id: u64, votes: bool) -> (String, u64, bool) {
    (host.to_owned(), id, votes)
}

/// Waits for these peers; the number of a newcomer is only known to be new, since one whose answer was late
/// is not used.
fn wait_for(peers: &[Peer], wanted: &[(String, u64, bool)], newcomer: &str) {
    until("the peers", || {
        let mut roll = roll(&peers[0]);
        roll.iter_mut().filter(|(host, id, _)| host == newcomer && *id > 3).for_each(|entry| entry.1 = 0);
        if roll == wanted { Ok(()) } else { Err(roll) }
    });
}

#[test]
fn a_peer_that_lost_its_disk_comes_back_under_a_new_number_by_a_snapshot() {
    let (folder, mut all) = settings(&["alpha", "beta", "gamma"]);
    all.iter_mut().for_each(|settings| settings.snapshot_every = 20);
    let mut peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    primary(&peers);
    peers[0].propose(spec());
    for number in 0..100 {
        peers[number % 3].propose(launch(&format!("x{number}")));
    }
    let settings = peers.remove(1).kill();
    std::fs::remove_dir_all(settings.data_dir.join("raft")).unwrap();
    for number in 0..100 {
        peers[number % 2].propose(launch(&format!("y{number}")));
    }
    peers.push(Peer::start(&settings));
    wait_for(&peers, &[entry("alpha", 1, true), entry("beta", 0, true), entry("gamma", 3, true)], "beta");
    assert_eq!(notes(&agreed(&peers)).len(), 200);
    assert!(peers[2].node().id() > Some(3));
    let files = std::fs::read_dir(folder.path().join("beta/raft")).unwrap();
    assert!(files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("snapshot-")));
    // It counts: the cluster lives on without another one.
    let place = peers.iter().position(|peer| *peer.name() == name("gamma")).unwrap();
    peers.remove(place).kill();
    peers[1].propose(launch("z"));
}

#[test]
fn a_lagging_peer_gets_a_snapshot() {
    let (_folder, mut all) = settings(&["alpha", "beta", "gamma"]);
    all.iter_mut().for_each(|settings| settings.snapshot_every = 20);
    let mut peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    primary(&peers);
    peers[0].propose(spec());
    let settings = peers.remove(2).kill();
    for number in 0..200 {
        peers[number % 2].propose(launch(&format!("y{number}")));
    }
    peers.push(Peer::start(&settings));
    assert_eq!(notes(&agreed(&peers)).len(), 200);
    assert_eq!(peers[2].node().id(), Some(3));
}

/// Whoever watches there was told nothing of what lies between, although it lived all the time.
#[test]
fn watchers_of_a_peer_that_got_a_snapshot_begin_anew() {
    let (_folder, mut all) = settings(&["alpha", "beta", "gamma"]);
    all.iter_mut().for_each(|settings| settings.snapshot_every = 20);
    let mut peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    peers[0].propose(spec());
    let lagging = (primary(&peers) + 1) % 3;
    let lagging = peers.remove(lagging);
    let feed = lagging.node().feed();
    let mut rounds = 0;
    // A primary that still has the entries gives those: then once more.
    until("a snapshot", || {
        rounds += 1;
        agreed(peers.iter().chain([&lagging]));
        let seen = (lagging.state().index, END);
        let mut modified = feed.modified();
        modified.mark_unchanged();
        assert!(feed.knows(seen));
        let thaw = lagging.freeze();
        for number in 0..100 {
            peers[number % 2].propose(launch(&format!("{rounds} {number}")));
        }
        until("the primary waits for it no more", || {
            let silent = |peer: &Peer| {
                let members = peer.node().peers().into_iter();
                members.filter(|member| member.peer.name == lagging.name().as_str()).find_map(|m| m.silent)
            };
            let silent: Vec<_> = peers.iter().filter_map(silent).collect();
            if silent.iter().any(|silent| *silent > Duration::from_secs(2)) { Ok(()) } else { Err(silent) }
        });
        drop(thaw);
        let now = agreed(peers.iter().chain([&lagging])).index;
        match (feed.knows(seen), modified.has_changed().unwrap()) {
            (false, true) if feed.knows((now, END)) && *feed.newest().borrow() == now => Ok(()),
            known => Err(known),
        }
    });
}

#[test]
fn a_peer_that_starts_from_a_snapshot_knows_nothing_from_before_it() {
    let (folder, mut all) = settings(&["alpha"]);
    all[0].snapshot_every = 20;
    let alpha = Peer::start(&all[0]);
    alpha.propose(spec());
    let snapshots = || {
        let files = std::fs::read_dir(folder.path().join("alpha/raft")).unwrap().flatten();
        let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("snapshot-") && name.ends_with(".bin")).collect::<Vec<_>>()
    };
    // When the second one is there, the first one has counted.
    let mut seen = std::collections::BTreeSet::new();
    until("two snapshots", || {
        alpha.propose(launch("one more"));
        seen.extend(snapshots());
        if seen.len() > 1 { Ok(()) } else { Err(seen.clone()) }
    });
    let feed = alpha.node().feed();
    assert!(feed.knows((1, END)), "it was there from the beginning");
    let index = alpha.state().index;
    let alpha = Peer::start(&alpha.close());
    until(
        "its copy is whole",
        || {
            if alpha.state().index == index { Ok(()) } else { Err(alpha.state().index) }
        },
    );
    let feed = alpha.node().feed();
    assert!(!feed.knows((1, END)) && feed.knows((index, END)));
}

/// It would stop the log: no message takes it to another peer.
#[test]
fn a_change_that_no_peer_could_be_sent_is_refused_and_the_cluster_goes_on() {
    let (_folder, peers) = formed(&["alpha", "beta", "gamma"]);
    peers[0].propose(spec());
    let much = launch(&"x".repeat(MAX_CHANGE));
    let peer = &peers[(primary(&peers) + 1) % 3];
    for proposer in [peer, &peers[primary(&peers)]] {
        let refused = proposer.run(proposer.node().propose(much.clone())).unwrap_err();
        assert!(matches!(refused, ProposeError::TooLarge(_)), "{refused}");
        assert!(refused.to_string().contains(&MAX_CHANGE.to_string()), "{refused}");
    }
    // Nor does the primary take one from another peer, whose program may be an earlier one.
    let (exchange, target) = speaker(peer.name().as_str(), &peers[primary(&peers)]);
    let envelope = std::sync::Arc::new(bigbrother::state::Envelope { stamp_ms: 1, command: much });
    let body = encode(&bigbrother::cluster::raft::Change::State(envelope)).unwrap();
    let primary = &peers[primary(&peers)];
    until("an answer", || {
        let asked =
            exchange.call(&target, Purpose::Bulk, Kind::Propose, body.clone(), Duration::from_secs(5));
        match primary.run(asked) {
            Err(CallError::Failed(why)) if why.contains("the most that the peers take") => Ok(()),
            other => Err(other.map(|answer| answer.len())),
        }
    });
    peers[0].propose(launch("afterwards"));
    assert_eq!(notes(&agreed(&peers)), ["afterwards".to_owned()].into());
}

#[test]
fn a_second_machine_of_the_same_name_is_not_let_in() {
    let (folder, peers) = formed(&["alpha", "beta", "gamma"]);
    let mut clone = peers[1].settings.clone();
    clone.data_dir = folder.path().join("clone");
    clone.listen = "127.0.0.1:0".to_owned();
    let clone = Peer::start(&clone);
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(clone.node().id(), None);
    let wanted = [entry("alpha", 1, true), entry("beta", 2, true), entry("gamma", 3, true)];
    assert_eq!(roll(&peers[0]), wanted);
}

#[test]
fn peers_are_added_promoted_and_removed() {
    let (_folder, mut peers) = formed(&["alpha", "beta", "gamma"]);
    let (_more, mut delta) = settings(&["delta"]);
    let address = delta[0].listen.clone();
    delta[0].peers.extend(peers[0].settings.peers.clone());
    let delta = Peer::start(&delta[0]);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(delta.node().id(), None, "nobody expects it");
    peers[1].run(peers[1].node().add_peer(name("delta"), address)).unwrap();
    let of = |votes| {
        [entry("alpha", 1, true), entry("beta", 2, true), entry("delta", 0, votes), entry("gamma", 3, true)]
    };
    wait_for(&peers, &of(false), "delta");
    peers[2].run(peers[2].node().promote_peer(name("delta"))).unwrap();
    wait_for(&peers, &of(true), "delta");
    let again = peers[2].run(peers[2].node().promote_peer(name("delta"))).unwrap_err();
    assert!(again.to_string().contains("votes already"), "{again}");
    // The primary itself leaves.
    let place = primary(&peers);
    let gone = peers[place].name().clone();
    delta.run(delta.node().remove_peer(gone.clone())).unwrap();
    peers.remove(place).kill();
    until("it is gone", || {
        let roll = roll(&peers[0]);
        if roll.iter().all(|(host, ..)| *host != gone.as_str()) { Ok(()) } else { Err(roll) }
    });
    peers.push(delta);
    primary(&peers);
    peers[2].propose(spec());
}

/// Whoever says that it is this host, and whom it talks to.
fn speaker(host: &str, to: &Peer) -> (Exchange, Target) {
    let (cluster, history) = ("pirates".to_owned(), to.node().history());
    let ours = Ours { cluster, host: name(host), incarnation: 1, history, id: Some(9) };
    let exchange = Exchange::new(Dialer::new(watch::channel(ours).1, None), mpsc::channel(1).0);
    (exchange, Target { host: to.name().clone(), id: None, address: to.settings.listen.clone() })
}

#[test]
fn the_wrong_clock_of_another_host_does_not_move_the_clusters() {
    use std::time::{SystemTime, UNIX_EPOCH};
    let (_folder, peers) = formed(&["alpha", "beta", "gamma"]);
    let primary = &peers[primary(&peers)];
    let pause = bigbrother::state::Command::Pause { target: bigbrother::state::Target::All };
    let envelope =
        std::sync::Arc::new(bigbrother::state::Envelope { stamp_ms: u64::MAX / 2, command: pause });
    let change = encode(&bigbrother::cluster::raft::Change::State(envelope)).unwrap();
    let peer = peers.iter().find(|peer| peer.name() != primary.name()).unwrap().name();
    for (host, purpose) in [("delta", Purpose::HostBulk), (peer.as_str(), Purpose::Bulk)] {
        let (exchange, target) = speaker(host, primary);
        let before = primary.state().index;
        until("the change", || {
            let asked =
                exchange.call(&target, purpose, Kind::Propose, change.clone(), Duration::from_secs(5));
            primary.run(asked)
        });
        let latest = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(61);
        let state = primary.state();
        assert!(state.index > before, "{host} is not listened to");
        assert!(state.now_ms <= latest.as_millis() as u64, "{host}: {}", state.now_ms);
    }
}

#[test]
fn only_peers_are_heard_as_peers_and_only_as_long_as_they_are_some() {
    let (_folder, peers) = formed(&["alpha", "beta", "gamma"]);
    let alpha = &peers[0];
    let (exchange, target) = speaker("delta", alpha);
    let down = bigbrother::state::Command::HostDown { host: name("beta"), incarnation: 1 };
    let envelope = std::sync::Arc::new(bigbrother::state::Envelope { stamp_ms: 1, command: down });
    let down = encode(&bigbrother::cluster::raft::Change::State(envelope)).unwrap();
    let ask = |purpose, kind: Kind| {
        let body = if kind == Kind::Propose { down.clone() } else { Vec::new() };
        alpha.run(async { exchange.call(&target, purpose, kind, body, Duration::from_secs(5)).await })
    };
    for (purpose, kind) in [(Purpose::Urgent, Kind::Vote), (Purpose::Bulk, Kind::Propose)] {
        let Err(CallError::Unreachable(why)) = ask(purpose, kind) else { panic!("{kind:?} is answered") };
        assert!(why.contains("alpha knows of no peer named delta"), "{why}");
    }
    alpha.run(alpha.node().add_peer(name("delta"), "127.0.0.1:1".to_owned())).unwrap();
    until("it is heard", || ask(Purpose::Bulk, Kind::Propose));
    // The connection lasts; the right does not.
    let _ = alpha.run(alpha.node().remove_peer(name("delta")));
    until("it is refused", || match ask(Purpose::Bulk, Kind::Propose) {
        Err(CallError::Failed(why)) if why == "delta is no peer (any more)" => Ok(()),
        other => Err(other),
    });
}

/// Starts one that was peer `number` and is none any more. On a busy machine no primary may say so at once: then its agent
/// ends, and its service manager starts it again, this once.
fn back(settings: &Settings, number: u64) -> Peer {
    let peer = Peer::start(settings);
    let anew = until("it hears that it is no peer any more", || {
        let (id, standing) = (peer.node().id(), peer.standing());
        let known = standing.removed || id != Some(number);
        if known { Ok(id != Some(number)) } else { Err((id, standing)) }
    });
    if anew {
        return peer;
    }
    let peer = Peer::start(&peer.kill());
    assert_ne!(peer.node().id(), Some(number), "it is written down");
    peer
}

#[test]
fn a_voter_that_is_dead_for_long_is_replaced_by_a_learner() {
    let (_folder, mut all) = settings(&["alpha", "beta", "gamma", "omega"]);
    all.iter_mut().for_each(|settings| settings.dead_voter_after = std::time::Duration::from_secs(2));
    let mut peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    let votes = |host, id| entry(host, id, true);
    let all = [votes("alpha", 1), votes("beta", 2), votes("gamma", 3), entry("omega", 0, false)];
    wait_for(&peers, &all, "omega");
    primary(&peers);
    let place = peers.iter().position(|peer| *peer.name() == name("beta")).unwrap();
    let beta = peers.remove(place).kill();
    wait_for(&peers, &[votes("alpha", 1), votes("gamma", 3), votes("omega", 0)], "omega");
    // It is back, with the log and the votes of one that is no peer any more.
    peers.push(back(&beta, 2));
    let names = |roll: &[(String, u64, bool)]| roll.iter().map(|(host, ..)| host.clone()).collect::<Vec<_>>();
    until("it is a learner", || {
        let roll = roll(&peers[0]);
        let back = names(&roll) == ["alpha", "beta", "gamma", "omega"] && !roll[1].2;
        if back { Ok(()) } else { Err(roll) }
    });
    let beta_again = peers.last().unwrap();
    until("it hears the primary, under a number of its own", || {
        let standing = beta_again.standing();
        let heard = standing.quorum && beta_again.node().id().is_some_and(|id| id > 4);
        if heard { Ok(()) } else { Err((standing, beta_again.node().id())) }
    });
    assert!(beta.data_dir.join("raft.removed.2").exists(), "what it had");
    agreed(&peers);
}

/// Removed while it lives, it goes on as it is and says so: what it is to be is in its file, read at the next start.
#[test]
fn a_living_peer_that_is_removed_says_so_and_is_a_new_one_after_a_restart() {
    let (_folder, mut peers) = formed(&["alpha", "beta", "gamma"]);
    let place = peers.iter().position(|peer| *peer.name() == name("beta")).unwrap();
    let beta = peers.remove(place);
    peers[0].run(peers[0].node().remove_peer(name("beta"))).unwrap();
    let standing = until("it knows", || {
        let standing = beta.standing();
        if standing.removed { Ok(standing) } else { Err(standing) }
    });
    let said = standing.broken.unwrap();
    assert!(said.contains("removed") && said.contains("again") && !standing.quorum, "{said}");
    assert_eq!(beta.node().id(), Some(2));
    // It was removed under this number before, in another cluster or before a backup was put back.
    let aside = |named: &str| beta.settings.data_dir.join(named);
    std::fs::create_dir_all(aside("raft.removed.2/of_before")).unwrap();
    let [before, now] = ["raft.removed.2/of_before", "raft.removed.2.2/raft.redb"].map(aside);
    peers.push(Peer::start(&beta.kill()));
    assert!(before.exists() && now.exists(), "what it had, both times");
    let all = [entry("alpha", 1, true), entry("beta", 0, false), entry("gamma", 3, true)];
    wait_for(&peers, &all, "beta");
    agreed(&peers);
}

/// What is heard too late for one life holds for the next, whoever is there to ask.
#[test]
fn a_peer_that_nobody_could_tell_at_its_start_begins_anew_at_the_next() {
    let (_folder, mut peers) = formed(&["alpha", "beta", "gamma"]);
    let beta = peers.remove(1).kill();
    peers[0].run(peers[0].node().remove_peer(name("beta"))).unwrap();
    until("both have it", || {
        let rolls = peers.iter().map(roll).collect::<Vec<_>>();
        if rolls.iter().all(|roll| roll.len() == 2) { Ok(()) } else { Err(rolls) }
    });
    // Alone, neither of the two can say so.
    let gamma = peers.pop().unwrap().kill();
    let beta = Peer::start(&beta);
    assert_eq!(beta.node().id(), Some(2), "it was told although there is no quorum");
    peers.push(Peer::start(&gamma));
    until("it hears of it", || if beta.standing().removed { Ok(()) } else { Err(beta.standing()) });
    let all: Vec<Settings> = peers.drain(..).map(Peer::kill).collect();
    let beta = Peer::start(&beta.kill());
    assert_eq!(beta.node().id(), None, "nobody has to be asked");
    assert!(beta.settings.data_dir.join("raft.removed.2").exists(), "what it had");
    peers.extend(all.iter().map(Peer::start));
    peers.insert(1, beta);
    let all = [entry("alpha", 1, true), entry("beta", 0, false), entry("gamma", 3, true)];
    wait_for(&peers, &all, "beta");
    agreed(&peers);
}
