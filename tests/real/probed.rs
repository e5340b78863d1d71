//! A program that nobody has taught anything: a command says when it is ready, and a TCP connection that it lives.

use std::fs;

use crate::agent::{Host, until};

const SERVER: &str = r#"
import os, socket, time
listener = socket.create_server(("0.0.0.0", int(os.environ["PORT"])))
wait = lambda name: [time.sleep(0.05) for _ in iter(lambda: os.path.exists(name), True)]
wait("go")
open("up", "w").close()
if not os.path.exists("deaf"):
    wait("deaf")
    listener.close()
while True:
    time.sleep(0.05)
"#;

#[test]
fn a_command_and_a_connection_each_judge_in_their_turn_and_count_their_own_failures() {
    let process = format!(
        "[process.web]\n{}ports = {{ game = \"tcp\" }}\nenv = {{ PORT = \"{{port.game}}\" }}\n\
         ready = {{ mode = \"exec\", command = [\"/usr/bin/test\", \"-e\", \"{{data}}/up\"], timeout = \"60s\" }}\n\
         heartbeat = {{ mode = \"tcp\", port = \"game\", interval = \"100ms\", timeout = \"2s\" }}\n",
        crate::python(SERVER)
    );
    let host = Host::start(&process);
    let failed = |mode: &str| host.metric("bigbrother_probe_failures_total", &format!("mode=\"{mode}\""));
    until("the command says no", || match failed("exec")? {
        count if count >= 2.0 => Ok(()),
        count => Err(format!("{count}")),
    });
    assert_eq!(failed("tcp"), Ok(0.0), "nobody was to connect yet");
    assert_eq!(host.instance("web.0")["state"], "starting");
    fs::write(host.data("web.0").join("go"), "").expect("a file");
    let ready = host.wait("web.0", "ready, and alive by its connections", |i| {
        i["state"] == "ready" && i["heartbeat"]["mode"] == "tcp" && i["heartbeat"]["age_ms"].is_u64()
    });
    assert_eq!((&ready["restarts"], failed("tcp")), (&0.into(), Ok(0.0)), "{ready}");
    let before = failed("exec");
    fs::write(host.data("web.0").join("deaf"), "").expect("a file");
    let again = host.ready_again(&ready);
    assert_eq!(again["last_exit"]["cause"], "hang", "{again}");
    assert!(failed("tcp").is_ok_and(|count| count >= 1.0), "{:?}", failed("tcp"));
    assert_eq!(failed("exec"), before, "the second life is up at once");
}
