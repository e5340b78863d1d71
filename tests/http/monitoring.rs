//! The alert rules and the dashboard beside the units, held to what the agent really tells.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::server::Server;

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn rules() -> PathBuf {
    file("systemd/prometheus/bigbrother.rules.yml")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn promtool(args: &[&str], path: &Path) {
    let ran = Command::new("promtool")
        .args(args)
        .arg(path)
        .output()
        .expect("promtool is needed: apt-get install --no-install-recommends prometheus");
    let said = [ran.stdout, ran.stderr].concat();
    assert!(ran.status.success(), "promtool {args:?}: {}", String::from_utf8_lossy(&said));
}

/// Every metric of Big Brother that a text speaks of.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c: char| !legal(c) && !c.is_ascii_uppercase());
    words.filter(|word| word.starts_with("bigbrother_")).map(str::to_owned).collect()
}

/// Every series that the agent tells, as Prometheus names them.
async fn told() -> BTreeSet<String> {
    let text = Server::start().await.get("/metrics").await.body;
    // The first request is counted once it is answered.
    let text = text + "bigbrother_api_requests_total bigbrother_api_request_seconds_bucket";
    metrics_in(&text)
}

#[test]
fn each_alert_is_sound_fires_in_a_test_and_says_what_to_do() {
    promtool(&["check", "rules", "--lint-fatal"], &rules());
    let tests = file("tests/prometheus/bigbrother.test.yml");
    promtool(&["test", "rules"], &tests);
    let (rules, tests) = (read(&rules()), read(&tests));
    let alerts: Vec<&str> = rules.split("- alert: ").skip(1).collect();
    assert!(alerts.len() >= 12, "{}", alerts.len());
    for alert in alerts {
        let name = alert.lines().next().unwrap();
        for key in ["expr: ", "for: ", "severity: ", "summary: \"", "description: \""] {
            assert!(alert.contains(key), "{name} has no {key}");
        }
        assert!(tests.contains(&format!("alertname: {name}\n")), "no test in which {name} fires");
    }
}

#[tokio::test]
async fn rules_and_dashboard_speak_of_metrics_that_there_are() {
    let told = told().await;
    let dashboard: Value =
        serde_json::from_str(&read(&file("systemd/prometheus/bigbrother.dashboard.json"))).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let queries: Vec<&str> = queries.map(|target| target["expr"].as_str().unwrap()).collect();
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter();
    let variables: Vec<&str> = variables.filter_map(|variable| variable["definition"].as_str()).collect();
    for text in [read(&rules()), queries.join("\n"), variables.join("\n")] {
        let spoken = metrics_in(&text);
        assert!(!spoken.is_empty(), "{text}");
        let unknown: Vec<_> = spoken.difference(&told).collect();
        assert!(unknown.is_empty(), "the agent tells nothing of {unknown:?}");
    }
    // One screen: hosts, instances, restarts, hangs, restart times, CPU and memory, the API.
    for metric in [
        "bigbrother_hosts",
        "bigbrother_instances",
        "bigbrother_restarts_total",
        "bigbrother_hang_kills_total",
        "bigbrother_kill_to_restart_seconds_bucket",
        "bigbrother_instance_cpu_seconds_total",
        "bigbrother_instance_memory_bytes",
        "bigbrother_api_request_seconds_bucket",
    ] {
        assert!(metrics_in(&queries.join("\n")).contains(metric), "no panel shows {metric}");
    }
    let low = panels
        .iter()
        .map(|panel| panel["gridPos"]["y"].as_u64().unwrap() + panel["gridPos"]["h"].as_u64().unwrap());
    assert!(low.max() <= Some(26), "it is one screen");
}
