//! A copy of one peer becomes the cluster: what is left when a majority is lost for good, or a backup.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bigbrother::cluster::node::Settings;
use bigbrother::cluster::node::recover::{RecoverError, recover};
use bigbrother::cluster::tls::issue;
use bigbrother::state::{Command, HostFacts, Response};

use super::certificates::{files, valid_in};
use super::peers::*;

fn folder(settings: &Settings) -> std::path::PathBuf {
    settings.data_dir.join("raft")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().flatten() {
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

fn recovered(settings: &Settings) -> Result<u64, RecoverError> {
    recovered_by(settings, false)
}

fn recovered_by(settings: &Settings, anyway: bool) -> Result<u64, RecoverError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(recover(settings, anyway))
}

/// A killed peer, or whoever tried before, may need a moment to let go of its files.
fn recovered_soon(settings: &Settings) -> u64 {
    until("its files are let go", || recovered(settings).map_err(|error| error.to_string()))
}

fn recovered_anyway(settings: &Settings) -> u64 {
    until("its files are let go", || recovered_by(settings, true).map_err(|error| error.to_string()))
}

/// (host, votes) of all peers.
fn votes(peer: &Peer) -> Vec<(String, bool)> {
    roll(peer).into_iter().map(|(host, _, votes)| (host, votes)).collect()
}

fn wait_for(peer: &Peer, wanted: [(&str, bool); 3]) {
    let wanted = wanted.map(|(host, votes)| (host.to_owned(), votes));
    until("the peers", || if votes(peer) == wanted { Ok(()) } else { Err(votes(peer)) });
}

#[test]
fn a_backup_of_one_peer_becomes_the_cluster_and_the_others_come_to_it() {
    let (outside, mut all) = settings(&["alpha", "beta", "gamma"]);
    // With a snapshot and purged entries, as a real one.
    all.iter_mut().for_each(|settings| settings.snapshot_every = 20);
    let mut peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    primary(&peers);
    peers[0].propose(spec());
    for number in 0..70 {
        peers[0].propose(launch(&format!("kept {number}")));
    }
    agreed(&peers);
    let history = peers[1].node().history();
    let beta = peers.remove(1).close();
    let backup = outside.path().join("backup");
    copy(&folder(&beta), &backup);
    peers.insert(1, Peer::start(&beta));
    for number in 0..30 {
        peers[0].propose(launch(&format!("lost {number}")));
    }
    let lost = agreed(&peers);
    peers.drain(..).for_each(|peer| drop(peer.kill()));
    all.iter().for_each(|settings| std::fs::remove_dir_all(folder(settings)).unwrap());

    copy(&backup, &folder(&beta));
    let index = recovered_soon(&beta);
    assert!(index > 70, "{index}");
    let peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    wait_for(&peers[1], [("alpha", false), ("beta", true), ("gamma", false)]);
    assert_ne!(peers[1].node().history(), history, "whoever watches must begin anew");
    for newcomer in ["alpha", "gamma"] {
        peers[1].run(peers[1].node().promote_peer(name(newcomer))).unwrap();
    }
    wait_for(&peers[1], [("alpha", true), ("beta", true), ("gamma", true)]);
    peers[0].propose(launch("afterwards"));
    let state = agreed(&peers);
    assert!(state.index > lost.index, "fencing tokens would be given again");
    let notes = notes(&state);
    assert!(notes.iter().all(|note| !note.starts_with("lost")) && notes.len() == 71, "{notes:?}");
    // Numbers are not used twice, and the one that was recovered is a peer like any other.
    assert!([0, 2].iter().all(|place| peers[*place].node().id() > Some(3)));
    let mut peers = peers;
    peers.remove(1).kill();
    peers[0].propose(launch("without it"));
}

/// The first attempt was not the right one, or the next disk fails: nobody may hold a number of the life before.
#[test]
fn a_copy_that_is_put_back_again_goes_on_after_all_that_was_given_out() {
    let (outside, mut all) = settings(&["alpha"]);
    let settings = all.remove(0);
    let join = || Command::JoinHost { host: name("alpha"), facts: HostFacts::default() };
    let given = |peer: &Peer| match peer.propose(join()) {
        Response::Incarnation(incarnation) => (peer.state().index, incarnation),
        other => panic!("{other:?}"),
    };
    let alpha = Peer::start(&settings);
    let mut last = given(&alpha);
    alpha.close();
    let backup = outside.path().join("backup");
    copy(&folder(&settings), &backup);
    for life in 1..=3 {
        std::fs::remove_dir_all(folder(&settings)).unwrap();
        copy(&backup, &folder(&settings));
        recovered_soon(&settings);
        let alpha = Peer::start(&settings);
        for _ in 0..5 {
            let now = given(&alpha);
            assert!(now.0 > last.0 && now.1 > last.1, "life {life}: {now:?} after {last:?}");
            last = now;
        }
        alpha.close();
    }
}

#[test]
fn the_last_peer_goes_on_alone_and_the_old_ones_are_not_heard() {
    let (_folder, mut peers) = formed(&["alpha", "beta", "gamma"]);
    peers[0].propose(spec());
    peers[0].propose(launch("kept"));
    agreed(&peers);
    let alpha = peers.remove(0).kill();
    let gone: Vec<Settings> = peers.drain(..).map(Peer::kill).collect();
    // Broken off and done again, it is the same.
    let [first, again] = [recovered_soon(&alpha), recovered_soon(&alpha)];
    assert!(again > first);
    let alpha = Peer::start(&alpha);
    alpha.propose(launch("alone"));
    // One of the others was not lost after all. It is a peer of what was before, and stays that.
    let beta = Peer::start(&gone[0]);
    alpha.propose(launch("beside it"));
    let of_old = |peer: &Peer| peer.node().history();
    assert_ne!(of_old(&alpha), of_old(&beta));
    assert_eq!(votes(&alpha), [("alpha".to_owned(), true)]);
    assert_eq!(notes(&beta.state()).len(), 1, "it has heard of nothing");
    // Without its copy it is a newcomer.
    let settings = beta.kill();
    std::fs::remove_dir_all(folder(&settings)).unwrap();
    let beta = Peer::start(&settings);
    assert_eq!(notes(&agreed([&alpha, &beta])).len(), 3);
}

#[test]
fn what_is_no_copy_or_in_use_or_lives_elsewhere_is_refused() {
    let (_folder, mut peers) = formed(&["alpha", "beta", "gamma"]);
    peers[0].propose(spec());
    let in_use = recovered(&peers[0].settings).unwrap_err().to_string();
    assert_eq!(in_use, "the agent of alpha runs: stop it first");
    // The others go on: there is nothing to recover.
    let alpha = peers.remove(0).close();
    let alive = |settings: &Settings| {
        until("the others answer", || match recovered(settings) {
            Err(error @ RecoverError::Alive { .. }) => Ok(error.to_string()),
            other => Err(format!("{other:?}")),
        })
    };
    let said = alive(&alpha);
    assert!(said.contains("a cluster that lives needs no copy"), "{said}");
    // The copy knows them, too.
    let mut alone = alpha.clone();
    alone.peers.retain(|host, _| *host == alone.host);
    alive(&alone);
    peers.push(Peer::start(&alpha));
    primary(&peers);
    assert_eq!(votes(&peers[2]).len(), 3, "and nothing was changed");
    let (_other, nothing) = settings_of_one();
    let Err(RecoverError::NoCopy { folder: named }) = recovered(&nothing) else { panic!("of nothing") };
    assert!(!named.exists(), "and nothing was made");
    let mut attached = nothing.clone();
    attached.peers.remove(&attached.host);
    assert!(matches!(recovered(&attached), Err(RecoverError::NoPeer(_))));
    attached.peers.clear();
    assert!(matches!(recovered(&attached), Err(RecoverError::Alone(_))));
    // A disk that never belonged to a cluster.
    let fresh = Peer::start(&nothing);
    fresh.kill();
    until("the file is let go", || match recovered(&nothing) {
        Err(RecoverError::NoCopy { .. }) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// Where a peer was that only the copy knows, another program may be by now; where the file has one, whoever listens is it.
#[test]
fn only_an_agent_of_the_cluster_is_a_living_peer_of_the_copy() {
    let (outside, mut peers) = formed(&["alpha", "beta", "gamma"]);
    peers[0].propose(spec());
    agreed(&peers);
    let all: Vec<Settings> = peers.drain(..).map(Peer::close).collect();
    let (alpha, gamma) = (&all[0], &all[2]);
    // One for each attempt: afterwards it knows of nobody else.
    let copied = |named: &str| {
        let mut copied = Settings { data_dir: outside.path().join(named), ..alpha.clone() };
        copied.peers.retain(|host, _| *host == alpha.host);
        copy(&folder(alpha), &folder(&copied));
        copied
    };
    let at = |peer: &Settings| {
        until("its port is free", || std::net::TcpListener::bind(&peer.listen).map_err(|e| e.to_string()))
    };
    // It takes connections and says nothing, as an agent that stands still.
    let silent = at(&all[1]);
    let of_the_file = Settings { peers: alpha.peers.clone(), ..copied("of the file") };
    let Err(RecoverError::Alive { host, .. }) = recovered(&of_the_file) else { panic!("beta listens") };
    assert_eq!(host.as_str(), "beta");
    let beside_a_mute_one = copied("beside a mute one");
    let Err(RecoverError::Unclear { host, .. }) = recovered(&beside_a_mute_one) else {
        panic!("beta listens")
    };
    assert_eq!(host.as_str(), "beta");
    recovered_anyway(&beside_a_mute_one);
    drop(silent);
    // Another one answers with something else.
    let (other, done) = (at(gamma), Arc::new(AtomicBool::new(false)));
    let ended = done.clone();
    let other = std::thread::spawn(move || {
        while !ended.load(Ordering::Relaxed) {
            let (mut asker, _) = other.accept().unwrap();
            let _ = std::io::Write::write_all(&mut asker, b"220 mail.example ready\r\n");
        }
    });
    let beside_another = copied("beside another program");
    let Err(RecoverError::Unclear { host, .. }) = recovered(&beside_another) else { panic!("gamma listens") };
    assert_eq!(host, gamma.host);
    recovered_anyway(&beside_another);
    done.store(true, Ordering::Relaxed);
    std::net::TcpStream::connect(&gamma.listen).unwrap();
    other.join().unwrap();
    let mut foreign = Settings { cluster: "ninjas".to_owned(), ..gamma.clone() };
    foreign.data_dir = outside.path().join("foreign");
    foreign.peers.retain(|host, _| *host == gamma.host);
    let started = |settings: &Settings| {
        until("its port is free", || Peer::try_start(settings).map_err(|error| error.to_string()))
    };
    let foreign = started(&foreign);
    recovered(&copied("beside another cluster")).unwrap();
    foreign.kill();
    let _living = started(gamma);
    let of_a_living = copied("of a living");
    // A busy machine may keep it from answering in time, and nothing is changed by that.
    let host = until("gamma lives", || match recovered(&of_a_living) {
        Err(RecoverError::Alive { host, .. }) => Ok(host),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(host, gamma.host);
}

#[test]
fn the_copy_of_one_that_does_not_vote_is_taken_only_when_that_is_meant() {
    let (_folder, all) = settings(&["alpha", "beta", "delta", "gamma"]);
    let mut peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    primary(&peers);
    until("gamma is a learner", || {
        let votes = votes(&peers[0]);
        if votes.contains(&("gamma".to_owned(), false)) { Ok(()) } else { Err(votes) }
    });
    peers[0].propose(spec());
    agreed(&peers);
    peers[0].run(peers[0].node().remove_peer(name("beta"))).unwrap();
    until("beta knows", || if peers[1].standing().removed { Ok(()) } else { Err(peers[1].standing()) });
    peers.drain(..).for_each(|peer| drop(peer.close()));
    for (settings, standing) in [(&all[1], "is no peer any more"), (&all[3], "does not vote")] {
        let refused = until("the others are gone", || match recovered(settings) {
            Err(error @ RecoverError::NoVoter { .. }) => Ok(error.to_string()),
            other => Err(format!("{other:?}")),
        });
        assert!(refused.contains(standing) && refused.contains("--anyway"), "{refused}");
    }
    recovered_anyway(&all[1]);
    // It is the primary of another history, in which nobody was removed.
    let beta = Peer::start(&all[1]);
    beta.propose(launch("alone"));
    assert_eq!((beta.node().id(), votes(&beta)), (Some(2), vec![("beta".to_owned(), true)]));
}

/// A living agent would hang up on it as another program does.
#[test]
fn a_host_whose_certificate_does_not_hold_asks_nobody_whether_the_peers_of_the_copy_are_gone() {
    let (outside, mut peers) = formed(&["alpha", "beta", "gamma"]);
    peers[0].propose(spec());
    agreed(&peers);
    let mut alpha = peers.remove(0).kill();
    peers.drain(..).for_each(|peer| drop(peer.kill()));
    alpha.peers.retain(|host, _| *host == alpha.host);
    issue::init(outside.path(), "pirates").unwrap();
    alpha.tls = Some(files(outside.path(), valid_in(outside.path(), "alpha", (2019, 2020))));
    let refused = until("its files are let go", || match recovered_by(&alpha, true) {
        Err(RecoverError::Tls(refused)) => Ok(refused.to_string()),
        other => Err(format!("{other:?}")),
    });
    assert!(refused.contains("alpha-2019.pem"), "{refused}");
    alpha.tls =
        Some(files(outside.path(), issue::issue(outside.path(), &alpha.host, outside.path()).unwrap()));
    recovered_soon(&alpha);
}

/// Why one copy is put back, and never several: what is committed in the newer is not in the older, and those elect.
/// openraft finds that where its own checks are compiled in; what it finds it says by a panic, here as anywhere else.
#[cfg(debug_assertions)]
#[test]
fn a_peer_whose_log_does_not_go_with_that_of_the_others_says_so() {
    let (outside, mut peers) = formed(&["alpha", "beta", "gamma"]);
    peers[0].propose(spec());
    agreed(&peers);
    let all: Vec<Settings> = peers.drain(..).map(Peer::close).collect();
    let backup = |settings: &Settings| outside.path().join(format!("backup-{}", settings.host));
    all[..2].iter().for_each(|settings| copy(&folder(settings), &backup(settings)));
    peers.extend(all.iter().map(Peer::start));
    primary(&peers);
    (0..10).for_each(|number| drop(peers[0].propose(launch(&format!("later {number}")))));
    agreed(&peers);
    peers.drain(..).for_each(|peer| drop(peer.close()));
    for settings in &all[..2] {
        std::fs::remove_dir_all(folder(settings)).unwrap();
        copy(&backup(settings), &folder(settings));
    }
    peers.extend(all[..2].iter().map(Peer::start));
    // Their terms are later than those that the third one has seen.
    for _ in 0..6 {
        let old = primary(&peers);
        peers[old].run(peers[old].node().hand_over()).unwrap().expect("an heir");
    }
    peers[0].propose(launch("in their place"));
    let gamma = Peer::start(&all[2]);
    let why = until("it says so", || gamma.standing().broken.ok_or_else(|| gamma.standing()));
    assert!(why.contains("move the folder `raft` away"), "{why}");
    assert!(!gamma.standing().quorum);
    // As it says.
    let settings = gamma.kill();
    std::fs::remove_dir_all(folder(&settings)).unwrap();
    peers.push(Peer::start(&settings));
    assert_eq!(notes(&agreed(&peers)), ["in their place".to_owned()].into());
}

/// A host that waits for peers that are not there.
fn settings_of_one() -> (tempfile::TempDir, Settings) {
    let (folder, mut all) = settings(&["alpha", "beta", "gamma"]);
    (folder, all.remove(1))
}
