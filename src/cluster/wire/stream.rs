//! Frames over a socket, in plain or under TLS.
//!
//! Owns the buffers of one connection. Never decides what a frame means. Called by `dial`, `line`, `serve`.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use super::codec::{DecodeError, EncodeError};
use super::frame::{Decoder, Frame, FrameError, MAX_BODY, MAX_GREETING};

/// How much is read at once, at first and at most: most connections carry little, and a peer has many.
const CHUNK: (usize, usize) = (4 * 1024, 64 * 1024);

// For openraft, which knows the storage's failures as those of input and output.
impl From<EncodeError> for io::Error {
    fn from(error: EncodeError) -> Self {
        io::Error::other(error)
    }
}

impl From<DecodeError> for io::Error {
    fn from(error: DecodeError) -> Self {
        io::Error::other(error)
    }
}

/// A socket, in plain or under TLS.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The other side hung up.
    #[error("the connection was closed")]
    Closed,
    /// The socket failed.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// What came is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Reads frames.
pub struct Reader {
    half: ReadHalf<Box<dyn Duplex>>,
    decoder: Decoder,
    chunk: Vec<u8>,
}

/// Writes frames.
pub struct Writer {
    half: WriteHalf<Box<dyn Duplex>>,
    out: Vec<u8>,
}

/// Both ends of a socket; bodies are small until [`Reader::greeted`].
pub fn split(socket: Box<dyn Duplex>) -> (Reader, Writer) {
    let (read, write) = tokio::io::split(socket);
    let reader = Reader { half: read, decoder: Decoder::new(MAX_GREETING), chunk: vec![0; CHUNK.0] };
    (reader, Writer { half: write, out: Vec::new() })
}

impl Reader {
    /// The handshake is over: bodies may be large.
    pub fn greeted(&mut self) {
        self.decoder.set_limit(MAX_BODY);
    }

    /// The next frame. Cancel safe: nothing that was read is lost.
    pub async fn next(&mut self) -> Result<Frame, ReadError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(frame);
            }
            match self.half.read(&mut self.chunk).await? {
                0 => return Err(ReadError::Closed),
                read => {
                    self.decoder.feed(&self.chunk[..read]);
                    if read == self.chunk.len() && read < CHUNK.1 {
                        self.chunk.resize(2 * read, 0);
                    }
                }
            }
        }
    }
}

impl Writer {
    /// Sends frames in one go.
    pub async fn send(&mut self, frames: &[Frame]) -> io::Result<()> {
        self.out.clear();
        frames.iter().for_each(|frame| frame.write(&mut self.out));
        self.half.write_all(&self.out).await?;
        // One large frame must not keep its memory for the life of the connection.
        self.out.shrink_to(CHUNK.0);
        self.half.flush().await
    }

    /// Ends the connection in order, so that what was sent last arrives.
    pub async fn close(mut self) {
        let _ = self.half.shutdown().await;
    }
}
