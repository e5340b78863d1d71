//! Sockets of which another run has the use already.

use std::process::{Child, Command, Stdio};

use super::*;

/// A process that says hello and `STATUS=old`, and lives until its input ends.
fn speaks(host: &Host) -> Child {
    let script = "import socket, sys\n\
                  s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(sys.argv[3].encode())\n\
                  n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); n.sendto(b'STATUS=old', sys.argv[2])\n\
                  print('said', end='', flush=True); sys.stdin.read()\n";
    let paths = ["api.sock", "notify.sock"].map(|file| host.path("zone.0", file));
    let hello = std::str::from_utf8(HELLO).unwrap();
    let mut python = Command::new("python3");
    python.args(["-c", script]).args(paths).arg(hello).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut speaker = python.spawn().unwrap();
    let mut said = [0; 4];
    speaker.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"said");
    speaker
}

fn dies(mut speaker: Child) {
    drop(speaker.stdin.take());
    assert!(speaker.wait().unwrap().success());
}

#[test]
fn what_the_dead_have_said_goes_and_what_the_living_have_said_stays_in_order() {
    for read_before in [false, true] {
        let mut host = Host::new();
        let me = std::process::id() as i32;
        // Nobody is asked for a cgroup, which both would have to be in.
        let before = Identity { main_pid: me, ..me_in_a_cgroup() };
        host.open("zone.0", before);
        let speaker = speaks(&host);
        if read_before {
            host.poll_until("its last words", |events| {
                events.iter().any(|e| matches!(e.said, Said::Notice(_)))
            });
        }
        dies(speaker);
        let mut living = host.connect("zone.0");
        living.write_all(HELLO).unwrap();
        host.notifier("zone.0").send(b"STATUS=new").unwrap();
        if read_before {
            host.poll_all();
        }
        let heard = std::mem::take(&mut host.events);
        let heard: Vec<_> =
            heard.into_iter().filter(|event| !matches!(event.said, Said::Rejected(_))).collect();
        living.write_all(&beat()).unwrap();
        let said = host.sockets.pass_on(&id("zone.0"), heard);
        assert!(said.iter().all(|event| event.pid == me), "{said:?}");
        let words: Vec<&str> = said
            .iter()
            .filter_map(|event| match &event.said {
                Said::Request(Request { call: Call::Hello(_), .. }) => Some("hello"),
                Said::Request(Request { call: Call::Heartbeat, .. }) => Some("beat"),
                Said::Notice(_) => Some("status"),
                _ => None,
            })
            .collect();
        let at = |word| words.iter().position(|said| *said == word);
        assert!(words.len() == 3 && at("hello") < at("beat"), "{words:?}");
        assert_eq!(host.sockets.listeners(&id("zone.0")), 1, "it stays connected");
        host.poll_all();
        assert!(host.events.is_empty(), "nothing is told twice: {:?}", host.events);
    }
}

#[test]
fn by_account_whoever_is_not_the_main_process_before_is_of_the_next_run() {
    let mut host = Host::with(&["zone.0"]);
    dies(speaks(&host));
    let said = host.sockets.pass_on(&id("zone.0"), Vec::new());
    let old =
        said.iter().find(|event| matches!(event.said, Said::Notice(_))).expect("a helper's word counts").pid;
    dies(speaks(&host));
    host.poll_all();
    let last = host.events.iter().find(|event| matches!(event.said, Said::Notice(_))).unwrap().pid;
    assert_ne!(last, old);
    host.sockets.identify(&id("zone.0"), Identity { main_pid: last, ..me() });
    let heard = std::mem::take(&mut host.events);
    let said = host.sockets.pass_on(&id("zone.0"), heard);
    assert!(said.is_empty(), "{said:?}");
}

fn me_in_a_cgroup() -> Identity {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = text.lines().find_map(|line| line.strip_prefix("0::")).expect("a cgroup2 hierarchy");
    Identity { known_by: KnownBy::Cgroup(own.to_owned()), ..me() }
}

#[test]
fn who_may_speak_is_to_be_told_anew() {
    let mut host = Host::new();
    let known = Identity { main_pid: std::process::id() as i32, ..elsewhere() };
    host.open("zone.0", known.clone());
    assert!(host.sockets.pass_on(&id("zone.0"), Vec::new()).is_empty());
    host.notifier("zone.0").send(b"STATUS=new").unwrap();
    host.poll_all();
    assert!(host.events.is_empty(), "{:?}", host.events);
    host.sockets.identify(&id("zone.0"), known);
    assert_eq!(host.sockets.drain(&id("zone.0")).len(), 1);
}
