//! A stream as an ordinary byte stream, for code that speaks tokio's traits.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ambit_relay::{Sink, Source};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Stream, StreamSink, StreamSource};

/// A [`Stream`] that reads and writes slices. Costs one copy each way.
#[derive(Debug)]
pub struct StreamIo {
    source: StreamSource,
    sink: StreamSink,
    /// The rest of the piece that was read last.
    piece: Bytes,
    /// What was taken and the sink has no room for yet: at most one write.
    pending: Bytes,
}

/// Most bytes taken from one write: one frame.
const MOST: usize = ambit_relay::LONGEST_PIECE;

impl From<Stream> for StreamIo {
    fn from(stream: Stream) -> Self {
        let (source, sink) = stream.split();
        Self {
            source,
            sink,
            piece: Bytes::new(),
            pending: Bytes::new(),
        }
    }
}

impl StreamIo {
    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            ready!(self.sink.poll_write(cx, &mut self.pending))?;
        }
        Poll::Ready(Ok(()))
    }

    fn take(&mut self, cx: &mut Context<'_>, bytes: Bytes) -> Poll<io::Result<usize>> {
        let taken = bytes.len();
        self.pending = bytes;
        match self.poll_pending(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // Taken either way; what has no room yet goes before the next write.
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken)),
        }
    }
}

impl AsyncRead for StreamIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.piece.is_empty() {
            match ready!(self.source.poll_next(cx))? {
                Some(piece) => self.piece = piece,
                None => return Poll::Ready(Ok(())),
            }
        }
        let fits = self.piece.len().min(buf.remaining());
        buf.put_slice(&self.piece.split_to(fits));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_pending(cx))?;
        let bytes = buf.get(..buf.len().min(MOST)).unwrap_or_default();
        self.take(cx, Bytes::copy_from_slice(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_pending(cx))?;
        let total = bufs.iter().map(|buf| buf.len()).sum::<usize>().min(MOST);
        let mut bytes = BytesMut::with_capacity(total);
        for buf in bufs {
            let fits = buf.len().min(total - bytes.len());
            bytes.extend_from_slice(buf.get(..fits).unwrap_or_default());
        }
        self.take(cx, bytes.freeze())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(cx))?;
        self.sink.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(cx))?;
        self.sink.poll_close(cx)
    }
}
