//! Lines out of a byte stream: the framing of the process API, the same on both ends.
//!
//! Owns the half of a line that has not ended yet, never more than the limit. Pure: bytes in, lines out; the
//! same lines however the stream is cut. Called by the client and by `process_api`.

/// The longest line to the agent, in bytes without its end.
pub const MAX_LINE: usize = 64 * 1024;

/// The longest line from the agent (the listing of a large cluster).
pub const MAX_ANSWER: usize = 512 * 1024;

/// A buffer larger than this is given back once its line is done.
const KEPT: usize = 4 * 1024;

/// What [`Lines::feed`] finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A line without its end (`\n` or `\r\n`); never blank.
    Whole(&'a [u8]),
    /// A line over the limit. Said once; what follows up to the next newline is skipped.
    TooLong,
}

/// An incremental splitter.
#[derive(Debug)]
pub struct Lines {
    limit: usize,
    half: Vec<u8>,
    skipping: bool,
}

impl Lines {
    /// A splitter for lines of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Lines { limit, half: Vec::new(), skipping: false }
    }

    /// A line has begun that has not ended.
    pub fn is_half(&self) -> bool {
        !self.half.is_empty()
    }

    /// Takes the next bytes of the stream and calls `each` for every line that ends in them.
    pub fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(Line<'_>)) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            let (head, tail) = (&bytes[..end], &bytes[end + 1..]);
            bytes = tail;
            if self.skipping {
                self.skipping = false;
            } else if self.half.len() + head.len() > self.limit {
                each(Line::TooLong);
            } else if self.half.is_empty() {
                whole(head, &mut each);
            } else {
                self.half.extend_from_slice(head);
                whole(&self.half, &mut each);
            }
            self.forget();
        }
        if self.skipping {
            return;
        }
        if self.half.len() + bytes.len() > self.limit {
            self.forget();
            self.skipping = true;
            each(Line::TooLong);
        } else {
            self.half.extend_from_slice(bytes);
        }
    }

    fn forget(&mut self) {
        self.half.clear();
        if self.half.capacity() > KEPT {
            self.half = Vec::new();
        }
    }
}

fn whole(line: &[u8], each: &mut impl FnMut(Line<'_>)) {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if !line.iter().all(u8::is_ascii_whitespace) {
        each(Line::Whole(line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(limit: usize, chunks: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::new(limit);
        let mut found = Vec::new();
        for chunk in chunks {
            lines.feed(chunk, |line| {
                found.push(match line {
                    Line::Whole(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                    Line::TooLong => "TOO LONG".to_owned(),
                })
            });
        }
        found
    }

    #[test]
    fn half_lines_wait_for_their_end_and_crlf_and_blank_lines_are_borne() {
        assert_eq!(split(20, &[b"on", b"e\r", b"\n\n  \r\ntwo\nthr"]), ["one", "two"]);
    }

    #[test]
    fn an_oversized_line_is_told_once_and_the_next_one_is_read() {
        assert_eq!(split(4, &[b"12345", b"6789", b"0\n", b"ok\n"]), ["TOO LONG", "ok"]);
        assert_eq!(split(4, &[b"12345\nok\n"]), ["TOO LONG", "ok"]);
        assert_eq!(split(4, &[b"1234\n"]), ["1234"], "exactly the limit is legal");
    }

    #[test]
    fn nothing_large_is_kept() {
        let mut lines = Lines::new(MAX_LINE);
        lines.feed(&vec![b'x'; MAX_LINE], |_| ());
        assert_eq!(lines.half.len(), MAX_LINE);
        lines.feed(b"y", |_| ());
        assert!(lines.half.capacity() <= KEPT, "{}", lines.half.capacity());
    }

    proptest! {
        #[test]
        fn the_cut_of_the_stream_changes_nothing(
            stream in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b' '), Just(b'a')], 0..200),
            cuts in proptest::collection::vec(0usize..200, 0..20),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(stream.len())).collect();
            cuts.push(stream.len());
            cuts.sort_unstable();
            let mut from = 0;
            let mut chunks = Vec::new();
            for cut in cuts {
                chunks.push(&stream[from..cut]);
                from = cut;
            }
            prop_assert_eq!(split(8, &chunks), split(8, &[&stream]));
        }
    }
}
