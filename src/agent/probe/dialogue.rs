//! What the UDP query protocols have in common, without the socket: a dialogue says what to send and
//! takes what comes; a reader walks through a datagram.
//!
//! Pure and total: any bytes give a [`Step`] or [`Malformed`], never a panic. Driven by `udp`.

use super::answer::Answer;

/// One side of a conversation with a game server.
pub(super) trait Dialogue: Send {
    /// The datagram to send now. `attempt` counts from 0 and grows when nothing came for a while.
    fn request(&self, attempt: u32) -> Vec<u8>;

    /// How often a datagram may be sent in all before the timeout; 1 where a server limits the rate.
    fn attempts(&self) -> u32;

    /// Takes a datagram. After [`Malformed`] the dialogue goes on: a better one may follow.
    fn receive(&mut self, datagram: &[u8]) -> Result<Step, Malformed>;
}

/// How a dialogue goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send [`Dialogue::request`] again: it says something new.
    Ask,
    /// The dialogue is over.
    Done(Answer),
}

/// Why a datagram is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(pub &'static str);

/// Walks through a datagram.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Begins at the first byte.
    pub fn new(datagram: &'a [u8]) -> Self {
        Reader(datagram)
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed("it ends early"))?;
        self.0 = rest;
        Ok(taken)
    }

    /// Steps over bytes that must stand here.
    pub fn expect(&mut self, bytes: &[u8], otherwise: &'static str) -> Result<(), Malformed> {
        self.0 = self.0.strip_prefix(bytes).ok_or(Malformed(otherwise))?;
        Ok(())
    }

    /// The bytes up to `end`, which is stepped over.
    pub fn until(&mut self, end: u8) -> Result<&'a [u8], Malformed> {
        let at = self.0.iter().position(|b| *b == end).ok_or(Malformed("a text has no end"))?;
        let text = &self.0[..at];
        self.0 = &self.0[at + 1..];
        Ok(text)
    }

    /// A decimal number, ended by a zero byte.
    pub fn decimal(&mut self) -> Result<u32, Malformed> {
        let text = std::str::from_utf8(self.until(0)?).map_err(|_| Malformed("a number is no number"))?;
        text.parse().map_err(|_| Malformed("a number is no number"))
    }

    /// A number as Teeworlds packs it: 6 bits with continuation (0x80) and sign (0x40) in the first byte, then
    /// 7 bits a byte with continuation, least significant first, 5 bytes at most; a negative n is stored as !n.
    pub fn varint(&mut self) -> Result<i32, Malformed> {
        let first = self.take(1)?[0];
        let mut value = u32::from(first & 0x3f);
        let mut more = first & 0x80 != 0;
        for (shift, mask) in [(6, 0x7f), (13, 0x7f), (20, 0x7f), (27, 0x0f)] {
            if !more {
                break;
            }
            let byte = self.take(1)?[0];
            value |= u32::from(byte & mask) << shift;
            more = byte & 0x80 != 0;
        }
        let value = value.cast_signed();
        Ok(if first & 0x40 == 0 { value } else { !value })
    }

    /// A packed number that counts something.
    pub fn count(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.varint()?).map_err(|_| Malformed("a count is negative"))
    }
}

/// Packs a number; the inverse of [`Reader::varint`].
pub(super) fn pack(value: i32) -> Vec<u8> {
    let sign = if value < 0 { 0x40 } else { 0 };
    let mut left = (value ^ (value >> 31)).cast_unsigned();
    let mut low = (left & 0x3f) as u8 | sign;
    left >>= 6;
    let mut out = Vec::with_capacity(5);
    while left != 0 {
        out.push(low | 0x80);
        low = (left & 0x7f) as u8;
        left >>= 7;
    }
    out.push(low);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_packed_as_teeworlds_does() {
        for (value, bytes) in [
            (0, &[0x00][..]),
            (1, &[0x01]),
            (63, &[0x3f]),
            (64, &[0x80, 0x01]),
            (-1, &[0x40]),
            (-65, &[0xc0, 0x01]),
            (i32::MAX, &[0xbf, 0xff, 0xff, 0xff, 0x0f]),
            (i32::MIN, &[0xff, 0xff, 0xff, 0xff, 0x0f]),
        ] {
            assert_eq!(pack(value), bytes, "{value}");
        }
    }

    #[test]
    fn a_packed_number_has_five_bytes_at_most() {
        let mut reader = Reader::new(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x07]);
        assert_eq!(reader.varint(), Ok(0));
        assert_eq!(reader.rest(), [0x07]);
        assert_eq!(Reader::new(&[0x80]).varint(), Err(Malformed("it ends early")));
    }

    proptest! {
        #[test]
        fn packing_is_undone_by_reading(value: i32) {
            prop_assert_eq!(Reader::new(&pack(value)).varint(), Ok(value));
        }
    }
}
