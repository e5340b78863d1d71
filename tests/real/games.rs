//! Stock game servers: three under one agent, each hung, killed, stopped and started.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::agent::{Host, PATIENCE, alive, pid, require, signal, until};

const GAMES: &str = r#"
[process.teeworlds]
command = ["/usr/games/teeworlds-server", "bindaddr 127.0.0.1", "sv_port {port.game}", "sv_register 0"]
ports = { game = "udp" }
env = { HOME = "{data}" }
heartbeat = { mode = "query", protocol = "teeworlds", interval = "500ms", timeout = "3s" }

[process.ddnet]
command = ["/usr/games/DDNet-Server", "sv_ipv4only 1", "bindaddr 127.0.0.1", "sv_port {port.game}", "sv_register 0"]
ports = { game = "udp" }
env = { HOME = "{data}" }
heartbeat = { mode = "query", protocol = "ddnet", interval = "500ms", timeout = "3s" }

[process.openarena]
command = ["/usr/games/openarena-server", "+set", "dedicated", "1", "+set", "net_ip", "127.0.0.1",
    "+set", "net_port", "{port.game}", "+set", "fs_homepath", "{data}", "+map", "oa_dm1"]
ports = { game = "udp" }
heartbeat = { mode = "query", protocol = "quake3", interval = "2s", timeout = "6s" }
"#;

const NAMES: [&str; 3] = ["teeworlds.0", "ddnet.0", "openarena.0"];

fn three_games() -> Host {
    require("/usr/games/teeworlds-server", "teeworlds-server");
    require("/usr/games/DDNet-Server", "ddnet-server");
    require("/usr/games/openarena-server", "openarena-server");
    Host::start(GAMES)
}

fn port(instance: &Value) -> u16 {
    instance["ports"]["game"]["port"].as_u64().expect("a port") as u16
}

/// A question in the game's own protocol, and how its answer begins. Written here anew, so that the prober's
/// own idea of the protocols is not what it is tested with.
fn question(name: &str) -> (Vec<u8>, &'static [u8]) {
    match name {
        // Teeworlds 0.7: a request for a token, padded against amplification.
        "teeworlds.0" => {
            let mut ask = vec![4, 0, 0, 255, 255, 255, 255, 5, 1, 2, 3, 4];
            ask.resize(520, 0);
            (ask, &[4, 0, 0, 1, 2, 3, 4, 5])
        }
        // Teeworlds 0.6.
        "ddnet.0" => ([&[255; 10][..], b"gie3\x07"].concat(), &[255; 10]),
        _ => (b"\xff\xff\xff\xffgetstatus\n".to_vec(), b"\xff\xff\xff\xffstatusResponse"),
    }
}

/// Asks the game itself on its port until it answers.
fn answers(instance: &Value) {
    let name = instance["instance"].as_str().expect("a name");
    let (ask, expected) = question(name);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    // Quake 3 answers one address about once a second, and the agent asks, too.
    socket.set_read_timeout(Some(Duration::from_millis(1500))).expect("a timeout");
    until(&format!("{name} answers on port {}", port(instance)), || {
        let mut answer = [0; 2048];
        socket.send_to(&ask, (Ipv4Addr::LOCALHOST, port(instance))).map_err(|e| e.to_string())?;
        let (length, from) = socket.recv_from(&mut answer).map_err(|e| e.to_string())?;
        let answer = &answer[..length];
        let right = from.port() == port(instance) && answer.starts_with(expected);
        if right { Ok(()) } else { Err(format!("{answer:?} from {from}")) }
    });
}

#[test]
fn stock_servers_get_ready_by_their_own_query_and_show_map_and_capacity() {
    let host = three_games();
    for name in NAMES {
        let instance = host.ready(name);
        answers(&instance);
        assert_eq!(instance["heartbeat"]["mode"], "query");
        let status = &instance["status"];
        assert!(status["capacity"].as_u64().is_some_and(|n| n > 0), "{name}: {status}");
        assert_eq!(status["players"], 0, "{name}: {status}");
        assert!(status["map"].as_str().is_some_and(|map| !map.is_empty()), "{name}: {status}");
    }
    assert_eq!(host.instance("openarena.0")["status"]["map"], "oa_dm1");
    let overview = host.ok(&["status", "--json"]).json();
    assert_eq!(overview["instances"]["ready"], 3, "{overview}");
}

/// Hits all three at once and waits for the new runs.
fn strike(host: &Host, blow: Signal, cause: &str) {
    let before: Vec<Value> = NAMES.iter().map(|name| host.ready(name)).collect();
    before.iter().for_each(|instance| signal(pid(instance), blow));
    for old in &before {
        let name = old["instance"].as_str().expect("a name");
        let new = host.ready_again(old);
        assert_eq!(new["last_exit"]["cause"], cause, "{new}");
        assert_eq!(new["last_exit"]["signal"], "SIGKILL", "{new}");
        assert_eq!(new["ports"], old["ports"], "{name} came back on another port");
        assert_eq!(new["restarts"], 1, "{new}");
        assert!(!alive(pid(old)), "the old run of {name} is still there");
        answers(&new);
        let events = host.events(name);
        let about = |kind: &str| events.iter().find(|e| e["kind"] == kind && e["run"] == old["run"]);
        let exited = about("exited").unwrap_or_else(|| panic!("{name}: no end in {events:#?}"));
        assert_eq!(exited["cause"], cause);
        assert_eq!(about("hang").is_some(), cause == "hang", "{name}: {events:#?}");
    }
}

#[test]
fn a_stopped_server_is_a_hang_and_answers_again_on_the_same_port() {
    strike(&three_games(), Signal::SIGSTOP, "hang");
}

#[test]
fn a_killed_server_answers_again_on_the_same_port() {
    strike(&three_games(), Signal::SIGKILL, "signal");
}

#[test]
fn stop_leaves_nothing_of_a_server_and_start_brings_it_back() {
    let host = three_games();
    let before: Vec<Value> = NAMES.iter().map(|name| host.ready(name)).collect();
    assert_eq!(host.in_cgroup().len(), 3, "each game is in a cgroup of its own");
    host.ok(&["stop", "--all"]);
    assert_eq!(host.in_cgroup(), [0; 0], "a stop left somebody behind");
    for old in &before {
        let name = old["instance"].as_str().expect("a name");
        assert!(!alive(pid(old)), "{name} survived its stop");
        let now = host.instance(name);
        assert_eq!((&now["state"], &now["pid"]), (&Value::from("paused"), &Value::Null), "{now}");
        assert_eq!(now["last_exit"]["cause"], "stop", "{now}");
    }
    // Nobody is left on the ports either.
    for old in &before {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, port(old))).expect("the port is free again");
    }
    host.ok(&["start", "--all"]);
    for old in &before {
        let new = host.ready_again(old);
        assert_eq!(new["ports"], old["ports"]);
        answers(&new);
    }
}

#[test]
fn a_stopped_server_stays_stopped_over_a_reboot_and_the_others_keep_their_ports() {
    let mut host = three_games();
    let before: Vec<Value> = NAMES.iter().map(|name| host.ready(name)).collect();
    host.ok(&["stop", "ddnet.0"]);
    host.lose_power();
    assert_eq!(host.processes(), [0; 0]);
    host.start_agent();
    for old in before.iter().filter(|old| old["instance"] != "ddnet.0") {
        let new = host.ready_again(old);
        assert_eq!(new["ports"], old["ports"]);
        answers(&new);
    }
    let stopped = host.instance("ddnet.0");
    assert_eq!(stopped["state"], "paused", "{stopped}");
    assert_eq!(host.in_cgroup().len(), 2);
    host.ok(&["start", "ddnet"]);
    let back = host.ready("ddnet.0");
    assert_eq!(port(&back), port(&before[1]));
    answers(&back);
}

#[test]
fn a_host_takes_everything_along_when_it_is_dropped() {
    let host =
        Host::start("[process.sleeper]\ncommand = [\"sleep\", \"1000\"]\nheartbeat = { mode = \"none\" }\n");
    let game = pid(&host.ready("sleeper.0"));
    let (agent, keeper) = (host.agent_pid(), host.keeper_pid().expect("a keeper"));
    let (folder, cgroup) = (host.folder().to_owned(), host.cgroup().expect("a cgroup").to_owned());
    assert!([agent, keeper, game].into_iter().all(alive) && cgroup.is_dir());
    drop(host);
    assert!(![agent, keeper, game].into_iter().any(alive), "{PATIENCE:?} were not enough");
    assert!(!cgroup.exists() && !folder.exists());
}
