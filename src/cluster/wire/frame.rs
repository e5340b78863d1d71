//! Frames: how messages are cut out of a stream of bytes.
//!
//! ```text
//! length u32 | magic "BB" | format u16 | kind u16 | ttl u32 | request u64 | body
//! ```
//!
//! Little-endian; `length` counts what follows it. `ttl` is how many milliseconds the asker still waits
//! (0: no answer is waited for), `request` pairs an answer with its request. Pure: bytes in, frames out.
//! Kinds are append-only; the golden test holds the bytes.

/// The first bytes after the length.
pub const MAGIC: [u8; 2] = *b"BB";
/// Bumped when the header changes its meaning; the handshake's versions are about the bodies.
pub const FORMAT: u16 = 1;
/// The largest body.
pub const MAX_BODY: usize = 16 * 1024 * 1024;
/// The largest body before the handshake is over.
pub const MAX_GREETING: usize = 4096;
/// Room that a decoder keeps between frames.
const KEPT: usize = 64 * 1024;
/// Bytes of the header behind the length.
const HEADER: usize = 18;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a frame's body is. Append-only.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Kind { $($(#[$doc])* $name = $number,)* }

        impl Kind {
            /// Every kind.
            pub const ALL: &[Kind] = &[$(Kind::$name,)*];

            /// The kind with this number.
            pub fn from_number(number: u16) -> Option<Kind> {
                match number { $($number => Some(Kind::$name),)* _ => None }
            }
        }
    };
}

kinds! {
    /// [`super::Hello`], the first frame of whoever dialled.
    Hello = 1,
    /// [`super::Welcome`], the answer.
    Welcome = 2,
    /// [`super::Refusal`], the other answer; the connection ends.
    Refusal = 3,
    /// The answer to a request; its body is that of the request's kind.
    Answer = 4,
    /// A request that could not be answered; the body is the reason, a string.
    Failure = 5,
    /// Raft: a vote is asked for.
    Vote = 16,
    /// Raft: whether a vote would be granted.
    PreVote = 17,
    /// Raft: entries or a heartbeat.
    Append = 18,
    /// Raft: the primary hands over.
    Transfer = 19,
    /// Raft: the head of a snapshot; the parts follow.
    SnapshotHead = 20,
    /// Raft: a part of a snapshot, bytes as they are.
    SnapshotPart = 21,
    /// A change of the replicated state, for the primary.
    Propose = 32,
    /// Whether this host belongs to a formed cluster.
    Probe = 33,
    /// A host without a number asks for one.
    Join = 34,
    /// A change of the peers, for the primary.
    Peers = 35,
    /// The index from which on a read is linearizable, from the primary.
    ReadIndex = 36,
    /// A host lives; relayed to the primary unchanged, and answered by it alone.
    Report = 37,
    /// How many hosts a peer serves, and who the peers are.
    Load = 38,
    /// A host begins a session with this peer.
    Attach = 39,
    /// What was applied since an index, once there is something.
    Follow = 40,
    /// A host is given up by hand, for the primary.
    GiveUp = 41,
    /// What only the primary knows of the hosts: who is silent, whether the brake holds.
    Roll = 42,
    /// A request of the API for another host.
    Tunnel = 43,
    /// What the runs of an attached host say about themselves, for its peer.
    Status = 44,
    /// What the runs of other hosts say, once there is more than the asker has.
    Statuses = 45,
    /// Whether a number is still that of a peer, from the primary.
    Seat = 46,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the body is.
    pub kind: Kind,
    /// Pairs an answer with its request.
    pub request: u64,
    /// How long the asker waits, in milliseconds.
    pub ttl_ms: u32,
    /// Encoded by [`super::codec`].
    pub body: Vec<u8>,
}

/// Bytes that are no frame; the connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not of this program.
    #[error("this is no Big Brother agent: the frame begins with {0:?}")]
    Magic([u8; 2]),
    /// Of a later version.
    #[error("frames of format {0}, this program reads {FORMAT}")]
    Format(u16),
    /// Over the limit, or shorter than its header.
    #[error("a frame of {0} bytes is not possible here")]
    Length(usize),
    /// Of a later version, which ought not to have sent it.
    #[error("a frame of the unknown kind {0}")]
    Kind(u16),
}

impl Frame {
    /// The answer to `request`.
    pub fn answer(request: u64, body: Vec<u8>) -> Frame {
        Frame { kind: Kind::Answer, request, ttl_ms: 0, body }
    }

    /// Appends the frame's bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        // A body is at most MAX_BODY, which the codec sees to.
        let length = u32::try_from(HEADER + self.body.len()).unwrap_or(u32::MAX);
        out.reserve(4 + HEADER + self.body.len());
        out.extend(length.to_le_bytes());
        out.extend(MAGIC);
        out.extend(FORMAT.to_le_bytes());
        out.extend((self.kind as u16).to_le_bytes());
        out.extend(self.ttl_ms.to_le_bytes());
        out.extend(self.request.to_le_bytes());
        out.extend_from_slice(&self.body);
    }
}

/// Cuts frames out of a stream.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Where the next frame begins in `buffer`.
    start: usize,
    limit: usize,
}

impl Decoder {
    /// Refuses bodies of more than `limit` bytes.
    pub fn new(limit: usize) -> Decoder {
        Decoder { buffer: Vec::new(), start: 0, limit }
    }

    /// Another limit from here on.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Takes bytes as they came.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
            if self.buffer.is_empty() {
                // One large frame must not keep its memory for the life of the connection.
                self.buffer.shrink_to(KEPT);
            }
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame. After an error the stream has no frames any more.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((length, rest)) = self.buffer[self.start..].split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if !(HEADER..=HEADER + self.limit).contains(&length) {
            return Err(FrameError::Length(length));
        }
        let Some((frame, _)) = rest.split_at_checked(length) else { return Ok(None) };
        let frame = parse(frame)?;
        self.start += 4 + length;
        Ok(Some(frame))
    }
}

fn parse(bytes: &[u8]) -> Result<Frame, FrameError> {
    let mut at = 0;
    let mut field = [0; HEADER];
    field.copy_from_slice(&bytes[..HEADER]);
    let mut take = |size: usize| {
        let mut number = [0; 8];
        number[..size].copy_from_slice(&field[at..at + size]);
        at += size;
        u64::from_le_bytes(number)
    };
    let (magic, format, kind, ttl_ms, request) = (take(2), take(2), take(2), take(4), take(8));
    let [low, high, ..] = magic.to_le_bytes();
    if [low, high] != MAGIC {
        return Err(FrameError::Magic([low, high]));
    }
    // The fields are as narrow as they were read.
    let (format, kind, ttl_ms) = (format as u16, kind as u16, ttl_ms as u32);
    if format != FORMAT {
        return Err(FrameError::Format(format));
    }
    let kind = Kind::from_number(kind).ok_or(FrameError::Kind(kind))?;
    Ok(Frame { kind, request, ttl_ms, body: bytes[HEADER..].to_vec() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bytes_of_a_frame_are_these() {
        let frame = Frame { kind: Kind::Vote, request: 0x0102, ttl_ms: 250, body: b"body".to_vec() };
        let mut bytes = Vec::new();
        frame.write(&mut bytes);
        let golden = [
            22, 0, 0, 0, b'B', b'B', 1, 0, 16, 0, 250, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, b'b', b'o', b'd',
            b'y',
        ];
        assert_eq!(bytes, golden);
    }

    #[test]
    fn the_numbers_of_the_kinds_are_these() {
        let numbers: Vec<u16> = Kind::ALL.iter().map(|kind| *kind as u16).collect();
        assert_eq!(
            numbers,
            [
                1, 2, 3, 4, 5, 16, 17, 18, 19, 20, 21, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44,
                45, 46
            ]
        );
        assert!(Kind::ALL.iter().all(|kind| Kind::from_number(*kind as u16) == Some(*kind)));
    }

    #[test]
    fn what_is_no_frame_is_refused_with_the_reason() {
        let broken = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = Vec::new();
            Frame { kind: Kind::Hello, request: 1, ttl_ms: 0, body: vec![0; 8] }.write(&mut bytes);
            change(&mut bytes);
            let mut decoder = Decoder::new(8);
            decoder.feed(&bytes);
            decoder.next_frame()
        };
        assert!(broken(&|_| {}).unwrap().is_some());
        assert_eq!(broken(&|b| b[4] = b'G'), Err(FrameError::Magic(*b"GB")));
        assert_eq!(broken(&|b| b[6] = 9), Err(FrameError::Format(9)));
        assert_eq!(broken(&|b| b[8] = 99), Err(FrameError::Kind(99)));
        assert_eq!(broken(&|b| b[0] = 27), Err(FrameError::Length(27)));
        assert_eq!(broken(&|b| b[0] = 3), Err(FrameError::Length(3)));
        assert_eq!(broken(&|b| b.truncate(20)), Ok(None));
    }

    proptest! {
        #[test]
        fn a_stream_cut_anywhere_gives_the_same_frames(
            frames in prop::collection::vec((0..Kind::ALL.len(), any::<u64>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..64)), 0..8),
            cuts in prop::collection::vec(1usize..40, 1..20),
        ) {
            let frames: Vec<Frame> = frames
                .into_iter()
                .map(|(kind, request, ttl_ms, body)| Frame { kind: Kind::ALL[kind], request, ttl_ms, body })
                .collect();
            let mut bytes = Vec::new();
            frames.iter().for_each(|frame| frame.write(&mut bytes));
            let mut decoder = Decoder::new(64);
            let mut heard = Vec::new();
            let (mut rest, mut sizes) = (&bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
                decoder.feed(now);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    heard.push(frame);
                }
                rest = later;
            }
            prop_assert_eq!(heard, frames);
        }
    }
}
