//! Hosts that come back: what they start, what they wait for, and what becomes of runs that belong elsewhere by then.

use std::time::{Duration, Instant};

use bigbrother::http::view::InstanceView;

use crate::cluster::{Cluster, NAMES, ZONES, zones};
use crate::host::{Host, alive, expect, signal, until};

/// What a host waits for a quorum at least before it goes by its own copy: `host_timeout`, as short as it may be.
const PATIENCE_WITHOUT_QUORUM: Duration = Duration::from_millis(4_500);

/// The pids of all runs that there were, by instance.
fn ran(cluster: &Cluster, instances: &[&str]) -> Vec<Vec<i32>> {
    instances.iter().map(|instance| cluster.hosts[0].witnessed(instance)).collect()
}

#[test]
fn a_host_that_comes_back_starts_nothing_that_runs_elsewhere_now() {
    let mut cluster = Cluster::start(zones);
    cluster.ready(0, &ZONES);
    let lost = cluster.other(&[cluster.primary()]);
    let asked = cluster.other(&[lost]);
    cluster.hosts[lost].power_off();
    let moved = cluster.ready(asked, &ZONES);
    assert!(moved.iter().all(|view| view.host.as_str() != NAMES[lost]), "{moved:?}");
    let before = ran(&cluster, &ZONES);
    // On its disk stands what it ran, and nobody has told it otherwise yet.
    cluster.hosts[lost].start();
    // It has been told, and does what it is told, when it runs what comes now.
    cluster.ok(asked, &["scale", "zone", "8"]);
    let more = [&ZONES[..], &["zone.6", "zone.7"]].concat();
    let grown = cluster.ready(asked, &more);
    assert!(grown[6..].iter().all(|view| view.host.as_str() == NAMES[lost]), "{grown:?}");
    assert_eq!(ran(&cluster, &ZONES), before, "it started something that ran elsewhere");
}

/// Healthy as long as it is asked: each question leaves a line.
fn questioned(host: &Host) -> String {
    format!(
        "[process.asked]\ncommand = {}\ncount = 4\nready = {{ mode = \"spawned\" }}\n\
         heartbeat = {{ mode = \"exec\", command = [\"/bin/sh\", \"-c\", \"echo >> {}/questions.{{instance}}\"], \
         interval = \"500ms\", timeout = \"3s\" }}\n",
        host.witness(&["/bin/sleep", "100000"]),
        host.root.display()
    )
}

#[test]
fn a_host_that_has_lost_its_copy_of_the_state_kills_no_healthy_game() {
    let mut cluster = Cluster::of(4, questioned);
    let all = ["asked.0", "asked.1", "asked.2", "asked.3"];
    let views = cluster.ready(0, &all);
    let own = views.iter().find(|view| view.host.as_str() == NAMES[3]).expect("one on each host");
    let before = ran(&cluster, &all);
    let file = cluster.hosts[0].root.join(format!("questions.{}", own.instance));
    let questions = || std::fs::read(&file).map_or(0, |lines| lines.len());
    cluster.hosts[3].stop_agent();
    std::fs::remove_file(cluster.hosts[3].data.join("attached.bin")).unwrap();
    let asked = questions();
    cluster.hosts[3].launch_agent();
    // For longer than the silence that is a hang.
    until("it is asked again", || expect(questions() >= asked + 10, (questions(), cluster.logs())));
    cluster.ready(0, &all);
    assert_eq!(ran(&cluster, &all), before, "a healthy game was ended");
}

fn with_arenas(host: &Host) -> String {
    let arena = host.witness(&["/bin/sleep", "100000"]);
    format!(
        "{}\n[process.arena]\ncommand = {arena}\ncount = 3\non_partition = \"stop\"\n\
         ready = {{ mode = \"spawned\", after = \"50ms\" }}\nheartbeat = {{ mode = \"none\" }}\n",
        zones(host)
    )
}

const ARENAS: [&str; 3] = ["arena.0", "arena.1", "arena.2"];

#[test]
fn a_host_that_boots_without_a_quorum_waits_for_one_and_then_starts_what_it_ran_and_no_more() {
    let mut cluster = Cluster::start(with_arenas);
    let all = [&ARENAS[..], &ZONES].concat();
    let views = cluster.ready(0, &all);
    let of_beta = |view: &&InstanceView| view.host.as_str() == "beta" && view.process.as_str() == "zone";
    let own: Vec<String> = views.iter().filter(of_beta).map(|view| view.instance.to_string()).collect();
    assert_eq!(own.len(), 2, "{views:?}");
    // Nobody has time to declare anybody down.
    cluster.hosts[0].kill_agent();
    cluster.hosts[2].kill_agent();
    cluster.hosts[1].power_off();
    let before = ran(&cluster, &all);
    let began = Instant::now();
    cluster.hosts[1].launch_agent();
    let games = until("it runs what it ran", || {
        let games: Vec<String> = cluster.hosts[1].games().into_keys().collect();
        if games.is_empty() { Err(cluster.hosts[1].logs()) } else { Ok((games, began.elapsed())) }
    });
    assert!(games.1 >= PATIENCE_WITHOUT_QUORUM, "it started {games:?} before it could have been told");
    until("it runs all that it ran, and nothing else", || {
        let games: Vec<String> = cluster.hosts[1].games().into_keys().collect();
        expect(games == own, games)
    });
    let status = cluster.status(1).unwrap();
    assert!(status.starting.is_none() && !status.quorum, "{status:?}");
    for lost in [0, 2] {
        cluster.hosts[lost].start();
    }
    cluster.ready(1, &all);
    // Each of its own was started once, all others are what they were. Arenas end without a quorum, and come back.
    let after = ran(&cluster, &ZONES);
    for (zone, (after, before)) in ZONES.iter().zip(after.iter().zip(&before[3..])) {
        let more = usize::from(own.iter().any(|own| own == zone));
        assert_eq!(after.len(), before.len() + more, "{zone}");
    }
}

/// What does not end when it is asked to, for longer than anybody looks.
const STUBBORN: &str = r#"
[process.stubborn]
command = ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"]
count = 3
stop = { timeout = "10m" }
ready = { mode = "spawned", after = "50ms" }
heartbeat = { mode = "none" }
"#;

#[test]
fn a_run_beside_the_one_that_belongs_is_shown_as_superseded_until_it_ends() {
    let cluster = Cluster::start(|_| STUBBORN.to_owned());
    let before = cluster.ready(0, &["stubborn.0", "stubborn.1", "stubborn.2"]);
    let away = cluster.other(&[cluster.primary()]);
    let asked = cluster.other(&[away]);
    let old = before.iter().find(|view| view.host.as_str() == NAMES[away]).expect("one on each host");
    let name = old.instance.to_string();
    // Its games play on.
    signal(cluster.hosts[away].agent_pid(), libc::SIGSTOP);
    let new = until("it runs elsewhere", || {
        let view = cluster.view(asked, &name);
        let view = view.filter(|view| view.state == "ready" && view.host != old.host);
        view.ok_or_else(|| format!("{:?}", cluster.ps(asked)))
    });
    signal(cluster.hosts[away].agent_pid(), libc::SIGCONT);
    for host in [asked, away] {
        let (belongs, beside) = until("both are shown", || {
            let views = cluster.ps(host);
            let mut views = views.into_iter().filter(|view| view.instance == old.instance);
            let (first, second) = (views.next(), views.next());
            let both = first.zip(second).filter(|(_, second)| second.state == "superseded");
            both.ok_or_else(|| format!("{:?}", cluster.ps(host)))
        });
        assert_eq!((&belongs.host, belongs.run), (&new.host, new.run), "{belongs:?}");
        assert_eq!((&beside.host, beside.run, beside.pid), (&old.host, old.run, old.pid), "{beside:?}");
        let reason = beside.reason.unwrap_or_default();
        assert!(reason.starts_with(&format!("it belongs to {} now", new.host)), "{reason}");
        assert!(alive(beside.pid.unwrap()), "it is shown, and runs no more");
    }
    until("status counts it", || expect(cluster.status(asked)?.superseded == 1, cluster.status(asked)));
    assert!(alive(old.pid.unwrap()), "it is counted, and runs no more");
    signal(old.pid.unwrap(), libc::SIGKILL);
    let after = cluster.ready(asked, &["stubborn.0", "stubborn.1", "stubborn.2"]);
    assert!(!alive(old.pid.unwrap()), "it runs, and is not shown any more");
    let now = after.iter().find(|view| view.instance == old.instance).unwrap();
    assert_eq!((&now.host, now.run), (&new.host, new.run), "the one that belongs goes on");
    until("status counts none", || expect(cluster.status(asked)?.superseded == 0, cluster.status(asked)));
}

/// Games that may run twice for a while.
fn idlers(_: &Host) -> String {
    "[process.idler]\ncommand = [\"/bin/sleep\", \"100000\"]\ncount = 3\nready = { mode = \"spawned\" }\n\
     heartbeat = { mode = \"none\" }\n"
        .to_owned()
}

/// Removed while it is away, and started while nobody can tell it: it ends by itself once somebody can, and one start, as
/// its service manager makes it, does.
#[test]
fn a_peer_that_nobody_could_tell_that_it_is_none_ends_and_comes_back_as_a_new_one() {
    let mut cluster = Cluster::start(idlers);
    let all = ["idler.0", "idler.1", "idler.2"];
    cluster.ready(0, &all);
    let lost = cluster.other(&[cluster.primary()]);
    let asked = cluster.other(&[lost]);
    let third = cluster.other(&[lost, asked]);
    // Its games play on.
    cluster.hosts[lost].kill_agent();
    until("it is down", || {
        let hosts = cluster.hosts_view(asked);
        expect(hosts.iter().any(|host| host.host.as_str() == NAMES[lost] && !host.up), hosts)
    });
    cluster.ok(asked, &["peers", "remove", NAMES[lost]]);
    let games = cluster.hosts[lost].games();
    assert!(!games.is_empty(), "it has none");
    cluster.hosts[third].kill_agent();
    cluster.hosts[lost].launch_agent();
    until("it takes itself for a peer", || {
        let peers = cluster.hosts[lost].get("/v1/peers")?;
        expect(peers.as_array().is_some_and(|peers| peers.len() == 3), peers)
    });
    cluster.hosts[third].launch_agent();
    let ended = cluster.hosts[lost].agent_ended();
    assert!(
        !ended.success() && cluster.hosts[lost].logs().contains("it comes back as a new peer"),
        "{ended}"
    );
    assert_eq!(cluster.hosts[lost].games(), games, "they play on");
    cluster.hosts[lost].start();
    until("it is a new peer", || {
        let peers = cluster.json(asked, &["peers"]);
        let found = peers.as_array().unwrap().iter().find(|peer| peer["host"] == NAMES[lost]);
        expect(found.is_some_and(|peer| peer["role"] == "learner" && peer["id"].as_u64() > Some(3)), peers)
    });
    // What runs elsewhere by now does not run here any more, and the other way round.
    cluster.ready(asked, &all);
}
