//! The primary's disk is full.

use std::time::Duration;

use crate::fleet::{Fleet, PEERS};

#[test]
fn a_full_disk_on_the_primary_stops_nobody_else_and_it_is_back_when_there_is_room() {
    let mut fleet = Fleet::start_with(&PEERS);
    let full = fleet.primary();
    let witness = PEERS.into_iter().find(|peer| *peer != full).unwrap();
    fleet.fill_disk(full);
    // Something to write down: a host is lost, and more is asked for.
    fleet.switch_off("delta");
    fleet.pass(Duration::from_secs(1));
    fleet.zones = 12;
    fleet
        .until("another peer takes the change", |fleet| fleet.try_command(witness, &["scale", "zone", "12"]));
    let counted: Vec<String> =
        (0..12).map(|n| format!("zone.{n}")).chain((0..3).map(|n| format!("arena.{n}"))).collect();
    fleet.until("all that is declared is listed on hosts that are there", |fleet| {
        let directory = fleet.directory(witness)?;
        let lost =
            |id: &&String| directory.get(*id).is_none_or(|runs| runs.iter().any(|(host, _)| host == "delta"));
        match counted.iter().find(lost) {
            None => Ok(()),
            Some(id) => Err(format!("{id}: {:?}", directory.get(id))),
        }
    });
    fleet.empty_disk(full);
    fleet.switch_on("delta");
    fleet.settle("there was room again, and delta was switched on");
}
