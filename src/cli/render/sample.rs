//! Views for tests, with every field set.

use std::collections::BTreeMap;

use crate::http::view::{
    AuditView, ChangedView, EventView, ExitView, HeartbeatView, HostCounts, HostView, InstanceView,
    KeeperView, NewTokenView, PeerView, PlanView, PortView, StatusView, TokenView,
};
use crate::spec::{InstanceId, Protocol};
use crate::state::Role;

/// An instance with a run, players and a past.
pub fn instance(id: &str, state: &str) -> InstanceView {
    let instance: InstanceId = id.parse().unwrap();
    let status = serde_json::json!({ "players": 3, "capacity": 16, "fps": 20, "map": "harbour" });
    InstanceView {
        process: instance.process.clone(),
        instance,
        host: "alpha".parse().unwrap(),
        state: state.to_owned(),
        reason: None,
        pid: Some(4711),
        run: Some(17),
        restarts: 2,
        started_at: Some("2026-01-02T03:00:00.000Z".to_owned()),
        ready_at: Some("2026-01-02T03:00:00.250Z".to_owned()),
        last_exit: Some(ExitView {
            cause: "hang".to_owned(),
            code: None,
            signal: Some("SIGKILL".to_owned()),
            at: "2026-01-02T02:59:59.990Z".to_owned(),
            detail: Some("no heartbeat for 1s".to_owned()),
        }),
        ports: BTreeMap::from([("game".to_owned(), PortView { protocol: Protocol::Udp, port: 20003 })]),
        heartbeat: HeartbeatView { mode: "native".to_owned(), age_ms: Some(120) },
        status: status.as_object().unwrap().clone(),
    }
}

/// A token that has expired.
pub fn token() -> TokenView {
    TokenView {
        name: "deploy".parse().unwrap(),
        role: Role::Admin,
        created_at: "2026-01-02T03:00:00.000Z".to_owned(),
        expires_at: Some("2026-01-02T03:01:00.000Z".to_owned()),
        expired: true,
    }
}

/// One that was just made.
pub fn new_token() -> NewTokenView {
    NewTokenView { name: "ci".parse().unwrap(), role: Role::Read, token: "bb_1".to_owned(), expires_at: None }
}

/// A change that went through another agent.
pub fn audit() -> AuditView {
    AuditView {
        at: "2026-01-02T03:00:00.000Z".to_owned(),
        host: "beta".parse().unwrap(),
        who: "token deploy".to_owned(),
        from: "192.0.2.7".to_owned(),
        via: Some("alpha".parse().unwrap()),
        what: "POST /v1/scale".to_owned(),
        request: Some(serde_json::json!({ "process": "zone", "count": 6 })),
        status: 200,
        refused: None,
        change: Some(serde_json::json!({ "from": 4, "to": 6 })),
        missed: 0,
    }
}

/// A healthy host.
pub fn status() -> StatusView {
    StatusView {
        cluster: "pirates".to_owned(),
        host: "alpha".parse().unwrap(),
        primary: Some("alpha".parse().unwrap()),
        term: 0,
        index: 42,
        quorum: true,
        role: "alone".to_owned(),
        peer: None,
        hosts: HostCounts { up: 1, down: 0, silent: Some(0) },
        brake: vec![],
        missing: vec![],
        superseded: 0,
        unplaced: BTreeMap::new(),
        broken: None,
        revision: 3,
        apart: None,
        spec_drift: None,
        version: "0.1.0".to_owned(),
        started_at: "2026-01-02T01:02:03.000Z".to_owned(),
        starting: None,
        keeper: Some(KeeperView { pid: 99, version: "0.1.0".to_owned(), cgroups: "kill-only".to_owned() }),
        instances: BTreeMap::from([("ready".to_owned(), 3), ("failed".to_owned(), 0)]),
    }
}

/// A plan with one of each.
pub fn plan() -> PlanView {
    PlanView {
        revision: 3,
        added: vec!["login".parse().unwrap()],
        removed: vec!["arena".parse().unwrap()],
        changed: vec![ChangedView {
            process: "zone".parse().unwrap(),
            restarts: true,
            changes: vec![("count".to_owned(), "40".to_owned(), "60".to_owned())],
        }],
        scaled: BTreeMap::from([("login".parse().unwrap(), 2)]),
        unscaled: BTreeMap::from([("zone".parse().unwrap(), 80)]),
        warnings: vec!["look first".to_owned()],
    }
}

/// The end of a run.
pub fn event() -> EventView {
    EventView {
        seq: 9,
        at: "2026-01-02T03:04:05.678Z".to_owned(),
        host: "alpha".parse().unwrap(),
        instance: "zone.3".parse().ok(),
        run: Some(17),
        kind: "exited".to_owned(),
        cause: Some("hang".to_owned()),
        detail: Some("no heartbeat for 1s".to_owned()),
        number: None,
    }
}

/// A host that is well.
pub fn host() -> HostView {
    HostView {
        host: "alpha".parse().unwrap(),
        up: true,
        drained: false,
        incarnation: 4,
        role: "primary".to_owned(),
        address: "10.0.0.1".to_owned(),
        agent: "10.0.0.1:7600".to_owned(),
        labels: BTreeMap::from([("region".to_owned(), "eu".to_owned())]),
        capacity: BTreeMap::from([("slots".to_owned(), 200)]),
        instances: 3,
        silent_ms: Some(120),
        version: Some("0.1.0".to_owned()),
    }
}

/// A peer that has not answered for a moment.
pub fn peer() -> PeerView {
    PeerView {
        host: "beta".parse().unwrap(),
        address: "10.0.0.2:7600".to_owned(),
        id: 3,
        role: "voter".to_owned(),
        primary: false,
        silent_ms: Some(2_500),
        unreachable: None,
        suggestion: None,
        index: Some(42),
    }
}
