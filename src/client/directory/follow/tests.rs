//! Which changes are told, from which agent, and when.

use super::*;
use crate::client::directory::RunStatus;

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
const ZONE: &str = r#"{"instance":"zone.0","process":"zone","host":"alpha","run":7,"address":"10.0.0.1","ports":{},
"ready":true,"started":3,"labels":{},"later":1}"#;

fn follow(agents: usize) -> Follow {
    let agents = (0..agents).map(|n| Address::Http(format!("127.0.0.1:{n}"))).collect();
    Follow::new(agents, 0, None, &Interest::default(), None)
}

fn event(name: &str, id: &str, data: &str) -> String {
    let id = if id.is_empty() { String::new() } else { format!("id: {id}\n") };
    format!("event: {name}\n{id}data: {}\n\n", data.replace('\n', ""))
}

/// What a connection with these events tells.
fn told(follow: &mut Follow, events: &[String]) -> Vec<Change> {
    follow.begin();
    follow.hear(format!("{HEAD}{}", events.concat()).as_bytes()).unwrap();
    std::iter::from_fn(|| follow.next()).collect()
}

fn gone(at: &str) -> String {
    event("gone", at, r#"{"instance":"zone.0","process":"zone"}"#)
}

#[test]
fn a_watch_goes_on_where_it_was_and_tells_nothing_twice() {
    let mut watch = follow(2);
    let first = told(&mut watch, &[event("snapshot", "a:5:9", "[]"), event("put", "a:6:0", ZONE)]);
    let Change::Put(zone) = &first[1] else { panic!("{first:?}") };
    assert_eq!((first.len(), zone.instance.to_string()), (2, "zone.0".to_owned()));
    assert_eq!(watch.lose(0.5), Duration::ZERO);
    let question = String::from_utf8(watch.begin()).unwrap();
    assert!(question.contains("Host: 127.0.0.1:1\r\n"), "{question}");
    assert!(question.contains("Last-Event-ID: a:6:0\r\n"), "{question}");
    // An agent that begins too early is not believed; a half event is not told, and told whole by the next one.
    let half = &gone("a:8:0")[..20];
    let second =
        told(&mut watch, &[event("put", "a:6:0", ZONE), gone("a:7:0"), gone("a:7:1"), half.to_owned()]);
    assert_eq!((second.len(), watch.place()), (2, Some("a:7:1")));
    assert_eq!(told(&mut watch, &[gone("a:7:1"), gone("a:8:0")]).len(), 1);
    // What has no place is told as it comes, and what nobody knows is not.
    assert_eq!(told(&mut watch, &[event("status", "", "[]"), event("later", "", "{}")]).len(), 1);
    assert_eq!(watch.place(), Some("a:8:0"));
}

#[test]
fn a_reset_is_told_with_its_snapshot_and_another_history_counts_anew() {
    let mut watch = follow(1);
    told(&mut watch, &[event("snapshot", "a:50:9", "[]")]);
    let reset = event("reset", "", r#"{"reason":"another history"}"#);
    // It breaks off in between.
    assert_eq!(told(&mut watch, std::slice::from_ref(&reset)), []);
    assert_eq!(watch.place(), Some("a:50:9"));
    let after = told(&mut watch, &[reset, event("snapshot", "b:3:9", "[]"), gone("b:4:0")]);
    assert_eq!(after[0], Change::Snapshot { entries: vec![], reset: Some("another history".to_owned()) });
    assert_eq!((after.len(), watch.place()), (2, Some("b:4:0")));
}

#[test]
fn every_agent_is_asked_before_there_is_a_pause_and_pauses_grow() {
    let mut watch = follow(3);
    let pauses: Vec<u128> = (0..27).map(|_| watch.lose(1.0).as_millis()).collect();
    assert_eq!(pauses[..9], [0, 0, 100, 0, 0, 200, 0, 0, 400]);
    assert_eq!(pauses[23..], [10_000, 0, 0, 10_000]);
    assert_eq!(follow(1).lose(0.0), FIRST_PAUSE / 2);
    // One that tells something is asked again at once.
    told(&mut watch, &[event("snapshot", "a:1:0", "[]")]);
    assert_eq!(watch.lose(1.0), Duration::ZERO);
}

#[test]
fn some_refusals_are_final_and_others_are_not() {
    let refused = |status: u16, body: &str| {
        let mut watch = follow(1);
        watch.begin();
        let answer = format!("HTTP/1.1 {status} No\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        watch.hear(answer.as_bytes()).unwrap_err()
    };
    let problem = r#"{"type":"behind","title":"t","status":503,"detail":"d"}"#;
    let unable = refused(503, problem);
    assert!(matches!(&unable, Trouble::Unable(problem) if problem.kind == "behind"), "{unable:?}");
    assert!(matches!(refused(429, ""), Trouble::Unable(_)));
    let no = refused(401, "who are you?");
    assert!(matches!(&no, Trouble::Refused(problem) if problem.detail == "who are you?"), "{no:?}");
    let mut watch = follow(1);
    watch.begin();
    assert!(matches!(watch.hear(b"SSH-2.0-OpenSSH\r\n\r\n"), Err(Trouble::Broken(_))));
}

#[test]
fn changes_are_carried_out_on_what_is_known() {
    let mut runs = BTreeMap::new();
    let zone: Entry = serde_json::from_str(ZONE).unwrap();
    let id = zone.instance.clone();
    Change::Put(Box::new(zone.clone())).apply_to(&mut runs);
    assert_eq!(runs.get(&id), Some(&zone));
    Change::Gone { instance: id, process: zone.process.clone() }.apply_to(&mut runs);
    assert!(runs.is_empty());
    Change::Snapshot { entries: vec![zone.clone()], reset: None }.apply_to(&mut runs);
    let status = RunStatus { players: Some(3), ..RunStatus::default() };
    let said =
        |run| Said { instance: zone.instance.clone(), host: zone.host.clone(), run, status: status.clone() };
    Change::Status(vec![said(8)]).apply_to(&mut runs);
    assert_eq!(runs[&zone.instance].status, None, "another run said that");
    Change::Status(vec![said(7)]).apply_to(&mut runs);
    assert_eq!(runs[&zone.instance].status, Some(Some(status.clone())));
    let leader = Change::Leader { process: zone.process, instance: None, token: None };
    leader.apply_to(&mut runs);
    assert_eq!(runs.len(), 1);
}

#[test]
fn an_agent_that_is_not_understood_is_asked_less_and_less_and_the_watcher_hears_of_it() {
    let mut watch = follow(1);
    let reset = event("reset", "", r#"{"reason":"another history"}"#);
    let other = format!("{HEAD}{reset}{}", event("snapshot", "a:1:0", r#"{"entries":[]}"#));
    let pauses: Vec<u128> = (0..3)
        .map(|_| {
            watch.begin();
            let trouble = watch.hear(other.as_bytes()).unwrap_err();
            let told = trouble.told_of(watch.whom().unwrap());
            assert!(matches!(told, Err(DirectoryError::Answer { .. })), "{told:?}");
            watch.lose(1.0).as_millis()
        })
        .collect();
    assert_eq!(pauses, [100, 200, 400]);
    assert_eq!(watch.place(), None);
    let too_large = Trouble::TooLarge(TooLarge).told_of(watch.whom().unwrap());
    assert!(matches!(too_large, Err(DirectoryError::TooLarge { .. })), "{too_large:?}");
}

#[test]
fn a_place_that_is_none_goes_out_in_no_header() {
    for text in ["a:1:2\r\nHost: evil", "a\r\nx:1:2", "a:1:2:3", "a:1", "\n:1:2"] {
        let agents = vec![Address::Http("127.0.0.1:1".to_owned())];
        let mut watch = Follow::new(agents, 0, None, &Interest::default(), Some(text.to_owned()));
        let question = String::from_utf8(watch.begin()).unwrap();
        assert!(!question.contains("Last-Event-ID"), "{question:?}");
    }
}
