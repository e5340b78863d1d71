//! Tests of the codec: what is read, what is refused, and that any bytes are one or the other.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::client::message::Phase;

fn feed(chunks: &[&[u8]]) -> Vec<Result<Request, Refusal>> {
    let mut decoder = Decoder::default();
    let mut found = Vec::new();
    for chunk in chunks {
        decoder.feed(chunk, |message| found.push(message));
    }
    found
}

fn code(line: &str) -> (i64, Id) {
    let refusal = read(line.as_bytes()).unwrap_err();
    assert!(!refusal.fault.message.is_empty());
    (refusal.fault.code, refusal.id)
}

fn ok(line: &str) -> Request {
    read(line.as_bytes()).unwrap_or_else(|e| panic!("{line}: {e:?}"))
}

#[test]
fn every_method_is_read_with_its_parameters() {
    let hello = ok(
        r#"{"jsonrpc":"2.0","id":1,"method":"hello","params":{"client":"zone","version":"1","state":"ready"}}"#,
    );
    assert_eq!(hello.id, Some(Id::from(1)));
    assert_eq!(
        hello.call,
        Call::Hello(Hello { client: "zone".into(), version: "1".into(), state: Phase::Ready })
    );
    for (method, call) in [
        ("ready", Call::Ready),
        ("heartbeat", Call::Heartbeat),
        ("draining", Call::Draining),
        ("stopping", Call::Stopping),
    ] {
        let line = format!(r#"{{"method":"{method}","jsonrpc":"2.0"}}"#);
        assert_eq!(ok(&line), Request { id: None, call });
    }
    let Call::Status(status) = ok(
        r#"{"jsonrpc":"2.0","method":"status","params":{"players":3,"fps":59.5,"labels":{"mode":"ctf","round":2,"open":true}}}"#,
    )
    .call
    else {
        panic!("not a status")
    };
    assert_eq!((status.players, status.fps, status.capacity), (Some(3), Some(59.5), None));
    assert_eq!(status.labels["round"], Label::Whole(2));
    assert_eq!(status.labels["open"], Label::Flag(true));
    assert_eq!(status.labels["mode"], Label::Text("ctf".into()));
    assert_eq!(
        ok(r#"{"jsonrpc":"2.0","id":"a","method":"find","params":{"process":"login","ready":true}}"#).call,
        Call::Find(Find { process: "login".parse().unwrap(), ready: true })
    );
    assert_eq!(
        ok(r#"{"jsonrpc":"2.0","id":2,"method":"watch","params":{"process":"zone"}}"#).call,
        Call::Watch(Watch { process: "zone".parse().unwrap() })
    );
    assert_eq!(
        ok(r#"{"jsonrpc":"2.0","method":"unwatch","params":{"process":"zone"}}"#).call,
        Call::Unwatch(Watch { process: "zone".parse().unwrap() })
    );
    let Call::Launch(launch) = ok(
        r#"{"jsonrpc":"2.0","id":3,"method":"launch","params":{"process":"dungeon","args":{"seed":"7"},"key":"p1"}}"#,
    )
    .call
    else {
        panic!("not a launch")
    };
    assert_eq!((launch.args["seed"].as_str(), launch.key.as_deref()), ("7", Some("p1")));
}

#[test]
fn a_status_cannot_carry_control_characters_to_a_terminal() {
    let line = r#"{"jsonrpc":"2.0","method":"status","params":{"map":"a\u001b[2J","text":"b\n","labels":{"c":"\u0007d"}}}"#;
    let Call::Status(status) = ok(line).call else { panic!("not a status") };
    assert_eq!((status.map.as_deref(), status.text.as_deref()), (Some("a[2J"), Some("b")));
    assert_eq!(status.labels["c"], Label::Text("d".into()));
}

#[test]
fn the_fast_path_and_the_slow_path_agree_on_a_heartbeat() {
    assert_eq!(ok(BEAT), ok(&BEAT.replace(':', ": ")));
}

#[test]
fn refusals_have_the_codes_of_the_protocol_and_the_id_of_the_request() {
    assert_eq!(code("{"), (Fault::PARSE, Id::NULL));
    assert_eq!(code("\u{0}"), (Fault::PARSE, Id::NULL));
    assert_eq!(code(&"[".repeat(60_000)), (Fault::PARSE, Id::NULL), "depth is bounded");
    assert_eq!(code("[]"), (Fault::INVALID, Id::NULL));
    assert_eq!(code(r#"[{"jsonrpc":"2.0","method":"ready"}]"#), (Fault::INVALID, Id::NULL));
    assert_eq!(code("7"), (Fault::INVALID, Id::NULL));
    assert_eq!(code(r#"{"id":4,"method":"ready"}"#), (Fault::INVALID, Id::from(4)));
    assert_eq!(code(r#"{"jsonrpc":"2.0","id":4}"#), (Fault::INVALID, Id::from(4)));
    assert_eq!(code(r#"{"jsonrpc":"2.0","id":{},"method":"ready"}"#), (Fault::INVALID, Id::NULL));
    assert_eq!(code(r#"{"jsonrpc":"2.0","id":4,"method":"heartbeet"}"#), (Fault::METHOD, Id::from(4)));
    assert_eq!(code(r#"{"jsonrpc":"2.0","method":"heartbeet"}"#), (Fault::METHOD, Id::NULL));
    for params in [
        r#"{"players":-1}"#,
        r#"{"colour":"red"}"#,
        r#"{"labels":{"a":[1]}}"#,
        r#"{"labels":{"a":null}}"#,
        "[1]",
        "null",
    ] {
        let line = format!(r#"{{"jsonrpc":"2.0","id":5,"method":"status","params":{params}}}"#);
        assert_eq!(code(&line), (Fault::PARAMS, Id::from(5)), "{params}");
    }
    assert_eq!(code(r#"{"jsonrpc":"2.0","id":6,"method":"find"}"#), (Fault::PARAMS, Id::from(6)));
    let bad_name = r#"{"jsonrpc":"2.0","id":6,"method":"find","params":{"process":"../x"}}"#;
    assert_eq!(code(bad_name), (Fault::PARAMS, Id::from(6)));
}

#[test]
fn status_launch_and_words_are_bounded() {
    let status = |size: usize| {
        format!(r#"{{"jsonrpc":"2.0","method":"status","params":{{"text":"{}"}}}}"#, "x".repeat(size))
    };
    assert!(read(status(16_000).as_bytes()).is_ok());
    assert_eq!(code(&status(MAX_PARAMS)).0, Fault::PARAMS);
    let word = "x".repeat(MAX_WORD + 1);
    assert_eq!(
        code(&format!(r#"{{"jsonrpc":"2.0","method":"hello","params":{{"client":"{word}"}}}}"#)).0,
        Fault::PARAMS
    );
    assert_eq!(code(&format!(r#"{{"jsonrpc":"2.0","id":"{word}","method":"ready"}}"#)).0, Fault::INVALID);
    let launch =
        format!(r#"{{"jsonrpc":"2.0","method":"launch","params":{{"process":"a","key":"{word}"}}}}"#);
    assert_eq!(code(&launch).0, Fault::PARAMS);
}

#[test]
fn after_an_oversized_line_there_is_one_error_and_then_the_next_message() {
    let mut stream = vec![b'x'; 3 * MAX_LINE];
    stream.push(b'\n');
    stream.extend_from_slice(BEAT.as_bytes());
    stream.extend_from_slice(b"\r\n");
    let found = feed(&stream.chunks(1000).collect::<Vec<_>>());
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].as_ref().unwrap_err().fault.code, Fault::LINE);
    assert_eq!(found[1], Ok(Request { id: None, call: Call::Heartbeat }));
}

#[test]
fn what_the_agent_says_is_one_line_of_json_rpc() {
    let said = |message: Outgoing| {
        let mut out = Vec::new();
        message.write(&mut out);
        assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 1);
        serde_json::from_slice::<Value>(&out).unwrap()
    };
    assert_eq!(
        said(Outgoing::answer(Id::from(1), &Value::Null)),
        json!({"jsonrpc":"2.0","id":1,"result":null})
    );
    assert_eq!(
        said(Outgoing::refused(Id::NULL, Fault::BUSY, "a\nb")),
        json!({"jsonrpc":"2.0","id":null,"error":{"code":-32004,"message":"a\nb"}})
    );
    assert_eq!(said(Outgoing::Ping), json!({"jsonrpc":"2.0","method":"ping"}));
    assert_eq!(
        said(Outgoing::Shutdown(Shutdown { reason: "update".into(), deadline_ms: 10_000 })),
        json!({"jsonrpc":"2.0","method":"shutdown","params":{"reason":"update","deadline_ms":10000}})
    );
    let event: WatchEvent =
        serde_json::from_value(json!({"process":"zone","event":"gone","instance":"zone.3","run":7})).unwrap();
    assert_eq!(
        said(Outgoing::Watch(Box::new(event))),
        json!({"jsonrpc":"2.0","method":"watch","params":{"process":"zone","event":"gone","instance":"zone.3","run":7}})
    );
    let huge = Value::String("x".repeat(MAX_ANSWER));
    assert_eq!(said(Outgoing::Answer { id: Id::from(9), result: huge })["error"]["code"], Fault::ANSWER);
}

/// Whoever writes a client by docs/protocol.md says what is understood, and is told what stands there.
#[test]
fn the_examples_of_the_document_are_the_protocol() {
    let document = include_str!("../../../docs/protocol.md");
    let (_, document) = document.split_once("### From the process to the agent").unwrap();
    let (ours, theirs) = document.split_once("### From the agent to the process").unwrap();
    let lines = |text: &'static str| text.lines().filter(|line| line.starts_with('{'));
    let mut methods = std::collections::BTreeSet::new();
    for line in lines(ours) {
        let value: Value = serde_json::from_str(line).unwrap();
        match value["method"].as_str() {
            Some(method) => {
                ok(line);
                methods.insert(method.to_owned());
            }
            None => assert_eq!(answer(&value), value["result"], "{line}"),
        }
    }
    let all = [
        "draining",
        "find",
        "heartbeat",
        "hello",
        "launch",
        "ready",
        "status",
        "stopping",
        "unwatch",
        "watch",
    ];
    assert_eq!(methods.iter().map(String::as_str).collect::<Vec<_>>(), all);
    for line in lines(theirs) {
        let value: Value = serde_json::from_str(line).unwrap();
        let mut said = Vec::new();
        told(&value).write(&mut said);
        assert_eq!(serde_json::from_slice::<Value>(&said).unwrap(), value, "{line}");
    }
}

/// An answer, as it is read and written again.
fn answer(value: &Value) -> Value {
    use crate::client::message::{Found, Launched, Welcome};
    fn again<T: Serialize + serde::de::DeserializeOwned>(value: &Value) -> Value {
        serde_json::to_value(serde_json::from_value::<T>(value["result"].clone()).unwrap()).unwrap()
    }
    match value["result"].as_object().and_then(|result| result.keys().next().map(String::as_str)) {
        Some("listings") => again::<Found>(value),
        Some("instance") if value["result"].get("protocol").is_none() => again::<Launched>(value),
        _ => again::<Welcome>(value),
    }
}

/// What the agent would say in these words.
fn told(value: &Value) -> Outgoing {
    let params = value["params"].clone();
    match value["method"].as_str() {
        Some("shutdown") => Outgoing::Shutdown(serde_json::from_value(params).unwrap()),
        Some("ping") => Outgoing::Ping,
        Some("watch") => Outgoing::Watch(Box::new(serde_json::from_value(params).unwrap())),
        Some(other) => panic!("the agent never says {other}"),
        // The one refusal that is shown.
        None => {
            let wrong = r#"{"jsonrpc":"2.0","id":5,"method":"status","params":{"colour":"red"}}"#;
            Outgoing::Refused(read(wrong.as_bytes()).unwrap_err())
        }
    }
}

/// Lines that are nearly right, so that chance gets past the first check.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let near = prop_oneof![
        Just(BEAT.to_owned()),
        Just(r#"{"jsonrpc":"2.0","id":1,"method":"hello","params":{"state":"ready"}}"#.to_owned()),
        Just(r#"{"jsonrpc":"2.0","method":"status","params":{"players":1}}"#.to_owned()),
        Just("[1,2".to_owned()),
        Just("x".repeat(MAX_LINE + 1)),
    ];
    prop_oneof![
        near.prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..80),
        Just(b"\r".to_vec()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_in_any_cut_give_the_same_messages(
        lines in proptest::collection::vec(line(), 0..8),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let stream = lines.join(&b'\n');
        let mut at: Vec<usize> = cuts.iter().map(|c| c.index(stream.len() + 1)).collect();
        at.push(stream.len());
        at.sort_unstable();
        let mut from = 0;
        let mut chunks = Vec::new();
        for cut in at {
            chunks.push(&stream[from..cut]);
            from = cut;
        }
        prop_assert_eq!(feed(&chunks), feed(&[&stream]));
    }
}
