//! What operators change from any host.

use std::time::{Duration, Instant};

use bigbrother::http::view::InstanceView;
use serde_json::{Value, json};

use crate::cluster::{Cluster, NAMES, ZONES, zones};
use crate::host::{expect, until};

fn of(views: &[InstanceView], host: usize) -> Vec<&InstanceView> {
    views.iter().filter(|view| view.host.as_str() == NAMES[host]).collect()
}

#[test]
fn instances_are_operated_wherever_they_are() {
    let cluster = Cluster::start(zones);
    let before = cluster.ready(0, &ZONES);
    let theirs = of(&before, 1)[0].clone();
    let name = theirs.instance.to_string();

    // A new run, on the same host, asked for on another one; under a key once, whoever is asked.
    let restarted = cluster.json(0, &["restart", &name, "--key", "k"]);
    assert_eq!((&restarted[0]["ok"], &restarted[0]["instance"]), (&true.into(), &name.clone().into()));
    let now = cluster.view(0, &name).unwrap();
    assert!(now.host == theirs.host && now.run > theirs.run && now.pid != theirs.pid, "{now:?}");
    cluster.ok(2, &["restart", &name, "--key", "k"]);
    assert_eq!(cluster.view(2, &name).unwrap().run, now.run, "the same key did it again");
    // All of a process, on all hosts.
    let all = cluster.json(2, &["restart", "zone", "--key", "all"]);
    assert_eq!(all.as_array().unwrap().len(), 6, "{all}");
    let after = cluster.ready(1, &ZONES);
    assert!(after.iter().zip(&before).all(|(now, was)| now.run > was.run), "{after:?}");
    // The same key on another host, which has done its share: the same answer, and nothing more is done.
    let again = cluster.json(0, &["restart", "zone", "--key", "all"]);
    assert_eq!(again.as_array().unwrap().len(), 6, "{again}");
    let still = cluster.ready(1, &ZONES);
    assert!(still.iter().zip(&after).all(|(now, was)| now.run == was.run), "{still:?}");

    cluster.ok(0, &["stop", &name]);
    for host in 0..3 {
        let stopped = cluster.view(host, &name).unwrap();
        assert_eq!((stopped.state.as_str(), stopped.pid), ("paused", None));
    }
    cluster.ok(2, &["start", &name]);
    cluster.ready(0, &ZONES);

    // Its events and its output, from another host.
    let events = cluster.ok(2, &["events", &name, "--json"]).out;
    for kind in ["\"paused\"", "\"resumed\"", "\"ready\""] {
        assert!(events.contains(kind), "{kind}: {events}");
    }
    let everywhere = cluster.ok(2, &["events", "--json"]).out;
    assert!(
        NAMES[..3].iter().all(|host| everywhere.contains(&format!("\"host\":\"{host}\""))),
        "{everywhere}"
    );
    // What becomes of the cluster is about any host, and told by each.
    let only = cluster.json_lines(2, &["events", "--host", "beta"]);
    let of_games: Vec<_> = only.iter().filter(|event| !event["instance"].is_null()).collect();
    assert!(!of_games.is_empty() && of_games.iter().all(|event| event["host"] == "beta"), "{only:?}");
    let here = cluster.ok(1, &["logs", &name, "--lines", "1000"]).out;
    let there = cluster.ok(0, &["logs", &name, "--lines", "1000"]).out;
    assert!(!here.is_empty() && there.starts_with(&here), "{here:?} {there:?}");
    let last = cluster.ok(0, &["logs", &name, "--lines", "1"]).out;
    assert_eq!(last.lines().count(), 1, "{last:?}");

    // Scaling and rolling go through the state anyway.
    cluster.ok(1, &["scale", "zone", "3"]);
    cluster.ready(2, &ZONES[..3]);
    // It is shown, and lasts as long as the file says the same.
    let file = cluster.hosts[1].config();
    let planned = cluster.run(0, &["plan", file.to_str().unwrap()]);
    assert!(planned.code == Some(0) && planned.out.contains("zone is scaled to 3"), "{planned:?}");
    cluster.ok(0, &["apply", file.to_str().unwrap()]);
    cluster.ready(2, &ZONES[..3]);
    cluster.ok(2, &["restart", "--rolling", "zone", "--timeout", "60s"]);
    let rolled = cluster.ready(0, &ZONES[..3]);
    assert!(rolled.iter().zip(&after).all(|(now, was)| now.run > was.run), "{rolled:?}");
}

#[test]
fn logs_and_events_are_followed_on_other_hosts_and_when_an_instance_moves() {
    let cluster = Cluster::start(zones);
    let before = cluster.ready(0, &ZONES);
    let theirs = of(&before, 1)[0].clone();
    let name = theirs.instance.to_string();
    let follow = |args: &[&str]| Follower::start(&cluster, 0, args);
    let logs = follow(&["logs", "-f", &name]);
    let events = follow(&["events", "-f", "--json"]);
    logs.sees("the first lines", |text| !text.is_empty());
    events.sees("the past of all hosts", |text| {
        NAMES[..3].iter().all(|host| text.contains(&format!("\"host\":\"{host}\"")))
    });
    cluster.ok(2, &["restart", &name]);
    let run = cluster.view(0, &name).unwrap().run.unwrap();
    events.sees("the new run", |text| {
        text.contains(&format!("\"instance\":\"{name}\",\"run\":{run},\"kind\":\"ready\""))
    });
    let seen = logs.seen();
    cluster.ok(0, &["drain", "beta", "--wait"]);
    let moved = cluster.ready(0, &ZONES).into_iter().find(|view| view.instance == theirs.instance).unwrap();
    logs.sees("its lines on the next host", |text| {
        let told = format!("[bigbrother: {name} is on {} now]", moved.host);
        text.split_once(&told).is_some_and(|(before, after)| before.starts_with(&seen) && after.len() > 10)
    });
    // Nothing is told twice.
    let text = events.seen();
    let mut lines: Vec<&str> = text.lines().collect();
    let all = lines.len();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), all, "{text}");
}

/// A command that goes on; ended when dropped.
struct Follower {
    child: std::process::Child,
    text: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Follower {
    fn start(cluster: &Cluster, host: usize, args: &[&str]) -> Follower {
        use std::io::Read;
        let mut child = cluster.spawn(host, args);
        let mut out = child.stdout.take().unwrap();
        let text = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let heard = text.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut chunk) {
                heard.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..n]));
            }
        });
        Follower { child, text }
    }

    fn seen(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    fn sees(&self, what: &str, pleases: impl Fn(&str) -> bool) {
        until(what, || expect(pleases(&self.seen()), self.seen()));
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const DUNGEON: &str = r#"
[process.dungeon]
command = ["/bin/sh", "-c", "printf %s '{arg.map}' > map; sleep 100000"]
on_demand = { max = 2 }
ready = { mode = "spawned", after = "50ms" }
heartbeat = { mode = "none" }
"#;

#[test]
fn an_instance_is_launched_and_a_file_is_planned_from_any_host() {
    let cluster = Cluster::start(|host| zones(host) + DUNGEON);
    cluster.ready(0, &ZONES);
    let launch = |host: usize, map: &str, key: &str| {
        let map = format!("map={map}");
        cluster.run(host, &["launch", "dungeon", "--arg", &map, "--key", key, "--json"])
    };
    let first = launch(0, "harbour", "first").json()["instance"].as_str().unwrap().to_owned();
    let again = launch(2, "harbour", "first").json();
    assert_eq!(again["instance"], first.as_str(), "the same key, asked of another host");
    let refused = launch(1, "cave", "first");
    assert!(refused.code != Some(0) && refused.err.contains("first"), "{refused:?}");
    let second = launch(1, "cave", "second").json()["instance"].as_str().unwrap().to_owned();
    for (instance, map) in [(&first, "harbour"), (&second, "cave")] {
        let host =
            until("it is placed", || cluster.view(0, instance).ok_or_else(|| "nowhere".to_owned())).host;
        let written =
            cluster.hosts[Cluster::index(host.as_str())].data.join("data").join(instance).join("map");
        until("it has its argument", || {
            let text = std::fs::read_to_string(&written).unwrap_or_default();
            expect(text == map, (&written, text))
        });
    }
    assert_ne!(launch(2, "sea", "third").code, Some(0), "two are the most");

    // What a file would change is told by any host, and it changes nothing.
    let host = &cluster.hosts[1];
    let changed = host.root.join("changed.toml");
    std::fs::write(&changed, std::fs::read_to_string(host.config()).unwrap().replace("max = 2", "max = 3"))
        .unwrap();
    let planned = cluster.run(1, &["plan", changed.to_str().unwrap()]);
    assert!(planned.code == Some(10) && planned.out.contains("dungeon"), "{planned:?}");
    assert_ne!(launch(2, "sea", "third").code, Some(0), "a plan is no apply");
    cluster.ok(1, &["apply", changed.to_str().unwrap()]);
    launch(2, "sea", "third").json();
}

#[test]
fn a_drained_host_is_emptied_and_an_undrained_one_is_not_refilled() {
    let cluster = Cluster::start(zones);
    let before = cluster.ready(0, &ZONES);
    let drained = cluster.json(0, &["drain", "gamma", "--wait", "--timeout", "60s"]);
    assert_eq!(drained, json!({ "host": "gamma", "empty": true, "running": 0 }));
    let after = cluster.ready(1, &ZONES);
    assert_eq!((of(&after, 2).len(), of(&after, 0).len(), of(&after, 1).len()), (0, 3, 3));
    // Who was elsewhere did not move.
    for view in before.iter().filter(|view| view.host.as_str() != "gamma") {
        let now = after.iter().find(|now| now.instance == view.instance).unwrap();
        assert_eq!((&now.host, now.run), (&view.host, view.run));
    }
    let shown = cluster.hosts_view(2);
    assert_eq!((shown[2].drained, shown[2].instances, shown[2].up), (true, 0, true));
    let told = cluster.ok(0, &["ps", "--host", "gamma"]).out;
    assert!(told.contains("`bigbrother undrain gamma`"), "{told}");
    let told = cluster.run(0, &["ps", "zone.0", "--host", "gamma"]);
    assert!(told.code == Some(1) && told.err.contains("no instance of zone.0 on gamma"), "{told:?}");

    cluster.ok(1, &["undrain", "gamma"]);
    // New ones come there, the others stay.
    cluster.ok(2, &["scale", "zone", "9"]);
    let more: Vec<String> = (0..9).map(|n| format!("zone.{n}")).collect();
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let grown = cluster.ready(0, &more);
    assert_eq!(of(&grown, 2).len(), 3, "{grown:?}");
    let stayed =
        |was: &&InstanceView| grown.iter().any(|now| now.instance == was.instance && now.run == was.run);
    assert_eq!(after.iter().filter(stayed).count(), 6);
    let unknown = cluster.run(0, &["drain", "gama"]);
    assert!(unknown.code == Some(4) && unknown.err.contains("did you mean gamma?"), "{unknown:?}");
    // The last one that takes any.
    let told = ["alpha", "gamma", "beta"].map(|host| cluster.ok(0, &["drain", host]).out);
    let nowhere = "no other host is up and takes instances: those of beta end";
    assert_eq!(told.map(|told| told.contains(nowhere)), [false, false, true]);
    until("they end", || {
        let views = cluster.ps(0);
        expect(views.iter().all(|view| view.pid.is_none()), views)
    });
    cluster.ok(0, &["undrain", "beta"]);
    assert_eq!(of(&cluster.ready(0, &more), 1).len(), 9);
}

/// What alpha says of beta and gamma, whose agents are gone.
fn names_who_is_missing(cluster: &Cluster) {
    let peers = cluster.json(0, &["peers"]);
    let answers = peers.as_array().unwrap().iter().map(|peer| (peer["host"].as_str(), &peer["unreachable"]));
    for (host, why) in answers {
        let refused = why.as_str().is_some_and(|why| why.contains("cannot connect to 127.0.0.1"));
        assert_eq!(refused, host != Some("alpha"), "{peers}");
    }
    // A primary of before counts on; any other peer knows only that there was no answer.
    let lost = |row: &Value| row["silent_ms"].as_u64().is_none_or(|silent| silent > 1_000);
    let hosts = cluster.json(0, &["hosts"]);
    for list in [&peers, &hosts] {
        let rows = list.as_array().unwrap();
        assert!(rows.len() == 3 && rows[1..].iter().all(lost), "{list}");
    }
    assert_eq!(peers[0]["silent_ms"], 0, "{peers}");
    let status = cluster.run(0, &["status"]);
    assert!(status.out.contains("no answer from beta, gamma"), "{status:?}");
}

#[test]
fn without_a_quorum_changes_are_refused_and_reads_go_on() {
    let mut cluster = Cluster::start(zones);
    cluster.ready(0, &ZONES);
    until("alpha's copy has them all", || {
        let listed = cluster.hosts[0].get("/v1/directory")?;
        expect(listed.as_array().is_some_and(|listed| listed.len() == 6), listed)
    });
    for lost in [1, 2] {
        cluster.hosts[lost].kill_agent();
    }
    until("the quorum is lost", || {
        let status = cluster.status(0)?;
        expect(!status.quorum && status.primary.is_none(), status)
    });
    let began = Instant::now();
    for args in [&["scale", "zone", "3"][..], &["drain", "beta"], &["stop", "zone.0"]] {
        let refused = cluster.run(0, args);
        assert_eq!(refused.code, Some(4), "{refused:?}");
        assert!(refused.err.contains("no quorum") && refused.err.contains("no-quorum"), "{refused:?}");
        assert!(refused.err.contains("`bigbrother peers` shows who is missing"), "{refused:?}");
    }
    names_who_is_missing(&cluster);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let (status, head, _) =
        cluster.hosts[0].whole("POST", "/v1/scale", r#"{"process":"zone","count":3}"#).unwrap();
    assert_eq!(status, 503, "{head}");
    assert!(head.to_ascii_lowercase().contains("retry-after:"), "{head}");
    // The directory is read as ever, unless it is to be as new as anybody's.
    let listed = cluster.hosts[0].get("/v1/directory").unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 6, "{listed}");
    let (status, head, body) = cluster.hosts[0].whole("GET", "/v1/directory?consistent", "").unwrap();
    assert!(status == 503 && body.contains("no-quorum"), "{head} {body}");
    assert!(head.to_ascii_lowercase().contains("retry-after:"), "{head}");
    // An instance whose host does not answer.
    let views = cluster.ps(0);
    assert_eq!(views.len(), 6);
    let far = views.iter().find(|view| view.host.as_str() == "beta").unwrap();
    assert_eq!(far.state, "unreachable", "{far:?}");
    let refused = cluster.run(0, &["restart", &far.instance.to_string()]);
    assert!(refused.code == Some(4) && refused.err.contains("host-unreachable"), "{refused:?}");
    let down = cluster.run(0, &["hosts", "declare-down", "beta"]);
    assert!(down.code == Some(4) && down.err.contains("no-quorum"), "{down:?}");
    // What is here is supervised and restarted as ever.
    let own = views.iter().find(|view| view.host.as_str() == "alpha").unwrap();
    cluster.ok(0, &["restart", &own.instance.to_string()]);
    assert_eq!(cluster.hosts_view(0).len(), 3);
    assert_eq!(cluster.run(0, &["status"]).code, Some(1));
    // Nothing of what was refused was done, nor is it later: neither scaled nor stopped nor drained.
    [1, 2].into_iter().for_each(|lost| cluster.hosts[lost].launch_agent());
    cluster.ready(0, &ZONES);
    until("all hosts are heard again", || {
        let hosts = cluster.hosts_view(0);
        expect(hosts.iter().all(|host| host.up && !host.drained), hosts)
    });
}
