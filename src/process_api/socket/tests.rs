//! Tests of the process sockets, with real ones in a folder of their own.

use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use tempfile::TempDir;

use super::*;
use crate::client::message::{BEAT, Fault, Shutdown};
use crate::process_api::rpc::{Call, Id};

mod passing_on;

const LIMIT: Duration = Duration::from_secs(10);

struct Host {
    sockets: Sockets,
    folder: TempDir,
    events: Vec<SocketEvent>,
}

impl Host {
    fn new() -> Self {
        Host { sockets: Sockets::new().unwrap(), folder: TempDir::new().unwrap(), events: Vec::new() }
    }

    fn with(instances: &[&str]) -> Self {
        let mut host = Host::new();
        for instance in instances {
            host.open(instance, me());
        }
        host
    }

    fn open(&mut self, instance: &str, identity: Identity) {
        let folder = self.folder.path().join(instance);
        self.sockets.open(&id(instance), &folder, identity).unwrap();
    }

    fn path(&self, instance: &str, file: &str) -> PathBuf {
        self.folder.path().join(instance).join(file)
    }

    fn connect(&self, instance: &str) -> UnixStream {
        let stream = UnixStream::connect(self.path(instance, "api.sock")).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    fn notifier(&self, instance: &str) -> UnixDatagram {
        let socket = UnixDatagram::unbound().unwrap();
        socket.connect(self.path(instance, "notify.sock")).unwrap();
        socket
    }

    fn poll_all(&mut self) {
        while self.sockets.poll(&mut self.events) {}
    }

    fn poll_until(&mut self, what: &str, mut holds: impl FnMut(&[SocketEvent]) -> bool) {
        let end = Instant::now() + LIMIT;
        while !holds(&self.events) {
            assert!(Instant::now() < end, "{what} did not happen; seen: {:?}", self.events);
            self.sockets.poll(&mut self.events);
        }
    }

    fn said(&self, instance: &str) -> Vec<&Said> {
        self.events.iter().filter(|e| *e.instance == id(instance)).map(|e| &e.said).collect()
    }

    fn calls(&self, instance: &str) -> Vec<&Call> {
        self.said(instance)
            .into_iter()
            .filter_map(|said| match said {
                Said::Request(request) => Some(&request.call),
                _ => None,
            })
            .collect()
    }
}

fn id(instance: &str) -> InstanceId {
    instance.parse().unwrap()
}

fn me() -> Identity {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    Identity { uid, gid, ..Identity::default() }
}

fn elsewhere() -> Identity {
    Identity { known_by: KnownBy::Cgroup("/no/such/cgroup".to_owned()), ..me() }
}

fn line(stream: &UnixStream) -> serde_json::Value {
    let mut text = String::new();
    BufReader::new(stream).read_line(&mut text).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text:?}: {e}"))
}

fn beat() -> Vec<u8> {
    format!("{BEAT}\n").into_bytes()
}

const HELLO: &[u8] = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"hello\",\"params\":{\"client\":\"t\"}}\n";

#[test]
fn the_files_belong_to_the_run_and_to_nobody_else() {
    assert!(nix::unistd::geteuid().is_root(), "this test gives a file away and so must run as root");
    let mut host = Host::new();
    for _ in 0..2 {
        // The second time over the stale files of the first.
        host.open("zone.3", Identity { uid: 12345, gid: 23456, ..me() });
        for file in ["api.sock", "notify.sock"] {
            let facts = std::fs::metadata(host.path("zone.3", file)).unwrap();
            assert_eq!(facts.permissions().mode() & 0o777, 0o600, "{file}");
            assert_eq!((facts.uid(), facts.gid()), (12345, 23456), "{file}");
        }
    }
}

#[test]
fn with_cgroups_the_door_is_open_and_hidden() {
    use std::os::unix::fs::DirBuilderExt;
    let mut host = Host::new();
    let base = host.folder.path().join("zone.3");
    let to_come = || Identity { known_by: KnownBy::CgroupToCome, ..me() };
    let folder = door(&base, &to_come()).unwrap();
    assert_ne!(folder, base);
    host.sockets.open(&id("zone.3"), &folder, to_come()).unwrap();
    for file in ["api.sock", "notify.sock"] {
        assert_eq!(
            std::fs::metadata(folder.join(file)).unwrap().permissions().mode() & 0o777,
            0o666,
            "{file}"
        );
    }
    assert_eq!(std::fs::metadata(&base).unwrap().permissions().mode() & 0o777, 0o711, "nobody may list it");
    assert_eq!(door(&base, &to_come()).unwrap(), folder, "a new agent finds the path that its runs know");
    let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(name.len() == 16, "{name}");
    let listed = std::fs::read_to_string("/proc/net/unix").unwrap();
    assert!(listed.contains(".sock") && !listed.contains(&name), "the path is listed for everybody to read");
    let other = host.folder.path().join("zone.4");
    assert_ne!(door(&other, &to_come()).unwrap().file_name(), folder.file_name());
    // What an older version left.
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(host.folder.path().join("zone.5")).unwrap();
    let old = door(&host.folder.path().join("zone.5"), &to_come()).unwrap();
    assert_eq!(std::fs::metadata(old.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o711);
    assert_eq!(door(&base, &me()).unwrap(), base, "without cgroups the mode is the lock");
}

#[test]
fn before_the_run_is_known_nobody_is_heard_and_nothing_is_lost() {
    let mut host = Host::new();
    host.open("zone.3", Identity { known_by: KnownBy::CgroupToCome, ..me() });
    let mut stream = host.connect("zone.3");
    stream.write_all(HELLO).unwrap();
    let notifier = host.notifier("zone.3");
    notifier.send(b"READY=1").unwrap();
    host.poll_all();
    assert!(host.events.is_empty(), "{:?}", host.events);
    let main_pid = std::process::id() as i32;
    host.sockets.identify(&id("zone.3"), Identity { main_pid, ..elsewhere() });
    let events = host.sockets.drain(&id("zone.3"));
    let said = |holds: fn(&Said) -> bool| events.iter().any(|event| holds(&event.said));
    assert!(said(|s| matches!(s, Said::Notice(n) if n.ready)), "{events:?}");
    assert!(said(|s| matches!(s, Said::Request(_))), "{events:?}");
    assert_eq!(host.sockets.counters().strangers, 0);
}

#[test]
fn a_path_that_is_too_long_is_refused_with_advice() {
    let mut host = Host::new();
    let folder = host.folder.path().join("x".repeat(120));
    let error = host.sockets.open(&id("zone.3"), &folder, me()).unwrap_err();
    assert!(error.to_string().contains("shorter runtime_dir"), "{error}");
}

#[test]
fn calls_become_events_and_plain_ones_are_answered_at_once() {
    let mut host = Host::with(&["zone.3"]);
    let mut stream = host.connect("zone.3");
    stream.write_all(HELLO).unwrap();
    stream.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"ready\"}\n{\"jsonrpc\":").unwrap();
    host.poll_all();
    assert_eq!(line(&stream), serde_json::json!({"jsonrpc":"2.0","id":2,"result":null}));
    assert!(matches!(host.said("zone.3")[0], Said::Connected));
    assert!(matches!(host.calls("zone.3")[..], [Call::Hello(_), Call::Ready]));
    let Said::Request(hello) = host.said("zone.3")[1] else { panic!("no hello") };
    assert!(hello.id.is_some(), "hello is the agent's to answer");
    assert_eq!(host.events[1].pid, std::process::id() as i32);
    stream.write_all(b"\"2.0\",\"method\":\"draining\"}\n").unwrap();
    drop(stream);
    host.poll_all();
    assert_eq!(host.calls("zone.3").last(), Some(&&Call::Draining), "the half line was kept");
    host.poll_until("the end", |events| matches!(events.last().unwrap().said, Said::Disconnected));
}

#[test]
fn broadcasts_reach_those_who_said_hello() {
    let mut host = Host::with(&["zone.3"]);
    let mut greeted = host.connect("zone.3");
    let mut silent = host.connect("zone.3");
    silent.write_all(&beat()).unwrap();
    let shutdown = Outgoing::Shutdown(Shutdown { reason: "test".into(), deadline_ms: 5 });
    host.poll_all();
    assert_eq!(host.sockets.broadcast(&id("zone.3"), &shutdown), 0, "a signal must do");
    greeted.write_all(HELLO).unwrap();
    host.poll_all();
    assert_eq!(host.sockets.listeners(&id("zone.3")), 1);
    assert_eq!(host.sockets.broadcast(&id("zone.3"), &shutdown), 1);
    assert_eq!(line(&greeted)["params"]["deadline_ms"], 5);
    let conn = host.events.iter().find(|e| matches!(e.said, Said::Request(_))).unwrap().conn.unwrap();
    assert!(host.sockets.send(&id("zone.3"), conn, &Outgoing::Ping));
    assert_eq!(line(&silent)["method"], "ping");
    assert!(!host.sockets.send(&id("zone.3"), ConnId(999), &Outgoing::Ping));
}

#[test]
fn many_beats_of_one_moment_are_one() {
    let mut host = Host::with(&["zone.3"]);
    let mut stream = host.connect("zone.3");
    let notifier = host.notifier("zone.3");
    for _ in 0..100 {
        stream.write_all(&beat()).unwrap();
    }
    for _ in 0..10 {
        notifier.send(b"WATCHDOG=1").unwrap();
    }
    host.poll_all();
    assert!(host.calls("zone.3").len() <= 2, "{:?}", host.calls("zone.3"));
    let notices = host.said("zone.3").iter().filter(|s| matches!(s, Said::Notice(_))).count();
    assert!((1..=2).contains(&notices), "{notices}");
    assert!(host.sockets.counters().coalesced_beats >= 106, "{:?}", host.sockets.counters());
    let before = host.calls("zone.3").len();
    stream.write_all(&beat()).unwrap();
    host.poll_all();
    assert_eq!(host.calls("zone.3").len(), before + 1, "a later beat is another");
}

#[test]
fn a_flood_on_one_socket_does_not_starve_another() {
    let mut host = Host::with(&["loud.0", "zone.3"]);
    let mut flood: Vec<UnixStream> = (0..MAX_CONNECTIONS).map(|_| host.connect("loud.0")).collect();
    let notifier = host.notifier("loud.0");
    notifier.set_nonblocking(true).unwrap();
    let garbage = "{]\n".repeat(20_000);
    for stream in &mut flood {
        stream.set_nonblocking(true).unwrap();
    }
    let mut quiet = host.connect("zone.3");
    for turn in 0..20 {
        for stream in &mut flood {
            let _ = stream.write(garbage.as_bytes());
        }
        while notifier.send(b"nonsense").is_ok() {}
        quiet.write_all(&beat()).unwrap();
        host.events.clear();
        // Two, because the listeners may fill the first look.
        host.sockets.poll(&mut host.events);
        host.sockets.poll(&mut host.events);
        assert!(host.calls("zone.3").contains(&&Call::Heartbeat), "turn {turn}: {:?}", host.events);
    }
    let counters = host.sockets.counters();
    assert!(counters.malformed_lines > 20_000, "{counters:?}");
    assert!(counters.dropped_answers > 0, "the flood does not read: {counters:?}");
}

#[test]
fn a_thousand_connections_cost_the_others_nothing() {
    let mut host = Host::with(&["loud.0", "zone.3"]);
    let mut serving = host.connect("loud.0");
    serving.write_all(HELLO).unwrap();
    let mut quiet = host.connect("zone.3");
    quiet.write_all(HELLO).unwrap();
    host.poll_all();
    let mut open = Vec::new();
    for count in 0..1000 {
        open.push(host.connect("loud.0"));
        if count % 40 == 39 {
            quiet.write_all(&beat()).unwrap();
            host.events.clear();
            host.sockets.poll(&mut host.events);
            assert!(host.calls("zone.3").contains(&&Call::Heartbeat), "{:?}", host.events);
            host.poll_all();
        }
    }
    host.poll_all();
    let counters = *host.sockets.counters();
    assert_eq!(counters.connections, 1002);
    assert_eq!(counters.refused_connections, 1000 - (MAX_CONNECTIONS as u64 - 1));
    assert_eq!(line(&open[0])["error"]["code"], Fault::CONNECTIONS);
    serving.write_all(&beat()).unwrap();
    host.events.clear();
    host.poll_all();
    assert_eq!(host.calls("loud.0"), [&Call::Heartbeat], "the one that spoke stays");
}

#[test]
fn when_all_have_spoken_the_newcomer_is_refused() {
    let mut host = Host::with(&["zone.3"]);
    let mut open: Vec<UnixStream> = (0..MAX_CONNECTIONS).map(|_| host.connect("zone.3")).collect();
    for stream in &mut open {
        stream.write_all(HELLO).unwrap();
    }
    host.poll_all();
    let newcomer = host.connect("zone.3");
    host.poll_all();
    assert_eq!(line(&newcomer)["error"]["code"], Fault::CONNECTIONS);
    assert_eq!(host.sockets.listeners(&id("zone.3")), MAX_CONNECTIONS);
}

#[test]
fn a_stranger_is_told_so_and_counted() {
    let mut host = Host::new();
    host.open("zone.3", elsewhere());
    let streams = [host.connect("zone.3"), host.connect("zone.3")];
    let notifier = host.notifier("zone.3");
    notifier.send(b"READY=1").unwrap();
    host.poll_all();
    for stream in &streams {
        assert_eq!(line(stream)["error"]["code"], Fault::STRANGER);
    }
    assert!(host.said("zone.3").iter().all(|s| matches!(s, Said::Rejected(_))), "{:?}", host.events);
    assert_eq!(host.events.len(), 1, "told once a round");
    assert_eq!(host.sockets.counters().strangers, 3);
    host.sockets.identify(&id("zone.3"), Identity { main_pid: std::process::id() as i32, ..elsewhere() });
    notifier.send(b"READY=1").unwrap();
    host.poll_all();
    assert!(matches!(host.events.last().unwrap().said, Said::Notice(ref n) if n.ready));
}

#[test]
fn malformed_and_oversized_lines_are_answered_and_counted_and_the_rest_is_heard() {
    let mut host = Host::with(&["zone.3"]);
    let mut stream = host.connect("zone.3");
    let writer = std::thread::spawn({
        let mut stream = stream.try_clone().unwrap();
        move || stream.write_all(&[&[b'x'; 100_000][..], b"\n{]\n"].concat()).unwrap()
    });
    while !writer.is_finished() {
        host.poll_all();
    }
    writer.join().unwrap();
    stream.write_all(&beat()).unwrap();
    host.poll_until("the beat", |events| events.iter().any(|e| matches!(e.said, Said::Request(_))));
    let counters = *host.sockets.counters();
    assert_eq!((counters.oversized_lines, counters.malformed_lines), (1, 1));
    let mut answers = BufReader::new(&stream).lines();
    for code in [Fault::LINE, Fault::PARSE] {
        let answer: serde_json::Value = serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
        assert_eq!(answer["error"]["code"], code);
    }
    // What ends with its connection has nobody to be answered.
    let mut half = host.connect("zone.3");
    half.write_all(b"{\"jsonrpc\":\"2.0\",\"me").unwrap();
    drop((half, answers));
    drop(stream);
    host.poll_until("both ends", |events| {
        events.iter().filter(|event| matches!(event.said, Said::Disconnected)).count() == 2
    });
    let counters = *host.sockets.counters();
    assert_eq!((counters.oversized_lines, counters.malformed_lines), (1, 2), "a whole one is none");
}

#[test]
fn a_flood_of_questions_is_answered_with_busy() {
    let mut host = Host::with(&["zone.3"]);
    let mut stream = host.connect("zone.3");
    let find = "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"find\",\"params\":{\"process\":\"a\"}}\n";
    stream.write_all(find.repeat(20).as_bytes()).unwrap();
    host.poll_all();
    assert_eq!(host.calls("zone.3").len(), 16);
    assert_eq!(host.sockets.counters().busy_answers, 4);
    let busy = line(&stream);
    assert_eq!((&busy["error"]["code"], &busy["id"]), (&Fault::BUSY.into(), &7.into()));
}

#[test]
fn a_barrier_closes_when_the_messages_before_it_have_been_handled() {
    let mut host = Host::with(&["zone.3"]);
    let notifier = host.notifier("zone.3");
    let (mut left, right) = UnixStream::pair().unwrap();
    left.set_nonblocking(true).unwrap();
    notifier.send(b"READY=1").unwrap();
    barrier(&notifier, b"BARRIER=1", &[right.as_raw_fd()]);
    let (mut other, foreign) = UnixStream::pair().unwrap();
    other.set_nonblocking(true).unwrap();
    barrier(&notifier, b"FDSTORE=1\nSTATUS=x", &[foreign.as_raw_fd()]);
    drop((right, foreign));
    host.poll_all();
    assert!(matches!(host.said("zone.3")[..], [Said::Notice(_), Said::Barrier(_), Said::Notice(_)]));
    let mut byte = [0];
    assert_eq!(other.read(&mut byte).unwrap(), 0, "a descriptor that nobody wants is closed");
    assert_eq!(host.sockets.counters().closed_descriptors, 1);
    assert_eq!(left.read(&mut byte).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    host.events.clear();
    assert_eq!(left.read(&mut byte).unwrap(), 0);
    barrier(&notifier, b"BARRIER=1", &[left.as_raw_fd(), other.as_raw_fd()]);
    notifier.send(b"").unwrap();
    host.poll_all();
    assert!(host.events.is_empty());
    assert_eq!(host.sockets.counters().malformed_notices, 2);
}

fn barrier(notifier: &UnixDatagram, text: &[u8], descriptors: &[RawFd]) {
    let rights = [ControlMessage::ScmRights(descriptors)];
    sendmsg::<UnixAddr>(notifier.as_raw_fd(), &[IoSlice::new(text)], &rights, MsgFlags::empty(), None)
        .unwrap();
}

#[test]
fn a_drain_hears_what_waited_while_the_agent_was_stalled() {
    let mut host = Host::with(&["zone.3", "zone.4"]);
    let mut stream = host.connect("zone.3");
    stream.write_all(&"{\"jsonrpc\":\"2.0\",\"method\":\"status\"}\n".repeat(1000).into_bytes()).unwrap();
    stream.write_all(&beat()).unwrap();
    host.notifier("zone.3").send(b"WATCHDOG=1").unwrap();
    host.connect("zone.4").write_all(&beat()).unwrap();
    let drained = host.sockets.drain(&id("zone.3"));
    assert!(drained.iter().all(|e| *e.instance == id("zone.3")));
    let calls = |call: &Call| {
        drained.iter().filter(|e| matches!(&e.said, Said::Request(r) if r.call == *call)).count()
    };
    assert_eq!(calls(&Call::Heartbeat), 1, "the connection had not even been accepted");
    assert_eq!(calls(&Call::Status(Box::default())), 1000);
    assert!(drained.iter().any(|e| matches!(&e.said, Said::Notice(n) if n.is_beat())));
    host.poll_all();
    assert_eq!(host.calls("zone.4"), [&Call::Heartbeat], "the others' words are not lost");
}

#[test]
fn nothing_of_an_earlier_run_counts_for_the_next() {
    let mut host = Host::with(&["zone.3"]);
    let mut old = host.connect("zone.3");
    old.write_all(HELLO).unwrap();
    host.poll_all();
    old.write_all(&beat()).unwrap();
    host.notifier("zone.3").send(b"READY=1").unwrap();
    host.events.clear();
    host.sockets.reset(&id("zone.3"));
    host.poll_all();
    assert!(host.events.is_empty(), "{:?}", host.events);
    assert_eq!(host.sockets.listeners(&id("zone.3")), 0);
    let mut new = host.connect("zone.3");
    new.write_all(&beat()).unwrap();
    host.poll_all();
    assert_eq!(host.calls("zone.3"), [&Call::Heartbeat]);
}

#[test]
fn a_new_agent_takes_the_sockets_from_the_keeper_and_misses_nothing() {
    let mut host = Host::with(&["zone.3"]);
    let [listener, notify] =
        host.sockets.descriptors(&id("zone.3")).unwrap().map(|socket| socket.try_clone_to_owned().unwrap());
    host.sockets = Sockets::new().unwrap();
    let mut stream = host.connect("zone.3");
    stream.write_all(HELLO).unwrap();
    host.notifier("zone.3").send(b"READY=1").unwrap();
    fcntl(&listener, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    fcntl(&notify, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    host.sockets.adopt(&id("zone.3"), listener, notify, me()).unwrap();
    for socket in host.sockets.descriptors(&id("zone.3")).unwrap() {
        let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL).unwrap());
        assert!(flags.contains(OFlag::O_NONBLOCK), "it would block the loop");
    }
    host.poll_all();
    assert!(matches!(host.calls("zone.3")[..], [Call::Hello(_)]));
    assert!(host.said("zone.3").iter().any(|s| matches!(s, Said::Notice(n) if n.ready)));
    let replayed = host.sockets.replay(&id("zone.3"), 7, b"STOPPING=1").unwrap();
    assert!(matches!(replayed.said, Said::Notice(n) if n.stopping));
    assert!(host.sockets.replay(&id("zone.3"), 7, b"\0\0").is_none());
}

#[test]
fn closed_sockets_are_silent_although_the_keeper_holds_copies() {
    let mut host = Host::with(&["zone.3"]);
    let _copies = host.sockets.descriptors(&id("zone.3")).unwrap().map(|s| s.try_clone_to_owned().unwrap());
    host.sockets.close(&id("zone.3"));
    let _stream = host.connect("zone.3");
    host.notifier("zone.3").send(b"READY=1").unwrap();
    let mut ready = [EpollEvent::empty(); 4];
    assert_eq!(host.sockets.epoll.wait(&mut ready, EpollTimeout::ZERO).unwrap(), 0);
    assert!(host.sockets.descriptors(&id("zone.3")).is_none());
    host.open("zone.9", me());
    host.connect("zone.9").write_all(&beat()).unwrap();
    host.poll_all();
    assert_eq!(host.calls("zone.9"), [&Call::Heartbeat], "the slot is used again");
}

#[test]
fn a_process_that_does_not_read_its_answers_is_hung_up_on() {
    let mut host = Host::with(&["zone.3"]);
    let mut stream = host.connect("zone.3");
    stream.write_all(HELLO).unwrap();
    host.poll_all();
    let conn = host.events[0].conn.unwrap();
    let long = Outgoing::answer(Id::from(1), &"x".repeat(300_000));
    let taken = (0..20).take_while(|_| host.sockets.send(&id("zone.3"), conn, &long)).count();
    assert!((1..20).contains(&taken), "{taken}");
    host.events.clear();
    host.poll_all();
    assert!(matches!(host.said("zone.3")[..], [Said::Disconnected]), "{:?}", host.events);
    assert_eq!(host.sockets.counters().stuck_connections, 1);
    assert!(!host.sockets.send(&id("zone.3"), conn, &Outgoing::Ping));
}
