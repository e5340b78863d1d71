//! The primary's disk is full.

use crate::fleet::{Fleet, PEERS};

/// A peer that can write nothing down is as one that is cut off: it is declared down like any other.
#[test]
fn a_full_disk_on_the_primary_stops_nobody_else_and_it_is_back_when_there_is_room() {
    let mut fleet = Fleet::start_with(&PEERS);
    let full = fleet.primary();
    let witness = PEERS.into_iter().find(|peer| *peer != full).unwrap();
    fleet.fill_disk(full);
    // The log's file has room of its own for a while.
    fleet.until("the log of the peer with the full disk has stopped", |fleet| {
        let applied = fleet.try_command(witness, &["apply", &fleet.with_ballast(witness)]);
        let status = fleet.get(full, "/v1/status")?;
        if status["broken"].is_string() { Ok(()) } else { Err(format!("{applied:?}\n{status}")) }
    });
    fleet.until("another peer takes the change", |fleet| fleet.try_command(witness, &["scale", "zone", "9"]));
    runs_without(&mut fleet, witness, 9, &[full]);
    // One more host may be lost meanwhile.
    fleet.switch_off("delta");
    fleet.until("the others take a change", |fleet| fleet.try_command(witness, &["scale", "zone", "12"]));
    fleet.zones = 12;
    runs_without(&mut fleet, witness, 12, &[full, "delta"]);
    fleet.empty_disk(full);
    fleet.switch_on("delta");
    fleet.settle("there was room again, and delta was switched on");
}

/// Waits until all that is declared is listed on hosts other than these.
fn runs_without(fleet: &mut Fleet, witness: &str, zones: usize, lost: &[&str]) {
    let counted: Vec<String> =
        (0..zones).map(|n| format!("zone.{n}")).chain((0..3).map(|n| format!("arena.{n}"))).collect();
    fleet.until("all that is declared is listed on hosts that are there", |fleet| {
        let directory = fleet.directory(witness)?;
        let missing = |id: &&String| {
            directory.get(*id).is_none_or(|runs| runs.iter().any(|(host, _)| lost.contains(&host.as_str())))
        };
        match counted.iter().find(missing) {
            None => Ok(()),
            Some(id) => {
                let (status, hosts) = (fleet.get(witness, "/v1/status")?, fleet.get(witness, "/v1/hosts")?);
                Err(format!("{id}: {:?}\n{status}\n{hosts}", directory.get(id)))
            }
        }
    });
}
