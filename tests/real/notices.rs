//! What programs say over sd_notify besides that they are ready and alive, and what their operator sees of it.

use std::fs;

use nix::sys::signal::Signal;

use crate::agent::{Host, alive, pid, signal, until};
use crate::promtool::check_metrics;

/// Ready and beating, and then what `then` says; `first`: in the first of its lives.
fn speaker(name: &str, settings: &str, then: &str) -> String {
    let script = format!(
        r#"
import os, socket, subprocess, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
say = lambda text: notify.send(text.encode())
first = not os.path.exists("lived")
open("lived", "w").close()
{then}
while True:
    say("WATCHDOG=1")
    time.sleep(0.2)
"#
    );
    format!("[process.{name}]\n{}{settings}\n", crate::python(&script))
}

const NOTIFY: &str = "ready = { mode = \"notify\", timeout = \"30s\" }\n\
                      heartbeat = { mode = \"notify\", interval = \"100ms\", timeout = \"60s\" }";

#[test]
fn a_program_that_asks_for_it_or_falls_silent_for_the_time_it_gave_itself_is_hung() {
    let hung = [
        speaker("trigger", NOTIFY, "say('READY=1')\nif first: say('WATCHDOG=trigger'); time.sleep(1000)"),
        speaker(
            "silent",
            NOTIFY,
            "say('READY=1\\nWATCHDOG=1')\nif first: say('WATCHDOG_USEC=300000'); time.sleep(1000)",
        ),
    ];
    let host = Host::start(&hung.concat());
    for name in ["trigger.0", "silent.0"] {
        let now = host.wait(name, "back after a hang, and beating", |i| {
            i["state"] == "ready" && i["restarts"] == 1 && i["heartbeat"]["age_ms"].is_u64()
        });
        let (last, started) = (&now["last_exit"], now["started_at"].as_str().expect("started_at"));
        assert_eq!(last["cause"], "hang", "{now}");
        assert!(last["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{now}");
        // Both are of one form, so they compare as texts.
        assert!(last["at"].as_str().is_some_and(|at| at <= started), "{now}");
        let report = host.ok(&["hang-report", name]).out;
        let at = report.find(" wchan ").unwrap_or_else(|| panic!("no wchan: {report}"));
        assert!(report[at + 7..].starts_with(|c: char| c.is_alphabetic() || c == '0'), "{report}");
        let own = fs::read_to_string("/proc/self/stack").unwrap_or_default();
        assert_eq!(report.contains("[<"), own.contains("[<"), "the kernel's stack: {report}");
    }
    assert_eq!(host.metric("bigbrother_hang_kills_total", ""), Ok(2.0));
    until("lateness of beats is measured", || {
        match host.metric("bigbrother_heartbeat_lateness_seconds_count", "")? {
            count if count > 2.0 => Ok(()),
            count => Err(format!("{count}")),
        }
    });
    // Not a snapshot that was made up for it.
    check_metrics(&host.scrape());
}

#[test]
fn a_program_that_asks_for_more_time_or_reads_its_configuration_anew_is_not_hung() {
    let late = speaker(
        "late",
        &NOTIFY.replace("30s", "3s"),
        "say('EXTEND_TIMEOUT_USEC=60000000')\ntime.sleep(5)\nsay('READY=1')\n\
         say('RELOADING=1\\nMONOTONIC_USEC=1')\nsay('READY=1\\nSTATUS=loaded')",
    );
    let host = Host::start(&late);
    let ready = host.wait("late.0", "ready", |i| i["status"]["text"] == "loaded");
    assert_eq!((&ready["state"], &ready["restarts"]), (&"ready".into(), &0.into()), "{ready}");
    assert_eq!(host.kinds("late.0"), ["started", "ready"]);
}

#[test]
fn a_program_that_names_another_main_process_lives_and_ends_with_that() {
    let forks = "child = first and subprocess.Popen(['/bin/sleep', '1000'])\n\
                 say('READY=1\\nWATCHDOG=1')\n\
                 if child: say('MAINPID=%d' % child.pid)\n\
                 while child and not os.path.exists('known'): time.sleep(0.05)\n\
                 if child: os._exit(0)";
    let host = Host::start(&speaker("forks", NOTIFY, forks));
    let forked = host.ready("forks.0");
    let named = host.wait("forks.0", "known by another process", |i| {
        let name = i["pid"].as_i64().map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")));
        name.is_some_and(|name| name.is_ok_and(|name| name == "sleep\n"))
    });
    assert_eq!(named["run"], forked["run"], "{named}");
    let status = fs::read_to_string(format!("/proc/{}/status", pid(&named))).expect("it lives");
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
    let parent = parent.unwrap_or_else(|| panic!("no parent: {status}"));
    fs::write(host.data("forks.0").join("known"), "").expect("a file");
    until("the one before ends", || if alive(parent) { Err(format!("{parent}")) } else { Ok(()) });
    signal(pid(&named), Signal::SIGKILL);
    let next = host.ready_again(&named);
    assert_eq!((&next["run"], &next["restarts"]), (&2.into(), &1.into()), "{next}");
    let last = &next["last_exit"];
    assert_eq!((&last["cause"], &last["signal"]), (&"signal".into(), &"SIGKILL".into()), "{next}");
}
