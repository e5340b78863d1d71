//! Hosts are cut off, in both directions or in one.

use std::time::Duration;

use crate::fleet::{Fleet, PEERS};
use crate::lan::Cut;

#[test]
fn whoever_is_cut_off_runs_nothing_exclusive_when_it_runs_elsewhere() {
    let mut fleet = Fleet::start();
    let primary = fleet.primary();
    let peer = PEERS.into_iter().find(|peer| *peer != primary).unwrap();
    for (host, cut) in [
        (primary, Cut::Both),
        (peer, Cut::Sends),
        ("delta", Cut::Hears),
        ("epsilon", Cut::Both),
        (PEERS[2], Cut::Hears),
    ] {
        fleet.lan.cut(host, cut);
        fleet.pass(Duration::from_secs(8));
        fleet.lan.heal();
        fleet.settle(&format!("{host} was cut off ({cut:?}) for 8 s"));
    }
}

#[test]
fn without_a_quorum_all_plays_on_but_what_is_exclusive() {
    let mut fleet = Fleet::start();
    let before = fleet.running();
    let keeps = |running: &crate::fleet::Running| -> Vec<_> {
        let keep = running.iter().filter(|(instance, _)| !instance.starts_with("arena"));
        keep.map(|(instance, runs)| (instance.clone(), runs.clone())).collect()
    };
    PEERS[..2].iter().for_each(|peer| fleet.lan.cut(peer, Cut::Both));
    fleet.pass(Duration::from_secs(8));
    let without = fleet.running();
    assert_eq!(keeps(&without), keeps(&before), "nothing else has moved or ended");
    let exclusive: Vec<_> = without.keys().filter(|instance| instance.starts_with("arena")).collect();
    assert!(exclusive.is_empty(), "nobody confirms these: {exclusive:?}");
    // Reads go on, and so does supervision: what dies is started again.
    let victim = &without["zone.0"].first().unwrap().clone();
    let listed = fleet.get(&victim.0, "/v1/directory").unwrap();
    assert!(listed.as_array().unwrap().len() >= 11, "{listed}");
    let status = fleet.get("delta", "/v1/status").unwrap();
    assert_eq!(
        (&status["quorum"], &status["primary"]),
        (&false.into(), &serde_json::Value::Null),
        "{status}"
    );
    fleet.lan.heal();
    fleet.settle("two of three peers were cut off for 8 s");
}
