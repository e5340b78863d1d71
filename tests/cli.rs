//! The real binary against a fake agent: what it asks, what it prints, how it exits.

use std::io::Read;
use std::net::UdpSocket;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

#[path = "cli/fake.rs"]
mod fake;

use fake::{Fake, event, instance};

/// No command of these tests takes longer, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    signal: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("no JSON ({e}): {self:?}"))
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bigbrother"));
    for name in ["BIGBROTHER_API", "BIGBROTHER_SOCKET", "COLUMNS", "NO_COLOR"] {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits for the end of a command, with a deadline.
fn finish(mut child: Child) -> Ran {
    let out = read(child.stdout.take().expect("piped"));
    let err = read(child.stderr.take().expect("piped"));
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("our child") {
            let (out, err) = (out.join().expect("read"), err.join().expect("read"));
            return Ran { code: status.code(), signal: status.signal(), out, err };
        }
        if began.elapsed() > PATIENCE {
            child.kill().expect("our child");
            panic!("it does not end; it said {:?} and {:?}", out.join(), err.join());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn read(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        from.read_to_string(&mut text).expect("text");
        text
    })
}

fn run(args: &[&str]) -> Ran {
    finish(command(args).spawn().expect("the binary"))
}

/// Runs a command against a fake agent.
fn ask(fake: &Fake, args: &[&str]) -> Ran {
    let mut command = command(args);
    command.env("BIGBROTHER_API", fake.address()).current_dir(fake.folder());
    finish(command.spawn().expect("the binary"))
}

fn zones() -> Fake {
    Fake::start(vec![instance("zone.0", "ready", 1), instance("zone.1", "ready", 2)])
}

#[test]
fn ps_prints_a_table_or_an_array() {
    let fake = zones();
    let table = ask(&fake, &["ps"]);
    assert_eq!(table.code, Some(0), "{table:?}");
    assert!(table.out.starts_with("INSTANCE  STATE      PID  RUN"), "{}", table.out);
    assert_eq!(table.out.lines().count(), 3);
    assert!(table.out.contains("game 20001/udp") && table.out.contains("3/16"), "{}", table.out);
    assert!(!table.out.contains('\x1b'), "colours when piped: {table:?}");

    let json = ask(&fake, &["ps", "zone.1", "--json"]).json();
    assert_eq!(json.as_array().map(Vec::len), Some(1));
    assert_eq!(json[0]["instance"], "zone.1");
    assert_eq!(json[0]["run"], 2);
    assert_eq!(json[0]["ports"]["game"]["port"], 20_001);

    let none = ask(&fake, &["ps", "arena"]);
    assert_eq!((none.code, none.out.as_str()), (Some(1), ""));
    assert!(none.err.contains("there is no instance of arena"), "{}", none.err);
    assert_eq!(ask(&fake, &["ps", "arena", "--json"]).json(), serde_json::json!([]));
}

#[test]
fn tables_fit_the_width_that_columns_says() {
    let fake = zones();
    for width in ["30", "50", "80"] {
        let mut command = command(&["--api", &fake.address(), "ps"]);
        let ran = finish(command.env("COLUMNS", width).spawn().expect("the binary"));
        let widest = ran.out.lines().map(|l| l.chars().count()).max().expect("lines");
        assert!(widest <= width.parse().expect("a number"), "{width}: {}", ran.out);
        assert!(ran.out.contains("zone.1"), "the most important column is kept: {}", ran.out);
    }
}

#[test]
fn status_tells_health_by_its_exit_code() {
    let fake = zones();
    let healthy = ask(&fake, &["status"]);
    assert_eq!(healthy.code, Some(0), "{healthy:?}");
    assert!(healthy.out.contains("2: 2 ready") && healthy.out.contains("pid 7"), "{}", healthy.out);
    fake.lose_keeper();
    let ill = ask(&fake, &["status"]);
    assert_eq!(ill.code, Some(1), "{ill:?}");
    assert!(ill.out.contains("the agent has no keeper"), "{}", ill.out);
    assert_eq!(ask(&fake, &["status", "--json"]).json()["keeper"], Value::Null);
}

#[test]
fn without_an_agent_the_error_says_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let address = format!("unix:{}/none.sock", folder.path().display());
    let ran = run(&["--api", &address, "ps"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(3), ""));
    assert!(
        ran.err.contains(&format!("no agent answers at {address}: is `bigbrother agent` running?")),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("No such file"), "the cause: {}", ran.err);

    // A port that nobody listens on.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let ran = run(&["--api", &format!("http://127.0.0.1:{port}"), "status"]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.err.contains("Connection refused"), "{}", ran.err);
}

#[test]
fn what_is_no_agent_is_not_understood() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let server = std::thread::spawn(move || {
        use std::io::Write;
        let (mut peer, _) = listener.accept().expect("a client");
        let mut request = [0; 1024];
        assert!(peer.read(&mut request).expect("a request") > 0);
        peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").expect("an answer");
    });
    let ran = run(&["--api", &format!("unix:{}", path.display()), "ps"]);
    server.join().expect("the server");
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.err.contains("is not understood") && ran.err.contains("/v1/instances"), "{}", ran.err);
}

#[test]
fn the_address_is_found_in_the_file_when_it_is_not_given() {
    if Path::new("/run/bigbrother/api.sock").exists() {
        panic!("an agent of the system runs on this machine; this test cannot tell anything");
    }
    let fake = zones();
    let file = format!("[host]\nruntime_dir = {:?}\n", fake.folder());
    std::fs::write(fake.folder().join("cluster.toml"), file).expect("a file");
    let mut command = command(&["ps", "--json"]);
    let ran = finish(command.current_dir(fake.folder()).spawn().expect("the binary"));
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

#[test]
fn a_refusal_is_told_with_its_reason() {
    let fake = zones();
    let ran = ask(&fake, &["scale", "logd", "3"]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert_eq!(ran.err, "error: cannot scale logd: logd has no count (not-counted)\n");
}

#[test]
fn usage_errors_exit_2() {
    for args in [
        &["frobnicate"][..],
        &["ps", "Zone!"],
        &["stop"],
        &["stop", "--all", "zone"],
        &["scale", "zone", "many"],
        &["launch", "dungeon", "--arg", "novalue"],
        &["--api", "ftp://x", "ps"],
        &["restart", "zone", "--timeout", "soon"],
        &["kill-test", "--count", "0"],
        &["--api", "http://10.255.255.1:1", "kill-test"],
    ] {
        let ran = run(args);
        assert_eq!(ran.code, Some(2), "{args:?}: {ran:?}");
        assert!(ran.err.contains("error:"), "{args:?}: {ran:?}");
    }
}

#[test]
fn check_finds_faults_without_an_agent() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("c.toml");
    std::fs::write(&file, "[cluster]\nname = \n").expect("a file");
    let ran = run(&["check", file.to_str().expect("text")]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("c.toml:2:8"), "{}", ran.err);
    let json = run(&["check", "--json", file.to_str().expect("text")]);
    assert_eq!((json.code, &json.json()["valid"]), (Some(2), &Value::Bool(false)));
    let missing = run(&["check", "/nonexistent.toml"]);
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert!(missing.err.contains("cannot read /nonexistent.toml: No such file"), "{}", missing.err);
}

#[test]
fn plan_says_by_its_exit_code_whether_something_would_change() {
    let fake = zones();
    let file = fake.folder().join("cluster.toml");
    std::fs::write(&file, "[process.zone]\n").expect("a file");
    let same = ask(&fake, &["plan"]);
    assert_eq!((same.code, same.out.as_str()), (Some(0), "nothing would change (spec revision 3)\n"));
    std::fs::write(&file, "[process.new]\n").expect("a file");
    let differs = ask(&fake, &["plan", "cluster.toml"]);
    assert_eq!((differs.code, differs.out.as_str()), (Some(10), "+ new\n"));
    let json = ask(&fake, &["plan", "--json"]);
    assert_eq!((json.code, &json.json()["added"][0]), (Some(10), &Value::from("new")));
    assert!(fake.asked().iter().all(|a| a.starts_with("POST /v1/apply?dry_run=true ")), "{:?}", fake.asked());
}

#[test]
fn apply_tells_the_revision_and_guards_it() {
    let fake = zones();
    std::fs::write(fake.folder().join("c.toml"), "[process.new]\n").expect("a file");
    let applied = ask(&fake, &["apply", "c.toml"]);
    assert_eq!((applied.code, applied.out.as_str()), (Some(0), "+ new\napplied: the spec has revision 4\n"));
    assert_eq!(fake.asked(), ["POST /v1/apply [process.new]"]);
    let refused = ask(&fake, &["apply", "c.toml", "--expected-revision", "2"]);
    assert_eq!(refused.code, Some(4), "{refused:?}");
    assert!(refused.err.contains("the spec has revision 3, not 2"), "{}", refused.err);
}

#[test]
fn restart_waits_for_new_runs() {
    let fake = zones();
    let ran = ask(&fake, &["restart", "zone.1"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.starts_with("1 instance restarted and ready again"), "{}", ran.out);
    assert!(fake.asked().contains(&r#"POST /v1/restart {"target":{"instance":"zone.1"}}"#.to_owned()));
    let json = ask(&fake, &["restart", "zone", "--json"]).json();
    assert_eq!(json[1]["run_before"], 3);
    assert_eq!(json[1]["run"], 4);
    assert_eq!(json[1]["ok"], true);
}

#[test]
fn stop_and_start_wait_and_tell_what_is_not_so() {
    let fake = Fake::start(vec![instance("zone.0", "ready", 1), instance("zone.9", "ready", 2)]);
    let stopped = ask(&fake, &["stop", "--all"]);
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    assert!(stopped.out.starts_with("2 instances stopped"), "{}", stopped.out);
    assert!(fake.asked().contains(&r#"POST /v1/stop {"target":"all"}"#.to_owned()));
    let started = ask(&fake, &["start", "zone", "--timeout", "200ms"]);
    assert_eq!(started.code, Some(1), "{started:?}");
    assert!(started.out.starts_with("1 instance ready"), "{}", started.out);
    assert!(started.out.contains("zone.9 is not: still starting after 200ms"), "{}", started.out);
    let asked = ask(&fake, &["start", "zone", "--no-wait"]);
    assert_eq!((asked.code, asked.out.as_str()), (Some(0), "asked to start 2 instances\n"));
}

#[test]
fn scale_launch_and_reload_send_what_they_are_told() {
    let fake = zones();
    assert_eq!(
        ask(&fake, &["scale", "zone", "5"]).out,
        "zone has 5 instances now, until the file's count changes\n"
    );
    assert_eq!(ask(&fake, &["scale", "zone", "default"]).code, Some(0));
    let launched = ask(&fake, &["launch", "dungeon", "--arg", "map=a=b", "--key", "k1"]);
    assert_eq!((launched.code, launched.out.as_str()), (Some(0), "dungeon.7\n"));
    assert_eq!(ask(&fake, &["reload", "--json"]).json()["message"], "2 keys changed");
    assert_eq!(
        fake.asked(),
        [
            r#"POST /v1/scale {"process":"zone","count":5}"#,
            r#"POST /v1/scale {"process":"zone","count":null}"#,
            r#"POST /v1/launch {"args":{"map":"a=b"},"key":"k1","process":"dungeon"}"#,
            "POST /v1/reload {}",
        ]
    );
}

#[test]
fn logs_and_hang_reports_are_passed_on() {
    let fake = zones();
    assert_eq!(ask(&fake, &["logs", "zone.0"]).out, "zone.0 stdout 100\nlast line");
    let json = ask(&fake, &["logs", "zone.0", "--stderr", "--lines", "5", "--json"]).out;
    let lines: Vec<Value> = json.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert_eq!(lines[0]["line"], "zone.0 stderr 5");
    assert_eq!((&lines[1]["line"], &lines[1]["stream"]), (&Value::from("last line"), &Value::from("stderr")));
    assert_eq!(ask(&fake, &["hang-report", "zone.0"]).out, "3 threads in futex_wait\n");
}

#[test]
fn events_are_sentences_or_lines_of_json() {
    let fake = zones();
    fake.happened(event("zone.0", Some(1), "started", None));
    fake.happened(event("zone.0", Some(1), "exited", Some("hang")));
    let text = ask(&fake, &["events", "zone.0"]).out;
    assert!(text.contains("zone.0     run 1 started\n"), "{text}");
    assert!(text.ends_with("run 1 has ended (hang)\n"), "{text}");
    let json = ask(&fake, &["events", "--json"]).out;
    assert_eq!(json.lines().count(), 2);
    assert!(fake.asked().contains(&"GET /v1/events?instance=zone.0".to_owned()), "{:?}", fake.asked());
}

#[test]
fn followed_events_come_once_and_at_once() {
    use std::io::{BufRead, BufReader};
    let fake = zones();
    fake.happened(event("zone.0", Some(1), "started", None));
    let mut child =
        command(&["--api", &fake.address(), "events", "-f", "--json"]).spawn().expect("the binary");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next =
        || -> Value { serde_json::from_str(&lines.next().expect("a line").expect("text")).expect("JSON") };
    assert_eq!(next()["kind"], "started");
    let deadline = Instant::now() + PATIENCE;
    while fake.followers() == 0 {
        assert!(Instant::now() < deadline, "nobody follows");
        std::thread::sleep(Duration::from_millis(5));
    }
    fake.happens(event("zone.0", Some(1), "ready", None));
    assert_eq!(next()["kind"], "ready", "the past is not told twice");
    child.kill().expect("our child");
    child.wait().expect("our child");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let fake = zones();
    let mut child = command(&["--api", &fake.address(), "ps"]).spawn().expect("the binary");
    drop(child.stdout.take());
    child.stdout = Some(command(&["--version"]).spawn().expect("the binary").stdout.take().expect("piped"));
    let ran = finish(child);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{ran:?}");
}

#[test]
fn kill_test_measures_comebacks() {
    for signal in ["KILL", "SEGV", "segv"] {
        let fake = zones();
        fake.keep_alive(Some(Duration::from_millis(20)));
        let args = ["kill-test", "zone", "--count", "4", "--signal", signal, "--seed", "7", "--json"];
        let ran = ask(&fake, &args);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let view = ran.json();
        assert_eq!((&view["missed"], &view["seed"]), (&Value::from(0), &Value::from(7)));
        let kills = view["kills"].as_array().expect("kills");
        assert_eq!(kills.len(), 4);
        for kill in kills {
            assert!(kill["run"].as_u64() > kill["run_before"].as_u64(), "{kill}");
            let (restarted, ready) = (kill["restarted_ms"].as_f64(), kill["ready_ms"].as_f64());
            assert!(restarted >= Some(20.0) && ready >= restarted, "{kill}");
        }
        assert!(view["restarted"]["min_ms"].as_f64() >= Some(20.0), "{view}");
        let announced = fake.asked().iter().filter(|a| a.starts_with("POST /v1/announce")).count();
        assert!(announced >= 4, "{:?}", fake.asked());
    }
}

#[test]
fn kill_test_chooses_the_same_victims_for_the_same_seed() {
    let victims = |seed: &str| -> Vec<String> {
        let fake = Fake::start((0..5).map(|n| instance(&format!("zone.{n}"), "ready", n)).collect());
        fake.keep_alive(Some(Duration::ZERO));
        let view = ask(&fake, &["kill-test", "--count", "6", "--seed", seed, "--json"]).json();
        let kills = view["kills"].as_array().expect("kills").clone();
        kills.iter().map(|k| k["instance"].to_string()).collect()
    };
    assert_eq!(victims("1"), victims("1"));
    assert_ne!(victims("1"), victims("2"));
}

#[test]
fn kill_test_tells_what_did_not_come_back() {
    let fake = zones();
    fake.keep_alive(None);
    let ran = ask(&fake, &["kill-test", "zone.1", "--count", "1", "--timeout", "300ms"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.out.contains("zone.1 (run 1002, pid "), "{}", ran.out);
    assert!(ran.out.contains("no new run within 300ms\n1 did not come back in time\n"), "{}", ran.out);
}

#[test]
fn a_stopped_process_that_nobody_notices_is_continued() {
    let fake = zones();
    fake.keep_alive(Some(Duration::ZERO));
    let ran = ask(
        &fake,
        &["kill-test", "zone.0", "--count", "1", "--signal", "STOP", "--timeout", "300ms", "--json"],
    );
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let pid = ran.json()["kills"][0]["pid"].as_i64().expect("a pid");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
        let state = stat.rsplit_once(") ").expect("a stat").1.chars().next();
        if state == Some('S') {
            break;
        }
        assert!(Instant::now() < deadline, "still {state:?}");
    }
}

#[test]
fn kill_test_spares_what_is_not_ready() {
    let fake = Fake::start(vec![instance("zone.0", "paused", 1)]);
    let ran = ask(&fake, &["kill-test", "zone", "--timeout", "200ms"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.contains("no such instance is ready"), "{}", ran.err);
    assert!(!fake.asked().iter().any(|a| a.contains("announce")), "{:?}", fake.asked());
}

#[test]
fn kill_test_never_strikes_a_process_that_is_not_the_runs_any_more() {
    let mut former = Command::new("sleep").arg("1000").spawn().expect("sleep");
    let mut current = Command::new("sleep").arg("1000").spawn().expect("sleep");
    let view = |child: &Child, run| {
        let pid = Some(child.id() as i32);
        bigbrother::http::view::InstanceView { pid, ..instance("zone.0", "ready", run) }
    };
    let fake = Fake::start(vec![view(&former, 1)]);
    fake.change_on_announce(view(&current, 2));
    let ran = ask(&fake, &["kill-test", "--count", "1", "--timeout", "300ms", "--json"]);
    let kill = &ran.json()["kills"][0];
    assert_eq!((&kill["pid"], &kill["run_before"]), (&Value::from(current.id()), &Value::from(2)));
    assert_eq!(former.try_wait().expect("our child"), None, "the former process was struck");
    former.kill().expect("our child");
    former.wait().expect("our child");
    assert_eq!(current.wait().expect("our child").signal(), Some(libc::SIGKILL));
}

#[test]
fn kill_test_refuses_a_hang_that_nobody_could_notice() {
    let mut deaf = instance("zone.0", "ready", 1);
    deaf.heartbeat.mode = "none".to_owned();
    let ran = ask(&Fake::start(vec![deaf]), &["kill-test", "--signal", "STOP"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("has a heartbeat that would show SIGSTOP"), "{}", ran.err);
}

#[test]
fn completions_and_manual_pages_cover_every_command() {
    let names: Vec<String> = bigbrother::cli::definition()
        .get_subcommands()
        .filter(|c| !c.is_hide_set())
        .map(|c| c.get_name().to_owned())
        .collect();
    assert!(names.len() >= 20, "{names:?}");
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(&["completions", shell]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        for name in &names {
            assert!(ran.out.contains(name.as_str()), "{shell}: {name}");
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("man");
    assert_eq!(run(&["man", "--out", out.to_str().expect("text")]).code, Some(0));
    for name in &names {
        let page = std::fs::read_to_string(out.join(format!("bigbrother-{name}.1")));
        assert!(page.is_ok_and(|p| p.contains(".TH")), "no page for {name}");
    }
    assert!(!out.join("bigbrother-demo-zone.1").exists(), "the hidden command has a page");
    assert!(run(&["man"]).out.contains(".TH bigbrother 1"));
}

/// A demo zone of its own; killed when dropped.
struct Zone {
    child: Option<Child>,
    socket: UdpSocket,
}

impl Zone {
    fn start(args: &[&str]) -> Zone {
        use std::io::{BufRead, BufReader};
        let mut child = command(&[&["demo-zone", "--port", "0", "--name", "zone.7"], args].concat())
            .spawn()
            .expect("the binary");
        let mut first = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        out.read_line(&mut first).expect("a line");
        let (_, port) = first.trim().rsplit_once(':').expect("an address");
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.connect(("127.0.0.1", port.parse().expect("a port"))).expect("a peer");
        // Put back, so that its pipe stays open.
        child.stdout = Some(out.into_inner());
        Zone { child: Some(child), socket }
    }

    fn ask(&self, word: &str, patience: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(patience)).expect("a timeout");
        self.socket.send(word.as_bytes()).expect("sent");
        let mut answer = [0; 100];
        let length = self.socket.recv(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..length]).into_owned())
    }

    fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.as_ref().expect("running").id() as i32)
    }

    fn end(mut self) -> Ran {
        finish(self.child.take().expect("running"))
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

#[test]
fn a_demo_zone_answers_and_ends_when_told() {
    let zone = Zone::start(&[]);
    let first = zone.ask("ping", PATIENCE).expect("an answer");
    let tick = |answer: &str| -> u64 {
        answer.strip_prefix("pong zone.7 ").expect("a pong").parse().expect("a number")
    };
    let deadline = Instant::now() + PATIENCE;
    while tick(&zone.ask("ping", PATIENCE).expect("an answer")) < tick(&first) + 3 {
        assert!(Instant::now() < deadline, "it does not tick");
    }
    assert_eq!(zone.ask("dance", PATIENCE).as_deref(), Some("what?"));
    nix::sys::signal::kill(zone.pid(), nix::sys::signal::Signal::SIGTERM).expect("it lives");
    assert_eq!(zone.end().code, Some(0));
}

#[test]
fn a_demo_zone_misbehaves_when_told() {
    let zone = Zone::start(&[]);
    assert_eq!(zone.ask("crash", PATIENCE).as_deref(), Some("zone.7: crash"));
    assert_eq!(zone.end().signal, Some(libc::SIGABRT));

    let zone = Zone::start(&["--fault", "exit", "--after", "0.1"]);
    assert_eq!(zone.end().code, Some(3));

    let zone = Zone::start(&["--fault", "crash", "--after", "0"]);
    assert_eq!(zone.end().signal, Some(libc::SIGABRT));

    let zone = Zone::start(&[]);
    zone.ask("leak", PATIENCE).expect("an answer");
    let resident = || -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", zone.pid())).expect("it lives");
        statm.split(' ').nth(1).expect("a field").parse().expect("a number")
    };
    let (before, deadline) = (resident(), Instant::now() + PATIENCE);
    while resident() < before + 5_000 {
        assert!(Instant::now() < deadline, "it does not grow: {} pages", resident());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_hung_demo_zone_does_nothing_any_more() {
    let zone = Zone::start(&[]);
    assert_eq!(zone.ask("hang", PATIENCE).as_deref(), Some("zone.7: hang"));
    assert_eq!(zone.ask("ping", Duration::from_millis(500)), None, "it answers");
    nix::sys::signal::kill(zone.pid(), nix::sys::signal::Signal::SIGTERM).expect("it lives");
    assert_eq!(zone.ask("ping", Duration::from_millis(300)), None, "it answers");
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", zone.pid())).expect("it lives");
    assert!(!stat.contains(") Z "), "SIGTERM ends a hung server: {stat}");
}

#[test]
fn a_demo_zone_speaks_the_process_api() {
    use std::io::{BufRead, BufReader, Write};
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("zone.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let mut command = command(&["demo-zone", "--port", "0"]);
    let child = command.env("BIGBROTHER_SOCKET", &path).spawn().expect("the binary");
    let (mut peer, _) = listener.accept().expect("a connection");
    peer.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut lines = BufReader::new(peer.try_clone().expect("a socket")).lines();
    let mut until = |wanted: &str| loop {
        let line = lines.next().unwrap_or_else(|| panic!("no {wanted}")).expect("a line");
        let message: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(message["jsonrpc"], "2.0");
        if message["method"] == wanted {
            return message;
        }
    };
    until("hello");
    until("ready");
    until("heartbeat");
    assert_eq!(until("status")["params"]["capacity"], 16);
    until("heartbeat");
    let shutdown = r#"{"jsonrpc":"2.0","method":"shutdown","params":{"reason":"update","deadline_ms":1000}}"#;
    writeln!(peer, "{shutdown}").expect("sent");
    until("stopping");
    let ran = finish(child);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.out.contains("ends: update"), "{ran:?}");
}
