//! Hosts that are no peers: they attach, follow, fail over, and find back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bigbrother::cluster::node::ProposeError;
use bigbrother::cluster::session::Attached;
use bigbrother::cluster::session::kept::FILE;
use bigbrother::cluster::wire::Kind;
use bigbrother::state::{Response, Target};

use super::hosts::*;
use super::net::Net;
use super::peers::*;

/// A silence of 1 s, its jitter of 0.5 s, and the search.
const FAILOVER: Duration = Duration::from_secs(2);

fn place(peers: &[Peer], host: &bigbrother::spec::HostName) -> usize {
    peers.iter().position(|peer| peer.name() == host).unwrap()
}

#[test]
fn an_attached_host_has_the_state_and_says_how_the_cluster_stands() {
    let (_folder, peers) = formed(&["alpha", "beta", "gamma"]);
    peers[0].propose(spec());
    let hosts: Vec<Host> =
        ["delta", "epsilon"].iter().map(|host| Host::start(&host_of(&peers[0].settings, host))).collect();
    for (number, host) in hosts.iter().enumerate() {
        host.propose(launch(&format!("by host {number}")));
        // Whoever asked has it in its own copy.
        assert!(notes(&host.state()).contains(&format!("by host {number}")));
    }
    for (number, peer) in peers.iter().enumerate() {
        peer.propose(launch(&format!("by peer {number}")));
        hosts[0].run(hosts[0].attached().catch_up()).unwrap();
        assert!(notes(&hosts[0].state()).contains(&format!("by peer {number}")));
    }
    let state = agreed(&peers);
    assert_eq!(notes(&state).len(), 5);
    for host in &hosts {
        assert_eq!(alike(host, &peers[0]), state);
        assert_eq!(host.attached().wholes(), 0, "it began with nothing, as the log does");
        let wanted = peers[primary(&peers)].standing();
        until("the same standing", || {
            let standing = host.attached().standing().borrow().clone();
            if standing == wanted { Ok(()) } else { Err(format!("{standing:?}, not {wanted:?}")) }
        });
        let members: BTreeMap<_, _> = host.attached().members().into_iter().collect();
        assert_eq!(members, peers[0].settings.peers);
    }
    let refused = hosts[0].run(
        hosts[0]
            .attached()
            .propose(bigbrother::state::Command::Roll { process: "nothing".parse().unwrap(), epoch: 1 }),
    );
    assert!(matches!(refused, Err(ProposeError::Rejected(_))), "{refused:?}");
}

#[test]
fn hosts_spread_evenly() {
    let (_folder, peers) = formed(&["alpha", "beta", "gamma"]);
    let names: Vec<String> = (0..30).map(|number| format!("host{number}")).collect();
    let hosts: Vec<Host> = names.iter().map(|host| Host::start(&host_of(&peers[0].settings, host))).collect();
    let mut served = BTreeMap::new();
    for host in &hosts {
        *served.entry(host.served()).or_insert(0u64) += 1;
    }
    assert_eq!(served.values().copied().collect::<Vec<_>>(), [10, 10, 10], "{served:?}");
    for peer in &peers {
        until("as many hosts", || {
            let attached = peer.node().attached();
            if attached == 10 { Ok(()) } else { Err(attached) }
        });
    }
}

/// Waits until the host has left `old`, and is served by another one; how long that took since.
fn left(host: &Host, old: &bigbrother::spec::HostName, since: Instant) -> Duration {
    let new =
        until("another peer", || host.served_by().filter(|peer| peer != old).ok_or_else(|| host.trouble()));
    let took = since.elapsed();
    println!("{} left {old} for {new} after {} ms", host.settings.host, took.as_millis());
    took
}

#[test]
fn a_host_leaves_a_killed_peer_and_misses_nothing() {
    let (_folder, mut peers) = formed(&["alpha", "beta", "gamma"]);
    peers[0].propose(spec());
    let host = Host::start(&host_of(&peers[0].settings, "delta"));
    let old = host.served();
    alike(&host, &peers[0]);
    let killed = Instant::now();
    let at = place(&peers, &old);
    peers.remove(at).kill();
    let took = left(&host, &old, killed);
    assert!(took < FAILOVER, "{took:?}");
    host.propose(launch("afterwards"));
    peers[0].propose(launch("by a peer"));
    assert_eq!(notes(&alike(&host, &peers[0])).len(), 2);
    assert_eq!(host.attached().wholes(), 0, "it went on where it stood");
}

#[test]
fn a_host_leaves_a_peer_that_is_silent() {
    let (_folder, peers) = formed(&["alpha", "beta", "gamma"]);
    peers[0].propose(spec());
    let host = Host::start(&host_of(&peers[0].settings, "delta"));
    let old = host.served();
    alike(&host, &peers[0]);
    let since = Instant::now();
    peers[place(&peers, &old)].stall(Duration::from_secs(10));
    let took = left(&host, &old, since);
    assert!(took < FAILOVER, "{took:?}");
    assert!(took > Duration::from_millis(600), "it left a peer that was silent for {took:?} only");
    host.propose(launch("afterwards"));
}

#[test]
fn a_host_leaves_a_peer_that_is_cut_off_from_the_others() {
    let (_folder, mut all) = settings(&["alpha", "beta", "gamma"]);
    let net = Net::before(&mut all);
    let peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    primary(&peers);
    let host = Host::start(&host_of(&all[0], "delta"));
    let old = host.served();
    for peer in &peers {
        net.cut(peer.name().as_str(), old.as_str());
        net.cut(old.as_str(), peer.name().as_str());
    }
    left(&host, &old, Instant::now());
    host.propose(spec());
}

#[test]
fn a_change_of_a_host_is_applied_once_whatever_happens_to_its_peer() {
    let (_folder, mut peers) = formed(&["alpha", "beta", "gamma"]);
    peers[0].propose(spec());
    let host = Host::start(&host_of(&peers[0].settings, "delta"));
    let at = place(&peers, &host.served());
    let victim = peers.remove(at);
    let done = AtomicBool::new(false);
    let asked: Vec<Result<Response, ProposeError>> = std::thread::scope(|scope| {
        let worker = |worker: usize| {
            let (host, done) = (&host, &done);
            scope.spawn(move || {
                let mut asked = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    asked.push(host.run(host.attached().propose(launch(&format!("worker {worker}")))));
                }
                asked
            })
        };
        let workers: Vec<_> = (0..4).map(worker).collect();
        std::thread::sleep(Duration::from_millis(300));
        let old = victim.name().clone();
        victim.kill();
        left(&host, &old, Instant::now());
        primary(&peers);
        host.propose(launch("the last"));
        done.store(true, Ordering::Relaxed);
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let state = agreed(&peers);
    assert_eq!(alike(&host, &peers[0]), state);
    let mut ids: Vec<String> = asked.iter().flatten().map(|response| format!("{response:?}")).collect();
    let answers = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), answers, "two answers name one instance");
    assert!(answers > 8, "{answers} answers");
    // Each answer names an instance of its own; one without an answer may have been carried out, or not.
    let (launched, most) = (state.launches.len() - 1, asked.len());
    assert!((answers..=most).contains(&launched), "{launched} launched, {answers} of {most} answered");
}

#[test]
fn after_a_short_cut_a_host_gets_what_it_missed_and_after_a_long_one_the_whole_state() {
    let (_folder, mut all) = settings(&["alpha", "beta", "gamma"]);
    all.iter_mut().for_each(|settings| settings.snapshot_every = 20);
    let net = Net::before(&mut all);
    let mut peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    primary(&peers);
    peers[0].propose(spec());
    let host = Host::start(&host_of(&all[0], "delta"));
    alike(&host, &peers[0]);
    for peer in &peers {
        net.cut("delta", peer.name().as_str());
    }
    until("nobody serves it", || host.served_by().map_or(Ok(()), Err));
    for number in 0..50 {
        peers[0].propose(launch(&format!("short {number}")));
    }
    assert_eq!(host.state().launches.len(), 0);
    net.heal();
    alike(&host, &peers[0]);
    assert_eq!(host.attached().wholes(), 0);
    // Peers that start again know what they applied since their newest snapshot.
    let settings = host.kill();
    for number in 0..100 {
        peers[0].propose(launch(&format!("long {number}")));
    }
    agreed(&peers);
    let all: Vec<_> = peers.drain(..).map(Peer::close).collect();
    let peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    primary(&peers);
    let host = Host::start(&settings);
    assert_eq!(notes(&alike(&host, &peers[0])).len(), 150);
    assert_eq!(host.attached().wholes(), 1);
    peers[0].propose(launch("afterwards"));
    alike(&host, &peers[0]);
    assert_eq!(host.attached().wholes(), 1, "from there on it goes on step by step");
}

#[test]
fn a_slow_host_holds_up_nobody_and_gets_the_whole_state_in_parts() {
    let (_folder, mut all) = settings(&["alpha", "beta", "gamma"]);
    let net = Net::before(&mut all);
    let peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    primary(&peers);
    peers[0].propose(spec());
    let mut settings = host_of(&all[0], "delta");
    // It stands still, and notices nothing.
    settings.peer_silence = Duration::from_secs(600);
    let slow = Host::start(&settings);
    let quick = Host::start(&host_of(&all[0], "epsilon"));
    alike(&slow, &peers[0]);
    for peer in &peers {
        net.cut("delta", peer.name().as_str());
    }
    let note = "x".repeat(1 << 20);
    let since = Instant::now();
    for number in 0..20 {
        quick.propose(launch(&format!("{number} {note}")));
    }
    println!("20 changes of 1 MiB took {} ms", since.elapsed().as_millis());
    assert_eq!(notes(&alike(&quick, &peers[0])).len(), 20);
    assert_eq!(quick.attached().wholes(), 0);
    assert_eq!(slow.state().launches.len(), 0);
    net.heal();
    assert_eq!(notes(&alike(&slow, &peers[0])).len(), 20);
    assert_eq!(slow.attached().wholes(), 1);
}

#[test]
fn a_host_that_starts_without_any_peer_knows_the_last_state() {
    let (_folder, mut peers) = formed(&["alpha", "beta", "gamma"]);
    peers[0].propose(spec());
    let settings = host_of(&peers[0].settings, "delta");
    let host = Host::start(&settings);
    host.propose(launch("before"));
    let state = alike(&host, &peers[0]);
    let file = settings.data_dir.join(FILE);
    // It is written without being asked to.
    until("the file", || if file.exists() { Ok(()) } else { Err(()) });
    let standing = host.attached().standing().borrow().clone();
    let settings = host.close();
    let all: Vec<_> = peers.drain(..).map(Peer::kill).collect();
    let host = Host::start(&settings);
    assert_eq!(host.state(), state, "at once");
    let alone = host.attached().standing().borrow().clone();
    assert_eq!((alone.index, alone.primary, alone.quorum), (standing.index, None, false));
    assert_eq!(host.attached().members().len(), 3);
    until("why", || {
        host.trouble().filter(|why| why.contains("alpha: cannot connect to")).ok_or(host.trouble())
    });
    let refused = host.run(host.attached().call(Kind::Roll, Vec::new(), Duration::from_millis(50)));
    assert!(refused.unwrap_err().to_string().contains("no peer serves this host"));
    let peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    host.propose(launch("after"));
    assert_eq!(notes(&alike(&host, &peers[0])).len(), 2);
    assert_eq!((host.attached().wholes(), host.trouble()), (0, None));
    // What is no file of ours is begun anew.
    let settings = host.close();
    for bytes in [b"rubbish".to_vec(), std::fs::read(&file).unwrap().split_last().unwrap().1.to_vec()] {
        std::fs::write(&file, bytes).unwrap();
        let host = Host::start(&settings);
        assert_eq!(notes(&alike(&host, &peers[0])).len(), 2);
        host.kill();
    }
    let mut other = settings.clone();
    other.peers.clear();
    std::fs::remove_file(&file).unwrap();
    let Err(error) = Host::try_start(&other) else { panic!("it asks nobody") };
    assert!(error.to_string().contains("no peer is known"), "{error}");
}

#[test]
fn a_host_of_another_cluster_or_another_founding_hears_why_it_is_not_served() {
    let (_folder, peers) = formed(&["alpha", "beta", "gamma"]);
    let mut stranger = host_of(&peers[0].settings, "delta");
    stranger.cluster = "ninjas".to_owned();
    let stranger = Host::start(&stranger);
    let why = |host: &Host, text: &str| {
        until(text, || host.trouble().filter(|why| why.contains(text)).ok_or(host.trouble()));
        assert_eq!(host.served_by(), None);
    };
    why(&stranger, "alpha belongs to the cluster \"pirates\", not \"ninjas\"");
    let host = Host::start(&host_of(&peers[0].settings, "epsilon"));
    host.propose(bigbrother::state::Command::Pause { target: Target::All });
    let mut moved = host.close();
    let (_other, others) = formed(&["alpha", "beta", "gamma"]);
    moved.peers.clone_from(&others[0].settings.peers);
    // Nor does it go back to the peers it knows.
    drop(peers);
    let moved = Host::start(&moved);
    why(&moved, "belongs to another founding of the cluster \"pirates\"");
    assert!(moved.state().paused.all, "its own state is kept");
    // With the file moved away it begins anew.
    let settings = moved.kill();
    std::fs::remove_file(settings.data_dir.join(FILE)).unwrap();
    let moved = Host::start(&settings);
    assert_eq!(alike(&moved, &others[0]), others[0].state());
}

#[test]
fn a_host_speaks_for_itself_only() {
    let (_folder, peers) = formed(&["alpha", "beta", "gamma"]);
    let host = Host::start(&host_of(&peers[0].settings, "delta"));
    let join = |name: &str| bigbrother::state::Command::JoinHost {
        host: name.parse().unwrap(),
        facts: bigbrother::state::HostFacts { version: peers[0].state().version, ..Default::default() },
    };
    let Response::Incarnation(life) = host.propose(join("delta")) else { panic!("no incarnation") };
    host.attached().set_incarnation(life);
    let other = host.run(host.attached().propose(join("beta"))).unwrap_err();
    assert!(matches!(other, ProposeError::NoPrimary(_)));
    for kind in [Kind::Vote, Kind::Append, Kind::Join, Kind::Transfer] {
        let asked = host.run(host.attached().call(kind, Vec::new(), Duration::from_secs(5)));
        assert!(asked.is_err(), "{kind:?}: {asked:?}");
    }
    assert_eq!(agreed(&peers).hosts.keys().collect::<Vec<_>>(), [&name("delta")]);
}

#[test]
fn hosts_go_where_there_are_far_fewer() {
    let (_folder, mut all) = settings(&["alpha", "beta", "gamma"]);
    let net = Net::before(&mut all);
    let peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    primary(&peers);
    let names: Vec<String> = (0..6).map(|number| format!("host{number}")).collect();
    names.iter().for_each(|host| ["beta", "gamma"].iter().for_each(|peer| net.cut(host, peer)));
    let start = |host: &String| {
        let mut settings = host_of(&all[0], host);
        settings.move_after = Duration::from_millis(200);
        Host::start(&settings)
    };
    let hosts: Vec<Host> = names.iter().map(start).collect();
    assert!(hosts.iter().all(|host| host.served() == name("alpha")));
    net.heal();
    until("a fair share", || {
        let loads: Vec<u64> = peers.iter().map(|peer| peer.node().attached()).collect();
        let (most, least) = (*loads.iter().max().unwrap(), *loads.iter().min().unwrap());
        if loads.iter().sum::<u64>() == 6 && most < 2 * least + 2 { Ok(()) } else { Err(loads) }
    });
    assert!(hosts.iter().all(|host| host.served_by().is_some()), "one is served all the time");
}

#[test]
fn a_host_finds_peers_by_what_it_learnt_and_by_what_its_file_says() {
    let (_folder, mut all) = settings(&["alpha", "beta", "gamma"]);
    let net = Net::before(&mut all);
    let peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    primary(&peers);
    let file = host_of(&all[0], "delta");
    let host = Host::start(&file);
    host.served();
    let mut settings = host.close();
    settings.peers.values_mut().for_each(|address| *address = "127.0.0.1:1".to_owned());
    let host = Host::start(&settings);
    host.served();
    // What was learnt leads nowhere any more.
    let mut settings = host.close();
    drop(net);
    for (peer, address) in &mut settings.peers {
        let listen = all.iter().find(|settings| settings.host == *peer).map(|settings| &settings.listen);
        address.clone_from(listen.unwrap());
    }
    let host = Host::start(&settings);
    host.served();
}

#[test]
fn names_are_resolved_anew() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    // The thread has an /etc/hosts of its own, and so have those that it makes.
    let test = || {
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS)
            .expect("this test must run as root: it has an /etc/hosts of its own");
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let (folder, mut all) = settings(&["alpha", "beta", "gamma"]);
        let hosts = folder.path().join("hosts");
        let resolve = |to: &str| std::fs::write(&hosts, format!("{to} peers.test\n")).unwrap();
        resolve("127.0.0.1");
        mount(Some(&hosts), "/etc/hosts", none, MsFlags::MS_BIND, none).unwrap();
        let named: BTreeMap<_, _> = all[0]
            .peers
            .iter()
            .map(|(host, address)| (host.clone(), address.replace("127.0.0.1", "peers.test")))
            .collect();
        all.iter_mut().for_each(|settings| settings.peers.clone_from(&named));
        let peers: Vec<Peer> = all.iter().map(Peer::start).collect();
        primary(&peers);
        let host = Host::start(&host_of(&all[0], "delta"));
        host.propose(spec());
        peers.into_iter().for_each(|peer| drop(peer.kill()));
        resolve("127.0.0.2");
        all.iter_mut()
            .for_each(|settings| settings.listen = settings.listen.replace("127.0.0.1", "127.0.0.2"));
        let peers: Vec<Peer> = all.iter().map(Peer::start).collect();
        host.propose(launch("there"));
        assert_eq!(notes(&alike(&host, &peers[0])).len(), 1);
    };
    std::thread::spawn(test).join().unwrap();
}

#[test]
fn a_host_with_a_certificate_is_served_and_one_without_is_not() {
    use bigbrother::cluster::tls::issue;
    use bigbrother::config::TlsFiles;

    let (folder, mut all) = settings(&["alpha", "beta", "gamma"]);
    issue::init(folder.path(), "pirates").unwrap();
    let files = |host: &bigbrother::spec::HostName| {
        let [cert, key] = issue::issue(folder.path(), host, folder.path()).unwrap();
        Some(TlsFiles { ca: folder.path().join(issue::CA_CERT), cert, key })
    };
    all.iter_mut().for_each(|settings| settings.tls = files(&settings.host));
    let peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    primary(&peers);
    let mut settings = host_of(&all[0], "delta");
    settings.tls = files(&settings.host);
    let host = Host::start(&settings);
    host.propose(spec());
    alike(&host, &peers[0]);
    let mut settings = host.close();
    settings.host = name("epsilon");
    let Err(error) = Host::try_start(&settings) else { panic!("epsilon runs as delta") };
    assert!(error.to_string().contains("is not that of epsilon"), "{error}");
    settings.tls = None;
    let plain = Host::start(&settings);
    until("why", || plain.trouble().ok_or(()));
    assert_eq!(plain.served_by(), None);
}

/// Proposes one change after another, and gives the error that ends it.
async fn until_it_fails(attached: Attached) -> ProposeError {
    loop {
        if let Err(error) = attached.propose(launch("taken")).await {
            return error;
        }
    }
}

#[test]
fn a_host_tells_a_change_that_a_primary_took_from_one_that_nobody_took() {
    let (_folder, mut peers) = formed(&["alpha", "beta", "gamma"]);
    peers[0].propose(spec());
    // They spread, so one of them is served by the primary.
    let hosts: Vec<Host> = ["delta", "epsilon", "zeta"]
        .iter()
        .map(|host| {
            let host = Host::start(&host_of(&peers[0].settings, host));
            host.served();
            host
        })
        .collect();
    let last = peers.remove(primary(&peers));
    let host = hosts.iter().find(|host| host.served() == *last.name()).expect("one that the primary serves");
    host.propose(launch("before"));
    // Some are on their way whenever the others die, so the primary has taken one that it can never confirm.
    let streams: Vec<_> = (0..8).map(|_| host.spawn(until_it_fails(host.attached()))).collect();
    until("changes", || if notes(&last.state()).contains("taken") { Ok(()) } else { Err(last.standing()) });
    peers.drain(..).for_each(|peer| drop(peer.kill()));
    let ends: Vec<ProposeError> = streams.into_iter().map(|stream| host.run(stream).unwrap()).collect();
    assert!(ends.iter().any(|end| matches!(end, ProposeError::Unknown(_))), "{ends:?}");
    until("no primary", || if last.standing().primary.is_none() { Ok(()) } else { Err(last.standing()) });
    let refused = host.run(host.attached().propose(launch("refused"))).unwrap_err();
    assert!(matches!(refused, ProposeError::NoPrimary(_)), "{refused}");
    last.kill();
    until("nobody serves it", || host.served_by().map_or(Ok(()), Err));
    let alone = host.run(host.attached().propose(launch("alone"))).unwrap_err();
    assert!(matches!(alone, ProposeError::NoPeer(_)), "{alone}");
    assert!(alone.to_string().contains("no peer serves this host"), "{alone}");
}
