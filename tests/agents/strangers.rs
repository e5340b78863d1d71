//! A stranger on the agents' port of a whole cluster: garbage, half frames, a flood. The cluster works on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bigbrother::cluster::wire::hello::Ours;
use bigbrother::cluster::wire::{Frame, Kind, Purpose, encode};

use crate::cluster::{Cluster, NAMES, ZONES, zones};
use crate::host::{expect, until};

/// Between two speeches: enough of them to disturb, and not to take the whole of a small machine.
const BREATH: Duration = Duration::from_millis(20);

/// Those who say nothing, and stay: together more than any agent has room for before it knows who somebody is.
const SILENT: usize = 8;
/// As many connections of each stay.
const STAY: usize = 400;

/// Somebody who speaks to these addresses again and again, until dropped.
struct Stranger {
    done: Arc<AtomicBool>,
    said: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Stranger {
    fn start(addresses: &[String], speeches: Vec<Vec<u8>>) -> Stranger {
        let (done, said) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = speeches.into_iter().map(|speech| {
            let (done, said, addresses) = (done.clone(), said.clone(), addresses.to_vec());
            std::thread::spawn(move || {
                // Those that say nothing more stay.
                let mut silent = std::collections::VecDeque::new();
                for address in addresses.iter().cycle() {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    std::thread::sleep(BREATH);
                    let Ok(mut stream) = TcpStream::connect(address) else { continue };
                    let _ = stream.write_all(&speech);
                    let _ = stream.set_read_timeout(Some(Duration::from_millis(2)));
                    let _ = stream.read(&mut [0; 64]);
                    said.fetch_add(1, Ordering::Relaxed);
                    silent.push_back(stream);
                    if silent.len() > STAY {
                        silent.pop_front();
                    }
                }
            })
        });
        Stranger { threads: threads.collect(), done, said }
    }

    /// Until it has said as much again.
    fn goes_on(&self, times: usize) {
        let before = self.said.load(Ordering::Relaxed);
        until("the stranger speaks", || {
            let said = self.said.load(Ordering::Relaxed) - before;
            expect(said >= times, said)
        });
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn frame(kind: Kind, body: Vec<u8>) -> Vec<u8> {
    let mut bytes = Vec::new();
    Frame { kind, request: 7, ttl_ms: 60_000, body }.write(&mut bytes);
    bytes
}

/// What somebody says who has the format in his hands, but no business here.
fn speeches() -> Vec<Vec<u8>> {
    let hello = |cluster: &str, purpose| {
        let (host, to) = ("omega".parse().unwrap(), "alpha".parse().unwrap());
        let ours = Ours { cluster: cluster.to_owned(), host, incarnation: 1, history: None, id: Some(1) };
        frame(Kind::Hello, encode(&ours.hello(&to, None, purpose)).unwrap())
    };
    let noise = |seed: u32| (0..50_000u32).map(|n| (n.wrapping_mul(seed) >> 13) as u8).collect::<Vec<u8>>();
    let mut endless = frame(Kind::Hello, vec![7; 100]);
    // Of its length only: the largest body there may be, which never comes.
    endless.truncate(20);
    let something = vec![
        noise(2_654_435_761),
        b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3],
        hello("test", Purpose::Bulk)[..30].to_vec(),
        endless,
        hello("another", Purpose::Host),
        hello("test", Purpose::Urgent),
        [hello("test", Purpose::Host), noise(40_503)].concat(),
        [hello("test", Purpose::HostBulk), frame(Kind::Propose, noise(3_266_489_917))].concat(),
        [hello("test", Purpose::Api), frame(Kind::Tunnel, noise(668_265_263)[..900].to_vec())].concat(),
        [hello("test", Purpose::Snapshot), frame(Kind::SnapshotPart, noise(374_761_393))].concat(),
    ];
    std::iter::repeat_n(Vec::new(), SILENT).chain(something).collect()
}

/// The cluster does all that a cluster does, beside a stranger who talks to all of its agents.
fn works_beside_a_stranger(cluster: &mut Cluster) {
    bigbrother::descriptors::raise_limit().unwrap();
    let before = cluster.ready(0, &ZONES);
    let pids: Vec<i32> = cluster.hosts.iter().map(|host| host.agent_pid()).collect();
    let memory = |host: usize| resident(cluster.hosts[host].agent_pid());
    let at_first: Vec<u64> = (0..3).map(memory).collect();

    let addresses: Vec<String> =
        cluster.hosts.iter().map(|host| format!("127.0.0.1:{}", host.ports.0 - 1)).collect();
    let stranger = Stranger::start(&addresses, speeches());
    for (turn, host) in [0, 1, 2, 0, 1, 2].into_iter().enumerate() {
        stranger.goes_on(150);
        cluster.ok(host, &["scale", "zone", &(7 + turn % 2).to_string()]);
        until("zone.6 is placed", || expect(cluster.view(host, "zone.6").is_some(), cluster.ps(host)));
        cluster.ok(host, &["restart", "zone.6"]);
        // A busy machine may hold an election now and then; it is over at once.
        until("all are there", || {
            let status = cluster.status(host)?;
            expect(status.quorum && status.hosts.up == 3, status)?;
            let views = cluster.ps(host);
            expect(views.iter().all(|view| view.state != "unreachable"), views)
        });
    }
    for (host, before) in at_first.iter().enumerate() {
        let now = memory(host);
        assert!(now < before + (64 << 10), "{}: {before} KiB, then {now} KiB", NAMES[host]);
    }
    assert_eq!(cluster.hosts.iter().map(|host| host.agent_pid()).collect::<Vec<_>>(), pids);
    // Until now they had their connections. One that comes anew is let in as if nobody else were there.
    cluster.hosts[1].kill_agent();
    cluster.hosts[1].start();
    until("it is one of them again", || {
        let status = cluster.status(1)?;
        expect(status.starting.is_none() && status.quorum && status.hosts.up == 3, (status, cluster.logs()))
    });
    stranger.goes_on(150);
    println!("{:?} connections", stranger.said);
    drop(stranger);
    let now = cluster.ps(0);
    let plays_on = |was: &bigbrother::http::view::InstanceView| {
        now.iter().any(|now| (&now.instance, &now.host, now.run) == (&was.instance, &was.host, was.run))
    };
    assert!(before.iter().all(plays_on), "{now:?}");
    assert!(
        !cluster.hosts_view(0).iter().any(|host| host.host.as_str() == "omega"),
        "the stranger is a host"
    );
}

fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn with_certificates_a_stranger_disturbs_nobody() {
    let mut cluster = Cluster::secured(3, zones);
    works_beside_a_stranger(&mut cluster);
    let log = std::fs::read_to_string(cluster.hosts[0].root.join("agent.log")).unwrap();
    assert!(!log.contains("set cluster.tls"), "{log}");
}

#[test]
fn in_plain_on_loopback_a_stranger_disturbs_nobody_either_and_the_agent_says_what_is_open() {
    let mut cluster = Cluster::start(zones);
    works_beside_a_stranger(&mut cluster);
    for host in &cluster.hosts {
        let log = std::fs::read_to_string(host.root.join("agent.log")).unwrap();
        assert!(log.contains("may read the API at 127.0.0.1:"), "{log}");
        assert!(log.contains("set cluster.tls"), "{log}");
        // Whoever may open the socket may do everything.
        let socket = std::fs::metadata(host.runtime.join("api.sock")).unwrap();
        assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    }
}
