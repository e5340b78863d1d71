//! Files, folders and cgroups that are not what the agent needs.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::host::{Cgroups, Host, expect, until};
use super::neighbours::{self, Neighbours};

/// An agent that must refuse to start: ends within some seconds, by itself.
fn refused(host: &mut Host) -> (Option<i32>, String) {
    host.launch_agent();
    let status = host.agent_ended();
    let text = std::fs::read_to_string(host.root.join("agent.log")).unwrap();
    std::fs::write(host.root.join("agent.log"), "").unwrap();
    (status.code(), text)
}

#[test]
fn a_config_that_cannot_be_read() {
    let mut host = Host::new(Cgroups::None);
    let path = host.config();
    let (code, text) = refused(&mut host);
    assert!(code != Some(0) && text.contains("cluster.toml") && text.contains("No such file"), "{text}");

    std::fs::create_dir(&path).unwrap();
    let (code, text) = refused(&mut host);
    assert!(code != Some(0) && text.contains("cluster.toml") && text.contains("s a directory"), "{text}");
    std::fs::remove_dir(&path).unwrap();

    std::fs::write(&path, [0xFF, 0x00, 0xA5, 0x5A].repeat(1000)).unwrap();
    let (code, text) = refused(&mut host);
    assert!(code != Some(0) && text.contains("cluster.toml") && text.len() < 4_000, "{text}");

    host.write_config("");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    host.uid = Some(65_534);
    let (code, text) = refused(&mut host);
    assert!(code != Some(0) && text.contains("cluster.toml") && text.contains("Permission denied"), "{text}");
    assert!(host.keepers().is_empty(), "nothing was started");
}

#[test]
fn a_config_that_becomes_bad_is_refused_at_reload_and_changes_nothing() {
    let mut host = Host::new(Cgroups::Own);
    let processes = neighbours::toml(&host);
    host.write_config(&processes);
    host.start();
    let neighbours = Neighbours::of(&host);
    let good = std::fs::read(host.config()).unwrap();
    for bad in [&b"\xff\x00garbage"[..], b"[process.zone]\ncommand = []\n", b"[host"] {
        std::fs::write(host.config(), bad).unwrap();
        let refusal = host.post("/v1/reload", &serde_json::json!({})).expect_err("it is bad");
        assert!(refusal.contains("cluster.toml"), "{refusal}");
    }
    std::fs::remove_file(host.config()).unwrap();
    let refusal = host.post("/v1/reload", &serde_json::json!({})).expect_err("it is missing");
    assert!(refusal.contains("No such file"), "{refusal}");
    neighbours.noticed_nothing(&host);
    let reloads = |outcome: &str| host.metric("bigbrother_reloads_total", &format!("outcome=\"{outcome}\""));
    assert_eq!((reloads("refused"), reloads("done")), (Ok(4.0), Ok(0.0)));
    std::fs::write(host.config(), good).unwrap();
    host.post("/v1/reload", &serde_json::json!({})).unwrap();
    assert_eq!((reloads("refused"), reloads("done")), (Ok(4.0), Ok(1.0)));
    neighbours.noticed_nothing(&host);
}

#[test]
fn folders_that_cannot_be_written() {
    let mut host = Host::new(Cgroups::None);
    host.write_config("");
    std::fs::set_permissions(host.config(), std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::set_permissions(&host.root, std::fs::Permissions::from_mode(0o755)).unwrap();
    host.uid = Some(65_534);
    let (code, text) = refused(&mut host);
    assert!(code != Some(0) && text.contains("data_dir") && text.contains("Permission denied"), "{text}");
}

#[test]
fn a_second_agent_is_refused_and_the_first_goes_on() {
    let mut host = Host::new(Cgroups::Own);
    let processes = neighbours::toml(&host);
    host.write_config(&processes);
    host.start();
    let neighbours = Neighbours::of(&host);
    let second: Output = Command::new(env!("CARGO_BIN_EXE_bigbrother"))
        .arg("agent")
        .arg("--config")
        .arg(host.config())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && text.contains("api.sock"), "{text}");
    neighbours.noticed_nothing(&host);
}

#[test]
fn a_second_agent_with_the_same_data_is_refused_until_the_first_is_killed() {
    let (mut first, mut second) = (Host::new(Cgroups::None), Host::new(Cgroups::None));
    let sleeper = first.witness(&["/bin/sleep", "1000"]);
    first.write_config(&format!(
        "[process.sleeper]\ncommand = {sleeper}\nready = {{ mode = \"spawned\" }}\nheartbeat = {{ mode = \"none\" }}\n"
    ));
    first.start();
    first.ready("sleeper.0");
    second.data = first.data.clone();
    second.write_config("");
    let (code, text) = refused(&mut second);
    let folder = first.data.to_str().unwrap();
    assert!(code != Some(0) && text.contains(folder) && text.contains("this data_dir"), "{text}");
    first.ready("sleeper.0");
    // Its keeper and its game live on, and neither has the lock. The same agent comes back at once, too.
    first.kill_agent();
    first.start();
    first.kill_agent();
    second.start();
    second.kill_agent();
}

#[test]
fn a_cgroup_that_cannot_be_made_is_told_and_tried_slowly() {
    let mut host = Host::new(Cgroups::None);
    let processes = neighbours::toml(&host);
    host.write_config(&processes);
    host.cgroup = host.root.join("no/cgroup").to_str().unwrap().to_owned();
    let begun = Instant::now();
    host.launch_agent();
    let logs = until("the log says why", || {
        let logs = host.logs();
        expect(logs.contains("no/cgroup") && logs.contains("No such file"), &logs)?;
        Ok(logs)
    });
    // The agent's own log says it too, for whoever looks there first.
    let agent = until("the agent says that its keeper ended", || {
        let text = std::fs::read_to_string(host.root.join("agent.log")).unwrap();
        expect(text.contains("keeper"), &text)?;
        Ok(text)
    });
    assert!(agent.contains("keeper.log"), "{agent}\n{logs}");
    // And who asks the agent is told at once, what it waits for and where to look.
    let waits = host.status().unwrap().starting.expect("it has no keeper");
    assert!(waits.contains("keeper.sock") && waits.contains("keeper.log"), "{waits}");
    let refused = host.get("/v1/instances").unwrap_err();
    assert!(refused.contains("503") && refused.contains(&waits), "{refused}");
    std::thread::sleep(Duration::from_secs(1));
    let text = std::fs::read_to_string(host.data.join("keeper.log")).unwrap();
    let tries = text.lines().filter(|line| line.contains("no/cgroup")).count();
    let bound = begun.elapsed().as_millis() / 150 + 2;
    assert!(tries as u128 <= bound, "{tries} tries in {:?}", begun.elapsed());
    assert!(host.games().is_empty(), "nothing runs without a keeper");
    host.kill_agent();
    host.cgroup = "none".to_owned();
    host.start();
    Neighbours::of(&host).noticed_nothing(&host);
    assert_eq!(host.status().unwrap().keeper.unwrap().cgroups, "none");
}
