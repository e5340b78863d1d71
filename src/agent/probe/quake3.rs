//! Quake 3 and its descendants: `getstatus`.
//!
//! Pure; formats as seen on the wire of ioquake3 (openarena-server 0.8.8):
//!
//! ```text
//! ask      ffffffff "getstatus\n"
//! status   ffffffff "statusResponse\n" "\key\value\key\value...\n", then one line a client: <score> <ping> "<name>"
//! ```
//!
//! Here and not through `gamedig`, which (0.9.0) never reads the list of clients, so that every server would
//! look empty, and cuts answers at 1,024 bytes. A server lets about one question a second of an address
//! through and drops the others without a word, so a question is sent once.

use super::answer::{Answer, shown};
use super::dialogue::{Dialogue, Malformed, Reader, Step};
use crate::client::message::Player;

/// One question.
pub(super) struct Quake3;

impl Dialogue for Quake3 {
    fn request(&self, _attempt: u32) -> Vec<u8> {
        b"\xff\xff\xff\xffgetstatus\n".to_vec()
    }

    fn attempts(&self) -> u32 {
        1
    }

    fn receive(&mut self, datagram: &[u8]) -> Result<Step, Malformed> {
        let mut reader = Reader::new(datagram);
        reader.expect(b"\xff\xff\xff\xffstatusResponse\n", "it is no status response")?;
        let settings = reader.until(b'\n')?;
        let mut answer = Answer::default();
        let mut words = settings.split(|b| *b == b'\\').skip(1);
        while let (Some(key), Some(value)) = (words.next(), words.next()) {
            match key {
                b"mapname" => answer.map = shown(value),
                b"sv_hostname" => answer.name = shown(value),
                b"gamename" => answer.game = shown(value),
                b"version" => answer.version = shown(value),
                b"sv_maxclients" => {
                    answer.capacity = std::str::from_utf8(value).ok().and_then(|n| n.parse().ok());
                }
                _ => {}
            }
        }
        if answer.map.is_none() {
            return Err(Malformed("it names no map"));
        }
        let lines = reader.rest().split(|b| *b == b'\n').filter(|line| !line.is_empty());
        answer.players = u32::try_from(lines.clone().count()).ok();
        let list: Vec<Player> = lines.filter_map(client).collect();
        // Bots have none.
        let pings: Vec<u32> = list.iter().filter_map(|player| player.ping_ms).filter(|ms| *ms > 0).collect();
        let sum: u64 = pings.iter().map(|ms| u64::from(*ms)).sum();
        answer.ping_ms = sum.checked_div(pings.len() as u64).and_then(|mean| u32::try_from(mean).ok());
        answer.player_list = Some(list);
        Ok(Step::Done(answer))
    }
}

/// `3 48 "Grism"`
fn client(line: &[u8]) -> Option<Player> {
    let mut words = line.splitn(3, |b| *b == b' ');
    let mut number = || std::str::from_utf8(words.next()?).ok()?.parse().ok();
    let (score, ping): (Option<i64>, Option<i64>) = (number(), number());
    let name = words.next()?.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    let ping_ms = ping.and_then(|ping| u32::try_from(ping).ok());
    Some(Player { name: shown(name)?, score, ping_ms, id: None })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // As ioq3ded sent it, most settings left out.
    const STATUS: &[u8] = b"\xff\xff\xff\xffstatusResponse\n\\version\\ioq3 1.36/Debian\\mapname\\oa_dm1\\sv_privateClients\\0\\sv_hostname\\noname\\sv_maxclients\\8\\gamename\\baseoa\\g_needpass\\0\n0 0 \"Sarge\"\n3 48 \"Grism\"\n";

    fn player(name: &str, score: i64, ping_ms: u32) -> Player {
        Player { name: name.into(), score: Some(score), ping_ms: Some(ping_ms), id: None }
    }

    #[test]
    fn a_status_is_read_with_its_clients() {
        let answer = Answer {
            players: Some(2),
            capacity: Some(8),
            map: Some("oa_dm1".into()),
            name: Some("noname".into()),
            game: Some("baseoa".into()),
            version: Some("ioq3 1.36/Debian".into()),
            ping_ms: Some(48),
            player_list: Some(vec![player("Sarge", 0, 0), player("Grism", 3, 48)]),
        };
        assert_eq!(Quake3.receive(STATUS), Ok(Step::Done(answer)));
    }

    #[test]
    fn anything_else_is_no_answer() {
        assert_eq!(Quake3.receive(b"\xff\xff\xff\xffdisconnect"), Err(Malformed("it is no status response")));
        assert_eq!(
            Quake3.receive(b"\xff\xff\xff\xffstatusResponse\n\\mapname\\x"),
            Err(Malformed("a text has no end"))
        );
        assert_eq!(
            Quake3.receive(b"\xff\xff\xff\xffstatusResponse\n\\a\\b\n"),
            Err(Malformed("it names no map"))
        );
    }

    #[test]
    fn a_server_is_asked_once() {
        assert_eq!(Quake3.attempts(), 1, "the second question would be held against the next probe");
    }

    proptest! {
        #[test]
        fn any_bytes_are_borne(head in 0..STATUS.len(), tail: Vec<u8>) {
            let _ = Quake3.receive(&tail);
            let _ = Quake3.receive(&[&STATUS[..head], &tail].concat());
        }
    }
}
