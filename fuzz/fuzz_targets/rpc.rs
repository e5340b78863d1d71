//! Any bytes on a process socket, in one piece and cut in two, give the same messages.
#![no_main]

use bigbrother::process_api::rpc::{Decoder, Outgoing};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
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
});
