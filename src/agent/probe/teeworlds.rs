//! Teeworlds 0.7: the connectionless server info, behind a token handshake.
//!
//! Pure; formats as seen on the wire of teeworlds-server 0.7.5:
//!
//! ```text
//! ask for a token   04 0000 ffffffff 05 <ours:4>, zeros up to 520 bytes
//! token             04 0000 <ours:4> 05 <theirs:4>
//! ask for the info  21 <theirs:4> <ours:4> ffffffff "gie3" <packed number>
//! info              21 <ours:4> <theirs:4> ffffffff "inf3" <packed number> version\0 name\0 hostname\0 map\0
//!                   gametype\0, packed: flags, skill, players, max players, clients, max clients; then clients
//! ```
//!
//! A server answers a wrong token with silence. Its token holds for our address and port only, so a socket a
//! question means a handshake a question.

use super::answer::{Answer, shown};
use super::dialogue::{Dialogue, Malformed, Reader, Step, pack};
use crate::client::message::Player;

/// Requests for a token are padded to this size, so that a server never sends more than it got.
const TOKEN_REQUEST_SIZE: usize = 520;

/// The state of one question.
pub(super) struct Teeworlds {
    ours: [u8; 4],
    theirs: Option<[u8; 4]>,
    number: i32,
}

impl Teeworlds {
    /// A question; `random` makes it unlike any other, so that no stranger can answer it.
    pub fn new(random: u64) -> Self {
        let [a, b, c, d, e, ..] = random.to_le_bytes();
        Teeworlds { ours: [a, b, c, d], theirs: None, number: i32::from(e) }
    }

    fn info(&self, reader: &mut Reader<'_>, theirs: [u8; 4]) -> Result<Answer, Malformed> {
        reader.expect(&self.ours, "it carries another token than ours")?;
        reader.expect(&theirs, "it carries another token than the server's")?;
        reader.expect(b"\xff\xff\xff\xffinf3", "it is no server info")?;
        if reader.varint()? != self.number {
            return Err(Malformed("it answers another question"));
        }
        let version = shown(reader.until(0)?);
        let name = shown(reader.until(0)?);
        reader.until(0)?; // the host name, empty unless configured
        let map = shown(reader.until(0)?);
        let game = shown(reader.until(0)?);
        reader.varint()?; // flags
        reader.varint()?; // skill level
        reader.count()?; // players without spectators
        reader.count()?; // of so many
        let players = Some(reader.count()?);
        let capacity = Some(reader.count()?);
        let player_list = Some(std::iter::from_fn(|| client(reader)).collect());
        Ok(Answer { players, capacity, map, name, game, version, player_list, ping_ms: None })
    }
}

/// The next client; `None` after the last, or when it makes no sense: that says nothing against the server.
fn client(reader: &mut Reader<'_>) -> Option<Player> {
    let name = shown(reader.until(0).ok()?);
    reader.until(0).ok()?; // clan
    reader.varint().ok()?; // country
    let score = reader.varint().ok()?;
    reader.varint().ok()?; // plays or watches
    let name = name.unwrap_or_default();
    Some(Player { name, score: Some(i64::from(score)), id: None, ping_ms: None })
}

impl Dialogue for Teeworlds {
    fn request(&self, _attempt: u32) -> Vec<u8> {
        match self.theirs {
            None => {
                let mut out = [&[0x04, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x05], &self.ours[..]].concat();
                out.resize(TOKEN_REQUEST_SIZE, 0);
                out
            }
            Some(theirs) => {
                [&[0x21], &theirs[..], &self.ours, b"\xff\xff\xff\xffgie3", &pack(self.number)].concat()
            }
        }
    }

    fn attempts(&self) -> u32 {
        4
    }

    fn receive(&mut self, datagram: &[u8]) -> Result<Step, Malformed> {
        let mut reader = Reader::new(datagram);
        if let Some(theirs) = self.theirs
            && datagram.first() == Some(&0x21)
        {
            reader.take(1)?;
            return Ok(Step::Done(self.info(&mut reader, theirs)?));
        }
        reader.expect(&[0x04, 0, 0], "it is no Teeworlds 0.7 datagram")?;
        reader.expect(&self.ours, "it carries another token than ours")?;
        reader.expect(&[0x05], "it is a control message, but no token")?;
        let mut theirs = [0; 4];
        theirs.copy_from_slice(reader.take(4)?);
        self.theirs = Some(theirs);
        Ok(Step::Ask)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: u64 = u64::from_le_bytes(*b"abcd\x05\0\0\0");
    const TOKEN: &[u8] = b"\x04\0\0abcd\x05\x0ehS\x9b";
    // As teeworlds-server 0.7.5 sent it, with three players of four clients put in.
    const INFO: &[u8] =
        b"\x21abcd\x0ehS\x9b\xff\xff\xff\xffinf3\x050.7.5\0unnamed server\0\0dm1\0DM\0\0\x01\x03\x08\x04\x10";

    #[test]
    fn a_question_is_a_token_and_an_info() {
        let mut dialogue = Teeworlds::new(OURS);
        let first = dialogue.request(0);
        assert_eq!(first.len(), 520);
        assert!(first.starts_with(b"\x04\0\0\xff\xff\xff\xff\x05abcd\0"));
        assert_eq!(dialogue.receive(TOKEN), Ok(Step::Ask));
        assert_eq!(dialogue.request(0), b"\x21\x0ehS\x9babcd\xff\xff\xff\xffgie3\x05");
        let answer = Answer {
            players: Some(4),
            capacity: Some(16),
            map: Some("dm1".into()),
            name: Some("unnamed server".into()),
            game: Some("DM".into()),
            version: Some("0.7.5".into()),
            ping_ms: None,
            player_list: Some(vec![]),
        };
        assert_eq!(dialogue.receive(INFO), Ok(Step::Done(answer.clone())));
        let (ann, bob) = (b"ann\0clan\0\x40\x07\0", b"bob\0\0\x40\x41\x01");
        let player =
            |name: &str, score| Player { name: name.into(), score: Some(score), ..Player::default() };
        let list = Some(vec![player("ann", 7), player("bob", -2)]);
        let told = dialogue.receive(&[INFO, ann, bob, b"half"].concat());
        assert_eq!(told, Ok(Step::Done(Answer { player_list: list, ..answer })));
    }

    #[test]
    fn another_token_is_no_answer() {
        let mut dialogue = Teeworlds::new(OURS);
        assert_eq!(
            dialogue.receive(b"\x04\0\0abce\x05\x0ehS\x9b"),
            Err(Malformed("it carries another token than ours"))
        );
        assert!(dialogue.receive(INFO).is_err(), "an info before the token");
        assert_eq!(dialogue.receive(TOKEN), Ok(Step::Ask));
        let mut forged = INFO.to_vec();
        forged[8] ^= 1;
        assert_eq!(dialogue.receive(&forged), Err(Malformed("it carries another token than the server's")));
        let mut late = INFO.to_vec();
        late[17] = 6;
        assert_eq!(dialogue.receive(&late), Err(Malformed("it answers another question")));
    }

    #[test]
    fn half_an_info_is_no_answer() {
        let mut dialogue = Teeworlds::new(OURS);
        assert_eq!(dialogue.receive(TOKEN), Ok(Step::Ask));
        for length in 0..INFO.len() {
            assert!(dialogue.receive(&INFO[..length]).is_err(), "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_borne(head in 0..INFO.len(), tail: Vec<u8>) {
            let mut dialogue = Teeworlds::new(OURS);
            let _ = dialogue.receive(&tail);
            let _ = dialogue.receive(TOKEN);
            let _ = dialogue.receive(&[&INFO[..head], &tail].concat());
        }
    }
}
