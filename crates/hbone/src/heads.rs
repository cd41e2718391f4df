//! Header blocks, read before the engine reads them.
//!
//! A message with a field that cannot be (a name in upper case, a pseudo field nobody knows, a line's end in a value) is malformed,
//! and only its stream is to end (RFC 9113 section 8.1.1). The engine takes such a field for an error of compression and ends the
//! connection with every stream on it: one careless header of one application's proxy would cut the tunnels of all.
//!
//! So blocks are decoded here, and handed to the engine as plain fields that need no table. In the place of a malformed one it gets a
//! block of which it knows that the stream alone must end. What is truly an error of the connection stays one: bytes that are no
//! header block, frames in between, blocks that do not end.
//!
//! Everything else passes where it is. Only what stands around header blocks is copied.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ambit_wire::hpack;
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderName, Method, StatusCode};
use tokio::io::{AsyncRead, ReadBuf};

use crate::settings::Settings;

const HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// A block, and what its fields come to, may be this many times as long as a list of fields: what is refused for its length
/// alone must still be read, or the connection ends.
const LONGEST: usize = 4;

/// Frames that a block may go on in: with the smallest that every peer may send, more than the longest block takes.
const MOST_FRAMES: usize = 8;

/// Read at once while a block is waited for, so that a peer that sends it byte by byte costs little.
const STEP: usize = 2048;

/// Follows the frames of a connection as they are read.
#[derive(Debug)]
pub(crate) struct Heads {
    decoder: hpack::Decoder,
    max_frame: usize,
    max_list: usize,
    /// Bytes to come that pass as they are.
    skip: usize,
    /// Read and not judged; begins at a frame's head.
    held: BytesMut,
    /// Judged, for the engine.
    ready: Bytes,
    block: Option<Block>,
    over: bool,
    /// Heads seen since they were last asked for.
    frames: usize,
}

/// A header block of which more is to come.
#[derive(Debug)]
struct Block {
    stream: u32,
    ends: bool,
    bytes: Vec<u8>,
    frames: usize,
}

/// What a frame begins with.
#[derive(Debug, Clone, Copy)]
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Heads {
    /// Before anything was read; the first `skip` bytes are no frame.
    pub(crate) fn new(skip: usize, settings: &Settings) -> Self {
        Self {
            decoder: hpack::Decoder::new(),
            max_frame: usize::try_from(settings.max_frame).unwrap_or(usize::MAX),
            max_list: usize::try_from(settings.max_header_list).unwrap_or(usize::MAX),
            skip,
            held: BytesMut::new(),
            ready: Bytes::new(),
            block: None,
            over: false,
            frames: 0,
        }
    }

    /// How many frames began since this was last asked.
    pub(crate) fn frames(&mut self) -> usize {
        std::mem::take(&mut self.frames)
    }

    /// Reads from `io` what the engine may have. Answers how many bytes came from there; when it is none
    /// and `buf` has nothing new either, the connection has ended.
    pub(crate) fn poll_read(
        &mut self,
        io: Pin<&mut (impl AsyncRead + ?Sized)>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<Read>> {
        let missing = match self.next(buf) {
            Next::Given => return Poll::Ready(Ok(Read::Some(0))),
            Next::Over => return Poll::Ready(Ok(Read::End)),
            Next::Missing(missing) => missing,
        };
        let read = if missing == 0 {
            let before = buf.filled().len();
            ready!(io.poll_read(cx, buf))?;
            let new = buf.filled().get(before..).unwrap_or_default();
            let read = new.len();
            let passes = pass(&mut self.skip, &mut self.frames, new);
            self.held
                .extend_from_slice(new.get(passes..).unwrap_or_default());
            buf.set_filled(before + passes);
            read
        } else {
            ready!(self.fill(io, cx, missing))?
        };
        if read == 0 {
            // Half a frame, for the engine to see that it is one.
            self.over = true;
            self.ready = self.held.split().freeze();
        } else {
            self.judge();
        }
        if read == 0 && self.ready.is_empty() {
            return Poll::Ready(Ok(Read::End));
        }
        Poll::Ready(Ok(Read::Some(read)))
    }

    /// Gives what was judged; says how many bytes make the next judgement possible, none if they may go straight to the engine.
    fn next(&mut self, buf: &mut ReadBuf<'_>) -> Next {
        if self.ready.is_empty() {
            self.judge();
        }
        if !self.ready.is_empty() {
            let part = self.ready.len().min(buf.remaining());
            buf.put_slice(&self.ready.split_to(part));
            return Next::Given;
        }
        if self.over {
            return Next::Over;
        }
        if self.held.is_empty() && self.block.is_none() {
            return Next::Missing(0);
        }
        let frame = head(&self.held).map_or(HEAD, |head| HEAD + head.length);
        Next::Missing(frame.saturating_sub(self.held.len()).max(1))
    }

    fn fill(
        &mut self,
        io: Pin<&mut (impl AsyncRead + ?Sized)>,
        cx: &mut Context<'_>,
        missing: usize,
    ) -> Poll<std::io::Result<usize>> {
        let before = self.held.len();
        self.held.resize(before + missing.min(STEP), 0);
        let mut buf = ReadBuf::new(self.held.get_mut(before..).unwrap_or_default());
        let result = io.poll_read(cx, &mut buf);
        let read = buf.filled().len();
        self.held.truncate(before + read);
        result.map_ok(|()| read)
    }

    /// Judges what is held, up to the first that the engine may have.
    fn judge(&mut self) {
        while self.ready.is_empty() && !self.over {
            if self.block.is_none() {
                let passes = pass(&mut self.skip, &mut self.frames, &self.held);
                if passes > 0 {
                    self.ready = self.held.split_to(passes).freeze();
                    return;
                }
            }
            let Some(head) = head(&self.held) else {
                if self.held.is_empty() {
                    self.held = BytesMut::new(); // keeps no room while the connection is quiet
                }
                return;
            };
            if self.block.is_some() != (head.kind == CONTINUATION) || head.length > self.max_frame {
                return self.fail();
            }
            if self.held.len() < HEAD + head.length {
                return;
            }
            let mut frame = self.held.split_to(HEAD + head.length);
            frame.advance(HEAD);
            self.frames += 1;
            self.frame(head, &frame);
        }
    }

    fn frame(&mut self, head: Head, payload: &[u8]) {
        let part = if head.kind == HEADERS {
            fragment(head.flags, payload).filter(|_| head.stream != 0)
        } else {
            let same = self.block.as_ref();
            same.filter(|block| block.stream == head.stream)
                .map(|_| payload)
        };
        let Some(part) = part else {
            return self.fail();
        };
        let mut block = self.block.take().unwrap_or(Block {
            stream: head.stream,
            ends: head.flags & END_STREAM != 0,
            bytes: Vec::new(),
            frames: 0,
        });
        block.bytes.extend_from_slice(part);
        block.frames += 1;
        if head.flags & END_HEADERS != 0 {
            self.finish(&block);
        } else if block.frames > MOST_FRAMES {
            self.flooded(block.stream);
        } else {
            self.block = Some(block);
        }
        let longest = self.max_list.saturating_mul(LONGEST);
        if let Some(block) = self.block.take_if(|block| block.bytes.len() > longest) {
            self.flooded(block.stream);
        }
    }

    /// The block is whole.
    fn finish(&mut self, block: &Block) {
        let (mut fields, mut size, mut sound) = (Vec::new(), 0, true);
        let longest = self.max_list.saturating_mul(LONGEST);
        let decoded = self.decoder.decode(&block.bytes, longest, |name, value| {
            size += name.len() + value.len() + 32; // RFC 9113 section 6.5.2
            sound = sound && size <= self.max_list && can_be(name, value);
            if sound {
                hpack::write(&mut fields, name, value);
            }
        });
        if decoded.is_err() {
            return self.fail();
        }
        if !sound {
            fields.clear();
            hpack::write(&mut fields, b"connection", b""); // no field of HTTP/2
        }
        let flags = if block.ends { END_STREAM } else { 0 };
        self.ready = frames(block.stream, flags, &fields, self.max_frame);
    }

    /// Ends the connection: a frame that nothing can go on behind.
    fn fail(&mut self) {
        self.over = true;
        self.ready = frame(CONTINUATION, END_HEADERS, 1, &[]).into();
    }

    /// Ends the connection for the cost that it made: a block in more frames than the engine lets pass.
    fn flooded(&mut self, stream: u32) {
        self.over = true;
        let more = 2 * (self.max_list / self.max_frame.max(1)) + 2 * MOST_FRAMES;
        let mut flood = frame(HEADERS, 0, stream, &[]);
        flood.extend((0..more).flat_map(|_| frame(CONTINUATION, 0, stream, &[])));
        self.ready = flood.into();
    }
}

/// What a read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// So many bytes from below.
    Some(usize),
    /// The end of the connection.
    End,
}

enum Next {
    Given,
    Over,
    Missing(usize),
}

/// How many of `bytes` the engine may have as they are: up to a header block, or a head that is not whole.
fn pass(skip: &mut usize, frames: &mut usize, bytes: &[u8]) -> usize {
    let mut rest = bytes;
    loop {
        let part = (*skip).min(rest.len());
        *skip -= part;
        rest = rest.get(part..).unwrap_or_default();
        match head(rest) {
            Some(head) if !matches!(head.kind, HEADERS | CONTINUATION) => {
                *skip = HEAD + head.length;
                *frames += 1;
            }
            _ => return bytes.len() - rest.len(),
        }
    }
}

fn head(bytes: &[u8]) -> Option<Head> {
    let &[a, b, c, kind, flags, d, e, f, g] = bytes.first_chunk::<HEAD>()?;
    Some(Head {
        length: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
        kind,
        flags,
        stream: u32::from_be_bytes([d & 0x7f, e, f, g]),
    })
}

/// The part of a block that a HEADERS frame has, without padding and priority.
fn fragment(flags: u8, mut payload: &[u8]) -> Option<&[u8]> {
    let mut padding = 0;
    if flags & PADDED != 0 {
        let (first, rest) = payload.split_first()?;
        (padding, payload) = (usize::from(*first), rest);
    }
    if flags & PRIORITY != 0 {
        payload = payload.get(5..)?;
    }
    payload.get(..payload.len().checked_sub(padding)?)
}

/// Whether the engine can read the field, which is what RFC 9113 section 8.2.1 says of each, and section 8.3 of pseudo fields.
fn can_be(name: &[u8], value: &[u8]) -> bool {
    match name.strip_prefix(b":") {
        Some(b"method") => Method::from_bytes(value).is_ok(),
        Some(b"status") => StatusCode::from_bytes(value).is_ok(),
        Some(b"authority" | b"scheme" | b"path" | b"protocol") => {
            std::str::from_utf8(value).is_ok()
        }
        Some(_) => false,
        None => {
            let text = |byte: &u8| *byte == b'\t' || *byte >= b' ' && *byte != 0x7f;
            HeaderName::from_lowercase(name).is_ok() && value.iter().all(text)
        }
    }
}

/// A whole block as frames of at most `longest` bytes.
fn frames(stream: u32, flags: u8, mut block: &[u8], longest: usize) -> Bytes {
    let mut out = Vec::with_capacity(HEAD + block.len());
    let mut kind = HEADERS;
    let mut flags = flags;
    while let Some((part, rest)) = block.split_at_checked(longest) {
        out.extend(frame(kind, flags, stream, part));
        (kind, flags, block) = (CONTINUATION, 0, rest);
    }
    out.extend(frame(kind, flags | END_HEADERS, stream, block));
    out.into()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(payload.len())
        .unwrap_or_default()
        .to_be_bytes();
    let mut frame = Vec::with_capacity(HEAD + payload.len());
    frame.extend(length);
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use tokio::io::ReadBuf;

    use super::{HEAD, Heads, Read};
    use crate::settings::Settings;

    #[test]
    fn counts_the_frames_it_passes_and_those_it_holds() {
        let empty = super::frame(0, 0, 1, &[]);
        let block = super::frame(super::HEADERS, super::END_HEADERS, 1, &[0x82]);
        let bytes = [empty.repeat(3), block, empty.repeat(2)].concat();
        let mut io = bytes.as_slice();
        let mut heads = Heads::new(0, &Settings::default());
        let mut cx = Context::from_waker(Waker::noop());
        let (mut room, mut frames, mut given) = (vec![0; 1000], 0, 0);
        loop {
            let mut buf = ReadBuf::new(&mut room);
            let read = heads.poll_read(std::pin::Pin::new(&mut io), &mut cx, &mut buf);
            frames += heads.frames();
            given += buf.filled().len();
            match read {
                std::task::Poll::Ready(Ok(Read::Some(_))) => {}
                std::task::Poll::Ready(Ok(Read::End)) => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(frames, 6);
        assert!(given > 6 * HEAD);
    }
}
