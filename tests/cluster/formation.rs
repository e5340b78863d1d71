//! From nothing to a cluster, and who is not let in.

use std::time::Duration;

use bigbrother::cluster::node::Settings;
use bigbrother::cluster::node::identity::{Founder, Founding, Identity};
use bigbrother::cluster::raft;
use bigbrother::cluster::raft::log_store::disk::{Disk, Key};
use bigbrother::cluster::raft::membership::Role;
use bigbrother::cluster::wire::encode;
use bigbrother::state::{Rejected, Target};

use super::peers::*;

#[test]
fn peers_form_a_cluster_in_any_order_and_take_changes_anywhere() {
    let (_folder, settings) = settings(&["alpha", "beta", "gamma"]);
    // The one that founds comes last.
    let late: Vec<Peer> = settings[1..].iter().rev().map(Peer::start).collect();
    std::thread::sleep(Duration::from_millis(300));
    assert!(late.iter().all(|peer| peer.node().id().is_none()), "nobody founds in the place of the first");
    let mut peers = vec![Peer::start(&settings[0])];
    peers.extend(late);
    primary(&peers);
    peers[0].propose(spec());
    for peer in &peers {
        peer.propose(launch(peer.name().as_str()));
        // Whoever asked has it in its own copy.
        assert!(peer.state().launches.values().any(|l| l.args["note"] == peer.name().as_str()));
    }
    assert_eq!(notes(&agreed(&peers)).len(), 3);
    let mut ids: Vec<_> = peers.iter().map(|peer| (peer.name().to_string(), peer.node().id())).collect();
    ids.sort();
    assert_eq!(ids, [("alpha", 1), ("beta", 2), ("gamma", 3)].map(|(h, id)| (h.to_owned(), Some(id))));
}

#[test]
fn sixteen_peers_are_one_cluster_in_which_seven_vote() {
    let names: Vec<String> = (0..16).map(|number| format!("peer{number:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (_folder, mut peers) = formed(&names);
    let last = &peers[15];
    until("all are peers", || {
        let votes: Vec<bool> = last.node().peers().iter().map(|peer| peer.role == Role::Voter).collect();
        let voters = votes.iter().filter(|votes| **votes).count();
        if (votes.len(), voters) == (16, 7) { Ok(()) } else { Err(votes) }
    });
    last.propose(spec());
    assert_eq!(agreed(&peers).revision, 1);
    // Three of seven may be lost.
    (0..3).for_each(|_| drop(peers.remove(0).kill()));
    peers[12].propose(launch("without three"));
}

#[test]
fn what_the_state_refuses_comes_back_as_such() {
    let (_folder, peers) = formed(&["alpha", "beta", "gamma"]);
    for peer in &peers {
        let refused = peer.run(peer.node().propose(launch("x"))).unwrap_err();
        assert_eq!(refused.to_string(), Rejected::NoProcess("dungeon".parse().unwrap()).to_string());
    }
}

#[test]
fn a_host_alone_is_a_cluster_and_keeps_its_state() {
    let (_folder, mut settings) = settings(&["alpha"]);
    settings[0].peers.clear();
    let alone = Peer::start(&settings[0]);
    alone.propose(spec());
    alone.propose(bigbrother::state::Command::Pause { target: Target::All });
    let before = alone.state();
    alone.run(alone.node().ensure_primary()).unwrap();
    let again = Peer::start(&alone.kill());
    let after = until("the state of before", || {
        let state = again.state();
        if state.paused.all { Ok(state) } else { Err(state.index) }
    });
    assert_eq!(after, before);
}

#[test]
fn a_host_of_another_cluster_is_not_let_in() {
    let (_folder, peers) = formed(&["alpha", "beta", "gamma"]);
    let (_other, mut stranger) = settings(&["delta"]);
    stranger[0].cluster = "ninjas".to_owned();
    stranger[0].peers.extend(peers[0].settings.peers.clone());
    let stranger = Peer::start(&stranger[0]);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(stranger.node().id(), None);
    assert_eq!(peers[0].node().peers().len(), 3);
}

#[test]
fn a_damaged_log_is_refused_with_what_to_do() {
    let (_folder, mut peers) = formed(&["alpha", "beta", "gamma"]);
    peers[0].propose(spec());
    let settings = peers.remove(2).close();
    let file = settings.data_dir.join("raft/raft.redb");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[4096..].iter_mut().step_by(61).for_each(|byte| *byte ^= 0x11);
    std::fs::write(&file, bytes).unwrap();
    let Err(error) = Peer::try_start(&settings) else { panic!("a damaged log was taken") };
    assert!(error.to_string().contains("move its folder away and start the agent again"), "{error}");
}

#[test]
fn peers_with_certificates_form_a_cluster_and_hear_nobody_without() {
    use bigbrother::cluster::tls::issue;
    use bigbrother::config::TlsFiles;

    let (folder, mut all) = settings(&["alpha", "beta", "gamma"]);
    issue::init(folder.path(), "pirates").unwrap();
    for settings in &mut all {
        let [cert, key] = issue::issue(folder.path(), &settings.host, folder.path()).unwrap();
        settings.tls = Some(TlsFiles { ca: folder.path().join(issue::CA_CERT), cert, key });
    }
    let mut peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    primary(&peers);
    peers[2].propose(spec());
    agreed(&peers);
    // The same host with the certificate of another one is refused before it says anything.
    let mut settings = peers.remove(2).kill();
    settings.tls.clone_from(&all[0].tls);
    let Err(error) = Peer::try_start(&settings) else { panic!("gamma runs as alpha") };
    assert!(error.to_string().contains("is not that of gamma"), "{error}");
    // In plain nobody is heard.
    settings.tls = None;
    let plain = Peer::start(&settings);
    std::thread::sleep(Duration::from_secs(1));
    assert!(!plain.standing().quorum, "{:?}", plain.standing());
    plain.kill();
    settings.tls.clone_from(&all[2].tls);
    peers.push(Peer::start(&settings));
    primary(&peers);
}

/// Waits until a peer gives this for not being settled.
fn waits_for(peer: &Peer, parts: &[&str]) {
    until("it says what it waits for", || {
        let why = peer.node().unsettled().borrow().clone().unwrap_or_default();
        if parts.iter().all(|part| why.contains(part)) { Ok(()) } else { Err(why) }
    });
}

#[test]
fn a_host_that_cannot_become_a_peer_says_who_is_missing_and_why() {
    let (_folder, settings) = settings(&["alpha", "beta", "gamma"]);
    let beta = Peer::start(&settings[1]);
    waits_for(
        &beta,
        &["the cluster is founded by alpha", "alpha: cannot connect to", "gamma: cannot connect to"],
    );
    let alpha = Peer::start(&settings[0]);
    let gamma = ["missing: gamma.", "gamma: cannot connect to"];
    waits_for(&alpha, &gamma);
    // Whoever looks at another one hears the same.
    waits_for(&beta, &[&["the cluster is founded by alpha, which waits itself: "], &gamma[..]].concat());
    let peers = [alpha, beta, Peer::start(&settings[2])];
    primary(&peers);
    peers.iter().for_each(nothing_keeps);
}

/// Waits until a peer gives no reason any more for not being settled.
fn nothing_keeps(peer: &Peer) {
    until("nothing keeps it", || match peer.node().unsettled().borrow().clone() {
        None => Ok(()),
        Some(why) => Err(why),
    });
}

/// A founding of these that is written down on the disks of all but the founder; and the founder's record.
fn written_down(all: &[Settings]) -> Identity {
    let seat = |(id, settings): (u64, &Settings)| {
        let peer = raft::Peer { name: settings.host.to_string(), address: settings.listen.clone() };
        (id, Founder { peer, token: Some(id) })
    };
    let founding = Founding { history: 9, members: (1..).zip(all).map(seat).collect() };
    let record = |id| Identity::Peer { id, history: 9, founding: Some(founding.clone()) };
    (2..).zip(&all[1..]).for_each(|(id, settings)| write(settings, &record(id)));
    record(1)
}

fn write(settings: &Settings, identity: &Identity) {
    let disk = Disk::open(&settings.data_dir.join("raft")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(disk.put(Key::Identity, encode(identity).unwrap())).unwrap();
}

#[test]
fn a_peer_that_is_settled_gives_no_reason_for_waiting_any_more() {
    let (_folder, settings) = settings(&["alpha", "beta", "gamma"]);
    let founder = written_down(&settings);
    let beta = Peer::start(&settings[1]);
    waits_for(&beta, &["the cluster is founded by alpha, which does not answer", "alpha: cannot connect to"]);
    write(&settings[0], &founder);
    let peers = [Peer::start(&settings[0]), beta, Peer::start(&settings[2])];
    primary(&peers);
    peers.iter().for_each(nothing_keeps);
}

#[test]
fn a_founder_that_lost_its_disk_before_it_founded_is_told_of() {
    let (_folder, settings) = settings(&["alpha", "beta", "gamma"]);
    written_down(&settings);
    let peers: Vec<Peer> = settings.iter().map(Peer::start).collect();
    let lost = "alpha was to found the cluster, and lost its disk before this host heard";
    for peer in &peers[1..] {
        let folder = peer.settings.data_dir.join("raft");
        waits_for(peer, &[lost, &format!("move {} away", folder.display())]);
    }
    waits_for(&peers[0], &["gives it no number", lost]);
    // What it says is enough.
    let settings: Vec<Settings> = peers.into_iter().map(Peer::close).collect();
    for settings in &settings[1..] {
        std::fs::rename(settings.data_dir.join("raft"), settings.data_dir.join("away")).unwrap();
    }
    let peers: Vec<Peer> = settings.iter().map(Peer::start).collect();
    primary(&peers);
    peers.iter().for_each(nothing_keeps);
}

#[test]
fn hosts_of_two_authorities_say_that_it_is_tls_that_keeps_them_apart() {
    use bigbrother::cluster::tls::issue;
    use bigbrother::config::TlsFiles;

    let (folder, mut all) = settings(&["alpha", "beta", "gamma"]);
    for settings in &mut all[..2] {
        let own = folder.path().join(settings.host.as_str()).join("ca");
        std::fs::create_dir_all(&own).unwrap();
        issue::init(&own, "pirates").unwrap();
        let [cert, key] = issue::issue(&own, &settings.host, &own).unwrap();
        settings.tls = Some(TlsFiles { ca: own.join(issue::CA_CERT), cert, key });
    }
    // Beta takes alpha's certificate, and alpha not beta's: each end of a refusal says what it is.
    let ca = |host: usize| std::fs::read_to_string(&all[host].tls.as_ref().unwrap().ca).unwrap();
    std::fs::write(&all[1].tls.as_ref().unwrap().ca, ca(0) + &ca(1)).unwrap();
    let peers: Vec<Peer> = all[..2].iter().map(Peer::start).collect();
    waits_for(&peers[0], &["missing: beta, gamma.", "beta: cannot agree on TLS with", "of one CA"]);
    waits_for(&peers[1], &["is founded by alpha", "alpha: cannot agree on TLS with", "alert"]);
}
