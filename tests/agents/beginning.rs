//! Agents that begin: what they heed meanwhile, and what they say.

use super::cluster::NAMES;
use super::host::{Cgroups, Host, expect, signal, until};
use super::ran::finish;

/// Hosts of a cluster that is not founded while one of them is away.
fn hosts() -> Vec<Host> {
    let hosts = Host::cluster(&NAMES[..3], 3, Cgroups::Own);
    hosts.iter().for_each(|host| host.write_config(""));
    hosts
}

fn log(host: &Host) -> String {
    std::fs::read_to_string(host.root.join("agent.log")).unwrap_or_default()
}

fn says(host: &Host, what: &str) {
    until(what, || expect(log(host).contains(what), host.logs()));
}

#[test]
fn a_reload_that_is_asked_for_while_an_agent_waits_for_its_cluster_is_done_when_it_has_begun() {
    let mut hosts = hosts();
    hosts[1].launch_agent();
    until("it waits", || {
        let starting = hosts[1].status()?.starting.unwrap_or_default();
        expect(starting.contains("founded by alpha"), starting)
    });
    hosts[1].write_config("");
    signal(hosts[1].agent_pid(), libc::SIGHUP);
    says(&hosts[1], "read again as soon as this agent has begun");
    assert!(!log(&hosts[1]).contains("the file's processes are in force"), "{}", log(&hosts[1]));
    for host in [0, 2] {
        hosts[host].launch_agent();
    }
    says(&hosts[1], "the file's processes are in force");
    // Told to end, one that waits again does so.
    hosts.iter_mut().for_each(Host::stop_agent);
    hosts[1].launch_agent();
    until("it answers", || hosts[1].status());
    hosts[1].stop_agent();
}

/// It waits for the lock on its data before it waits for anything else.
#[test]
fn signals_are_heeded_from_the_first_moment() {
    let mut alone = Host::new(Cgroups::Own);
    alone.write_config("");
    std::fs::create_dir_all(&alone.data).unwrap();
    let launched = |alone: &mut Host, told: i32| {
        let held = bigbrother::lock::take(&alone.data.join("agent.lock")).unwrap();
        assert!(held.is_some(), "nobody else has it");
        let door = alone.runtime.join("api.sock");
        let _ = std::fs::remove_file(&door);
        alone.launch_agent();
        until("it has opened its door", || expect(door.exists(), &door));
        signal(alone.agent_pid(), told);
        held
    };
    let held = launched(&mut alone, libc::SIGTERM);
    let ended = alone.agent_ended();
    assert!(ended.success(), "{ended}: {}", alone.logs());
    drop(held);
    let held = launched(&mut alone, libc::SIGHUP);
    drop(held);
    until("it is at work", || {
        let status = alone.status()?;
        expect(status.starting.is_none(), status)
    });
    says(&alone, "the file's processes are in force");
}

#[test]
fn who_lists_hosts_and_peers_of_an_agent_without_a_cluster_is_told_why_there_are_none() {
    let mut hosts = hosts();
    let beta = &mut hosts[1];
    beta.launch_agent();
    until("it goes on with what it ran before", || {
        let status = beta.status()?;
        expect(status.starting.is_none() && status.apart.is_some(), status)
    });
    for (what, told) in [("hosts", "no host has joined yet: "), ("peers", "who knows the peers answers: ")] {
        let socket = format!("unix:{}", beta.runtime.join("api.sock").display());
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bigbrother"));
        command.args(["--api", &socket, what]).env_remove("BIGBROTHER_API");
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let ran = finish(command.spawn().unwrap(), &[what]);
        let whole = ran.out.contains(told) && ran.out.contains("founded by alpha, which does not answer");
        assert!(ran.code == Some(0) && whole, "{ran:?}");
    }
}
