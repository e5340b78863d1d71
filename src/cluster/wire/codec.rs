//! From a value to bytes and back: the one place that knows bincode.
//!
//! Used for frames on the wire and for records on disk. Variable-length integers, little-endian; enums are
//! append-only, and a reader takes exactly the bytes that were written: what is left over is an error,
//! because it would be data that this version does not understand. Pure.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::frame::MAX_BODY;

/// Nothing that is read is larger: bincode makes room for a string before it looks whether its bytes are there.
const READING: Configuration<LittleEndian, Varint, Limit<{ 1 << 30 }>> =
    bincode::config::standard().with_limit::<{ 1 << 30 }>();

/// A value that does not fit.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// Larger than [`MAX_BODY`].
    #[error("a message of {0} bytes is over the limit of {MAX_BODY}")]
    TooLarge(usize),
    /// bincode refused it.
    #[error("cannot encode the message")]
    Bincode(#[source] bincode::error::EncodeError),
}

/// Bytes that are no such value.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Another type, or damaged.
    #[error("malformed message")]
    Malformed(#[source] bincode::error::DecodeError),
    /// Bytes after the value.
    #[error("{0} bytes after the end of the message: it comes from a newer version")]
    Trailing(usize),
}

/// The bytes of a message, at most [`MAX_BODY`].
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, EncodeError> {
    let bytes = encode_unbounded(value)?;
    if bytes.len() > MAX_BODY {
        return Err(EncodeError::TooLarge(bytes.len()));
    }
    Ok(bytes)
}

/// The bytes of a value that travels in parts or stays on disk (a snapshot).
pub fn encode_unbounded<T: Serialize>(value: &T) -> Result<Vec<u8>, EncodeError> {
    bincode::serde::encode_to_vec(value, bincode::config::standard()).map_err(EncodeError::Bincode)
}

/// The value of exactly these bytes. The allocations of a malicious message stay below its own bounds:
/// the caller limits `bytes`, and serde grows collections as their elements arrive.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (value, used) = decode_front(bytes)?;
    if used != bytes.len() {
        return Err(DecodeError::Trailing(bytes.len() - used));
    }
    Ok(value)
}

/// The value that begins these bytes, and how many of them it takes.
pub fn decode_front<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), DecodeError> {
    bincode::serde::decode_from_slice(bytes, READING).map_err(DecodeError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn left_over_bytes_are_refused() {
        let mut bytes = encode(&(1u64, "zone")).unwrap();
        assert_eq!(decode::<(u64, String)>(&bytes).unwrap(), (1, "zone".to_owned()));
        bytes.push(0);
        assert!(matches!(decode::<(u64, String)>(&bytes), Err(DecodeError::Trailing(1))));
        assert!(matches!(decode::<(u64, String)>(&bytes[..3]), Err(DecodeError::Malformed(_))));
    }

    #[test]
    fn what_is_too_large_is_refused_before_it_is_sent() {
        assert!(matches!(encode(&vec![0u8; MAX_BODY + 1]), Err(EncodeError::TooLarge(_))));
    }

    #[test]
    fn a_string_that_lies_is_refused() {
        // A String that claims 2^60 bytes.
        let bytes = [253, 0, 0, 0, 0, 0, 0, 0, 16, b'x'];
        assert!(matches!(decode::<String>(&bytes), Err(DecodeError::Malformed(_))));
    }

    #[test]
    fn a_length_that_lies_does_not_allocate_what_it_says() {
        // A Vec<u64> that claims 2^60 elements.
        let bytes = [253, 0, 0, 0, 0, 0, 0, 0, 16];
        assert!(matches!(decode::<Vec<u64>>(&bytes), Err(DecodeError::Malformed(_))));
    }
}
