//! Tests of what tables and lines look like.

use super::*;
use crate::http::view::{HostCounts, HostView, PeerView, StatusView};

fn page(width: Option<u16>) -> Page {
    let now = humantime::parse_rfc3339("2026-01-02T03:03:20Z").unwrap();
    Page { width, colour: false, now }
}

fn some() -> Vec<InstanceView> {
    let mut failed = sample::instance("logd.alpha", "failed");
    failed.reason = Some("exec: No such file or directory (/opt/logd)".to_owned());
    (failed.pid, failed.started_at, failed.restarts) = (None, None, 6);
    failed.ports.clear();
    failed.status.clear();
    failed.heartbeat = crate::http::view::HeartbeatView { mode: "none".to_owned(), age_ms: None };
    failed.last_exit = None;
    vec![failed, sample::instance("zone.3", "ready")]
}

#[test]
fn ps_is_a_table() {
    assert_eq!(
        instances(&some(), &page(None)),
        "\
INSTANCE    STATE    PID  RUN  RESTARTS     UP  PORTS           BEAT    PLAYERS  LAST EXIT       HOST   REASON
logd.alpha  failed         17         6                                                          alpha  exec: No such file or directory (/opt/logd)
zone.3      ready   4711   17         2  3m20s  game 20003/udp  120 ms     3/16  hang 3m20s ago  alpha
"
    );
}

#[test]
fn ps_fits_the_page_and_keeps_the_reason() {
    assert_eq!(
        instances(&some(), &page(Some(80))),
        "\
INSTANCE    STATE    PID  RESTARTS     UP  PORTS         REASON
logd.alpha  failed               6                       exec: No such file or …
zone.3      ready   4711         2  3m20s  game 20003/…
"
    );
    for width in 16..200 {
        for line in instances(&some(), &page(Some(width))).lines() {
            assert!(line.chars().count() <= usize::from(width), "{width}: {line:?}");
        }
    }
}

#[test]
fn no_instances_is_a_sentence() {
    assert!(instances(&[], &page(None)).starts_with("no instances"));
}

#[test]
fn colours_mark_states_only_where_allowed() {
    assert!(!instances(&some(), &page(None)).contains('\x1b'));
    let coloured = instances(&some(), &Page { colour: true, ..page(None) });
    assert!(coloured.contains('\x1b') && coloured.contains("ready"), "{coloured:?}");
}

#[test]
fn a_healthy_status_has_no_complaints() {
    let healthy = sample::status();
    assert_eq!(complaints(&healthy), Vec::<String>::new());
    assert_eq!(
        status(&healthy, &page(None)),
        "\
cluster    pirates, spec revision 3, index 42
host       alpha (primary)
agent      version 0.1.0, up 2h01m
keeper     version 0.1.0, pid 99, cgroups kill-only
instances  3: 3 ready
"
    );
}

#[test]
fn a_starting_agent_says_what_it_waits_for_and_nothing_else_is_wrong() {
    let waits = "it waits for this host's keeper".to_owned();
    let starting = StatusView { keeper: None, starting: Some(waits.clone()), ..sample::status() };
    assert_eq!(complaints(&starting), [format!("the agent is starting: {waits}")]);
    assert!(status(&starting, &page(None)).contains("up 2h01m, starting\n"));
}

#[test]
fn a_host_of_a_cluster_says_how_that_stands() {
    let peer = StatusView {
        role: "peer".to_owned(),
        hosts: HostCounts { up: 3, down: 1, silent: Some(2) },
        brake: vec!["beta".parse().unwrap(), "gamma".parse().unwrap()],
        superseded: 1,
        unplaced: [("zone.9".parse().unwrap(), "no host has room".to_owned())].into(),
        term: 7,
        ..sample::status()
    };
    let text = status(&peer, &page(None));
    for line in [
        "hosts      3 up, 2 silent, 1 down; this one is a peer, term 7\n",
        "unplaced   zone.9: no host has room\n",
        "superseded 1 run (`bigbrother ps` shows them)\n",
        "unhealthy  so many hosts are silent that none is declared down: beta, gamma; ",
    ] {
        assert!(text.contains(line), "{line:?} in {text}");
    }
    let attached = StatusView {
        role: "attached".to_owned(),
        peer: Some("beta".parse().unwrap()),
        hosts: HostCounts { up: 2, down: 0, silent: None },
        ..sample::status()
    };
    let line = "hosts      2 up; this one is attached to beta, term 0\n";
    assert!(status(&attached, &page(None)).contains(line));
}

#[test]
fn of_many_instances_that_fit_nowhere_the_first_ten_are_named() {
    let told = |count: u32| {
        let of = |n| (format!("zone.{n}").parse().unwrap(), "no host has room".to_owned());
        let many = StatusView { unplaced: (0..count).map(of).collect(), ..sample::status() };
        let text = status(&many, &page(None));
        let lines = text.lines().filter(|line| line.starts_with("unplaced"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(told(0).len(), 0);
    assert_eq!(told(10).len(), 10);
    assert!(told(10)[9].starts_with("unplaced   zone.9: "), "{:?}", told(10));
    let more = told(13);
    assert_eq!((more.len(), more[10].as_str()), (11, "unplaced   3 more (`bigbrother ps` shows all)"));
}

#[test]
fn hosts_and_peers_are_tables() {
    let down = HostView {
        host: "beta".parse().unwrap(),
        up: false,
        role: "attached".to_owned(),
        silent_ms: None,
        version: None,
        ..sample::host()
    };
    assert_eq!(
        super::hosts::hosts(&[sample::host(), down], &page(None)),
        "\
HOST   STATE  ROLE      INSTANCES  HEARD  ADDRESS   VERSION  LABELS     CAPACITY   JOINED
alpha  up     primary           3    now  10.0.0.1  0.1.0    region=eu  slots=200       4
beta   down   attached          3         10.0.0.1           region=eu  slots=200       4
"
    );
    assert_eq!(
        super::hosts::peers(&[sample::peer()], &page(None)),
        "\
HOST  ROLE   HEARD  ADDRESS        INDEX  NUMBER
beta  voter     2s  10.0.0.2:7600     42       3
"
    );
}

#[test]
fn what_to_do_about_a_dead_voter_is_told_below_the_peers() {
    let dead = PeerView { suggestion: Some("start it".to_owned()), ..sample::peer() };
    let told = super::hosts::peers(&[dead, sample::peer()], &page(None));
    assert_eq!(told.lines().last(), Some("beta: start it"), "{told}");
    assert_eq!(told.lines().count(), 4, "{told}");
}

#[test]
fn without_a_primary_it_is_told_who_does_not_answer() {
    let why = "cannot connect to 10.0.0.2:7600: Connection refused".to_owned();
    let missing = PeerView { silent_ms: None, unreachable: Some(why), index: None, ..sample::peer() };
    let there = PeerView { silent_ms: Some(0), index: None, id: 4, ..sample::peer() };
    assert_eq!(
        super::hosts::peers(&[missing, there], &page(None)),
        "\
HOST  ROLE       HEARD  ADDRESS        NUMBER  REASON
beta  voter  no answer  10.0.0.2:7600       3  cannot connect to 10.0.0.2:7600: Connection refused
beta  voter        now  10.0.0.2:7600       4
"
    );
    let host = HostView { silent_ms: None, version: None, ..sample::host() };
    let table = super::hosts::hosts(&[host], &page(None));
    assert!(table.contains("no answer  10.0.0.1") && table.contains("silent"), "{table}");
    let beta = "beta".parse().unwrap();
    let status = StatusView { quorum: false, missing: vec![beta], ..sample::status() };
    let told = "there is no quorum: nothing can be changed";
    assert_eq!(complaints(&status), [format!("{told}; no answer from beta (`bigbrother peers` says why)")]);
    // It has no number yet, or nobody serves it: that says more.
    let apart = StatusView { apart: Some("missing: beta".to_owned()), ..status };
    assert_eq!(complaints(&apart), [format!("{told}; missing: beta")]);
    let starting = StatusView { starting: Some("missing: beta".to_owned()), ..apart };
    assert_eq!(complaints(&starting), ["the agent is starting: missing: beta", told]);
}

#[test]
fn every_illness_is_told() {
    let ill = StatusView {
        keeper: None,
        quorum: false,
        primary: None,
        instances: [("failed".to_owned(), 2)].into(),
        spec_drift: Some("zone: count 3 here, 5 in the cluster".to_owned()),
        ..sample::status()
    };
    assert_eq!(
        status(&ill, &page(None)),
        "\
cluster    pirates, spec revision 3, index 42
host       alpha (no primary known)
agent      version 0.1.0, up 2h01m
keeper     none
instances  2: 2 failed
drift      zone: count 3 here, 5 in the cluster
unhealthy  the agent has no keeper: nothing can be started
unhealthy  there is no quorum: nothing can be changed
unhealthy  2 instances have failed: `bigbrother ps` says why
"
    );
}

#[test]
fn a_plan_is_told_by_process() {
    assert_eq!(
        plan(&sample::plan(), &page(None)),
        "\
+ login
- arena
~ zone (restarts its instances)
    count: 40 -> 60
  login is scaled to 2 (`bigbrother scale login default` takes that back)
  zone is not scaled to 80 any more: its count in the file is another
! look first
"
    );
    assert!(sample::plan().changes_something());
    let none = PlanView { revision: 3, ..PlanView::default() };
    assert!(!none.changes_something());
    assert_eq!(plan(&none, &page(None)), "nothing would change (spec revision 3)\n");
}

#[test]
fn spans_and_ages_are_short() {
    let ages = [0, 59, 60, 3_599, 3_600, 86_399, 86_400, 700_000].map(|s| age(Duration::from_secs(s)));
    assert_eq!(ages, ["0s", "59s", "1m00s", "59m59s", "1h00m", "23h59m", "1d00h", "8d02h"]);
    assert_eq!([0.4123, 8.26, 999.0, 1_250.0].map(span), ["412 us", "8.3 ms", "999.0 ms", "1.25 s"]);
}

/// A sample of everything that `--json` prints, by its heading in docs/cli.md.
fn shapes() -> Vec<(&'static str, serde_json::Value)> {
    use crate::cli::kill_test::{Figures, KillTestView, KillView};
    use crate::cli::{declare, hosts, look, operate, wait};
    use serde_json::to_value;

    let figures = Figures::of([1.0].into_iter());
    let kill = KillView {
        instance: "zone.3".parse().unwrap(),
        pid: 1,
        at: String::new(),
        run_before: 1,
        run: None,
        restarted_ms: None,
        ready_ms: None,
        ok: true,
        detail: None,
    };
    let instance = || "zone.3".parse().unwrap();
    vec![
        ("status", to_value(sample::status())),
        ("ps", to_value(sample::instance("zone.3", "ready"))),
        ("hosts", to_value(sample::host())),
        ("peers", to_value(sample::peer())),
        ("drain", to_value(hosts::DrainedView { host: "alpha".parse().unwrap(), empty: true, running: 0 })),
        ("events", to_value(sample::event())),
        ("plan", to_value(sample::plan())),
        ("plan.changed", to_value(&sample::plan().changed[0])),
        ("check", to_value(declare::CheckView { file: String::new(), valid: true, report: None })),
        ("apply", to_value(declare::AppliedView { revision: 1, plan: sample::plan() })),
        (
            "logs",
            to_value(look::LogLineView { instance: instance(), stream: String::new(), line: String::new() }),
        ),
        ("hang-report", to_value(look::HangReportView { instance: instance(), report: String::new() })),
        ("scale", to_value(operate::ScaledView { process: "zone".parse().unwrap(), count: None })),
        ("launch", to_value(operate::LaunchedView { instance: instance() })),
        ("token", to_value(sample::token())),
        ("token.create", to_value(sample::new_token())),
        ("audit", to_value(sample::audit())),
        ("reload", to_value(operate::ReloadedView { message: String::new() })),
        (
            "restart",
            to_value(wait::OutcomeView {
                instance: instance(),
                ok: true,
                state: None,
                run_before: None,
                run: None,
                elapsed_ms: 0,
                detail: None,
            }),
        ),
        ("kill-test.kills", to_value(&kill)),
        (
            "kill-test",
            to_value(KillTestView {
                signal: String::new(),
                seed: 0,
                count: 1,
                missed: 0,
                restarted: figures,
                ready: figures,
                kills: vec![],
            }),
        ),
    ]
    .into_iter()
    .map(|(name, value)| (name, value.unwrap()))
    .collect()
}

#[test]
fn tokens_are_a_table_and_the_audit_trail_is_sentences() {
    let never = crate::http::view::TokenView {
        name: "ci".parse().unwrap(),
        expires_at: None,
        expired: false,
        ..sample::token()
    };
    let page = page(None);
    let text = access::tokens(&[sample::token(), never], &page);
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[1], ["deploy", "admin", "3m20s", "expired"]);
    assert_eq!(lines[2], ["ci", "admin", "3m20s", "never"]);
    assert_eq!(
        access::sentence(&sample::audit(), &page),
        "2026-01-02T03:00:00.000Z beta  token deploy (192.0.2.7 via alpha)  POST /v1/scale \
         {\"count\":6,\"process\":\"zone\"} {\"from\":4,\"to\":6}  → 200"
    );
    let refused = crate::http::view::AuditView {
        status: 403,
        refused: Some("role: no".to_owned()),
        request: None,
        change: None,
        missed: 7,
        ..sample::audit()
    };
    let text = access::sentence(&refused, &page);
    assert!(text.ends_with("→ 403 role: no  (7 entries before this one are not written down)"), "{text}");
}

/// docs/cli.md names every field that `--json` prints.
#[test]
fn every_json_field_is_documented() {
    let doc = include_str!("../../../docs/cli.md");
    for (name, shape) in shapes() {
        let section = section(doc, name);
        // Keys of these maps are names that users give.
        let own = |key: &str| {
            matches!(
                key,
                "request"
                    | "change"
                    | "ports"
                    | "instances"
                    | "status"
                    | "scaled"
                    | "unscaled"
                    | "unplaced"
                    | "labels"
                    | "capacity"
            )
        };
        let mut keys = Vec::new();
        collect("", &shape, &own, &mut keys);
        for key in keys {
            assert!(
                section.contains(&format!("| `{key}` |")),
                "docs/cli.md, JSON of {name}: `{key}` is missing"
            );
        }
    }
}

/// The text between `### JSON: NAME` and the next heading.
fn section<'a>(doc: &'a str, name: &str) -> &'a str {
    let heading = format!("### JSON: {name}\n");
    let start = doc.find(&heading).unwrap_or_else(|| panic!("docs/cli.md has no {heading:?}"));
    let rest = &doc[start + heading.len()..];
    &rest[..rest.find("\n#").unwrap_or(rest.len())]
}

fn collect(prefix: &str, shape: &serde_json::Value, own: &dyn Fn(&str) -> bool, keys: &mut Vec<String>) {
    let Some(fields) = shape.as_object() else { return };
    for (key, value) in fields {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        if !own(key) && key != "plan" {
            collect(&path, value, own, keys);
        }
        keys.push(path);
    }
}
