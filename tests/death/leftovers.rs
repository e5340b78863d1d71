//! What a host that ended has left: instances under its old name, and what belongs to instances that nobody wants.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::host::{Cgroups, Host, expect, until};

const ALL: [&str; 2] = ["mute.0", "mute.1"];

fn household(host: &Host) {
    let mute = host.witness(&["/bin/sleep", "600"]);
    host.write_config(&format!(
        "[process.mute]\ncommand = {mute}\ncount = 2\nports = {{ game = \"udp\" }}\n\
         ready = {{ mode = \"spawned\", after = \"10ms\" }}\nheartbeat = {{ mode = \"none\" }}\n"
    ));
}

/// Everything below the folder that is named by the instance.
fn named_by(instance: &str, folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().contains(instance) {
            found.push(entry.path());
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(named_by(instance, &entry.path()));
        }
    }
    found
}

fn traces(host: &Host, instance: &str) -> Vec<PathBuf> {
    let cgroups = named_by(instance, host.games_cgroup().unwrap());
    named_by(instance, &host.runtime).into_iter().chain(cgroups).collect()
}

/// A household of which `mute.1` is paused.
fn one_paused() -> Host {
    let mut host = Host::new(Cgroups::Own);
    household(&host);
    host.start();
    host.settled(&ALL);
    host.post("/v1/stop", &json!({ "target": { "instance": "mute.1" } })).unwrap();
    until("it is paused", || expect(host.view("mute.1")?.state == "paused", host.view("mute.1")));
    host
}

#[test]
fn what_a_keeper_before_has_made_for_an_instance_goes_with_it() {
    let mut host = one_paused();
    // The next keeper finds no run of it anywhere.
    host.kill_keeper();
    until("another keeper", || {
        let keeper = host.status()?.keeper;
        expect(keeper.is_some_and(|keeper| host.keepers().contains(&keeper.pid)), host.keepers())
    });
    let [some, other] = ["mute.0", "mute.1"].map(|name| traces(&host, name).len());
    assert!(some >= 2 && other >= 2, "cgroup and folders: {some} {other}");
    host.post("/v1/scale", &json!({ "process": "mute", "count": 1 })).unwrap();
    until("nothing of it is left", || expect(traces(&host, "mute.1").is_empty(), traces(&host, "mute.1")));
    host.settled(&["mute.0"]);
    assert_eq!(traces(&host, "mute.0").len(), some);
}

#[test]
fn what_an_agent_before_has_opened_for_an_instance_that_nobody_wants_is_let_go() {
    let mut host = one_paused();
    host.kill_agent();
    // The keeper holds its sockets; the next agent's file does not have it any more.
    let text = std::fs::read_to_string(host.config()).unwrap();
    std::fs::write(host.config(), text.replace("count = 2", "count = 1")).unwrap();
    host.start();
    until("nothing of it is left", || expect(traces(&host, "mute.1").is_empty(), traces(&host, "mute.1")));
    host.settled(&["mute.0"]);
}

#[test]
fn a_host_under_a_new_name_goes_on_with_its_instances() {
    let mut host = Host::new(Cgroups::Own);
    household(&host);
    host.start();
    let before = host.settled(&ALL);
    host.stop_agent();
    let text = std::fs::read_to_string(host.config()).unwrap();
    std::fs::write(host.config(), text.replace("name = \"alpha\"", "name = \"beta\"")).unwrap();
    host.start();
    let after = host.settled(&ALL);
    for name in ALL {
        let (old, new) = (&before[name], &after[name]);
        assert_eq!((old.host.to_string(), new.host.to_string()), ("alpha".to_owned(), "beta".to_owned()));
        assert_eq!((new.pid, new.run, &new.ports), (old.pid, old.run, &old.ports), "{name} is the same run");
    }
}
