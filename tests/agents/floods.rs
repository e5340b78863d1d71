//! A host that is flooded goes on to say that it lives, and to hear that it may keep what is exclusive.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bigbrother::http::view::InstanceView;

use crate::cluster::Cluster;
use crate::host::{Host, PATIENCE, expect, until};

/// More than twice the longest that a host's exclusive runs live without a confirm.
const FLOOD: Duration = Duration::from_secs(12);

/// Says as much as it can on both of its sockets, over several connections; counts the datagrams.
const FLOODER: &str = r#"
import os, socket, sys
for _ in range(6):
    if os.fork() > 0:
        continue
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(os.environ["BIGBROTHER_SOCKET"])
    os.dup2(stream.fileno(), 1)
    os.execvp("yes", ["yes", '{"jsonrpc":"2.0","method":"heartbeat"}'])
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
count, sent = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY, 0o644), 0
while True:
    notify.send(b"WATCHDOG=1")
    sent += 1
    os.pwrite(count, b"%d" % sent, 0)
"#;

fn processes(host: &Host) -> String {
    let root = host.root.to_str().unwrap();
    std::fs::write(host.root.join("flooder"), FLOODER).unwrap();
    let arena = host.witness(&["/bin/sleep", "100000"]);
    let plain = "ready = { mode = \"spawned\", after = \"0s\" }\nheartbeat = { mode = \"none\" }\n";
    format!(
        "[process.arena]\ncommand = {arena}\ncount = 3\non_partition = \"stop\"\n{plain}\
         [process.crash]\ncommand = [\"/bin/false\"]\ncount = 12\n{plain}\
         restart = {{ backoff = false, give_up = false }}\n\
         [process.flood]\ncommand = [\"/usr/bin/python3\", \"{root}/flooder\", \"{root}/count\"]\ncount = 1\n\
         ready = {{ mode = \"spawned\", after = \"0s\" }}\n\
         heartbeat = {{ mode = \"native\", interval = \"1s\", timeout = \"30s\" }}\n"
    )
}

/// All of what is exclusive, once it is ready.
fn arenas(cluster: &Cluster) -> Vec<InstanceView> {
    until("the arenas are ready", || {
        let views = cluster.hosts[0].get("/v1/instances?process=arena")?;
        let views: Vec<InstanceView> = serde_json::from_value(views).unwrap();
        let ready = views.len() == 3 && views.iter().all(|view| view.state == "ready");
        expect(ready, (&views, cluster.logs()))?;
        Ok(views)
    })
}

/// One program ends at once and is started again, on each host, so that the keepers always have something to say; one
/// speaks without end, and the API of its host is asked for all it has.
#[test]
fn what_is_exclusive_lives_beside_a_flood() {
    let cluster = Cluster::start(processes);
    let before = arenas(&cluster);
    let hosts: BTreeSet<&str> = before.iter().map(|view| view.host.as_str()).collect();
    assert_eq!(hosts.len(), 3, "one on each host: {before:?}");
    let count = |name: &str| {
        let count = std::fs::read_to_string(cluster.hosts[0].root.join(name)).unwrap_or_default();
        count.parse::<u64>().unwrap_or(0)
    };
    until("the flood has begun", || expect(count("count") > 0, cluster.logs()));
    let crashes = || -> Result<f64, String> {
        cluster.hosts.iter().map(|host| host.metric("bigbrother_restarts_total", "exit")).sum()
    };
    let flooded = cluster.view(0, "flood.0").expect("the flood").host;
    let flooded = &cluster.hosts[Cluster::index(flooded.as_str())];
    let (said, asked) = (count("count"), AtomicU64::new(0));
    let crashed = until("crashes on each host", crashes);
    let come = || {
        let come = (count("count") - said, crashes()? - crashed, asked.load(Ordering::Relaxed));
        expect(come.0 > 500 && come.1 > 300.0 && come.2 > 20, come)?;
        Ok(come)
    };
    let began = Instant::now();
    // On a slow machine a flood takes longer to be one.
    let goes_on = || began.elapsed() < FLOOD || (began.elapsed() < 2 * PATIENCE && come().is_err());
    std::thread::scope(|scope| {
        for path in ["/v1/instances", "/v1/directory"] {
            let (asked, goes_on) = (&asked, &goes_on);
            scope.spawn(move || {
                while goes_on() {
                    asked.fetch_add(u64::from(flooded.get(path).is_ok()), Ordering::Relaxed);
                }
            });
        }
    });
    let (said, crashed, asked) = until("a flood", come);
    println!("{said} words, {crashed} crashes, {asked} questions");
    for (now, was) in arenas(&cluster).iter().zip(&before) {
        assert_eq!((&now.host, now.run, now.pid), (&was.host, was.run, was.pid), "{now:?}");
    }
}
