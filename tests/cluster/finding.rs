//! Where a host that is no peer finds one: by its file, its copy and names; and who is not served, and hears why.

use std::collections::BTreeMap;
use std::time::Duration;

use bigbrother::cluster::node::ProposeError;
use bigbrother::cluster::session::kept::FILE;
use bigbrother::cluster::wire::Kind;
use bigbrother::state::{Response, Target};

use super::hosts::*;
use super::net::Net;
use super::peers::*;

#[test]
fn a_host_that_starts_without_any_peer_knows_the_last_state() {
    let (_folder, mut peers) = formed(&["alpha", "beta", "gamma"]);
    peers[0].propose(spec());
    let settings = host_of(&peers[0].settings, "delta");
    let host = Host::start(&settings);
    host.propose(launch("before"));
    let state = alike(&host, &peers[0]);
    let file = settings.data_dir.join(FILE);
    // It is written without being asked to.
    until("the file", || if file.exists() { Ok(()) } else { Err(()) });
    let standing = host.attached().standing().borrow().clone();
    let settings = host.close();
    let all: Vec<_> = peers.drain(..).map(Peer::kill).collect();
    let host = Host::start(&settings);
    assert_eq!(host.state(), state, "at once");
    let alone = host.attached().standing().borrow().clone();
    assert_eq!((alone.index, alone.primary, alone.quorum), (standing.index, None, false));
    assert_eq!(host.attached().members().len(), 3);
    until("why", || {
        host.trouble().filter(|why| why.contains("alpha: cannot connect to")).ok_or(host.trouble())
    });
    let refused = host.run(host.attached().call(Kind::Roll, Vec::new(), Duration::from_millis(50)));
    assert!(refused.unwrap_err().to_string().contains("no peer serves this host"));
    let peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    host.propose(launch("after"));
    assert_eq!(notes(&alike(&host, &peers[0])).len(), 2);
    assert_eq!((host.attached().wholes(), host.trouble()), (0, None));
    // What is no file of ours is begun anew.
    let settings = host.close();
    for bytes in [b"rubbish".to_vec(), std::fs::read(&file).unwrap().split_last().unwrap().1.to_vec()] {
        std::fs::write(&file, bytes).unwrap();
        let host = Host::start(&settings);
        assert_eq!(notes(&alike(&host, &peers[0])).len(), 2);
        host.kill();
    }
    let mut other = settings.clone();
    other.peers.clear();
    std::fs::remove_file(&file).unwrap();
    let Err(error) = Host::try_start(&other) else { panic!("it asks nobody") };
    assert!(error.to_string().contains("no peer is known"), "{error}");
}

#[test]
fn a_host_of_another_cluster_or_another_founding_hears_why_it_is_not_served() {
    let (_folder, peers) = formed(&["alpha", "beta", "gamma"]);
    let mut stranger = host_of(&peers[0].settings, "delta");
    stranger.cluster = "ninjas".to_owned();
    let stranger = Host::start(&stranger);
    let why = |host: &Host, text: &str| {
        until(text, || host.trouble().filter(|why| why.contains(text)).ok_or(host.trouble()));
        assert_eq!(host.served_by(), None);
    };
    why(&stranger, "alpha belongs to the cluster \"pirates\", not \"ninjas\"");
    let host = Host::start(&host_of(&peers[0].settings, "epsilon"));
    host.propose(bigbrother::state::Command::Pause { target: Target::All });
    let mut moved = host.close();
    let (_other, others) = formed(&["alpha", "beta", "gamma"]);
    moved.peers.clone_from(&others[0].settings.peers);
    // Nor does it go back to the peers it knows.
    drop(peers);
    let moved = Host::start(&moved);
    why(&moved, "belongs to another founding of the cluster \"pirates\"");
    assert!(moved.state().paused.all, "its own state is kept");
    // With the file moved away it begins anew.
    let settings = moved.kill();
    std::fs::remove_file(settings.data_dir.join(FILE)).unwrap();
    let moved = Host::start(&settings);
    assert_eq!(alike(&moved, &others[0]), others[0].state());
}

#[test]
fn a_host_speaks_for_itself_only() {
    let (_folder, peers) = formed(&["alpha", "beta", "gamma"]);
    let host = Host::start(&host_of(&peers[0].settings, "delta"));
    let join = |name: &str| bigbrother::state::Command::JoinHost {
        host: name.parse().unwrap(),
        facts: bigbrother::state::HostFacts { version: peers[0].state().version, ..Default::default() },
    };
    let Response::Incarnation(life) = host.propose(join("delta")) else { panic!("no incarnation") };
    host.attached().set_incarnation(life);
    let other = host.run(host.attached().propose(join("beta"))).unwrap_err();
    assert!(matches!(other, ProposeError::NoPrimary(_)));
    for kind in [Kind::Vote, Kind::Append, Kind::Join, Kind::Transfer] {
        let asked = host.run(host.attached().call(kind, Vec::new(), Duration::from_secs(5)));
        assert!(asked.is_err(), "{kind:?}: {asked:?}");
    }
    assert_eq!(agreed(&peers).hosts.keys().collect::<Vec<_>>(), [&name("delta")]);
}

#[test]
fn a_host_finds_peers_by_what_it_learnt_and_by_what_its_file_says() {
    let (_folder, mut all) = settings(&["alpha", "beta", "gamma"]);
    let net = Net::before(&mut all);
    let peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    primary(&peers);
    let file = host_of(&all[0], "delta");
    let host = Host::start(&file);
    host.served();
    let mut settings = host.close();
    settings.peers.values_mut().for_each(|address| *address = "127.0.0.1:1".to_owned());
    let host = Host::start(&settings);
    host.served();
    // What was learnt leads nowhere any more.
    let mut settings = host.close();
    drop(net);
    for (peer, address) in &mut settings.peers {
        let listen = all.iter().find(|settings| settings.host == *peer).map(|settings| &settings.listen);
        address.clone_from(listen.unwrap());
    }
    let host = Host::start(&settings);
    host.served();
}

#[test]
fn names_are_resolved_anew() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    // The thread has an /etc/hosts of its own, and so have those that it makes.
    let test = || {
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS)
            .expect("this test must run as root: it has an /etc/hosts of its own");
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let (folder, mut all) = settings(&["alpha", "beta", "gamma"]);
        let hosts = folder.path().join("hosts");
        let resolve = |to: &str| std::fs::write(&hosts, format!("{to} peers.test\n")).unwrap();
        let own = own_address().to_string();
        resolve(&own);
        mount(Some(&hosts), "/etc/hosts", none, MsFlags::MS_BIND, none).unwrap();
        let named: BTreeMap<_, _> = all[0]
            .peers
            .iter()
            .map(|(host, address)| (host.clone(), address.replace(&own, "peers.test")))
            .collect();
        all.iter_mut().for_each(|settings| settings.peers.clone_from(&named));
        let peers: Vec<Peer> = all.iter().map(Peer::start).collect();
        primary(&peers);
        let host = Host::start(&host_of(&all[0], "delta"));
        host.propose(spec());
        peers.into_iter().for_each(|peer| drop(peer.kill()));
        resolve("127.0.0.2");
        all.iter_mut().for_each(|settings| settings.listen = settings.listen.replace(&own, "127.0.0.2"));
        let peers: Vec<Peer> = all.iter().map(Peer::start).collect();
        host.propose(launch("there"));
        assert_eq!(notes(&alike(&host, &peers[0])).len(), 1);
    };
    std::thread::spawn(test).join().unwrap();
}

#[test]
fn a_host_with_a_certificate_is_served_and_one_without_is_not() {
    use bigbrother::cluster::tls::issue;
    use bigbrother::config::TlsFiles;

    let (folder, mut all) = settings(&["alpha", "beta", "gamma"]);
    issue::init(folder.path(), "pirates").unwrap();
    let files = |host: &bigbrother::spec::HostName| {
        let [cert, key] = issue::issue(folder.path(), host, folder.path()).unwrap();
        Some(TlsFiles { ca: folder.path().join(issue::CA_CERT), cert, key })
    };
    all.iter_mut().for_each(|settings| settings.tls = files(&settings.host));
    let peers: Vec<Peer> = all.iter().map(Peer::start).collect();
    primary(&peers);
    let mut settings = host_of(&all[0], "delta");
    settings.tls = files(&settings.host);
    let host = Host::start(&settings);
    host.propose(spec());
    alike(&host, &peers[0]);
    let mut settings = host.close();
    settings.host = name("epsilon");
    let Err(error) = Host::try_start(&settings) else { panic!("epsilon runs as delta") };
    assert!(error.to_string().contains("is not that of epsilon"), "{error}");
    settings.tls = None;
    let plain = Host::start(&settings);
    until("why", || plain.trouble().ok_or(()));
    assert_eq!(plain.served_by(), None);
}
