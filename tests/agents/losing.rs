//! What operators see of hosts that are lost, on purpose and by themselves; and of the peers.

use bigbrother::http::view::{InstanceView, PeerView};
use serde_json::Value;

use crate::cluster::{Cluster, NAMES, ZONES, zones};
use crate::host::{expect, signal, until};

#[test]
fn kill_test_strikes_on_all_hosts() {
    let cluster = Cluster::start(zones);
    cluster.ready(0, &ZONES);
    let before = cluster.ps(0);
    // Twelve blows of this seed hit every host.
    let view = cluster.json(0, &["kill-test", "--count", "12", "--seed", "3", "--yes"]);
    assert_eq!((&view["missed"], view["kills"].as_array().unwrap().len()), (&0.into(), 12));
    let host_of = |kill: &Value| {
        let hit = before.iter().find(|view| kill["instance"] == view.instance.to_string().as_str()).unwrap();
        hit.host.to_string()
    };
    let hit: Vec<String> = view["kills"].as_array().unwrap().iter().map(host_of).collect();
    assert!(NAMES[..3].iter().all(|name| hit.iter().any(|host| host == name)), "{hit:?}");
    // A fault that only the heartbeat shows, on another host.
    let far = before.iter().find(|view| view.host.as_str() == "gamma").unwrap();
    let name = far.instance.to_string();
    let hung = cluster.json(0, &["kill-test", &name, "--count", "1", "--signal", "STOP", "--yes"]);
    assert_eq!(hung["missed"], 0, "{hung}");
    assert!(hung["kills"][0]["restarted_ms"].as_f64() > Some(1_000.0), "{hung}");
    let report = cluster.ok(0, &["hang-report", &name]).out;
    assert!(report.contains("thread"), "{report}");
    let announced = cluster.ok(1, &["events", &name, "--json"]).out;
    assert!(announced.contains("kill-test sends SIGSTOP (1 of 1)"), "{announced}");
}

#[test]
fn a_whole_host_that_kill_test_kills_is_healed_elsewhere() {
    let with_logd = |host: &crate::host::Host| {
        let logd = host.witness(&["/bin/sleep", "1000"]);
        format!(
            "{}\n[process.logd]\ncommand = {logd}\nper_host = true\nready = {{ mode = \"spawned\" }}\n\
             heartbeat = {{ mode = \"none\" }}\n",
            zones(host)
        )
    };
    let mut cluster = Cluster::start(with_logd);
    let all = ["logd.alpha", "logd.beta", "logd.gamma"].iter().chain(&ZONES).copied().collect::<Vec<_>>();
    let before = cluster.ready(0, &all);
    let lost = cluster.primary();
    let asked = cluster.other(&[lost]);
    let view = cluster.json(asked, &["kill-test", "--host", NAMES[lost], "--timeout", "40s", "--yes"]);
    assert_eq!((&view["host"], &view["missed"]), (&NAMES[lost].into(), &0.into()), "{view}");
    // All of it is gone, at once.
    cluster.hosts[lost].agent_ended();
    assert!(cluster.hosts[lost].keepers().is_empty() && cluster.hosts[lost].in_cgroup().is_empty());
    let returned = view["instances"].as_array().unwrap();
    assert_eq!(returned.len(), 3, "{view}");
    for one in returned {
        let was = before.iter().find(|view| one["instance"] == view.instance.to_string().as_str()).unwrap();
        assert_eq!(was.host.as_str(), NAMES[lost]);
        if one["instance"] == format!("logd.{}", NAMES[lost]) {
            assert_eq!((&one["host"], &one["ok"]), (&Value::Null, &true.into()));
        } else {
            assert!(one["host"] != NAMES[lost] && one["ready_ms"].as_f64() > Some(4_500.0), "{one}");
        }
    }
    // It is down, and says so; when it is back its own comes back, and nothing else moves.
    assert!(!cluster.hosts_view(asked).iter().any(|host| host.host.as_str() == NAMES[lost] && host.up));
    assert_eq!(cluster.json(asked, &["status"])["hosts"]["down"], 1);
    let healed = cluster.ps(asked);
    cluster.hosts[lost].start();
    let after = cluster.ready(asked, &all);
    for view in healed.iter().filter(|view| view.run.is_some()) {
        let now = after.iter().find(|now| now.instance == view.instance).unwrap();
        assert_eq!((&now.host, now.run), (&view.host, view.run));
    }
}

#[test]
fn a_kill_test_of_a_host_that_does_not_heal_in_time_says_so() {
    let cluster = Cluster::start(zones);
    cluster.ready(0, &ZONES);
    let lost = cluster.other(&[0, cluster.primary()]);
    let ran = cluster.run(0, &["kill-test", "--host", NAMES[lost], "--timeout", "1s", "--yes"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.out.contains("no new run within 1s") && ran.out.contains("2 did not come back in time"),
        "{ran:?}"
    );
}

#[test]
fn every_host_tells_that_one_is_lost_who_is_primary_then_and_why_what_ran_there_moves() {
    let mut cluster = Cluster::start(zones);
    cluster.ready(0, &ZONES);
    let lost = cluster.primary();
    let left: Vec<usize> = (0..3).filter(|host| *host != lost).collect();
    let name = NAMES[lost];
    for host in &left {
        until("they know their primary", || {
            let events = cluster.ok(*host, &["events", "--host", NAMES[*host]]).out;
            expect(events.contains(&format!("  {name:<10} is the primary now: ")), events)
        });
    }
    cluster.hosts[lost].power_off();
    cluster.ready(left[0], &ZONES);
    let told = |cluster: &Cluster, host: usize, what: &str, times: usize| {
        until("it is told", || {
            let events = cluster.ok(host, &["events"]).out;
            expect(events.matches(what).count() == times, format!("{what:?} on {host}: {events}"))
        });
    };
    for host in &left {
        told(&cluster, *host, &format!("  {name:<10} is down: not heard for "), 1);
        told(&cluster, *host, &format!(" is the primary now: in place of {name}, term "), 1);
        told(&cluster, *host, &format!(": {name} was lost"), 2);
        // As that host alone tells it, too.
        let own = cluster.json_lines(*host, &["events", "--host", NAMES[*host]]);
        let down: Vec<_> = own.iter().filter(|event| event["kind"] == "host-down").collect();
        assert!(down.len() == 1 && down[0]["host"] == name && down[0]["instance"].is_null(), "{down:?}");
        for moved in own.iter().filter(|event| event["kind"] == "moved") {
            assert!(moved["host"] == NAMES[*host] && moved["cause"] == "host-down", "{moved}");
        }
    }
    cluster.hosts[lost].start();
    for host in 0..3 {
        told(&cluster, host, &format!("  {name:<10} is back: "), 1);
        told(&cluster, host, &format!("  {name:<10} is down: "), 1);
    }
}

#[test]
fn the_brake_holds_until_a_host_is_given_up_by_hand() {
    let mut cluster = Cluster::of(5, zones);
    cluster.ready(0, &ZONES);
    // At one moment: on a busy machine the end of all games of the first may take longer than it takes to give it up.
    for lost in [3, 4] {
        signal(cluster.hosts[lost].agent_pid(), libc::SIGKILL);
    }
    for lost in [3, 4] {
        cluster.hosts[lost].power_off();
    }
    for host in 0..3 {
        until("the brake holds", || {
            let status = cluster.status(host)?;
            let held: Vec<&str> = status.brake.iter().map(|host| host.as_str()).collect();
            expect(held == ["delta", "epsilon"] && status.hosts.up == 5, &status)
        });
    }
    let status = cluster.run(1, &["status"]);
    assert_eq!(status.code, Some(1));
    assert!(status.out.contains("`bigbrother hosts declare-down HOST`"), "{status:?}");
    until("one that is heard is not given up", || {
        let lives = cluster.run(2, &["hosts", "declare-down", "beta"]);
        expect(lives.code == Some(4) && lives.err.contains("still-heard"), lives)
    });
    let told = cluster.ok(2, &["hosts", "declare-down", "delta"]).out;
    assert!(told.contains("delta"), "{told}");
    // One is left, which the cluster bears: it is declared down by itself.
    cluster.ready(0, &ZONES);
    let hosts = cluster.hosts_view(1);
    assert_eq!(hosts.iter().filter(|host| !host.up).count(), 2, "{hosts:?}");
    let again = cluster.run(2, &["hosts", "declare-down", "delta"]);
    assert!(again.code == Some(4) && again.err.contains("down-already"), "{again:?}");
}

#[test]
fn who_is_attached_is_told_how_it_becomes_a_peer_or_leaves() {
    let cluster = Cluster::of(4, zones);
    let hosts = cluster.hosts_view(0);
    let agent = &hosts.iter().find(|host| host.host.as_str() == "delta").unwrap().agent;
    for (asked, what) in [(0, "promote"), (3, "promote"), (1, "remove")] {
        let refused = cluster.run(asked, &["peers", what, "delta"]);
        let remedy = format!("`bigbrother peers add delta {agent}`");
        assert!(refused.code == Some(4) && refused.err.contains(&remedy), "{refused:?}");
        assert!(refused.err.contains("needs no `peers remove`"), "{refused:?}");
    }
}

fn peers(cluster: &Cluster, host: usize) -> Vec<PeerView> {
    serde_json::from_value(cluster.json(host, &["peers", "list"])).unwrap()
}

#[test]
fn peers_are_listed_removed_and_added_from_any_host() {
    let mut cluster = Cluster::start(zones);
    cluster.ready(0, &ZONES);
    let primary = cluster.primary();
    for host in 0..3 {
        let list = peers(&cluster, host);
        let names: Vec<&str> = list.iter().map(|peer| peer.host.as_str()).collect();
        assert_eq!(names, &NAMES[..3]);
        for peer in &list {
            assert_eq!((peer.role.as_str(), peer.primary), ("voter", peer.host.as_str() == NAMES[primary]));
            assert!(peer.silent_ms < Some(3_000) && peer.index.is_some(), "{peer:?}");
        }
    }
    let lost = cluster.other(&[primary]);
    let asked = cluster.other(&[primary, lost]);
    let in_use = cluster.run(asked, &["peers", "remove", NAMES[lost]]);
    assert!(in_use.code == Some(4) && in_use.err.contains("--wait` first"), "{in_use:?}");
    assert_eq!(peers(&cluster, asked).len(), 3);
    cluster.ok(asked, &["drain", NAMES[lost], "--wait"]);
    cluster.hosts[lost].power_off();
    std::fs::remove_dir_all(cluster.hosts[lost].data.join("raft")).unwrap();
    cluster.ok(asked, &["peers", "remove", NAMES[lost]]);
    until("it is removed", || {
        let list = peers(&cluster, asked);
        expect(list.len() == 2 && list.iter().all(|peer| peer.host.as_str() != NAMES[lost]), list)
    });
    let address = format!("127.0.0.1:{}", cluster.hosts[lost].ports.0 - 1);
    cluster.ok(asked, &["peers", "add", NAMES[lost], &address]);
    cluster.hosts[lost].start();
    let newcomer = until("it is a peer again", || {
        let list = peers(&cluster, primary);
        let found = list.iter().find(|peer| peer.host.as_str() == NAMES[lost]).cloned();
        found.ok_or_else(|| format!("{list:?}"))
    });
    // Removed before it came back, it takes nobody's seat.
    assert_eq!(newcomer.role, "learner");
    cluster.ok(asked, &["peers", "promote", NAMES[lost]]);
    until("it votes", || {
        let list = peers(&cluster, lost);
        expect(list.len() == 3 && list.iter().all(|peer| peer.role == "voter"), list)
    });
    assert!(newcomer.id > 3, "a number is never used twice: {newcomer:?}");
    let refused = cluster.run(asked, &["peers", "remove", "nobody"]);
    assert!(refused.code == Some(4) && refused.err.contains("nobody is no peer"), "{refused:?}");
    // What could not be taken back is not taken; one that never comes is.
    let refused = cluster.run(asked, &["peers", "add", "newh", "1.2.3.4"]);
    assert!(refused.code != Some(0) && refused.err.contains("a host and a port"), "{refused:?}");
    let refused = cluster.run(asked, &["peers", "add", NAMES[lost], "127.0.0.1:1"]);
    let told = format!("a peer already, at {address}");
    assert!(refused.code == Some(4) && refused.err.contains(&told), "{refused:?}");
    assert!(refused.err.contains(&format!("peers remove {}", NAMES[lost])), "{refused:?}");
    cluster.ok(asked, &["peers", "add", NAMES[lost], &address]);
    cluster.ok(asked, &["peers", "add", "newh", "127.0.0.1:1"]);
    cluster.ok(asked, &["peers", "remove", "newh"]);
    let refused = cluster.run(asked, &["peers", "remove", "newh"]);
    assert!(refused.code == Some(4) && refused.err.contains("newh is no peer"), "{refused:?}");
}

#[test]
fn what_to_do_about_a_voter_that_is_dead_for_long_is_told_on_every_host() {
    let mut cluster = Cluster::set(4, "dead_voter_after = \"3s\"\n", |_| String::new());
    let lost = cluster.other(&[cluster.primary()]);
    cluster.hosts[lost].power_off();
    let suggested = |cluster: &Cluster, host: usize| {
        let list = peers(cluster, host).into_iter();
        list.filter_map(|peer| Some((peer.host.to_string(), peer.suggestion?))).collect::<Vec<_>>()
    };
    // Delta is attached to one of them.
    for host in (0..4).filter(|host| *host != lost) {
        let told = until("it is told", || {
            let told = suggested(&cluster, host);
            expect(told.len() == 1 && told[0].0 == NAMES[lost], &told)?;
            Ok(told[0].1.clone())
        });
        assert!(told.contains("start its agent") && told.contains("`bigbrother peers add HOST"), "{told}");
        until("it is told in text", || {
            let text = cluster.ok(host, &["peers"]).out;
            expect(text.contains(&format!("\n{}: {told}\n", NAMES[lost])), text)
        });
    }
    cluster.hosts[lost].start();
    for host in 0..4 {
        until("there is nothing to do", || {
            let told = suggested(&cluster, host);
            expect(told.is_empty() && peers(&cluster, host).len() == 3, told)
        });
    }
}

#[test]
fn what_is_fenced_is_shown_with_the_reason() {
    let login = |host: &crate::host::Host| {
        let sleep = host.witness(&["/bin/sleep", "1000"]);
        format!(
            "[process.login]\ncommand = {sleep}\non_partition = \"stop\"\n\
             ready = {{ mode = \"spawned\" }}\nheartbeat = {{ mode = \"none\" }}\n"
        )
    };
    let mut cluster = Cluster::start(login);
    let views = cluster.ready(0, &["login.0"]);
    let kept = Cluster::index(views[0].host.as_str());
    for lost in (0..3).filter(|host| *host != kept) {
        cluster.hosts[lost].kill_agent();
    }
    let fenced = until("it is ended and shown", || {
        let ran = cluster.run(kept, &["ps", "login.0", "--json"]);
        expect(ran.code == Some(0), &ran)?;
        let views: Vec<InstanceView> = serde_json::from_value(ran.json()).unwrap();
        let [fenced] = &views[..] else { return Err(format!("{views:?}")) };
        let told = fenced.reason.as_ref().is_some_and(|why| why.contains("no primary confirms"));
        expect(fenced.run.is_none() && fenced.state == "waiting" && told, fenced)?;
        Ok(fenced.clone())
    });
    assert_eq!(fenced.host.as_str(), NAMES[kept]);
    // It is not started for being shown, and goes when it may run again.
    assert!(cluster.hosts[kept].games().is_empty());
    for lost in (0..3).filter(|host| *host != kept) {
        cluster.hosts[lost].launch_agent();
    }
    cluster.ready(kept, &["login.0"]);
}
