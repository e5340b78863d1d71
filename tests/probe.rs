//! Probes against real game servers, against servers that misbehave, and with real commands.
//!
//! Needs the Debian packages teeworlds-server, ddnet-server and openarena-server, and root (to become
//! another user).

#![expect(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bigbrother::agent::probe::{Answer, ExecRequest, ProbeError, ProbeResult, ProbeTarget, Prober, Question};
use bigbrother::keeper::protocol::{Account, RunId};
use bigbrother::spec::QueryProtocol;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

const SECOND: Duration = Duration::from_secs(1);

/// A prober as the supervision loop has it: results come back over a channel.
struct Asker {
    main: Runtime,
    prober: Prober,
    results: mpsc::Receiver<ProbeResult>,
    asked: u64,
}

impl Asker {
    fn new() -> Self {
        let main = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (sender, results) = mpsc::channel(64);
        Asker { prober: Prober::new(main.handle().clone(), sender), main, results, asked: 0 }
    }

    fn put(&mut self, instance: &str, probe: ProbeTarget, timeout: Duration) -> u64 {
        self.asked += 1;
        let instance = instance.parse().unwrap();
        self.prober.ask(Question { instance, run: RunId(7), asked: self.asked, probe, timeout });
        self.asked
    }

    fn result(&mut self, within: Duration) -> ProbeResult {
        let next = async { tokio::time::timeout(within, self.results.recv()).await };
        let result = self.main.block_on(next);
        result.unwrap_or_else(|_| panic!("no result within {within:?}")).unwrap()
    }

    /// One question; its result must come within the timeout and a second for a busy machine.
    fn ask(&mut self, probe: ProbeTarget, timeout: Duration) -> Result<Answer, ProbeError> {
        self.ask_for("zone.3", probe, timeout)
    }

    fn ask_for(
        &mut self,
        instance: &str,
        probe: ProbeTarget,
        timeout: Duration,
    ) -> Result<Answer, ProbeError> {
        let asked = self.put(instance, probe, timeout);
        let result = self.result(timeout + SECOND);
        let of = (result.instance.to_string(), result.run, result.asked);
        assert_eq!(of, (instance.to_owned(), RunId(7), asked));
        result.outcome
    }

    /// Asks until the server answers.
    fn answer(&mut self, probe: &ProbeTarget) -> Answer {
        let deadline = Instant::now() + 20 * SECOND;
        loop {
            match self.ask(probe.clone(), 2 * SECOND) {
                Ok(answer) => return answer,
                Err(error) if Instant::now() > deadline => panic!("no answer in 20 s: {}", error.reason()),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

fn query(protocol: QueryProtocol, address: SocketAddr) -> ProbeTarget {
    ProbeTarget::Query { protocol, address }
}

fn wait_for(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + 10 * SECOND;
    while !reached() {
        assert!(Instant::now() < deadline, "after 10 s: not {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The state letter of /proc/PID/stat; `None` when there is no such process.
fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Gone, or a zombie of a parent that is not ours.
fn dead(pid: i32) -> bool {
    matches!(state(pid), None | Some('Z'))
}

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

/// A UDP server that answers each datagram with what `reply` makes of it (`None`: silence).
fn fake_udp(mut reply: impl FnMut(&[u8]) -> Option<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut datagram = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut datagram) {
            if let Some(reply) = reply(&datagram[..length]) {
                let _ = socket.send_to(&reply, from);
            }
        }
    });
    address
}

/// A TCP server that does `serve` with each connection, and closes it when it has read all.
fn fake_tcp(serve: impl Fn(&mut TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            serve(&mut stream);
            // Closing with something unread would reset the connection and lose what was written.
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    address
}

const UDP_PROTOCOLS: [QueryProtocol; 4] =
    [QueryProtocol::Teeworlds, QueryProtocol::Ddnet, QueryProtocol::Quake3, QueryProtocol::Valve];

#[test]
fn garbage_is_malformed() {
    let mut asker = Asker::new();
    for protocol in UDP_PROTOCOLS {
        let server = fake_udp(|_| Some(b"\xff\xff\xff\xff\xfe garbage".to_vec()));
        let outcome = asker.ask(query(protocol, server), SECOND);
        assert!(matches!(outcome, Err(ProbeError::Malformed { .. })), "{protocol:?}: {outcome:?}");
    }
    let server = fake_tcp(|stream| stream.write_all(b"\xff\xff\xff\xff\xff\xffHTTP/1.1 400\r\n").unwrap());
    let outcome = asker.ask(query(QueryProtocol::Minecraft, server), SECOND);
    assert!(matches!(outcome, Err(ProbeError::Malformed { .. })), "{outcome:?}");
}

#[test]
fn silence_is_a_timeout_and_lost_datagrams_are_sent_again() {
    let mut asker = Asker::new();
    for (protocol, attempts) in UDP_PROTOCOLS.into_iter().zip([4, 4, 1, 3]) {
        let (count, counted) = std::sync::mpsc::channel();
        let server = fake_udp(move |_| {
            let _ = count.send(());
            None
        });
        let outcome = asker.ask(query(protocol, server), SECOND);
        assert!(matches!(outcome, Err(ProbeError::Timeout { after: SECOND })), "{protocol:?}: {outcome:?}");
        assert_eq!(counted.try_iter().count(), attempts, "datagrams of {protocol:?}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let outcome = asker.ask(query(QueryProtocol::Minecraft, listener.local_addr().unwrap()), SECOND);
    assert!(matches!(outcome, Err(ProbeError::Timeout { after: SECOND })), "{outcome:?}");
}

#[test]
fn nobody_there_is_refused_at_once() {
    let mut asker = Asker::new();
    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for protocol in [&UDP_PROTOCOLS[..], &[QueryProtocol::Minecraft]].concat() {
        let before = Instant::now();
        let outcome = asker.ask(query(protocol, free), 10 * SECOND);
        assert!(matches!(outcome, Err(ProbeError::Refused { .. })), "{protocol:?}: {outcome:?}");
        assert!(before.elapsed() < 3 * SECOND, "{protocol:?}: {:?}", before.elapsed());
    }
    let before = Instant::now();
    let reason = asker.ask(ProbeTarget::Tcp { address: free }, SECOND).unwrap_err().reason();
    assert_eq!(reason, format!("nobody listens on {free}: Connection refused (os error 111)"));
    // A runtime waits for its threads when it goes: the library's have been sent home.
    drop(asker);
    assert!(before.elapsed() < 3 * SECOND, "threads stayed for {:?}", before.elapsed());
}

#[test]
fn a_wrong_token_is_no_sign_of_life() {
    let mut asker = Asker::new();
    let server = fake_udp(|asked| match asked[0] {
        0x04 => Some([&[4, 0, 0], &asked[8..12], b"\x05srvt"].concat()),
        // Addressed to the token after ours.
        _ => Some([b"\x21", &[asked[5].wrapping_add(1)], &asked[6..9], b"srvt\xff\xff\xff\xffinf3"].concat()),
    });
    match asker.ask(query(QueryProtocol::Teeworlds, server), SECOND) {
        Err(ProbeError::Malformed { what }) => assert_eq!(what, "it carries another token than ours"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn half_an_answer_is_malformed_and_a_whole_one_after_it_counts() {
    const STATUS: &[u8] =
        b"\xff\xff\xff\xffstatusResponse\n\\mapname\\q3dm17\\sv_maxclients\\16\n5 30 \"a\"\n";
    let mut asker = Asker::new();
    let server = fake_udp(|_| Some(STATUS[..40].to_vec()));
    let outcome = asker.ask(query(QueryProtocol::Quake3, server), SECOND);
    assert!(matches!(outcome, Err(ProbeError::Malformed { .. })), "{outcome:?}");

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = socket.local_addr().unwrap();
    thread::spawn(move || {
        let (_, from) = socket.recv_from(&mut [0; 64]).unwrap();
        socket.send_to(&STATUS[..40], from).unwrap();
        socket.send_to(STATUS, from).unwrap();
    });
    let answer = asker.ask(query(QueryProtocol::Quake3, server), SECOND).unwrap();
    assert_eq!((answer.players, answer.capacity, answer.map.as_deref()), (Some(1), Some(16), Some("q3dm17")));
}

/// A2S_INFO as a server of protocol 17 writes it: 7 of 24 players, 2 of them bots.
fn a2s_info() -> Vec<u8> {
    [
        &b"\xff\xff\xff\xff\x49\x11A server\0cp_dustbowl\0tf\0Team Fortress\0"[..],
        &[0xb8, 0x01, 7, 24, 2],
        b"dl\0\x018622567\0\0",
    ]
    .concat()
}

#[test]
fn valve_servers_are_asked_with_their_challenge() {
    let mut asker = Asker::new();
    let server = fake_udp(|asked| match asked.strip_prefix(b"\xff\xff\xff\xffTSource Engine Query\0") {
        Some(b"") => Some(b"\xff\xff\xff\xffAtoken".to_vec()),
        Some(b"token") => Some(a2s_info()),
        _ => None,
    });
    let answer = asker.ask(query(QueryProtocol::Valve, server), SECOND).unwrap();
    let expected = Answer {
        players: Some(5),
        capacity: Some(24),
        map: Some("cp_dustbowl".into()),
        name: Some("A server".into()),
        game: Some("Team Fortress".into()),
        version: Some("8622567".into()),
    };
    assert_eq!(answer, expected);
}

#[test]
fn a_valve_server_can_neither_keep_us_busy_nor_fill_our_memory() {
    let mut asker = Asker::new();
    let endless = fake_udp(|_| Some(b"\xff\xff\xff\xffAtoken".to_vec()));
    let outcome = asker.ask(query(QueryProtocol::Valve, endless), 2 * SECOND);
    assert!(matches!(outcome, Err(ProbeError::Malformed { .. })), "{outcome:?}");
    // One part of a split datagram: that would be put together from as many parts as it says.
    let split = fake_udp(|_| Some(b"\xfe\xff\xff\xff\0\0\0\0\0\0\xe0\x04...".to_vec()));
    let outcome = asker.ask(query(QueryProtocol::Valve, split), SECOND);
    assert!(matches!(outcome, Err(ProbeError::Timeout { .. })), "{outcome:?}");
}

/// A packet of Minecraft: the length of all, packet id 0, the length of the text, the text.
fn minecraft_status() -> Vec<u8> {
    let text = br#"{"version":{"name":"1.21.4","protocol":769},"players":{"max":20,"online":3},"description":{"text":"Our world"}}"#;
    let body = [&[0, text.len() as u8][..], text].concat();
    [&[body.len() as u8][..], &body].concat()
}

#[test]
fn minecraft_servers_answer_whether_they_close_or_not() {
    assert!(minecraft_status().len() < 128, "one byte tells the lengths");
    let mut asker = Asker::new();
    for closes in [true, false] {
        let server = fake_tcp(move |stream| {
            let mut asked = [0; 64];
            let length = stream.read(&mut asked).unwrap();
            assert!(length > 2 && asked[1] == 0, "no handshake: {:?}", &asked[..length]);
            stream.write_all(&minecraft_status()).unwrap();
            if !closes {
                thread::sleep(60 * SECOND);
            }
        });
        let answer = asker.ask(query(QueryProtocol::Minecraft, server), SECOND).unwrap();
        assert_eq!((answer.players, answer.capacity), (Some(3), Some(20)));
        assert_eq!((answer.version.as_deref(), answer.name.as_deref()), (Some("1.21.4"), Some("Our world")));
    }
}

#[test]
fn a_minecraft_server_cannot_fill_our_memory() {
    let (sent, seen) = std::sync::mpsc::channel();
    let server = fake_tcp(move |stream| {
        let mut total = 0;
        // A length of 2 GiB, and then without end.
        let _ = stream.write_all(&[0xff, 0xff, 0xff, 0xff, 0x07]);
        while total < 64 << 20 {
            match stream.write(&[0; 65536]) {
                Ok(n) => total += n,
                Err(_) => break,
            }
        }
        let _ = sent.send(total);
    });
    let outcome = Asker::new().ask(query(QueryProtocol::Minecraft, server), 5 * SECOND);
    assert!(matches!(outcome, Err(ProbeError::Malformed { .. })), "{outcome:?}");
    let total = seen.recv_timeout(5 * SECOND).expect("the connection stays open");
    assert!(total < 16 << 20, "{total} bytes were taken");
}

#[test]
fn tcp_is_a_connection() {
    let mut asker = Asker::new();
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let probe = ProbeTarget::Tcp { address: listener.local_addr().unwrap() };
    assert_eq!(asker.ask(probe, SECOND).unwrap(), Answer::default());
    assert_eq!(listener.accept().unwrap().0.read(&mut [0; 8]).unwrap(), 0, "closed without a word");
}

/// `sh -c script` in `dir`, as the account.
fn exec(script: &str, dir: &Path, account: Option<Account>) -> ProbeTarget {
    ProbeTarget::Exec(ExecRequest {
        command: ["sh", "-c", script].map(String::from).to_vec(),
        env: vec!["PATH=/usr/bin:/bin".into(), "REGION=eu=1".into()],
        working_dir: dir.to_str().unwrap().into(),
        account,
    })
}

#[test]
fn a_command_is_judged_by_its_exit_code() {
    let (mut asker, dir) = (Asker::new(), tempfile::tempdir().unwrap());
    asker.ask(exec("exit 0", dir.path(), None), 5 * SECOND).unwrap();
    match asker.ask(
        exec("echo out; echo err >&2; printf '\\033[2J$REGION\\n'; exit 3", dir.path(), None),
        5 * SECOND,
    ) {
        Err(ProbeError::Exit { code: 3, output }) => assert_eq!(output, "out; err; [2J$REGION"),
        other => panic!("{other:?}"),
    }
    match asker.ask(exec("kill -SEGV $$", dir.path(), None), 5 * SECOND) {
        Err(ProbeError::Signalled { signal: 11, .. }) => {}
        other => panic!("{other:?}"),
    }
    // It closes its output long before it ends.
    let closed = asker.ask(exec("exec >&- 2>&-; sleep 0.3; exit 4", dir.path(), None), 5 * SECOND);
    assert!(matches!(closed, Err(ProbeError::Exit { code: 4, .. })), "{closed:?}");
    let ProbeTarget::Exec(request) = exec("", dir.path(), None) else { unreachable!() };
    let missing = ProbeTarget::Exec(ExecRequest { command: vec!["/no/such".into()], ..request });
    let reason = asker.ask(missing, SECOND).unwrap_err().reason();
    assert_eq!(reason, "cannot start \"/no/such\": No such file or directory (os error 2)");
}

#[test]
fn a_command_has_its_environment_folder_and_session_only() {
    let (mut asker, dir) = (Asker::new(), tempfile::tempdir().unwrap());
    let script =
        "env | sort > env; readlink /proc/self/fd/0; pwd; ps -o pgid= -p $$ | tr -d ' '; echo $$; exit 1";
    let output = match asker.ask(exec(script, dir.path(), None), 5 * SECOND) {
        Err(ProbeError::Exit { output, .. }) => output,
        other => panic!("{other:?}"),
    };
    let lines: Vec<&str> = output.split("; ").collect();
    assert_eq!(lines[..2], ["/dev/null", dir.path().to_str().unwrap()]);
    assert_eq!(lines[2], lines[3], "it leads its own group");
    let env = fs::read_to_string(dir.path().join("env")).unwrap();
    let names: Vec<&str> = env.lines().filter_map(|l| l.split('=').next()).collect();
    assert!(env.contains("REGION=eu=1\n"), "{env}");
    assert!(names.iter().all(|n| ["PATH", "REGION", "PWD", "OLDPWD", "SHLVL", "_"].contains(n)), "{env}");
}

#[test]
fn a_command_runs_as_the_account() {
    assert!(nix::unistd::geteuid().is_root(), "this test must run as root: it becomes another user");
    let (mut asker, dir) = (Asker::new(), tempfile::tempdir().unwrap());
    let account = Account { uid: 65534, gid: 65533, groups: vec![60, 65533] };
    match asker.ask(exec("id -u; id -g; id -G; exit 1", Path::new("/"), Some(account)), 5 * SECOND) {
        Err(ProbeError::Exit { output, .. }) => assert_eq!(output, "65534; 65533; 65533 60"),
        other => panic!("{other:?}"),
    }
    drop(dir);
}

#[test]
fn output_is_bounded_but_read_to_the_end() {
    let (mut asker, dir) = (Asker::new(), tempfile::tempdir().unwrap());
    // 1 MiB: more than a pipe holds.
    match asker.ask(exec("head -c 1048576 /dev/zero | tr '\\0' x; exit 9", dir.path(), None), 10 * SECOND) {
        Err(ProbeError::Exit { code: 9, output }) => assert_eq!(output, "x".repeat(4096)),
        other => panic!("{other:?}"),
    }
}

fn pids(dir: &Path, count: usize) -> Vec<i32> {
    let mut pids = Vec::new();
    wait_for("all pids written", || {
        let text = fs::read_to_string(dir.join("pids")).unwrap_or_default();
        pids = text.lines().filter_map(|l| l.parse().ok()).collect();
        pids.len() == count
    });
    pids
}

#[test]
fn a_command_that_takes_too_long_dies_with_its_group() {
    let (mut asker, dir) = (Asker::new(), tempfile::tempdir().unwrap());
    let script = "trap '' TERM; sleep 1000 & echo $! >> pids; echo $$ >> pids; echo waiting; wait";
    match asker.ask(exec(script, dir.path(), None), 2 * SECOND) {
        Err(ProbeError::Unfinished { output, .. }) => assert_eq!(output, "waiting"),
        other => panic!("{other:?}"),
    }
    let pids = pids(dir.path(), 2);
    wait_for("dead", || dead(pids[0]));
    wait_for("reaped", || state(pids[1]).is_none());
}

#[test]
fn a_command_that_starts_too_late_is_ended_all_the_same() {
    let (mut asker, dir) = (Asker::new(), tempfile::tempdir().unwrap());
    let outcome = asker.ask(exec("sleep 1000", dir.path(), None), Duration::ZERO);
    assert!(matches!(outcome, Err(ProbeError::Unfinished { .. })), "{outcome:?}");
    wait_for("free again", || asker.ask(exec("exit 0", dir.path(), None), 5 * SECOND).is_ok());
}

#[test]
fn what_a_finished_command_leaves_behind_is_killed() {
    let (mut asker, dir) = (Asker::new(), tempfile::tempdir().unwrap());
    // The sleeper holds stdout open; the result must not wait for it.
    asker.ask(exec("sleep 1000 & echo $! >> pids; echo $$ >> pids", dir.path(), None), 10 * SECOND).unwrap();
    let pids = pids(dir.path(), 2);
    assert_eq!(state(pids[1]), None, "a zombie was left");
    wait_for("dead", || dead(pids[0]));
}

#[test]
fn an_instance_has_one_command_at_a_time() {
    let (mut asker, dir) = (Asker::new(), tempfile::tempdir().unwrap());
    let slow = asker.put("zone.1", exec("echo $$ >> pids; sleep 1000", dir.path(), None), 3 * SECOND);
    pids(dir.path(), 1);
    let refused = asker.put("zone.1", exec("echo $$ >> pids", dir.path(), None), SECOND);
    let result = asker.result(2 * SECOND);
    assert_eq!(result.asked, refused);
    assert!(matches!(result.outcome, Err(ProbeError::Underway)), "{:?}", result.outcome);
    let other = asker.put("zone.2", exec("exit 0", dir.path(), None), 2 * SECOND);
    assert_eq!(asker.result(3 * SECOND).asked, other, "another instance must not wait");
    assert_eq!(asker.result(4 * SECOND).asked, slow);
    wait_for("free again", || asker.ask_for("zone.1", exec("exit 0", dir.path(), None), SECOND).is_ok());
    assert_eq!(pids(dir.path(), 1).len(), 1, "the refused command never ran");
}

#[test]
fn nothing_is_left_when_the_prober_goes() {
    let (mut asker, dir) = (Asker::new(), tempfile::tempdir().unwrap());
    asker.put("zone.1", exec("echo $$ >> pids; sleep 1000", dir.path(), None), 600 * SECOND);
    let pid = pids(dir.path(), 1)[0];
    drop(asker.prober);
    wait_for("reaped", || state(pid).is_none());
}
