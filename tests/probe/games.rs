//! Stock game servers.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use bigbrother::agent::probe::{ProbeError, ProbeTarget};
use bigbrother::spec::QueryProtocol;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::asker::{Asker, SECOND, query, state, wait_for};

/// A real game server; killed when it goes out of scope.
struct Server {
    child: Child,
    address: SocketAddr,
    _home: tempfile::TempDir,
}

impl Server {
    fn start(package: &str, program: &str, args: impl Fn(u16, &str) -> Vec<String>) -> Self {
        assert!(
            Path::new(program).exists(),
            "{program} is missing: apt-get install --no-install-recommends {package}"
        );
        let home = tempfile::tempdir().unwrap();
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(program)
            .args(args(port, home.path().to_str().unwrap()))
            .env("HOME", home.path())
            .current_dir(home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Server { child, address: (Ipv4Addr::LOCALHOST, port).into(), _home: home }
    }

    fn teeworlds() -> Self {
        Server::start("teeworlds-server", "/usr/games/teeworlds-server", |port, _| {
            vec!["bindaddr 127.0.0.1".into(), format!("sv_port {port}"), "sv_register 0".into()]
        })
    }

    fn ddnet() -> Self {
        Server::start("ddnet-server", "/usr/games/DDNet-Server", |port, _| {
            ["sv_ipv4only 1", "bindaddr 127.0.0.1", "sv_register 0", &format!("sv_port {port}")]
                .map(String::from)
                .to_vec()
        })
    }

    fn openarena() -> Self {
        Server::start("openarena-server", "/usr/games/openarena-server", |port, home| {
            let line = format!(
                "+set dedicated 1 +set net_ip 127.0.0.1 +set net_port {port} +set fs_homepath {home} \
                 +set bot_enable 1 +map oa_dm1 +addbot sarge 3 +addbot grism 3"
            );
            line.split_whitespace().map(String::from).collect()
        })
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Stopped: no answer. Continued: an answer. Killed: refused, and at once.
    fn hangs_and_dies(mut self, asker: &mut Asker, probe: &ProbeTarget) {
        let pid = self.child.id().cast_signed();
        self.signal(Signal::SIGSTOP);
        wait_for("stopped", || state(pid) == Some('T'));
        let hung = asker.ask(probe.clone(), SECOND);
        assert!(matches!(hung, Err(ProbeError::Timeout { after: SECOND })), "{hung:?}");
        self.signal(Signal::SIGCONT);
        asker.answer(probe);
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let before = Instant::now();
        let killed = asker.ask(probe.clone(), 5 * SECOND);
        assert!(matches!(killed, Err(ProbeError::Refused { .. })), "{killed:?}");
        assert!(before.elapsed() < 4 * SECOND, "refused only after {:?}", before.elapsed());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn teeworlds_answers_hangs_and_dies() {
    let (server, mut asker) = (Server::teeworlds(), Asker::new());
    let probe = query(QueryProtocol::Teeworlds, server.address);
    let answer = asker.answer(&probe);
    assert_eq!((answer.players, answer.capacity), (Some(0), Some(8)));
    assert_eq!(answer.player_list.as_deref(), Some(&[][..]));
    assert_eq!((answer.map.as_deref(), answer.version.as_deref()), (Some("dm1"), Some("0.7.5")));
    server.hangs_and_dies(&mut asker, &probe);
}

#[test]
fn ddnet_answers_hangs_and_dies() {
    let (server, mut asker) = (Server::ddnet(), Asker::new());
    let probe = query(QueryProtocol::Ddnet, server.address);
    let answer = asker.answer(&probe);
    // 64 and not 16: the extended form was asked for.
    assert_eq!((answer.players, answer.capacity), (Some(0), Some(64)));
    assert_eq!(answer.player_list.as_deref(), Some(&[][..]));
    assert_eq!(answer.map.as_deref(), Some("Tutorial"));
    server.hangs_and_dies(&mut asker, &probe);
}

#[test]
fn openarena_answers_hangs_and_dies() {
    let (server, mut asker) = (Server::openarena(), Asker::new());
    let probe = query(QueryProtocol::Quake3, server.address);
    let mut answer = asker.answer(&probe);
    let deadline = Instant::now() + 20 * SECOND;
    while answer.players != Some(2) {
        assert!(Instant::now() < deadline, "two bots were added, the server says {answer:?}");
        thread::sleep(2 * SECOND);
        answer = asker.answer(&probe);
    }
    assert_eq!((answer.capacity, answer.map.as_deref()), (Some(8), Some("oa_dm1")));
    let mut names: Vec<String> = answer.player_list.into_iter().flatten().map(|bot| bot.name).collect();
    names.sort();
    assert_eq!(names, ["Grism", "Sarge"]);
    server.hangs_and_dies(&mut asker, &probe);
}

#[test]
fn openarena_bears_a_question_every_two_seconds() {
    let (server, mut asker) = (Server::openarena(), Asker::new());
    let probe = query(QueryProtocol::Quake3, server.address);
    asker.answer(&probe);
    for round in 0..10 {
        thread::sleep(2 * SECOND);
        let answer = asker.ask(probe.clone(), SECOND);
        assert!(answer.is_ok(), "question {round}: {answer:?}");
    }
}
