//! What is seen of the cluster is the same from each host.

use bigbrother::http::view::InstanceView;

use crate::cluster::{Cluster, NAMES, ZONES, zones};
use crate::host::{Cgroups, Host, expect, until};

/// What does not change from one look to the next.
fn still(views: &[InstanceView]) -> Vec<String> {
    let line = |v: &InstanceView| {
        format!("{} {} {} {:?} {:?} {:?}", v.instance, v.host, v.state, v.pid, v.run, v.ports)
    };
    views.iter().map(line).collect()
}

#[test]
fn every_agent_shows_the_whole_cluster() {
    let cluster = Cluster::start(zones);
    let seen = still(&cluster.ready(0, &ZONES));
    for (host, name) in NAMES[..3].iter().enumerate().skip(1) {
        assert_eq!(still(&cluster.ready(host, &ZONES)), seen, "as {name} sees it");
    }
    // Spread evenly, and each host by itself says so, whoever asks.
    for name in &NAMES[..3] {
        let own = cluster.json(2, &["ps", "--host", name]);
        let own: Vec<InstanceView> = serde_json::from_value(own).unwrap();
        assert_eq!(own.len(), 2, "{own:?}");
        assert!(
            own.iter()
                .all(|view| view.host.as_str() == *name
                    && seen.contains(&still(std::slice::from_ref(view))[0]))
        );
    }

    let primary = cluster.primary();
    for (host, name) in NAMES[..3].iter().enumerate() {
        let status = cluster.json(host, &["status"]);
        assert_eq!(status["host"], *name);
        assert_eq!(status["primary"], NAMES[primary]);
        assert_eq!((&status["quorum"], &status["role"]), (&true.into(), &"peer".into()));
        assert!(status["term"].as_u64() >= Some(1) && status["index"].as_u64() >= Some(1), "{status}");
        assert_eq!(status["hosts"], serde_json::json!({ "up": 3, "down": 0, "silent": 0 }));
        // The same, asked of another one.
        let elsewhere = cluster.json((host + 1) % 3, &["status", "--host", name]);
        assert_eq!(elsewhere["host"], *name);
        let hosts = cluster.hosts_view(host);
        let roles: Vec<&str> = hosts.iter().map(|host| host.role.as_str()).collect();
        assert_eq!(roles.iter().filter(|role| **role == "peer").count(), 2, "{hosts:?}");
        assert_eq!(roles[primary], "primary", "{hosts:?}");
        for host in &hosts {
            assert_eq!((host.up, host.drained, host.instances), (true, false, 2), "{host:?}");
            assert_eq!(host.version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
            assert!(host.silent_ms < Some(3_000), "{host:?}");
        }
    }
}

/// It had 26 MiB of tables that nobody reads (vendor/base2histogram).
#[test]
fn an_agent_that_is_a_peer_is_small() {
    let cluster = Cluster::start(zones);
    cluster.ready(0, &ZONES);
    for host in &cluster.hosts[..3] {
        let status = std::fs::read_to_string(format!("/proc/{}/status", host.agent_pid())).unwrap();
        let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("its own memory");
        let kib: u64 = own.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kib < 20 << 10, "{} has {kib} KiB of its own", host.name);
    }
}

#[test]
fn a_host_that_does_not_answer_is_shown_as_the_directory_has_it() {
    let mut cluster = Cluster::start(zones);
    let before = cluster.ready(0, &ZONES);
    let lost = cluster.other(&[cluster.primary()]);
    let asked = cluster.other(&[lost]);
    // What it told last is what is shown afterwards.
    until("the directory knows that all are ready", || {
        let listed = cluster.hosts[asked].get("/v1/directory?ready=true")?;
        expect(listed.as_array().is_some_and(|entries| entries.len() == ZONES.len()), listed)
    });
    // Its games play on.
    cluster.hosts[lost].kill_agent();
    let theirs = |views: &[InstanceView]| -> Vec<InstanceView> {
        views.iter().filter(|view| view.host.as_str() == NAMES[lost]).cloned().collect()
    };
    let views = until("the host is unreachable", || {
        let views = theirs(&cluster.ps(asked));
        expect(views.len() == 2 && views.iter().all(|view| view.state == "unreachable"), &views)?;
        Ok(views)
    });
    for (view, before) in views.iter().zip(theirs(&before)) {
        assert_eq!((&view.run, &view.ports), (&before.run, &before.ports));
        assert!(view.reason.as_ref().unwrap().starts_with("ready when last heard"), "{view:?}");
    }
    let refused = cluster.run(asked, &["ps", "--host", NAMES[lost]]);
    assert_eq!(refused.code, Some(4), "{refused:?}");
    assert!(refused.err.contains("does not answer"), "{refused:?}");
    let unknown = cluster.run(asked, &["ps", "--host", "alpa"]);
    assert!(unknown.err.contains("did you mean alpha?"), "{unknown:?}");
}

#[test]
fn a_host_that_is_no_peer_sees_and_is_seen() {
    // With certificates, as between machines.
    let cluster = Cluster::secured(4, zones);
    let views = cluster.ready(0, &ZONES);
    assert_eq!(still(&cluster.ready(3, &ZONES)), still(&views));
    let status = cluster.json(3, &["status"]);
    assert_eq!(
        (&status["role"], &status["quorum"], &status["hosts"]["up"]),
        (&"attached".into(), &true.into(), &4.into())
    );
    assert!(NAMES[..3].iter().any(|peer| status["peer"] == *peer), "{status}");
    assert_eq!(cluster.hosts_view(3)[2].role, "attached", "in the order of names: alpha, beta, delta, gamma");
    assert_eq!(
        cluster.hosts_view(1).iter().map(|host| &host.role).collect::<Vec<_>>(),
        cluster.hosts_view(3).iter().map(|host| &host.role).collect::<Vec<_>>()
    );
    assert_eq!(cluster.json(3, &["peers"]).as_array().unwrap().len(), 3);
    // From it to a peer, and from a peer to it.
    for (asked, host) in [(3, "beta"), (1, "delta")] {
        let theirs = views.iter().find(|view| view.host.as_str() == host).unwrap();
        cluster.ok(asked, &["restart", &theirs.instance.to_string()]);
        let now = cluster.view(asked, &theirs.instance.to_string()).unwrap();
        assert!(now.run > theirs.run && now.host == theirs.host, "{now:?}");
        assert!(!cluster.ok(asked, &["logs", &theirs.instance.to_string()]).out.is_empty());
    }
}

#[test]
fn an_agent_that_cannot_join_says_who_is_missing() {
    let mut hosts = Host::cluster(&NAMES[..3], 3, Cgroups::Own);
    hosts.iter().for_each(|host| host.write_config(""));
    let beta = &mut hosts[1];
    beta.launch_agent();
    until("status says whom it waits for", || {
        let starting = beta.status()?.starting.unwrap_or_default();
        let whole = starting.contains("it joins the cluster: the cluster is founded by alpha")
            && starting.contains("alpha: cannot connect to")
            && starting.contains("gamma: cannot connect to");
        expect(whole, starting)
    });
    // It knows no peers yet, and says so; all else is refused.
    assert_eq!(beta.get("/v1/peers").unwrap(), serde_json::json!([]));
    let refused = beta.get("/v1/instances").unwrap_err();
    assert!(refused.contains("founded by alpha"), "{refused}");
    // It goes on with what it ran before, and says the same.
    until("it says so when it is at work", || {
        let status = beta.status()?;
        let apart = status.apart.clone().unwrap_or_default();
        expect(status.starting.is_none() && apart.contains("gamma: cannot connect to"), status)
    });
}
