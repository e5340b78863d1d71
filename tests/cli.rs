//! The real binary against a fake agent: what it asks, what it prints, how it exits.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use bigbrother::http::view::InstanceView;
use serde_json::Value;

#[path = "cli/binary.rs"]
mod binary;
#[path = "cli/demo_zone.rs"]
mod demo_zone;
#[path = "cli/fake.rs"]
mod fake;
#[path = "cli/kill_test.rs"]
mod kill_test;

use binary::{PATIENCE, ask, command, finish, run, zones};
use fake::{Fake, event, instance};

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
        &["restart", "zone", "login", "--key", "k"],
        &["restart", "zone", "login.0", "--rolling"],
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
    std::fs::write(&file, "[cluster]\nname = \"pirates\"\n").expect("a file");
    let empty = run(&["check", file.to_str().expect("text")]);
    assert_eq!(empty.code, Some(0), "{empty:?}");
    assert!(empty.out.contains("no faults, and no process: applied, it ends all"), "{}", empty.out);
    let missing = run(&["check", "/nonexistent.toml"]);
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert!(
        missing
            .err
            .contains("cannot read /nonexistent.toml (is it the cluster.toml that you mean?): No such file"),
        "{}",
        missing.err
    );
}

#[test]
fn plan_says_by_its_exit_code_whether_something_would_change() {
    let fake = zones();
    let file = fake.folder().join("cluster.toml");
    std::fs::write(&file, "[process.zone]\ncommand = [\"zone\"]\n").expect("a file");
    let same = ask(&fake, &["plan"]);
    assert_eq!((same.code, same.out.as_str()), (Some(0), "nothing would change (spec revision 3)\n"));
    std::fs::write(&file, "[process.new]\ncommand = [\"new\"]\n").expect("a file");
    let differs = ask(&fake, &["plan", "cluster.toml"]);
    assert_eq!((differs.code, differs.out.as_str()), (Some(10), "+ new\nthe spec has revision 3 now\n"));
    let json = ask(&fake, &["plan", "--json"]);
    assert_eq!((json.code, &json.json()["added"][0]), (Some(10), &Value::from("new")));
    assert!(fake.asked().iter().all(|a| a.starts_with("POST /v1/apply?dry_run=true ")), "{:?}", fake.asked());
}

#[test]
fn apply_tells_the_revision_and_guards_it() {
    let fake = zones();
    std::fs::write(fake.folder().join("c.toml"), "[process.new]\ncommand = [\"new\"]\n").expect("a file");
    let applied = ask(&fake, &["apply", "c.toml"]);
    assert_eq!((applied.code, applied.out.as_str()), (Some(0), "+ new\napplied: the spec has revision 4\n"));
    assert_eq!(fake.asked(), ["POST /v1/apply [process.new]\ncommand = [\"new\"]"]);
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
fn a_restart_of_what_does_not_run_says_so_of_each() {
    let held = |id: &str, state: &str, reason: &str| InstanceView {
        run: None,
        reason: Some(reason.to_owned()),
        ..instance(id, state, 0)
    };
    let fake = Fake::start(vec![
        instance("zone.0", "ready", 1),
        held("zone.1", "paused", ""),
        held("zone.2", "waiting", "no host has 2 of map"),
    ]);
    let ran = ask(&fake, &["restart", "zone"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    for said in [
        "1 instance restarted and ready again",
        "zone.1 is not: it is stopped, and stays so until `bigbrother start zone.1`",
        "zone.2 is not: it does not run, so there is nothing to restart: no host has 2 of map",
    ] {
        assert!(ran.out.contains(said), "{}", ran.out);
    }
    let none = ask(&fake, &["restart", "login"]);
    assert_eq!(none.code, Some(1), "{none:?}");
    assert!(none.out.contains("nothing to restart: no such instance has a run now"), "{}", none.out);
}

#[test]
fn a_restart_asked_for_again_with_its_key_tells_of_the_runs_of_the_first() {
    let fake = zones();
    let ran = ask(&fake, &["restart", "zone.1", "--key", "k", "--json"]);
    let sent = r#"POST /v1/restart {"target":{"instance":"zone.1"},"key":"k"}"#;
    assert!(fake.asked().contains(&sent.to_owned()), "{:?}", fake.asked());
    let json = ran.json();
    assert_eq!(
        (&json[0]["run_before"], &json[0]["run"], &json[0]["ok"]),
        (&1.into(), &2.into(), &true.into())
    );
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

#[test]
fn certificates_are_made_and_never_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().to_str().expect("a path");
    let made = run(&["ca", "init", "--dir", dir, "--cluster", "pirates"]);
    assert_eq!(made.code, Some(0), "{made:?}");
    assert_eq!(made.out.lines().collect::<Vec<_>>(), [format!("{dir}/ca.pem"), format!("{dir}/ca.key")]);
    let issued = run(&["ca", "issue", "alpha", "--dir", dir, "--json"]).json();
    assert_eq!(issued["cert"], format!("{dir}/alpha.pem"));
    assert_eq!(issued["key"], format!("{dir}/alpha.key"));
    let again = run(&["ca", "issue", "alpha", "--dir", dir]);
    assert_eq!(again.code, Some(1), "{again:?}");
    assert!(again.err.contains("a file that is there is never replaced"), "{}", again.err);
    assert_eq!(run(&["ca", "issue", "Not A Name", "--dir", dir]).code, Some(2));
    let none = run(&["ca", "issue", "beta", "--dir", "/nonexistent"]);
    assert!(none.err.contains("make a CA with `bigbrother ca init`"), "{}", none.err);
}
