//! From messages to the bytes of a packet and back.

use serde::{Deserialize, Serialize};

use super::{MAX_GATHERED, MAX_PACKET, VERSION};

/// A packet that is not a message.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// No message at all.
    #[error("empty packet")]
    Empty,
    /// The other side speaks another version.
    #[error("protocol version {0}, this program speaks {VERSION}")]
    Version(u8),
    /// Larger than [`MAX_PACKET`].
    #[error("a packet of {0} bytes is over the limit of {MAX_PACKET}")]
    TooLarge(usize),
    /// Bytes that are no message.
    #[error("malformed packet")]
    Malformed(#[source] bincode::error::DecodeError),
}

/// A message that does not fit.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// Larger than [`MAX_PACKET`].
    #[error("a message of {0} bytes is over the limit of {MAX_PACKET}")]
    TooLarge(usize),
    /// bincode refused it.
    #[error("cannot encode the message")]
    Bincode(#[source] bincode::error::EncodeError),
}

fn layout() -> impl bincode::config::Config {
    bincode::config::standard().with_fixed_int_encoding().with_little_endian().with_limit::<MAX_PACKET>()
}

/// The bytes of a message, version first.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, EncodeError> {
    let mut out = vec![VERSION];
    bincode::serde::encode_into_std_write(message, &mut out, layout()).map_err(EncodeError::Bincode)?;
    if out.len() > MAX_PACKET {
        return Err(EncodeError::TooLarge(out.len()));
    }
    Ok(out)
}

/// Adds a message to those of a packet that is not sent yet. False: it does not fit, and nothing was added.
pub fn gather(packet: &mut Vec<u8>, message: &[u8]) -> bool {
    let fits = packet.len() + message.len() <= MAX_GATHERED;
    if fits {
        packet.extend_from_slice(&message[1..]);
    }
    fits
}

/// The messages of one packet, at least one.
pub fn decode<M: for<'de> Deserialize<'de>>(packet: &[u8]) -> Result<Vec<M>, DecodeError> {
    if packet.len() > MAX_PACKET {
        return Err(DecodeError::TooLarge(packet.len()));
    }
    let (version, mut body) = packet.split_first().ok_or(DecodeError::Empty)?;
    if *version != VERSION {
        return Err(DecodeError::Version(*version));
    }
    let mut messages = Vec::with_capacity(1);
    while !body.is_empty() {
        let (message, used) =
            bincode::serde::decode_from_slice(body, layout()).map_err(DecodeError::Malformed)?;
        messages.push(message);
        body = &body[used..];
    }
    if messages.is_empty() { Err(DecodeError::Empty) } else { Ok(messages) }
}
