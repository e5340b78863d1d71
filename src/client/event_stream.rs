//! Server-sent events out of a byte stream (WHATWG HTML, section 9.2).
//!
//! Owns the event that has not ended yet, never more than [`MAX_EVENT`]. Pure: bytes in, events out; the same events
//! however the stream is cut. Comments (an agent's keep-alives) and `retry` are passed over. Called by
//! `directory` and by the command line.

/// The largest event: a snapshot of some ten thousand runs.
const MAX_EVENT: usize = 64 << 20;

/// An event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Its place in the stream; `None`: it has none.
    pub id: Option<String>,
    /// What it is; "": a message.
    pub name: String,
    /// Its lines.
    pub data: String,
}

/// An event is larger than any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event has more than {MAX_EVENT} bytes")]
pub struct TooLarge;

/// An incremental reader.
#[derive(Debug, Default)]
pub struct Events {
    line: Vec<u8>,
    event: Event,
    /// The event has a line of data.
    said: bool,
}

impl Events {
    /// Takes the next piece; gives the events that it completes.
    pub fn feed(&mut self, piece: &[u8]) -> Result<Vec<Event>, TooLarge> {
        let mut events = Vec::new();
        for part in piece.split_inclusive(|b| *b == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() + self.event.data.len() > MAX_EVENT {
                return Err(TooLarge);
            }
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                let text = String::from_utf8_lossy(&line);
                events.extend(self.read(text.trim_end_matches(['\n', '\r'])));
            }
        }
        Ok(events)
    }

    fn read(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return std::mem::take(&mut self.said).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.event.id = Some(value.to_owned()),
            "event" => self.event.name = value.to_owned(),
            "data" => {
                if std::mem::replace(&mut self.said, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: Option<&str>, name: &str, data: &str) -> Event {
        Event { id: id.map(str::to_owned), name: name.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn events_survive_any_cut_and_skip_what_is_no_data() {
        let whole = ": keep-alive\n\nid: 7\nevent: put\ndata: {\"a\":1}\n\ndata:two\r\ndata: lines\r\n\r\n\
                     event: nothing\n\ndata: f\u{fc}r\nid: 8\nretry: 5\n\ndata: half";
        for cut in 0..whole.len() {
            let (a, b) = whole.as_bytes().split_at(cut);
            let mut events = Events::default();
            let mut got = events.feed(a).unwrap();
            got.extend(events.feed(b).unwrap());
            let wanted = [
                event(Some("7"), "put", "{\"a\":1}"),
                event(None, "", "two\nlines"),
                event(Some("8"), "", "f\u{fc}r"),
            ];
            assert_eq!(got, wanted, "cut at {cut}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut events = Events::default();
        let piece = vec![b'x'; 1 << 20];
        let fed = (0..65).map(|_| events.feed(&piece).is_ok()).filter(|fed| *fed).count();
        assert_eq!(fed, 64);
    }
}
