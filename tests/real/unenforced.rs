//! Limits that a host cannot enforce: told of where they are wishes, and no start where they are conditions.

use crate::agent::{Host, until};

#[test]
fn a_limit_that_cannot_be_enforced_is_told_of_or_keeps_the_instance_away() {
    let process = |name: &str, required: bool| {
        format!(
            "[process.{name}]\ncommand = [\"/bin/sleep\", \"1000\"]\nready = {{ mode = \"spawned\" }}\n\
             heartbeat = {{ mode = \"none\" }}\nlimits = {{ memory = \"1GiB\", pids = 64, required = {required} }}\n"
        )
    };
    let mut host = Host::prepare(&(process("wish", false) + &process("condition", true)));
    host.agent_args(&["--cgroup", "none"]);
    host.start_agent();
    host.ready("wish.0");
    until("the event and both limits in the metric", || {
        let told = host.events("wish.0").into_iter().find(|event| event["kind"] == "unenforced");
        let told = told.ok_or_else(|| format!("{:?}", host.kinds("wish.0")))?;
        let named = told["detail"].as_str().is_some_and(|d| d.contains("memory") && d.contains("pids"));
        let limits = ["limit=\"memory\"", "limit=\"pids\"", "limit=\"cpu\""];
        let counted = limits.map(|limit| host.metric("bigbrother_unenforced_limits_total", limit));
        match named && counted == [Ok(1.0), Ok(1.0), Ok(0.0)] {
            true => Ok(()),
            false => Err(format!("{told}; {counted:?}")),
        }
    });
    let away = host.wait("condition.0", "kept away", |i| i["reason"].is_string());
    let why = away["reason"].as_str().unwrap_or_default();
    assert!(why.contains("cannot enforce limits.memory"), "{away}");
    assert_eq!((&away["pid"], &away["run"]), (&serde_json::Value::Null, &serde_json::Value::Null), "{away}");
}
