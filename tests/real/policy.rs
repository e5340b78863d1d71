//! What a host refuses to run by its own file, whatever the cluster says.

use serde_json::Value;

use crate::agent::{Host, until};

/// One that may run here and one that may not; it would leave a trace.
const PROCESSES: &str = r#"
[process.good]
command = ["/bin/sleep", "100000"]
ready = { mode = "spawned", after = "50ms" }

[process.bad]
command = ["/bin/sh", "-c", "touch trace; sleep 100000"]
ready = { mode = "spawned", after = "50ms" }
restart = { backoff = { min = "50ms", max = "100ms" }, give_up = { failures = 2, within = "1m" } }
"#;

fn refused(host: &Host, why: &str) {
    until("it is refused, and given up", || {
        let (instance, events) = (host.instance("bad.0"), host.events("bad.0"));
        let told = events.iter().any(|event| {
            let detail = event["detail"].as_str().unwrap_or_default();
            event["kind"] == "spawn-failed" && detail.contains("host.policy forbids") && detail.contains(why)
        });
        if told && instance["state"] == "failed" { Ok(()) } else { Err(format!("{instance} {events:#?}")) }
    });
    assert!(!host.data("bad.0").join("trace").exists(), "it has run");
}

#[test]
fn a_program_that_the_hosts_own_file_does_not_allow_is_not_run_whoever_applies_it() {
    let policy = "[host.policy]\nprograms = [\"/bin/sleep\"]\n";
    let host = Host::start(&format!("{policy}{PROCESSES}"));
    host.ready("good.0");
    refused(&host, "program");
    // What is applied brings no policy along.
    let elsewhere = host.folder().join("elsewhere.toml");
    let changed = PROCESSES.replace("touch trace", "touch trace; true");
    host.write_to(&elsewhere, &format!("[host.policy]\nprograms = [\"/\"]\n{changed}"));
    host.ok(&["apply", elsewhere.to_str().expect("UTF-8")]);
    // It waits for what does not come.
    assert_ne!(host.run(&["start", "bad", "--timeout", "5s"]).code, Some(0));
    refused(&host, "program");
    let user = "[host.policy]\nusers = [\"games\"]\n";
    host.write(&format!("{user}{changed}"));
    host.ok(&["reload"]);
    assert_ne!(host.run(&["start", "bad", "--timeout", "5s"]).code, Some(0));
    refused(&host, "user");
    // Its own file alone lets it.
    host.write(&changed);
    host.ok(&["reload"]);
    host.ok(&["start", "bad"]);
    host.wait("bad.0", "ready", |bad: &Value| bad["state"] == "ready");
    assert!(host.data("bad.0").join("trace").exists());
}
