//! Cuts a byte stream into lines. Pure.

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
}
