//! Bytes of one direction of one stream that wait, in their order.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

/// Payloads below this are copied out of what was read: each would hold a read buffer alive that is four times as large.
const SMALL: usize = 2048;

/// Small ones that have to wait are joined, so that memory stays in proportion to bytes, and passed on when they come to this.
const JOINED: usize = 16 * 1024;

/// Mostly there is one piece or none; what more than one needs is allocated while there is more.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    /// Empty if there is none at all.
    first: Bytes,
    more: Option<Box<More>>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct More {
    queue: VecDeque<Bytes>,
    /// Small ones, behind those in the queue.
    joined: BytesMut,
}

impl More {
    fn close_joined(&mut self) {
        if !self.joined.is_empty() {
            // Nothing stays behind: what is left of the buffer would be held for as long as the piece is.
            self.queue
                .push_back(std::mem::take(&mut self.joined).freeze());
        }
    }
}

impl Pieces {
    /// How many bytes there are.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Adds a piece as it is.
    pub(crate) fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        if self.first.is_empty() {
            self.first = piece;
        } else if !piece.is_empty() {
            let more = self.more.get_or_insert_default();
            more.close_joined();
            more.queue.push_back(piece);
        }
    }

    /// Adds the first `length` bytes of what was read.
    pub(crate) fn take_from(&mut self, read: &mut BytesMut, length: usize) {
        if length >= SMALL {
            return self.push(read.split_to(length.min(read.len())).freeze());
        }
        let part = read.get(..length).unwrap_or_default();
        if self.first.is_empty() {
            self.push(Bytes::copy_from_slice(part));
        } else {
            self.bytes += part.len();
            let more = self.more.get_or_insert_default();
            more.joined.extend_from_slice(part);
            if more.joined.len() >= JOINED {
                more.close_joined();
            }
        }
        read.advance(length.min(read.len()));
    }

    /// The next piece, cut after `most` bytes. `None` when there is nothing.
    pub(crate) fn pop(&mut self, most: usize) -> Option<Bytes> {
        if self.first.is_empty() {
            return None;
        }
        if self.first.len() > most {
            self.bytes -= most;
            return Some(self.first.split_to(most));
        }
        let next = self.more.as_mut().and_then(|more| {
            if more.queue.is_empty() {
                more.close_joined();
            }
            more.queue.pop_front()
        });
        if next.is_none() {
            self.more = None; // a burst is over: who idles holds nothing
        }
        let piece = std::mem::replace(&mut self.first, next.unwrap_or_default());
        self.bytes -= piece.len();
        Some(piece)
    }

    /// Lets go of everything; answers how many bytes that was.
    pub(crate) fn clear(&mut self) -> usize {
        std::mem::take(self).bytes
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};
    use proptest::collection::vec;
    use proptest::prelude::any;
    use proptest::proptest;

    use super::{JOINED, Pieces, SMALL};

    #[test]
    fn single_bytes_that_wait_come_in_few_pieces() {
        let mut pieces = Pieces::default();
        let mut read = BytesMut::from(&vec![7; 100_000][..]);
        for _ in 0..100_000 {
            pieces.take_from(&mut read, 1);
        }
        assert_eq!(pieces.len(), 100_000);
        let (mut count, mut bytes) = (0, 0);
        while let Some(piece) = pieces.pop(usize::MAX) {
            assert!(piece.len() <= JOINED);
            count += 1;
            bytes += piece.len();
        }
        assert_eq!(bytes, 100_000);
        assert!(count < 10, "{count}");
        assert!(pieces.more.is_none(), "an empty queue holds nothing");
    }

    #[test]
    fn small_ones_do_not_hold_the_buffer_they_came_in() {
        let mut pieces = Pieces::default();
        let mut read = BytesMut::from(&vec![7; 8192][..]);
        let place = read.as_ptr();
        pieces.take_from(&mut read, SMALL - 1);
        assert_ne!(pieces.pop(usize::MAX).unwrap().as_ptr(), place);
        pieces.take_from(&mut read, SMALL);
        let large = pieces.pop(usize::MAX).unwrap();
        assert_eq!(large.as_ptr() as usize, place as usize + SMALL - 1);
    }

    proptest! {
        #[test]
        fn order_and_count_are_kept(steps in vec((0..3u8, 1..5000usize), 0..60), first in any::<u8>()) {
            let (mut pieces, mut model) = (Pieces::default(), Vec::new());
            let mut next = first;
            for (what, length) in steps {
                let fresh: Vec<u8> = (0..length).map(|n| next.wrapping_add(n.to_le_bytes()[0])).collect();
                next = next.wrapping_add(101);
                match what {
                    0 => {
                        pieces.push(Bytes::from(fresh.clone()));
                        model.extend(fresh);
                    }
                    1 => {
                        pieces.take_from(&mut BytesMut::from(&fresh[..]), length);
                        model.extend(fresh);
                    }
                    _ => match pieces.pop(length) {
                        None => assert!(model.is_empty()),
                        Some(piece) => {
                            assert!(!piece.is_empty() && piece.len() <= length);
                            let rest = model.split_off(piece.len());
                            assert_eq!(piece, std::mem::replace(&mut model, rest));
                        }
                    },
                }
                assert_eq!(pieces.len(), model.len());
            }
        }
    }
}
