//! Watching the directory: every change in order and once, over agents, or a reset.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bigbrother::agent::ring::{Alone, Ring};
use bigbrother::cluster::feed::{Recorder, feed};
use bigbrother::cluster::statuses::Statuses;
use bigbrother::keeper::protocol::{End, RunId};
use bigbrother::state::{Command, Ended, Envelope, Event, EventKind, HostFacts, State};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use super::pretended::{pretend, two_zones};
use super::server::{Answer, Follower, Server, exchange};

pub struct Site {
    pub server: Server,
    pub source: Source,
}

/// Whoever applies commands.
pub struct Source {
    pub statuses: Statuses,
    recorder: Recorder,
    states: watch::Sender<Arc<State>>,
    seq: u64,
}

impl Site {
    pub async fn start(history: u64) -> Site {
        let dir = tempfile::tempdir().unwrap();
        let (requests, requests_in) = mpsc::channel(64);
        let (snapshot, snapshots) = watch::channel(Some(two_zones()));
        let (asked_in, asked) = mpsc::unbounded_channel();
        let agent = tokio::spawn(pretend(requests_in, mpsc::channel(1).1, snapshots, asked_in));
        let (recorder, feed) = feed();
        let statuses = Statuses::new("alpha".parse().unwrap());
        let (states, seen) = watch::channel(Arc::new(State::default()));
        let alone = Alone::to(mpsc::channel(1).0, "alpha".parse().unwrap());
        let ring = Ring::Alone(Alone { feed, history, statuses: statuses.clone(), ..alone });
        let server = Server::of(dir, requests, (ring, seen), None, agent, snapshot, asked).await;
        let mut source = Source { statuses, recorder, states, seq: 0 };
        source.take(Command::JoinHost { host: "alpha".parse().unwrap(), facts: HostFacts::default() });
        Site { server, source }
    }

    pub async fn watch(&self, query: &str, last: Option<&str>) -> Follower {
        let path = format!("/v1/directory/watch{query}");
        let headers: Vec<_> = last.map(|id| ("last-event-id", id)).into_iter().collect();
        let response = self.server.send("GET", &path, &headers, "").await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Follower { body: response.into_body(), seen: String::new() }
    }
}

impl Source {
    fn take(&mut self, command: Command) {
        let mut state = (**self.states.borrow()).clone();
        let (result, changes) = state.apply_and_tell(&Envelope { stamp_ms: 1, command });
        result.unwrap();
        self.states.send_replace(Arc::new(state.clone()));
        self.recorder.note(changes);
        self.recorder.tell(&state);
    }

    fn happens(&mut self, instance: &str, run: u64, kind: EventKind) {
        self.seq += 1;
        let event = Event { instance: instance.parse().unwrap(), run: RunId(run), kind };
        let host = "alpha".parse().unwrap();
        self.take(Command::Events { host, incarnation: 1, first_seq: self.seq, events: vec![event] });
    }

    pub fn starts(&mut self, instance: &str, run: u64) {
        self.happens(instance, run, started());
    }
}

fn ended() -> EventKind {
    EventKind::Stopped(Ended { end: End::Code(0), done: false })
}

/// The events of a stream: kind, id, data.
pub fn events(seen: &str) -> Vec<(String, String, Value)> {
    let blocks = seen.split("\n\n").filter(|block| !block.is_empty());
    let field = |block: &str, name: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or_default().to_owned()
    };
    blocks
        .map(|block| {
            let data = serde_json::from_str(&field(block, "data")).unwrap_or_default();
            (field(block, "event"), field(block, "id"), data)
        })
        .collect()
}

/// In short: kind, instance (or how many), id.
fn told(seen: &str) -> Vec<String> {
    let short = |(kind, id, data): (String, String, Value)| {
        let what = match &data {
            Value::Array(all) => all.len().to_string(),
            one => one["instance"].as_str().unwrap_or_default().to_owned(),
        };
        format!("{kind} {what} {id}")
    };
    events(seen).into_iter().map(short).collect()
}

#[tokio::test]
async fn a_watcher_has_all_and_then_each_change_and_goes_on_where_it_was() {
    let mut site = Site::start(7).await;
    site.source.starts("zone.0", 1);
    let mut watcher = site.watch("", None).await;
    watcher.until("a snapshot", |seen| seen.contains("snapshot")).await;
    site.source.happens("zone.0", 1, EventKind::Ready);
    site.source.starts("login.0", 2);
    site.source.happens("zone.0", 1, ended());
    watcher.until("four changes", |seen| events(seen).len() == 6).await;
    let all = told(&watcher.seen);
    assert_eq!(
        all,
        [
            "snapshot 1 7:2:4294967295",
            "put zone.0 7:3:0",
            "leader zone.0 7:3:1",
            "put login.0 7:4:0",
            "gone zone.0 7:5:0",
            "leader  7:5:1"
        ]
    );
    let first = &events(&watcher.seen)[1].2;
    assert_eq!((&first["ready"], &first["host"], &first["run"]), (&true.into(), &"alpha".into(), &1.into()));
    // From each place on, what is left and nothing twice.
    for (place, (_, id, _)) in events(&watcher.seen).into_iter().enumerate() {
        let mut again = site.watch("", Some(&id)).await;
        site.source.starts("zone.9", 10 + place as u64);
        again.until("the last one", |seen| seen.contains(&format!("\"run\":{}", 10 + place))).await;
        let rest = told(&again.seen);
        assert_eq!(rest[..all.len() - 1 - place], all[place + 1..], "after {id}");
    }
    let mut zones = site.watch("?process=login", Some("7:2:0")).await;
    site.source.starts("login.1", 99);
    zones.until("the login", |seen| seen.contains("login.1")).await;
    assert_eq!(told(&zones.seen).len(), 2, "{}", zones.seen);
}

#[tokio::test]
async fn what_cannot_be_told_step_by_step_is_a_reset_and_a_snapshot() {
    let mut site = Site::start(7).await;
    site.source.starts("zone.0", 1);
    for id in ["8:2:0", "0:0:0"] {
        let mut other = site.watch("", Some(id)).await;
        other.until("a snapshot", |seen| events(seen).len() == 2).await;
        let seen = events(&other.seen);
        assert_eq!((seen[0].0.as_str(), seen[1].0.as_str()), ("reset", "snapshot"), "{id}");
    }
    // The whole state comes from elsewhere.
    let state = State { index: 500, ..(**site.source.states.borrow()).clone() };
    site.source.states.send_replace(Arc::new(state.clone()));
    site.source.recorder.begin_anew(&state);
    let mut late = site.watch("", Some("7:2:0")).await;
    late.until("a snapshot", |seen| seen.contains("snapshot")).await;
    assert_eq!(told(&late.seen), ["reset  ", "snapshot 1 7:500:4294967295"]);
    let ahead = site.server.send("GET", "/v1/directory/watch", &[("last-event-id", "7:501:0")], "").await;
    assert_eq!(Answer::read(ahead).await.problem().status, 503, "its copy is behind");
    for wrong in ["7", "x:1:1", "7:1"] {
        let answer = site.server.send("GET", "/v1/directory/watch", &[("last-event-id", wrong)], "").await;
        assert_eq!(Answer::read(answer).await.problem().status, 400, "{wrong}");
    }
}

#[tokio::test]
async fn a_watcher_hears_that_its_connection_lives_however_much_happens_elsewhere() {
    let mut site = Site::start(7).await;
    let mut quiet = site.watch("?process=login", None).await;
    quiet.until("a snapshot", |seen| seen.contains("snapshot")).await;
    let began = Instant::now();
    // More often than a comment is due.
    let busy = async {
        for run in 1.. {
            site.source.starts("zone.0", run);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let heard = async {
        while !quiet.seen.contains("\n:\n") {
            let frame = quiet.body.frame().await.expect("a stream").expect("it goes on");
            quiet.seen.push_str(&String::from_utf8_lossy(&frame.into_data().unwrap_or_default()));
        }
    };
    tokio::select! {
        () = busy => {}
        heard = tokio::time::timeout(Duration::from_secs(40), heard) => heard.expect("a comment"),
    }
    assert!(began.elapsed() > Duration::from_secs(10), "{:?}", began.elapsed());
}

/// More than the ring holds.
const MANY: u64 = 11_000;

#[tokio::test]
async fn a_watcher_that_does_not_read_is_told_that_it_has_missed_something_and_holds_up_nobody() {
    let mut site = Site::start(7).await;
    site.source.starts("zone.0", 1);
    let (mut slow, mut quick) = (site.watch("", None).await, site.watch("", None).await);
    quick.until("a snapshot", |seen| seen.contains("snapshot")).await;
    for run in 2..MANY {
        site.source.starts("zone.0", run);
        if run % 100 == 0 {
            let last = format!("\"run\":{run},");
            quick.until("the changes", |seen| seen.contains(&last)).await;
            assert!(!quick.seen.contains("event: reset"), "it is told of each change");
            quick.seen.clear();
        }
    }
    // What it was sent at first lies in its socket; then it hears why it is not told the rest, and begins anew.
    let mut before = String::new();
    while !slow.seen.contains("event: reset") {
        before = std::mem::take(&mut slow.seen);
        slow.until("the next", |seen| !seen.is_empty()).await;
    }
    slow.until("a snapshot", |seen| seen.rsplit("event: reset").next().unwrap().contains("event: snapshot"))
        .await;
    let seen = slow.seen.split_off(slow.seen.find("event: reset").unwrap());
    let told = events(&seen);
    assert!(told[0].2["reason"].as_str().is_some_and(|reason| reason.contains("not known here")), "{seen}");
    assert_eq!((told[1].0.as_str(), &told[1].2[0]["run"]), ("snapshot", &(MANY - 1).into()), "{seen}");
    slow.seen.clear();
    site.source.starts("zone.0", MANY);
    slow.until("the next change", |seen| seen.contains(&format!("\"run\":{MANY},"))).await;
    // One that has gone away meanwhile is told the same where it goes on.
    let last = events(&before).last().expect("what it was told before").1.clone();
    let mut again = site.watch("", Some(&last)).await;
    again.until("a snapshot", |seen| events(seen).len() == 2).await;
    assert_eq!(events(&again.seen)[0].0, "reset");
}

#[tokio::test]
async fn those_who_ask_at_once_do_not_come_back_at_once() {
    let mut site = Site::start(7).await;
    site.source.starts("zone.0", 1);
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..24 {
        let stream = UnixStream::connect(site.server.socket()).await.unwrap();
        asked.spawn(async move {
            let began = Instant::now();
            let answer = exchange(stream, "GET", "/v1/directory?index=2&wait=2s", &[], "").await;
            assert_eq!(answer.status(), 200);
            began.elapsed()
        });
    }
    let mut took = asked.join_all().await;
    took.sort();
    // A sixteenth of the time: two dozen come closer together than a third of that once in a hundred thousand million.
    assert!(took[0] > Duration::from_millis(1_850), "{took:?}");
    assert!(took[23] - took[0] > Duration::from_millis(40), "{took:?}");
}

#[tokio::test]
async fn a_long_poll_waits_for_a_change_and_no_longer_than_asked() {
    let mut site = Site::start(7).await;
    site.source.starts("zone.0", 1);
    let began = Instant::now();
    let same = site.server.get("/v1/directory?index=2&wait=300ms").await;
    assert_eq!((same.json().as_array().unwrap().len(), same.header("bigbrother-index")), (1, "2"));
    assert!(began.elapsed() >= Duration::from_millis(250), "{:?}", began.elapsed());
    assert_eq!(site.server.get("/v1/directory?index=1").await.header("bigbrother-index"), "2", "at once");
    let Site { server, mut source } = site;
    let asked = server.get("/v1/directory?index=2&wait=60s");
    let (changed, ()) = tokio::join!(asked, async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        // A change, but none of the directory.
        source.take(Command::DrainHost { host: "alpha".parse().unwrap(), drained: true });
        source.starts("zone.1", 2);
    });
    assert_eq!((changed.json().as_array().unwrap().len(), changed.header("bigbrother-index")), (2, "4"));
    assert_eq!(server.get("/v1/directory?index=2&wait=soon").await.problem().status, 400);
}

fn started() -> EventKind {
    EventKind::Started { hash: Default::default(), ports: Default::default() }
}

#[tokio::test]
async fn whoever_has_seen_more_than_this_host_waits_for_it_or_asks_another_one() {
    let mut site = Site::start(7).await;
    site.source.starts("zone.0", 1);
    let began = Instant::now();
    let headers = [("last-event-id", "7:9:0")];
    let behind = Answer::read(site.server.send("GET", "/v1/directory/watch", &headers, "").await).await;
    assert_eq!((behind.status, behind.header("retry-after")), (503, "1"));
    let problem = behind.problem();
    assert!(problem.kind == "behind" && problem.detail.contains("has not reached 9"), "{problem:?}");
    assert!(began.elapsed() > Duration::from_secs(4), "it is not waited for: {:?}", began.elapsed());
    // It gets there while it is waited for: from there on, and nothing twice.
    let Site { server, mut source } = site;
    let headers = [("last-event-id", "7:3:0")];
    let (response, ()) = tokio::join!(server.send("GET", "/v1/directory/watch", &headers, ""), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        source.starts("zone.1", 2);
        source.starts("zone.2", 3);
    });
    assert_eq!(response.status(), 200);
    let mut watcher = Follower { body: response.into_body(), seen: String::new() };
    watcher.until("the change behind it", |seen| seen.contains("zone.2")).await;
    assert_eq!(told(&watcher.seen), ["put zone.2 7:4:0"]);
}

#[tokio::test]
async fn each_table_has_a_long_poll_of_its_own() {
    let mut site = Site::start(7).await;
    site.source.starts("zone.0", 1);
    let Site { server, mut source } = site;
    let index = async |path: &str| server.get(path).await.header("bigbrother-index").parse::<u64>().unwrap();
    let mut drained = false;
    // Another state each time, or it would be no change.
    let mut drain = || {
        drained = !drained;
        Command::DrainHost { host: "alpha".parse().unwrap(), drained }
    };
    for path in ["/v1/directory", "/v1/processes", "/v1/hosts", "/v1/spec"] {
        let now = index("/v1/spec").await;
        let began = Instant::now();
        let same = index(&format!("{path}?index={now}&wait=300ms")).await;
        assert!(
            same == now && began.elapsed() >= Duration::from_millis(250),
            "{path}: {:?}",
            began.elapsed()
        );
        assert_eq!(
            server.get(&format!("{path}?index={now}&wait=soon")).await.problem().status,
            400,
            "{path}"
        );
        let question = format!("{path}?index={now}&wait=60s");
        let (beyond, ()) = tokio::join!(index(&question), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            // Its own change is the second one; the first is another table's.
            match path {
                "/v1/hosts" => {
                    source.starts("zone.1", now);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    source.take(drain());
                }
                "/v1/spec" => {
                    source.take(drain());
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    let spec = Box::default();
                    source.take(Command::ApplySpec { spec: *spec, expected_revision: None });
                }
                _ => {
                    source.take(drain());
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    source.starts("zone.2", now);
                }
            }
        });
        assert_eq!(beyond, now + 2, "{path}");
    }
}
