//! When nothing happens, nothing is written.

use std::time::Duration;

use crate::fleet::{Fleet, HOSTS};

#[test]
fn a_hundred_heartbeating_processes_write_nothing_into_the_log() {
    let mut fleet = Fleet::start();
    fleet.zones = 100;
    fleet.command("delta", &["scale", "zone", "100"]);
    fleet.settle("a hundred zones were asked for");
    let index = |fleet: &Fleet, host: &str| fleet.get(host, "/v1/status").unwrap()["index"].as_u64().unwrap();
    let beats = |fleet: &Fleet| -> Vec<u64> {
        let all = HOSTS.iter().flat_map(|host| fleet.own(host));
        let zones = all.filter(|one| one["process"] == "zone");
        zones.map(|one| one["heartbeat"]["age_ms"].as_u64().expect("a beat")).collect()
    };
    // A settled cluster may still owe the state what came of the last start.
    let mut before = None;
    for _ in 0..20 {
        fleet.pass(Duration::from_secs(2));
        let now: Vec<u64> = HOSTS.into_iter().map(|host| index(&fleet, host)).collect();
        if before.as_ref() == Some(&now) {
            break;
        }
        before = Some(now);
    }
    let before = before.expect("it was looked for");
    fleet.pass(Duration::from_secs(30));
    let ages = beats(&fleet);
    assert_eq!(ages.len(), 100);
    assert!(ages.iter().all(|age| *age < 5_000), "they beat all the time: {ages:?}");
    let after: Vec<u64> = HOSTS.into_iter().map(|host| index(&fleet, host)).collect();
    assert_eq!(after, before, "an entry was written");
}
