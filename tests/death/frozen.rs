//! An agent that stands still for a while (SIGSTOP) and goes on: no healthy process dies, none blocks.

use std::time::{Duration, Instant};

use super::host::{Cgroups, Host, expect, signal, until};

/// Answers Quake 3's status question, as a game server in Python would.
const QUERIED: &str = r#"
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", int(sys.argv[1])))
while True:
    question, who = server.recvfrom(2048)
    if question.startswith(b"\xff\xff\xff\xffgetstatus"):
        server.sendto(b"\xff\xff\xff\xffstatusResponse\n\\mapname\\dm1\\sv_maxclients\\8\n", who)
"#;

/// Says that it stops when it is asked for that, and ends.
const LEAVING: &str = r#"
import os, signal, socket
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
notify.send(b"READY=1")
signal.sigwait([signal.SIGUSR1])
notify.send(b"STOPPING=1\nSTATUS=the last word")
"#;

/// How long the agent stands still: longer than each heartbeat timeout.
const FROZEN: Duration = Duration::from_secs(10);

/// The keeper tells of an end in a thousandth of this.
const TELLING: Duration = Duration::from_millis(300);

/// A sender of ten messages a second fills the queue of the socket (10) before the keeper takes a silent agent
/// for gone (2.5 s) and drains it. It must never wait longer than that, and a tick.
const LONGEST_TICK: f64 = 2.5 + 1.0;

fn ticks(host: &Host) -> Vec<f64> {
    let text = std::fs::read_to_string(host.root.join("beat.0.ticks")).unwrap();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

#[test]
fn a_frozen_agent_kills_no_healthy_process() {
    let mut host = Host::new(Cgroups::Own);
    std::fs::write(host.root.join("queried"), QUERIED).unwrap();
    let queried = host.root.join("queried");
    let queried = host.witness(&["/usr/bin/python3", queried.to_str().unwrap(), "{port.game}"]);
    let (zone, beat) = (host.zone("0"), host.beater());
    host.write_config(&format!(
        r#"
[process.zone]
command = {zone}
count = 3
heartbeat = {{ mode = "native", interval = "500ms", timeout = "2s" }}

[process.beat]
command = {beat}
heartbeat = {{ mode = "notify", interval = "500ms", timeout = "2s" }}

[process.queried]
command = {queried}
ports = {{ game = "udp" }}
ready = {{ mode = "query" }}
heartbeat = {{ mode = "query", protocol = "quake3", port = "game", interval = "2s", timeout = "6s" }}
"#
    ));
    let all = ["beat.0", "queried.0", "zone.0", "zone.1", "zone.2"];
    host.start();
    let before = host.settled(&all);
    until("the sender ticks", || expect(ticks(&host).len() > 5, ticks(&host).len()));

    signal(host.agent_pid(), libc::SIGSTOP);
    let frozen = Instant::now();
    // This is the fault itself, not a wait for something.
    std::thread::sleep(FROZEN);
    let while_frozen = ticks(&host);
    signal(host.agent_pid(), libc::SIGCONT);
    let frozen = frozen.elapsed();

    until("the agent counts its stall", || {
        let stalled = host.metric("bigbrother_agent_stall_seconds_total", "")?;
        expect(stalled > FROZEN.as_secs_f64() / 2.0, stalled)
    });
    // Well beyond the longest deadline that the stall could have broken.
    let until_then = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until_then {
        let after = host.ps().unwrap();
        for name in all {
            let (old, new) = (&before[name], &after[name]);
            assert_eq!((new.run, new.restarts), (old.run, 0), "{name} was killed: {new:?}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(host.metric("bigbrother_hang_kills_total", "").unwrap(), 0.0);
    let gaps = |ticks: &[f64]| ticks.windows(2).map(|w| w[1] - w[0]).fold(0.0, f64::max);
    let longest = gaps(&ticks(&host));
    eprintln!("frozen for {frozen:?}; the longest tick of the sender took {longest:.2} s");
    assert!(longest < LONGEST_TICK, "a sender waited {longest} s");
    let last_seconds =
        while_frozen.iter().filter(|at| **at > while_frozen[while_frozen.len() - 1] - 3.0).count();
    assert!(last_seconds >= 15, "it hardly ticked while the agent stood still: {last_seconds} in 3 s");
    // And it still sees a real hang.
    signal(before["zone.0"].pid.unwrap(), libc::SIGSTOP);
    until("a hung zone is replaced", || {
        let view = host.view("zone.0")?;
        expect(view.state == "ready" && view.run > before["zone.0"].run, &view)
    });
}

#[test]
fn the_last_words_of_a_run_are_heard_before_its_end() {
    let mut host = Host::new(Cgroups::Own);
    let script = host.root.join("leaving");
    std::fs::write(&script, LEAVING).unwrap();
    let leaving = host.witness(&["/usr/bin/python3", script.to_str().unwrap()]);
    host.write_config(&format!("[process.leaving]\ncommand = {leaving}\nready = {{ mode = \"notify\" }}\n"));
    host.start();
    // After a second the keeper might hear it in the agent's place. That is another way, and another test.
    let brief = |_| {
        let old = host.settled(&["leaving.0"])["leaving.0"].clone();
        let pid = old.pid.unwrap();
        let frozen = Instant::now();
        signal(host.agent_pid(), libc::SIGSTOP);
        signal(pid, libc::SIGUSR1);
        until("the keeper reaps it", || expect(!std::path::Path::new(&format!("/proc/{pid}")).exists(), pid));
        // Nothing shows from outside that the keeper has told of it as well. Not a wait for something else.
        std::thread::sleep(TELLING);
        let frozen = frozen.elapsed();
        signal(host.agent_pid(), libc::SIGCONT);
        until("another run is ready", || {
            let view = host.view("leaving.0")?;
            expect(view.state == "ready" && view.run > old.run, &view)
        });
        (frozen < Duration::from_secs(1)).then_some(old.run)
    };
    let run = (0..20).find_map(brief).expect("a brief freeze");
    let events = host.events("leaving.0");
    let said = events.iter().any(|event| event.kind == "stopping" && event.run == run);
    assert!(said, "STOPPING=1 of run {run:?} is not in {events:#?}");
}
