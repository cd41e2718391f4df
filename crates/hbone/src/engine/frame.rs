//! Frames: their heads, kinds, flags and codes (RFC 9113 sections 4, 6 and 7).

use std::fmt;

/// Bytes before a frame's payload.
pub(crate) const HEAD: usize = 9;

/// What a client sends before its first frame (section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

/// Of DATA and HEADERS.
pub(crate) const END_STREAM: u8 = 1;
/// Of SETTINGS and PING.
pub(crate) const ACK: u8 = 1;
/// Of HEADERS and CONTINUATION.
pub(crate) const END_HEADERS: u8 = 4;
/// Of DATA and HEADERS.
pub(crate) const PADDED: u8 = 8;
/// Of HEADERS: five bytes of priority come first.
pub(crate) const PRIORITIZED: u8 = 0x20;

/// Section 6.5.2.
pub(crate) const ENABLE_PUSH: u16 = 2;
pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(crate) const MAX_FRAME_SIZE: u16 = 5;
pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;

/// Windows before anything was said (section 6.9.2).
pub(crate) const FIRST_WINDOW: u32 = 65_535;
/// The largest window, and the largest number of a stream.
pub(crate) const MOST: u32 = (1 << 31) - 1;
/// The largest frame that may be sent to whoever said nothing, and the least that one may ask for.
pub(crate) const FIRST_FRAME: u32 = 16_384;
/// The largest frame that may be asked for.
pub(crate) const LARGEST_FRAME: u32 = (1 << 24) - 1;

/// What a frame begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) length: usize,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl Head {
    /// The head that `bytes` begin with, if it is whole.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let &[a, b, c, kind, flags, d, e, f, g] = bytes.first_chunk::<HEAD>()?;
        Some(Self {
            length: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
            kind,
            flags,
            stream: u32::from_be_bytes([d & 0x7f, e, f, g]),
        })
    }

    pub(crate) fn bytes(self) -> [u8; HEAD] {
        let [_, a, b, c] = u32::try_from(self.length).unwrap_or(u32::MAX).to_be_bytes();
        let [d, e, f, g] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, d, e, f, g]
    }

    pub(crate) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Adds a whole frame to `out`.
pub(crate) fn push(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let head = Head {
        length: payload.len(),
        kind,
        flags,
        stream,
    };
    out.extend_from_slice(&head.bytes());
    out.extend_from_slice(payload);
}

/// Adds a header block to `out`, in frames of at most `longest` bytes.
pub(crate) fn push_block(
    out: &mut Vec<u8>,
    stream: u32,
    ends: bool,
    mut block: &[u8],
    longest: usize,
) {
    let mut kind = HEADERS;
    let mut flags = if ends { END_STREAM } else { 0 };
    while let Some((part, rest)) = block.split_at_checked(longest)
        && !rest.is_empty()
    {
        push(out, kind, flags, stream, part);
        (kind, flags, block) = (CONTINUATION, 0, rest);
    }
    push(out, kind, flags | END_HEADERS, stream, block);
}

/// Why a stream or a connection ends (section 7).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code(pub(crate) u32);

impl Code {
    pub(crate) const NO_ERROR: Self = Self(0);
    pub(crate) const PROTOCOL_ERROR: Self = Self(1);
    pub(crate) const FLOW_CONTROL_ERROR: Self = Self(3);
    pub(crate) const STREAM_CLOSED: Self = Self(5);
    pub(crate) const FRAME_SIZE_ERROR: Self = Self(6);
    pub(crate) const REFUSED_STREAM: Self = Self(7);
    pub(crate) const CANCEL: Self = Self(8);
    pub(crate) const COMPRESSION_ERROR: Self = Self(9);
    pub(crate) const ENHANCE_YOUR_CALM: Self = Self(11);
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => "no error",
            1 => "protocol error",
            2 => "internal error",
            3 => "flow control violated",
            4 => "settings not acknowledged in time",
            5 => "frame on a closed stream",
            6 => "frame of a wrong size",
            7 => "stream refused before anything was done",
            8 => "stream no longer wanted",
            9 => "header compression lost",
            10 => "connection behind the tunnel was reset",
            11 => "excessive load",
            12 => "inadequate security",
            13 => "HTTP/1.1 required",
            other => return write!(f, "unknown code {other}"),
        })
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({self})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{Head, push, push_block};

    #[test]
    fn what_is_written_is_read() {
        let mut out = Vec::new();
        push(&mut out, 7, 5, 0x7fff_fffe, &[1; 70_000]);
        let head = Head::read(&out).unwrap();
        assert_eq!((head.length, head.kind, head.flags), (70_000, 7, 5));
        assert_eq!(head.stream, 0x7fff_fffe);
        assert_eq!(Head::read(&out[..8]), None);
    }

    #[test]
    fn a_long_block_goes_on_in_frames_that_fit_and_ends_once() {
        for (length, frames) in [(0, 1), (9, 1), (10, 1), (11, 2), (20, 2), (25, 3)] {
            let mut out = Vec::new();
            push_block(&mut out, 3, true, &vec![7; length], 10);
            let (mut rest, mut kinds, mut bytes, mut flags) = (&out[..], Vec::new(), 0, Vec::new());
            while let Some(head) = Head::read(rest) {
                kinds.push(head.kind);
                flags.push(head.flags);
                bytes += head.length;
                assert!(head.length <= 10);
                rest = &rest[9 + head.length..];
            }
            assert_eq!((kinds.len(), bytes), (frames, length), "{length}");
            assert_eq!(kinds[0], 1);
            assert!(kinds[1..].iter().all(|kind| *kind == 9));
            assert_eq!(flags[0] & 1, 1, "ends the stream");
            assert_eq!(flags.iter().filter(|flags| **flags & 4 != 0).count(), 1);
            assert_eq!(flags.last().unwrap() & 4, 4);
        }
    }
}
