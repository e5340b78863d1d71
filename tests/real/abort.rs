//! `on_hang = "abort"`: a hung program leaves evidence of its own before it dies, and has a bounded time for it.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::agent::{Host, alive, pid, signal, until};
use crate::{python, zone};

/// Beats until the file `mute.RUN` is there. What it does with SIGABRT is up to the test.
const BEATER: &str = r#"
import os, signal, socket, time
run = os.environ["BIGBROTHER_RUN"]
def evidence(number, frame):
    with open("evidence." + run, "w") as file: file.write("what it was doing")
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
    os.abort()
signal.signal(signal.SIGABRT, ON_ABORT)
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
while not os.path.exists("mute." + run):
    notify.sendto(b"READY=1\nWATCHDOG=1", os.environ["NOTIFY_SOCKET"])
    time.sleep(0.05)
while True: time.sleep(60)
"#;

const TWENTY_SECONDS: &str = "20s";

fn host(on_abort: &str, abort_timeout: &str) -> Host {
    let program = python(&BEATER.replace("ON_ABORT", on_abort));
    Host::start(&format!(
        "[process.zone]\n{program}ready = {{ mode = \"notify\" }}\n\
         heartbeat = {{ mode = \"notify\", interval = \"200ms\", timeout = \"1s\", on_hang = \"abort\", \
         abort_timeout = \"{abort_timeout}\" }}\n"
    ))
}

fn beating(host: &Host) -> Value {
    host.wait("zone.0", "ready and beating", |i| i["state"] == "ready" && !i["heartbeat"]["age_ms"].is_null())
}

fn silence(host: &Host, run: &Value) {
    fs::write(host.data("zone.0").join(format!("mute.{run}")), "").expect("a file");
}

/// The next run, and how long the old one lived on after it was found to hang.
fn replaced(host: &Host, old: &Value) -> (Value, Duration) {
    let new = host.ready_again(old);
    assert_eq!(new["last_exit"]["cause"], "hang", "{new}\n{}", host.story());
    assert!(!alive(pid(old)));
    let events = host.events("zone.0");
    let at = |kind: &str| {
        let event = events.iter().find(|e| e["kind"] == kind && e["run"] == old["run"]);
        let at = event.and_then(|e| e["at"].as_str()).unwrap_or_else(|| panic!("no {kind} in {events:#?}"));
        humantime::parse_rfc3339(at).expect("a time")
    };
    (new, at("exited").duration_since(at("hang")).expect("the end comes after the hang"))
}

fn assert_evidence(host: &Host, old: &Value) {
    let (new, took) = replaced(host, old);
    assert_eq!(new["last_exit"]["signal"], "SIGABRT", "{new}");
    let file = host.data("zone.0").join(format!("evidence.{}", old["run"]));
    assert_eq!(fs::read_to_string(&file).unwrap_or_default(), "what it was doing", "{}", file.display());
    assert!(took < Duration::from_secs(20), "it died by itself, yet {took:?} were waited for");
}

#[test]
fn a_silent_program_writes_its_evidence_and_is_replaced_at_its_end() {
    let host = host("evidence", TWENTY_SECONDS);
    let old = beating(&host);
    silence(&host, &old["run"]);
    assert_evidence(&host, &old);
}

/// A stopped process takes no SIGABRT before it is continued.
#[test]
fn a_stopped_program_is_continued_to_write_its_evidence() {
    let host = host("evidence", TWENTY_SECONDS);
    let old = beating(&host);
    signal(pid(&old), Signal::SIGSTOP);
    assert_evidence(&host, &old);
}

#[test]
fn a_program_that_does_not_heed_the_abort_is_killed_after_its_time() {
    let host = host("signal.SIG_IGN", "1500ms");
    let old = beating(&host);
    silence(&host, &old["run"]);
    let (new, took) = replaced(&host, &old);
    assert_eq!(new["last_exit"]["signal"], "SIGKILL", "{new}");
    // Not before its time, and not after the default's.
    let time = Duration::from_millis(1_490)..Duration::from_secs(8);
    assert!(time.contains(&took), "killed {took:?} after the hang was found\n{}", host.story());
}

#[test]
fn an_aborted_program_without_a_handler_leaves_a_core() {
    let host = Host::start(&format!(
        "[process.zone]\n{}limits = {{ core = \"1GiB\" }}\nheartbeat = {{ mode = \"native\", interval = \"200ms\", \
         timeout = \"1s\", on_hang = \"abort\", abort_timeout = \"20s\" }}\n",
        zone(&[])
    ));
    let old = beating(&host);
    signal(pid(&old), Signal::SIGSTOP);
    let (new, _) = replaced(&host, &old);
    assert_eq!(new["last_exit"]["signal"], "SIGABRT", "{new}");
    let events = host.events("zone.0");
    let told =
        |e: &Value| e["kind"] == "exited" && e["detail"].as_str().is_some_and(|d| d.contains("core left"));
    assert!(events.iter().any(told), "{events:#?}");
    // Where it lies is this machine's own setting; by default in the folder of the process.
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("a pattern");
    if !pattern.starts_with('|') && !pattern.contains('/') && !pattern.contains('%') {
        until("a core file", || {
            let files: Vec<_> = fs::read_dir(host.data("zone.0")).expect("its folder").flatten().collect();
            let core = files.iter().find(|f| f.file_name().to_string_lossy().starts_with(pattern.trim()));
            match core.and_then(|file| file.metadata().ok()) {
                Some(meta) if meta.len() > 0 => Ok(()),
                seen => Err(format!("{seen:?} of {files:?}")),
            }
        });
    }
}
