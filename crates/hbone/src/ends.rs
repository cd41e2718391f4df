//! Resets that come right behind the end of a stream.
//!
//! A proxy that has no half-closed streams ends its direction and then resets the stream, to be rid of
//! the other direction. Envoy does so with the code of an internal error. What was sent before the end
//! is whole all the same, but the engine keeps only the last thing that it learned of a stream: when
//! end and reset arrive together, the end would be lost, and what waits for a slow reader with it.
//!
//! So the frames are followed as they are read, and such a reset is given the code that means what it
//! says here: no more is wanted (RFC 9113 section 8.1).

use smallvec::SmallVec;

/// RFC 9113 section 3.4: what a client sends before its first frame.
pub(crate) const PREFACE: usize = 24;

const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;

/// Ends that are remembered in one turn. A reset comes right behind its end, so few are enough.
const MOST: usize = 64;

/// Follows the frames of a connection as they are read.
#[derive(Debug)]
pub(crate) struct Ends {
    /// Bytes to come that are no frame's head.
    skip: usize,
    /// They are a reset's code, to be made harmless.
    forgive: bool,
    head: SmallVec<[u8; HEAD]>,
    /// Streams whose end was read since the engine's last turn.
    ended: SmallVec<[u32; 8]>,
}

impl Ends {
    /// Before anything was read; the first `skip` bytes are no frame.
    pub(crate) fn new(skip: usize) -> Self {
        Self {
            skip,
            forgive: false,
            head: SmallVec::new(),
            ended: SmallVec::new(),
        }
    }

    /// The engine's streams were emptied: the ends read until now are known.
    pub(crate) fn known(&mut self) {
        self.ended.clear();
    }

    /// Takes what was read, before the engine does.
    pub(crate) fn read(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let part = if self.skip > 0 {
                self.skip.min(bytes.len())
            } else {
                (HEAD - self.head.len()).min(bytes.len())
            };
            let (part, rest) = bytes.split_at_mut(part);
            bytes = rest;
            if self.skip > 0 {
                self.skip -= part.len();
                if self.forgive {
                    part.fill(0);
                }
                continue;
            }
            self.head.extend_from_slice(part);
            if let &[a, b, c, kind, flags, d, e, f, g] = self.head.as_slice() {
                self.head.clear();
                self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                self.frame(kind, flags, u32::from_be_bytes([d & 0x7f, e, f, g]));
            }
        }
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32) {
        let ends = matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0;
        if ends && self.ended.len() < MOST {
            self.ended.push(stream);
        }
        self.forgive = kind == RST_STREAM && self.ended.contains(&stream);
    }
}

#[cfg(test)]
mod tests {
    use super::{DATA, END_STREAM, Ends, PREFACE, RST_STREAM};

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    }

    fn reset(stream: u8, code: u8) -> Vec<u8> {
        frame(RST_STREAM, 0, stream, &[0, 0, 0, code])
    }

    #[test]
    fn only_a_reset_behind_its_own_streams_end_is_made_harmless() {
        let said = |second: u8, third: u8| {
            [
                vec![9; PREFACE],
                frame(DATA, 0, 1, b"more"),
                reset(1, 2),
                frame(DATA, END_STREAM, 3, &[3, 1, 2]),
                frame(DATA, 0, 5, &[]),
                reset(3, second),
                reset(5, third),
            ]
            .concat()
        };
        // However the bytes come.
        for size in [1, 2, 7, 9, 13, 1000] {
            let mut bytes = said(2, 2);
            let mut ends = Ends::new(PREFACE);
            bytes.chunks_mut(size).for_each(|piece| ends.read(piece));
            assert_eq!(bytes, said(0, 2), "{size}");
        }
    }

    #[test]
    fn an_end_of_an_earlier_turn_is_known_to_the_stream_itself() {
        let mut ends = Ends::new(0);
        ends.read(&mut frame(DATA, END_STREAM, 1, b"all"));
        ends.known();
        let mut later = reset(1, 2);
        ends.read(&mut later);
        assert_eq!(later, reset(1, 2));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut ends = Ends::new(0);
        for _ in 0..1000 {
            ends.read(&mut frame(DATA, END_STREAM, 1, &[]));
        }
        assert_eq!(ends.ended.len(), super::MOST);
    }
}
