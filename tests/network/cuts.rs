//! Hosts are cut off, in both directions or in one.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::fleet::{Fleet, HOSTS, PEERS, Running, send};
use crate::lan::Cut;
use crate::witness;

#[test]
fn whoever_is_cut_off_runs_nothing_exclusive_when_it_runs_elsewhere() {
    let mut fleet = Fleet::start();
    let primary = fleet.primary();
    let peer = PEERS.into_iter().find(|peer| *peer != primary).unwrap();
    let mut struck = 0;
    for (host, cut) in [
        (primary, Cut::Both),
        (peer, Cut::Sends),
        ("delta", Cut::Hears),
        ("epsilon", Cut::Both),
        (PEERS[2], Cut::Hears),
    ] {
        let (exclusive, runs) = (fleet.exclusive(host), witness::runs(&fleet.shared()));
        fleet.lan.cut(host, cut);
        fleet.pass(Duration::from_secs(8));
        fleet.lan.heal();
        fleet.settle(&format!("{host} was cut off ({cut:?}) for 8 s"));
        let anew = witness::runs(&fleet.shared()) - runs;
        assert!(anew >= exclusive, "{host} had {exclusive} exclusive ones, {anew} were started anew");
        struck += exclusive;
    }
    assert!(struck > 0, "nothing exclusive was ever cut off");
}

#[test]
fn a_cut_off_host_whose_keeper_stands_still_runs_nothing_exclusive_either() {
    let mut fleet = Fleet::start();
    let host = exclusive_host(&fleet);
    let keeper = fleet.keeper(host).expect("a keeper");
    send(keeper, Signal::SIGSTOP);
    fleet.lan.cut(host, Cut::Both);
    fleet.until("all that is exclusive runs elsewhere", |fleet| {
        let running = fleet.running();
        let mut arenas = running.iter().filter(|(instance, _)| instance.starts_with("arena"));
        let elsewhere = |runs: &BTreeSet<(String, u64)>| runs.iter().all(|(at, _)| at != host);
        let all = arenas.clone().count() == 3 && arenas.all(|(_, runs)| elsewhere(runs));
        if all { Ok(()) } else { Err(format!("{running:?}")) }
    });
    fleet.lan.heal();
    send(keeper, Signal::SIGCONT);
    fleet.settle(&format!("{host} was cut off, and its keeper stood still"));
}

/// A host that runs something exclusive and is not the primary.
fn exclusive_host(fleet: &Fleet) -> &'static str {
    let primary = fleet.primary();
    let struck = HOSTS.into_iter().find(|host| *host != primary && fleet.exclusive(host) > 0);
    struck.expect("they are spread over three hosts")
}

#[test]
fn without_a_quorum_all_plays_on_but_what_is_exclusive() {
    let mut fleet = Fleet::start();
    let before = fleet.running();
    PEERS[..2].iter().for_each(|peer| fleet.lan.cut(peer, Cut::Both));
    fleet.pass(Duration::from_secs(8));
    let without = fleet.running();
    assert_eq!(keeps(&without), keeps(&before), "nothing else has moved or ended");
    let exclusive: Vec<_> = without.keys().filter(|instance| instance.starts_with("arena")).collect();
    assert!(exclusive.is_empty(), "nobody confirms these: {exclusive:?}");
    // Reads go on, changes are refused with the reason.
    let listed = fleet.get("epsilon", "/v1/directory").unwrap();
    assert!(listed.as_array().unwrap().len() >= 11, "{listed}");
    let status = fleet.get("delta", "/v1/status").unwrap();
    assert_eq!(
        (&status["quorum"], &status["primary"]),
        (&false.into(), &serde_json::Value::Null),
        "{status}"
    );
    let refused = fleet.try_command("delta", &["scale", "zone", "9"]).unwrap_err();
    assert!(refused.contains("no quorum"), "{refused}");
    // What dies is started again, without asking anybody.
    let victim = "zone.3";
    let (home, first) = without[victim].first().cloned().expect("a run");
    kill_run(&fleet, victim);
    fleet.until(&format!("{victim} runs again"), |fleet| {
        match fleet.running().get(victim).and_then(|runs| runs.first().cloned()) {
            Some((host, run)) if host == home && run > first => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    fleet.lan.heal();
    fleet.settle("two of three peers were cut off for 8 s");
}

#[test]
fn a_host_that_boots_without_a_quorum_starts_what_it_ran_before() {
    let mut fleet = Fleet::start();
    // What an attached host knows is on its disk a second later at the latest.
    fleet.pass(Duration::from_secs(2));
    let before = keeps(&fleet.running());
    PEERS[..2].iter().for_each(|peer| fleet.lan.cut(peer, Cut::Both));
    for host in ["gamma", "delta"] {
        fleet.switch_off(host);
        fleet.switch_on(host);
    }
    let mine = |running: &Running, host: &str| -> Vec<String> {
        let on = running.iter().filter(|(_, runs)| runs.iter().any(|(on, _)| on == host));
        on.map(|(instance, _)| instance.clone()).collect()
    };
    let whole: Running = before.clone().into_iter().collect();
    for host in ["gamma", "delta"] {
        let wanted = mine(&whole, host);
        assert!(wanted.len() > 1, "{host} ran too little to be seen: {wanted:?}");
        fleet.until(&format!("{host} runs what it ran"), |fleet| {
            let found = mine(&fleet.running(), host);
            if found == wanted { Ok(()) } else { Err(format!("{found:?}, not {wanted:?}")) }
        });
    }
    fleet.lan.heal();
    fleet.settle("two hosts booted while there was no quorum");
}

/// What plays on through a partition.
fn keeps(running: &Running) -> Vec<(String, BTreeSet<(String, u64)>)> {
    let keep = running.iter().filter(|(instance, _)| !instance.starts_with("arena"));
    keep.map(|(instance, runs)| (instance.clone(), runs.clone())).collect()
}

fn kill_run(fleet: &Fleet, instance: &str) {
    let mine = HOSTS.iter().flat_map(|host| fleet.own(host)).find(|one| one["instance"] == instance);
    let pid = mine.as_ref().and_then(|one| one["pid"].as_i64()).expect("a process");
    send(pid as i32, Signal::SIGKILL);
}
