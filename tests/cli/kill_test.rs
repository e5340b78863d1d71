//! `kill-test` against a fake agent that keeps real processes alive.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::binary::{PATIENCE, ask, zones};
use crate::fake::{Fake, instance};

/// A process that does nothing; killed when dropped.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Sleeper {
        Sleeper(Command::new("sleep").arg("1000").spawn().expect("sleep"))
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
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
    let (mut former, mut current) = (Sleeper::start(), Sleeper::start());
    let view = |sleeper: &Sleeper, run| {
        let pid = Some(sleeper.0.id() as i32);
        bigbrother::http::view::InstanceView { pid, ..instance("zone.0", "ready", run) }
    };
    let fake = Fake::start(vec![view(&former, 1)]);
    fake.change_on_announce(view(&current, 2));
    let ran = ask(&fake, &["kill-test", "--count", "1", "--timeout", "300ms", "--json"]);
    let kill = &ran.json()["kills"][0];
    assert_eq!((&kill["pid"], &kill["run_before"]), (&Value::from(current.0.id()), &Value::from(2)));
    assert_eq!(former.0.try_wait().expect("our child"), None, "the former process was struck");
    assert_eq!(current.0.wait().expect("our child").signal(), Some(libc::SIGKILL));
}

#[test]
fn kill_test_refuses_a_hang_that_nobody_could_notice() {
    let mut deaf = instance("zone.0", "ready", 1);
    deaf.heartbeat.mode = "none".to_owned();
    let ran = ask(&Fake::start(vec![deaf]), &["kill-test", "--signal", "STOP"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("has a heartbeat that would show SIGSTOP"), "{}", ran.err);
}
