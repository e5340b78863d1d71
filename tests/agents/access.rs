//! Tokens, TLS and the audit trail of a whole cluster, with the command line as from an operator's machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bigbrother::client::directory::trust::Trust;
use bigbrother::client::directory::{
    Address, Change, Directory, DirectoryError, Interest, Query, asynchronous,
};

use serde_json::Value;

use crate::cluster::{Cluster, NAMES, ZONES, zones};
use crate::host::{PATIENCE, expect, until};
use crate::ran::{Ran, finish};

/// Asks a host's API over TLS.
pub struct Remote<'a> {
    pub cluster: &'a Cluster,
    pub ca: PathBuf,
    pub token: Option<PathBuf>,
}

impl Remote<'_> {
    pub fn run(&self, host: usize, args: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bigbrother"));
        let port = self.cluster.hosts[host].api.unwrap();
        command.args(["--api", &format!("https://127.0.0.1:{port}")]).arg("--ca").arg(&self.ca);
        command.args(self.token.iter().flat_map(|token| ["--token-file".as_ref(), token.as_os_str()]));
        command.args(args).env_remove("BIGBROTHER_TOKEN").env_remove("BIGBROTHER_API");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        finish(command.spawn().unwrap(), args)
    }

    fn ok(&self, host: usize, args: &[&str]) -> Ran {
        let ran = self.run(host, args);
        assert_eq!(ran.code, Some(0), "{args:?} on {}: {ran:?}", NAMES[host]);
        ran
    }

    #[track_caller]
    fn refused(&self, host: usize, args: &[&str], kind: &str) {
        let ran = self.run(host, args);
        assert!(ran.code == Some(4) && ran.err.contains(&format!("({kind})")), "{args:?}: {ran:?}");
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Finds, leads and watches over TLS with a token, blocking and async; the watch goes on until its token is revoked.
fn the_client_library_asks_over_tls(cluster: &Cluster, ca: &Path, token: &str) -> JoinHandle<()> {
    let agents: Vec<Address> = cluster
        .hosts
        .iter()
        .rev()
        .map(|host| format!("https://127.0.0.1:{}", host.api.unwrap()).parse().unwrap())
        .collect();
    let trust = || Trust::in_cas_of(ca).unwrap();
    let (all, zone) = (Query::default(), "zone".parse().unwrap());
    let directory = Directory::of(agents.clone()).with_token(token).trusting(trust());
    assert_eq!(directory.find(&all).unwrap().entries.len(), 6);
    let leader = directory.leader(&zone).unwrap().expect("a leader");
    for (untrusting, word) in [
        (Directory::of(agents.clone()).with_token(token), "no CA is trusted"),
        (
            Directory::of(agents.clone()).with_token(token).trusting(Trust::as_the_system().unwrap()),
            "UnknownIssuer",
        ),
    ] {
        let Err(DirectoryError::Unanswered { source, .. }) = untrusting.find(&all) else {
            panic!("who is not trusted is asked")
        };
        assert!(source.to_string().contains(word), "{source}");
    }
    let nobody = Directory::of(agents.clone()).trusting(trust()).find(&all);
    assert!(
        matches!(&nobody, Err(DirectoryError::Refused { source, .. }) if source.kind == "no-token"),
        "{nobody:?}"
    );

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let directory = asynchronous::Directory::of(agents.clone()).with_token(token).trusting(trust());
        assert_eq!(directory.find(&all).await.unwrap().entries.len(), 6);
        assert_eq!(directory.leader(&zone).await.unwrap().map(|led| led.token), Some(leader.token));
        let mut watch = directory.watch(&Interest::default());
        let first = tokio::time::timeout(PATIENCE, watch.next()).await.expect("a snapshot").unwrap();
        assert!(matches!(&first, Change::Snapshot { entries, .. } if entries.len() == 6), "{first:?}");
    });

    let (mut watch, begun) = (directory.watch(&Interest::default()), Instant::now());
    let first = watch.next_within(PATIENCE).unwrap();
    assert!(matches!(&first, Some(Change::Snapshot { entries, .. }) if entries.len() == 6), "{first:?}");
    std::thread::spawn(move || {
        let mut told = Vec::new();
        let refused = loop {
            assert!(begun.elapsed() < PATIENCE, "it goes on for ever: {told:?}");
            match watch.next_within(Duration::from_secs(1)) {
                Ok(change) => told.extend(change),
                Err(error) => break error,
            }
        };
        assert!(!told.is_empty(), "what happened meanwhile is not told");
        let revoked =
            matches!(&refused, DirectoryError::Refused { source, .. } if source.kind == "bad-token");
        assert!(revoked, "{refused}");
    })
}

#[test]
fn a_token_holds_on_every_host_until_it_is_revoked_on_any() {
    // Three peers, and one that is attached to them.
    let cluster = Cluster::guarded(4, zones);
    let all = cluster.ready(0, &ZONES);
    let ca = cluster.hosts[0].root.join("ca/ca.pem");
    let made = cluster.ok(0, &["token", "create", "deploy", "--role", "operate", "--expires", "1h"]);
    assert!(made.out.starts_with("bb_") && made.out.trim().len() == 67, "{made:?}");
    let file = cluster.hosts[0].root.join("deploy.token");
    std::fs::write(&file, &made.out).unwrap();
    let deploy = Remote { cluster: &cluster, ca: ca.clone(), token: Some(file) };
    let nobody = Remote { cluster: &cluster, ca: ca.clone(), token: None };

    for host in 0..4 {
        until("the token is known there", || {
            let ran = deploy.run(host, &["ps", "--json"]);
            expect(ran.code == Some(0), ran)
        });
        nobody.refused(host, &["ps"], "no-token");
        let file = cluster.hosts[host].config();
        deploy.refused(host, &["apply", file.to_str().unwrap()], "role");
        deploy.refused(host, &["token", "list"], "role");
    }
    let stranger = Remote { ca: PathBuf::from("/etc/ssl/certs/ca-certificates.crt"), ..nobody };
    let untrusted = Command::new(env!("CARGO_BIN_EXE_bigbrother"))
        .args(["--api", &format!("https://127.0.0.1:{}", cluster.hosts[0].api.unwrap()), "ps"])
        .env_remove("BIGBROTHER_CA")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&untrusted.stderr).into_owned();
    assert!(untrusted.status.code() == Some(3) && said.contains("cannot be trusted"), "{said}");
    drop(stranger);

    let watching = the_client_library_asks_over_tls(&cluster, &ca, made.out.trim());

    // From the attached host, of one on a peer.
    deploy.ok(3, &["scale", "zone", "6"]);
    let theirs = all.iter().find(|view| view.host.as_str() == "beta").unwrap().instance.to_string();
    deploy.ok(3, &["restart", &theirs]);

    let listed = cluster.json(2, &["token", "list"]);
    assert_eq!((&listed[0]["name"], &listed[0]["role"]), (&"deploy".into(), &"operate".into()), "{listed}");
    cluster.ok(2, &["token", "revoke", "deploy"]);
    for host in 0..4 {
        until("the token is not known there any more", || {
            let ran = deploy.run(host, &["ps"]);
            expect(ran.code == Some(4) && ran.err.contains("(bad-token)"), ran)
        });
    }

    watching.join().expect("a watch whose token was revoked ends with the reason");

    let audit = lines(&cluster.ok(1, &["audit", "--since", "1h", "--json"]).out);
    let seen = |who: &str, host: &str, what: &str, status: u64, via: Option<&str>| {
        let same = |entry: &Value| {
            entry["who"] == who
                && entry["host"] == host
                && entry["what"] == what
                && entry["status"] == status
                && entry["via"].as_str() == via
        };
        assert!(audit.iter().any(same), "no {who} {what} {status} on {host} in {audit:#?}");
    };
    seen("unix uid=0", "alpha", "POST /v1/tokens", 201, None);
    seen("token deploy", "delta", "POST /v1/scale", 200, None);
    seen("token deploy", "delta", "POST /v1/apply", 403, None);
    seen("token deploy", "delta", "POST /v1/restart", 200, None);
    seen("token deploy", "beta", "POST /v1/restart", 200, Some("delta"));
    seen("unix uid=0", "gamma", "DELETE /v1/tokens/deploy", 200, None);
    seen("nobody", "alpha", "GET /v1/instances", 401, None);
    let times: Vec<&str> = audit.iter().map(|entry| entry["at"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    let text = cluster.ok(0, &["audit"]).out;
    assert!(text.contains("token deploy (127.0.0.1 via delta)  POST /v1/restart"), "{text}");
}
