//! What a server says about itself when it is asked.
//!
//! Pure. Made by the codecs beside it; read by the supervision loop, which shows it as the instance's status.

use serde_json::{Map, Value};

use crate::client::message::Player;
use crate::status::PLAYER_LIST;

/// The longest text that is kept, in characters.
const MAX_TEXT: usize = 128;

/// What a server says about itself; `None` where its protocol has no such word. A TCP connection and
/// a command say nothing: all `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Connected people, spectators included (and bots, where the protocol cannot tell them apart).
    pub players: Option<u32>,
    /// How many may be connected at once.
    pub capacity: Option<u32>,
    /// The map that is played.
    pub map: Option<String>,
    /// The server's own name.
    pub name: Option<String>,
    /// The mode or game that is played.
    pub game: Option<String>,
    /// The server program's version.
    pub version: Option<String>,
    /// How long a message to a player and back takes on average, in milliseconds.
    pub ping_ms: Option<u32>,
    /// Who plays, as far as the server says.
    pub player_list: Option<Vec<Player>>,
}

impl Answer {
    /// The answer as the `status` of `InstanceView`: `players`, `capacity`, `map`, `name`, `game`,
    /// `version`, `ping_ms`, `player_list`, each only when known.
    pub fn status(&self) -> Map<String, Value> {
        let numbers = [("players", self.players), ("capacity", self.capacity), ("ping_ms", self.ping_ms)];
        let texts =
            [("map", &self.map), ("name", &self.name), ("game", &self.game), ("version", &self.version)];
        let numbers = numbers.into_iter().filter_map(|(key, n)| Some((key, Value::from(n?))));
        let texts = texts.into_iter().filter_map(|(key, t)| Some((key, Value::from(t.as_deref()?))));
        let list = self.player_list.as_ref().and_then(|list| serde_json::to_value(list).ok());
        let list = list.map(|list| (PLAYER_LIST, list));
        numbers.chain(texts).chain(list).map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// Text of a server, made fit to be shown: no control characters (a terminal would obey them), at most
/// 128 characters, bytes that are no UTF-8 replaced; `None` when nothing is left.
pub(super) fn shown(bytes: &[u8]) -> Option<String> {
    let text: String =
        String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_is_shown() {
        let answer = Answer { players: Some(0), map: Some("dm1".into()), ..Answer::default() };
        assert_eq!(Value::Object(answer.status()), serde_json::json!({"players": 0, "map": "dm1"}));
        assert!(Answer::default().status().is_empty());
        // Somebody was there before, and has left.
        let empty = Answer { player_list: Some(vec![]), ..Answer::default() };
        assert_eq!(Value::Object(empty.status()), serde_json::json!({ "player_list": [] }));
    }

    #[test]
    fn a_server_cannot_write_to_the_terminal_or_without_end() {
        assert_eq!(shown(b"\x1b[31mred\x07 caf\xe9 \r\n").as_deref(), Some("[31mred caf\u{fffd}"));
        assert_eq!(shown(&[b'x'; 1000]).map(|t| t.len()), Some(128));
        assert_eq!(shown(b" \0"), None);
    }
}
