//! `/metrics` as Prometheus reads it.

use std::time::{Duration, Instant};

use bigbrother::cluster::statuses::Counts;
use bigbrother::keeper::protocol::{RunId, SpawnStep};
use bigbrother::metrics::{ClusterReading, Outcome, SavedFile, SocketFault, SpawnFault};
use bigbrother::status::Summary;

use super::pretended::{instance, snapshot};
use super::server::{DEADLINE, Server};
use crate::promtool::check_metrics;

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

/// What a host alone has none of.
const OF_MANY: [&str; 8] = [
    "bigbrother_term",
    "bigbrother_hosts",
    "bigbrother_hosts_silent",
    "bigbrother_hosts_braked",
    "bigbrother_attached_hosts",
    "bigbrother_status_taken_total",
    "bigbrother_status_sent_total",
    "bigbrother_status_messages_total",
];

#[tokio::test]
async fn metrics_pass_promtool_with_everything_above_zero() {
    let server = Server::start().await;
    let m = &server.metrics;
    let second = Duration::from_secs(1);
    m.restarted("hang", second);
    m.restarted("a cause of tomorrow", second);
    m.succeeded();
    m.hang_killed(Duration::from_millis(3));
    m.beat(second * 3, second);
    m.spawn_failed(SpawnFault::Step(SpawnStep::Exec));
    m.spawn_failed(SpawnFault::Port);
    m.logged(1000, 10);
    m.socket_refused(SocketFault::Flooded);
    m.probe_failed("tcp");
    m.stalled(second);
    m.reader_given_up();
    m.limits_unenforced(&["memory.max".into(), "io.max".into()]);
    m.keeper_lost();
    m.unsaved(SavedFile::State, true);
    m.reloaded(false);
    m.planned(Duration::from_millis(3));
    m.proposed(Outcome::Refused);
    m.proposed(Outcome::Unanswered);
    server.statuses.note([("zone.0".parse().unwrap(), RunId(7), Some(Summary::default()))]);
    server.statuses.hear_host(&"beta".parse().unwrap(), b"nonsense").unwrap_err();
    server.post("/v1/scale", r#"{"process":"zone","count":3}"#).await;
    server.get("/v1/status").await;
    server.get("/nowhere").await;

    // The busy ratio of the host is known from the second reading on, and CPU time comes in steps of 10 ms.
    let deadline = Instant::now() + DEADLINE;
    let text = loop {
        let answer = server.get("/metrics").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
        let mut zero = zero_families(&answer.body);
        // An idle machine has no load, and there is no other host.
        zero.retain(|family| family != "bigbrother_host_load1" && !OF_MANY.contains(&family.as_str()));
        if zero.is_empty() {
            break answer.body;
        }
        assert!(Instant::now() < deadline, "still zero: {zero:?}\n{}", answer.body);
        let spin = Instant::now();
        while spin.elapsed() < Duration::from_millis(50) {}
    };
    check_metrics(&text);

    for sample in [
        "bigbrother_restarts_total{cause=\"hang\"} 1\n",
        "bigbrother_restarts_total{cause=\"unknown\"} 1\n",
        "bigbrother_restarts_total{cause=\"fence\"} 0\n",
        "bigbrother_kill_to_restart_seconds_count 2\n",
        "bigbrother_successions_total 1\n",
        "bigbrother_successors 1\n",
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
        "bigbrother_unsaved{file=\"state.bin\"} 1\n",
        "bigbrother_unsaved{file=\"host.json\"} 0\n",
        "bigbrother_reloads_total{outcome=\"done\"} 0\n",
        "bigbrother_reloads_total{outcome=\"refused\"} 1\n",
        "bigbrother_instances{state=\"ready\"} 2\n",
        "bigbrother_instances{state=\"failed\"} 0\n",
        "bigbrother_supervision_loop_up 1\n",
        "bigbrother_primary 1\n",
        "bigbrother_quorum 1\n",
        "bigbrother_state_index 17\n",
        "bigbrother_directory_entries 4\n",
        "bigbrother_plan_seconds_bucket{le=\"0.005\"} 1\n",
        "bigbrother_plan_seconds_bucket{le=\"0.0025\"} 0\n",
        "bigbrother_proposals_total{outcome=\"applied\"} 1\n",
        "bigbrother_proposals_total{outcome=\"refused\"} 1\n",
        "bigbrother_proposals_total{outcome=\"unanswered\"} 1\n",
        "bigbrother_api_requests_total{route=\"/v1/status\",status=\"2xx\"} 1\n",
        "bigbrother_api_requests_total{route=\"none\",status=\"4xx\"} 1\n",
        "bigbrother_instance_memory_bytes{instance=\"zone.0\",process=\"zone\"} ",
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

#[test]
fn how_the_cluster_stands_passes_promtool() {
    let metrics = bigbrother::metrics::Metrics::new();
    let reading = ClusterReading {
        primary: true,
        quorum: true,
        term: 3,
        index: 900,
        entries: 40,
        up: 8,
        down: 2,
        silent: 4,
        braked: 5,
        attached: 6,
        status: Counts { runs: 11, taken: 12, sent: 13, messages: 14, refused: 15 },
    };
    let text = metrics.render(None, &reading);
    check_metrics(&text);
    for sample in [
        "primary 1\n",
        "quorum 1\n",
        "term 3\n",
        "state_index 900\n",
        "directory_entries 40\n",
        "hosts{state=\"up\"} 8\n",
        "hosts{state=\"down\"} 2\n",
        "hosts_silent 4\n",
        "hosts_braked 5\n",
        "attached_hosts 6\n",
        "status_runs 11\n",
        "status_taken_total 12\n",
        "status_sent_total 13\n",
        "status_messages_total 14\n",
        "status_refused_total 15\n",
    ] {
        assert!(text.contains(&format!("bigbrother_{sample}")), "no {sample:?} in\n{text}");
    }
    // Once more the same, and no more than that.
    assert!(metrics.render(None, &reading).contains("bigbrother_status_sent_total 13\n"));
    // A primary that is none any more says so.
    let text = metrics.render(None, &ClusterReading { primary: false, silent: 0, ..reading });
    assert!(
        text.contains("bigbrother_primary 0\n") && text.contains("bigbrother_hosts_silent 0\n"),
        "{text}"
    );
}
