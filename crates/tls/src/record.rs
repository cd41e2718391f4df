//! TLS 1.3 records after the handshake (RFC 8446 section 5), sealed and opened in place.
//!
//! rustls makes the handshake and keeps the key schedule; the records themselves are cut here, in
//! buffers that we own, so that a byte is copied once on its way out and once on its way in, and one
//! system call carries as many records as there are.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::ConnectionTrafficSecrets;

use crate::aead::{Algorithm, Key, Library, TAG};
use crate::error::TlsError;

/// RFC 8446 5.1: content type, two bytes of version, two of length.
pub(crate) const HEADER: usize = 5;
/// RFC 8446 5.1: most plaintext in one record.
pub(crate) const MAX_PLAINTEXT: usize = 1 << 14;
/// Most plaintext in a record of ours. Eight such records are [`WORTH_WRITING`], and hold the longest piece that a relay gives (122 KiB)
/// with the head of its frame: so frame, records, write and packets begin and end together.
const PLAINTEXT: usize = 15_619;
/// Sealed bytes that are worth a write before the flush, and the most in one write: eight records. The kernel makes two packets of
/// them, which are cut for the wire late. With some hundred bytes more there would be a third, for common sizes of segments: the
/// relay's `LONGEST_PIECE` has the reckoning.
pub(crate) const WORTH_WRITING: usize = 8 * (HEADER + PLAINTEXT + 1 + TAG);
/// RFC 8446 5.2: most bytes of one protected record after its header.
const MAX_PROTECTED: usize = MAX_PLAINTEXT + 256;
/// RFC 8446 5.5 allows 2^24.5 full records under one AES-GCM key: new keys well before.
const RECORDS_BEFORE_UPDATE: u64 = 1 << 23;

/// RFC 8446 B.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Alert,
    Handshake,
    Data,
}

impl Content {
    fn byte(self) -> u8 {
        match self {
            Self::Alert => 21,
            Self::Handshake => 22,
            Self::Data => 23,
        }
    }
}

/// Why a connection broke after its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("peer sent a message that has no place here")]
    UnexpectedMessage,
    #[error("peer sent a record that does not authenticate")]
    BadRecord,
    #[error("peer sent a record that is too long")]
    TooLong,
    #[error("peer sent a message that cannot be read")]
    Decode,
    #[error("peer ended the connection with an alert")]
    ByPeer,
    #[error("internal error")]
    Internal,
}

impl Refusal {
    /// The alert that says so (RFC 8446 6.2); none is sent in answer to an alert.
    pub(crate) fn alert(self) -> Option<u8> {
        match self {
            Self::UnexpectedMessage => Some(10),
            Self::BadRecord => Some(20),
            Self::TooLong => Some(22),
            Self::Decode => Some(50),
            Self::ByPeer => None,
            Self::Internal => Some(80),
        }
    }
}

/// One direction's key, nonce base and record number.
pub(crate) struct Protection {
    key: Key,
    iv: [u8; 12],
    sequence: u64,
    /// Number of the record before which keys are changed.
    update_at: u64,
}

impl Protection {
    pub(crate) fn new(
        (sequence, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, TlsError> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Algorithm::Aes128Gcm, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Algorithm::Aes256Gcm, key, iv),
            // The provider has no other suite.
            _ => return Err(TlsError::Bug("cipher suite is not ours")),
        };
        let key = Key::new(Library::best(), algorithm, key.as_ref())
            .map_err(|_| TlsError::Bug("traffic key has a wrong length"))?;
        let iv = iv
            .as_ref()
            .try_into()
            .map_err(|_| TlsError::Bug("nonce has a wrong length"))?;
        Ok(Self {
            key,
            iv,
            sequence,
            update_at: RECORDS_BEFORE_UPDATE,
        })
    }

    pub(crate) fn wants_update(&self) -> bool {
        self.sequence >= self.update_at
    }

    /// RFC 8446 5.3: the record number, big-endian, over the last eight bytes of the nonce base. The
    /// number can never come round: keys are changed long before.
    fn nonce(&mut self) -> [u8; 12] {
        let mut nonce = self.iv;
        let number = self.sequence.to_be_bytes();
        nonce
            .iter_mut()
            .skip(4)
            .zip(number)
            .for_each(|(byte, number)| *byte ^= number);
        self.sequence += 1;
        nonce
    }

    /// Protects `record`: its header's place, and the plaintext after it.
    fn seal(
        &mut self,
        content: Content,
        record: &mut Vec<u8>,
        start: usize,
    ) -> Result<(), Refusal> {
        record.push(content.byte());
        let nonce = self.nonce();
        let (header, body) = record
            .get_mut(start..)
            .and_then(|record| record.split_first_chunk_mut::<HEADER>())
            .ok_or(Refusal::Internal)?;
        let length = u16::try_from(body.len() + TAG)
            .map_err(|_| Refusal::Internal)?
            .to_be_bytes();
        *header = [Content::Data.byte(), 3, 3, length[0], length[1]];
        let tag = self
            .key
            .seal(nonce, *header, body)
            .map_err(|_| Refusal::Internal)?;
        record.extend_from_slice(&tag);
        Ok(())
    }
}

/// Bytes on their way out: sealed records, and behind them one that still takes bytes.
pub(crate) struct Outgoing {
    protection: Protection,
    bytes: Vec<u8>,
    sent: usize,
    /// Where the record begins that is not sealed yet.
    open: Option<usize>,
    /// Times in a row that little was sent from much space.
    small: u8,
}

/// Sealed bytes that wait for the transport, at most. Twice what one write takes, so that the
/// transport has something while the next records are made.
const OUTGOING: usize = 256 * 1024;
/// Space kept when little is sent: one request or answer.
const OUTGOING_IDLE: usize = 4 * 1024;
/// Little sends in a row before space is given back.
const SMALL_SENDS: u8 = 16;

impl Outgoing {
    pub(crate) fn new(protection: Protection) -> Self {
        Self {
            protection,
            bytes: Vec::new(),
            sent: 0,
            open: None,
            small: 0,
        }
    }

    pub(crate) fn wants_update(&self) -> bool {
        self.protection.wants_update()
    }

    pub(crate) fn update(&mut self, protection: Protection) {
        let records = self.protection.update_at;
        self.protection = protection;
        self.protection.update_at = records;
    }

    /// Changes keys after so few records that a test sees it.
    #[cfg(test)]
    pub(crate) fn update_every(&mut self, records: u64) {
        self.protection.update_at = records;
    }

    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() - self.sent >= OUTGOING
    }

    /// Takes bytes from `data` until it is empty or this is full. Answers how many.
    pub(crate) fn append(&mut self, data: &[u8]) -> Result<usize, Refusal> {
        let mut rest = data;
        while !rest.is_empty() && !self.is_full() {
            let start = self.begin();
            let room = (start + HEADER + PLAINTEXT).saturating_sub(self.bytes.len());
            let (piece, tail) = rest.split_at_checked(room).unwrap_or((rest, &[]));
            self.bytes.extend_from_slice(piece);
            rest = tail;
            if piece.len() == room {
                self.seal()?;
            }
        }
        Ok(data.len() - rest.len())
    }

    fn begin(&mut self) -> usize {
        if let Some(start) = self.open {
            return start;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; HEADER]);
        self.open = Some(start);
        start
    }

    /// Seals the open record, if there is one.
    pub(crate) fn seal(&mut self) -> Result<(), Refusal> {
        match self.open.take() {
            Some(start) => self.protection.seal(Content::Data, &mut self.bytes, start),
            None => Ok(()),
        }
    }

    /// Adds a record that is no data.
    pub(crate) fn say(&mut self, content: Content, payload: &[u8]) -> Result<(), Refusal> {
        self.seal()?;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; HEADER]);
        self.bytes.extend_from_slice(payload);
        self.protection.seal(content, &mut self.bytes, start)
    }

    /// What can be sent.
    pub(crate) fn sealed(&self) -> &[u8] {
        let end = self.open.unwrap_or(self.bytes.len());
        self.bytes.get(self.sent..end).unwrap_or_default()
    }

    /// `count` bytes of [`Outgoing::sealed`] are sent.
    pub(crate) fn advance(&mut self, count: usize) {
        self.sent += count;
        let used = self.bytes.len();
        let all = self.sent >= self.open.unwrap_or(used);
        if all || self.sent >= OUTGOING {
            self.bytes.drain(..self.sent);
            self.open = self.open.map(|start| start - self.sent);
            self.sent = 0;
        }
        if all {
            self.give_back(used);
        }
    }

    fn give_back(&mut self, used: usize) {
        if self.bytes.capacity() <= OUTGOING_IDLE || used > self.bytes.capacity() / 4 {
            self.small = 0;
            return;
        }
        self.small += 1;
        if self.small >= SMALL_SENDS {
            self.bytes.shrink_to(OUTGOING_IDLE);
            self.small = 0;
        }
    }
}

/// What the next record in an [`Ingoing`] buffer is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Application data, now in [`Ingoing::plain`].
    Data,
    /// Another content, with its bytes.
    Other(Content, Vec<u8>),
    /// Not whole yet.
    Missing,
}

/// Bytes on their way in: first what was opened and not taken, then what was not opened.
pub(crate) struct Ingoing {
    protection: Protection,
    /// All of it initialised; its length is the space.
    bytes: Vec<u8>,
    /// Opened bytes.
    plain: std::ops::Range<usize>,
    /// Bytes that were not opened.
    start: usize,
    end: usize,
    /// Reads in a row that filled little of the space.
    small: u8,
    /// While the space is the longest.
    longest: Option<Longest>,
}

/// Space for ingoing bytes: for an idle connection, for one record, and for a stream of them (one packet, and what the other end
/// writes at once).
const STEPS: [usize; 4] = [
    4 * 1024,
    HEADER + MAX_PROTECTED,
    4 * (HEADER + MAX_PROTECTED),
    LONGEST,
];
const LONGEST: usize = 8 * (HEADER + MAX_PROTECTED);
/// Connections of this process that may have the longest space: with 16 MiB together. Further ones have half of it, so that whoever
/// opens thousands of connections and sends once on each gets no more of our memory for that.
pub(crate) const MOST_LONGEST: usize = 128;
static HAVE_LONGEST: AtomicUsize = AtomicUsize::new(0);

/// Leave to have the longest space.
pub(crate) struct Longest(());

impl Longest {
    pub(crate) fn get() -> Option<Self> {
        let one_more = |now| (now < MOST_LONGEST).then_some(now + 1);
        let taken = HAVE_LONGEST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.ok().map(|_| Self(()))
    }
}

impl Drop for Longest {
    fn drop(&mut self) {
        HAVE_LONGEST.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Small reads in a row before space is given back.
const SMALL_READS: u8 = 32;

impl Ingoing {
    /// `early` was opened during the handshake, `rest` was read then and not opened.
    pub(crate) fn new(protection: Protection, early: &[u8], rest: &[u8]) -> Self {
        let bytes = [early, rest].concat();
        let (start, end) = (early.len(), bytes.len());
        let mut this = Self {
            protection,
            bytes,
            plain: 0..start,
            start,
            end,
            small: 0,
            longest: None,
        };
        if this.bytes.len() < STEPS[0] {
            this.bytes.resize(STEPS[0], 0);
        }
        this
    }

    pub(crate) fn update(&mut self, protection: Protection) {
        self.protection = protection;
    }

    /// Opened bytes that wait for the reader.
    pub(crate) fn plain(&self) -> &[u8] {
        self.bytes.get(self.plain.clone()).unwrap_or_default()
    }

    /// The reader took `count` of [`Ingoing::plain`].
    pub(crate) fn take(&mut self, count: usize) {
        self.plain.start = (self.plain.start + count).min(self.plain.end);
    }

    /// Opens the next record. To be called when [`Ingoing::plain`] is empty.
    pub(crate) fn open(&mut self) -> Result<Next, Refusal> {
        let Some(length) = self.whole()? else {
            return Ok(Next::Missing);
        };
        let body = self.start + HEADER;
        let record = self
            .bytes
            .get_mut(self.start..body + length)
            .ok_or(Refusal::Internal)?;
        self.start = body + length;
        let (header, sealed) = record
            .split_first_chunk_mut::<HEADER>()
            .ok_or(Refusal::Internal)?;
        let nonce = self.protection.nonce();
        let opened = self
            .protection
            .key
            .open(nonce, *header, sealed)
            .map_err(|_| Refusal::BadRecord)?;
        // RFC 8446 5.2: the content type is the last byte that is not zero.
        let last = opened
            .iter()
            .rposition(|byte| *byte != 0)
            .ok_or(Refusal::UnexpectedMessage)?;
        if last > MAX_PLAINTEXT {
            return Err(Refusal::TooLong);
        }
        let (payload, content) = opened.split_at_checked(last).ok_or(Refusal::Internal)?;
        match content.first() {
            Some(23) => {
                self.plain = body..body + last;
                Ok(Next::Data)
            }
            Some(22) => Ok(Next::Other(Content::Handshake, payload.to_vec())),
            Some(21) => Ok(Next::Other(Content::Alert, payload.to_vec())),
            _ => Err(Refusal::UnexpectedMessage),
        }
    }

    /// Length of the next record's body, if all of it is here.
    fn whole(&mut self) -> Result<Option<usize>, Refusal> {
        let waiting = self
            .bytes
            .get(self.start..self.end)
            .ok_or(Refusal::Internal)?;
        let Some(header) = waiting.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [content, _, _, high, low] = *header;
        if content != Content::Data.byte() {
            return Err(Refusal::UnexpectedMessage);
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > MAX_PROTECTED {
            return Err(Refusal::TooLong);
        }
        if length <= TAG {
            return Err(Refusal::Decode);
        }
        let here = waiting.len() >= HEADER + length;
        if !here && self.bytes.len() < HEADER + length {
            self.resize(STEPS[1]);
        }
        Ok(here.then_some(length))
    }

    /// Space to read into, never empty. To be called when nothing can be opened.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            // At most one unfinished record is moved.
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        self.plain = 0..0;
        if self.end == 0 && self.small >= SMALL_READS {
            self.small = 0;
            self.bytes.truncate(STEPS[0]);
            self.bytes.shrink_to_fit();
            self.longest = None;
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// `count` bytes were read into [`Ingoing::space`].
    pub(crate) fn filled(&mut self, count: usize) {
        self.end += count;
        let space = self.bytes.len();
        if self.end >= space {
            self.small = 0;
            let next = STEPS.into_iter().find(|step| *step > space);
            if next == Some(LONGEST) {
                self.longest = Longest::get();
            }
            if next != Some(LONGEST) || self.longest.is_some() {
                self.resize(next.unwrap_or(space));
            }
        } else if space > STEPS[0] && count < STEPS[0] / 2 {
            self.small = self.small.saturating_add(1);
        } else {
            self.small = 0;
        }
    }

    fn resize(&mut self, space: usize) {
        if self.bytes.len() < space {
            self.bytes.resize(space, 0);
        }
    }
}
