//! What is said between agents and written into the log, byte by byte: an older program in the same cluster reads it.
//!
//! Of handshake, frames, sessions and tunnel the bytes stand beside their types; golden.txt has all that remains. A line
//! that differs is a message that an agent of the release before takes for another one, or for none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bigbrother::cluster::node::Watched;
use bigbrother::cluster::node::identity::{Founder, Founding, Identity, Probed};
use bigbrother::cluster::raft::change::{Recent, Roll};
use bigbrother::cluster::raft::membership::{PeersChange, PeersRefused};
use bigbrother::cluster::raft::{
    Change, Entry, LeaderId, LogId, Outcome, Peer, SnapshotMeta, StoredMembership, Types, Vote,
};
use bigbrother::cluster::wire::{Purpose, Refusal, decode, encode};
use bigbrother::config::{Context, parse};
use bigbrother::keeper::protocol::{End, RunId};
use bigbrother::plan::liveness::{Attendance, Confirm, Report};
use bigbrother::spec::fingerprint::SpecHash;
use bigbrother::spec::{InstanceId, ProcessName, Protocol, Spec};
use bigbrother::state::{
    Command, Ended, Envelope, Event, EventKind, HostFacts, PlaceChange, Rejected, Response, Rest, Role,
    RunFact, Settings, State, Target, Version,
};
use bigbrother::status::{Delta, Fact, Place, Summary, Told};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{EntryPayload, Membership, TokioRuntime};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::peers::name;

type C = Types<TokioRuntime>;

const KNOWN: &str = include_str!("golden.txt");

/// A line of golden.txt for each message, with what it says.
#[derive(Default)]
struct Lines(Vec<String>);

impl Lines {
    fn add<T: Serialize + DeserializeOwned>(&mut self, title: &str, said: T) {
        let bytes = encode(&said).unwrap();
        let read = decode::<T>(&bytes).unwrap_or_else(|error| panic!("{title} is not read: {error}"));
        assert_eq!(encode(&read).unwrap(), bytes, "{title} is not read as it was written");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.0.push(format!("{title} {hex}"));
    }

    fn add_all<T: Serialize + DeserializeOwned>(&mut self, title: &str, all: impl IntoIterator<Item = T>) {
        all.into_iter().enumerate().for_each(|(number, said)| self.add(&format!("{title}.{number}"), said));
    }
}

#[test]
fn the_bytes_of_all_that_agents_say_are_these() {
    let mut lines = Lines::default();
    lines.add_all("command", commands());
    lines.add_all("response", responses());
    lines.add_all("rejected", rejections());
    lines.add_all("outcome", [Outcome::Nothing, Outcome::State(Ok(Response::Done)), Outcome::Number(4)]);
    state(&mut lines);
    raft(&mut lines);
    peers(&mut lines);
    hosts(&mut lines);
    let known: Vec<&str> = KNOWN.lines().collect();
    let other: Vec<&String> = lines.0.iter().filter(|line| !known.contains(&line.as_str())).collect();
    let gone: Vec<&&str> = known.iter().filter(|line| !lines.0.iter().any(|said| said == **line)).collect();
    assert!(
        other.is_empty() && gone.is_empty(),
        "what agents of the release before say or understand is said otherwise now: it needs a version of its own \
         (cluster/wire/hello.rs, state::Version). Gone:\n{gone:#?}\nnow in golden.txt:\n{}",
        other.iter().map(|line| format!("{line}\n")).collect::<String>()
    );
}

fn zone(number: u32) -> InstanceId {
    format!("zone.{number}").parse().unwrap()
}

fn process(text: &str) -> ProcessName {
    text.parse().unwrap()
}

/// Each setting of a process is other than its default.
fn spec() -> Spec {
    let text = r#"
[process.zone]
command = ["/opt/game/zone", "--port", "{port.game}"]
count = 3
ports = { game = "udp", http = "tcp" }
env = { NAME = "{instance}" }
labels = { mode = "ctf" }
ready = { mode = "tcp", port = "http", timeout = "30s" }
heartbeat = { mode = "native", interval = "1s", timeout = "5s" }
restart = { policy = "on-failure", backoff = { min = "100ms", max = "30s" }, healthy_after = "60s", give_up = { failures = 5, within = "10m" } }
stop = { signal = "SIGINT", timeout = "7s" }
drain = { timeout = "2h" }
limits = { memory = "2GiB", cpu = 1.5, pids = 256, files = 65536, required = false }
placement = { labels = { region = "eu" }, strategy = "pack", max_per_host = 8, needs = { slots = 2 } }
update = { max_unavailable = 2, when_empty = true, deadline = "2h" }
on_partition = "stop"
logs = { size = "10MiB", files = 5 }
build = "1.4.2"
[process.dungeon]
command = ["/opt/game/dungeon", "{arg.map}"]
on_demand = { max = 4 }
after = ["zone"]
[process.logd]
command = ["/opt/game/logd"]
per_host = true
"#;
    let context = Context { hostname: "alpha".to_owned(), host_override: None };
    parse(text, "golden.toml", &context).unwrap_or_else(|faults| panic!("{}", faults.render(false))).spec
}

fn facts() -> HostFacts {
    let pair = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
    HostFacts {
        machine_id: "m".to_owned(),
        address: "10.0.0.1".to_owned(),
        agent: "10.0.0.1:7600".to_owned(),
        labels: pair("region", "eu"),
        capacity: [("slots".to_owned(), 200)].into(),
        enforces: vec!["memory".to_owned()],
        version: Version(1),
    }
}

fn ports() -> BTreeMap<String, (Protocol, u16)> {
    [("game".to_owned(), (Protocol::Udp, 7000)), ("http".to_owned(), (Protocol::Tcp, 80))].into()
}

fn rest() -> Rest {
    Rest {
        run: RunId(6),
        end: End::Signal { signal: 11, core: true },
        at_ms: 9,
        failed: Some("gave up".to_owned()),
    }
}

fn events() -> Vec<Event> {
    let kinds = [
        EventKind::Started { hash: SpecHash(5), ports: ports() },
        EventKind::Ready,
        EventKind::Unready,
        EventKind::Stopped(Ended { end: End::Code(1), done: true }),
        EventKind::Stopped(Ended { end: End::Unknown, done: false }),
        EventKind::Rests(rest()),
        EventKind::Released { generation: 2 },
    ];
    kinds.map(|kind| Event { instance: zone(1), run: RunId(6), kind }).into()
}

/// Each once, in their order: a new one is added here and to the end of golden.txt's commands.
fn commands() -> Vec<Command> {
    let (alpha, key) = (name("alpha"), Some("k".to_owned()));
    let args: BTreeMap<String, String> = [("map".to_owned(), "cave".to_owned())].into();
    let run = RunFact { run: RunId(6), hash: SpecHash(5), ports: ports(), ready: true };
    let put = PlaceChange::Put { instance: zone(1), host: alpha.clone(), hash: SpecHash(5) };
    let settings = Settings { max_lost: Some(2), ..Settings::default() };
    let all = vec![
        Command::ApplySpec { spec: spec(), expected_revision: Some(3) },
        Command::Scale { process: process("zone"), count: Some(9) },
        Command::Pause { target: Target::Process(process("zone")) },
        Command::Resume { target: Target::Instance(zone(1)) },
        Command::JoinHost { host: alpha.clone(), facts: facts() },
        Command::Place { based_on: 4, changes: vec![put, PlaceChange::Remove { instance: zone(2) }] },
        Command::Events { host: alpha.clone(), incarnation: 2, first_seq: 8, events: events() },
        Command::Launch { process: process("dungeon"), args, key },
        Command::Inventory {
            host: alpha.clone(),
            incarnation: 2,
            seq: 8,
            runs: [(zone(1), run)].into(),
            rests: [(zone(2), rest())].into(),
        },
        Command::Roll { process: process("zone"), epoch: 1 },
        Command::HostDown { host: alpha.clone(), incarnation: 2 },
        Command::DrainHost { host: alpha, drained: true },
        Command::Settings { settings },
        Command::Settle { since: 7 },
        Command::Upgrade { to: Version(2) },
        Command::TokenCreate {
            name: "ci".parse().unwrap(),
            role: Role::Admin,
            hash: [7; 32],
            expires_ms: Some(9),
        },
        Command::TokenRevoke { name: "ci".parse().unwrap() },
        Command::Recover,
    ];
    assert!(all.iter().map(number).eq(0..all.len()), "each of them is tried");
    all
}

/// A command that is not here does not compile: it is to be among those that are tried.
fn number(command: &Command) -> usize {
    match command {
        Command::ApplySpec { .. } => 0,
        Command::Scale { .. } => 1,
        Command::Pause { .. } => 2,
        Command::Resume { .. } => 3,
        Command::JoinHost { .. } => 4,
        Command::Place { .. } => 5,
        Command::Events { .. } => 6,
        Command::Launch { .. } => 7,
        Command::Inventory { .. } => 8,
        Command::Roll { .. } => 9,
        Command::HostDown { .. } => 10,
        Command::DrainHost { .. } => 11,
        Command::Settings { .. } => 12,
        Command::Settle { .. } => 13,
        Command::Upgrade { .. } => 14,
        Command::TokenCreate { .. } => 15,
        Command::TokenRevoke { .. } => 16,
        Command::Recover => 17,
    }
}

fn responses() -> [Response; 4] {
    [Response::Done, Response::Revision(3), Response::Incarnation(4), Response::Launched(zone(1))]
}

fn rejections() -> Vec<Rejected> {
    let (alpha, zones) = (name("alpha"), process("zone"));
    vec![
        Rejected::Revision { expected: 1, found: 2 },
        Rejected::StalePlan { based_on: 1, basis: 2 },
        Rejected::StillRuns(zone(1)),
        Rejected::NotUp(alpha.clone()),
        Rejected::NoHost(alpha.clone()),
        Rejected::Unsafe,
        Rejected::Version { needed: Version(2), found: Version(1) },
        Rejected::NoProcess(zones.clone()),
        Rejected::NoInstance(zone(1)),
        Rejected::NotCounted(zones.clone()),
        Rejected::NotOnDemand(zones.clone()),
        Rejected::Full { process: zones.clone(), max: 3 },
        Rejected::NoArgument { process: zones.clone(), missing: "map".to_owned() },
        Rejected::OtherLaunch { key: "k".to_owned(), instance: zone(1) },
        Rejected::CloneOf(alpha.clone()),
        Rejected::OldIncarnation(alpha.clone()),
        Rejected::Epoch { process: zones, expected: 1, found: 2 },
        Rejected::Gap { host: alpha, first_seq: 3, next: 2 },
        Rejected::TokenExists("ci".parse().unwrap()),
        Rejected::NoToken("ci".parse().unwrap()),
        Rejected::TooManyTokens,
    ]
}

/// The replicated state: what is in a snapshot, and what an attached host is sent.
fn state(lines: &mut Lines) {
    let mut state = State::default();
    // What is refused as things stand changes nothing but the time.
    for command in commands() {
        let command = match command {
            Command::ApplySpec { spec, .. } => Command::ApplySpec { spec, expected_revision: None },
            Command::Upgrade { .. } | Command::Recover | Command::TokenRevoke { .. } => continue,
            other => other,
        };
        let _ = state.apply(&Envelope { stamp_ms: 1_000, command });
    }
    place_and_run(&mut state);
    for (what, filled) in [
        ("placements", !state.placements.is_empty()),
        ("directory", !state.directory.is_empty()),
        ("leaders", !state.leaders.is_empty()),
        ("claims", !state.claims.is_empty()),
        ("launches", !state.launches.is_empty()),
        ("hosts", !state.hosts.is_empty()),
        ("tokens", !state.api_tokens.is_empty()),
        ("epochs", !state.epochs.is_empty()),
    ] {
        assert!(filled, "no {what} in the state that is held to its bytes");
    }
    lines.add("state", state);
    lines.add("roll", Roll::default());
    lines.add("recent", Recent::default());
}

/// Something is placed, runs, is ready and leads.
fn place_and_run(state: &mut State) {
    let mut take = |command: Command| state.apply(&Envelope { stamp_ms: 2_000, command }).unwrap();
    let (alpha, hash) = (name("alpha"), SpecHash(5));
    let Response::Incarnation(incarnation) = take(Command::JoinHost { host: alpha.clone(), facts: facts() })
    else {
        panic!("no incarnation")
    };
    take(Command::DrainHost { host: alpha.clone(), drained: false });
    let based_on = state.basis;
    let mut take = |command: Command| state.apply(&Envelope { stamp_ms: 2_000, command }).unwrap();
    let put = PlaceChange::Put { instance: zone(1), host: alpha.clone(), hash };
    take(Command::Place { based_on, changes: vec![put] });
    let started = events().into_iter().take(2).collect();
    take(Command::Events { host: alpha, incarnation, first_seq: 1, events: started });
}

fn log(index: u64) -> LogId {
    LogId { leader_id: LeaderId { term: 3, node_id: 1 }, index }
}

fn raft(lines: &mut Lines) {
    let vote = Vote::new(3, 1);
    let peer = |name: &str| Peer { name: name.to_owned(), address: format!("{name}:7600") };
    let nodes: BTreeMap<u64, Peer> = [(1, peer("alpha")), (2, peer("beta"))].into();
    let members = Membership::new(vec![BTreeSet::from([1])], nodes).unwrap();
    let pause = Arc::new(Envelope { stamp_ms: 5, command: Command::Pause { target: Target::All } });
    let payloads = [
        EntryPayload::Blank,
        EntryPayload::Normal(Change::State(pause)),
        EntryPayload::Membership(members.clone()),
    ];
    let entries: Vec<Entry> =
        payloads.into_iter().zip(8..).map(|(payload, index)| Entry { log_id: log(index), payload }).collect();
    lines.add("raft.vote", VoteRequest::<C>::new(vote, Some(log(7))));
    lines.add("raft.voted", VoteResponse::<C>::new(vote, Some(log(7)), true));
    lines.add_all("raft.entry", entries.clone());
    let (prev_log_id, leader_commit) = (Some(log(7)), Some(log(6)));
    let append = AppendEntriesRequest::<C> { vote, prev_log_id, entries: Vec::new(), leader_commit };
    lines.add("raft.heartbeat", (true, append));
    let append = AppendEntriesRequest::<C> { vote, prev_log_id: None, entries, leader_commit };
    lines.add("raft.append", (false, append));
    lines.add_all(
        "raft.appended",
        [
            AppendEntriesResponse::<C>::Success,
            AppendEntriesResponse::PartialSuccess(Some(log(7))),
            AppendEntriesResponse::Conflict,
            AppendEntriesResponse::HigherVote(vote),
        ],
    );
    lines.add("raft.transfer", TransferLeaderRequest::<C>::new(vote, 2, Some(log(7))));
    let refusals: [TransferLeaderResponse<C>; 3] = [
        Ok(()),
        Err(TransferLeaderError::VoteChanged { expected: vote, actual: vote }),
        Err(TransferLeaderError::LogNotFlushed { expected: Some(log(7)), actual: None }),
    ];
    lines.add_all("raft.transferred", refusals);
    let last_membership = StoredMembership::new(Some(log(2)), members);
    lines.add("raft.snapshot", (vote, SnapshotMeta { last_log_id: Some(log(7)), last_membership }));
    lines.add("raft.snapshotted", SnapshotResponse::<C>::new(vote));
}

/// Who may take part: founding, joining, changes of the peers.
fn peers(lines: &mut Lines) {
    let (delta, address) = (name("delta"), "d:7600".to_owned());
    let founder =
        Founder { peer: Peer { name: "alpha".to_owned(), address: "a:1".to_owned() }, token: Some(4) };
    let founding = Founding { history: 7, members: [(1, founder)].into() };
    for identity in
        [Identity::Fresh { token: 4 }, Identity::Peer { id: 1, history: 7, founding: Some(founding) }]
    {
        let peers = [(delta.clone(), address.clone())].into();
        lines.add(
            &format!("probed.{}", matches!(identity, Identity::Peer { .. })),
            Probed { identity, peers },
        );
    }
    let fresh =
        Probed { identity: Identity::Fresh { token: 4 }, peers: [(delta.clone(), address.clone())].into() };
    lines.add_all("probed.waits", [(fresh.clone(), None), (fresh, Some("why".to_owned()))]);
    lines.add("join", (delta.clone(), address.clone()));
    let host = delta.clone();
    lines.add_all(
        "peers",
        [
            PeersChange::Add { host: host.clone(), address: address.clone() },
            PeersChange::Remove { host: host.clone() },
            PeersChange::Promote { host: host.clone() },
            PeersChange::Number { host, address: address.clone() },
            PeersChange::Admit { id: 4 },
        ],
    );
    lines.add_all(
        "peers.refused",
        [
            PeersRefused::NoPeer(delta.clone()),
            PeersRefused::Votes(delta.clone()),
            PeersRefused::OnlyVoter(delta.clone()),
            PeersRefused::Full,
            PeersRefused::NotExpected(delta.clone()),
            PeersRefused::Alive(delta.clone()),
            PeersRefused::NoNumber(4),
            PeersRefused::NotNow("no".to_owned()),
            PeersRefused::Unsettled,
            PeersRefused::IsPeer { host: delta.clone(), address },
        ],
    );
    let (cluster, host) = ("pirates".to_owned(), delta.clone());
    lines.add_all(
        "refusal",
        [
            Refusal::Cluster { host: host.clone(), theirs: cluster.clone(), ours: "ninjas".to_owned() },
            Refusal::Version { host: host.clone(), theirs: (1, 1), ours: (2, 3) },
            Refusal::OtherHost { found: host.clone(), wanted: name("alpha") },
            Refusal::OtherPeer { host: host.clone(), wanted: 2 },
            Refusal::History { host: host.clone(), cluster },
            Refusal::Certificate(host.clone()),
            Refusal::Busy(host.clone()),
            Refusal::Stranger { host, stranger: name("omega") },
        ],
    );
    lines.add_all(
        "purpose",
        [
            Purpose::Urgent,
            Purpose::Bulk,
            Purpose::Snapshot,
            Purpose::Probe,
            Purpose::Host,
            Purpose::HostBulk,
            Purpose::Api,
            Purpose::Status,
        ],
    );
}

/// That hosts live, and what their runs say.
fn hosts(lines: &mut Lines) {
    let (host, players) = (name("delta"), Some([(zone(1), 12)].into()));
    let report = Report { host: host.clone(), incarnation: 2, seq: 300 };
    lines.add("report", Attendance { report: report.clone(), players });
    lines.add("confirm", Some(Confirm { report, hold: Duration::from_millis(5_250) }));
    let brake = vec![host.clone()];
    lines.add("watched", Watched { silent_ms: [(host.clone(), 9)].into(), brake });
    let facts = [Fact::Flag(true), Fact::Whole(-3), Fact::Number(0.5), Fact::Text("ctf".to_owned())];
    let labels = ["a", "b", "c", "d"].map(str::to_owned).into_iter().zip(facts).collect();
    let summary = Summary {
        players: Some(12),
        capacity: Some(64),
        fps: Some(59.5),
        ping_ms: Some(40.0),
        map: Some("cave".to_owned()),
        text: Some("hi".to_owned()),
        labels,
    };
    let told = |summary| Told { instance: zone(1), run: RunId(6), seq: 8, age_ms: 9, summary };
    let place = Place { life: 2, seq: 8 };
    let lines_of = vec![told(Some(summary.into())), told(None)];
    lines.add("status", Delta { host: host.clone(), to: place, from: Some(3), age_ms: 4, lines: lines_of });
    lines.add("statuses", BTreeMap::from([(host, place)]));
}
