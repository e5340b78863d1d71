//! `/metrics` as Prometheus reads it.

use std::io::Write;
use std::process::{Command as Program, Stdio};
use std::time::{Duration, Instant};

use bigbrother::keeper::protocol::SpawnStep;
use bigbrother::metrics::{SocketFault, SpawnFault};
use bigbrother::spec::Probe;

use super::pretended::{instance, snapshot};
use super::server::{DEADLINE, Server};

/// Families of which no sample is above zero.
fn zero_families(text: &str) -> Vec<String> {
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let families = families.map(|line| line.split(' ').next().unwrap());
    let above_zero = |family: &&str| {
        let mut samples = text.lines().filter(|line| !line.starts_with('#') && line.starts_with(family));
        samples.any(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() > 0.0)
    };
    families.filter(|family| !above_zero(family)).map(str::to_owned).collect()
}

fn promtool(text: &str) {
    let mut tool = Program::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is needed: apt-get install --no-install-recommends prometheus");
    tool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let said = tool.wait_with_output().unwrap();
    let complaints =
        format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success() && complaints.is_empty(), "promtool: {complaints}\n{text}");
}

#[tokio::test]
async fn metrics_pass_promtool_with_everything_above_zero() {
    let server = Server::start().await;
    let m = &server.metrics;
    let second = Duration::from_secs(1);
    let probe = Probe::Tcp { port: "game".into() };
    m.restarted("hang", second);
    m.restarted("a cause of tomorrow", second);
    m.hang_killed(Duration::from_millis(3));
    m.beat(second * 3, second);
    m.spawn_failed(SpawnFault::Step(SpawnStep::Exec));
    m.spawn_failed(SpawnFault::Port);
    m.logged(1000, 10);
    m.socket_refused(SocketFault::Flooded);
    m.probe_failed(&probe);
    m.stalled(second);
    m.limits_unenforced(&["memory.max".into(), "io.max".into()]);
    m.keeper_lost();
    server.get("/v1/status").await;
    server.get("/nowhere").await;

    // The busy ratio of the host is known from the second reading on, and CPU time comes in steps of 10 ms.
    let deadline = Instant::now() + DEADLINE;
    let text = loop {
        let answer = server.get("/metrics").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
        let mut zero = zero_families(&answer.body);
        // An idle machine has no load.
        zero.retain(|family| family != "bigbrother_host_load1");
        if zero.is_empty() {
            break answer.body;
        }
        assert!(Instant::now() < deadline, "still zero: {zero:?}\n{}", answer.body);
        let spin = Instant::now();
        while spin.elapsed() < Duration::from_millis(50) {}
    };
    promtool(&text);

    for sample in [
        "bigbrother_restarts_total{cause=\"hang\"} 1\n",
        "bigbrother_restarts_total{cause=\"unknown\"} 1\n",
        "bigbrother_restarts_total{cause=\"fence\"} 0\n",
        "bigbrother_kill_to_restart_seconds_count 2\n",
        "bigbrother_hang_kill_lateness_seconds_bucket{le=\"0.005\"} 1\n",
        "bigbrother_heartbeat_lateness_seconds_sum 2\n",
        "bigbrother_spawn_failures_total{step=\"exec\"} 1\n",
        "bigbrother_spawn_failures_total{step=\"port\"} 1\n",
        "bigbrother_log_dropped_bytes_total 10\n",
        "bigbrother_process_socket_errors_total{kind=\"flooded\"} 1\n",
        "bigbrother_probe_failures_total{mode=\"tcp\"} 1\n",
        "bigbrother_agent_stall_seconds_total 1\n",
        "bigbrother_unenforced_limits_total{limit=\"memory\"} 1\n",
        "bigbrother_unenforced_limits_total{limit=\"other\"} 1\n",
        "bigbrother_instances{state=\"ready\"} 2\n",
        "bigbrother_instances{state=\"failed\"} 0\n",
        "bigbrother_supervision_loop_up 1\n",
        "bigbrother_api_requests_total{route=\"/v1/status\",status=\"2xx\"} 1\n",
        "bigbrother_api_requests_total{route=\"none\",status=\"4xx\"} 1\n",
        "bigbrother_instance_memory_bytes{instance=\"zone.0\"} ",
        "bigbrother_own_resident_memory_bytes{part=\"keeper\"} ",
    ] {
        assert!(text.contains(sample), "no {sample:?} in\n{text}");
    }

    // What is gone is gone from the next scrape.
    server.snapshot.send_replace(Some(snapshot(vec![instance("zone.1", "ready", None)])));
    let text = server.get("/metrics").await.body;
    assert!(!text.contains("zone.0"), "{text}");
    assert!(text.contains("bigbrother_instances{state=\"ready\"} 1\n"), "{text}");
}
