//! A real Prometheus beside one of three hosts, with the configuration and the rules that users are given, only faster.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, NAMES, zones};
use crate::host::{Host, PortBlock, expect, until};

/// A game that tells Prometheus how many players it has.
const METER: &str = r#"
import http.server, sys
class Metrics(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(b"game_players 3\n")
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Metrics).serve_forever()
"#;

struct Prometheus {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
    _block: PortBlock,
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap()
}

impl Prometheus {
    /// Beside the agent with this port of its API.
    fn start(api: u16) -> Prometheus {
        let asked = format!("127.0.0.1:{api}");
        Prometheus::configured("docs/operations.md", &[("127.0.0.1:7610", &asked)])
    }

    /// By the configuration of the manual, with these words in place of those.
    fn configured(manual: &str, words: &[(&str, &str)]) -> Prometheus {
        let block = PortBlock::take();
        let port = block.ports().0;
        let dir = tempfile::tempdir().unwrap();
        let manual = read(manual);
        let config = manual.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let rules = dir.path().join("bigbrother.rules.yml");
        let config = words.iter().fold(config.to_owned(), |text, (word, other)| text.replace(word, other));
        let config = config
            .replace("15s", "1s")
            .replace("10s", "1s")
            .replace("/usr/share/bigbrother/prometheus/bigbrother.rules.yml", rules.to_str().unwrap());
        fs::write(dir.path().join("prometheus.yml"), config).unwrap();
        let quick = |line: &str| match line.trim_start().starts_with("for: ") {
            true => "        for: 1s\n".to_owned(),
            false => format!("{line}\n"),
        };
        let shipped = read("systemd/prometheus/bigbrother.rules.yml");
        fs::write(&rules, shipped.lines().map(quick).collect::<String>()).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("Debian's prometheus is needed: apt-get install --no-install-recommends prometheus");
        Prometheus { child, port, dir, _block: block }
    }

    /// What the API says to a path below /api/v1.
    fn get(&self, path: &str) -> Result<Value, String> {
        let words = |e: std::io::Error| format!("{path}: {e}");
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).map_err(words)?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(words)?;
        // Of HTTP/1.0 the answer is in one piece.
        write!(stream, "GET /api/v1/{path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").map_err(words)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(words)?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let body: Value = serde_json::from_str(body).map_err(|e| format!("{path}: {e}: {answer}"))?;
        expect(body["status"] == "success", &body)?;
        Ok(body["data"].clone())
    }

    /// The value of a query that has one.
    fn query(&self, query: &str) -> Result<f64, String> {
        let found = self.get(&format!("query?query={}", encoded(query)))?;
        let value = found["result"][0]["value"][1].as_str().and_then(|value| value.parse().ok());
        value.ok_or_else(|| format!("{query}: {found}"))
    }

    /// The labels of all targets; `Err`: those that do not answer.
    fn up(&self) -> Result<Vec<Value>, String> {
        let targets = self.get("targets?state=active")?;
        let targets = targets["activeTargets"].as_array().unwrap().clone();
        let silent: Vec<&Value> = targets.iter().filter(|target| target["health"] != "up").collect();
        expect(silent.is_empty(), silent)?;
        Ok(targets.into_iter().map(|target| target["labels"].clone()).collect())
    }

    /// Alerts that fire, by name and by the host that they are about.
    fn firing(&self) -> Result<Vec<(String, String)>, String> {
        let alerts = self.get("alerts")?;
        let word =
            |alert: &Value, label: &str| alert["labels"][label].as_str().unwrap_or_default().to_owned();
        let firing = alerts["alerts"].as_array().unwrap().iter().filter(|alert| alert["state"] == "firing");
        Ok(firing.map(|alert| (word(alert, "alertname"), word(alert, "host"))).collect())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!(
                "--- prometheus\n{}",
                fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
            );
        }
    }
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { (b as char).to_string() } else { format!("%{b:02X}") })
        .collect()
}

fn with_meters(host: &Host) -> String {
    fs::write(host.root.join("meter"), METER).unwrap();
    let meter =
        host.witness(&["/usr/bin/python3", &format!("{}/meter", host.root.display()), "{port.metrics}"]);
    format!(
        "{}\n[process.meter]\ncommand = {meter}\ncount = 2\nports = {{ metrics = \"tcp\" }}\n\
         labels = {{ \"game.mode\" = \"ctf\" }}\nready = {{ mode = \"tcp\", port = \"metrics\" }}\n\
         heartbeat = {{ mode = \"none\" }}\n",
        zones(host)
    )
}

#[test]
fn a_prometheus_beside_one_agent_finds_all_hosts_and_games_and_an_alert_tells_of_a_lost_host() {
    let mut cluster = Cluster::start(with_meters);
    let prometheus = Prometheus::start(cluster.hosts[0].api.unwrap());
    let labels = until("everything is found and answers", || {
        let labels = prometheus.up()?;
        expect(labels.len() == 5, &labels)?;
        Ok(labels)
    });
    let named = |label: &str| {
        let mut found: Vec<&str> = labels.iter().filter_map(|labels| labels[label].as_str()).collect();
        found.sort_unstable();
        found
    };
    assert_eq!(named("instance"), ["alpha", "beta", "gamma", "meter.0", "meter.1"]);
    assert_eq!((named("process"), named("game_mode")), (vec!["meter"; 2], vec!["ctf"; 2]));
    assert_eq!(named("cluster"), ["test"; 5]);

    // The figures come from the hosts that they are about.
    let holds = |query: &str, value: f64| {
        until(query, || expect(prometheus.query(query)? == value, prometheus.query(query)));
    };
    holds("sum(bigbrother_primary)", 1.0);
    let primary = NAMES[cluster.primary()];
    holds(&format!("bigbrother_primary{{host=\"{primary}\"}}"), 1.0);
    holds("min(bigbrother_hosts{state=\"up\"})", 3.0);
    holds("sum(bigbrother_instances{state=\"ready\"})", 8.0);
    holds("count(bigbrother_instance_memory_bytes{process=\"zone\"})", 6.0);
    holds("sum(game_players{process=\"meter\"})", 6.0);
    holds("min(bigbrother_directory_entries)", 8.0);
    holds("sum(bigbrother_plan_seconds_count) > bool 0", 1.0);
    each_panel_can_be_drawn(&prometheus);
    until("nothing is wrong", || {
        let firing = prometheus.firing()?;
        expect(firing.is_empty(), firing)
    });

    // Not the one beside which Prometheus runs.
    cluster.hosts[1].power_off();
    let about = |alert: &str, host: &str| {
        until(alert, || {
            let firing = prometheus.firing()?;
            expect(firing.contains(&(alert.to_owned(), host.to_owned())), firing)
        });
    };
    about("BigBrotherAgentUnreachable", "beta");
    about("BigBrotherHostDown", "");
    cluster.hosts[1].start();
    until("it is over", || {
        let firing = prometheus.firing()?;
        let told = firing
            .iter()
            .any(|(alert, _)| alert == "BigBrotherAgentUnreachable" || alert == "BigBrotherHostDown");
        expect(!told, firing)
    });
}

/// Prometheus understands each query of the dashboard.
fn each_panel_can_be_drawn(prometheus: &Prometheus) {
    let dashboard: Value =
        serde_json::from_str(&read("systemd/prometheus/bigbrother.dashboard.json")).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            let query =
                query.replace("$__rate_interval", "1m").replace("$cluster", ".*").replace("$host", ".*");
            let drawn = prometheus.get(&format!("query?query={}", encoded(&query)));
            drawn.unwrap_or_else(|error| panic!("{}: {error}", panel["title"]));
        }
    }
}

#[test]
fn prometheus_scrapes_over_tls_with_a_token_as_the_manual_says() {
    let cluster = Cluster::guarded(3, zones);
    let root = &cluster.hosts[0].root;
    let token = root.join("prometheus.token");
    fs::write(&token, cluster.ok(0, &["token", "create", "prometheus", "--role", "read"]).out).unwrap();
    let asked = format!("127.0.0.1:{}", cluster.hosts[0].api.unwrap());
    let prometheus = Prometheus::configured(
        "docs/security.md",
        &[
            ("10.0.0.1:7610", &asked),
            ("/etc/prometheus/bigbrother-ca.pem", root.join("ca/ca.pem").to_str().unwrap()),
            ("/etc/prometheus/bigbrother.token", token.to_str().unwrap()),
            ("scrape_configs:", "global: { scrape_interval: 1s }\nscrape_configs:"),
        ],
    );
    until("all hosts are found and answer", || {
        let labels = prometheus.up()?;
        expect(labels.len() == 3, &labels)
    });
    // What the manual shows of the audit trail.
    cluster.ok(1, &["scale", "zone", "5"]);
    let manual = read("docs/security.md");
    let filter =
        manual.split("bigbrother audit --json | jq '").nth(1).and_then(|rest| rest.split('\'').next());
    let filter = filter.unwrap().replace("token deploy", "unix uid=0");
    let audit = cluster.ok(2, &["audit", "--json"]).out;
    let mut jq = Command::new("jq")
        .args(["-r", &format!("{filter} | .what")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("jq is needed: apt-get install jq");
    jq.stdin.take().unwrap().write_all(audit.as_bytes()).unwrap();
    let said = String::from_utf8(jq.wait_with_output().unwrap().stdout).unwrap();
    assert!(said.lines().any(|what| what == "POST /v1/scale"), "{said}");
}
