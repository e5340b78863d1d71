//! A ledger that lies: of another boot, damaged, with pids of others; and no room for one.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use serde_json::json;

use super::host::{Bystander, Cgroups, Host, SmallDisk, alive, expect, until};

const ALL: [&str; 2] = ["mute.0", "zone.0"];

/// Where the boot id lies, and where the first slot and its pid do (src/keeper/ledger.rs).
const BOOT_ID: u64 = 16;
const FIRST_SLOT: u64 = 4096;
const SLOT: u64 = 1024;
const PID: u64 = 40;

fn household(host: &Host) {
    let zone = host.zone("0");
    let mute = host.witness(&["/bin/sleep", "600"]);
    host.write_config(&format!(
        r#"
[process.zone]
command = {zone}
heartbeat = {{ mode = "native", interval = "200ms", timeout = "5s" }}

[process.mute]
command = {mute}
ready = {{ mode = "spawned", after = "10ms" }}
heartbeat = {{ mode = "none" }}
"#
    ));
}

/// Overwrites a piece of the ledger and gives what was there.
fn scribble(host: &Host, at: u64, bytes: &[u8]) -> Vec<u8> {
    let file = OpenOptions::new().read(true).write(true).open(host.runtime.join("ledger")).unwrap();
    let mut before = vec![0; bytes.len()];
    file.read_exact_at(&mut before, at).unwrap();
    file.write_all_at(bytes, at).unwrap();
    before
}

/// Writes a stranger's pid over the pids of the first two slots; they were those of the two instances.
fn name_strangers(host: &Host, strangers: &[Bystander; 2], games: &[i32]) {
    for (slot, stranger) in (0..).zip(strangers) {
        let before = scribble(host, FIRST_SLOT + slot * SLOT + PID, &(stranger.pid() as u64).to_ne_bytes());
        let before = u64::from_ne_bytes(before.try_into().unwrap()) as i32;
        assert!(games.contains(&before), "the layout of the ledger is another: {before} in {games:?}");
    }
}

#[test]
fn pids_that_are_somebody_elses_now_are_left_alone() {
    for cgroups in [Cgroups::Own, Cgroups::None] {
        let mut host = Host::new(cgroups);
        household(&host);
        // One that is older than the runs, one that is younger.
        let older = Bystander::start();
        host.start();
        let before = host.settled(&ALL);
        let games: Vec<i32> = before.values().filter_map(|view| view.pid).collect();
        host.power_off();
        let strangers = [older, Bystander::start()];
        name_strangers(&host, &strangers, &games);
        host.start();
        let after = host.settled(&ALL);
        for name in ALL {
            assert!(after[name].run > before[name].run, "{name} is another run: {:?}", after[name]);
            let exit = after[name].last_exit.clone().expect("it ended");
            assert_eq!((exit.cause.as_str(), exit.code, exit.signal), ("unknown", None, None), "{name}");
            assert_eq!(host.witnessed(name).len(), 2);
        }
        assert!(strangers.iter().all(|stranger| alive(stranger.pid())), "a stranger was killed");
    }
}

#[test]
fn a_ledger_of_another_boot_is_worthless() {
    let mut host = Host::new(Cgroups::Own);
    household(&host);
    host.start();
    let before = host.settled(&ALL);
    let games: Vec<i32> = before.values().filter_map(|view| view.pid).collect();
    host.power_off();
    let strangers = [Bystander::start(), Bystander::start()];
    name_strangers(&host, &strangers, &games);
    let boot = scribble(&host, BOOT_ID, b"00000000-0000-0000-0000-000000000000");
    assert_eq!(
        boot,
        std::fs::read("/proc/sys/kernel/random/boot_id").unwrap()[..36],
        "the boot id lies there"
    );
    host.start();
    let after = host.settled(&ALL);
    for name in ALL {
        assert!(after[name].run > before[name].run, "run numbers only grow: {:?}", after[name]);
        assert_eq!(host.witnessed(name).len(), 2);
    }
    assert!(strangers.iter().all(|stranger| alive(stranger.pid())), "a stranger was killed");
}

#[test]
fn a_damaged_ledger_doubles_nobody() {
    for cgroups in [Cgroups::Own, Cgroups::None] {
        let mut host = Host::new(cgroups);
        household(&host);
        host.start();
        let before = host.settled(&ALL);
        host.kill_agent();
        host.kill_keeper();
        // The games live; who they are is forgotten. They are killed before anybody is started anew.
        scribble(&host, 0, &[0xA5; 4096]);
        host.start();
        let after = host.settled(&ALL);
        for name in ALL {
            assert_ne!(after[name].pid, before[name].pid, "{cgroups:?}: {name}");
            assert_eq!(host.witnessed(name).len(), 2, "{cgroups:?}: {name}");
            let told: Vec<_> = host.events(name).into_iter().filter(|event| event.kind == "strays").collect();
            assert_eq!(told.len(), 1, "{cgroups:?}: {name}: {:?}", host.events(name));
            assert_eq!((told[0].cause.as_deref(), told[0].run), (Some("stray"), None));
        }
        assert_eq!(host.metric("bigbrother_restarts_total", "cause=\"stray\"").unwrap(), 2.0);
    }
}

#[test]
fn a_full_runtime_folder_stops_new_runs_and_nothing_else() {
    let mut host = Host::new(Cgroups::Own);
    let disk = SmallDisk::mount(&host.runtime, "1m");
    let sleep = host.witness(&["/bin/sleep", "600"]);
    let zone = host.zone("0");
    host.write_config(&format!(
        r#"
[process.zone]
command = {zone}
heartbeat = {{ mode = "native", interval = "200ms", timeout = "5s" }}

[process.crowd]
command = {sleep}
count = 1
ready = {{ mode = "spawned", after = "10ms" }}
heartbeat = {{ mode = "none" }}
restart = {{ backoff = {{ min = "100ms", max = "1s" }}, give_up = false }}
"#
    ));
    host.start();
    let before = host.settled(&["crowd.0", "zone.0"]);
    let filler = disk.fill();
    // More than the ledger has room for without growing.
    host.post("/v1/scale", &json!({ "process": "crowd", "count": 70 })).unwrap();
    let refused = until("some are refused", || {
        let views = host.ps()?;
        let reason = |view: &bigbrother::http::view::InstanceView| {
            let words = view.reason.clone().unwrap_or_default();
            view.state == "backoff" && words.contains("No space left on device")
        };
        let refused = views.values().filter(|view| reason(view)).count();
        expect(refused >= 3, (refused, views.values().last()))?;
        Ok(refused)
    });
    assert!(refused < 20, "those that fit are there: {refused}");
    assert!(host.metric("bigbrother_spawn_failures_total", "step=\"ledger\"").unwrap() >= 3.0);
    let zone = host.view("zone.0").unwrap();
    assert_eq!((zone.pid, zone.restarts), (before["zone.0"].pid, 0), "the others never notice");

    std::fs::remove_file(filler).unwrap();
    until("all are there once there is room", || {
        let views = host.ps()?;
        let ready = views.values().filter(|view| view.state == "ready").count();
        expect(ready == 71, (ready, views.values().last()))
    });
    host.power_off();
    drop(disk);
}
