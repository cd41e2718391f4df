//! Read buffers kept by the thread, so that only connections with bytes in flight hold any.

use std::cell::{Cell, RefCell};

use bytes::BytesMut;

use crate::growth::SIZES;

/// Free buffers kept for each size: half a MiB of each, which serves a burst of wake-ups in one
/// turn of the event loop without asking the allocator.
const KEPT: [usize; SIZES.len()] = [128, 32, 8, 4];

/// The class of the longest buffers.
pub(crate) const LONGEST: usize = SIZES.len() - 1;

/// Longest buffers that the connections of one thread have in hand at once: 8 MiB. Whoever comes later has one half as long. So a
/// thousand connections whose other ends stand still hold half as much as if each had filled the longest.
const MOST_LONGEST: usize = 64;

thread_local! {
    static IN_HAND: Cell<usize> = const { Cell::new(0) };
    static FREE: RefCell<[Vec<BytesMut>; SIZES.len()]> = const {
        RefCell::new([const { Vec::new() }; SIZES.len()])
    };
}

/// Leave to have one of the longest buffers in hand.
#[derive(Debug)]
pub(crate) struct Longest(());

impl Longest {
    /// None when there are enough.
    pub(crate) fn get() -> Option<Self> {
        let taken = IN_HAND.try_with(|now| {
            let may = now.get() < MOST_LONGEST;
            now.set(now.get() + usize::from(may));
            may
        });
        taken.is_ok_and(|may| may).then(|| Self(()))
    }
}

impl Drop for Longest {
    fn drop(&mut self) {
        // When the thread is ending nobody asks any more.
        let _ = IN_HAND.try_with(|now| now.set(now.get().saturating_sub(1)));
    }
}

/// An empty buffer with at least the room of `class`.
pub(crate) fn take(class: usize) -> BytesMut {
    let kept = FREE
        .try_with(|free| free.borrow_mut().get_mut(class).and_then(Vec::pop))
        .ok()
        .flatten();
    kept.unwrap_or_else(|| BytesMut::with_capacity(size(class)))
}

/// Keeps `buffer`, which has the whole room of `class`, for the next taker, unless somebody still reads from it or enough are kept.
///
/// A part of its room would do for a smaller class; but it would count there as a small one, and hold the whole.
pub(crate) fn give_back(mut buffer: BytesMut, class: usize) {
    buffer.clear();
    if !buffer.try_reclaim(size(class)) {
        return;
    }
    // When the thread is ending there is nothing to keep it for.
    let _ = FREE.try_with(|free| {
        let mut free = free.borrow_mut();
        if let (Some(list), Some(most)) = (free.get_mut(class), KEPT.get(class))
            && list.len() < *most
        {
            list.push(buffer);
        }
    });
}

/// Room of a class in bytes.
pub(crate) fn size(class: usize) -> usize {
    SIZES.get(class).copied().unwrap_or(SIZES[0])
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::{KEPT, Longest, MOST_LONGEST, give_back, take};

    #[test]
    fn a_buffer_comes_back_to_the_next_taker() {
        let mut buffer = take(1);
        let place = buffer.as_ptr();
        buffer.put_slice(b"some bytes");
        let chunk = buffer.split().freeze();
        drop(chunk);
        give_back(buffer, 1);
        let again = take(1);
        assert_eq!(again.as_ptr(), place);
        assert!(again.is_empty());
        assert!(again.capacity() >= 16 * 1024);
    }

    #[test]
    fn a_buffer_that_is_still_read_is_not_given_out() {
        let mut buffer = take(0);
        buffer.put_slice(b"in flight");
        let chunk = buffer.split().freeze();
        give_back(buffer, 0);
        let mut other = take(0);
        other.put_slice(b"other one");
        assert_eq!(&chunk[..], b"in flight");
    }

    #[test]
    fn the_rest_of_a_large_buffer_is_not_kept_as_a_small_one() {
        let kept = || super::FREE.with(|free| free.borrow().each_ref().map(Vec::len));
        let mut buffer = take(2);
        buffer.put_slice(b"in flight");
        let chunk = buffer.split().freeze();
        let before = kept();
        give_back(buffer, 2);
        assert_eq!(kept(), before);
        drop(chunk);
    }

    #[test]
    fn few_have_the_longest_and_another_may_when_one_is_done() {
        let mut held: Vec<_> = std::iter::from_fn(Longest::get).collect();
        assert_eq!(held.len(), MOST_LONGEST);
        held.pop();
        held.extend(Longest::get());
        assert_eq!(held.len(), MOST_LONGEST);
        assert!(Longest::get().is_none());
    }

    #[test]
    fn keeps_no_more_than_its_share() {
        let many: Vec<_> = (0..KEPT[2] + 5).map(|_| take(2)).collect();
        many.into_iter().for_each(|buffer| give_back(buffer, 2));
        super::FREE.with(|free| assert_eq!(free.borrow()[2].len(), KEPT[2]));
    }
}
