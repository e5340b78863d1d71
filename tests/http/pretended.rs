//! What stands behind the API under test: a pretended agent of a host with two zones and a login server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bigbrother::agent::handle::{HostRequest, HostSnapshot, Proposal};
use bigbrother::client::Player;
use bigbrother::http::view::{EventView, ExitView, HeartbeatView, InstanceView, KeeperView, PlayersView};
use bigbrother::keeper::protocol::RunId;
use bigbrother::spec::*;
use bigbrother::state::{Command, Entry, Host, HostFacts, Leader, Placement, Rejected, Response, State};
use tokio::sync::{mpsc, watch};

/// What reached the agent.
#[derive(Debug, PartialEq)]
pub enum Asked {
    Snapshot,
    Restart(Vec<String>),
    Announce(String, String),
    Proposed(Command),
}

pub fn process(population: Population, logs: Logs) -> Process {
    let second = Duration::from_secs(1);
    Process {
        command: vec!["/bin/true".into()],
        population,
        ports: BTreeMap::new(),
        user: None,
        group: None,
        working_dir: None,
        env: BTreeMap::new(),
        umask: 0o022,
        nice: 0,
        ignore_sigpipe: true,
        ready: Ready { mode: ReadyMode::Native, timeout: second },
        heartbeat: Heartbeat {
            mode: HeartbeatMode::Native,
            interval: second,
            timeout: second * 5,
            on_hang: OnHang::Kill,
            abort_timeout: second,
        },
        restart: Restart {
            policy: RestartPolicy::Always,
            backoff: None,
            healthy_after: second,
            give_up: None,
        },
        stop: Stop { signal: 15, timeout: second },
        drain: Drain { timeout: second },
        limits: Limits {
            memory: None,
            cpu_milli: None,
            pids: None,
            files: None,
            core: None,
            required: false,
        },
        placement: PlacementPolicy {
            labels: BTreeMap::new(),
            strategy: Strategy::Spread,
            max_per_host: None,
            needs: BTreeMap::new(),
        },
        update: Update { max_unavailable: 1, when_empty: false, deadline: None },
        after: vec![],
        on_partition: OnPartition::Keep,
        logs,
        build: None,
        launch: vec![],
        labels: BTreeMap::new(),
    }
}

pub fn state() -> State {
    let files = Logs::Files { size: 1 << 20, files: 3 };
    let mut state = State { index: 17, revision: 4, ..State::default() };
    let processes = [
        ("zone", process(Population::Count(2), files.clone())),
        ("login", process(Population::PerHost, Logs::Journald)),
        ("dungeon", process(Population::OnDemand { max: 1 }, files)),
    ];
    for (name, process) in processes {
        let role = if name == "login" { "door" } else { "ground" };
        let labels = BTreeMap::from([("role".to_owned(), role.to_owned())]);
        state.spec.processes.insert(name.parse().unwrap(), Process { labels, ..process }.into());
    }
    let host: HostName = "alpha".parse().unwrap();
    let placement = Placement { host, generation: 1, hash: Default::default() };
    state.placements.insert("zone.2".parse().unwrap(), placement);
    let entry = |host: &str, run, started, ready| Entry {
        host: host.parse().unwrap(),
        run: RunId(run),
        hash: Default::default(),
        address: "10.0.0.1".into(),
        ports: (&BTreeMap::from([("game".to_owned(), (Protocol::Udp, 7000 + u16::try_from(run).unwrap()))]))
            .into(),
        started,
        ready,
    };
    for (id, entry) in [
        ("zone.0", entry("alpha", 7, 9, Some(10))),
        ("zone.1", entry("beta", 1, 11, None)),
        ("zone.2", entry("alpha", 2, 8, Some(12))),
        ("login.beta", entry("beta", 9, 13, Some(14))),
    ] {
        state.directory.insert(id.parse().unwrap(), entry);
    }
    let leader = Leader {
        instance: "zone.2".parse().unwrap(),
        host: "alpha".parse().unwrap(),
        run: RunId(2),
        token: 12,
    };
    state.leaders.insert("zone".parse().unwrap(), leader);
    for name in ["alpha", "beta"] {
        let facts = HostFacts::default();
        let host =
            Host { incarnation: 1, facts, up: true, planned: true, drained: false, last_seq: 0, down_ms: 0 };
        state.hosts.insert(name.parse().unwrap(), host);
    }
    state
}

pub fn instance(id: &str, state: &str, pid: Option<i32>) -> InstanceView {
    let instance: InstanceId = id.parse().unwrap();
    InstanceView {
        process: instance.process.clone(),
        instance,
        host: "alpha".parse().unwrap(),
        state: state.into(),
        reason: None,
        pid,
        run: Some(7),
        restarts: 1,
        started_at: Some("2026-01-01T00:00:00Z".into()),
        ready_at: None,
        last_exit: Some(ExitView {
            cause: "hang".into(),
            code: None,
            signal: Some("SIGKILL".into()),
            at: "2026-01-01T00:00:00Z".into(),
            detail: None,
        }),
        ports: BTreeMap::new(),
        heartbeat: HeartbeatView { mode: "native".into(), age_ms: Some(12) },
        status: serde_json::Map::new(),
    }
}

pub fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap()
}

pub fn snapshot(instances: Vec<InstanceView>) -> Arc<HostSnapshot> {
    let keeper = KeeperView { pid: own_pid(), version: "0.1.0".into(), cgroups: "kill-only".into() };
    Arc::new(HostSnapshot { instances, keeper: Some(keeper), successors: 1, spec_drift: None })
}

pub fn two_zones() -> Arc<HostSnapshot> {
    snapshot(vec![
        instance("login.alpha", "ready", None),
        instance("zone.0", "ready", Some(own_pid())),
        instance("zone.1", "backoff", None),
    ])
}

pub fn event(seq: u64, instance: &str) -> EventView {
    EventView {
        seq,
        at: "2026-01-01T00:00:00Z".into(),
        host: "alpha".parse().unwrap(),
        instance: instance.parse().ok(),
        run: Some(1),
        kind: "started".into(),
        cause: None,
        detail: None,
        number: None,
    }
}

/// The recent events of the pretended agent.
pub fn recent(of: Option<&InstanceId>) -> Vec<EventView> {
    let all = [event(1, "zone.0"), event(2, "zone.1"), event(3, "zone.0")];
    all.into_iter().filter(|e| of.is_none_or(|id| e.instance.as_ref() == Some(id))).collect()
}

pub fn applied(command: &Command) -> Result<Response, Rejected> {
    let name = |n: &ProcessName| n.as_str().to_owned();
    match command {
        Command::ApplySpec { expected_revision: Some(expected), .. } if *expected != 4 => {
            Err(Rejected::Revision { expected: *expected, found: 4 })
        }
        Command::ApplySpec { .. } => Ok(Response::Revision(5)),
        Command::Scale { process, .. } if name(process) != "zone" => {
            Err(Rejected::NotCounted(process.clone()))
        }
        Command::Launch { process, .. } if name(process) != "dungeon" => {
            Err(Rejected::NotOnDemand(process.clone()))
        }
        Command::Launch { process, key: Some(key), .. } if key == "second" => {
            Err(Rejected::Full { process: process.clone(), max: 1 })
        }
        Command::Launch { .. } => Ok(Response::Launched("dungeon.7".parse().unwrap())),
        _ => Ok(Response::Done),
    }
}

pub fn players(id: &InstanceId) -> PlayersView {
    let player = |name: &str| Player { name: name.into(), ..Player::default() };
    PlayersView {
        instance: id.clone(),
        host: "alpha".parse().unwrap(),
        run: 7,
        players: Some(3),
        player_list: vec![player("ann"), player("bob")],
        truncated: true,
    }
}

pub async fn pretend(
    mut requests: mpsc::Receiver<HostRequest>,
    mut proposals: mpsc::Receiver<Proposal>,
    mut snapshot: watch::Receiver<Option<Arc<HostSnapshot>>>,
    asked: mpsc::UnboundedSender<Asked>,
) {
    loop {
        tokio::select! {
            Some(request) = requests.recv() => match request {
                HostRequest::Snapshot(reply) => {
                    asked.send(Asked::Snapshot).unwrap();
                    let now = snapshot.wait_for(Option::is_some).await.unwrap().clone().unwrap();
                    let _ = reply.send(now);
                }
                HostRequest::Events(of, reply) => {
                    let _ = reply.send(recent(of.as_ref()));
                }
                HostRequest::Restart(ids, reply) => {
                    asked.send(Asked::Restart(ids.iter().map(ToString::to_string).collect())).unwrap();
                    let _ = reply.send(());
                }
                HostRequest::Announce(id, text, reply) => {
                    asked.send(Asked::Announce(id.to_string(), text)).unwrap();
                    let _ = reply.send(());
                }
                HostRequest::Players(id, reply) => {
                    let _ = reply.send((id.to_string() == "zone.0").then(|| players(&id)));
                }
                HostRequest::HangReport(id, reply) => {
                    let report = (id.to_string() == "zone.1").then(|| "wchan: futex_wait\n".to_owned());
                    let _ = reply.send(report);
                }
                HostRequest::Reload(reply) => {
                    let _ = reply.send(Err("cluster.toml:3:1: unknown key".into()));
                }
            },
            Some(Proposal { command, reply }) = proposals.recv() => {
                let answer = applied(&command);
                asked.send(Asked::Proposed(command)).unwrap();
                let _ = reply.send(answer.map_err(Into::into));
            }
            else => return,
        }
    }
}
