//! Teeworlds 0.6 and DDNet: the connectionless server info, plain and extended.
//!
//! Pure; formats as seen on the wire of DDNet-Server 16.4:
//!
//! ```text
//! plain     ff*10 "gie3" <token:1>                          ff*10 "inf3" token\0 version\0 name\0 map\0
//!           gametype\0 flags\0 players\0 max players\0 clients\0 max clients\0 ...
//! extended  "xe" <more token:2> 0000 ffffffff "gie3" <token:1>    ff*10 "iext" token\0 version\0 name\0 map\0
//!           crc\0 size\0 gametype\0 flags\0 players\0 max players\0 clients\0 max clients\0 ...
//! ```
//!
//! Numbers are decimal text. The plain form never tells of more than 16 clients, so the extended one is
//! asked for first; a 0.6 server that does not know it is silent and gets the plain one next.

use super::answer::{Answer, shown};
use super::dialogue::{Dialogue, Malformed, Reader, Step};
use crate::client::message::Player;

/// One question.
pub(super) struct Ddnet {
    token: u8,
    more: [u8; 2],
}

impl Ddnet {
    /// A question; `random` makes it unlike any other.
    pub fn new(random: u64) -> Self {
        let [token, a, b, ..] = random.to_le_bytes();
        Ddnet { token, more: [a, b] }
    }

    fn extended_token(&self) -> u32 {
        u32::from_be_bytes([0, self.more[0], self.more[1], self.token])
    }
}

impl Dialogue for Ddnet {
    fn request(&self, attempt: u32) -> Vec<u8> {
        let [a, b] = self.more;
        let header = if attempt.is_multiple_of(2) { [b'x', b'e', a, b, 0, 0] } else { [0xff; 6] };
        [&header, &b"\xff\xff\xff\xffgie3"[..], &[self.token]].concat()
    }

    fn attempts(&self) -> u32 {
        4
    }

    fn receive(&mut self, datagram: &[u8]) -> Result<Step, Malformed> {
        let mut reader = Reader::new(datagram);
        reader.take(6)?;
        reader.expect(&[0xff; 4], "it is no Teeworlds 0.6 datagram")?;
        let (extended, token) = match reader.take(4)? {
            b"iext" => (true, self.extended_token()),
            b"inf3" => (false, u32::from(self.token)),
            _ => return Err(Malformed("it is no server info")),
        };
        if reader.decimal()? != token {
            return Err(Malformed("it carries another token than ours"));
        }
        let version = shown(reader.until(0)?);
        let name = shown(reader.until(0)?);
        let map = shown(reader.until(0)?);
        if extended {
            reader.until(0)?; // the map's checksum
            reader.until(0)?; // and size
        }
        let game = shown(reader.until(0)?);
        reader.until(0)?; // flags
        reader.decimal()?; // players without spectators
        reader.decimal()?; // of so many
        let players = Some(reader.decimal()?);
        let capacity = Some(reader.decimal()?);
        if extended {
            let _ = reader.until(0); // room for more
        }
        let player_list = Some(std::iter::from_fn(|| client(&mut reader, extended)).collect());
        let answer = Answer { players, capacity, map, name, game, version, player_list, ping_ms: None };
        Ok(Step::Done(answer))
    }
}

/// The next client; `None` after the last, or when it makes no sense: that says nothing against the server.
fn client(reader: &mut Reader<'_>, extended: bool) -> Option<Player> {
    let name = shown(reader.until(0).ok()?);
    reader.until(0).ok()?; // clan
    reader.until(0).ok()?; // country
    let score = std::str::from_utf8(reader.until(0).ok()?).ok()?.parse().ok()?;
    reader.until(0).ok()?; // plays or watches
    if extended {
        reader.until(0).ok()?; // room for more
    }
    Some(Player { name: name.unwrap_or_default(), score: Some(score), id: None, ping_ms: None })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RANDOM: u64 = u64::from_le_bytes(*b"\x07\x12\x34\0\0\0\0\0");
    // As DDNet-Server 16.4 sent them, with players put in.
    const PLAIN: &[u8] =
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xffinf37\x000.6.4, 16.4\0My DDNet server [3/64]\0Tutorial\0TestDDraceNetwor\x000\x002\x0016\x003\x0016\0";
    const EXTENDED: &[u8] =
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xffiext1192967\x000.6.4, 16.4\0My DDNet server\0Tutorial\0-1924373370\x001082711\0TestDDraceNetwor\x000\x0030\x0064\x0031\x0064\0\0";

    fn answer(datagram: &[u8]) -> Result<Step, Malformed> {
        Ddnet::new(RANDOM).receive(datagram)
    }

    #[test]
    fn the_extended_form_is_asked_for_first() {
        let dialogue = Ddnet::new(RANDOM);
        assert_eq!(dialogue.request(0), b"xe\x12\x34\0\0\xff\xff\xff\xffgie3\x07");
        assert_eq!(dialogue.request(1), b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xffgie3\x07");
        assert_eq!(dialogue.request(2), dialogue.request(0));
    }

    #[test]
    fn both_forms_are_read() {
        let extended = Answer {
            players: Some(31),
            capacity: Some(64),
            map: Some("Tutorial".into()),
            name: Some("My DDNet server".into()),
            game: Some("TestDDraceNetwor".into()),
            version: Some("0.6.4, 16.4".into()),
            ping_ms: None,
            player_list: Some(vec![]),
        };
        assert_eq!(answer(EXTENDED), Ok(Step::Done(extended.clone())));
        let name = Some("My DDNet server [3/64]".into());
        let plain = Answer { players: Some(3), capacity: Some(16), name, ..extended };
        assert_eq!(answer(PLAIN), Ok(Step::Done(plain)));
    }

    #[test]
    fn both_forms_tell_who_plays() {
        let player =
            |name: &str, score| Player { name: name.into(), score: Some(score), ..Player::default() };
        let wanted = Some(vec![player("ann", 7), player("bob", -9999)]);
        let extended = b"ann\0clan\0\x3276\0\x37\0\x31\0\0bob\0\0-1\0-9999\0\x30\0\0half\0";
        let plain = b"ann\0clan\0\x3276\0\x37\0\x31\0bob\0\0-1\0-9999\0\x30\0half\0";
        for (info, clients) in [(EXTENDED, &extended[..]), (PLAIN, &plain[..])] {
            let Ok(Step::Done(told)) = answer(&[info, clients].concat()) else { panic!("no answer") };
            assert_eq!(told.player_list, wanted);
        }
    }

    #[test]
    fn another_token_is_no_answer() {
        for info in [PLAIN, EXTENDED] {
            let mut forged = info.to_vec();
            forged[14] = b'8';
            assert_eq!(answer(&forged), Err(Malformed("it carries another token than ours")));
        }
    }

    #[test]
    fn half_an_info_is_no_answer() {
        // The last zero byte of the extended form is the empty list of clients.
        for (info, needed) in [(PLAIN, PLAIN.len()), (EXTENDED, EXTENDED.len() - 1)] {
            for length in 0..needed {
                assert!(answer(&info[..length]).is_err(), "{length} bytes");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_borne(head in 0..EXTENDED.len(), tail: Vec<u8>) {
            let _ = answer(&tail);
            let _ = answer(&[&EXTENDED[..head], &tail].concat());
            let _ = answer(&[&PLAIN[..head.min(PLAIN.len())], &tail].concat());
        }
    }
}
