//! What an agent has settled or begun holds for the next one: failed, done, draining.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use super::host::{Cgroups, Host, expect, until};

#[test]
fn failed_and_done_survive_the_agent_until_start() {
    let mut host = Host::new(Cgroups::Own);
    let (bad, once) = (host.witness(&["/bin/false"]), host.witness(&["/bin/true"]));
    host.write_config(&format!(
        r#"
[process.bad]
command = {bad}
restart = {{ backoff = {{ min = "10ms", max = "20ms" }}, give_up = {{ failures = 1, within = "1h" }} }}

[process.once]
command = {once}
restart = {{ policy = "never" }}
"#
    ));
    host.start();
    let both = |host: &Host| {
        until("one has failed, one is done", || {
            let (bad, once) = (host.view("bad.0")?, host.view("once.0")?);
            expect(bad.state == "failed" && once.state == "stopped", (&bad, &once))?;
            Ok((bad, once))
        })
    };
    let (bad, once) = both(&host);
    let runs = |host: &Host| (host.witnessed("bad.0").len(), host.witnessed("once.0").len());
    let before = runs(&host);
    for _ in 0..3 {
        host.kill_agent();
        host.start();
        let (bad_now, once_now) = both(&host);
        assert_eq!((&bad_now.reason, &once_now.reason), (&bad.reason, &once.reason));
    }
    assert_eq!(runs(&host), before, "nothing ran again");
    host.post("/v1/start", &json!({ "target": { "instance": "bad.0" } })).unwrap();
    until("it is tried again", || expect(runs(&host).0 > before.0, runs(&host)));
    assert_eq!(runs(&host).1, before.1);
}

/// Says hello, is ready, drains, and would go on for ever.
const DRAINER: &str = r#"
import json, os, socket, time
api = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
api.connect(os.environ["BIGBROTHER_SOCKET"])
for n, call in enumerate([("hello", {"protocol": 1, "state": "starting"}), ("ready", None), ("draining", None)]):
    message = {"jsonrpc": "2.0", "id": n, "method": call[0]}
    if call[1]: message["params"] = call[1]
    api.sendall(json.dumps(message).encode() + b"\n")
    time.sleep(0.2)
time.sleep(600)
"#;

#[test]
fn a_draining_run_goes_on_draining_and_is_stopped_in_time() {
    let mut host = Host::new(Cgroups::Own);
    let program = host.root.join("drainer");
    std::fs::write(&program, DRAINER).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let drainer = host.witness(&["/usr/bin/python3", program.to_str().unwrap()]);
    host.write_config(&format!(
        "[process.zone]\ncommand = {drainer}\nready = {{ mode = \"native\" }}\ndrain = {{ timeout = \"8s\" }}\n\
         stop = {{ timeout = \"1s\" }}\n"
    ));
    host.start();
    let draining = |host: &Host| {
        until("it drains", || {
            let view = host.view("zone.0")?;
            expect(view.state == "draining", &view)?;
            Ok(view)
        })
    };
    let before = draining(&host);
    host.kill_agent();
    host.start();
    let after = draining(&host);
    assert_eq!((after.run, after.pid), (before.run, before.pid));
    until("its time to drain is over", || {
        let view = host.view("zone.0")?;
        expect(view.run > before.run, &view)
    });
    let stopping = host.events("zone.0").into_iter().find(|event| event.kind == "stopping");
    assert_eq!(stopping.expect("it was asked").run, before.run);
}
