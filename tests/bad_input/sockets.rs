//! Processes that speak nonsense, too much or in the wrong place.

use super::host::{Cgroups, Host, expect};
use super::neighbours::{self, Neighbours};

/// Speaks on its sockets as its first argument says; writes `done` when it is through with it. It says that it is
/// ready on a good connection of its own, so that it lives on. The second argument is a folder.
const RUDE: &str = r#"
import json, os, socket, sys, time
mode, folder = sys.argv[1], sys.argv[2]
API, NOTIFY = os.environ["BIGBROTHER_SOCKET"], os.environ["NOTIFY_SOCKET"]
INSTANCES = os.path.dirname(os.path.dirname(os.path.dirname(API)))

def connect(path=API):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    s.connect(path)
    return s

def send(s, data):
    try:
        s.sendall(data)
        return True
    except OSError:
        return False

def notice(data, path=NOTIFY):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        s.sendto(data, path)
    except OSError:
        pass
    s.close()

def done():
    open(folder + "/done", "w").close()

def folder_of(instance):
    # Whoever runs as the same account can read it out of a process; anybody can look for it in the kernel's list.
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            env = open("/proc/%s/environ" % pid).read().split("\0")
        except OSError:
            continue
        if "BIGBROTHER_INSTANCE=" + instance in env and "BIGBROTHER_HOST=" + os.environ["BIGBROTHER_HOST"] in env:
            found = [os.path.dirname(e.split("=", 1)[1]) for e in env if e.startswith("BIGBROTHER_SOCKET=")][0]
            if os.path.dirname(os.path.dirname(found)) == INSTANCES:
                return found
    for line in open("/proc/net/unix"):
        if "/" + instance + "/" in line and line.rstrip().endswith("/api.sock"):
            return os.path.dirname(line.split()[-1])
    guess = INSTANCES + "/" + instance
    try:
        return guess + "/" + os.listdir(guess)[0]
    except OSError:
        return guess

BEAT = b'{"jsonrpc":"2.0","method":"heartbeat"}\n'
good = connect()
send(good, b'{"jsonrpc":"2.0","method":"ready"}\n')

if mode == "malformed":
    bad = connect()
    lines = [b"{", b"[]", b"null", b'{"jsonrpc":"1.0","method":"heartbeat"}', b'{"method":7}', b"\xff\xfe\x00",
             b'{"jsonrpc":"2.0","id":1,"method":"no-such-method"}', b"[" * 60000,
             b'{"jsonrpc":"2.0","id":2,"method":"find","params":{"process":"../../etc"}}']
    for line in lines:
        if not send(bad, line + b"\n"):
            bad = connect()
    for data in [b"", b"=", b"\xff\xfe", b"WATCHDOG_USEC=minus one", b"MAINPID=0", b"MAINPID=1", b"=\n" * 2000]:
        notice(data)
elif mode == "oversized":
    for _ in range(3):
        bad = connect()
        send(bad, b'{"jsonrpc":"2.0","method":"status","params":{"text":"' + b"x" * 1_000_000 + b'"}}\n')
    notice(b"STATUS=" + b"x" * 100_000)
elif mode == "half":
    bad = connect()
    send(bad, BEAT + b'{"jsonrpc":"2.0","id":3,"me')
    bad.close()
    held = [connect() for _ in range(20)]
    for s in held:
        send(s, b'{"jsonrpc":"2.0","method":"heart')
elif mode == "flood":
    bad, until = connect(), time.monotonic() + 4
    line = b'{"jsonrpc":"2.0","id":4,"method":"find","params":{"process":"zone"}}\n' * 200
    while time.monotonic() < until:
        # Answers are never read.
        if not send(bad, line):
            bad = connect()
        for _ in range(20):
            notice(b"STATUS=flood")
elif mode == "connections":
    held = []
    for _ in range(1000):
        try:
            held.append(connect())
        except OSError:
            pass
elif mode == "beats":
    # 10,000 a second, in portions of 100.
    begun, sent = time.monotonic(), 0
    good.setblocking(True)
    while time.monotonic() < begun + 4:
        if not send(good, BEAT * 100):
            sys.exit("the agent hung up")
        sent += 100
        time.sleep(max(0, begun + sent / 10000 - time.monotonic()))
    if sent < 20000:
        sys.exit("too slow to be a flood: %d" % sent)
elif mode == "stranger":
    other = folder_of("zone.0")
    for _ in range(5):
        try:
            s = connect(other + "/api.sock")
            send(s, b'{"jsonrpc":"2.0","method":"stopping"}\n')
            s.close()
        except OSError:
            pass
        notice(b"STOPPING=1", other + "/notify.sock")
done()
while True:
    send(good, BEAT)
    time.sleep(0.2)
"#;

/// Runs one rude process beside the healthy ones, and waits for what the agent says about it.
fn rude(mode: &str, user: &str, fault: Option<&str>) -> Host {
    let mut host = Host::new(Cgroups::Own);
    let script = host.root.join("rude");
    std::fs::write(&script, RUDE).unwrap();
    let folder = host.root.to_str().unwrap().to_owned();
    let rude = host.witness(&["/usr/bin/python3", script.to_str().unwrap(), mode, &folder]);
    let processes = neighbours::toml(&host)
        + &format!(
            r#"
[process.rude]
command = {rude}
{user}
ready = {{ mode = "native", timeout = "20s" }}
heartbeat = {{ mode = "native", interval = "1s", timeout = "20s" }}
"#
        );
    // The rude one starts when the others are there to be disturbed.
    host.write_config(&processes.replace("[process.rude]", "[process.rude]\nafter = [\"zone\", \"beat\"]"));
    host.start();
    let neighbours = Neighbours::of(&host);
    let done = host.root.join("done");
    neighbours.watch_until(&host, "the rude one is through", || expect(done.exists(), host.view("rude.0")));
    if let Some(kind) = fault {
        let label = format!("kind=\"{kind}\"");
        neighbours.watch_until(&host, &format!("{kind} is counted"), || {
            let count = host.metric("bigbrother_process_socket_errors_total", &label)?;
            expect(count >= 1.0, count)
        });
    }
    neighbours.noticed_nothing(&host);
    let view = host.ready("rude.0");
    assert_eq!(view.restarts, 0, "what is well-formed still counts: {view:?}");
    host
}

#[test]
fn malformed_messages() {
    let host = rude("malformed", "", Some("malformed"));
    assert!(host.metric("bigbrother_process_socket_errors_total", "kind=\"malformed\"").unwrap() >= 5.0);
}

#[test]
fn oversized_messages() {
    rude("oversized", "", Some("oversized"));
}

#[test]
fn half_sent_messages() {
    rude("half", "", Some("malformed"));
}

#[test]
fn a_flood_of_questions_whose_answers_nobody_reads() {
    rude("flood", "", Some("flooded"));
}

#[test]
fn a_thousand_connections() {
    rude("connections", "", Some("refused"));
}

#[test]
fn ten_thousand_heartbeats_a_second() {
    rude("beats", "", Some("flooded"));
}

#[test]
fn a_stranger_from_another_instance() {
    rude("stranger", "", Some("stranger"));
}

#[test]
fn a_stranger_of_another_account_finds_the_door_locked() {
    // It cannot find out where the sockets lie, so nothing of it reaches them.
    let host = rude("stranger", "user = \"nobody\"", None);
    let count = host.metric("bigbrother_process_socket_errors_total", "kind=\"stranger\"").unwrap();
    assert_eq!(count, 0.0, "nothing came through");
}
