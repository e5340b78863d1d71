//! A backup as docs/operations.md has it: the folder `raft` of one peer, put back when all disks are lost.

use std::net::TcpListener;
use std::path::Path;

use bigbrother::http::view::PeerView;

use crate::cluster::{Cluster, NAMES, zones};
use crate::host::{expect, until};
use crate::ran::Ran;

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().flatten() {
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// Waits until this host shows these states, in the order of the ordinals.
fn zones_are(cluster: &Cluster, host: usize, wanted: &[&str]) {
    until(&format!("zones {wanted:?}"), || {
        let views = cluster.hosts[host].ps()?;
        let states: Vec<&str> = views.values().map(|view| view.state.as_str()).collect();
        expect(states == wanted, (&views, cluster.logs()))
    });
}

fn votes(cluster: &Cluster, host: usize) -> Vec<String> {
    let peers: Vec<PeerView> = serde_json::from_value(cluster.json(host, &["peers"])).unwrap();
    // In the order of their numbers.
    let mut votes: Vec<String> = peers.iter().map(|peer| format!("{} {}", peer.host, peer.role)).collect();
    votes.sort();
    votes
}

#[test]
fn a_backup_of_one_peer_brings_the_cluster_back_when_all_disks_are_lost() {
    let mut cluster = Cluster::of(4, zones);
    cluster.ok(3, &["scale", "zone", "4"]);
    cluster.ok(3, &["stop", "zone.1"]);
    let kept = ["ready", "paused", "ready", "ready"];
    zones_are(&cluster, 0, &kept);

    // The backup, while the games go on.
    let saved = 2;
    let backup = cluster.hosts[saved].root.join("backup");
    let raft = |cluster: &Cluster, host: usize| cluster.hosts[host].data.join("raft");
    cluster.hosts[saved].stop_agent();
    copy(&raft(&cluster, saved), &backup);
    cluster.hosts[saved].start();
    zones_are(&cluster, 0, &kept);
    cluster.ok(3, &["scale", "zone", "6"]);
    cluster.ok(3, &["start", "zone.1"]);
    zones_are(&cluster, 0, &["ready"; 6]);
    let applied = cluster.hosts[saved].data.join("applied.json");
    until("its file was in force at the revision of the copy", || {
        let memory = std::fs::read_to_string(&applied).unwrap();
        expect(memory.contains("\"revision\":2"), memory)
    });

    // All is lost, but for the attached host's copy, which is newer.
    let attached = cluster.hosts[3].data.join("attached.bin");
    until("an attached host's copy", || expect(attached.exists(), &attached));
    cluster.hosts.iter_mut().for_each(|host| host.power_off());
    (0..3).for_each(|peer| std::fs::remove_dir_all(raft(&cluster, peer)).unwrap());
    copy(&backup, &raft(&cluster, saved));
    let file = cluster.hosts[saved].config();
    let told = cluster.ok(saved, &["peers", "recover", "--config", file.to_str().unwrap(), "--yes"]).out;
    assert!(told.contains("attached.bin") && told.contains("peers promote"), "{told}");
    std::fs::remove_file(&attached).unwrap();
    // That it applied this revision was before.
    let file = zones(&cluster.hosts[0]).replace("count = 6", "count = 7");
    cluster.hosts[saved].write_config(&file);
    // The others come first: they have no numbers, and are a majority that found no cluster of their own.
    for host in [0, 1, 3] {
        cluster.hosts[host].launch_agent();
    }
    until("they wait for the copy", || {
        // On a slow machine its start is over before the others are heard.
        let apart = cluster.status(0)?.apart.unwrap_or_default();
        expect(apart.contains("once all its peers answer; missing: gamma."), (apart, cluster.logs()))
    });
    cluster.hosts[saved].launch_agent();

    // What was changed since is gone, what was changed before is there.
    for host in 0..4 {
        zones_are(&cluster, host, &kept);
    }
    until("its file is not applied unasked", || {
        let status = cluster.status(saved)?;
        let told = status.spec_drift.as_ref().is_some_and(|drift| drift.contains("zone"));
        expect(told && status.revision == 2, status)
    });
    // The others are newcomers, and vote when they are told to.
    for peer in (0..3).filter(|peer| *peer != saved) {
        until("it is a peer", || {
            let votes = votes(&cluster, saved);
            expect(votes.contains(&format!("{} learner", NAMES[peer])), votes)
        });
        cluster.ok(3, &["peers", "promote", NAMES[peer]]);
    }
    assert_eq!(votes(&cluster, 3), ["alpha voter", "beta voter", "gamma voter"]);
    // It bears the loss of the one that all came from.
    cluster.hosts[saved].power_off();
    let asked = cluster.other(&[saved]);
    until("a change goes through", || {
        let scaled = cluster.run(asked, &["scale", "zone", "5"]);
        expect(scaled.code == Some(0), scaled)
    });
    zones_are(&cluster, asked, &["ready", "paused", "ready", "ready", "ready"]);
}

/// Takes connections where a host's agent would, and says nothing.
fn mute(cluster: &Cluster, host: usize) -> TcpListener {
    let address = ("127.0.0.1", agent_port(cluster, host));
    until("its port is free", || TcpListener::bind(address).map_err(|error| error.to_string()))
}

fn agent_port(cluster: &Cluster, host: usize) -> u16 {
    cluster.hosts[host].ports.0 - 1
}

/// With certificates, without which nobody that lives could be told from another program.
#[test]
fn a_copy_is_refused_while_a_peer_that_it_knows_lives_and_beside_something_unclear_taken_only_anyway() {
    let mut cluster = Cluster::secured(3, zones);
    assert_eq!(votes(&cluster, 0), ["alpha voter", "beta voter", "gamma voter"]);
    (0..2).for_each(|host| cluster.hosts[host].power_off());
    let file = cluster.hosts[0].config();
    let (text, gamma) = (std::fs::read_to_string(&file).unwrap(), agent_port(&cluster, 2));
    let without = text.replace(&format!(", gamma = \"127.0.0.1:{gamma}\""), "");
    assert_ne!(without, text);
    std::fs::write(&file, without).unwrap();
    let recover = |cluster: &Cluster, more: &[&str]| {
        cluster.run(0, &[&["peers", "recover", "--config", file.to_str().unwrap(), "--yes"], more].concat())
    };
    let refused = |ran: Ran, words: &str| expect(ran.code == Some(1) && ran.err.contains(words), ran);
    // A busy machine may keep it from answering in time, and nothing is changed by that.
    let living = || refused(recover(&cluster, &[]), "gamma answers at");
    until("gamma is known by its certificate", living);

    cluster.hosts[2].power_off();
    let (unclear, of_the_file) = (mute(&cluster, 2), mute(&cluster, 1));
    refused(recover(&cluster, &["--anyway"]), "beta answers at").unwrap();
    drop(of_the_file);
    refused(recover(&cluster, &[]), "`bigbrother peers recover --anyway`").unwrap();
    let taken = recover(&cluster, &["--anyway"]);
    assert!(taken.code == Some(0) && taken.out.contains("alpha is the only peer"), "{taken:?}");
    drop(unclear);
    cluster.hosts[0].start();
    until("it is the primary", || {
        let status = cluster.status(0)?;
        expect(status.quorum && status.primary.as_ref().is_some_and(|host| host.as_str() == "alpha"), status)
    });
    assert_eq!(votes(&cluster, 0), ["alpha voter"]);
}
