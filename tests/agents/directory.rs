//! The client library, and the Python watcher, on agents that die and come back.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bigbrother::client::directory::{
    Address, Change, Directory, DirectoryError, Entry, Interest, Query, asynchronous,
};
use bigbrother::spec::InstanceId;
use serde_json::Value;

use crate::cluster::{Cluster, ZONES, zones};
use crate::host::{PATIENCE, expect, until};

fn agent(cluster: &Cluster, host: usize) -> Address {
    format!("unix:{}/api.sock", cluster.hosts[host].runtime.display()).parse().unwrap()
}

fn agents(cluster: &Cluster, hosts: &[usize]) -> Vec<Address> {
    hosts.iter().map(|host| agent(cluster, *host)).collect()
}

/// Whoever is told of changes, and what it was told, in short: a line for each.
struct Watcher {
    name: &'static str,
    heard: Receiver<String>,
    told: Vec<String>,
}

impl Watcher {
    fn start(name: &'static str, work: impl FnOnce(Sender<String>) + Send + 'static) -> Watcher {
        let (tell, heard) = channel();
        std::thread::spawn(move || work(tell));
        Watcher { name, heard, told: Vec::new() }
    }

    fn blocking(name: &'static str, agents: Vec<Address>) -> Watcher {
        Watcher::start(name, |tell| {
            let watch = Directory::of(agents).watch(&Interest::default());
            // It ends with the test.
            watch
                .map(|change| line(&change.unwrap()))
                .take_while(|line| tell.send(line.clone()).is_ok())
                .for_each(drop);
        })
    }

    fn asynchronous(name: &'static str, agents: Vec<Address>) -> Watcher {
        Watcher::start(name, |tell| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut watch = asynchronous::Directory::of(agents).watch(&Interest::default());
                while tell.send(line(&watch.next().await.unwrap())).is_ok() {}
            });
        })
    }

    /// The example; the child is to be ended.
    fn python(name: &'static str, agents: &[Address]) -> (Watcher, Ended) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/watch_directory.py");
        let mut command = Command::new("python3");
        command.arg(script).args(agents.iter().map(ToString::to_string)).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let watcher = Watcher::start(name, |tell| {
            let lines = out.lines().map_while(Result::ok);
            lines
                .map(|text| line_of_json(&text))
                .take_while(|line| tell.send(line.clone()).is_ok())
                .for_each(drop);
        });
        (watcher, Ended(child))
    }

    fn hear(&mut self) -> &[String] {
        self.told.extend(self.heard.try_iter());
        &self.told
    }

    /// Waits until it has been told what `lines` gives, all of it.
    fn hears(&mut self, what: &str, lines: impl Fn() -> Result<Vec<String>, String>) {
        until(what, || {
            let lines = lines()?;
            let told = self.hear();
            expect(lines.iter().all(|line| told.contains(line)), (&lines, told))
        });
    }

    fn changes(&self) -> &[String] {
        &self.told[1..]
    }
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn put(entry: &Entry) -> String {
    format!("put {} on {} run {} ready {}", entry.instance, entry.host, entry.run, entry.ready)
}

fn line(change: &Change) -> String {
    match change {
        Change::Snapshot { entries, reset } => format!("{} runs, reset {}", entries.len(), reset.is_some()),
        Change::Put(entry) => put(entry),
        Change::Gone { instance, .. } => format!("gone {instance}"),
        Change::Leader { process, instance, token } => {
            let instance = instance.as_ref().map(ToString::to_string).unwrap_or_default();
            format!("leader {process} {instance} {}", token.unwrap_or_default())
        }
        Change::Status(_) => panic!("nobody asked for it"),
    }
}

fn line_of_json(text: &str) -> String {
    let Value::Object(mut line) = serde_json::from_str(text).unwrap() else { panic!("{text}") };
    let data = line["data"].take();
    let word = |key: &str| data[key].as_str().unwrap_or_default().to_owned();
    match line["event"].as_str().unwrap() {
        "snapshot" => format!("{} runs, reset false", data.as_array().unwrap().len()),
        "put" => put(&serde_json::from_value(data).unwrap()),
        "gone" => format!("gone {}", word("instance")),
        "leader" => {
            format!("leader {} {} {}", word("process"), word("instance"), data["token"].as_u64().unwrap_or(0))
        }
        other => other.to_owned(),
    }
}

fn listed(cluster: &Cluster, host: usize) -> BTreeMap<InstanceId, Entry> {
    let found = Directory::of([agent(cluster, host)]).find(&Query::default()).unwrap();
    found.entries.into_iter().map(|entry| (entry.instance.clone(), entry)).collect()
}

/// A cluster in which every host knows that all zones are ready.
fn settled() -> Cluster {
    let cluster = Cluster::start(zones);
    for host in 0..3 {
        until("the directory has all", || {
            let known = listed(&cluster, host);
            expect(
                known.len() == ZONES.len() && known.values().all(|entry| entry.ready),
                (known, cluster.logs()),
            )
        });
    }
    cluster
}

/// What a watcher of the third host is told of these once each is ready, in another run than before.
fn ready(
    cluster: &Cluster,
    zones: &[&str],
    before: &BTreeMap<InstanceId, Entry>,
) -> Result<Vec<String>, String> {
    let now = listed(cluster, 2);
    let line = |zone: &&str| {
        let id: InstanceId = zone.parse().unwrap();
        let newer = |entry: &&Entry| entry.ready && before.get(&id).is_none_or(|old| old.run != entry.run);
        now.get(&id).filter(newer).map(put)
    };
    let lines: Option<Vec<String>> = zones.iter().map(line).collect();
    lines.ok_or_else(|| format!("{now:?} {}", cluster.logs()))
}

/// Restarts two, and waits until the witness has been told of their new runs.
fn restarted_as_told(cluster: &Cluster, witness: &mut Watcher) {
    let (before, zones) = (listed(cluster, 2), ["zone.0", "zone.3"]);
    cluster.ok(2, &["restart", "zone.0", "zone.3"]);
    witness.hears("new runs", || ready(cluster, &zones, &before));
}

#[test]
fn each_change_is_told_once_while_agents_die_and_come_back() {
    let mut cluster = settled();
    // The third one stays, and what it tells is what happened.
    let three = [0, 1, 2];
    let (python, _ended) = Watcher::python("Python's", &agents(&cluster, &three));
    let mut watchers = [
        Watcher::blocking("the witness", agents(&cluster, &[2])),
        Watcher::blocking("the blocking one", agents(&cluster, &three)),
        Watcher::asynchronous("the async one", agents(&cluster, &three)),
        python,
    ];
    for watcher in &mut watchers {
        until("a snapshot", || {
            expect(watcher.hear() == ["6 runs, reset false"], (watcher.name, &watcher.told))
        });
    }
    // One that does not look meanwhile has lost its agent with all that came since, and goes on at another.
    let mut sleeper = Directory::of(agents(&cluster, &three)).watch(&Interest::default());
    let slept = sleeper.next_within(PATIENCE).unwrap().expect("a snapshot");
    assert_eq!(line(&slept), "6 runs, reset false");
    // One that has a single agent is told anew what it missed.
    let mut single = Directory::of([agent(&cluster, 0)]).watch(&Interest::default());
    let mut known = BTreeMap::new();

    // What comes within one batch of a busy host is one change: each is heard before the next is made.
    let [witness, others @ ..] = &mut watchers;
    restarted_as_told(&cluster, witness);
    for lost in [0, 1] {
        cluster.hosts[lost].kill_agent();
        until("another primary", || expect(cluster.status(2)?.quorum, cluster.status(2)));
        cluster.ok(2, &["scale", "zone", if lost == 0 { "4" } else { "6" }]);
        cluster.hosts[lost].start();
        let all = if lost == 0 { &ZONES[..4] } else { &ZONES };
        cluster.ready(2, all);
        let changed = &ZONES[4..];
        match lost {
            0 => witness
                .hears("what is gone", || Ok(changed.iter().map(|zone| format!("gone {zone}")).collect())),
            _ => witness.hears("what is new", || ready(&cluster, changed, &BTreeMap::new())),
        }
        restarted_as_told(&cluster, witness);
    }

    let last = until("the witness has all", || {
        let listed = listed(&cluster, 2);
        let ready = listed.len() == 6 && listed.values().all(|entry| entry.ready);
        expect(ready, &listed)?;
        Ok(listed)
    });
    let mut quiet = 0;
    until("nothing more happens", || {
        let had = witness.told.len();
        quiet = if witness.hear().len() == had { quiet + 1 } else { 0 };
        expect(quiet > 20, &witness.told)
    });
    for watcher in others {
        until("all is told", || {
            expect(watcher.hear().len() >= witness.told.len(), (watcher.name, &watcher.told))
        });
        assert_eq!(watcher.changes(), witness.changes(), "{}", watcher.name);
    }
    let mut told = Vec::new();
    until("the sleeper is told all", || {
        while let Some(change) = sleeper.next_within(Duration::from_millis(50)).unwrap() {
            told.push(line(&change));
        }
        expect(told.len() >= witness.changes().len(), &told)
    });
    assert_eq!(told, witness.changes(), "the sleeper's");
    until("the single one knows all", || {
        while let Some(change) = single.next_within(Duration::from_millis(50)).unwrap() {
            change.apply_to(&mut known);
        }
        expect(known == last, (&known, &last))
    });
}

#[test]
fn runs_are_found_and_the_leader_has_a_token_that_grows() {
    let cluster = settled();
    let nobody: Address = format!("unix:{}/nobody.sock", cluster.hosts[0].root.display()).parse().unwrap();
    let closed: Address = "http://127.0.0.1:9".parse().unwrap();
    let tcp: Address = format!("http://127.0.0.1:{}", cluster.hosts[1].api.unwrap()).parse().unwrap();
    let directory = Directory::of([nobody.clone(), closed, tcp]);
    let zone = "zone".parse().unwrap();

    let all = directory.find(&Query { consistent: true, ..Query::default() }).unwrap();
    assert!(all.entries.len() == 6 && all.index > 0, "{all:?}");
    let narrowed = Query {
        process: Some("zone".parse().unwrap()),
        host: Some("beta".parse().unwrap()),
        ready: Some(true),
        ..Query::default()
    };
    let there = directory.find(&narrowed).unwrap().entries;
    assert!(there.len() == 2 && there.iter().all(|entry| entry.host.as_str() == "beta"), "{there:?}");
    let said = Query { status: true, ..narrowed };
    until("what they say", || {
        let said = directory.find(&said).unwrap().entries;
        let players = |entry: &Entry| entry.status.clone().flatten()?.players;
        expect(said.iter().all(|entry| players(entry).is_some()), said)
    });

    let first = directory.leader(&zone).unwrap().expect("a leader");
    cluster.ok(2, &["restart", &first.entry.instance.to_string()]);
    let second = until("another leader", || {
        let leader = directory.leader(&zone).unwrap();
        let leader = leader.filter(|leader| leader.token != first.token);
        leader.ok_or_else(|| "none".to_owned())
    });
    assert!(second.token > first.token && second.entry != first.entry, "{first:?} {second:?}");
    assert_eq!(directory.leader(&"login".parse().unwrap()).unwrap(), None);

    let label = Query { label: Some(("a".to_owned(), "b".to_owned())), ..Query::default() };
    assert_eq!(directory.find(&label).unwrap().entries, []);
    let unanswered = Directory::of([nobody]).find(&Query::default()).unwrap_err();
    assert!(matches!(unanswered, DirectoryError::Unanswered { .. }), "{unanswered}");
    assert!(matches!(Directory::of([]).find(&Query::default()), Err(DirectoryError::NoAgent)));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let directory = asynchronous::Directory::of(agents(&cluster, &[0, 1]));
        assert_eq!(directory.find(&Query::default()).await.unwrap().entries.len(), 6);
        assert_eq!(directory.leader(&zone).await.unwrap().map(|leader| leader.token), Some(second.token));
    });
}

#[test]
fn the_matchmaker_sends_players_to_free_places() {
    let cluster = settled();
    // The test's own program lies in deps/, beside examples/.
    let own = std::env::current_exe().unwrap();
    let program = own.parent().unwrap().parent().unwrap().join("examples/matchmaker");
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new(program);
    command.arg(port.to_string()).arg("zone");
    command.args(agents(&cluster, &[0, 1]).iter().map(ToString::to_string)).stdout(Stdio::null());
    let _ended = Ended(command.spawn().unwrap());

    let player = UdpSocket::bind("127.0.0.1:0").unwrap();
    player.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let ask = || {
        let mut seat = [0; 64];
        let _ = player.send_to(b"hello", ("127.0.0.1", port));
        let read = player.recv(&mut seat).unwrap_or(0);
        String::from_utf8_lossy(&seat[..read]).into_owned()
    };
    let open: BTreeSet<String> = listed(&cluster, 0)
        .values()
        .map(|entry| format!("{}:{}", entry.address, entry.ports["game"].port))
        .collect();
    let seat = until("a seat", || Some(ask()).filter(|seat| open.contains(seat)).ok_or("none".to_owned()));
    // It is in the game.
    let game = UdpSocket::bind("127.0.0.1:0").unwrap();
    game.set_read_timeout(Some(PATIENCE)).unwrap();
    game.send_to(b"ping", &seat).unwrap();
    let mut pong = [0; 64];
    let read = game.recv(&mut pong).unwrap();
    assert!(pong[..read].starts_with(b"pong"), "{:?}", String::from_utf8_lossy(&pong[..read]));
    // Places run out.
    until("no place is left", || {
        let seat = ask();
        expect(seat == "full", seat)
    });
}
