//! A host that is flooded goes on to say that it lives, and to hear that it may keep what is exclusive.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, NAMES};
use crate::host::{Host, expect, until};

/// More than twice the longest that a host's exclusive runs live without a confirm.
const FLOOD: Duration = Duration::from_secs(12);

/// Says as much as it can on both of its sockets, and counts it.
const FLOODER: &str = r#"
import os, socket, sys
stream = socket.socket(socket.AF_UNIX)
stream.connect(os.environ["BIGBROTHER_SOCKET"])
stream.setblocking(False)
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
notify.setblocking(False)
lines = b'{"jsonrpc":"2.0","method":"heartbeat"}\n' * 100
rest, sent = lines, 0
count = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY, 0o644)
while True:
    try:
        rest = rest[stream.send(rest):] or lines
        sent += 1
    except BlockingIOError:
        pass
    try:
        notify.send(b"WATCHDOG=1")
        sent += 1
    except BlockingIOError:
        pass
    os.pwrite(count, b"%d" % sent, 0)
"#;

fn processes(host: &Host) -> String {
    let root = host.root.to_str().unwrap();
    std::fs::write(host.root.join("flooder"), FLOODER).unwrap();
    let arena = host.witness(&["/bin/sleep", "100000"]);
    let plain = "ready = { mode = \"spawned\", after = \"50ms\" }\n";
    format!(
        "[process.arena]\ncommand = {arena}\ncount = 3\non_partition = \"stop\"\n{plain}heartbeat = {{ mode = \"none\" }}\n\
         [process.flood]\ncommand = [\"/usr/bin/python3\", \"{root}/flooder\", \"{root}/count\"]\ncount = 1\n{plain}\
         heartbeat = {{ mode = \"native\", interval = \"1s\", timeout = \"30s\" }}\n"
    )
}

const ALL: [&str; 4] = ["arena.0", "arena.1", "arena.2", "flood.0"];

#[test]
fn what_is_exclusive_lives_beside_a_flood() {
    let cluster = Cluster::start(processes);
    let before = cluster.ready(0, &ALL);
    let flooded = Cluster::index(before[3].host.as_str());
    assert!(before[..3].iter().any(|arena| arena.host == before[3].host), "one on each host: {before:?}");
    let sent = || -> u64 {
        let count = std::fs::read_to_string(cluster.hosts[0].root.join("count")).unwrap_or_default();
        count.parse().unwrap_or(0)
    };
    until("the flood has begun", || expect(sent() > 0, sent()));
    // The API of that host is asked for all it has at the same time.
    let (done, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let (said, silent) = (sent(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for path in ["/v1/instances", "/v1/directory"] {
            let (host, done, asked) = (&cluster.hosts[flooded], &done, &asked);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    asked.fetch_add(u64::from(host.get(path).is_ok()), Ordering::Relaxed);
                }
            });
        }
        let began = Instant::now();
        while began.elapsed() < FLOOD {
            let hosts = cluster.hosts_view(flooded);
            let ms = hosts.iter().find(|host| host.host.as_str() == NAMES[flooded]).unwrap().silent_ms;
            silent.fetch_max(ms.unwrap_or(0), Ordering::Relaxed);
        }
        done.store(true, Ordering::Relaxed);
    });
    println!("{} said, {asked:?} asked, silent for {silent:?} ms at most", sent() - said);
    assert!(sent() - said > 1_000 && asked.load(Ordering::Relaxed) > 100, "that was no flood");
    let after = cluster.ready(0, &ALL);
    for (now, was) in after.iter().zip(&before) {
        assert_eq!((&now.host, now.run, now.pid), (&was.host, was.run, was.pid), "{now:?}");
    }
}
