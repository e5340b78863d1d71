//! Hosts that are no peers: they attach, follow, and fail over; `finding` is how they find a peer at all.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bigbrother::cluster::node::ProposeError;
use bigbrother::cluster::session::Attached;
use bigbrother::state::Response;

use super::hosts::*;
use super::net::{Net, cut_off};
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
fn hosts_of_a_silent_peer_do_not_leave_it_all_at_once() {
    let (_folder, mut all) = settings(&["alpha", "beta", "gamma"]);
    let net = Net::before(&mut all);
    let peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    primary(&peers);
    let names: Vec<String> = (0..24).map(|number| format!("host{number}")).collect();
    names.iter().for_each(|host| ["beta", "gamma"].iter().for_each(|peer| net.cut(host, peer)));
    let hosts: Vec<Host> = names.iter().map(|host| Host::start(&host_of(&all[0], host))).collect();
    assert!(hosts.iter().all(|host| host.served() == name("alpha")));
    net.heal();
    let since = Instant::now();
    peers[0].stall(Duration::from_secs(10));
    let mut times = BTreeMap::new();
    until("all have left it", || {
        for (number, host) in hosts.iter().enumerate() {
            if host.served_by() != Some(name("alpha")) {
                times.entry(number).or_insert_with(|| since.elapsed());
            }
        }
        if times.len() == hosts.len() { Ok(()) } else { Err(times.clone()) }
    });
    // Two dozen, each at some moment of half a second: closer together than this they come once in a million times.
    let spread = *times.values().max().unwrap() - *times.values().min().unwrap();
    assert!(spread > Duration::from_millis(250), "within {spread:?}: {times:?}");
    assert!(hosts.iter().all(|host| host.served() != name("alpha")));
}

#[test]
fn a_host_leaves_a_peer_that_is_cut_off_from_the_others() {
    let (_folder, mut all) = settings(&["alpha", "beta", "gamma"]);
    let net = Net::before(&mut all);
    let peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    primary(&peers);
    let host = Host::start(&host_of(&all[0], "delta"));
    let old = host.served();
    cut_off(&net, &peers[place(&peers, &old)], &peers);
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
