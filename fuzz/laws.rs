//! What must hold for any bytes. Each law is a fuzz target (fuzz/fuzz_targets, `cargo fuzz run NAME`), and is tried
//! by tests/fuzz.rs, without a fuzzer, on the committed corpus and some thousand changes of it.

use bigbrother::cluster::wire::{self, Frame, Hello, Kind, Refusal, Welcome};
use bigbrother::config::{self, Context};
use bigbrother::keeper::protocol::{self, Reply, Request};
use bigbrother::process_api::notify;
use bigbrother::process_api::rpc::{Decoder, Outgoing};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The name of a target and of its corpus, and what must hold.
pub type Law = (&'static str, fn(&[u8]));

/// All of them.
pub const LAWS: [Law; 5] =
    [("config", config), ("frame", frame), ("keeper", keeper), ("notify", notify), ("rpc", rpc)];

/// Any cluster.toml is read or refused; each fault lies within the file, and the report can be printed.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let context = Context { hostname: "alpha".to_owned(), host_override: None };
    if let Err(faults) = config::parse(text, "cluster.toml", &context) {
        let lines = faults.lines();
        assert!(!lines.is_empty(), "refused without a reason");
        for line in &lines {
            let number = line.split(':').next().and_then(|n| n.parse::<usize>().ok());
            assert!(number.is_some_and(|n| n <= text.matches('\n').count() + 1), "{line}");
        }
        assert!(faults.render(false).contains("cluster.toml:"));
    }
}

/// Small, so that it is met, too.
const FRAME_LIMIT: usize = 512;

/// Any bytes from another agent, in one piece and cut in two, give the same frames; a frame that was read is written as
/// it came, and whatever its body, what it says is understood or refused.
pub fn frame(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    let at = usize::from(*cut).min(stream.len());
    let (frames, broken) = frames(&[stream]);
    assert_eq!((frames.clone(), broken), self::frames(&[&stream[..at], &stream[at..]]));
    let mut written = Vec::new();
    for frame in &frames {
        frame.write(&mut written);
        match frame.kind {
            Kind::Hello => said::<Hello>(&frame.body),
            Kind::Welcome => said::<Welcome>(&frame.body),
            Kind::Refusal => said::<Refusal>(&frame.body),
            Kind::Tunnel => said::<bigbrother::cluster::tunnel::Asked>(&frame.body),
            _ => {}
        }
    }
    assert!(stream.starts_with(&written));
}

fn frames(chunks: &[&[u8]]) -> (Vec<Frame>, bool) {
    let mut decoder = wire::Decoder::new(FRAME_LIMIT);
    let mut frames = Vec::new();
    for chunk in chunks {
        decoder.feed(chunk);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, false)
}

fn said<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(body: &[u8]) {
    if let Ok(message) = wire::decode::<M>(body) {
        let again = wire::encode(&message).expect("what was read can be written");
        assert_eq!(wire::decode::<M>(&again).expect("and read again"), message);
    }
}

/// Any packet between agent and keeper is read or refused, and what was read is written as it was.
pub fn keeper(data: &[u8]) {
    written_as_read::<Request>(data);
    written_as_read::<Reply>(data);
}

fn written_as_read<M: Serialize + DeserializeOwned>(data: &[u8]) {
    let Ok(messages) = protocol::decode::<M>(data) else { return };
    let mut packet = vec![protocol::VERSION];
    for message in &messages {
        let alone = protocol::encode(message).expect("what was read can be written");
        packet.extend_from_slice(&alone[1..]);
    }
    assert_eq!(packet, data);
}

/// Any datagram on a notify socket is read or refused; what it says holds no control characters.
pub fn notify(data: &[u8]) {
    if let Ok(notice) = notify::read(data) {
        assert!(data.len() <= notify::MAX_DATAGRAM);
        assert!(notice.status.is_none_or(|text| !text.contains(char::is_control)));
        assert!(notice.main_pid.is_none_or(|pid| pid > 0));
    }
}

/// Any bytes on a process socket, in one piece and cut in two, give the same messages.
pub fn rpc(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    let at = usize::from(*cut).min(stream.len());
    let heard = |chunks: &[&[u8]]| {
        let mut decoder = Decoder::default();
        let mut heard = Vec::new();
        for chunk in chunks {
            decoder.feed(chunk, |message| heard.push(message));
        }
        heard
    };
    let whole = heard(&[stream]);
    assert_eq!(whole, heard(&[&stream[..at], &stream[at..]]));
    for refusal in whole.into_iter().filter_map(Result::err) {
        let mut line = Vec::new();
        Outgoing::Refused(refusal).write(&mut line);
        assert_eq!(line.iter().position(|b| *b == b'\n'), Some(line.len() - 1));
    }
}
