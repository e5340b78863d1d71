//! Server-sent events of the directory, as they are written, and the ids that they carry.
//!
//! Pure. Called by `watchers` and `whole`.

use bytes::Bytes;
use serde::Serialize;

use crate::cluster::feed::At;

/// A place in the cluster's history that a watcher has seen: the id of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) history: u64,
    pub(super) at: At,
}

impl Seen {
    /// `HISTORY:INDEX:OFFSET`; `None`: it is none.
    pub(super) fn parse(text: &str) -> Option<Seen> {
        let mut parts = text.split(':');
        let (history, index, offset) = (parts.next()?, parts.next()?, parts.next()?);
        let history = u64::from_str_radix(history, 16).ok()?;
        let seen = Seen { history, at: (index.parse().ok()?, offset.parse().ok()?) };
        parts.next().is_none().then_some(seen)
    }

    fn id(self) -> String {
        format!("{:x}:{}:{}", self.history, self.at.0, self.at.1)
    }
}

/// An event (WHATWG HTML, section 9.2). JSON has no line breaks of its own.
pub(super) fn event(kind: &str, seen: Option<Seen>, data: &impl Serialize) -> Bytes {
    let id = seen.map(|seen| format!("id: {}\n", seen.id())).unwrap_or_default();
    let data = serde_json::to_string(data).unwrap_or_default();
    format!("event: {kind}\n{id}data: {data}\n\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::feed::END;

    #[test]
    fn the_id_of_an_event_is_read_as_it_was_written() {
        let seen = Seen { history: 0xbeef, at: (17, END) };
        assert_eq!(seen.id(), "beef:17:4294967295");
        assert_eq!(Seen::parse(&seen.id()), Some(seen));
        for wrong in ["", "beef:17", "beef:17:0:1", "x:1:2", "1:-1:2", "1:1:4294967296"] {
            assert_eq!(Seen::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_event_has_its_kind_its_id_and_one_line_of_data() {
        let seen = Seen { history: 7, at: (2, 0) };
        assert_eq!(event("put", Some(seen), &["a\nb"]), "event: put\nid: 7:2:0\ndata: [\"a\\nb\"]\n\n");
        assert_eq!(event("reset", None, &1), "event: reset\ndata: 1\n\n");
    }
}
