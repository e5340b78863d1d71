//! A data_dir without room, or with something in the way.

use serde_json::json;

use super::host::{Cgroups, Host, SmallDisk, expect, until};
use super::neighbours::{self, Neighbours};

/// Whether the agent says that its files are not saved: host.json and state.bin.
fn unsaved(host: &Host) -> Result<[f64; 2], String> {
    let of = |file| host.metric("bigbrother_unsaved", &format!("file=\"{file}\""));
    Ok([of("host.json")?, of("state.bin")?])
}

#[test]
fn an_agent_starts_on_a_full_data_dir_and_saves_once_there_is_room() {
    let mut host = Host::new(Cgroups::Own);
    let disk = SmallDisk::mount(&host.data, "1m");
    let filler = disk.fill();
    let zone = host.zone("{port.game}");
    host.write_config(&format!(
        "[process.zone]\ncommand = {zone}\nports = {{ game = \"udp\" }}\n\
         heartbeat = {{ mode = \"native\", interval = \"200ms\", timeout = \"5s\" }}\n"
    ));
    host.start();
    let before = host.settled(&["zone.0"]);
    assert_eq!(unsaved(&host).unwrap(), [1.0, 1.0]);
    // Nothing changes any more: what is saved now is saved because it is tried again.
    std::fs::remove_file(filler).unwrap();
    until("both are saved", || expect(unsaved(&host)? == [0.0, 0.0], unsaved(&host)));
    host.power_off();
    host.start();
    let after = host.settled(&["zone.0"]);
    assert_eq!(after["zone.0"].ports, before["zone.0"].ports);
    assert!(after["zone.0"].run > before["zone.0"].run, "{after:?}");
    host.power_off();
    drop(disk);
}

#[test]
fn a_state_that_is_not_saved_holds_until_it_is() {
    let mut host = Host::new(Cgroups::Own);
    let disk = SmallDisk::mount(&host.data, "1m");
    let processes = neighbours::toml(&host);
    host.write_config(&processes);
    host.start();
    let neighbours = Neighbours::of(&host);
    assert_eq!(unsaved(&host).unwrap(), [0.0, 0.0]);
    let filler = disk.fill();
    host.post("/v1/stop", &json!({ "target": { "instance": "zone.0" } })).unwrap();
    until("it is paused", || {
        let view = host.view("zone.0")?;
        expect(view.state == "paused" && unsaved(&host)?[1] == 1.0, (&view, unsaved(&host)))
    });
    std::fs::remove_file(filler).unwrap();
    until("it is saved", || expect(unsaved(&host)? == [0.0, 0.0], unsaved(&host)));
    host.kill_agent();
    host.start();
    assert_eq!(host.view("zone.0").unwrap().state, "paused");
    host.post("/v1/start", &json!({ "target": "all" })).unwrap();
    until("it runs again", || expect(host.view("zone.0")?.state == "ready", host.view("zone.0")));
    drop(neighbours);
    host.power_off();
    drop(disk);
}

#[test]
fn a_keeper_starts_without_its_log() {
    let mut host = Host::new(Cgroups::Own);
    // In its way, as on a disk that takes no new file.
    std::fs::create_dir_all(host.data.join("keeper.log")).unwrap();
    let processes = neighbours::toml(&host);
    host.write_config(&processes);
    host.start();
    Neighbours::of(&host).noticed_nothing(&host);
    let log = std::fs::read_to_string(host.root.join("agent.log")).unwrap();
    assert!(log.contains("keeper.log"), "{log}");
}
