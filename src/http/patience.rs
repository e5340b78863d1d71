//! A stream whose other side must take something of what is written now and then, and that tells when an answer is out.
//!
//! Owns the moment up to which is waited. A reader that takes nothing would else hold its answer, and its place, for ever.
//! What is small goes out in one piece: to gather it costs less than to have the kernel do so, for thousands of watchers.
//! Called by `connection`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::cluster::wire::Outlet;

/// An event of a watch, or the answer that tells of one run, with its head.
const SMALL: usize = 1_024;

/// See the module.
pub(super) struct Patient<S> {
    stream: S,
    most: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    outlet: Outlet,
    /// Something was written since somebody waits for that.
    wrote: bool,
}

impl<S> Patient<S> {
    pub(super) fn new(stream: S, most: Duration, outlet: Outlet) -> Patient<S> {
        Patient { stream, most, stalled: None, outlet, wrote: false }
    }

    /// Who waits for an answer does so when it is made: what is written next is that.
    fn note_write(&mut self) {
        self.wrote = self.wrote || self.outlet.is_awaited();
    }

    /// What came of a write; one that waits for too long has failed.
    fn judge<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let most = self.most;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(most)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nothing is read any more")))
    }
}

/// The pieces one after the other, where there is room for them.
fn gather<'a>(pieces: &[io::IoSlice<'_>], into: &'a mut [u8; SMALL]) -> Option<&'a [u8]> {
    let mut end = 0;
    for piece in pieces {
        into.get_mut(end..end + piece.len())?.copy_from_slice(piece);
        end += piece.len();
    }
    Some(&into[..end])
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.note_write();
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.note_write();
        let mut small = [0; SMALL];
        let written = match gather(pieces, &mut small) {
            Some(whole) => Pin::new(&mut self.stream).poll_write(context, whole),
            None => Pin::new(&mut self.stream).poll_write_vectored(context, pieces),
        };
        self.judge(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        // Whoever writes flushes when nothing is left to be written.
        if flushed.is_ready() && std::mem::take(&mut self.wrote) {
            self.outlet.out();
        }
        self.judge(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(shut, context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn small_pieces_are_one_and_large_ones_stay_as_they_are() {
        let (head, body) = ([1; 24], [2; 1_000]);
        let pieces = |body| [io::IoSlice::new(&head), io::IoSlice::new(body)];
        let mut room = [0; SMALL];
        assert_eq!(gather(&pieces(&body), &mut room), Some(&[&head[..], &body].concat()[..]));
        assert_eq!(gather(&[], &mut room), Some(&[][..]));
        assert_eq!(gather(&pieces(&[2; 1_001]), &mut room), None);
        assert_eq!(gather(&pieces(&[2; 9_000]), &mut room), None);
    }

    #[tokio::test]
    async fn an_answer_is_out_when_all_of_it_is_written() {
        use tokio::sync::oneshot::error::TryRecvError;
        let (ours, mut theirs) = tokio::io::duplex(16);
        let outlet = Outlet::default();
        let mut patient = Patient::new(ours, Duration::from_secs(10), outlet.clone());
        patient.write_all(&[0; 8]).await.unwrap();
        let mut written = outlet.written();
        patient.flush().await.unwrap();
        assert_eq!(written.try_recv(), Err(TryRecvError::Empty), "that was another one");
        let writing = tokio::spawn(async move {
            patient.write_all(&[0; 64]).await.unwrap();
            patient.flush().await.unwrap();
            patient
        });
        let mut taken = [0; 40];
        theirs.read_exact(&mut taken).await.unwrap();
        assert_eq!(written.try_recv(), Err(TryRecvError::Empty), "there is more to come");
        theirs.read_exact(&mut taken[..32]).await.unwrap();
        let _patient = writing.await.unwrap();
        assert_eq!(written.try_recv(), Err(TryRecvError::Closed), "it is out");
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut patient = Patient::new(ours, Duration::from_millis(600), Outlet::default());
        let reading = tokio::spawn(async move {
            let mut taken = [0; 8];
            for _ in 0..8 {
                tokio::time::sleep(Duration::from_millis(150)).await;
                theirs.read_exact(&mut taken).await.unwrap();
            }
            theirs
        });
        patient.write_all(&[0; 64]).await.unwrap();
        let _theirs = reading.await.unwrap();
        let error = patient.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
