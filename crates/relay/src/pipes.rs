//! Pipes kept by the thread, so that only directions with bytes in flight hold any.

use std::cell::RefCell;

use ambit_net::splice::Pipe;

/// Bytes that a pipe takes at most. Between sockets of one machine 64 KiB save a third of the time that copying takes, 256 KiB
/// nearly half. A MiB saves somewhat more; but what a pipe takes is what a reader that stands still holds.
pub(crate) const ROOM: usize = 256 * 1024;

/// Pipes that a thread lends at one time: 32 MiB of bytes on their way and 256 descriptors, whoever stops reading. Other directions
/// copy.
const MOST_LENT: usize = 128;

/// Empty pipes kept for the next takers. An empty one is two descriptors and 2.5 KiB of the kernel's memory; to make one costs as
/// much as to copy 16 KiB.
const KEPT: usize = 16;

#[derive(Debug, Default)]
struct Pipes {
    free: Vec<Pipe>,
    lent: usize,
}

thread_local! {
    static PIPES: RefCell<Pipes> = const {
        RefCell::new(Pipes {
            free: Vec::new(),
            lent: 0,
        })
    };
}

/// An empty pipe, if one may be had. It is to be [given back](give_back).
pub(crate) fn lend(make: fn() -> ambit_net::Result<Pipe>) -> Option<Pipe> {
    PIPES
        .try_with(|pipes| {
            let mut pipes = pipes.borrow_mut();
            if pipes.lent >= MOST_LENT {
                return None;
            }
            let pipe = match pipes.free.pop() {
                Some(pipe) => pipe,
                None => make().ok()?,
            };
            pipes.lent += 1;
            Some(pipe)
        })
        .ok()
        .flatten()
}

/// Keeps `pipe` for the next taker, unless bytes are left in it, which nobody else may see, or enough are kept.
pub(crate) fn give_back(pipe: Pipe) {
    // When the thread is ending there is nothing to keep it for.
    let _ = PIPES.try_with(|pipes| {
        let mut pipes = pipes.borrow_mut();
        // One that was lent by another thread was not counted here.
        pipes.lent = pipes.lent.saturating_sub(1);
        if pipe.held() == 0 && pipes.free.len() < KEPT {
            pipes.free.push(pipe);
        }
    });
}

/// Pipes that this thread has lent and that it keeps.
#[cfg(test)]
pub(crate) fn lent_and_kept() -> (usize, usize) {
    PIPES.with(|pipes| {
        let pipes = pipes.borrow();
        (pipes.lent, pipes.free.len())
    })
}

/// Keeps none of another way's pipes.
#[cfg(test)]
pub(crate) fn forget() {
    PIPES.with(|pipes| pipes.borrow_mut().free.clear());
}

#[cfg(test)]
mod tests {
    use super::{KEPT, MOST_LENT, Pipe, give_back, lend, lent_and_kept};

    fn make() -> ambit_net::Result<Pipe> {
        Pipe::new(64 * 1024)
    }

    #[test]
    fn lends_and_keeps_no_more_than_its_share() {
        let many: Vec<_> = (0..MOST_LENT).map(|_| lend(make).unwrap()).collect();
        assert!(lend(make).is_none());
        many.into_iter().for_each(give_back);
        assert_eq!(lent_and_kept(), (0, KEPT));
        let one = lend(|| panic!("one is kept")).unwrap();
        assert_eq!(lent_and_kept(), (1, KEPT - 1));
        give_back(one);
    }
}
