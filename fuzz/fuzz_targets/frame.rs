//! Any bytes from another agent, in one piece and cut in two, give the same frames; a frame that was read is
//! written as it came, and no body makes the codec panic.
#![no_main]

use bigbrother::cluster::wire::{Decoder, Frame, Hello, Kind, Refusal, Welcome, decode, encode};
use libfuzzer_sys::fuzz_target;

/// Small, so that the limit is met, too.
const LIMIT: usize = 512;

fn heard(chunks: &[&[u8]]) -> (Vec<Frame>, bool) {
    let mut decoder = Decoder::new(LIMIT);
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

fuzz_target!(|data: &[u8]| {
    let Some((cut, stream)) = data.split_first() else { return };
    let at = usize::from(*cut).min(stream.len());
    let (frames, broken) = heard(&[stream]);
    assert_eq!((frames.clone(), broken), heard(&[&stream[..at], &stream[at..]]));
    let mut written = Vec::new();
    for frame in &frames {
        frame.write(&mut written);
        match frame.kind {
            Kind::Hello => {
                if let Ok(hello) = decode::<Hello>(&frame.body) {
                    assert_eq!(decode::<Hello>(&encode(&hello).unwrap()).unwrap(), hello);
                }
            }
            Kind::Welcome => drop(decode::<Welcome>(&frame.body)),
            Kind::Refusal => drop(decode::<Refusal>(&frame.body)),
            _ => {}
        }
    }
    assert!(stream.starts_with(&written));
});
