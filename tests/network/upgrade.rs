//! A rolling upgrade: one host after the other gets another program, while the cluster goes on.
//!
//! `BIGBROTHER_PREVIOUS` names the program of the release before (.ci/previous builds it); before there is one, it is
//! another file of this very program.

use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::fleet::{Fleet, HOSTS, send};

fn previous() -> PathBuf {
    let named = std::env::var_os("BIGBROTHER_PREVIOUS").filter(|path| !path.is_empty());
    named.map_or_else(|| env!("CARGO_BIN_EXE_bigbrother").into(), PathBuf::from)
}

#[test]
fn hosts_are_upgraded_one_after_the_other_and_no_game_notices() {
    let old = previous();
    let mut fleet = Fleet::start_of(&old);
    let before = fleet.running();
    let last = fleet.primary();
    let order = HOSTS.into_iter().filter(|host| *host != last).chain([last]);
    for (number, host) in order.enumerate() {
        let new = fleet.put_program(host, env!("CARGO_BIN_EXE_bigbrother").as_ref());
        let keeper = fleet.keeper(host).expect("a keeper");
        send(keeper, Signal::SIGHUP);
        fleet.until(&format!("the keeper of {host} executes the new program"), |_| executes(keeper, new));
        send(fleet.agent(host), Signal::SIGTERM);
        fleet.until(&format!("the agent of {host} executes the new program"), |fleet| {
            executes(fleet.agent(host), new)
        });
        fleet.settle(&format!("the upgrade of {host}"));
        assert_eq!(fleet.keeper(host), Some(keeper), "it was executed in place");
        // Half of the hosts are of the one kind, half of the other: changes go through from both.
        if number == 2 {
            for (host, count) in [(host, 7), (last, 6)] {
                fleet.command(host, &["scale", "zone", &count.to_string()]);
                fleet.until("as many zones as asked for", |fleet| {
                    let zones = fleet.running().keys().filter(|id| id.starts_with("zone.")).count();
                    if zones == count { Ok(()) } else { Err(format!("{zones} zones")) }
                });
            }
        }
    }
    assert_eq!(fleet.running(), before, "nothing was restarted or moved");
}

fn executes(pid: i32, inode: u64) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::metadata(format!("/proc/{pid}/exe")).map_err(|e| e.to_string())?.ino();
    if found == inode { Ok(()) } else { Err(format!("{pid} executes the file {found}, not {inode}")) }
}
