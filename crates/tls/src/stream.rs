//! An established connection.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::ExtractedSecrets;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::error::TlsError;
use crate::negotiate::{ClientKeys, ServerKeys};
use crate::record::{Content, Ingoing, Next, Outgoing, Protection, Refusal, WORTH_WRITING};

/// A TLS connection after its handshake, either end.
///
/// Writes are gathered into whole records and leave on `poll_flush`, or before when a good deal has
/// come together: flush when there is nothing more to write for now. `poll_shutdown` sends
/// `close_notify`; an end of the connection below without the peer's is reported as
/// [`io::ErrorKind::UnexpectedEof`], so a cut is never taken for an end.
pub struct TlsStream<T = TcpStream> {
    transport: T,
    pub(crate) outgoing: Outgoing,
    ingoing: Ingoing,
    pub(crate) keys: Keys,
    /// Handshake messages that are not whole yet.
    messages: Vec<u8>,
    /// Records in a row that held no data.
    dataless: u16,
    /// Bytes of data that came.
    heard: u64,
    /// Times that the peer changed its keys.
    changes: u64,
    /// The peer asked us to change ours, which is due before our next data (RFC 8446 4.6.3). However
    /// often it asks until then, one change answers.
    asked: bool,
    peer_closed: bool,
    closed: bool,
    failed: Option<Refusal>,
}

/// The accepting end.
pub type ServerStream<T = TcpStream> = TlsStream<T>;
/// The dialling end.
pub type ClientStream<T = TcpStream> = TlsStream<T>;

/// The key schedule, for new keys on a long connection.
pub(crate) enum Keys {
    Client(Box<ClientKeys>),
    Server(Box<ServerKeys>),
}

/// A peer that sends only tickets, key changes or empty records is after our time: each costs a
/// decryption and some a key derivation. Servers send a handful of tickets at most.
const MAX_DATALESS: u16 = 64;

/// Changes of keys that a peer may make, whatever it sends: for each we derive keys, for five bytes of
/// its. Libraries change them after some ten million records.
const CHANGES: u64 = 64;

/// Bytes of data that earn it one more, for peers with a rule of their own.
const BYTES_FOR_CHANGE: u64 = 1024 * 1024;

/// Longest message after the handshake: a ticket, with room.
const MAX_MESSAGE: usize = 16 * 1024;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
const CLOSE_NOTIFY: [u8; 2] = [1, 0];
const FATAL: u8 = 2;

impl<T> TlsStream<T> {
    /// `early` is plaintext that came with the handshake, `rest` what was read behind it.
    pub(crate) fn new(
        transport: T,
        secrets: ExtractedSecrets,
        keys: Keys,
        early: &[u8],
        rest: &[u8],
    ) -> Result<Self, TlsError> {
        Ok(Self {
            transport,
            outgoing: Outgoing::new(Protection::new(secrets.tx)?),
            ingoing: Ingoing::new(Protection::new(secrets.rx)?, early, rest),
            keys,
            messages: Vec::new(),
            dataless: 0,
            heard: 0,
            changes: 0,
            asked: false,
            peer_closed: false,
            closed: false,
            failed: None,
        })
    }

    /// Goes on over another connection below.
    #[cfg(test)]
    pub(crate) fn over<U>(self, transport: U) -> TlsStream<U> {
        TlsStream {
            transport,
            outgoing: self.outgoing,
            ingoing: self.ingoing,
            keys: self.keys,
            messages: self.messages,
            dataless: self.dataless,
            heard: self.heard,
            changes: self.changes,
            asked: self.asked,
            peer_closed: self.peer_closed,
            closed: self.closed,
            failed: self.failed,
        }
    }

    /// The connection below.
    #[must_use]
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// Opens records until there is data. False if more has to be read.
    fn open(&mut self) -> Result<bool, Refusal> {
        while !self.peer_closed {
            match self.ingoing.open()? {
                Next::Missing => return Ok(false),
                Next::Data if !self.ingoing.plain().is_empty() => {
                    self.dataless = 0;
                    let length = u64::try_from(self.ingoing.plain().len()).unwrap_or(0);
                    self.heard = self.heard.saturating_add(length);
                    return Ok(true);
                }
                Next::Data => {}
                Next::Other(Content::Handshake, message) => self.hear(&message)?,
                Next::Other(_, alert) => self.heed(&alert)?,
            }
            self.dataless += 1;
            if self.dataless > MAX_DATALESS {
                return Err(Refusal::UnexpectedMessage);
            }
        }
        Ok(true)
    }

    /// Handshake messages after the handshake (RFC 8446 4.6).
    fn hear(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        self.messages.extend_from_slice(bytes);
        while let Some((&[kind, high, middle, low], rest)) = self.messages.split_first_chunk::<4>()
        {
            let length = u32::from_be_bytes([0, high, middle, low]);
            let length = usize::try_from(length).map_err(|_| Refusal::Decode)?;
            if length > MAX_MESSAGE {
                return Err(Refusal::Decode);
            }
            let Some((body, rest)) = rest.split_at_checked(length) else {
                return Ok(());
            };
            let update = match (kind, body, rest) {
                (NEW_SESSION_TICKET, _, _) => None, // nothing is ever resumed
                // Must be the last of its record, since the next is under other keys.
                (KEY_UPDATE, [asked @ 0..=1], []) => Some(*asked == 1),
                _ => return Err(Refusal::UnexpectedMessage),
            };
            self.messages.drain(..4 + length);
            if let Some(asked) = update {
                self.changes += 1;
                if self.changes > CHANGES + self.heard / BYTES_FOR_CHANGE {
                    return Err(Refusal::UnexpectedMessage);
                }
                self.ingoing.update(self.keys.next_ingoing()?);
                self.asked |= asked;
            }
        }
        Ok(())
    }

    fn update_outgoing(&mut self) -> Result<(), Refusal> {
        self.asked = false;
        self.outgoing
            .say(Content::Handshake, &[KEY_UPDATE, 0, 0, 1, 0])?;
        self.outgoing.update(self.keys.next_outgoing()?);
        Ok(())
    }

    fn heed(&mut self, alert: &[u8]) -> Result<(), Refusal> {
        match alert {
            [_, 0] => {
                self.peer_closed = true;
                Ok(())
            }
            [_, 90] => Ok(()), // user_canceled: a close_notify follows (RFC 8446 6.1)
            [_, _] => Err(Refusal::ByPeer),
            _ => Err(Refusal::Decode),
        }
    }

    /// Remembers that the connection is broken, and leaves an alert for the peer to be sent.
    fn fail(&mut self, refusal: Refusal) -> io::Error {
        if self.failed.is_none() {
            self.failed = Some(refusal);
            if let Some(alert) = refusal.alert() {
                // Without it the peer sees a cut, which is as good.
                let _ = self.outgoing.say(Content::Alert, &[FATAL, alert]);
            }
        }
        broken(refusal)
    }

    fn check(&self) -> io::Result<()> {
        self.failed.map_or(Ok(()), |refusal| Err(broken(refusal)))
    }

    fn take(&mut self, data: &[u8]) -> Result<usize, Refusal> {
        if self.asked || self.outgoing.wants_update() {
            self.update_outgoing()?;
        }
        self.outgoing.append(data)
    }
}

fn broken(refusal: Refusal) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, refusal)
}

impl Keys {
    fn next_ingoing(&mut self) -> Result<Protection, Refusal> {
        let secrets = match self {
            Self::Client(keys) => keys.update_rx_secret(),
            Self::Server(keys) => keys.update_rx_secret(),
        };
        Protection::new(secrets.map_err(|_| Refusal::Internal)?).map_err(|_| Refusal::Internal)
    }

    pub(crate) fn next_outgoing(&mut self) -> Result<Protection, Refusal> {
        let secrets = match self {
            Self::Client(keys) => keys.update_tx_secret(),
            Self::Server(keys) => keys.update_tx_secret(),
        };
        Protection::new(secrets.map_err(|_| Refusal::Internal)?).map_err(|_| Refusal::Internal)
    }
}

impl<T: AsyncWrite + Unpin> TlsStream<T> {
    /// Writes what is sealed, until less than `worth` bytes are left.
    fn poll_send(&mut self, cx: &mut Context<'_>, worth: usize) -> Poll<io::Result<()>> {
        while self.outgoing.sealed().len() >= worth {
            let sealed = self.outgoing.sealed();
            let sealed = sealed.get(..WORTH_WRITING).unwrap_or(sealed);
            let sent = ready!(Pin::new(&mut self.transport).poll_write(cx, sealed))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.advance(sent);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        if self.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if let Poll::Ready(Err(error)) = self.poll_send(cx, WORTH_WRITING) {
            return Poll::Ready(Err(error));
        }
        if self.outgoing.is_full() {
            Poll::Pending
        } else {
            Poll::Ready(Ok(()))
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.check()?;
        let before = buf.filled().len();
        loop {
            let fits = this.ingoing.plain().len().min(buf.remaining());
            buf.put_slice(this.ingoing.plain().get(..fits).unwrap_or_default());
            this.ingoing.take(fits);
            if buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            match this.open() {
                Ok(true) if this.peer_closed => return Poll::Ready(Ok(())),
                Ok(true) => continue,
                Ok(false) if buf.filled().len() > before => return Poll::Ready(Ok(())),
                Ok(false) => {}
                // What came before is good; the failure is kept for the next call.
                Err(refusal) => {
                    let error = this.fail(refusal);
                    // The alert may not get through; the failure stands either way.
                    let _ = this.poll_send(cx, 1);
                    let read = buf.filled().len() > before;
                    return Poll::Ready(if read { Ok(()) } else { Err(error) });
                }
            }
            // Nothing is written here, not even the answer to a key change: that goes out ahead of
            // the next data, and the writer's waker may be another task's.
            let mut space = ReadBuf::new(this.ingoing.space());
            ready!(Pin::new(&mut this.transport).poll_read(cx, &mut space))?;
            let read = space.filled().len();
            if read == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            this.ingoing.filled(read);
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_room(cx))?;
        Poll::Ready(this.take(buf).map_err(|refusal| this.fail(refusal)))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_room(cx))?;
        let mut taken = 0;
        for buf in bufs {
            let more = this.take(buf).map_err(|refusal| this.fail(refusal))?;
            taken += more;
            if more < buf.len() {
                break;
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.outgoing.seal().map_err(|refusal| this.fail(refusal))?;
        ready!(this.poll_send(cx, 1))?;
        Pin::new(&mut this.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.closed && this.failed.is_none() {
            this.closed = true;
            let said = this.outgoing.say(Content::Alert, &CLOSE_NOTIFY);
            said.map_err(|refusal| this.fail(refusal))?;
        }
        ready!(this.poll_send(cx, 1))?;
        Pin::new(&mut this.transport).poll_shutdown(cx)
    }
}

impl<T> fmt::Debug for TlsStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsStream(..)")
    }
}
