//! The first bytes of a stream: which protocol they begin, without taking them away.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::forward::forward_writes;
use crate::plan::SNIFF_TIMEOUT;

/// What a stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A request line of HTTP/1.
    Http1,
    /// The preface of HTTP/2 (RFC 9113 section 3.4).
    Http2,
    /// Something else.
    Other,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// No method is longer, and neither is a protocol's greeting that we wait for.
const LONGEST_METHOD: usize = 32;

/// A request line longer than this is no reason to go on waiting for its version.
const LONGEST_LINE: usize = 8 * 1024;

/// What the bytes so far say; `None`: more are needed.
#[must_use]
pub fn classify(bytes: &[u8]) -> Option<Protocol> {
    let compared = bytes.len().min(PREFACE.len());
    if bytes.get(..compared) == PREFACE.get(..compared) {
        return (compared == PREFACE.len()).then_some(Protocol::Http2);
    }
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let method = bytes.iter().take_while(|byte| token(byte)).count();
    match bytes.get(method) {
        None if method <= LONGEST_METHOD => return None,
        Some(b' ') if method > 0 && method <= LONGEST_METHOD => {}
        _ => return Some(Protocol::Other),
    }
    match memchr::memchr(b'\n', bytes) {
        Some(end) => {
            let line = bytes.get(..end).unwrap_or_default().trim_ascii_end();
            let http = line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0");
            Some(if http {
                Protocol::Http1
            } else {
                Protocol::Other
            })
        }
        None if bytes.len() > LONGEST_LINE => Some(Protocol::Other),
        None => None,
    }
}

/// A stream whose first bytes can be looked at and are then read again.
#[derive(Debug)]
pub struct Replay<T> {
    inner: T,
    seen: BytesMut,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Replay<T> {
    /// Nothing looked at yet.
    pub fn new(inner: T) -> Self {
        Self {
            inner,
            seen: BytesMut::new(),
        }
    }

    /// Reads until the protocol is known.
    ///
    /// # Errors
    /// If the stream fails, or stays silent longer than [`SNIFF_TIMEOUT`].
    pub async fn protocol(&mut self) -> io::Result<Protocol> {
        let looking = async {
            loop {
                if let Some(protocol) = classify(&self.seen) {
                    return Ok(protocol);
                }
                if self.inner.read_buf(&mut self.seen).await? == 0 {
                    return if self.seen.is_empty() {
                        Err(io::ErrorKind::UnexpectedEof.into())
                    } else {
                        Ok(Protocol::Other)
                    };
                }
            }
        };
        tokio::time::timeout(SNIFF_TIMEOUT, looking)
            .await
            .map_err(|_elapsed| io::ErrorKind::TimedOut)?
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Replay<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.seen.is_empty() {
            return Pin::new(&mut this.inner).poll_read(cx, buf);
        }
        let count = this.seen.len().min(buf.remaining());
        buf.put_slice(this.seen.get(..count).unwrap_or_default());
        this.seen.advance(count);
        if this.seen.is_empty() {
            this.seen = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

forward_writes!(Replay);

#[cfg(test)]
mod tests {
    use super::{Protocol, classify};

    #[test]
    fn first_bytes_name_the_protocol() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(Protocol::Http1)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Protocol::Http2)),
            (b"PRI * HTTP/2.0\r\n", None),
            (b"PRI", None),
            (b"GET /a", None),
            (b"", None),
            (b"\x16\x03\x01", Some(Protocol::Other)),
            (b"SSH-2.0-OpenSSH\r\n", Some(Protocol::Other)),
            (b"EHLO a\r\n", Some(Protocol::Other)),
            (b"GET / HTTP/3.0\r\n", Some(Protocol::Other)),
            (b"{\"id\":1}", Some(Protocol::Other)),
        ] {
            assert_eq!(classify(bytes), expected, "{bytes:?}");
        }
    }
}
