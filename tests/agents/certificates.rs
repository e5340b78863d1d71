//! Certificates are renewed while the cluster works: nobody is started again for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bigbrother::cluster::tls::Tls;
use bigbrother::cluster::wire::hello::Ours;
use bigbrother::cluster::wire::{Dialer, Purpose, Target};
use bigbrother::config::TlsFiles;
use tokio::sync::watch;

use crate::access::Remote;
use crate::cluster::{Cluster, NAMES, ZONES, zones};
use crate::host::{expect, signal, until};

/// A folder with a CA of its own, and what it has issued to these hosts.
fn authority(folder: &Path, hosts: &[&str]) {
    fs::create_dir(folder).unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bigbrother"));
        let made = command.arg("ca").args(args).arg("--dir").arg(folder).output().unwrap();
        assert!(made.status.success(), "{made:?}");
    };
    run(&["init"]);
    for host in hosts {
        run(&["issue", host]);
        run(&["api", host, "--name", "127.0.0.1"]);
    }
}

/// Puts files of the folder in place of those that the hosts have, by their names.
fn install(from: &Path, to: &Path, host: &str, files: &[&str]) {
    for file in files {
        let name = format!("{host}{file}");
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

/// Whether alpha hears somebody who shows this host's certificate.
fn hears(cluster: &Cluster, files: TlsFiles, host: &str) -> bool {
    let ours = Ours {
        cluster: "test".to_owned(),
        host: host.parse().unwrap(),
        incarnation: 0,
        history: None,
        id: None,
    };
    let tls = Arc::new(Tls::load(&files, &ours.host).unwrap());
    let address = format!("127.0.0.1:{}", cluster.hosts[0].ports.0 - 1);
    let target = Target { host: "alpha".parse().unwrap(), id: None, address };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let dialer = Dialer::new(watch::channel(ours).1, Some(tls));
        dialer.dial(&target, Purpose::Probe).await.is_ok()
    })
}

#[test]
fn one_ca_follows_another_by_reloads_alone() {
    // Three peers, and one that is attached to them.
    let cluster = Cluster::guarded(4, zones);
    let all = cluster.ready(0, &ZONES);
    let pids: Vec<i32> = cluster.hosts.iter().map(|host| host.agent_pid()).collect();
    let root = &cluster.hosts[0].root;
    let (place, old, new) = (root.join("ca"), root.join("old"), root.join("new"));
    let copied = Command::new("cp").arg("-r").args([&place, &old]).status().unwrap();
    assert!(copied.success());
    authority(&new, &NAMES[..4]);
    let ca = |folder: &Path| fs::read_to_string(folder.join("ca.pem")).unwrap();
    fs::write(root.join("both.pem"), ca(&old) + &ca(&new)).unwrap();
    let deploy = root.join("deploy.token");
    fs::write(&deploy, cluster.ok(0, &["token", "create", "deploy", "--role", "read"]).out).unwrap();
    let remote = |ca: PathBuf| Remote { cluster: &cluster, ca, token: Some(deploy.clone()) };

    let mut count = 6;
    let mut step = |what: &str| {
        // Anybody, by anybody else: what was broken is seen as a host that is not there, or a change that is not taken.
        for host in 0..4 {
            let said = cluster.ok(host, &["reload"]);
            assert!(said.out.contains("other certificates"), "{what}: {said:?}");
        }
        count += 1;
        for host in 0..4 {
            cluster.ok(host, &["scale", "zone", &count.to_string()]);
            until("all are there", || {
                let status = cluster.status(host)?;
                expect(status.quorum && status.hosts.up == 4, (what, status))
            });
            let seen = cluster.ps(host);
            assert!(seen.iter().all(|view| view.state != "unreachable"), "{what}: {seen:?}");
        }
    };
    fs::copy(root.join("both.pem"), place.join("ca.pem")).unwrap();
    step("both CAs count");
    for host in &NAMES[..4] {
        install(&new, &place, host, &[".pem", ".key", "-api.pem", "-api.key"]);
    }
    step("the new one's certificates are shown");
    assert_eq!(remote(new.join("ca.pem")).run(3, &["ps"]).code, Some(0));
    let untrusted = remote(old.join("ca.pem")).run(3, &["ps"]);
    assert!(untrusted.code == Some(3) && untrusted.err.contains("cannot be trusted"), "{untrusted:?}");
    let of = |folder: &Path| TlsFiles {
        ca: root.join("both.pem"),
        cert: folder.join("delta.pem"),
        key: folder.join("delta.key"),
    };
    assert!(hears(&cluster, of(&old), "delta"));
    fs::copy(new.join("ca.pem"), place.join("ca.pem")).unwrap();
    step("the old one counts no more");
    assert!(!hears(&cluster, of(&old), "delta"), "who has found a key of before is let in");
    assert!(hears(&cluster, of(&new), "delta"));

    let now = cluster.ps(0);
    let plays_on = |was: &bigbrother::http::view::InstanceView| {
        now.iter().any(|now| (&now.instance, &now.host, now.run) == (&was.instance, &was.host, was.run))
    };
    assert!(all.iter().all(plays_on), "{now:?}");
    assert_eq!(cluster.hosts.iter().map(|host| host.agent_pid()).collect::<Vec<_>>(), pids);

    // By the signal, too; files that are of no use change nothing, and that is told.
    fs::write(place.join("alpha-api.key"), "nothing").unwrap();
    signal(cluster.hosts[0].agent_pid(), libc::SIGHUP);
    let told = until("it is in the audit trail", || {
        let audit = cluster.ok(1, &["audit", "--since", "1h", "--json"]).out;
        let found = audit.lines().find(|line| line.contains("\"who\":\"SIGHUP\"")).map(str::to_owned);
        found.ok_or(audit)
    });
    assert!(told.contains("\"status\":422") && told.contains("alpha-api.key"), "{told}");
    assert_eq!(remote(new.join("ca.pem")).run(0, &["ps"]).code, Some(0));
}
