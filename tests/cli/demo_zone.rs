//! The demo zone server alone: what it answers and how it misbehaves.

use std::net::UdpSocket;
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::binary::{PATIENCE, Ran, command, finish};

/// A demo zone of its own; killed when dropped.
struct Zone {
    child: Option<Child>,
    socket: UdpSocket,
}

impl Zone {
    fn start(args: &[&str]) -> Zone {
        use std::io::{BufRead, BufReader};
        let mut child = command(&[&["demo-zone", "--port", "0", "--name", "zone.7"], args].concat())
            .spawn()
            .expect("the binary");
        let mut first = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        out.read_line(&mut first).expect("a line");
        let (_, port) = first.trim().rsplit_once(':').expect("an address");
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.connect(("127.0.0.1", port.parse().expect("a port"))).expect("a peer");
        // Put back, so that its pipe stays open.
        child.stdout = Some(out.into_inner());
        Zone { child: Some(child), socket }
    }

    fn ask(&self, word: &str, patience: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(patience)).expect("a timeout");
        self.socket.send(word.as_bytes()).expect("sent");
        let mut answer = [0; 100];
        let length = self.socket.recv(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..length]).into_owned())
    }

    fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.as_ref().expect("running").id() as i32)
    }

    fn end(mut self) -> Ran {
        finish(self.child.take().expect("running"))
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

#[test]
fn a_demo_zone_answers_and_ends_when_told() {
    let zone = Zone::start(&[]);
    let first = zone.ask("ping", PATIENCE).expect("an answer");
    let tick = |answer: &str| -> u64 {
        answer.strip_prefix("pong zone.7 ").expect("a pong").parse().expect("a number")
    };
    let deadline = Instant::now() + PATIENCE;
    while tick(&zone.ask("ping", PATIENCE).expect("an answer")) < tick(&first) + 3 {
        assert!(Instant::now() < deadline, "it does not tick");
    }
    assert_eq!(zone.ask("dance", PATIENCE).as_deref(), Some("what?"));
    nix::sys::signal::kill(zone.pid(), nix::sys::signal::Signal::SIGTERM).expect("it lives");
    assert_eq!(zone.end().code, Some(0));
}

#[test]
fn a_demo_zone_misbehaves_when_told() {
    let zone = Zone::start(&[]);
    assert_eq!(zone.ask("crash", PATIENCE).as_deref(), Some("zone.7: crash"));
    assert_eq!(zone.end().signal, Some(libc::SIGABRT));

    let zone = Zone::start(&["--fault", "exit", "--after", "0.1"]);
    assert_eq!(zone.end().code, Some(3));

    let zone = Zone::start(&["--fault", "crash", "--after", "0"]);
    assert_eq!(zone.end().signal, Some(libc::SIGABRT));

    let zone = Zone::start(&[]);
    zone.ask("leak", PATIENCE).expect("an answer");
    let resident = || -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", zone.pid())).expect("it lives");
        statm.split(' ').nth(1).expect("a field").parse().expect("a number")
    };
    let (before, deadline) = (resident(), Instant::now() + PATIENCE);
    while resident() < before + 5_000 {
        assert!(Instant::now() < deadline, "it does not grow: {} pages", resident());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_hung_demo_zone_does_nothing_any_more() {
    let zone = Zone::start(&[]);
    assert_eq!(zone.ask("hang", PATIENCE).as_deref(), Some("zone.7: hang"));
    assert_eq!(zone.ask("ping", Duration::from_millis(500)), None, "it answers");
    nix::sys::signal::kill(zone.pid(), nix::sys::signal::Signal::SIGTERM).expect("it lives");
    assert_eq!(zone.ask("ping", Duration::from_millis(300)), None, "it answers");
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", zone.pid())).expect("it lives");
    assert!(!stat.contains(") Z "), "SIGTERM ends a hung server: {stat}");
}

#[test]
fn a_demo_zone_speaks_the_process_api() {
    use std::io::{BufRead, BufReader, Write};
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("zone.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let mut command = command(&["demo-zone", "--port", "0"]);
    let child = command.env("BIGBROTHER_SOCKET", &path).spawn().expect("the binary");
    let (mut peer, _) = listener.accept().expect("a connection");
    peer.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut lines = BufReader::new(peer.try_clone().expect("a socket")).lines();
    let mut until = |wanted: &str| loop {
        let line = lines.next().unwrap_or_else(|| panic!("no {wanted}")).expect("a line");
        let message: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(message["jsonrpc"], "2.0");
        if message["method"] == wanted {
            return message;
        }
    };
    until("hello");
    until("ready");
    until("heartbeat");
    assert_eq!(until("status")["params"]["capacity"], 16);
    until("heartbeat");
    let shutdown = r#"{"jsonrpc":"2.0","method":"shutdown","params":{"reason":"update","deadline_ms":1000}}"#;
    writeln!(peer, "{shutdown}").expect("sent");
    until("stopping");
    let ran = finish(child);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("ends: update"), "{ran:?}");
}
