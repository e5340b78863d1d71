//! The primary's disk is full.

use std::time::Duration;

use crate::fleet::{Fleet, PEERS};

#[test]
fn a_full_disk_on_the_primary_stops_nobody_for_long() {
    let mut fleet = Fleet::start_with(&PEERS);
    let primary = fleet.primary();
    let before = fleet.running();
    fleet.fill_disk(primary);
    fleet.pass(Duration::from_secs(3));
    // Something to write down: a host is lost, and its instances go elsewhere.
    fleet.switch_off("delta");
    fleet.settle("the primary's disk was full, and delta was switched off");
    fleet.empty_disk(primary);
    fleet.switch_on("delta");
    fleet.settle("there was room again, and delta was switched on");
    let moved = before.keys().filter(|id| id.starts_with("each.")).count();
    assert_eq!(moved, 5);
}
