//! Full disks.

use std::fs;
use std::time::Duration;

use bigbrother::keeper::protocol::{End, LogTarget, Reply, RunId, SpawnStep};

use super::host::{Host, Small, alive, spawn};

#[test]
fn a_full_disk_drops_log_bytes_and_blocks_nobody() {
    let mut host = Host::new(true);
    let small = Small::at(host.logs.join("zone.1"), "size=64k");
    let mut agent = host.greeted();
    let script =
        "head -c 1000000 /dev/zero; echo done >&2; while ! [ -e $GO ]; do sleep 0.02; done; echo after";
    let mut request = host.shell(1, "zone.1", script);
    let go = host.logs.join("go");
    request.env.push(format!("GO={}", go.display()));
    small.fill();
    spawn(&agent, request);
    agent.spawned(1);
    let mut dropped = 0;
    agent.expect("dropped bytes", |reply| {
        if let Reply::LogBytes { dropped: bytes, .. } = reply {
            dropped += bytes;
        }
        (dropped >= 1_000_005).then_some(())
    });
    fs::remove_file(small.0.join("filler")).unwrap();
    std::thread::sleep(Duration::from_millis(300)); // the disk is tried again after 250 ms
    fs::write(go, "").unwrap();
    assert_eq!(agent.gone(1).0, End::Code(0));
    host.log_has("zone.1", "after\n");
}

#[test]
fn a_full_tmpfs_refuses_spawns_and_harms_no_run() {
    let mut host = Host::new(true);
    let small = Small::at(host.runtime.clone(), "size=256k,mode=711");
    let mut agent = host.greeted();
    let quiet = |run: u64| {
        let mut request = host.spawn_of(run, &format!("zone.{run}"), &["/bin/sleep", "1000"]);
        request.logs = LogTarget::Null;
        request
    };
    spawn(&agent, quiet(1));
    let pid = agent.spawned(1);
    small.fill();
    // The first 64 slots have their space already.
    let mut refused = None;
    for run in 2..=70 {
        spawn(&agent, quiet(run));
        let outcome = agent.expect("an answer", |r| match r {
            Reply::Spawned { run: RunId(n), .. } if *n == run => Some(None),
            Reply::SpawnFailed { run: RunId(n), step, errno } if *n == run => Some(Some((*step, *errno))),
            _ => None,
        });
        if outcome.is_some() {
            refused = outcome;
            break;
        }
    }
    assert_eq!(refused, Some((SpawnStep::Ledger, libc::ENOSPC)));
    assert!(alive(pid));
    // A new keeper reads it all the same.
    host.kill_keeper();
    assert_eq!(host.start().hello().runs[0].pid, pid);
}
