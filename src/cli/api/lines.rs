//! Cuts a byte stream into lines, and an event stream into its data.
//!
//! Pure. Server-sent events are read as far as the agent uses them: `data:` lines up to an empty line; ids,
//! names and comments (its keep-alives) are passed over. (WHATWG HTML, section 9.2.)

/// A line longer than this is cut: a stream must not fill the memory.
const MAX_LINE: usize = 1 << 20;

/// Cuts a stream into lines without their ends.
#[derive(Debug, Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Takes the next piece; gives the lines that it completes.
    pub fn feed(&mut self, piece: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for part in piece.split_inclusive(|b| *b == b'\n') {
            self.rest.extend_from_slice(part);
            if part.ends_with(b"\n") || self.rest.len() >= MAX_LINE {
                lines.extend(self.end());
            }
        }
        lines
    }

    /// What is left when the stream has ended: a line without its end.
    pub fn end(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.rest);
        if line.is_empty() {
            return None;
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        Some(text.strip_suffix('\r').unwrap_or(text).to_owned())
    }
}

/// Reads the data of server-sent events.
#[derive(Debug, Default)]
pub struct Events {
    lines: Lines,
    data: Vec<String>,
}

impl Events {
    /// Takes the next piece; gives the data of the events that it completes.
    pub fn feed(&mut self, piece: &[u8]) -> Vec<String> {
        let mut events = Vec::new();
        for line in self.lines.feed(piece) {
            if let Some(data) = line.strip_prefix("data:") {
                self.data.push(data.strip_prefix(' ').unwrap_or(data).to_owned());
            } else if line.is_empty() && !self.data.is_empty() {
                events.push(std::mem::take(&mut self.data).join("\n"));
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_any_cut() {
        let whole = "one\ntwo\r\n\nfür\nlast";
        for cut in 0..whole.len() {
            let (a, b) = whole.as_bytes().split_at(cut);
            let mut lines = Lines::default();
            let mut got = lines.feed(a);
            got.extend(lines.feed(b));
            got.extend(lines.end());
            assert_eq!(got, ["one", "two", "", "für", "last"], "cut at {cut}");
        }
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let mut lines = Lines::default();
        assert_eq!(lines.feed(&vec![b'x'; MAX_LINE + 5]).len(), 1);
        assert!(lines.feed(b"y").is_empty(), "the rest starts anew");
    }

    #[test]
    fn events_survive_any_cut_and_skip_what_is_no_data() {
        let whole = ": keep-alive\n\nid: 7\nevent: x\ndata: {\"a\":1}\n\ndata:two\ndata: lines\n\ndata: half";
        for cut in 0..whole.len() {
            let (a, b) = whole.as_bytes().split_at(cut);
            let mut events = Events::default();
            let mut got = events.feed(a);
            got.extend(events.feed(b));
            assert_eq!(got, ["{\"a\":1}", "two\nlines"], "cut at {cut}");
        }
    }
}
